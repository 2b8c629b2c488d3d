"""Images as grids of codes, and back: autoencoders with a codebook."""

import math
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from hfgen.distributions.likelihoods import build_likelihood

from .base import HFGenPipeline, PipelineOutput
from .latents import DecoderMixin
from .outputs import require_finite, require_sound


class VQPipeline(DecoderMixin, HFGenPipeline):
    """A vector-quantised autoencoder (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937): an image is a grid
    (h, w) of code numbers.

    Args:
        autoencoder: `VQAutoencoderModel`, or diffusers' `VQModel`, whose decoder gives the parameters of p(x | codes).
        likelihood, likelihood_sigma, likelihood_components: p(x | codes), see `hfgen.distributions.likelihoods`.

    Raises:
        ValueError: an unknown likelihood.
    """

    model_cpu_offload_seq = "autoencoder"

    def __init__(
        self,
        autoencoder: ModelMixin,
        likelihood: str = "gaussian",
        likelihood_sigma: float = 0.1,
        likelihood_components: int = 5,
    ):
        super().__init__()
        build_likelihood(likelihood, likelihood_sigma, likelihood_components)  # refuses an unknown one
        self.register_modules(autoencoder=autoencoder)
        self.register_to_config(
            likelihood=likelihood, likelihood_sigma=likelihood_sigma, likelihood_components=likelihood_components
        )

    @property
    def num_codes(self) -> int:
        """Return the size of the codebook."""
        return self.autoencoder.config.num_vq_embeddings

    @property
    def code_shape(self) -> tuple[int, int]:
        """Return (h, w) of a grid of codes, by encoding zeros."""
        return tuple(self.encode(torch.zeros(1, *self.sample_shape)).shape[1:])

    @torch.no_grad()
    def __call__(
        self,
        codes: Any = None,
        batch_size: int | None = None,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
        """Decode codes to images.

        Args:
            codes: code numbers (B, h, w), as `encode` returns them.
            batch_size: None, or B.
            generator: ignored: nothing is random here.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` in [-1, 1].
            return_dict: return a `PipelineOutput`, else a tuple of the images.

        Raises:
            ValueError: no codes: drawing them needs a prior over codes, which this pipeline does not have.
        """
        if codes is None:
            raise ValueError(
                "A VQPipeline has no prior over codes, which drawing new images needs, and no family trains one yet. "
                "Give codes=pipeline.encode(images), or train a VAEPipeline (--objective elbo)."
            )
        codes = torch.as_tensor(codes)
        if batch_size not in (None, len(codes)):
            raise ValueError(f"{batch_size=} but there are {len(codes)} grids of codes. Leave batch_size out.")
        images = self.to_images(self.decode(codes), output_type)
        return PipelineOutput(images=images) if return_dict else (images,)

    def encode(self, images: Any) -> Tensor:
        """Return the code numbers, int64 (B, h, w), of images, see `image_batch`.

        Raises:
            ValueError: images that do not fit the model.
        """
        return self._encoded(self._batch(images), self._numbers)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the mean of p(x | codes), (B, C, H, W) in [-1, 1], for code numbers (B, h, w).

        Raises:
            ValueError: not whole numbers of this shape, or numbers outside the codebook.
        """
        codes = torch.as_tensor(codes)
        whole = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
        if codes.ndim != 3 or not whole or not len(codes):
            raise ValueError(f"codes are whole numbers (B, h, w), not {codes.dtype} of shape {tuple(codes.shape)}.")
        if tuple(codes.shape[1:]) != (shape := self.code_shape):
            raise ValueError(f"codes have shape {tuple(codes.shape)}; this model needs (B, {shape[0]}, {shape[1]}).")
        if codes.min() < 0 or codes.max() >= self.num_codes:
            low, high = int(codes.min()), int(codes.max())
            raise ValueError(f"codes are from 0 to {self.num_codes - 1}; these go from {low} to {high}.")
        return self._decoded(codes.long(), self._parameters)

    def perplexity(self, images: Any) -> float:
        """Return the effective number of codes that images use, see `image_batch`: exp(-sum_i p_i log p_i), from 1 to
        `num_codes`, where p_i is the frequency of code i."""
        counts = torch.bincount(self.encode(images).flatten(), minlength=self.num_codes)
        return math.exp(torch.special.entr(counts.double().cpu() / counts.sum().item()).sum())

    def _numbers(self, x: Tensor) -> Tensor:
        """Return the code numbers (B, h, w) of images."""
        latents = require_finite(self.autoencoder.encode(x).latents, "encoder's outputs", self.components, x)
        ours = hasattr(self.autoencoder, "decode_indices")
        require_sound(self.autoencoder.codebook if ours else self.autoencoder.quantize, "autoencoder's codebook")
        if ours:
            return self.autoencoder.quantize(latents).indices
        _, _, (_, _, numbers) = self.autoencoder.quantize(latents)  # diffusers' own: in one row
        return numbers.view(len(x), *latents.shape[2:])

    def _parameters(self, codes: Tensor) -> Tensor:
        """Return the parameters of p(x | codes) for code numbers (B, h, w)."""
        if hasattr(self.autoencoder, "decode_indices"):
            return self.autoencoder.decode_indices(codes)
        book = self.autoencoder.quantize
        latents = book.get_codebook_entry(codes.flatten(), (*codes.shape, book.vq_embed_dim))
        return self.autoencoder.decode(latents, force_not_quantize=True).sample
