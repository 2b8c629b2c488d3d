"""Convolutions down to a few positions and back, which the convolutional autoencoders share."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), (B, C, H, W): the identity at the start."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class ConvEncoder(nn.Module):
    """Halves the sides once for each of `block_out_channels`: (B, C, H, W) -> (B, block_out_channels[-1], h, w)."""

    def __init__(self, in_channels: int, block_out_channels: tuple[int, ...], layers_per_block: int):
        super().__init__()
        self.down = nn.ModuleList()
        for before, after in pairwise((in_channels, *block_out_channels)):
            blocks = (ResidualBlock(after) for _ in range(layers_per_block))
            self.down.append(nn.Sequential(nn.Conv2d(before, after, 4, stride=2, padding=1), *blocks))

    def forward(self, x: Tensor) -> Tensor:
        for level, down in enumerate(self.down):
            x = down(F.silu(x) if level else x)
        return F.silu(x)


class ConvDecoder(nn.Module):
    """Doubles the sides once for each of `block_out_channels`: (B, block_out_channels[-1], h, w) -> (B, C, H, W)."""

    def __init__(self, out_channels: int, block_out_channels: tuple[int, ...], layers_per_block: int):
        super().__init__()
        self.up = nn.ModuleList()
        widths = tuple(reversed((out_channels, *block_out_channels)))
        for before, after in pairwise(widths):
            blocks = (ResidualBlock(before) for _ in range(layers_per_block))
            self.up.append(nn.Sequential(*blocks, nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        for up in self.up:
            x = up(x)
        return x


def padded(x: Tensor, multiple: int) -> Tensor:
    """Zeros below and to the right of (B, C, H, W), so that both sides are multiples."""
    below, right = (-side % multiple for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, below)) if below or right else x


def positions(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Rows and columns of cells of so many pixels a side that cover an image of this size."""
    return -(-size[0] // multiple), -(-size[1] // multiple)
