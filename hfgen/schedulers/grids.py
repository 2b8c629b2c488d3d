"""Grids of times from noise to data, given as positions in the table of training steps.

A position u in [0, T - 1] means the time t = (u + 1)/T. On a discrete path positions are integers: the network is
evaluated at steps that it was trained on, and the path's scales are those of the same steps. Continuous paths use the
same grids without rounding. The three spacings are those of Lin et al. 2024, https://arxiv.org/abs/2305.08891 (table
2). If the number of steps does not divide T, positions are spread evenly, so that more steps always mean more noise
levels.
"""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..paths import Path
from ..utils.arguments import shown

ROUNDING: dict[str, Callable[[float], int]] = {
    "linspace": round,
    "leading": lambda value: math.floor(value + 1e-9),  # a unit in the last place may be missing
    "trailing": lambda value: round(value + 1) - 1,
}
"""Spacing -> function that rounds a position to an integer. Ties are rounded as diffusers rounds them."""

MOST_STEPS = 1_000_000
"""Largest number of steps: such a grid is still made in seconds."""


def whole_steps(steps: Any) -> int:
    """Return a number of steps. Raises ValueError if it is no whole number, or more than `MOST_STEPS`."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps > MOST_STEPS:
        raise ValueError(f"num_inference_steps={steps!r} must be a whole number from 1 to {MOST_STEPS}.")
    return int(steps)


def numbers_of(name: str, values: Any) -> list[float]:
    """Return a list, array or tensor of finite numbers as a list of floats. Raises ValueError for anything else.

    Args:
        name: what the caller named it.
        values: the list.
    """
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = torch.tensor([])
    if numbers.ndim != 1 or not len(numbers) or not numbers.isfinite().all():
        raise ValueError(f"{name}={shown(values)} must be a list of finite numbers.")
    return numbers.tolist()


def times_on(path: Path, timesteps: Tensor) -> Tensor:
    """Return the times t on a path, float64, of the network's time steps of any shape.

    Raises:
        ValueError: time steps beyond the path, or none; not on a GPU, where it would have to be waited for.
    """
    times = path.time_of(timesteps.to(torch.float64))
    if times.device.type == "cpu" and not ((times >= -1e-6) & (times <= 1 + 1e-6)).all():
        raise ValueError(f"timestep={shown(timesteps.tolist())} is beyond the path, whose last is {path.timestep(1)}.")
    return times


def shifted(times: list[float], shift: float | None) -> list[float]:
    """Return times of the straight path after the time shift t' = s t / (1 + (s - 1) t), which keeps 0 and 1."""
    s = shift or 1.0
    return [min(1.0, s * t / (1 + (s - 1) * t)) for t in times]  # rounding may lead past 1


def spaced_positions(spacing: str, count: int, last: float, offset: int = 0, ends: int = 0) -> list[float]:
    """Return `count` falling positions in [0, last].

    Args:
        spacing: `linspace`: from `last` to 0; `leading`: from last - (last + 1)/count to 0; `trailing`: from `last`
            to (last + 1)/count - 1.
        count: number of positions.
        last: the noisiest position.
        offset: added to the positions of `leading`.
        ends: 1 to leave out the last position 0 of `linspace` and `leading`, as multistep solvers do.

    Raises:
        ValueError: the spacing is not known.
    """
    total = count + ends
    if spacing == "linspace":
        values = [last * (1 - i / (total - 1)) if total > 1 else last for i in range(total)]
    elif spacing == "leading":
        values = [(last + 1) * (1 - (i + 1) / total) + offset for i in range(total)]
    elif spacing == "trailing":
        return [(last + 1) * (1 - i / count) - 1 for i in range(count)]
    else:
        raise ValueError(f"timestep_spacing={spacing!r} is not known. Choose one of: {', '.join(ROUNDING)}.")
    return [min(value, last) for value in values[:count]]


