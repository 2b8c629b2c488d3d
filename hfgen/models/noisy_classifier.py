"""A classifier of images with noise, which is told how much noise there is."""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .conv_layers import pad_to_multiple
from .layers import expand_timestep, pair
from .variance_head import HeadBlock


@dataclass
class ClassifierOutput(BaseOutput):
    """The output of a classifier.

    Args:
        logits (B, classes): unnormalised log-probabilities.
    """

    logits: Tensor


class NoisyClassifierModel(ModelMixin, ConfigMixin):
    """Residual blocks at falling resolution, a mean over positions, and a linear layer: p(class | x_t, t).

    It is called as a denoiser is, network(x_t, timestep), and its gradient in x_t guides one: Dhariwal & Nichol 2021,
    https://arxiv.org/abs/2105.05233.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: C of the images.
        num_classes: number of classes.
        patch_size: side of the patches that are stacked as channels.
        block_out_channels: width of each level; each level halves the sides of the one before.
        norm_num_groups: groups of the group norms.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        num_classes: int = 10,
        patch_size: int = 2,
        block_out_channels: tuple[int, ...] = (32, 64, 128),
        norm_num_groups: int = 8,
    ):
        super().__init__()
        widths = tuple(block_out_channels)
        self.time_proj = Timesteps(widths[0], True, 0)
        self.time_embedding = TimestepEmbedding(widths[0], widths[-1])
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, widths[0], 3, padding=1)
        self.time_layers = nn.ModuleList(nn.Linear(widths[-1], width) for width in widths)
        self.blocks = nn.ModuleList(HeadBlock(width, norm_num_groups) for width in widths)
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(first, last, 3, stride=2, padding=1) for first, last in pairwise(widths)
        )
        self.norm = nn.GroupNorm(norm_num_groups, widths[-1])
        self.out = nn.Linear(widths[-1], num_classes)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    def forward(
        self, sample: Tensor, timestep: Tensor | float | int, return_dict: bool = True
    ) -> ClassifierOutput | tuple[Tensor]:
        """Return the logits (B, classes) of images with noise.

        Args:
            sample (B, C, H, W): the images, scaled as a denoiser of the path sees them.
            timestep () or (B,): an index, or 1000 t.
            return_dict: whether to return a ClassifierOutput instead of a tuple.
        """
        time = self.time_proj(expand_timestep(timestep, sample)).to(sample.dtype)
        time = F.silu(self.time_embedding(time))  # (B, D)
        patch = self.config.patch_size
        x = F.pixel_unshuffle(pad_to_multiple(sample, patch), patch)
        x = self.conv_in(x)  # (B, D_0, H / p, W / p)
        for level, block in enumerate(self.blocks):
            x = block(x, self.time_layers[level](time))
            if level < len(self.downsamplers):
                x = self.downsamplers[level](x)
        logits = self.out(F.silu(self.norm(x)).mean((2, 3)))
        return ClassifierOutput(logits=logits) if return_dict else (logits,)
