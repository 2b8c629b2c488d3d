"""Heat maps laid over images."""

from typing import Any

import numpy as np
from PIL import Image

HOT = (255, 32, 0)
"""The colour of the hottest pixels."""

DIM = 0.5
"""Brightness of the image itself under its heat map, as a share."""


def overlay(image: Image.Image, heat: Any, scale: float) -> Image.Image:
    """Lay a heat map over an image: the image in grey, dimmed, and `HOT` in proportion to heat / scale.

    Args:
        image: of any mode.
        heat (H, W): tensor or array, of the image's size.
        scale: the heat at which a pixel is entirely `HOT`.

    Returns:
        An image of mode RGB.

    Raises:
        ValueError: a heat map of another size, or a scale that is not positive.
    """
    heat = np.asarray(heat.cpu() if hasattr(heat, "cpu") else heat, dtype=np.float64)
    if heat.shape != (image.height, image.width) or not scale > 0:
        raise ValueError(f"A heat map {heat.shape} at {scale=} does not fit an image {image.width} x {image.height}.")
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] * DIM
    share = np.clip(heat / scale, 0, 1)[..., None]
    return Image.fromarray(np.rint((1 - share) * grey + share * np.array(HOT)).astype(np.uint8))