def integer_positions(positions: list[float], last: int, rounding: Callable[[float], int] = round) -> list[int]:
    """Round positions to integers in [0, last] and move equal ones apart: the result is strictly falling."""
    values = [min(max(rounding(value), 0), last) for value in positions]
    for i in range(1, len(values)):  # move down what is not below its predecessor ...
        values[i] = min(values[i], values[i - 1] - 1)
    floor = 0
    for i in reversed(range(len(values))):  # ... and back up what fell below 0
        values[i] = max(values[i], floor)
        floor = values[i] + 1
    return values


# --- noise levels: falling noise, as rising lambda = log(alpha / sigma) -----------------------------------------------

CLOCK = 0.36
"""The clock of all paths except the straight one, see `balanced_shares`."""


def balanced_shares(count: int, first: float, clock: float = 1.0, power: float = 1.0) -> list[float]:
    """Return noise levels s = sigma/(sigma + alpha), the time of the straight path, evenly spaced in u = (1 - s)^clock:

        1 - u_i = (1 - u_0) (1 - i/count)^power,    i = 0, ..., count - 1.

    The last step goes from s_{count-1} to clean data, s = 0, so that no steps are spent on invisible noise. With
    clock = 1 the levels are even in s. Networks on diffusion paths mostly predict eps, and an error in eps becomes an
    error in x_0 that is sigma/alpha = s/(1 - s) times as large. A long step from nearly pure noise, s near 1, would
    propagate this large error. A smaller clock makes these steps shorter; with 1/3 they are nearly even in the time of
    DDPM's table, on which those networks are trained.

    Args:
        count: number of levels.
        first: the noisiest level, s_0.
        clock: exponent of the variable u.
        power: 1 for even levels; more for a finer grid near the data.
    """
    start = (1 - first) ** clock
    return [1 - (1 - (1 - start) * (1 - i / count) ** power) ** (1 / clock) for i in range(count)]


def lambda_to_share(lam: float) -> float:
    """Compute s = sigma/(sigma + alpha) from lam = log(alpha/sigma)."""
    return 1 / (1 + math.exp(min(lam, 700.0)))


def share_to_lambda(s: float) -> float:
    """Compute lam = log(alpha/sigma) from s = sigma/(sigma + alpha), -inf for s >= 1."""
    return math.log1p(-s) - math.log(s) if s < 1 else -math.inf


def uniform(count: int, start: float, end: float) -> list[float]:
    """Return `count` values of lambda from start to end, evenly spaced (Lu et al. 2022, https://arxiv.org/abs/2206.00927)."""
    return [start + (end - start) * i / max(count - 1, 1) for i in range(count)]


def karras(count: int, start: float, end: float, rho: float = 7.0) -> list[float]:
    """Return `count` values of lambda from start to end, evenly spaced in (sigma/alpha)^{1/rho} (Karras et al. 2022,
    https://arxiv.org/abs/2206.00364, eq. 5)."""
    high, low = math.exp(-start / rho), math.exp(-end / rho)
    return [-rho * math.log(high + (low - high) * i / max(count - 1, 1)) for i in range(count)]


def beta(count: int, start: float, end: float) -> list[float]:
    """Return values of lambda at quantiles of Beta(0.6, 0.6) in sigma/alpha, dense at both ends (Lee et al. 2024,
    https://arxiv.org/abs/2407.12173)."""
    from scipy.stats import beta as distribution

    high, low = math.exp(-start), math.exp(-end)
    levels = distribution.ppf([1 - i / max(count - 1, 1) for i in range(count)], 0.6, 0.6)
    return [-math.log(low + float(level) * (high - low)) for level in levels]


LEVEL_GRIDS: dict[str, Callable[[int, float, float], list[float]]] = {
    "lambda": uniform,
    "karras": karras,
    "beta": beta,
}
"""Name -> function (count, start, end) that returns a grid of rising lambda."""
