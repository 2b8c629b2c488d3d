"""The rows that a solver is made of, and what makes them: a path's scales, the posterior, the network's weights."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..paths import PREDICTIONS, Path, coefficients

STATES = {**PREDICTIONS, "velocity": lambda point: (-torch.ones_like(point.alpha), torch.ones_like(point.alpha))}
"""Rows (c_x, c_e) of the states a method may work with: the kinds of prediction, and eps - x_0."""


class Linear(NamedTuple):
    """keep * base + sum_j gains[j] * D_j, newest state first."""

    keep: float
    gains: tuple[float, ...] = ()


class Row(NamedTuple):
    """One network evaluation at time t and the linear combinations that follow from it."""

    t: float
    next: Linear
    anchor: Linear | None = None  # None: step from the sample itself
    noise: float = 0.0
    at: float | None = None  # the time whose scales the sample has, where the network is told another one


class Stage(NamedTuple):
    """A row made ready: the state is from_x x + from_output output."""

    from_x: float
    from_output: float
    row: Row
    back: tuple[float, float] | None = None  # a limited x_0 is turned into the state back[0] x + back[1] x_0


class Scales(NamedTuple):
    """A path's scales at one time, as Python floats. lam = log(alpha / sigma), infinite at the data end."""

    alpha: float
    sigma: float
    lam: float


def scales(path: Path, t: float) -> Scales:
    """The path at time t in float64. t = 0 stands for clean data, sigma = 0, also on paths that only come close."""
    alpha, sigma, _, _ = (float(value) for value in path(torch.tensor(t, dtype=torch.float64)))
    if sigma == 0 or t <= 0:
        return Scales(alpha, 0.0, math.inf)
    return Scales(alpha, sigma, math.log(alpha) - math.log(sigma) if alpha > 0 else -math.inf)


def posterior(now: Scales, then: Scales, table: bool = False) -> tuple[float, float, float, float]:
    """q(x_s | x_t, x_0) = N(keep x_t + gain x_0, small), for t = `now` and s = `then` < t, and q(x_s | x_t)'s bound.

        a = alpha_t / alpha_s,   large = sigma_t^2 - a^2 sigma_s^2,   small = sigma_s^2 large / sigma_t^2
        keep = a sigma_s^2 / sigma_t^2,   gain = alpha_s large / sigma_t^2

    Returns (keep, gain, small, large); on a VP path `large` is DDPM's beta. For entries of a float32 `table` it is
    rounded as diffusers rounds it, 5e-4 of a beta of 1e-4, so that trajectories agree. Ho et al. 2020,
    https://arxiv.org/abs/2006.11239, eq. 6 and 7; for any path Kingma et al. 2021, https://arxiv.org/abs/2107.00630.
    """
    ratio, a = (then.sigma / now.sigma) ** 2, now.alpha / then.alpha
    large = max(now.sigma**2 - (a * then.sigma) ** 2, 0.0)
    if table:
        pair = torch.tensor([now.alpha, then.alpha], dtype=torch.float64).square().float()
        large = float(1 - pair[0] / pair[1])
    return a * ratio, then.alpha * large / now.sigma**2, ratio * large, large


def combine(linear: Linear, base: Tensor, history: list[Tensor]) -> Tensor:
    """keep * base + sum_j gains[j] * history[j], in as few passes as there are terms."""
    keep, gains = linear
    out = base if keep == 1.0 else base * keep
    for gain, state in zip(gains, history, strict=False):
        if gain:
            out = torch.add(out, state, alpha=gain)
    return out


def ready(rows: list[Row], path: Path, kind: str, state: str, limited: bool) -> list[Stage]:
    """The rows with the weights that turn the network's prediction into the method's state.

    Args:
        rows: of one plan.
        path: where the sample is.
        kind: what the network predicts.
        state: what the method works with, a row of `STATES`.
        limited: x_0 is made first, to be limited, and turned into the state afterwards.
    """
    point = path(torch.tensor([row.t if row.at is None else row.at for row in rows], dtype=torch.float64))
    weights = [value.tolist() for value in coefficients(kind, point)]
    first = "sample" if limited else state
    c_x, c_e = (value.tolist() for value in STATES[first](point))
    from_x = map(_dot, c_x, weights[0], c_e, weights[2])
    from_output = map(_dot, c_x, weights[1], c_e, weights[3])
    back: Any = [None] * len(rows)
    if first != state:
        rows_of = STATES[state](point)
        scale = zip(*(value.tolist() for value in (*rows_of, point.alpha, point.sigma)), strict=True)
        back = [(c_e / sigma, c_x - c_e * alpha / sigma) for c_x, c_e, alpha, sigma in scale]
    return [Stage(*values) for values in zip(from_x, from_output, rows, back, strict=True)]


def _dot(a: float, b: float, c: float, d: float) -> float:
    """a b + c d, where a zero switches off even an infinite partner."""
    return (a * b if a else 0.0) + (c * d if c else 0.0)
