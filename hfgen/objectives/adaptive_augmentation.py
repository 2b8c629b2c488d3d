"""Augmentation whose probability follows how far the discriminator has overfitted (Karras et al. 2020,
https://arxiv.org/abs/2006.06676)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, SHARE, check_range
from .augmentation import augment, check_names
from .base import Step
from .step_mean import StepMean


class AdaptiveAugmentation(nn.Module):
    """Augmentations of all images that a discriminator sees, each with probability p for each image.

    A discriminator that has learned its few real images by heart gives nearly all of them a score above the boundary b
    of its loss. After each of its turns

        p <- clip(p + sign(r - target) images of the step / speed, 0, 1),    r = E sign(D(x) - b) over real images x.

    The generator learns through the augmentations. They leave no trace in its images while p is well below 1, since
    then most images that the discriminator sees are as they are. p is in the state of the objective.

    Args:
        names: keys of AUGMENTATIONS, in order.
        target: r that p keeps.
        speed: number of images in which p can go from 0 to 1.

    Raises:
        ValueError: no name or an unknown one, or a number out of range.
    """

    @checked
    def __init__(self, names: Sequence[str], target: float = 0.6, speed: int = 500_000):
        super().__init__()
        check_names(names)
        if not names:
            raise ValueError("names are empty: there is nothing to adapt. Give one augmentation or more.")
        check_range("target", target, SHARE)
        check_range("speed", speed, ABOVE_0)
        self.names, self.target, self.speed = tuple(names), target, speed
        self.register_buffer("probability", torch.zeros((), dtype=torch.float32))
        self.signs = StepMean()

    def forward(self, images: Tensor, step: Step, stream: str) -> Tensor:
        """Return the augmented images (B, C, H, W), as `augment`."""
        return augment(images, self.names, step, stream, self.probability.clone())

    def observe(self, margins: Tensor) -> None:
        """Note scores of real images minus the boundary, (B,)."""
        self.signs.add(margins.sign())

    @torch.no_grad()
    def end_step(self) -> None:
        """Change p by what was observed since the last call."""
        mean, count = self.signs.take()
        self.probability += (mean - self.target).sign() * count / self.speed
        self.probability.clamp_(0, 1)
