"""Sampling from an autoregressive model, completing images, and exact likelihoods."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from hfgen.distributions.densities import dequantised, level_bits, symbol_bits
from hfgen.distributions.likelihoods import Bernoulli
from hfgen.utils.arguments import checked

from .base import HFGenPipeline, PipelineOutput
from .class_condition import ClassConditionMixin, rows_of
from .classes import check_classes
from .images import image_batch
from .inputs import Generators, check_count, check_levels, check_network, sample_shape_of, uniform_of
from .latents import BATCH
from .outputs import require_finite, require_numbers, require_sound


class ARPipeline(ClassConditionMixin, HFGenPipeline):
    """Images of an autoregressive model, which predicts each number from those before it:

        log p(x) = sum_n log p(x_n | x_0, ..., x_(n-1))

    The probability of an image is exact. Its levels are those of the model: black and white, the 256 levels, or real
    numbers. A `ContinuousTransformerModel` draws tokens of real numbers by a flow, and states no probabilities.

    Args:
        model: called as model(x, class_labels) for `log_prob`, with `draw`: `AutoregressiveTransformerModel` or
            `MaskedAutoregressiveModel`; or a `ContinuousTransformerModel`.
        num_classes: number of classes, None for an unconditional model. The null label is the embedding after the last
            class. A network without that embedding was trained without label dropout.
        label_names: the classes' names, to be used in place of numbers.

    Raises:
        ValueError: classes that do not fit the model.
    """

    model_cpu_offload_seq = "model"

    @checked
    def __init__(self, model: ModelMixin, num_classes: int | None = None, label_names: list[str] | None = None):
        super().__init__()
        kinds = "an AutoregressiveTransformerModel, a MaskedAutoregressiveModel or a ContinuousTransformerModel"
        check_network("model", model, ("draw", "noise_shape"), kinds)
        check_classes(num_classes, label_names, model)
        self.register_modules(model=model)
        self.register_to_config(num_classes=num_classes, label_names=label_names)

    @property
    def _conditioned(self) -> nn.Module:
        return self.model

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of an image."""
        return sample_shape_of(self.model)

    @property
    def levels(self) -> int | None:
        """Return the number of values of a pixel; None: real numbers."""
        return self.model.config.get("levels")

    @checked
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        temperature: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
        num_inference_steps: int | None = None,
    ) -> PipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: number of images; default 1, or as many as there are labels.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            guidance_scale: 1 is no guidance, above 1 sharpens towards the class.
            generator: one, or one for each image; with a list, an image is the same alone and in any batch.
            temperature: below 1 images are more typical and less diverse; 0: each number is the most likely one.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent`, as the model
                draws them.
            return_dict: return a `PipelineOutput`, else a tuple of the images.
            num_inference_steps: Euler steps of each token, of a `ContinuousTransformerModel`; None: 20.

        Raises:
            ValueError: labels or guidance that do not fit the model, or a number out of range.
        """
        count, kwargs = self._kwargs(batch_size, class_labels, guidance_scale)
        options = self._options(guidance_scale, temperature, num_inference_steps)
        x = self._drawn(count, kwargs, options, generator)
        images = self.to_images(x if output_type == "latent" else x.clamp(-1, 1), output_type)
        return PipelineOutput(images=images) if return_dict else (images,)

    @checked
    @torch.no_grad()
    def complete(
        self,
        images: Any,
        rows: int | None = None,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        temperature: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
        """Keep the first rows of images, and draw the rows below from the distribution given these. A model of several
        orders completes in its first one; one of random orders takes the known tokens first.

        Args:
            images: see `image_batch`; pixels are rounded to the levels of the model. To draw several completions, give
                an image several times.
            rows: number of rows that are kept, a multiple of the side of a patch; None: the upper half.
            class_labels, guidance_scale, generator, temperature, output_type, return_dict: as those of a call.

        Raises:
            ValueError: images, rows, labels or guidance that do not fit the model, or a number out of range.
        """
        x = image_batch(images, self.sample_shape)
        height = self.sample_shape[1]
        rows = height // 2 if rows is None else rows
        check_count("rows", rows, 0)
        if rows > height:
            raise ValueError(f"{rows=} of images of {height} rows. Give at most {height}.")
        num_known = self.model.tokens_above(rows)
        count, kwargs = self._kwargs(len(x), class_labels, guidance_scale)
        known = x.to(self._execution_device)
        options = self._options(guidance_scale, temperature, None)
        completed = self._drawn(count, kwargs, options, generator, known, num_known)
        images = self.to_images(completed if output_type == "latent" else completed.clamp(-1, 1), output_type)
        return PipelineOutput(images=images) if return_dict else (images,)

    @checked
    @torch.no_grad()
    def log_likelihood(
        self, images: Any, class_labels: Any = None, generator: Generators = None, batch_size: int = BATCH
    ) -> Tensor:
        """Return log p(x), or log p(x | class), in nats, (B,) float64.

        Args:
            images: see `image_batch`. A model of black and white pixels makes grey ones white with probability
                (x + 1) / 2. A model of the 256 levels needs 8-bit images. A model of real numbers takes any images, and
                p is a density.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            generator: of black and white pixels; one, or one for each image.
            batch_size: images in one pass.

        Raises:
            ValueError: images or labels that do not fit the model.
        """
        x = image_batch(images, self.sample_shape, limit=1.0 if self.levels else math.inf)
        if self.levels == 2:
            x = Bernoulli().prepare(x, lambda x: uniform_of(x.shape, generator, x.device))
        if self.levels == 256:
            check_levels(x)
        return self._log_prob(x, class_labels, batch_size)

    @checked
    @torch.no_grad()
    def bits_per_dim(
        self, images: Any, class_labels: Any = None, generator: Generators = None, batch_size: int = BATCH
    ) -> Tensor:
        """Return the bits per dimension of 8-bit images, -log2 P(x) / d, (B,) float64: exactly for a model of the 256
        levels, and an upper bound by uniform dequantisation for one of real numbers. Below 8 is better than guessing.

        Args:
            images: 8-bit images, see `image_batch`; floats are k / 127.5 - 1.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            generator: of the dequantisation; one, or one for each image.
            batch_size: images in one pass.

        Raises:
            ValueError: the model has other levels, or images or labels that do not fit it.
        """
        if self.levels not in (None, 256):
            raise ValueError(
                f"This model has {self.levels} values of a pixel, not the 256 levels that bits per dimension are of. "
                "Train with --pixels levels, or use log_likelihood."
            )
        x = image_batch(images, self.sample_shape)
        check_levels(x)
        if self.levels:
            return symbol_bits(self._log_prob(x, class_labels, batch_size), x[0].numel())
        noisy = dequantised(x, uniform_of(x.shape, generator, x.device).to(x))
        return level_bits(self._log_prob(noisy, class_labels, batch_size), x[0].numel())

    def _log_prob(self, x: Tensor, class_labels: Any, batch_size: int) -> Tensor:
        """Return log p(x), (B,) float64, of images (B, C, H, W), in batches."""
        if not hasattr(self.model, "conditional"):
            raise ValueError(f"{type(self.model).__name__} states no probabilities: its tokens are drawn by a flow.")
        check_count("batch_size", batch_size)
        _, kwargs = self._kwargs(len(x), class_labels, 1.0)
        values = []
        for rows in self.progress_bar(torch.arange(len(x)).split(batch_size)):
            part = x[rows.to(x.device)].to(self._execution_device)
            values.append(self.model(part, **rows_of(kwargs, rows)).log_prob.to(self._real))
        self.maybe_free_model_hooks()
        return require_numbers(torch.cat(values), "log-likelihoods", self.components)

    def _options(self, scale: float, temperature: float, num_inference_steps: int | None) -> dict[str, Any]:
        """Return the arguments of the model's `draw`. Raises ValueError for a number out of range."""
        if isinstance(temperature, bool) or not 0 <= temperature < math.inf:
            raise ValueError(f"{temperature=} must be at least 0, and finite.")
        options = {"guidance_scale": scale, "temperature": temperature}
        if num_inference_steps is None:
            return options
        check_count("num_inference_steps", num_inference_steps)
        if "num_steps" not in inspect.signature(self.model.draw).parameters:
            raise ValueError(
                f"{num_inference_steps=}: each number of this model is one draw, only continuous tokens have steps. "
                "Leave it out."
            )
        return {**options, "num_steps": num_inference_steps}

    def _drawn(
        self,
        count: int,
        kwargs: dict[str, Tensor],
        options: dict[str, Any],
        generator: Generators,
        known: Tensor | None = None,
        num_known: int = 0,
    ) -> Tensor:
        """Return images (B, C, H, W), in batches, of which `num_known` tokens are those of `known`."""
        require_sound(self.model, "model")
        device, parts = self._execution_device, []
        uniform = uniform_of((count, *self.model.noise_shape), generator, device)
        for rows in self.progress_bar(torch.arange(count, device=device).split(BATCH)):
            first = None if known is None else known[rows]
            drawn = self.model.draw(uniform[rows], **rows_of(kwargs, rows), **options, known=first, num_known=num_known)
            drawn = getattr(drawn, "symbols", drawn)
            parts.append(drawn if self.levels is None else 2 * drawn.float() / (self.levels - 1) - 1)
        self.maybe_free_model_hooks()
        return require_finite(torch.cat(parts), "images", self.components)
