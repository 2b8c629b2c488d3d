"""Layers of the convolutional autoencoders: an encoder down to a few positions, and a decoder back."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), (B, C, H, W). At initialisation it is the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class ConvEncoder(nn.Module):
    """(B, C, H, W) -> (B, block_out_channels[-1], h, w). Each of `block_out_channels` halves the sides once."""

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
    """(B, block_out_channels[-1], h, w) -> (B, C, H, W). Each of `block_out_channels` doubles the sides once."""

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


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) with zeros below and to the right, so that `multiple` divides both sides."""
    below, right = (-side % multiple for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, below)) if below or right else x


def cell_grid(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the rows and columns of square cells of this side in pixels that cover an image of size (H, W)."""
    return -(-size[0] // side), -(-size[1] // side)
