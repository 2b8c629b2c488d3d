"""Ladders of known damage to real images, from slight to grave, by which feature networks are tried.

A measure that sees what people see rises with every step of every ladder.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from ..utils.arguments import checked
from ..utils.seeds import generator_of


@dataclasses.dataclass(frozen=True, eq=False)
class RealImages:
    """Real images to damage: `images` uint8 (N, C, H, W) in random order, with their `labels` (N,)."""

    images: Tensor
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A kind of damage in five strengths.

    Attributes:
        name: what is damaged.
        unit: what a strength means.
        strengths: from slight to grave.
        apply: (real images, number of images n, strength) -> damaged images uint8 (n, C, H, W).
    """

    name: str
    unit: str
    strengths: Sequence[float]
    apply: Callable[[RealImages, int, float], Tensor]

    def rungs(self, real: RealImages, count: int) -> list[Tensor]:
        """Return `count` images at each strength.

        Raises:
            ValueError: there are fewer real images.
        """
        if not 0 < count <= len(real.images):
            raise ValueError(f"{count} images are to be damaged, and there are {len(real.images)}.")
        return [self.apply(real, count, strength) for strength in self.strengths]


def _levels(images: Tensor) -> Tensor:
    """Round to 8-bit images."""
    return images.clamp(0, 255).round().to(torch.uint8)


@checked
def blurred(real: RealImages, count: int, deviation: float) -> Tensor:
    """Blur with a Gaussian of this standard deviation in pixels."""
    images, radius = real.images[:count].float(), math.ceil(3 * deviation)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-((offsets / deviation) ** 2) / 2)
    kernel = (kernel / kernel.sum()).repeat(images.shape[1], 1, 1, 1)
    for weight in (kernel, kernel.transpose(2, 3)):
        margins = [weight.shape[3] // 2] * 2 + [weight.shape[2] // 2] * 2
        images = conv2d(pad(images, margins, mode="replicate"), weight, groups=images.shape[1])
    return _levels(images)


@checked
def noisy(real: RealImages, count: int, deviation: float) -> Tensor:
    """Add Gaussian noise of this standard deviation, in images of [-1, 1]."""
    images = real.images[:count].float()
    noise = torch.randn(images.shape, generator=generator_of("benchmark", "damage", "noise"))
    return _levels(images + 127.5 * deviation * noise)


@checked
def checkered(real: RealImages, count: int, amplitude: float) -> Tensor:
    """Add a checkerboard of single pixels with this amplitude, in images of [-1, 1]."""
    images = real.images[:count].float()
    rows, columns = (torch.arange(side) for side in images.shape[2:])
    return _levels(images + 127.5 * amplitude * (1 - 2 * ((rows[:, None] + columns) % 2)))


@checked
def erased(real: RealImages, count: int, lines: float) -> Tensor:
    """Erase thin lines, across or down, in the middle half of each image: they get its median colour."""
    images, side = real.images[:count].clone(), min(real.images.shape[2:])
    width, generator = max(1, side // 14), generator_of("benchmark", "damage", "lines")
    ground = images.flatten(2).median(2).values[:, :, None, None].expand_as(images)
    for _ in range(int(lines)):
        start = torch.randint(side // 4, side - side // 4 - width + 1, (count,), generator=generator)
        across = torch.rand(count, generator=generator) < 0.5
        rows, columns = (torch.arange(length) - start[:, None] for length in images.shape[2:])
        rows, columns = ((offset >= 0) & (offset < width) for offset in (rows, columns))
        line = torch.where(across[:, None, None], rows[:, :, None], columns[:, None, :])
        images = torch.where(line[:, None], ground, images)
    return images


@checked
def without_classes(real: RealImages, count: int, dropped: float) -> Tensor:
    """Leave out the last classes, so many of them. If too few images are left, they are repeated in turn."""
    classes = real.labels.unique()
    rows = (real.labels[:, None] == classes[: len(classes) - int(dropped)]).any(1).nonzero()[:, 0]
    return real.images[rows[torch.arange(count) % len(rows)]]


@checked
def copied(real: RealImages, count: int, copies: float) -> Tensor:
    """Repeat few distinct images, each so many times."""
    return real.images[torch.arange(count) % max(1, count // int(copies))]


LADDERS = (
    Ladder("blur", "deviation in pixels", (0.4, 0.6, 0.8, 1.1, 1.5), blurred),
    Ladder("noise", "deviation, of [-1, 1]", (0.05, 0.1, 0.2, 0.4, 0.8), noisy),
    Ladder("checkerboard", "amplitude, of [-1, 1]", (0.05, 0.1, 0.2, 0.4, 0.8), checkered),
    Ladder("dropped strokes", "erased lines", (1, 2, 3, 4, 6), erased),
    Ladder("dropped classes", "classes of ten", (1, 2, 3, 5, 7), without_classes),
    Ladder("copies", "times each image occurs", (2, 4, 8, 16, 32), copied),
)
