"""A denoiser of sequences (T, D), which knows nothing of images."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn


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
