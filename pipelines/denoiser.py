"""What pipelines with a denoiser share: sampling and likelihoods with any network and any scheduler."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor, nn

from hfgen.models.attention import use_image_layers
from hfgen.paths import path_from_config
from hfgen.schedulers.configuration import network_facts
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.ode_likelihood import Velocity, bits_per_dimension, log_likelihood, variational_bound
from hfgen.utils.arguments import checked

from .adapters import AdapterMixin
from .base import PipelineOutput
from .calibration import CalibrationMixin
from .class_condition import ClassConditionMixin
from .classes import check_classes
from .drawing import DrawingMixin
from .guides import Guide, ProjectedGuidance
from .images import image_batch
from .inputs import Generators, check_count, check_levels, noise_of, uniform_of
from .inversion import InversionMixin
from .outputs import require_finite, require_numbers

EXACT_DIMENSIONS = 64
"""Most dimensions for which `trace="auto"` is exact: an evaluation then costs as many backward passes."""

END_PROBES = 4
"""Random vectors of the variances at the end of the ODE, a backward pass each."""


class LikelihoodMixin:
    """Likelihoods for a pipeline with `_kwargs`, `_predict` and `sample_shape`. `hfgen/schedulers/ode_likelihood.py`
    holds the formulas, and says how accurate they are."""

    @checked
    @torch.no_grad()
    def log_likelihood(
        self,
        x: Any,
        class_labels: Any = None,
        num_inference_steps: int = 20,
        num_probes: int = 1,
        trace: Literal["auto", "exact", "hutchinson"] = "auto",
        generator: Generators = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Return a lower bound on log p(x), or on log p(x | class), in nats, (B,) float64, through the probability-flow
        ODE and a normal distribution at its end. It is the log-density itself where the data are normal on the scale of
        the least noise of training.

        Args:
            x: real-valued data (B, *item), floats in any range, or images, see `image_batch`; for the probability of
                8-bit images see `bits_per_dim`.
            class_labels: a class, or one for each sample, by number or name. None: the null label.
            num_inference_steps: Runge-Kutta steps; the network is evaluated 4 steps + 1 or 4 steps + 5 times.
            num_probes: random vectors of Hutchinson's estimate; each costs a backward pass an evaluation.
            trace: `exact` costs a backward pass for each dimension and evaluation; `hutchinson` is unbiased; `auto` is
                exact up to `EXACT_DIMENSIONS`.
            generator: of the noise at the end, and of the probes.
            batch_size: samples in one pass, with a progress bar over batches; changes rounding alone.

        Raises:
            ValueError: data that do not fit the model, labels that do not fit, or a number out of range.
        """
        data = self._measured(x, class_labels, num_inference_steps, batch_size, limit=math.inf)
        return self._ode(*data, False, num_inference_steps, num_probes, trace, generator, batch_size)

    @checked
    @torch.no_grad()
    def bits_per_dim(
        self,
        images: Any,
        class_labels: Any = None,
        num_inference_steps: int = 20,
        num_probes: int = 1,
        trace: Literal["auto", "exact", "hutchinson"] = "auto",
        generator: Generators = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Return an upper bound on the bits per dimension of 8-bit images, -log2 P(x) / d, (B,) float64, through the
        probability-flow ODE and a decoder of levels at its end. Below 8 is better than guessing.

        Args:
            images: 8-bit images, see `image_batch`; floats are k / 127.5 - 1.
            class_labels, num_inference_steps, num_probes, trace, generator, batch_size: see `log_likelihood`.

        Raises:
            ValueError: images that do not fit the model or are not on the 256 levels, and as `log_likelihood`.
        """
        images, kwargs = self._measured(images, class_labels, num_inference_steps, batch_size)
        check_levels(images)
        nats = self._ode(images, kwargs, True, num_inference_steps, num_probes, trace, generator, batch_size)
        return bits_per_dimension(nats, images[0].numel())

    @checked
    @torch.no_grad()
    def variational_bound(
        self,
        images: Any,
        class_labels: Any = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """Return an upper bound on the bits per dimension of 8-bit images under `DDPMScheduler`'s chain, (B,) float64:
        L_T + sum L_{t-1} + L_0 (Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 5), with the variances of the
        pipeline's scheduler: fixed, learned, or measured by `hfgen calibrate`.

        Args:
            images: 8-bit images, see `image_batch`; floats are k / 127.5 - 1.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            num_inference_steps: length of the chain, an evaluation each; None: all of the training steps.
            generator: of the noise.

        Raises:
            ValueError: as `bits_per_dim`.
        """
        images, kwargs = self._measured(images, class_labels, num_inference_steps)
        check_levels(images)
        x_0 = images.to(self._execution_device, self._real)
        scheduler = DDPMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(num_inference_steps)
        rows = torch.arange(len(x_0), device=x_0.device)
        nats = variational_bound(
            self._network(kwargs, rows, scheduler),
            scheduler,
            scheduler.grid(scheduler.num_inference_steps),
            x_0,
            lambda: noise_of(x_0.shape, None, generator, x_0.device).to(x_0.dtype),
            self.progress_bar,
        )
        self.maybe_free_model_hooks()
        return require_numbers(nats, "bounds", self.components) / (x_0[0].numel() * math.log(2))

    def _ode(
        self,
        x: Tensor,
        kwargs: dict[str, Tensor],
        eight_bit: bool,
        steps: int,
        num_probes: int,
        trace: str,
        generator: Generators,
        batch_size: int,
    ) -> Tensor:
        """Return `hfgen.schedulers.ode_likelihood.log_likelihood` of x in batches, (B,) in nats."""
        check_count("num_probes", num_probes)
        if trace not in ("auto", "exact", "hutchinson"):
            raise ValueError(f"{trace=} must be auto, exact or hutchinson.")
        x = x.to(self._execution_device, self._real)
        noise = noise_of(x.shape, None, generator, x.device).to(x)
        exact = trace == "exact" or (trace == "auto" and x[0].numel() <= EXACT_DIMENSIONS)
        signs = [
            torch.where(uniform_of(x.shape, generator, x.device) < 0.5, -1.0, 1.0).to(x)
            for _ in range(0 if exact else num_probes + END_PROBES)
        ]
        facts, values = network_facts(self.scheduler.config), []
        path, kind = path_from_config(facts), facts["prediction_type"]
        for rows in self.progress_bar(torch.arange(len(x), device=x.device).split(batch_size)):
            velocity, vectors = Velocity(self._network(kwargs, rows), path, kind), [sign[rows] for sign in signs]
            probes = vectors[:num_probes], vectors[num_probes:]
            values.append(log_likelihood(velocity, x[rows], eight_bit, steps, noise[rows], *probes))
        self.maybe_free_model_hooks()
        return require_finite(torch.cat(values), "log-likelihoods", self.components)

    def _measured(
        self, x: Any, class_labels: Any, steps: int | None, batch_size: int = 1, limit: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Check data and numbers; return the data (B, *item), and the network's keyword arguments (B, ...)."""
        x = image_batch(x, self.sample_shape, "x" if math.isinf(limit) else "images", limit)
        check_count("batch_size", batch_size)
        if steps is not None:
            check_count("num_inference_steps", steps)
        return x, self._kwargs(len(x), class_labels, 1.0)[1]

    def _network(
        self, kwargs: dict[str, Tensor], rows: Tensor, scheduler: Any = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the network on some rows of the batch: without the channels of a learned variance, or with those that
        the scheduler needs."""
        part, channels = {name: value[rows] for name, value in kwargs.items()}, self.item_shape[0]
        if scheduler is None:
            return lambda x, t: self._predict(x, t, part, 1.0)[:, :channels]
        return lambda x, t: self._with_head(self._predict(x, t, part, 1.0), x, t, scheduler)

    def _with_head(self, output: Tensor, x: Tensor, t: Tensor, scheduler: Any) -> Tensor:
        """Return the output of a network, for samples x at time step t, with the channels that a step needs."""
        return output


class DenoiserMixin(AdapterMixin, ClassConditionMixin, DrawingMixin, LikelihoodMixin, CalibrationMixin, InversionMixin):
    """For a pipeline that follows a `scheduler` with a `denoiser`, perhaps for classes, see `DrawingMixin`. Low-rank
    adapters change the network, see `AdapterMixin`."""

    model_cpu_offload_seq = "denoiser->variance_head"
    _optional_components = ["variance_head"]  # noqa: RUF012 - as diffusers has it
    _loaded_components = ("variance_head",)
    _lora_loadable_modules = ("denoiser",)

    def _register(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        num_classes: int | None,
        label_names: list[str] | None,
        variance_head: ModelMixin | None,
    ) -> None:
        """Register the components and options that all such pipelines have."""
        check_classes(num_classes, label_names, denoiser)
        self.register_modules(denoiser=use_image_layers(denoiser), scheduler=scheduler, variance_head=variance_head)
        self.register_to_config(num_classes=num_classes, label_names=label_names)

    @checked
    def with_denoiser(self, denoiser: ModelMixin, scheduler: SchedulerMixin) -> "DenoiserMixin":
        """Return a pipeline like this one with another denoiser and scheduler, and without a variance head."""
        parts = {**self.components, "denoiser": denoiser, "scheduler": scheduler, "variance_head": None}
        names = inspect.signature(type(self).__init__).parameters
        options = {name: self.config[name] for name in names if name in self.config and name not in parts}
        return type(self)(**parts, **options)

    @property
    def _conditioned(self) -> nn.Module:
        return self.denoiser

    @checked
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        return_trajectory: bool = False,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        scheduler: SchedulerMixin | str | None = None,
        guidance: Guide | Sequence[Guide] | None = None,
        guidance_method: str | ProjectedGuidance = "cfg",
        guidance_rescale: float = 0.0,
    ) -> PipelineOutput | tuple:
        """Draw images.

        Args:
            batch_size: number of images; default 1, or as many as there are labels.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            num_inference_steps: steps of the scheduler; None: the scheduler's own default.
            guidance_scale: 1 is no guidance, above 1 sharpens towards the class; see `guided`.
            guidance_interval: guide only while low <= t <= high, t in [0, 1] from data to noise, the time on the path
                (Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724).
            generator: one, or one for each image; with a list, an image is the same alone and in any batch.
            latents: standard normal noise (B, C, H, W) to start from, in place of the generator's.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent`, the samples as
                they are: images in [-1, 1]. Default: `pil` for images (C is 1, 3 or 4), `latent` for any other item.
            return_dict: return a `PipelineOutput`, else a tuple of its fields.
            return_trajectory: keep every x_t.
            callback_on_step_end: called as f(pipeline, step, timestep, {"latents": x_t}) after each step. It may return
                {"latents": x} to replace x_t, set `pipeline.guidance_scale` (or `_guidance_scale`) for later steps, and
                set `pipeline._interrupt = True` to stop early.
            callback_on_step_end_tensor_inputs: names of the tensors that the callback receives; only `latents` exists.
            timesteps: the network's time steps themselves, falling, in place of `num_inference_steps`; or
            sigmas: noise levels, falling, in the scheduler's unit: of hfgen's schedulers times of the straight path.
            scheduler: of this call alone, by name as in `use_scheduler` or as an object made with
                `from_config(pipeline.scheduler.config)`; the call uses a copy. None: the pipeline's.
            guidance: guides with scale and interval each, several at once: `EnergyGuidance`, `ClassifierGuidance`,
                `Autoguidance`, see `hfgen.pipelines.guides`.
            guidance_method: form of the guidance by classes: `cfg`, or `apg` without what saturates pixels, see
                `ProjectedGuidance`.
            guidance_rescale: share of the guided output, from 0 to 1, that is scaled to the standard deviation of the
                class's own output; 0.7 is usual.

        Raises:
            ValueError: labels, guidance, scheduler, time steps or noise that do not fit the model.
        """
        count, kwargs = self._kwargs(batch_size, class_labels, guidance_scale)
        return self._draw(
            count,
            kwargs,
            lambda scale: self._check_guidance(scale, class_labels),
            num_inference_steps,
            *(callback_on_step_end, callback_on_step_end_tensor_inputs),
            output_type=output_type,
            return_dict=return_dict,
            scheduler=scheduler,
            guidance=(guidance, guidance_method, guidance_rescale),
            latents=latents,
            generator=generator,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            return_trajectory=return_trajectory,
            timesteps=timesteps,
            sigmas=sigmas,
        )

    def _with_head(self, output: Tensor, x: Tensor, t: Tensor, scheduler: Any) -> Tensor:
        """Return the output (B, C, ...) for scaled samples x at time step t, with the head's channels if a step of the
        scheduler needs them.

        Raises:
            ValueError: it does, and there is no head.
        """
        if not getattr(scheduler, "needs_head", False):
            return output
        if self.variance_head is None:
            kind = scheduler.config.variance_type
            raise ValueError(
                f"variance_type={kind!r} needs a variance_head, and the pipeline has none. Train one: hfgen calibrate "
                f"FOLDER --kind {kind}"
            )
        output = output[:, : self.item_shape[0]]
        dtype = self.variance_head.dtype
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        raw = self.variance_head(x.to(dtype), output.to(dtype), times).sample
        return torch.cat([output, raw.to(output.dtype)], 1)
