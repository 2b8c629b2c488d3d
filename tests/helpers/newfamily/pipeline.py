"""The pipeline: from noise to sequences, under a prompt. It is saved with the model, and works without hfgen."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from hfgen.pipelines.base import HFGenPipeline
from hfgen.pipelines.inputs import Generators, noise_of, sample_shape_of
from hfgen.pipelines.sampling import SamplingMixin, guided
from torch import Tensor

from .condition import PromptCondition


class TonePipelineOutput(BaseOutput):
    """The output of `TonePipeline`.

    Args:
        sequences (B, T, D): the samples.
    """

    sequences: Tensor


class TonePipeline(SamplingMixin, HFGenPipeline):
    """Draw sequences of tones under a prompt that names their frequencies.

    Args:
        denoiser: a `ToneModel`.
        scheduler: any of hfgen's or diffusers'.
    """

    model_cpu_offload_seq = "denoiser"

    def __init__(self, denoiser: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return (T, D)."""
        return sample_shape_of(self.denoiser)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Sequence,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        return_dict: bool = True,
        **callbacks: Any,
    ) -> TonePipelineOutput | tuple:
        """Draw sequences.

        Args:
            prompt: a list of D tokens, or a list of prompts, one for each sequence.
            batch_size: number of sequences; default: the number of prompts.
            num_inference_steps: steps of the scheduler; default: its own.
            guidance_scale: 1 is no guidance, above 1 sharpens towards the prompt.
            generator: one, or one for each sequence.
            latents: standard normal noise (B, T, D) to start from.
            return_dict: return a `TonePipelineOutput`, else a tuple of its fields.
            callbacks: `callback_on_step_end` and `callback_on_step_end_tensor_inputs`, as in diffusers.

        Raises:
            ValueError: a prompt or noise that does not fit the model.
        """
        condition = PromptCondition(self.denoiser.config.num_tokens)
        tokens = condition.parse(prompt, batch_size, self.sample_shape[1]).to(self._execution_device)
        kwargs = condition.kwargs({"prompt": tokens})
        sequences, _ = self._sample(
            lambda x, t, scale: guided(self.denoiser, x, t, condition, kwargs, scale),
            noise_of((len(tokens), *self.sample_shape), latents, generator, self._execution_device),
            num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            **callbacks,
        )
        self.maybe_free_model_hooks()
        return TonePipelineOutput(sequences=sequences) if return_dict else (sequences,)
