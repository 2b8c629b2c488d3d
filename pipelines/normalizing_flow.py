"""Sampling from a normalizing flow, its exact latents, and exact likelihoods."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from hfgen.distributions.bounds import log_mean_exp
from hfgen.distributions.densities import dequantised, flow_log_prob, level_bits
from hfgen.distributions.likelihoods import HALF_LEVEL
from hfgen.utils.arguments import checked

from .base import HFGenPipeline, PipelineOutput
from .class_condition import ClassConditionMixin, rows_of
from .classes import check_classes
from .images import image_batch
from .inputs import (
    Generators,
    check_count,
    check_latents,
    check_levels,
    check_network,
    check_number,
    check_shape,
    count_of,
    noise_of,
    sample_shape_of,
    uniform_of,
)
from .latents import BATCH, ClassLatentMixin
from .outputs import require_finite, require_numbers, require_sound


class NormalizingFlowPipeline(ClassConditionMixin, ClassLatentMixin, HFGenPipeline):
    """Images x = f^-1(z), z ~ N(0, I), of an invertible network f, whose density is exact:

        log p(x) = log N(f(x); 0, I) + log|det df/dx|

    (Dinh et al. 2015, https://arxiv.org/abs/1410.8516). A latent has the shape of an image.

    A flow with noise of its own, `AugmentedFlowModel`, has a bound in place of the density:
    E log p(x, v) - log q(v | x) <= log p(x). Latents of such a flow have more channels than images.

    A network that was trained on images with Gaussian noise draws images y = x + sigma eps with noise. One step removes
    it: the mean of x given y is y + sigma^2 grad log p(y) (Zhai et al. 2024, https://arxiv.org/abs/2412.06329).

    Args:
        flow: called as flow(x, class_labels) for `latents` and `log_det`, with `inverse`: `CouplingFlowModel`,
            `TransformerFlowModel`, `ResidualFlowModel` or `AugmentedFlowModel`.
        num_classes: number of classes, None for an unconditional model. The null label is the embedding after the last
            class. A network without that embedding was trained without label dropout.
        label_names: the classes' names, to be used in place of numbers.
        noise_level: sigma of the Gaussian noise of training, for pixels in [-1, 1]; 0: there was none.

    Raises:
        ValueError: classes that do not fit the flow, or a noise level that is negative or not finite.
    """

    model_cpu_offload_seq = "flow"
    largest_pixel = math.inf

    @checked
    def __init__(
        self,
        flow: ModelMixin,
        num_classes: int | None = None,
        label_names: list[str] | None = None,
        noise_level: float = 0.0,
    ):
        super().__init__()
        kinds = "a CouplingFlowModel, a TransformerFlowModel, a ResidualFlowModel or an AugmentedFlowModel"
        check_network("flow", flow, ("inverse",), kinds)
        check_classes(num_classes, label_names, flow)
        if not 0 <= noise_level < math.inf:
            raise ValueError(f"{noise_level=} must be at least 0, and finite.")
        self.register_modules(flow=flow)
        self.register_to_config(num_classes=num_classes, label_names=label_names, noise_level=noise_level)

    @property
    def _conditioned(self) -> nn.Module:
        return self.flow

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of an image."""
        return sample_shape_of(self.flow)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Return the shape of a latent, which is that of an image, but for a flow with channels of noise."""
        return tuple(getattr(self.flow, "latent_shape", self.sample_shape))

    @checked
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        num_segments: int | None = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        temperature: float = 1.0,
        denoise: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: number of images; default 1, or as many as there are labels or latents.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            num_inference_steps: iterations of each segment, at most; None: as many as make the inverse exact. They need
                `num_segments`.
            num_segments: parts of an image that are computed one after the other, each by iterations; None: exactly,
                one token after the other. A coupling flow has one pass and no segments.
            guidance_scale: 1 is no guidance, above 1 sharpens towards the class; for transformer flows.
            generator: one, or one for each image; with a list, an image is the same alone and in any batch.
            latents: standard normal z (B, C, H, W) in place of random ones; `encode` gives those of images.
            temperature: standard deviation of z: below 1 images are more typical and less diverse.
            denoise: whether to remove the noise of training from samples. None: if there was any.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent`, the images as the
                flow makes them, about in [-1, 1].
            return_dict: return a `PipelineOutput`, else a tuple of the images.

        Raises:
            ValueError: labels, latents, guidance or iterations that do not fit the model, or a number out of range.
        """
        check_number("temperature", temperature, 0)
        if denoise and not self.config.noise_level:
            raise ValueError("denoise=True is for a flow that was trained with noise, and noise_level=0. Leave it out.")
        _check_iterations(num_inference_steps, num_segments)
        batch_size = count_of(batch_size, latents)
        count, kwargs = self._kwargs(batch_size, class_labels, guidance_scale)
        z = noise_of((count, *self.latent_shape), latents, generator, self._execution_device)
        options = {"num_segments": num_segments, "num_iterations": num_inference_steps}
        options |= {"guidance_scale": guidance_scale, "clean": denoise is not False}
        x = self._inverted(self.flow, z * temperature, kwargs, **options)
        images = self.to_images(x if output_type == "latent" else x.clamp(-1, 1), output_type)
        return PipelineOutput(images=images) if return_dict else (images,)

    @checked
    def encode(self, images: Any, class_labels: Any = None) -> Tensor:
        """Return the latents f(x), (B, *latent_shape), from which `decode` returns the images. Both compute in float64
        where the device has it, since rounding errors of a pixel grow in the pixels that depend on it. Noise of the
        flow itself is at the median of its distribution.

        Args:
            images: floats in any range, or images, see `image_batch`.
            class_labels: a class, or one for each image, by number or name. None: the null label.

        Raises:
            ValueError: images or labels that do not fit the model.
        """
        return self._encode(self._batch(images), class_labels)

    @torch.no_grad()
    def _encode(self, x: Tensor, class_labels: Any = None) -> Tensor:
        require_sound(self.flow, "flow")
        _, kwargs = self._kwargs(len(x), class_labels, 1.0)
        flow, x = self._precise_flow(), x.to(self._execution_device, self._real)
        rows = torch.arange(len(x), device=x.device)
        latents = self._by_batch(rows, lambda part: flow(x[part], **rows_of(kwargs, part)).latents)
        return require_finite(latents, "latents", self.components, x)

    @checked
    @torch.no_grad()
    def decode(self, latents: Tensor, class_labels: Any = None) -> Tensor:
        """Return the images f^-1(z), (B, C, H, W) in float32, exactly: nothing is clipped, and no noise is removed.

        Args:
            latents: z (B, C, H, W).
            class_labels: as those of `encode`.

        Raises:
            ValueError: latents or labels that do not fit the model.
        """
        check_latents(latents, self.latent_shape)
        check_shape(latents, self.latent_shape, "latents")  # at least one
        _, kwargs = self._kwargs(len(latents), class_labels, 1.0)
        return self._inverted(self._precise_flow(), latents.to(self._execution_device, self._real), kwargs).float()

    @checked
    @torch.no_grad()
    def log_likelihood(
        self,
        x: Any,
        class_labels: Any = None,
        batch_size: int = BATCH,
        num_samples: int = 1,
        generator: Generators = None,
    ) -> Tensor:
        """Return log p(x), or log p(x | class), in nats, (B,) float64: a density, for pixels in [-1, 1]. If the network
        was trained with Gaussian noise, it is the density of images with this noise. For a flow with noise of its own
        it is a lower bound in expectation, which rises to log p(x) with the number of samples.

        Args:
            x: real-valued data, floats in any range, or images, see `image_batch`; for the probability of 8-bit images
                see `bits_per_dim`.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            batch_size: images in one pass.
            num_samples: draws of the flow's own noise, whose densities are averaged; 1 for a flow without it.
            generator: of this noise; one, or one for each image.

        Raises:
            ValueError: data or labels that do not fit the model, or samples of noise that the flow does not have.
        """
        check_count("num_samples", num_samples)
        if num_samples > 1 and self._bound_shape is None:
            raise ValueError(f"{num_samples=}: the density of this flow is exact. Leave the samples out.")
        x, kwargs = self._measured("x", x, class_labels)
        draws = [
            self._log_prob(x, kwargs | self._bound_noise(len(x), generator), batch_size) for _ in range(num_samples)
        ]
        return require_numbers(log_mean_exp(torch.stack(draws, 1)), "log-likelihoods", self.components)

    @checked
    @torch.no_grad()
    def bits_per_dim(
        self,
        images: Any,
        class_labels: Any = None,
        num_samples: int = 1,
        generator: Generators = None,
        batch_size: int = BATCH,
    ) -> Tensor:
        """Return an upper bound on the bits per dimension of 8-bit images, -log2 P(x) / d, (B,) float64, by
        dequantisation: the density of K images with noise that fills the bins. The noise is uniform, or that of a flow
        with variational dequantisation. Below 8 is better than guessing.

        Args:
            images: 8-bit images, see `image_batch`; floats are k / 127.5 - 1.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            num_samples: K. The mean of the K densities is taken, so that the bound falls with K; published figures
                have K = 1.
            generator: of the noise; one, or one for each image.
            batch_size: images in one pass.

        Raises:
            ValueError: images that do not fit the model or are not on the 256 levels, or a number out of range.
        """
        check_count("num_samples", num_samples)
        images, kwargs = self._measured("images", images, class_labels, 1.0)
        check_levels(images)
        images = images.to(self._execution_device)
        draws = []
        variational = self.flow.config.get("dequantise", False)
        for _ in range(num_samples):
            noise = self._bound_noise(len(images), generator)
            if variational:
                draws.append(self._log_prob(images, kwargs | noise, batch_size, bin_width=2 * HALF_LEVEL))
                continue
            noisy = dequantised(images, uniform_of(images.shape, generator, images.device).to(images))
            draws.append(self._log_prob(noisy, kwargs | noise, batch_size))
        bits = level_bits(log_mean_exp(torch.stack(draws, 1)), images[0].numel())
        return require_numbers(bits, "bits per dimension", self.components)

    def _measured(
        self, name: str, x: Any, class_labels: Any, limit: float = math.inf
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return data (B, C, H, W), which messages call by the name, and the flow's keyword arguments (B, ...)."""
        x = image_batch(x, self.sample_shape, name, limit)
        return x, self._kwargs(len(x), class_labels, 1.0)[1]

    @property
    def _bound_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the noise of a bound for each image; None if the density is exact."""
        shape = getattr(self.flow, "bound_noise_shape", None)
        return shape if shape is not None and math.prod(shape) else None

    def _bound_noise(self, count: int, generator: Generators) -> dict[str, Tensor]:
        """Return the flow's argument `noise`, if it takes any for a bound."""
        if self._bound_shape is None:
            return {}
        return {"noise": noise_of((count, *self._bound_shape), None, generator, self._execution_device)}

    def _flowed(self, x: Tensor, kwargs: dict[str, Tensor], rows: Tensor, **options: float) -> Any:
        """Return the flow's output for some rows of a batch."""
        return self.flow(x[rows.to(x.device)].to(self._execution_device), **rows_of(kwargs, rows), **options)

    def _log_prob(self, x: Tensor, kwargs: dict[str, Tensor], batch_size: int, **options: float) -> Tensor:
        """Return log p(x), (B,) float64, in batches."""
        check_count("batch_size", batch_size)
        require_sound(self.flow, "flow")  # a fixed point of NaN would be refused without a name
        parts = self.progress_bar(torch.arange(len(x)).split(batch_size))
        values = [flow_log_prob(self._flowed(x, kwargs, rows, **options)).to(self._real) for rows in parts]
        self.maybe_free_model_hooks()
        return torch.cat(values)

    def _precise_flow(self) -> nn.Module:
        """Return a copy of the flow in float64, or in float32 where there is no float64."""
        return nn.Module.to(copy.deepcopy(self.flow), self._execution_device, self._real)

    def _inverted(
        self, flow: nn.Module, z: Tensor, kwargs: dict[str, Tensor], clean: bool = False, **options: Any
    ) -> Tensor:
        """Return the images of latents, in batches.

        Args:
            flow: the flow, or a copy of it.
            z: latents (B, C, H, W).
            kwargs: of the flow, (B, ...).
            clean: whether to remove the noise of the training.
            options: of the flow's inverse.
        """
        require_sound(flow, "flow")

        def images(rows: Tensor) -> Tensor:
            part = rows_of(kwargs, rows)
            x = flow.inverse(z[rows.to(z.device)].to(self._execution_device), **part, **options)
            return denoised(flow, x, self.config.noise_level, part) if clean and self.config.noise_level else x

        x = self._by_batch(torch.arange(len(z)), images)
        return require_finite(x, "images", self.components, z)


def _check_iterations(num_inference_steps: Any, num_segments: Any) -> None:
    """Raise ValueError for iterations without segments, or for what is no count."""
    for name, value in {"num_inference_steps": num_inference_steps, "num_segments": num_segments}.items():
        if value is not None:
            check_count(name, value)
    if num_inference_steps is not None and num_segments is None:
        raise ValueError(
            f"{num_inference_steps=} bounds the iterations of segments, and there are none: the exact inverse is one "
            "pass. Leave it out, or give a transformer flow num_segments, too."
        )


def denoised(flow: nn.Module, y: Tensor, noise_level: float, kwargs: dict[str, Tensor]) -> Tensor:
    """Return the mean of x given y = x + sigma eps, where the flow is the density of y (Tweedie's formula, Efron 2011,
    https://doi.org/10.1198/jasa.2011.tm11181): y + sigma^2 grad log p(y).

    Args:
        flow: its density p(y | kwargs).
        y: (B, C, H, W).
        noise_level: sigma.
        kwargs: of the flow.
    """
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(flow_log_prob(flow(y, **kwargs)).sum(), y)
    return y.detach() + noise_level**2 * slope
