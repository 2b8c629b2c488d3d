"""Fixed points x = f(x) of contractions, item by item, and gradients through them by the implicit function theorem."""

from collections.abc import Callable

import torch
from torch import Tensor

MEMORY = 5
"""Earlier iterations that Anderson's method combines."""

MOST_ITERATIONS = 500

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest error of a fixed point, relative to 1 + the norm of an item."""


@torch.no_grad()
def fixed_point(f: Callable[[Tensor], Tensor], start: Tensor, slope: float) -> Tensor:
    """Return x (B, *item) with x = f(x), no item farther from the exact one than its tolerance, see `TOLERANCES`.

    f is a contraction: |f(x) - f(y)| <= slope |x - y| for each item. Then |x - f(x)| / (1 - slope) bounds the distance
    from x to the fixed point, which decides when to stop. Iterates are combined by Anderson's method (Walker & Ni 2011,
    https://doi.org/10.1137/10078356X), where that brought x nearer; otherwise the next one is f(x).

    Args:
        f: (B, *item) -> (B, *item), each item by itself.
        start: the first x.
        slope: below 1.

    Raises:
        ValueError: items are not finite, or there is no fixed point after `MOST_ITERATIONS`; then f is no contraction,
            or the tolerance is below the precision of the numbers.
    """
    tolerance = TOLERANCES[start.dtype]
    x, best, least = start, start, torch.full_like(start.flatten(1)[:, 0], torch.inf)
    points: list[Tensor] = []
    errors: list[Tensor] = []
    for _ in range(MOST_ITERATIONS):
        value = f(x)
        error = (value - x).flatten(1)  # (B, D)
        distance = error.norm(dim=1)
        better = distance < least
        best = torch.where(_like(better, x), value, best)  # f(x) is nearer than x, by the slope
        if (distance * slope <= (1 - slope) * tolerance * (1 + value.flatten(1).norm(dim=1))).all():
            return value
        if not distance.isfinite().all():
            raise ValueError("A fixed point of numbers that are not finite was asked for.")
        points, errors = [*points[1 - MEMORY :], value.flatten(1)], [*errors[1 - MEMORY :], error]
        mixed = _anderson(points, errors).view_as(x)
        x = torch.where(_like(distance <= 2 * least, x), mixed, best)
        least = torch.minimum(least, distance)
    raise ValueError(
        f"No fixed point was found within {tolerance} after {MOST_ITERATIONS} iterations, where the largest step is "
        f"{float(distance.max()):.1e}: use a smaller slope, or float64."
    )


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """Return a tensor (B,) as one that is expanded to the shape of x."""
    return rows.view(-1, *[1] * (x.ndim - 1))


def _anderson(points: list[Tensor], errors: list[Tensor]) -> Tensor:
    """Return the combination (B, D) of values f(x) (B, D) whose errors f(x) - x have the smallest norm together."""
    if len(points) == 1:
        return points[0]
    last, changes = errors[-1], torch.stack([errors[-1] - error for error in errors[:-1]], 2)  # (B, D, m)
    gram = changes.mT @ changes
    ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(gram.dtype).tiny
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    shares = torch.linalg.solve(gram, changes.mT @ last[..., None])  # (B, m, 1)
    steps = torch.stack([points[-1] - point for point in points[:-1]], 2)
    return points[-1] - (steps @ shares).squeeze(-1)


def implicit_solution(f: Callable[[Tensor], Tensor], shift: Tensor, slope: float) -> Tensor:
    """Return z = shift - f(z) (B, *item) with gradients, for a contraction f: the inverse of z + f(z) at `shift`.

    The iterations are not stored. By the implicit function theorem the gradient u at the right side solves
    u = gradient - J^T u, where J is the Jacobian of f at z; a fixed point again (Bai et al. 2019,
    https://arxiv.org/abs/1909.01377). Parameters of f get their gradients by one evaluation at z.

    Args:
        f: the contraction, (B, *item) -> (B, *item).
        shift: the right side.
        slope: bound of the slope of f, below 1.

    Raises:
        ValueError: see `fixed_point`.
    """
    right = shift.detach()
    z = fixed_point(lambda x: right - f(x), right, slope)
    if not torch.is_grad_enabled():
        return z
    with torch.enable_grad():
        here = z.detach().requires_grad_()
        value = f(here)

    def solved(gradient: Tensor) -> Tensor:
        def step(u: Tensor) -> Tensor:
            with torch.enable_grad():
                return gradient - torch.autograd.grad(value, here, u, retain_graph=True)[0]

        return fixed_point(step, gradient, slope)

    z = shift - f(z.detach())
    if z.requires_grad:
        z.register_hook(solved)
    return z
