"""A family of sequences (T, D): a network, a pipeline under a tensor, and one under text. None of it knows images."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from hfgen.pipelines.base import HFGenPipeline
from hfgen.pipelines.inputs import Generators, noise_of, sample_shape_of
from hfgen.pipelines.sampling import SamplingMixin, guided
from torch import Tensor, nn

from hfgen.models.conditions import TensorCondition, TextCondition


class SequenceModelOutput(BaseOutput):
    """What a SequenceModel returns: sample (B, T, D)."""

    sample: Tensor


class SequenceModel(ModelMixin, ConfigMixin):
    """A denoiser of sequences (B, T, D), given an observation (B, O) or hidden states of text (B, L, H)."""

    @register_to_config
    def __init__(self, length: int = 5, channels: int = 3, observation_size: int = 2, text_size: int = 8):
        super().__init__()
        self.mix = nn.Linear(channels + 1, channels)
        self.observe = nn.Linear(observation_size, channels)
        self.read = nn.Linear(text_size, channels)
        self.calls = []

    @property
    def sample_shape(self) -> tuple[int, int]:
        """Return (T, D)."""
        return (self.config.length, self.config.channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        observation: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> SequenceModelOutput:
        """Return the output (B, T, D)."""
        self.calls.append(len(sample))
        time = (timestep / 1000).to(sample.dtype).view(-1, 1, 1).expand(*sample.shape[:2], 1)
        x = self.mix(torch.cat([sample, time], -1))
        if observation is not None:
            x = x + self.observe(observation).unsqueeze(1)
        if encoder_hidden_states is not None:
            mask = encoder_attention_mask.to(x.dtype).unsqueeze(-1)
            x = x + self.read((encoder_hidden_states * mask).sum(1) / mask.sum(1)).unsqueeze(1)
        return SequenceModelOutput(sample=torch.tanh(x))


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
