"""Representations of images by a masked autoencoder, and what it makes of images that are hidden in part."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from hfgen.models.patches import hidden_patches, patch_moments, visible_patches
from hfgen.utils.arguments import checked
from hfgen.utils.seeds import sample_generators

from .base import HFGenPipeline
from .images import image_batch
from .inputs import check_count, check_network, sample_shape_of, uniform_of
from .outputs import require_finite

BATCH = 256
"""Images in one pass of the network."""


class RepresentationOutput(BaseOutput):
    """The output of `MAEPipeline`.

    Args:
        features (B, D): a vector for each image.
    """

    features: Tensor


class MAEPipeline(HFGenPipeline):
    """A masked autoencoder (He et al. 2022, https://arxiv.org/abs/2111.06377): vectors of images for other tasks, and
    predictions of hidden patches. It draws nothing: a hidden patch has one prediction, the mean of all that could be
    there.

    Args:
        autoencoder: a `MaskedAutoencoderModel`.
        mask_ratio: share of the patches that `reconstruct` hides, unless the call says another one.
        normalised_targets: whether the network predicts patches less their mean and divided by their deviation.

    Raises:
        ValueError: another network.
    """

    model_cpu_offload_seq = "autoencoder"
    draws_instead = (
        "A masked autoencoder learns representations: call encode(images) or reconstruct(images). For samples train a "
        "model of images, such as hfgen train diffusion or hfgen train vae."
    )

    @checked
    def __init__(self, autoencoder: ModelMixin, mask_ratio: float = 0.75, normalised_targets: bool = False):
        super().__init__()
        check_network("autoencoder", autoencoder, ("encode", "decode", "grid"), "a MaskedAutoencoderModel")
        self.register_modules(autoencoder=autoencoder)
        self.register_to_config(mask_ratio=mask_ratio, normalised_targets=normalised_targets)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape (C, H, W) of an image."""
        return sample_shape_of(self.autoencoder)

    @checked
    def __call__(self, images: Any = None, return_dict: bool = True) -> RepresentationOutput | tuple[Tensor]:
        """Return the representations of images, see `encode`.

        Args:
            images: see `image_batch`.
            return_dict: return a `RepresentationOutput`, else a tuple of the features.

        Raises:
            ValueError: there are no images, or they do not fit the model.
        """
        if images is None:
            raise ValueError(f"{type(self).__name__} draws no samples. {self.draws_instead}")
        features = self.encode(images)
        return RepresentationOutput(features=features) if return_dict else (features,)

    @checked
    @torch.no_grad()
    def encode(self, images: Any, pooled: bool = True) -> Tensor:
        """Return the representations (B, D) of images with nothing hidden: the mean of the encoder's tokens.

        Args:
            images: see `image_batch`.
            pooled: off: the tokens themselves, (B, N, D), of patches row by row.

        Raises:
            ValueError: images that do not fit the model.
        """
        x = image_batch(images, self.sample_shape)

        def features(part: Tensor) -> Tensor:
            tokens = self.autoencoder.encode(part)
            return tokens.mean(1) if pooled else tokens

        return require_finite(self._by_batch(features, x), "features", self.components, x)

    @checked
    @torch.no_grad()
    def reconstruct(self, images: Any, mask_ratio: float | None = None, seed: int = 0) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1] whose hidden patches are predicted from the others, which stay.

        Of a network with normalised targets, mean and deviation of a hidden patch are taken from the image: such a
        picture shows what was learnt, and is no prediction.

        Args:
            images: see `image_batch`.
            mask_ratio: share of the patches that is hidden; None: the pipeline's own.
            seed: of the masks. Image i has that of seed + i: `mask` returns them.

        Raises:
            ValueError: images that do not fit the model, a ratio that hides none or all patches, a seed out of range.
        """
        x = image_batch(images, self.sample_shape)
        visible = self._visible(len(x), mask_ratio, seed)
        predicted = self._by_batch(lambda part, seen: self.autoencoder(part, seen).sample, x, visible)
        require_finite(predicted, "reconstructions", self.components, x)
        grid = self.autoencoder.grid
        known, made = grid.tokens(x.to(predicted)), grid.tokens(predicted)
        if self.config.normalised_targets:
            mean, deviation = patch_moments(known)
            made = made * deviation + mean
        hidden = hidden_patches(visible, grid.length).to(made.device)[..., None]
        return grid.image(torch.where(hidden, made.clamp(-1, 1), known))

    @checked
    def mask(self, count: int, mask_ratio: float | None = None, seed: int = 0) -> Tensor:
        """Return which pixels of `count` images `reconstruct` hides: bool (B, 1, H, W). Errors are those of
        `reconstruct`."""
        check_count("count", count)
        grid = self.autoencoder.grid
        hidden = hidden_patches(self._visible(count, mask_ratio, seed), grid.length)  # (B, N)
        pixels = hidden.unflatten(1, (1, grid.rows, grid.columns))
        return pixels.repeat_interleave(grid.side, 2).repeat_interleave(grid.side, 3)

    def _visible(self, count: int, mask_ratio: float | None, seed: int) -> Tensor:
        """Return the numbers (B, V) of the visible patches of images."""
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        shape, generators = (count, self.autoencoder.grid.length), sample_generators(seed, range(count))
        return visible_patches(uniform_of(shape, generators, "cpu"), ratio)

    def _by_batch(self, function: Callable[..., Tensor], x: Tensor, *more: Tensor) -> Tensor:
        """Return function(x, ...) of images (B, C, H, W) and of other tensors (B, ...), a batch at a time."""
        device, dtype = self._execution_device, self.autoencoder.dtype
        batches = zip(*(rows.split(BATCH) for rows in (x, *more)), strict=True)
        parts = [
            function(images.to(device, dtype), *(each.to(device) for each in others))
            for images, *others in self.progress_bar(list(batches))
        ]
        self.maybe_free_model_hooks()
        return torch.cat(parts).float()
