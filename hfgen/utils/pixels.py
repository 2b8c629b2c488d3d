"""8-bit images and the numbers that networks take: level k = 0, ..., 255 is x = k / 127.5 - 1, in [-1, 1]."""

from typing import Any

import numpy as np
import torch
from PIL import Image
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


def grey_values(image: Image.Image) -> np.ndarray[Any, Any]:
    """Return the values of a grey image of 16 bits, int64 (H, W).

    Raises:
        ValueError: they are not within 0..65535.
    """
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > WHITE:
        raise ValueError(f"mode {image.mode} with values outside 0..65535 is not supported")
    return values


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits as one of 8 bits, with 65535 as white, and any other image as it is. Pillow's own
    conversion makes all values above 255 white.

    Raises:
        ValueError: as `grey_values`.
    """
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray(from_16_bits(grey_values(image)).astype(np.uint8))
