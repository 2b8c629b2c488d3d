"""The second time of a flow map: one network for all intervals from t to r."""

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

INTERVAL_CHANNELS = 256
"""Channels of the sines and cosines of an interval's length."""

INTERVAL_SCALE = 0.02
"""Radians of the fastest of them by time step: 20 over the whole path. The mean velocity of an interval is a smooth
function of its length, and its derivative in time is part of losses, so faster ones would only add noise."""


class IntervalEmbedding(nn.Module):
    """Embed the length t - r of intervals, (B,) -> (B, channels). A new embedding is 0, whatever the length.

    A network that adds it to its embedding of t is the mean velocity u(x_t, t, r) of a flow map from t to r,

        x_r = x_t - (t - r) u(x_t, t, r),

    and at r = t the velocity of a rectified flow (Geng et al. 2025, https://arxiv.org/abs/2505.13447). Since it is 0 at
    first, a trained rectified flow becomes a flow map without changing.

    Args:
        channels: of the network's embedding of t.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.length_proj = Timesteps(INTERVAL_CHANNELS, True, 0, INTERVAL_SCALE)
        self.embedding = TimestepEmbedding(INTERVAL_CHANNELS, channels)
        self.reset()

    def reset(self) -> None:
        """Set the last layer to 0."""
        nn.init.zeros_(self.embedding.linear_2.weight)
        nn.init.zeros_(self.embedding.linear_2.bias)

    def forward(self, timestep: Tensor, r_timestep: Tensor | float | int | None) -> Tensor:
        """Embed the intervals from `timestep` (B,) to `r_timestep`, () or (B,); None: to `timestep` itself."""
        if r_timestep is None:
            length = torch.zeros_like(timestep)
        else:
            length = timestep - torch.as_tensor(r_timestep, device=timestep.device).expand(len(timestep))
        weight = self.embedding.linear_1.weight
        return self.embedding(self.length_proj(length).to(weight.dtype))


def check_two_times(r_timestep: Tensor | float | int | None, two_times: bool) -> None:
    """Raise ValueError for a second time that a network does not take."""
    if r_timestep is not None and not two_times:
        raise ValueError(
            "r_timestep was passed to a network with one time (two_times=False), which knows no intervals. Leave it "
            "out, or make a flow map of the network: hfgen train flow_map --pipeline FOLDER."
        )
