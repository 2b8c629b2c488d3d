"""Sampling with any denoiser and any scheduler: diffusion, score models and rectified flow."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from hfgen.models.attention import use_image_attention

from .base import HFGenPipeline, PipelineOutput
from .inputs import classes_of, clone_of, image_shape_of, noise_of
from .likelihood import LikelihoodMixin


class DenoisingPipeline(LikelihoodMixin, HFGenPipeline):
    """From noise to images along a path, with classifier-free guidance (Ho & Salimans 2022,
    https://arxiv.org/abs/2207.12598) for class-conditional models:

        output = s f(x_t, t, c) + (1 - s) f(x_t, t, null),    both from one batched forward pass.

    Args:
        denoiser: a network called as diffusers' `UNet2DModel`: `UNet2DModel` itself, `DiTModel`, `PatchUNet2DModel`.
        scheduler: any of hfgen's or diffusers'; see `use_scheduler`.
        num_classes: number of classes, None for an unconditional model. The denoiser's embedding after the last class,
            where it has one, is the null label.
        label_names: the classes' names, to be used in place of numbers.
    """

    model_cpu_offload_seq = "denoiser"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        num_classes: int | None = None,
        label_names: list[str] | None = None,
    ):
        super().__init__()
        self.register_modules(denoiser=use_image_attention(denoiser), scheduler=scheduler)
        self.register_to_config(num_classes=num_classes, label_names=label_names)

    @property
    def num_timesteps(self) -> int:
        """Network evaluations of the last call, before guidance doubles the batch."""
        return self._num_timesteps

    @property
    def null_label(self) -> int | None:
        """The label that stands for 'any class', or None where the model was trained without one."""
        embeddings, classes = getattr(self.denoiser.config, "num_class_embeds", None), self.config.num_classes
        return classes if embeddings and classes is not None and embeddings > classes else None

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        return_trajectory: bool = False,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> PipelineOutput | tuple:
        """Draw images.

        Args:
            batch_size: how many; default 1, or as many as there are labels.
            class_labels: a class or one an image, by number or name. None: the null label.
            num_inference_steps: steps of the scheduler; None: the scheduler's own default.
            guidance_scale: s above; 1 is no guidance, above 1 sharpens towards the class.
            guidance_interval: guide only while low <= t <= high, t in [0, 1] from data to noise (Kynkaanniemi et al.
                2024, https://arxiv.org/abs/2404.07724).
            generator: one, or one an image; with a list, an image is the same alone and in any batch.
            latents: standard normal noise (B, C, H, W) to start from, in place of the generator's.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` in [-1, 1].
            return_dict: `PipelineOutput`, or a tuple of its fields.
            return_trajectory: keep every x_t.
            callback_on_step_end: called as f(pipeline, step, timestep, {"latents": x_t}) after each step; may return
                {"latents": x} to replace x_t, and set `pipeline._interrupt = True` to stop early.
            callback_on_step_end_tensor_inputs: which tensors the callback gets; only `latents` exists.

        Raises:
            ValueError: labels, guidance, scheduler or noise that do not fit the model.
        """
        count, labels = self._labels(batch_size, class_labels, guidance_scale)
        scheduler = clone_of(self.scheduler)
        if num_inference_steps is None:
            num_inference_steps = getattr(scheduler, "default_num_inference_steps", 50)
        scheduler.set_timesteps(num_inference_steps)
        x = noise_of((count, *self.image_shape), latents, generator, self._execution_device)
        x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if takes_generator else {}
        trajectory, self._num_timesteps, self._interrupt = [x], len(scheduler.timesteps), False
        with self.progress_bar(total=self._num_timesteps) as bar:
            for i, t in enumerate(scheduler.timesteps):
                if self._interrupt:
                    break
                seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                low, high = (end * scheduler.config.num_train_timesteps for end in guidance_interval)
                scale = guidance_scale if low <= t <= high else 1.0
                x = scheduler.step(self._predict(seen, t, labels, scale), t, x, **extra, return_dict=False)[0]
                if callback_on_step_end is not None:
                    given = dict.fromkeys(callback_on_step_end_tensor_inputs, x)
                    x = (callback_on_step_end(self, i, t, given) or {}).get("latents", x)
                if return_trajectory:
                    trajectory.append(x)
                bar.update()
        images = self.to_images(x if output_type == "latent" else x.clamp(-1, 1), output_type)
        self.maybe_free_model_hooks()
        kept = torch.stack(trajectory) if return_trajectory else None
        return PipelineOutput(images=images, trajectory=kept) if return_dict else (images, kept)

    def _predict(self, x: Tensor, t: Tensor, labels: Tensor | None, scale: float) -> Tensor:
        """The network's (guided) output on (B, C, H, W) at time step t, in float32."""
        dtype, guided = self.denoiser.dtype, labels is not None and scale != 1.0
        if guided:
            x, labels = torch.cat([x, x]), torch.cat([labels, torch.full_like(labels, self.null_label)])
        timestep = torch.as_tensor(t, device=x.device).expand(len(x))
        output = self.denoiser(x.to(dtype), timestep, class_labels=labels).sample.to(x.dtype)
        if not guided:
            return output
        conditional, unconditional = output.chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    def _labels(self, batch_size: int | None, class_labels: Any, scale: float) -> tuple[int, Tensor | None]:
        count, labels = classes_of(class_labels, batch_size, self.config.num_classes, self.config.label_names)
        if scale != 1.0 and (labels is None or self.null_label is None):
            why = "class_labels are needed" if labels is None else "the model was trained without label dropout"
            raise ValueError(f"guidance_scale={scale} can't be used: {why}. Use guidance_scale=1.")
        if labels is None and self.config.num_classes is not None:
            if self.null_label is None:
                raise ValueError(f"This model needs class_labels, from 0 to {self.config.num_classes - 1}.")
            labels = torch.full((count,), self.null_label)
        return count, None if labels is None else labels.to(self._execution_device)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return image_shape_of(self.denoiser.config)
