"""Distributions of points in the plane, with densities in closed form at every noise level.

Points x_0 (N, 2) lie in [-1, 1] or little outside. The density of x = alpha x_0 + sigma eps has a closed form, and the
gradient of its logarithm is the score that a network should learn.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Problem(ABC):
    """A distribution of points (N, 2)."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw points (count, 2), float32."""

    @abstractmethod
    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return the log density (N,), in nats, of alpha x_0 + sigma eps, eps ~ N(0, I), at x (N, 2) float64.

        alpha must be positive.
        """

    def score(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return the gradient of `log_prob` with respect to x, (N, 2) float64."""
        with torch.enable_grad():
            x = x.detach().double().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(x, alpha, sigma).sum(), x)
        return gradient


class Mixture(Problem):
    """A mixture of K Gaussians with equal weights: centres (K, 2), one standard deviation."""

    def __init__(self, centres: Tensor, deviation: float):
        self.centres, self.deviation = centres.double(), deviation

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        centre = self.centres[torch.randint(len(self.centres), (count,), generator=generator)].float()
        return centre + self.deviation * torch.randn(count, 2, generator=generator)

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        variance = (alpha * self.deviation) ** 2 + sigma**2
        squares = (x[:, None] - alpha * self.centres).square().sum(-1)  # (N, K)
        return (-squares / (2 * variance)).logsumexp(1) - math.log(2 * math.pi * variance * len(self.centres))


class Squares(Problem):
    """The uniform distribution on K squares: lower left corners (K, 2), one side."""

    def __init__(self, corners: Tensor, side: float):
        self.corners, self.side = corners.double(), side

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        corner = self.corners[torch.randint(len(self.corners), (count,), generator=generator)].float()
        return corner + self.side * torch.rand(count, 2, generator=generator)

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """On each axis (Phi(a) - Phi(b)) / (alpha side), computed in the lower tail, where the digits do not cancel."""
        a = (x[:, None] - alpha * self.corners) / sigma  # (N, K, 2)
        b = a - alpha * self.side / sigma
        high, low = (torch.special.log_ndtr(end) for end in (torch.minimum(a, -b), torch.minimum(b, -a)))
        axes = high + (-torch.expm1((low - high).clamp(max=-1e-12))).log() - math.log(alpha * self.side)
        return axes.sum(-1).logsumexp(1) - math.log(len(self.corners))


def _eight_gaussians() -> Problem:
    """Return eight Gaussians on a circle of radius 0.8."""
    angles = torch.arange(8) * (math.pi / 4)
    return Mixture(0.8 * torch.stack([angles.cos(), angles.sin()], 1), 0.06)


def _moons() -> Problem:
    """Return two half circles of 60 Gaussians each, whose distances are smaller than their deviation."""
    angles = (torch.arange(60) + 0.5) * (math.pi / 60)
    upper = torch.stack([angles.cos(), angles.sin()], 1)
    lower = torch.stack([1 - angles.cos(), 0.5 - angles.sin()], 1)
    return Mixture(0.65 * (torch.cat([upper, lower]) - torch.tensor([0.5, 0.25])), 0.045)


def _checkerboard() -> Problem:
    """Return the eight fields of one colour of a board with four fields a side."""
    fields = torch.tensor([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0])
    return Squares(fields / 2 - 1, 0.5)


PROBLEMS = {"eight_gaussians": _eight_gaussians, "moons": _moons, "checkerboard": _checkerboard}
"""Name in `--dataset` -> function that builds the distribution."""


def problem(name: str) -> Problem:
    """Return a distribution by its name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PROBLEMS:
        raise ValueError(f"--dataset {name!r} is not known. Choose one of: {', '.join(PROBLEMS)}.")
    return PROBLEMS[name]()
