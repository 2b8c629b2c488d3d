"""Images as grids of codes, and back: autoencoders with a codebook, and a prior over codes to draw from."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from hfgen.distributions.likelihoods import build_likelihood
from hfgen.utils.arguments import checked

from .base import HFGenPipeline, PipelineOutput
from .class_condition import ClassConditionMixin, rows_of
from .classes import check_classes
from .inputs import Generators, check_count, check_network, uniform_of
from .latents import BATCH, DecoderMixin
from .outputs import require_finite, require_numbers, require_sound


class VQPipeline(ClassConditionMixin, DecoderMixin, HFGenPipeline):
    """A vector-quantised autoencoder (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937): an image is a grid
    (h, w) of code numbers. With a prior over codes it draws new images: codes, then the image of these.

    Args:
        autoencoder: `VQAutoencoderModel`, or diffusers' `VQModel`, whose decoder gives the parameters of p(x | codes).
        likelihood, likelihood_sigma, likelihood_components: p(x | codes), see `hfgen.distributions.likelihoods`.
        prior: an `AutoregressiveTransformerModel` of grids (1, h, w) of codes; None: there is none.
        num_classes: number of classes of the prior, None for an unconditional one. The null label is the embedding
            after the last class.
        label_names: the classes' names, to be used in place of numbers.

    Raises:
        ValueError: an unknown likelihood, or a prior of other codes or classes.
    """

    model_cpu_offload_seq = "prior->autoencoder"
    _optional_components = ["prior"]  # noqa: RUF012 - as diffusers has it
    _loaded_components = ("prior",)

    @checked
    def __init__(
        self,
        autoencoder: ModelMixin,
        likelihood: str = "gaussian",
        likelihood_sigma: float = 0.1,
        likelihood_components: int = 5,
        prior: ModelMixin | None = None,
        num_classes: int | None = None,
        label_names: list[str] | None = None,
    ):
        super().__init__()
        build_likelihood(likelihood, likelihood_sigma, likelihood_components)  # refuses an unknown one
        check_network("autoencoder", autoencoder, ("config.num_vq_embeddings",), "a VQAutoencoderModel, or a VQModel")
        if prior is not None:
            check_network("prior", prior, ("draw", "config.levels"), "an autoregressive model of its codes")
        check_classes(num_classes, label_names, prior)
        if prior is not None and prior.config.levels != autoencoder.config.num_vq_embeddings:
            raise ValueError(
                f"The prior is one of {prior.config.levels} codes, and the autoencoder has "
                f"{autoencoder.config.num_vq_embeddings}. Give the prior that was trained on its codes."
            )
        self.register_modules(autoencoder=autoencoder, prior=prior)
        self.register_to_config(
            likelihood=likelihood, likelihood_sigma=likelihood_sigma, likelihood_components=likelihood_components
        )
        self.register_to_config(num_classes=num_classes, label_names=label_names)

    @property
    def _conditioned(self) -> nn.Module | None:
        return self.prior

    @property
    def num_codes(self) -> int:
        """Return the size of the codebook."""
        return self.autoencoder.config.num_vq_embeddings

    @property
    def code_shape(self) -> tuple[int, int]:
        """Return (h, w) of a grid of codes, by encoding zeros."""
        return tuple(self.encode(torch.zeros(1, *self.sample_shape)).shape[1:])

    @checked
    @torch.no_grad()
    def __call__(
        self,
        codes: Any = None,
        batch_size: int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
    ) -> PipelineOutput | tuple[Any]:
        """Decode codes to images, those of the caller or new ones of the prior.

        Args:
            codes: code numbers (B, h, w), as `encode` returns them; None: the prior draws them.
            batch_size: number of images; None: as many as there are codes or labels, else 1.
            generator: of the prior; one, or one for each image. With a list, an image is the same alone and in any
                batch.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` in [-1, 1].
            return_dict: return a `PipelineOutput`, else a tuple of the images.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            guidance_scale: 1 is no guidance, above 1 sharpens towards the class.
            temperature: below 1 codes are more typical and less diverse; 0: each code is the most likely one.

        Raises:
            ValueError: no codes and no prior, codes, labels or guidance that do not fit, or a number out of range.
        """
        if codes is None:
            codes = self._drawn(batch_size, class_labels, guidance_scale, generator, temperature)
        elif class_labels is not None or (guidance_scale, temperature) != (1.0, 1.0):
            raise ValueError("class_labels, guidance_scale and temperature are the prior's. Leave them or codes out.")
        codes = self._checked(codes)
        if batch_size not in (None, len(codes)):
            raise ValueError(f"{batch_size=} but there are {len(codes)} grids of codes. Leave batch_size out.")
        images = self.to_images(self.decode(codes), output_type)
        return PipelineOutput(images=images) if return_dict else (images,)

    def _drawn(
        self, batch_size: int | None, class_labels: Any, scale: float, generator: Generators, temperature: float
    ) -> Tensor:
        """Return codes (B, h, w) of the prior."""
        if self.prior is None:
            raise ValueError(
                "This VQPipeline has no prior over codes, which drawing new images needs. Train one: hfgen train ar "
                "--pipeline FOLDER, or give codes=pipeline.encode(images)."
            )
        if isinstance(temperature, bool) or not 0 <= temperature < math.inf:
            raise ValueError(f"{temperature=} must be at least 0, and finite.")
        require_sound(self.prior, "prior")
        count, kwargs = self._kwargs(batch_size, class_labels, scale)
        uniform = uniform_of((count, *self.prior.noise_shape), generator, self._execution_device)

        def codes(rows: Tensor) -> Tensor:
            options = {**rows_of(kwargs, rows), "guidance_scale": scale, "temperature": temperature}
            return self.prior.draw(uniform[rows], **options).symbols[:, 0]

        return self._by_batch(torch.arange(count), codes)

    @checked
    @torch.no_grad()
    def code_log_likelihood(self, codes: Any, class_labels: Any = None, batch_size: int = BATCH) -> Tensor:
        """Return log P(codes) of the prior in nats, (B,) float64. It is no likelihood of pixels: other images have the
        same codes.

        Args:
            codes: code numbers (B, h, w), as `encode` returns them.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            batch_size: grids in one pass.

        Raises:
            ValueError: there is no prior, or codes or labels do not fit.
        """
        if self.prior is None:
            raise ValueError("This VQPipeline has no prior over codes. Train one: hfgen train ar --pipeline FOLDER.")
        check_count("batch_size", batch_size)
        codes = self._checked(codes)
        _, kwargs = self._kwargs(len(codes), class_labels, 1.0)
        values = []
        for rows in self.progress_bar(torch.arange(len(codes)).split(batch_size)):
            part = codes[rows.to(codes.device), None].to(self._execution_device)
            values.append(self.prior(part, **rows_of(kwargs, rows)).log_prob.to(self._real))
        self.maybe_free_model_hooks()
        return require_numbers(torch.cat(values), "log-likelihoods of codes", self.components)

    @checked
    def encode(self, images: Any) -> Tensor:
        """Return the code numbers, int64 (B, h, w), of images, see `image_batch`.

        Raises:
            ValueError: images that do not fit the model.
        """
        return self._encoded(self._batch(images), self._numbers)

    @checked
    def decode(self, codes: Any) -> Tensor:
        """Return the mean of p(x | codes), (B, C, H, W) in [-1, 1], for code numbers (B, h, w).

        Raises:
            ValueError: not whole numbers of this shape, or numbers outside the codebook.
        """
        return self._decoded(self._checked(codes), self._parameters)

    def _checked(self, codes: Any) -> Tensor:
        """Return code numbers (B, h, w), int64. Raises ValueError for anything else."""
        try:
            codes = torch.as_tensor(codes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"codes={codes!r:.60} are no tensor of whole numbers (B, h, w): {error}.") from None
        whole = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
        if codes.ndim != 3 or not whole or not len(codes):
            raise ValueError(f"codes are whole numbers (B, h, w), not {codes.dtype} of shape {tuple(codes.shape)}.")
        if tuple(codes.shape[1:]) != (shape := self.code_shape):
            raise ValueError(f"codes have shape {tuple(codes.shape)}; this model needs (B, {shape[0]}, {shape[1]}).")
        if codes.min() < 0 or codes.max() >= self.num_codes:
            low, high = int(codes.min()), int(codes.max())
            raise ValueError(f"codes are from 0 to {self.num_codes - 1}; these go from {low} to {high}.")
        return codes.long()

    @checked
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
