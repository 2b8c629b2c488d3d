"""8-bit images and the numbers that networks see: level k = 0, ..., 255 is x = k / 127.5 - 1, in [-1, 1]."""

import torch
from torch import Tensor


def from_levels(levels: Tensor) -> Tensor:
    """x = k / 127.5 - 1 in [-1, 1], float32, of levels 0..255 (uint8 or not) of any shape."""
    return levels.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_levels(x: Tensor) -> Tensor:
    """The level nearest to each x, uint8; what lies beyond [-1, 1] has the first or last."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
