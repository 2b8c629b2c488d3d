"""Perfect networks that also know the variance of a reverse step, for the law of exchange, and the cases with them."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin

from hfgen.paths import coefficients, path_from_config
from hfgen.registry import PATHS
from hfgen.schedulers.configuration import HEADS
from hfgen.schedulers.reverse_variance import measurement_times
from tests.helpers.gaussian import F64, Gaussian, IdealDenoiser, ideal_pipeline

VARIANCES = ("learned", "learned_range", "analytic", *HEADS)
"""What a network, a table or a head may say of variances."""

SPACINGS = ("trailing", "leading", "linspace")


def open_variance(path: Any, t: float, std: float) -> float:
    """Return Var[x_0 | x_t] of data N(mean, std^2): the precisions of the data and of the noise add."""
    point = path(torch.tensor(t, dtype=F64))
    return float(1 / (1 / std**2 + (point.alpha / point.sigma) ** 2))


def step_variances(path: Any, t: float, std: float) -> tuple[float, float, float]:
    """Return the variances of q(x_s | x_t, x_0), of q(x_t | x_s) and of q(x_s | x_t) for s = t - 1/T > 0, by adding
    precisions."""
    (a_t, sigma_t), (a_s, sigma_s) = (
        (float(v) for v in path(torch.tensor(time, dtype=F64))[:2])
        for time in (t, max(t - 1 / path.num_train_timesteps, 1e-12))
    )
    gain = a_t / a_s
    large = sigma_t**2 - (gain * sigma_s) ** 2
    known = gain**2 / large  # the precision of x_s that x_t gives
    return 1 / (1 / max(sigma_s**2, 1e-12) + known), large, 1 / (1 / ((a_s * std) ** 2 + sigma_s**2) + known)


class KnowingDenoiser(IdealDenoiser):
    """A perfect network with a second half of channels: the variance of a training step, or its place in the range."""

    def forward(self, sample, timestep, class_labels=None):
        prediction, t = super().forward(sample, timestep, class_labels).sample, float(self.path.time_of(timestep[0]))
        small, large, true = step_variances(self.path, t, self.problems[0].std)
        raw = true
        if self.variance == "learned_range":
            width = math.log(large) - math.log(small)
            raw = 2 * (math.log(true) - math.log(small)) / width - 1 if abs(width) > 1e-9 else 0.0
        return SimpleNamespace(sample=torch.cat([prediction, torch.full_like(prediction, raw)], 1))


class IdealHead(ModelMixin, ConfigMixin):
    """A perfect variance head: the mean squared error of the prediction (`npr`, `ocm`), or the mean square of what is
    predicted (`sn`)."""

    def __init__(self, problem: Gaussian, path: str, kind: str, variance: str):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.problem, self.path, self.kind, self.variance = problem, path_from_config(PATHS[path]), kind, variance

    def forward(self, sample, prediction, timestep):
        t = self.path.time_of(timestep.double()[0])
        factor = float(coefficients(self.kind, self.path(t)).x_from_output) ** 2
        raw = torch.full_like(prediction, open_variance(self.path, float(t), self.problem.std) / max(factor, 1e-30))
        return SimpleNamespace(sample=raw + prediction.square() if self.variance == "sn" else raw)


def variance_table(path: str, kind: str, std: float) -> list[list[float]]:
    """Return the table that `hfgen calibrate` would measure on Gaussian data."""
    path, rows = path_from_config(PATHS[path]), []
    for t in measurement_times(path, kind, 64):
        point = path(torch.tensor(t, dtype=F64))
        rows.append([float(point.sigma / (point.sigma + point.alpha)), open_variance(path, t, std)])
    return rows


def knowing_pipeline(problem: Gaussian, path: str, kind: str, side: int, variance: str) -> Any:
    """Return a pipeline whose network, table or head knows the variances, as its scheduler states."""
    facts = {"variance_type": variance}
    if variance == "analytic":
        facts["data_variances"] = variance_table(path, kind, problem.std)
    pipeline = ideal_pipeline(problem, path, kind, side, **facts)
    if variance in ("learned", "learned_range"):
        network = KnowingDenoiser(1, side).configure([problem], path, kind)
        network.variance = variance
        pipeline.register_modules(denoiser=network)
    if variance in HEADS:
        pipeline.register_modules(variance_head=IdealHead(problem, path, kind, variance))
    return pipeline
