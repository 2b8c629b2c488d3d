"""Sampling from an energy by chains and descents, sums of energies, inpainting, and the energy of images."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor, nn

from hfgen.utils.arguments import checked

from .base import HFGenPipeline, PipelineOutput
from .calls import CallsMixin, SamplingCall
from .class_condition import ClassConditionMixin, rows_of
from .classes import check_classes
from .energy_terms import EnergyTerm, SumAt, Summand, energy_terms, require_energy, total_energy
from .images import default_output, image_batch
from .inputs import Generators, check_count, count_of, noise_of, sample_shape_of
from .outputs import CALLBACK, NETWORK, SCHEDULER, StepRecord, require_numbers

MEASURED = 256
"""Images in one pass, if nothing else is said."""


class EnergyPipeline(ClassConditionMixin, CallsMixin, HFGenPipeline):
    """From noise to images along the gradient of an energy E(x), which is low where data are. Energies add: guidance,
    several classes at once, and what to stay away from are all sums of energies (Du et al. 2020,
    https://arxiv.org/abs/2004.06030).

    Args:
        energy_model: called as energy_model(x, class_labels, with_gradient=True) for `energy` (B,) and `gradient`
            (B, *item): `EnergyModel`.
        scheduler: `GradientDescentScheduler`, `LangevinScheduler`, `HamiltonianScheduler` or, for an energy that was
            trained by `NoiseConditionalScore`, `AnnealedLangevinScheduler`.
        num_classes: number of classes, None for an unconditional model. The null label is the embedding after the last
            class. An energy without that embedding was trained without label dropout.
        label_names: the classes' names, to be used in place of numbers.

    Raises:
        ValueError: classes that do not fit the energy, or a scheduler that follows no energy.
    """

    model_cpu_offload_seq = "energy_model"
    samples_by = "energy"
    _callback_tensor_inputs = ("latents",)

    @checked
    def __init__(
        self,
        energy_model: ModelMixin,
        scheduler: SchedulerMixin,
        num_classes: int | None = None,
        label_names: list[str] | None = None,
    ):
        super().__init__()
        check_classes(num_classes, label_names, energy_model)
        _check_scheduler(scheduler)
        self.register_modules(energy_model=energy_model, scheduler=scheduler)
        self.register_to_config(num_classes=num_classes, label_names=label_names)

    @property
    def _conditioned(self) -> nn.Module:
        return self.energy_model

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample, (C, H, W) for an image."""
        return sample_shape_of(self.energy_model)

    @checked
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        terms: Sequence[EnergyTerm | tuple] | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        return_trajectory: bool = False,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        scheduler: SchedulerMixin | str | None = None,
    ) -> PipelineOutput | tuple:
        """Draw images.

        Args:
            batch_size: number of images; default 1, or as many as there are labels or latents.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            num_inference_steps: steps or moves of the scheduler; None: the scheduler's own default. A descent with a
                `tolerance` may end before.
            guidance_scale: s of s E(x | class) + (1 - s) E(x); 1 is no guidance.
            generator: one, or one for each image; with a list, an image is the same alone and in any batch.
            latents: standard normal noise (B, C, H, W) to begin from, in place of the generator's.
            terms: a sum of energies to sample from in place of this one's: `EnergyTerm`s, or tuples (weight, class,
                pipeline) of which the last parts may be left out. Classes are the terms' then, and `class_labels` are
                left out.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent`, the samples as
                they are: images in [-1, 1]. Default: `pil` for images (C is 1, 3 or 4), `latent` for any other item.
            return_dict: return a `PipelineOutput`, else a tuple of its fields.
            return_trajectory: keep every x.
            callback_on_step_end: called as f(pipeline, step, timestep, {"latents": x}) after each evaluation. It may
                return {"latents": x} to replace x, and set `pipeline._interrupt = True` to stop early.
            callback_on_step_end_tensor_inputs: names of the tensors that the callback receives; only `latents` exists.
            scheduler: of this call alone, by name (`hfgen.registry.ENERGY_SAMPLERS`) or as an object; the call uses a
                copy. None: the pipeline's.

        Raises:
            ValueError: labels, terms, guidance, scheduler or noise that do not fit the model.
        """
        batch_size = count_of(batch_size, latents)
        count, sum_at = self._sum(batch_size, class_labels, guidance_scale, terms)
        noise = noise_of((count, *self.sample_shape), latents, generator, self._execution_device)
        call = {"scheduler": scheduler, "steps": num_inference_steps, "generator": generator}
        call |= {"callback": callback_on_step_end, "inputs": callback_on_step_end_tensor_inputs}
        x, trajectory = self._follow(sum_at, noise, keep=return_trajectory, scale=guidance_scale, **call)
        if output_type is None:
            output_type = default_output(tuple(x.shape[1:]))
        images = self.to_images(x if output_type == "latent" else x.clamp(-1, 1), output_type)
        self.maybe_free_model_hooks()
        return PipelineOutput(images=images, trajectory=trajectory) if return_dict else (images, trajectory)

    @checked
    @torch.no_grad()
    def inpaint(
        self,
        images: Any,
        mask: Tensor,
        class_labels: Any = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        terms: Sequence[EnergyTerm | tuple] | None = None,
        scheduler: SchedulerMixin | str | None = None,
        output_type: str = "pil",
    ) -> Any:
        """Draw the pixels under a mask, given the others: a chain whose other pixels stay. As exp(-E) is proportional
        to their conditional density too, nothing else changes.

        Args:
            images: B images, see `image_batch`.
            mask (H, W) or (B, H, W): True, or above 1/2, for pixels to draw.
            class_labels, num_inference_steps, guidance_scale, generator, terms, scheduler: as those of a call.
            output_type: as that of a call.

        Returns:
            The images, of which pixels outside of the mask are the given ones.

        Raises:
            ValueError: images or a mask that do not fit the model, and as a call.
        """
        x = image_batch(images, self.sample_shape).to(self._execution_device)
        drawn = _mask_for(mask, x)
        count, sum_at = self._sum(len(x), class_labels, guidance_scale, terms)
        noise = noise_of((count, *self.sample_shape), None, generator, self._execution_device)
        call = {"scheduler": scheduler, "steps": num_inference_steps, "generator": generator}
        out, _ = self._follow(sum_at, noise, given=(x, drawn), scale=guidance_scale, **call)
        self.maybe_free_model_hooks()
        return self.to_images(out if output_type == "latent" else out.clamp(-1, 1), output_type)

    @checked
    @torch.no_grad()
    def energy(
        self,
        images: Any,
        class_labels: Any = None,
        terms: Sequence[EnergyTerm | tuple] | None = None,
        batch_size: int = MEASURED,
    ) -> Tensor:
        """Return E(x), or E(x | class), (B,) float64: minus the log of the density of images, but for the same unknown
        constant for all images (of a class). Energies of different pipelines have different constants.

        Args:
            images: floats in any range, or images, see `image_batch`.
            class_labels: a class, or one for each image, by number or name. None: the null label.
            terms: a sum of energies, as that of a call.
            batch_size: images in one pass.

        Raises:
            ValueError: images, labels or terms that do not fit the model, or a model without an energy.
        """
        return self._measured(images, class_labels, terms, batch_size, False)

    @checked
    @torch.no_grad()
    def score(
        self,
        images: Any,
        class_labels: Any = None,
        terms: Sequence[EnergyTerm | tuple] | None = None,
        batch_size: int = MEASURED,
    ) -> Tensor:
        """Return the score -dE/dx, (B, C, H, W) in float32; arguments and errors are those of `energy`."""
        return -self._measured(images, class_labels, terms, batch_size, True)

    @checked
    def anomaly_score(self, images: Any, batch_size: int = MEASURED) -> Tensor:
        """Return the energy of images (B,) without a class: the higher, the less normal. Errors are those of
        `energy`."""
        return self.energy(images, batch_size=batch_size)

    def _measured(self, images: Any, class_labels: Any, terms: Any, batch_size: int, gradient: bool) -> Tensor:
        """Return the energies or the gradients of images, in batches."""
        check_count("batch_size", batch_size)
        x = image_batch(images, self.sample_shape, "x", math.inf)
        summands = self._sum(len(x), class_labels, 1.0, terms)[1](1.0)
        require_energy(summands, "energies", needed=not gradient)
        values = []
        for rows in self.progress_bar(torch.arange(len(x)).split(batch_size)):
            part = [Summand(weight, network, rows_of(kwargs, rows)) for weight, network, kwargs in summands]
            found = total_energy(part, x[rows.to(x.device)].to(self._execution_device), gradient)
            values.append(found[1] if gradient else found[0])
        self.maybe_free_model_hooks()
        what = "gradients" if gradient else "energies"
        return require_numbers(torch.cat(values), what, self.components)

    def _sum(self, batch_size: int | None, class_labels: Any, scale: float, terms: Any) -> tuple[int, SumAt]:
        """Return the batch size, and the sum of energies of a call as a function of the guidance scale."""
        if terms is None:
            count, kwargs = self._kwargs(batch_size, class_labels, scale)

            def guided_sum(scale: float) -> list[Summand]:
                self._check_guidance(scale, class_labels)  # a callback may have changed it
                if scale == 1.0:
                    return [Summand(1.0, self.energy_model, kwargs)]
                null = self.condition.null(kwargs)
                return [Summand(scale, self.energy_model, kwargs), Summand(1 - scale, self.energy_model, null)]

            return count, guided_sum
        count = 1 if batch_size is None else batch_size
        check_count("batch_size", count)
        summands = [self._summand(term, count) for term in energy_terms(terms)]

        def given_sum(scale: float) -> list[Summand]:
            if class_labels is not None or scale != 1.0:
                raise ValueError("terms say the classes and their weights. Leave class_labels and guidance_scale out.")
            return summands

        given_sum(scale)
        return count, given_sum

    def _summand(self, term: EnergyTerm, count: int) -> Summand:
        """Return a term, ready to be evaluated on a batch."""
        other = self if term.pipeline is None else term.pipeline
        if not hasattr(other, "energy_model") or tuple(other.sample_shape) != tuple(self.sample_shape):
            shape = f" of items {tuple(self.sample_shape)}"
            raise ValueError(f"A term has the pipeline {type(other).__name__}; give an EnergyPipeline{shape}.")
        _, kwargs = other._kwargs(count, term.class_label, 1.0)
        kwargs = {name: value.to(self._execution_device) for name, value in kwargs.items()}
        return Summand(float(term.weight), other.energy_model, kwargs)

    @checked
    def named_scheduler(self, name: str, model: Any, **options: Any) -> Any:
        """Return one of hfgen's schedulers for this energy, with the noise and step size of another, `model`."""
        if name == "annealed_langevin" and model.config.get("path") is None:
            raise ValueError(
                "scheduler='annealed_langevin' goes through levels of noise, which an energy knows that was trained by "
                "NoiseConditionalScore (--objective score). This one was not."
            )
        return super().named_scheduler(name, model, **options)

    def _scheduler_of(self, scheduler: Any) -> Any:
        """Return a copy of the scheduler for one call: the pipeline's own for None, another by name or as an object."""
        own = self.scheduler  # read once: another thread may change it meanwhile
        if isinstance(scheduler, str):
            return self.named_scheduler(scheduler, own)
        chosen = own if scheduler is None else scheduler
        _check_scheduler(chosen)
        return copy.deepcopy(chosen)

    def _follow(
        self,
        sum_at: SumAt,
        noise: Tensor,
        scheduler: Any,
        steps: int | None,
        generator: Generators,
        scale: float = 1.0,
        callback: Any = None,
        inputs: Sequence[str] = (),
        keep: bool = False,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Follow a scheduler from noise to samples; return them, and the trajectory or None.

        `given` are images and a mask, True for pixels to draw: the others have no gradient and do not move, so that a
        chain is one of the pixels to draw alone, and moves are accepted by their energy.
        """

        def free(x: Tensor, rest: Tensor | float) -> Tensor:
            return x if given is None else torch.where(given[1], x, rest)

        held = 0.0 if given is None else given[0]
        chosen, summands = self._scheduler_of(scheduler), sum_at(scale)
        require_energy(summands, f"moves of {type(chosen).__name__}", chosen.needs_energy)
        chosen.set_timesteps(steps)
        x, record = free(noise * float(chosen.init_noise_sigma), held), StepRecord(noise)
        trajectory, call = [x], SamplingCall(float(scale), len(chosen.timesteps))
        with self._called(call), self.progress_bar(total=call.num_timesteps) as bar:
            for i, t in enumerate(chosen.timesteps):
                if call.interrupt or getattr(chosen, "finished", False):
                    break
                if call.guidance_scale != scale:
                    scale = call.guidance_scale
                    summands = sum_at(scale)
                energy, gradient = total_energy(summands, x, True)
                record.add(NETWORK, gradient)
                extra = {"energy": energy} if chosen.needs_energy else {}
                step = chosen.step(free(gradient, 0.0), t, x, generator=generator, return_dict=False, **extra)
                x = free(step[0], held)
                record.add(SCHEDULER, x)
                if callback is not None:
                    tensors = dict.fromkeys(inputs, x)
                    x = (callback(self, i, t, tensors) or {}).get("latents", x)
                    record.add(CALLBACK, x)
                trajectory += [x] if keep else []
                bar.update()
        record.require(chosen.timesteps, self.components)
        return x, torch.stack(trajectory) if keep else None


def _check_scheduler(scheduler: Any) -> None:
    """Raise ValueError for a scheduler that follows no energy."""
    if not hasattr(scheduler, "needs_energy"):
        raise ValueError(
            f"{type(scheduler).__name__} follows a path, and an energy has none. Give a GradientDescentScheduler, a "
            "LangevinScheduler, a HamiltonianScheduler, or an AnnealedLangevinScheduler."
        )


def _mask_for(mask: Any, x: Tensor) -> Tensor:
    """Return a mask as bool (B, 1, H, W), True where pixels are drawn. Raises ValueError for another shape."""
    values = torch.as_tensor(mask, device=x.device)
    values = values if values.dtype == torch.bool else values > 0.5
    shapes = (tuple(x.shape[-2:]), (len(x), *x.shape[-2:]))
    if tuple(values.shape) not in shapes:
        raise ValueError(f"mask has shape {tuple(values.shape)}; give (H, W) or (B, H, W), here {shapes[0]}.")
    return values.expand(len(x), *x.shape[-2:])[:, None]
