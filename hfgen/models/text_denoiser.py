"""A denoiser and the text encoder that is trained with it, as one module."""

from typing import Any

from torch import Tensor, nn

from ..utils.arguments import checked
from .text_tokens import states_of


class TextDenoiser(nn.Module):
    """A denoiser that is told of token ids, which its text encoder reads.

    Under DistributedDataParallel only the forward pass of the whole module synchronises gradients.

    Args:
        text_encoder: a text model of `transformers`.
        denoiser: a network with `text_channels`, see `build_denoiser`.
    """

    @checked
    def __init__(self, text_encoder: nn.Module, denoiser: nn.Module):
        super().__init__()
        self.text_encoder, self.denoiser = text_encoder, denoiser

    def forward(self, sample: Tensor, timestep: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Return the denoiser's output for samples (B, *item) at time steps (B,) under texts (B, L)."""
        text = states_of(self.text_encoder, {"input_ids": input_ids, "attention_mask": attention_mask})
        return self.denoiser(sample, timestep, **text)
