"""8-bit images and the numbers that networks take: level k = 0, ..., 255 is x = k / 127.5 - 1, in [-1, 1]."""

from typing import Any

import torch
from torch import Tensor

WHITE = 0xFFFF
"""The value of a 16-bit image that is white, unless one says otherwise."""


def from_levels(levels: Tensor) -> Tensor:
    """Convert levels in 0..255, of any dtype and shape, to x = k / 127.5 - 1 in [-1, 1], float32."""
    return levels.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_levels(x: Tensor) -> Tensor:
    """Round x to the nearest level, uint8. Values outside [-1, 1] become the first or the last level."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_16_bits(values: Any, white: int = WHITE) -> Any:
    """Convert grey values 0..white, an integer array of at least 32 bits, to the nearest level: 255 v / white."""
    return (510 * values + white) // (2 * white)
