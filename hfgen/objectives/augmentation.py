"""Differentiable augmentation: what is done to real and generated images alike before a discriminator sees them.

Zhao et al. 2020, https://arxiv.org/abs/2006.10738. The generator learns through it, so it doesn't show in samples. All
draws come from a step's streams; each image has its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Step


def augment(images: Tensor, names: Sequence[str], step: Step, stream: str) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] after the augmentations of AUGMENTATIONS that are named, in that order.

    Args:
        images: what to change.
        names: of augmentations; none: images are returned as they are.
        step: where randomness comes from.
        stream: its name; two calls with the same one draw the same.
    """
    for name in names:
        images = AUGMENTATIONS[name](images, step, f"{stream} {name}")
    return images


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is not in AUGMENTATIONS, or one that is given twice."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(f"augmentation {name!r} is not known. Choose some of: {', '.join(AUGMENTATIONS)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"augmentations {list(names)} hold one twice. Name each once.")


def color(images: Tensor, step: Step, stream: str) -> Tensor:
    """Brightness by up to 1/2 (of a range of 2), saturation by a factor in [0, 2), contrast by one in [1/2, 3/2)."""
    draws = step.uniform(stream, images.new_empty(len(images), 3))
    brightness, saturation, contrast = draws[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1) each
    images = images + brightness - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + 2 * saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (images - mean)


def translation(images: Tensor, step: Step, stream: str) -> Tensor:
    """Shift by whole pixels, up to an eighth of each side; what comes in from outside is 0."""
    (batch, channels, *sides), draws = images.shape, step.uniform(stream, images.new_empty(len(images), 2))
    reach = [int(side / 8 + 0.5) for side in sides]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    for axis, side in enumerate(sides):
        start = (draws[:, axis] * (2 * reach[axis] + 1)).long()
        index = start[:, None] + torch.arange(side, device=images.device)  # (B, side)
        shape = [batch, channels, *padded.shape[2:]]
        shape[2 + axis] = side
        padded = padded.gather(2 + axis, (index[:, None, :, None], index[:, None, None, :])[axis].expand(shape))
    return padded


def cutout(images: Tensor, step: Step, stream: str) -> Tensor:
    """A square of half the sides, its centre anywhere in the image, is 0."""
    draws, inside = step.uniform(stream, images.new_empty(len(images), 2)), []
    for axis, side in enumerate(images.shape[2:]):
        width = int(side / 2 + 0.5)
        first = (draws[:, axis] * (side + 1 - width % 2)).long() - width // 2
        offset = torch.arange(side, device=images.device) - first[:, None]  # (B, side)
        inside.append((offset >= 0) & (offset < width))
    return images * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}
"""Functions of (images (B, C, H, W), step, stream)."""
