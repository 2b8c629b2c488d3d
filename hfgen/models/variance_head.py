"""A small network beside a denoiser that states how far its prediction is from the truth, at each dimension."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .conv_layers import pad_to_multiple
from .layers import expand_timestep, pair


class HeadBlock(nn.Module):
    """Two convolutions beside an identity, (B, D, H, W) -> (B, D, H, W), scaled and shifted by the time's embedding."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(channels, 2 * channels)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.modulation(time)[..., None, None].chunk(2, dim=1)  # (B, D, 1, 1) each
        hidden = F.silu(self.first(F.silu(self.norm(x))) * (1 + scale) + shift)
        return x + self.second(hidden)


class VarianceHeadModel(ModelMixin, ConfigMixin):
    """The head of a frozen denoiser whose output is a variance, or a mean square, for each dimension: positive numbers.

    It sees the denoiser's input and output, so it fits any denoiser of images. `hfgen.objectives.reverse_variance`
    says what it learns, `hfgen.schedulers.reverse_variance` how it is used. A new head says about 1 everywhere.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: C of the images.
        patch_size: side of the patches that are stacked as channels, as in `PatchUNet2DModel`.
        hidden_channels: width D.
        num_blocks: residual blocks.
        norm_num_groups: groups of the group norms.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        patch_size: int = 2,
        hidden_channels: int = 64,
        num_blocks: int = 2,
        norm_num_groups: int = 8,
    ):
        super().__init__()
        stacked = in_channels * patch_size**2
        self.time_proj = Timesteps(hidden_channels, True, 0)
        self.time_embedding = TimestepEmbedding(hidden_channels, hidden_channels)
        self.conv_in = nn.Conv2d(2 * stacked, hidden_channels, 3, padding=1)
        self.blocks = nn.ModuleList(HeadBlock(hidden_channels, norm_num_groups) for _ in range(num_blocks))
        self.modulation = nn.Linear(hidden_channels, hidden_channels)
        self.conv_out = nn.Conv2d(hidden_channels, stacked, 3, padding=1)
        self.level = nn.Linear(hidden_channels, 1)  # most of a variance depends on the time alone
        for layer in (self.conv_out, self.level):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    def forward(
        self, sample: Tensor, prediction: Tensor, timestep: Tensor | float | int, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Return positive numbers (B, C, H, W).

        Args:
            sample (B, C, H, W): the denoiser's input.
            prediction (B, C, H, W): its output.
            timestep () or (B,): its time step.
            return_dict: whether to return a UNet2DOutput instead of a tuple.
        """
        time = self.time_proj(expand_timestep(timestep, sample)).to(sample.dtype)
        time = F.silu(self.time_embedding(time))  # (B, D)
        height, width = sample.shape[-2:]
        patch = self.config.patch_size
        x = F.pixel_unshuffle(
            pad_to_multiple(torch.cat([sample, prediction], 1), patch), patch
        )  # (B, 2 C p p, H / p, W / p)
        x = self.conv_in(x) + self.modulation(time)[..., None, None]
        for block in self.blocks:
            x = block(x, time)
        x = F.pixel_shuffle(self.conv_out(F.silu(x)), patch)[..., :height, :width]  # (B, C, H, W)
        log = x + self.level(time)[..., None, None]
        output = log.clamp(-18, 6).exp()
        return UNet2DOutput(sample=output) if return_dict else (output,)
