"""Grids of times from noise to data, given as positions in the table of training steps.

A position u in [0, T - 1] is the time t = (u + 1)/T. On a discrete path positions are whole: the network is asked
about steps that it has seen, and the path's scales are those of the same steps. Continuous paths use the same grids
without rounding. The three spacings are those of Lin et al. 2024, https://arxiv.org/abs/2305.08891 (table 2); with
counts that do not divide T each is spread evenly, so that more steps are never fewer noise levels.
"""

import math
from collections.abc import Callable

ROUNDING: dict[str, Callable[[float], int]] = {
    "linspace": round,
    "leading": lambda value: math.floor(value + 1e-9),  # a unit in the last place may be missing
    "trailing": lambda value: round(value + 1) - 1,
}
"""How each spacing makes a position whole, ties included, so that grids agree with diffusers'."""


def spaced(spacing: str, count: int, last: float, offset: int = 0, ends: int = 0) -> list[float]:
    """`count` falling positions in [0, last].

    Args:
        spacing: `linspace`: from `last` to 0; `leading`: from last - (last + 1)/count to 0; `trailing`: from `last`
            to (last + 1)/count - 1.
        count: how many.
        last: the noisiest position allowed.
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


def whole(positions: list[float], last: int, rounding: Callable[[float], int] = round) -> list[int]:
    """Distinct whole positions near `positions`, strictly falling, in [0, last]."""
    values = [min(max(rounding(value), 0), last) for value in positions]
    for i in range(1, len(values)):  # apart from above ...
        values[i] = min(values[i], values[i - 1] - 1)
    floor = 0
    for i in reversed(range(len(values))):  # ... and back up where that went below 0
        values[i] = max(values[i], floor)
        floor = values[i] + 1
    return values


# --- noise levels: falling noise, as rising lambda = log(alpha / sigma) -----------------------------------------------

POWER = 1.25


def balanced(count: int, start: float, end: float) -> list[float]:
    """s_i = s(start) (1 - i/count)^1.25 in s = sigma/(sigma + alpha), the straight path's own time.

    The last step goes from s_{count-1} to clean data, s = 0: a few steps are not spent on noise that can't be seen.
    `end`, which is not reached by few steps, is kept by `SolverMixin.at_levels`.
    """
    return [share_to_lambda(s) for s in power_shares(count, lambda_to_share(start), POWER)]


def power_shares(count: int, first: float, power: float) -> list[float]:
    """first (1 - i/count)^power for i = 0, ..., count - 1."""
    return [first * (1 - i / count) ** power for i in range(count)]


def lambda_to_share(lam: float) -> float:
    """s = sigma/(sigma + alpha) where log(alpha/sigma) = lam."""
    return 1 / (1 + math.exp(min(lam, 700.0)))


def share_to_lambda(s: float) -> float:
    """The inverse of `lambda_to_share`."""
    return math.log1p(-s) - math.log(s) if s < 1 else -math.inf


def uniform(count: int, start: float, end: float) -> list[float]:
    """Uniform in lambda (Lu et al. 2022, https://arxiv.org/abs/2206.00927)."""
    return [start + (end - start) * i / max(count - 1, 1) for i in range(count)]


def karras(count: int, start: float, end: float, rho: float = 7.0) -> list[float]:
    """Uniform in (sigma/alpha)^{1/rho} (Karras et al. 2022, https://arxiv.org/abs/2206.00364, eq. 5)."""
    high, low = math.exp(-start / rho), math.exp(-end / rho)
    return [-rho * math.log(high + (low - high) * i / max(count - 1, 1)) for i in range(count)]


def beta(count: int, start: float, end: float) -> list[float]:
    """Quantiles of Beta(0.6, 0.6) in sigma/alpha: dense at both ends (Lee et al. 2024, https://arxiv.org/abs/2407.12173)."""
    from scipy.stats import beta as distribution

    high, low = math.exp(-start), math.exp(-end)
    levels = distribution.ppf([1 - i / max(count - 1, 1) for i in range(count)], 0.6, 0.6)
    return [-math.log(low + float(level) * (high - low)) for level in levels]


LEVELS: dict[str, Callable[[int, float, float], list[float]]] = {
    "balanced": balanced,
    "lambda": uniform,
    "karras": karras,
    "beta": beta,
}
