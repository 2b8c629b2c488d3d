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

CLOCK = 0.36
"""The clock of all paths but the straight one, see `balanced_shares`."""


def balanced_shares(count: int, first: float, clock: float = 1.0, power: float = 1.0) -> list[float]:
    """Noise levels s = sigma/(sigma + alpha), the straight path's own time, even in u = (1 - s)^clock:

        1 - u_i = (1 - u_0) (1 - i/count)^power,    i = 0, ..., count - 1.

    The last step goes from s_{count-1} to clean data, s = 0: a few steps are not spent on noise that can't be seen.
    With clock = 1 they are even in s. Networks on diffusion paths mostly predict eps, and from an error in eps x_0 gets
    sigma/alpha = s/(1 - s) times as much: long steps from nearly pure noise, s near 1, would carry it on enlarged. A
    smaller clock has shorter ones there; 1/3 makes them nearly even in the time of DDPM's table, which those networks
    are trained on.
    """
    start = (1 - first) ** clock
    return [1 - (1 - (1 - start) * (1 - i / count) ** power) ** (1 / clock) for i in range(count)]


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
    "lambda": uniform,
    "karras": karras,
    "beta": beta,
}
