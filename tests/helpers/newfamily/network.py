"""The network: a multilayer perceptron on whole sequences."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn


class ToneModelOutput(BaseOutput):
    """The output of `ToneModel`.

    Args:
        sample (B, T, D): the prediction.
    """

    sample: Tensor


class ToneModel(ModelMixin, ConfigMixin):
    """A denoiser of sequences (T, D) that knows a prompt of D tokens.

    Args:
        length: T.
        num_channels: D.
        num_tokens: number of tokens; the embedding has one row more, for the null token.
        hidden_size: width.
    """

    @register_to_config
    def __init__(self, length: int = 16, num_channels: int = 2, num_tokens: int = 4, hidden_size: int = 128):
        super().__init__()
        self.embedding = nn.Embedding(num_tokens + 1, hidden_size)
        self.time = nn.Sequential(nn.Linear(1, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.prompt = nn.Linear(num_channels * hidden_size, hidden_size)
        self.input = nn.Linear(length * num_channels, hidden_size)
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(3))
        self.output = nn.Linear(hidden_size, length * num_channels)

    @property
    def sample_shape(self) -> tuple[int, int]:
        """Return (T, D)."""
        return (self.config.length, self.config.num_channels)

    def forward(self, sample: Tensor, timestep: Tensor, prompt: Tensor) -> ToneModelOutput:
        """Return the prediction (B, T, D) for noisy sequences (B, T, D), time steps (B,) and prompts int64 (B, D)."""
        time = self.time(timestep.to(sample.dtype).unsqueeze(1) / 1000)  # (B, hidden)
        condition = time + self.prompt(self.embedding(prompt).flatten(1))  # (B, hidden)
        x = self.input(sample.flatten(1))  # (B, hidden)
        for layer in self.layers:
            x = x + layer(torch.nn.functional.silu(x + condition))
        return ToneModelOutput(sample=self.output(x).view_as(sample))
