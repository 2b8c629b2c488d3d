"""Distributions in the plane whose density is known, also after they were mixed with noise.

Points are x_0 (N, 2) in [-1, 1] or little outside. On a path x = alpha x_0 + sigma eps has a density in closed form for
each of them, and its gradient is the score that a network is to learn.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Problem(ABC):
    """A distribution of points (N, 2)."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Points (count, 2), float32."""

    @abstractmethod
    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """log density in nats of alpha x_0 + sigma eps, eps ~ N(0, I), at x (N, 2) float64: (N,); alpha > 0."""

    def score(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The gradient of `log_prob` in x, (N, 2) float64."""
        with torch.enable_grad():
            x = x.detach().double().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(x, alpha, sigma).sum(), x)
        return gradient


class Mixture(Problem):
    """Equally likely Gaussians with centres (K, 2) and one standard deviation."""

    def __init__(self, centres: Tensor, deviation: float):
        self.centres, self.deviation = centres.double(), deviation

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        centre = self.centres[torch.randint(len(self.centres), (count,), generator=generator)].float()
        return centre + self.deviation * torch.randn(count, 2, generator=generator)

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        variance = (alpha * self.deviation) ** 2 + sigma**2
        away = (x[:, None] - alpha * self.centres).square().sum(-1)  # (N, K)
        return (-away / (2 * variance)).logsumexp(1) - math.log(2 * math.pi * variance * len(self.centres))


class Squares(Problem):
    """Uniform on equal squares with lower left corners (K, 2)."""

    def __init__(self, corners: Tensor, side: float):
        self.corners, self.side = corners.double(), side

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        corner = self.corners[torch.randint(len(self.corners), (count,), generator=generator)].float()
        return corner + self.side * torch.rand(count, 2, generator=generator)

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """On each axis (Phi(a) - Phi(b)) / (alpha side), taken in the lower tail, where it does not cancel."""
        a = (x[:, None] - alpha * self.corners) / sigma  # (N, K, 2)
        b = a - alpha * self.side / sigma
        high, low = (torch.special.log_ndtr(end) for end in (torch.minimum(a, -b), torch.minimum(b, -a)))
        each = high + (-torch.expm1((low - high).clamp(max=-1e-12))).log() - math.log(alpha * self.side)
        return each.sum(-1).logsumexp(1) - math.log(len(self.corners))


def _eight_gaussians() -> Problem:
    angles = torch.arange(8) * (math.pi / 4)
    return Mixture(0.8 * torch.stack([angles.cos(), angles.sin()], 1), 0.06)


def _moons() -> Problem:
    """Two half circles, each of 60 Gaussians that lie closer than they are wide."""
    angles = (torch.arange(60) + 0.5) * (math.pi / 60)
    upper = torch.stack([angles.cos(), angles.sin()], 1)
    lower = torch.stack([1 - angles.cos(), 0.5 - angles.sin()], 1)
    return Mixture(0.65 * (torch.cat([upper, lower]) - torch.tensor([0.5, 0.25])), 0.045)


def _checkerboard() -> Problem:
    fields = torch.tensor([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0])
    return Squares(fields / 2 - 1, 0.5)


PROBLEMS = {"eight_gaussians": _eight_gaussians, "moons": _moons, "checkerboard": _checkerboard}
"""What `--data` may be."""


def problem(name: str) -> Problem:
    """The distribution of this name. Raises ValueError naming those there are."""
    if name not in PROBLEMS:
        raise ValueError(f"--data {name!r} is not known. Choose one of: {', '.join(PROBLEMS)}.")
    return PROBLEMS[name]()
