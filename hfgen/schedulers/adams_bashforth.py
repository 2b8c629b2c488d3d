"""Adams methods in straight coordinates: one solver for diffusion and for flow matching.

Every path is the straight one in other coordinates. With rho = alpha + sigma and s = sigma/rho in [0, 1],

    y = x_t / rho = (1 - s) x_0 + s eps,    dy/ds = eps - x_0 =: D        (the probability-flow ODE)

so a linear multistep method in s is one on any path, clean data is s = 0 and no coefficient is infinite anywhere.
Euler is DDIM. In s the velocity D is smooth to the very end, which is why these rules need fewer evaluations than
those in lambda = log(alpha / sigma), whose last step is infinitely long.

Adams methods: Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, 1993, section III.1 and III.5
(variable steps); a corrector without a second evaluation: Zhao et al. 2023, https://arxiv.org/abs/2302.04867. The
change of coordinates: Lipman et al. 2023, https://arxiv.org/abs/2210.02747; Kingma & Gao 2023,
https://arxiv.org/abs/2303.00848.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .table import Linear, Row, Scales

UNCORRECTED = 12
"""How many steps are not corrected on paths whose clock is not 1."""

_GAUSS = tuple(0.5 * (np.polynomial.legendre.leggauss(16) + np.array([[1.0], [0.0]])))
"""Nodes and weights of Gauss' rule on [0, 1]."""


def straight(point: Scales) -> tuple[float, float]:
    """(s, rho) of a point of a path."""
    rho = point.alpha + point.sigma
    return point.sigma / rho, rho


def integral_weights(nodes: Sequence[float], start: float, end: float, clock: float = 1.0) -> list[float]:
    """Weights w_j with sum_j w_j D(nodes[j]) = the integral over s, from start to end, of the polynomial in
    u = (1 - s)^clock through them. By Gauss' rule, which is exact for clock = 1.
    """
    if start == end:
        return [0.0] * len(nodes)
    first, last, *others = ((1 - np.array([start, end, *nodes])) ** clock).tolist()
    u = first + (last - first) * _GAUSS[0]
    scale = (first - last) * _GAUSS[1] * u ** (1 / clock - 1) / clock  # ds = -u^(1/clock - 1) / clock du
    basis = ([(u - z) / (node - z) for z in others if z != node] for node in others)
    return [float(np.prod([scale, *factors], axis=0).sum()) for factors in basis]


def advance(now: Scales, then: Scales, nodes: Sequence[Scales], clock: float = 1.0) -> Linear:
    """x at `then` from x at `now` and D at `nodes`; explicit, or implicit with `then` among the nodes."""
    (start, rho), (end, rho_then) = straight(now), straight(then)
    weights = integral_weights([straight(node)[0] for node in nodes], start, end, clock)
    return Linear(rho_then / rho, tuple(rho_then * weight for weight in weights))


def adams_rows(
    times: Sequence[float], points: Sequence[Scales], predictor: int, corrector: int = 0, clock: float = 1.0
) -> list[Row]:
    """One evaluation a step: an Adams-Bashforth predictor and, if not 0, an Adams-Moulton corrector.

    The corrector of order q >= 2 recomputes where a step has led with what the network then said there. A predictor of
    order q - 1 and a corrector of order q make a method of order q. The last step, which nothing corrects and which
    may be longer than those before it, has a predictor of order 2 at least if there is a corrector. With a clock other
    than 1 the first steps are not corrected: it would make a perfect network's samples better and a real one's worse.
    """
    last = len(points) - 2
    corrected_from = 1 if clock == 1 else UNCORRECTED
    rows = []
    for n, (now, then) in enumerate(pairwise(points)):
        anchor = None
        if n >= corrected_from and corrector:
            anchor = advance(points[n - 1], now, points[max(n + 1 - corrector, 0) : n + 1][::-1], clock)
        explicit = max(predictor, 2) if corrector and (n == last or n < corrected_from) else predictor
        ahead = advance(now, then, points[max(n + 1 - explicit, 0) : n + 1][::-1], clock)
        rows.append(Row(times[n], ahead, anchor))
    return rows
