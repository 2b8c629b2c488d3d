"""Differentiable augmentation of real and generated images before a discriminator sees them.

Zhao et al. 2020, https://arxiv.org/abs/2006.10738. The generator learns through the augmentation, so its samples do not
show it. All randomness comes from the streams of a step, and each image has its own draws.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Step


def augment(images: Tensor, names: Sequence[str], step: Step, stream: str, probability: Tensor | None = None) -> Tensor:
    """Apply augmentations one after the other.

    Args:
        images (B, C, H, W): in [-1, 1].
        names: keys of AUGMENTATIONS, in order; empty: the images are returned unchanged, and may be any items.
        step: the source of randomness.
        stream: name of the random stream. Calls with the same name draw the same numbers.
        probability (): that of each augmentation of an image, independently of all others; None: 1.

    Returns:
        The augmented images (B, C, H, W).

    Raises:
        ValueError: augmentations are named, and the items are not images.
    """
    if names and images.ndim != 4:
        raise ValueError(
            f"The augmentation {', '.join(names)} needs images (B, C, H, W); these items have shape "
            f"{tuple(images.shape)}. Leave it out."
        )
    for name in names:
        changed = AUGMENTATIONS[name](images, step, f"{stream} {name}")
        if probability is not None:
            draws = step.uniform(f"{stream} {name} chosen", images.new_empty(len(images), 1, 1, 1))
            changed = torch.where(draws < probability, changed, images)
        images = changed
    return images


def check_names(names: Sequence[str]) -> None:
    """Refuse names of augmentations.

    Raises:
        ValueError: a name is not in AUGMENTATIONS, or occurs twice.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(f"augmentation {name!r} is not known. Choose some of: {', '.join(AUGMENTATIONS)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"augmentations {list(names)} name one twice. Name each once.")


def brightness(images: Tensor, step: Step, stream: str) -> Tensor:
    """Change brightness by up to 1/2, of a range of 2."""
    return _brighter(images, step.uniform(stream, images.new_empty(len(images), 1, 1, 1)))


def saturation(images: Tensor, step: Step, stream: str) -> Tensor:
    """Change saturation, the distance of a pixel's channels from their mean, by a factor in [0, 2)."""
    return _saturated(images, step.uniform(stream, images.new_empty(len(images), 1, 1, 1)))


def contrast(images: Tensor, step: Step, stream: str) -> Tensor:
    """Change contrast, the distance of pixels from the image's mean, by a factor in [1/2, 3/2)."""
    return _contrasted(images, step.uniform(stream, images.new_empty(len(images), 1, 1, 1)))


def color(images: Tensor, step: Step, stream: str) -> Tensor:
    """Change brightness, then saturation, then contrast."""
    draws = step.uniform(stream, images.new_empty(len(images), 3))
    first, second, third = draws[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1) each
    return _contrasted(_saturated(_brighter(images, first), second), third)


def _brighter(images: Tensor, draws: Tensor) -> Tensor:
    return images + draws - 0.5


def _saturated(images: Tensor, draws: Tensor) -> Tensor:
    grey = images.mean(1, keepdim=True)
    return grey + 2 * draws * (images - grey)


def _contrasted(images: Tensor, draws: Tensor) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (draws + 0.5) * (images - mean)


def translation(images: Tensor, step: Step, stream: str) -> Tensor:
    """Shift by whole pixels, up to an eighth of each side. Pixels from outside the image are 0."""
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


def flip(images: Tensor, step: Step, stream: str) -> Tensor:
    """Mirror half of the images left-right."""
    mirrored = step.uniform(stream, images.new_empty(len(images), 1, 1, 1)) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def cutout(images: Tensor, step: Step, stream: str) -> Tensor:
    """Set a square of half the sides to 0. Its centre lies anywhere in the image."""
    draws, inside = step.uniform(stream, images.new_empty(len(images), 2)), []
    for axis, side in enumerate(images.shape[2:]):
        width = int(side / 2 + 0.5)
        first = (draws[:, axis] * (side + 1 - width % 2)).long() - width // 2
        offset = torch.arange(side, device=images.device) - first[:, None]  # (B, side)
        inside.append((offset >= 0) & (offset < width))
    return images * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


AUGMENTATIONS = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
    "flip": flip,
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
}
"""Name -> function of (images (B, C, H, W), step, stream) that returns augmented images."""
