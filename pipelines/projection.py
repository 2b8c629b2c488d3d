"""The search for latents of images by descent, for models without an encoder."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hfgen.utils.seeds import generator_of

from .inputs import check_count

CANDIDATES = 512
"""Latents drawn from N(0, I), always the same, among which the search begins."""

STARTS = 4
"""Candidates that are followed for each image, the nearest ones: the error has many valleys."""

PIXEL_NOISE = 0.05
"""Standard deviation of pixels in [-1, 1] around the generator's image."""

Labelled = Callable[[Tensor, Tensor], Tensor]
"""(latents (N, d), labels (N,)) -> images (N, C, H, W), or (images, labels) -> features (N, F)."""


def check_search(steps: int, learning_rate: float) -> None:
    """Raise ValueError for numbers that no search by `descend` can have."""
    check_count("steps", steps)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"{learning_rate=} must be positive and finite.")


@torch.no_grad()
def nearest_candidates(images: Tensor, labels: Tensor, generate: Labelled, size: int) -> Tensor:
    """Return, for each image, the candidates (B, STARTS, size) of its class whose images are nearest.

    Args:
        images: (B, C, H, W).
        labels: (B,).
        generate: G.
        size: d.
    """
    z = torch.randn(CANDIDATES, size, generator=generator_of("candidates")).to(images.device)
    nearest = z.new_empty(len(images), STARTS, size)
    for label in labels.unique():
        rows = labels == label
        samples = generate(z, label.expand(len(z)))
        distances = torch.cdist(images[rows].flatten(1), samples.flatten(1))
        nearest[rows] = z[distances.topk(STARTS, largest=False).indices]
    return nearest


@torch.no_grad()
def descend(
    start: Tensor,
    errors: Callable[[Tensor], Tensor],
    steps: int,
    learning_rate: float,
    tick: Callable[[], object],
) -> Tensor:
    """Minimise an error from S starts for each image, and return the best ends (B, ...).

    Adam's learning rate goes to 0 as a cosine. Each image is searched by itself: errors are summed.

    Args:
        start: (B, S, ...).
        errors: values (B S, ...) -> the error of each, (B S,).
        steps, learning_rate: of Adam.
        tick: called after each step.
    """
    z = start.flatten(0, 1).clone().requires_grad_()
    optimizer = torch.optim.Adam([z], learning_rate)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            (z.grad,) = torch.autograd.grad(errors(z).sum(), z)
            optimizer.step()
            rates.step()
            tick()
    best = errors(z).view(start.shape[:2]).argmin(1)
    return z.detach().view(start.shape)[torch.arange(len(start), device=z.device), best]
