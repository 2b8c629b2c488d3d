"""Pipelines of sequences (T, D), one under a tensor and one under text: none of it knows images."""

from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from hfgen.pipelines.base import HFGenPipeline
from hfgen.pipelines.inputs import Generators, noise_of, sample_shape_of
from hfgen.pipelines.sampling import SamplingMixin, guided
from torch import Tensor

from hfgen.models.conditions import TensorCondition, TextCondition


class SequenceOutput(BaseOutput):
    """What a pipeline of sequences returns.

    Args:
        samples (B, T, D): the sequences.
        trajectory (steps + 1, B, T, D): on request.
    """

    samples: Tensor
    trajectory: Tensor | None = None


class ObservedSequencePipeline(SamplingMixin, HFGenPipeline):
    """Sequences under an observation."""

    def __init__(self, denoiser: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return (T, D)."""
        return sample_shape_of(self.denoiser)

    @torch.no_grad()
    def __call__(
        self, observation: Tensor, latents: Tensor | None = None, generator: Generators = None, **options: Any
    ) -> SequenceOutput:
        """Draw a sequence for each observation (B, O). Options: `SamplingMixin._sample`'s."""
        condition = TensorCondition("observation")
        kwargs = condition.kwargs({"observation": observation.to(self._execution_device)})
        noise = noise_of((len(observation), *self.sample_shape), latents, generator, self._execution_device)
        samples, trajectory = self._sample(
            lambda x, t, scale: guided(self.denoiser, x, t, condition, kwargs, scale),
            noise,
            generator=generator,
            **options,
        )
        return SequenceOutput(samples=samples, trajectory=trajectory)


class TextSequencePipeline(SamplingMixin, HFGenPipeline):
    """Sequences under a text, through a frozen text encoder."""

    model_cpu_offload_seq = "text_encoder->denoiser"

    def __init__(self, denoiser: ModelMixin, scheduler: SchedulerMixin, text_encoder: Any, tokenizer: Any):
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return (T, D)."""
        return sample_shape_of(self.denoiser)

    @torch.no_grad()
    def __call__(
        self, prompt: list[str], latents: Tensor | None = None, generator: Generators = None, **options: Any
    ) -> SequenceOutput:
        """Draw a sequence for each prompt. Options: `SamplingMixin._sample`'s."""
        condition = TextCondition()
        tokens = self.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
        kwargs = condition.kwargs(tokens.to(self._execution_device), self.components)
        noise = noise_of((len(prompt), *self.sample_shape), latents, generator, self._execution_device)
        samples, trajectory = self._sample(
            lambda x, t, scale: guided(self.denoiser, x, t, condition, kwargs, scale),
            noise,
            generator=generator,
            **options,
        )
        return SequenceOutput(samples=samples, trajectory=trajectory)
