"""What every autoencoder's pipeline has: images there and back, whatever the code between is."""

from collections.abc import Callable

import torch
from torch import Tensor

from hfgen.distributions.likelihoods import Likelihood, build_likelihood, upcast

from .inputs import check_images, check_latents, image_shape_of
from .latents import LatentMixin, RoundTripMixin


class CodingMixin(RoundTripMixin):
    """For a pipeline with an `autoencoder`, the options of its p(x | z), and `encode` and `decode`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return image_shape_of(self.autoencoder.config)

    @property
    def likelihood(self) -> Likelihood:
        """p(x | z)."""
        config = self.config
        return build_likelihood(config.likelihood, config.likelihood_sigma, config.likelihood_components)

    @torch.no_grad()
    def _encoded(self, images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """encode(images), a batch at a time, on images that fit the network, in its dtype."""
        check_images(images, self.image_shape)
        return self._by_batch(images.to(self.autoencoder.dtype), encode)

    @torch.no_grad()
    def _decoded(self, codes: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean of p(x | z), (B, C, H, W) in [-1, 1], with decode(codes) its parameters, a batch at a time."""
        return self._by_batch(codes, lambda part: self.likelihood.mean(decode(part)))


class AutoencoderMixin(CodingMixin, LatentMixin):
    """For a pipeline with an `autoencoder` called as diffusers' AutoencoderKL, and `latent_shape`."""

    def encode(self, images: Tensor) -> Tensor:
        """The mean of q(z | x), (B, d, h, w), for images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: images of another shape.
        """
        return self._encoded(images, lambda x: upcast(self.autoencoder.encode(x).latent_dist.mean))

    def decode(self, latents: Tensor) -> Tensor:
        """The mean of p(x | z), (B, C, H, W) in [-1, 1], for latents (B, d, h, w).

        Raises:
            ValueError: latents of another shape.
        """
        check_latents(latents, self.latent_shape)
        return self._decoded(latents.to(self.autoencoder.dtype), lambda z: self.autoencoder.decode(z).sample)
