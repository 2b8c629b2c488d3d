"""The rows of a solver, and their ingredients: a path's scales, the posterior, the coefficients of the prediction."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from ..distributions.posterior import posterior_of
from ..paths import PREDICTIONS, Path, coefficients

STATES = {**PREDICTIONS, "velocity": lambda point: (-torch.ones_like(point.alpha), torch.ones_like(point.alpha))}
"""Coefficients (c_x, c_e) of the states that a method may use: all prediction kinds, and the velocity eps - x_0."""


NO_SIGNAL = 1e-12
"""A smaller alpha means that nothing is left of the data."""


@dataclass
class SchedulerOutput(BaseOutput):
    """Output of `step`.

    Args:
        prev_sample (B, ...): the sample at the next, less noisy time.
        pred_original_sample (B, ...) or None: the estimate of x_0, if the method computes it.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class Combination(NamedTuple):
    """The linear combination keep * base + sum_j gains[j] * D_j, where D_1 is the newest state."""

    keep: float
    gains: tuple[float, ...] = ()


class SolverRow(NamedTuple):
    """One network evaluation and the linear combinations that follow it.

    Args:
        t: the time that the network is given.
        next: the next sample, as a combination of the base and the states.
        anchor: the base, as a combination of the previous base and the states; None: the base is the sample itself.
        noise: standard deviation of the noise that is added to the next sample.
        sample_time: the time whose scales the sample has; None: t.
    """

    t: float
    next: Combination
    anchor: Combination | None = None
    noise: float = 0.0
    sample_time: float | None = None


class Stage(NamedTuple):
    """A row with the coefficients of the model state.

    Args:
        from_x, from_output: the state is from_x x + from_output output.
        row: the row.
        from_limited: if x_0 is limited first, from_x and from_output give x_0, and the state is
            from_limited[0] x + from_limited[1] x_0.
    """

    from_x: float
    from_output: float
    row: SolverRow
    from_limited: tuple[float, float] | None = None


class Scales(NamedTuple):
    """A path's scales at one time, as Python floats. lam = log(alpha / sigma) is infinite at clean data."""

    alpha: float
    sigma: float
    lam: float


def scales(path: Path, t: float) -> Scales:
    """Compute the path's scales at time t in float64. t = 0 means clean data, sigma = 0, on every path."""
    alpha, sigma, _, _ = (float(value) for value in path(torch.tensor(t, dtype=torch.float64)))
    if sigma == 0 or t <= 0:
        return Scales(alpha, 0.0, math.inf)
    return Scales(alpha, sigma, math.log(alpha) - math.log(sigma) if alpha > 0 else -math.inf)


def posterior(now: Scales, then: Scales, table: bool = False) -> tuple[float, float, float, float]:
    """Compute (keep, gain, small, large) of `hfgen.distributions.posterior.posterior_of` as Python floats:

        a = alpha_t / alpha_s,   large = sigma_t^2 - a^2 sigma_s^2,   small = sigma_s^2 large / sigma_t^2
        keep = a sigma_s^2 / sigma_t^2,   gain = alpha_s large / sigma_t^2

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 6 and 7. `large` is an upper bound on the variance of
    q(x_s | x_t).

    Args:
        now, then: the path's scales at t and at s.
        table: whether the scales come from a float32 table. `large` is then rounded as diffusers rounds it (by 5e-4 of
            a beta of 1e-4), so that trajectories agree.
    """
    large = max(posterior_of(now, then)[3], 0.0)
    if table:
        pair = torch.tensor([now.alpha, then.alpha], dtype=torch.float64).square().float()
        large = float(1 - pair[0] / pair[1])
    return posterior_of(now, then, large)


def combine(combination: Combination, base: Tensor, history: list[Tensor]) -> Tensor:
    """Compute keep * base + sum_j gains[j] * history[j], with one pass over the tensors for each term."""
    keep, gains = combination
    out = base if keep == 1.0 else base * keep
    for gain, state in zip(gains, history, strict=False):
        if gain:
            out = torch.add(out, state, alpha=gain)
    return out


def make_stages(rows: list[SolverRow], path: Path, kind: str, state: str, limited: bool) -> list[Stage]:
    """Compute for each row the coefficients that turn the network's prediction into the method's state.

    Args:
        rows: the rows of one plan.
        path: the path of the samples.
        kind: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        state: what the method uses, a row of `STATES`.
        limited: whether x_0 is computed first, to be limited, and turned into the state afterwards.
    """
    times = [row.t if row.sample_time is None else row.sample_time for row in rows]
    point = path(torch.tensor(times, dtype=torch.float64))
    weights = [value.tolist() for value in coefficients(kind, point)]
    first = "sample" if limited else state
    c_x, c_e = (value.tolist() for value in STATES[first](point))
    from_x = map(_dot, c_x, weights[0], c_e, weights[2])
    from_output = map(_dot, c_x, weights[1], c_e, weights[3])
    from_limited: Any = [None] * len(rows)
    if first != state:
        columns = (*STATES[state](point), point.alpha, point.sigma)
        numbers = zip(*(value.tolist() for value in columns), strict=True)
        from_limited = [(c_e / sigma, c_x - c_e * alpha / sigma) for c_x, c_e, alpha, sigma in numbers]
    return [Stage(*values) for values in zip(from_x, from_output, rows, from_limited, strict=True)]


def _dot(a: float, b: float, c: float, d: float) -> float:
    """Compute a b + c d, where a = 0 or c = 0 removes its term even if the other factor is infinite."""
    return (a * b if a else 0.0) + (c * d if c else 0.0)
