"""What every autoencoder's pipeline has: images there and back, whatever the code between is."""

from collections.abc import Callable

import torch
from torch import Tensor

from hfgen.observation import Observation, observation

from .inputs import check_images, image_shape_of

BATCH = 256
"""Images or codes that a network sees at a time."""


class CodingMixin:
    """For a pipeline with an `autoencoder`, the options of its p(x | z), and `encode` and `decode`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return image_shape_of(self.autoencoder.config)

    @property
    def observation(self) -> Observation:
        """p(x | z)."""
        config = self.config
        return observation(config.likelihood, config.likelihood_sigma, config.likelihood_components)

    def reconstruct(self, images: Tensor) -> Tensor:
        """decode(encode(images)): (B, C, H, W) in [-1, 1] for images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: images of another shape.
        """
        return self.decode(self.encode(images))

    @torch.no_grad()
    def _encoded(self, images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """encode(images), a batch at a time, on images that fit the network, in its dtype."""
        check_images(images, self.image_shape)
        return self._by_batch(images.to(self.autoencoder.dtype), encode)

    @torch.no_grad()
    def _decoded(self, codes: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean of p(x | z), (B, C, H, W) in [-1, 1], with decode(codes) its parameters, a batch at a time."""
        return self._by_batch(codes, lambda part: self.observation.mean(decode(part)))

    def _by_batch(self, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        parts = [function(part.to(self._execution_device)) for part in rows.split(BATCH)]
        self.maybe_free_model_hooks()
        return torch.cat(parts)
