"""Problems whose score is known, to measure solvers on: a Gaussian, with its exact flow, and a mixture."""

import math

import torch

from hfgen import paths

F64 = torch.float64


class Gaussian:
    """x_0 ~ N(mean, std^2). E[x_0 | x_t] is linear in x_t, and the probability flow keeps the standardised sample."""

    def __init__(self, mean: float = 0.6, std: float = 0.4):
        self.mean, self.std = mean, std

    def x_0(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def at(self, z: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """The point of z's trajectory where the path has these scales."""
        return alpha * self.mean + z * math.sqrt(alpha**2 * self.std**2 + sigma**2)


class Mixture:
    """Five Gaussians of standard deviation `std` in `dim` dimensions."""

    def __init__(self, dim: int = 4, std: float = 0.25, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.means = torch.randn(5, dim, generator=generator, dtype=F64) * 0.6
        self.std = std

    def x_0(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        variance = alpha**2 * self.std**2 + sigma**2
        away = x[..., None, :] - alpha * self.means  # (..., K, dim)
        share = torch.softmax(-away.square().sum(-1) / (2 * variance), -1)
        centre = share @ self.means
        return centre + alpha * self.std**2 / variance * (x - alpha * centre)


def network(problem, scheduler, kind: str):
    """What a perfect network of this kind says: (x, t) -> output."""

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        point = scheduler.path(torch.tensor(t, dtype=F64))
        alpha, sigma = float(point.alpha), float(point.sigma)
        x_0 = problem.x_0(x, alpha, sigma)
        eps = (x - alpha * x_0) / sigma
        c_x, c_e = (float(value) for value in paths.prediction_row(kind)(point))
        return (c_x * x_0 if c_x else 0.0) + (c_e * eps if c_e else 0.0)

    return predict


def run(scheduler, problem, x: torch.Tensor, **options) -> torch.Tensor:
    """The whole trajectory. The network is asked at the exact times, which `timesteps` holds in float32."""
    predict = network(problem, scheduler, scheduler.config.prediction_type)
    for timestep, stage in zip(scheduler.timesteps, scheduler._stages, strict=True):
        x = scheduler.step(predict(x, stage.row.t), timestep, x, **options).prev_sample
    return x


def start(scheduler, problem: Gaussian, z: torch.Tensor) -> torch.Tensor:
    """The sample that z's trajectory starts from."""
    point = scheduler.path(torch.tensor(scheduler._times[0], dtype=F64))
    return problem.at(z, float(point.alpha), float(point.sigma))
