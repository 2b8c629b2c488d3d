"""Images as callers have them (PIL images, arrays, tensors) as the tensors (B, C, H, W) in [-1, 1] that networks take.

- uint8 holds levels k = 0..255, which become k / 127.5 - 1;
- floating-point numbers are in [-1, 1] already. Numbers in [0, 1] can't be told from these; a batch without a negative
  number gives a warning;
- the model's shape says the order of the axes: (B, C, H, W) or (B, H, W, C). Where both fit, that of a tensor is the
  former and that of an array the latter;
- a PIL image is turned upright as its EXIF data say, and converted where nothing is lost. A grey 16-bit value v is the
  level v / 257, rounded.

Nothing is resized, clipped or made grey here.
"""

import logging
import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from hfgen.utils.pixels import from_16_bits, from_levels

from .inputs import check_shape

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels of a model -> mode of its PIL images."""

LOSSLESS = {"L": ("1", "L"), "RGB": ("1", "L", "RGB", "P"), "RGBA": ("1", "L", "LA", "RGB", "RGBA", "P", "PA")}
"""Mode -> modes that convert to it without a loss, if the image is opaque or the mode has alpha."""

TOLERANCE = 1e-4
"""Distance from [-1, 1] that rounding explains."""

LARGEST_ITEM = 16.0
"""Largest value of images without a negative one that may be real-valued data in another range than [0, 255]."""


def default_output(shape: tuple[int, ...]) -> str:
    """Return the `output_type` of samples of this shape unless a call gives one: `pil` for images (C, H, W) that have a
    mode, `latent`, the samples as they are, for any other item."""
    return "pil" if len(shape) == 3 and shape[0] in PIL_MODES else "latent"


def image_batch(images: Any, shape: tuple[int, ...], name: str = "images", limit: float = 1.0) -> Tensor:
    """Convert images to a tensor (B, *shape) on the device that they are on.

    Args:
        images: a PIL image, or a list of PIL images or of arrays or tensors (C, H, W) or (H, W, C); or an array or
            tensor (B, C, H, W) or (B, H, W, C) of uint8 in 0..255 or of floats in [-1, 1].
        shape: of one image, (C, H, W). Samples of any other shape are taken as a tensor or array of floats alone.
        name: what messages call them.
        limit: largest size of a float. If it is infinite, data may be any real numbers, but images that look like
            levels 0..255 are refused.

    Returns:
        float32 for levels, else the dtype of the floats.

    Raises:
        ValueError: names the type, mode, size, shape, dtype or range that does not fit.
    """
    shape, pictures = tuple(shape), len(shape) == 3
    if isinstance(images, Image.Image) and pictures:
        images = [images]
    if isinstance(images, list | tuple) and pictures:
        items = [_item(image, shape, f"{name}[{i}]") for i, image in enumerate(images)]
        batch = torch.cat(items) if items else torch.zeros(0)
    else:
        batch, array = _tensor_of(images, name), isinstance(images, np.ndarray)
        batch = _floats(_channels_first(batch, shape, array) if pictures else batch, name, pictures)
    check_shape(batch, shape, name)
    _check_range(batch, name, limit, pictures)
    if pictures and not _are_levels(images):
        _warn_of_another_range(batch, name)
    return batch


def _are_levels(images: Any) -> bool:
    """Return whether images are PIL images or hold uint8, so that their range is known."""
    if isinstance(images, list | tuple):
        return all(_are_levels(image) for image in images)
    return isinstance(images, Image.Image) or getattr(images, "dtype", None) in (torch.uint8, np.dtype(np.uint8))


def _item(image: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """Return one image (1, C, H, W)."""
    if isinstance(image, Image.Image):
        return from_levels(_pixels_of(image, shape, name))[None]
    item = _tensor_of(image, name)
    item = item.unsqueeze(-1) if item.ndim == 2 and shape[0] == 1 else item
    item = _floats(_channels_first(item[None], shape, isinstance(image, np.ndarray)), name, True)
    if tuple(item.shape[1:]) != shape:
        raise ValueError(f"{name} has shape {tuple(item.shape[1:])}; this model needs {shape}.")
    return item


def _pixels_of(image: Image.Image, shape: tuple[int, ...], name: str) -> Tensor:
    """Return the levels of a PIL image, uint8 (C, H, W)."""
    channels, height, width = shape
    if channels not in PIL_MODES:
        raise ValueError(f"{name} is a PIL image, and this model's images have {channels} channels. Give a tensor.")
    image, mode = ImageOps.exif_transpose(image), PIL_MODES[channels]
    if image.size != (width, height):
        raise ValueError(
            f"{name} is {image.width} x {image.height} pixels, and this model's images are {width} x {height} (width x "
            f"height): crop it to this aspect, and resize it, image.resize(({width}, {height}))."
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"{name} has mode {image.mode} with values outside 0..65535. Scale them first.")
        image = Image.fromarray(from_16_bits(values).astype(np.uint8))
    opaque = image.convert("RGBA").getextrema()[3][0] == 255 if image.has_transparency_data else True
    if mode != "RGBA" and not opaque:
        raise ValueError(f"{name} is partly transparent, and this model's images are {mode}. Put it on a background.")
    if image.has_transparency_data and opaque:
        image = image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")  # of each pixel alpha is 255
    if image.mode not in LOSSLESS[mode]:
        raise ValueError(f"{name} has mode {image.mode}, and this model's images are {mode}: image.convert({mode!r}).")
    pixels = np.array(image.convert(mode)).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _tensor_of(values: Any, name: str) -> Tensor:
    """Return a tensor as it is, and an array or nested list as a tensor of its own memory."""
    if isinstance(values, Tensor):
        return values
    try:
        if isinstance(values, list | tuple):
            return torch.tensor(values)
        if isinstance(values, np.ndarray):
            return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} hold no numbers of one shape ({error}); give uint8 or floats.") from None
    raise ValueError(
        f"{name} are of type {type(values).__name__}; give a tensor, an array, a PIL image, or a list of these."
    )


def _channels_first(batch: Tensor, shape: tuple[int, ...], array: bool) -> Tensor:
    """Return a batch (B, H, W, C) as (B, C, H, W), and anything else as it is."""
    last = (*shape[1:], shape[0])
    if tuple(batch.shape[1:]) == last and (array or last != shape):
        return batch.permute(0, 3, 1, 2)
    return batch


def _floats(values: Tensor, name: str, levels: bool) -> Tensor:
    """Return levels as x in [-1, 1], and floats as they are. Raises ValueError for any other type."""
    if values.dtype == torch.uint8 and levels:
        return from_levels(values)
    if not values.is_floating_point():
        kinds = "uint8 in 0..255, or floats in [-1, 1]" if levels else "floats"
        raise ValueError(f"{name} have type {values.dtype}; give {kinds}.")
    return values


def _check_range(batch: Tensor, name: str, limit: float, pictures: bool) -> None:
    """Refuse values that are not finite or out of range."""
    allowed = "" if math.isinf(limit) else ", and so not in [-1, 1]"
    if not (finite := batch.isfinite()).all():
        raise ValueError(f"{name} have {int((~finite).sum())} of {batch.numel()} values that are not finite{allowed}.")
    low, high = float(batch.min()), float(batch.max())
    out = max(-low, high) > limit + TOLERANCE or (pictures and low >= 0 and high > LARGEST_ITEM)
    if out:
        raise ValueError(
            f"{name} have values from {low:.3g} to {high:.3g}, not in [-1, 1]: of 8-bit ones, give k / 127.5 - 1, "
            "or the levels k as uint8."
        )


def _warn_of_another_range(batch: Tensor, name: str) -> None:
    """Warn of floats that may be in [0, 1]."""
    low, high = float(batch.min()), float(batch.max())
    if low >= 0 and 0 < high <= 1:
        logging.getLogger(__name__).warning(
            "%s have values from %.3g to %.3g and none below 0. They are read as pixels in [-1, 1]; if they are in "
            "[0, 1], give 2 * x - 1.",
            *(name, low, high),
        )
