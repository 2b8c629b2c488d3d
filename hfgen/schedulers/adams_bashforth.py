"""Adams methods in straight coordinates: one solver for diffusion and for flow matching.

Every path becomes the straight one by a change of coordinates. With rho = alpha + sigma and s = sigma/rho in [0, 1],

    y = x_t / rho = (1 - s) x_0 + s eps,    dy/ds = eps - x_0 =: D        (the probability-flow ODE)

A linear multistep method in s therefore applies to any path. Clean data is s = 0, and no coefficient is infinite.
Euler's method is DDIM. The velocity D is a smooth function of s up to s = 0. These rules therefore need fewer
evaluations than rules in lambda = log(alpha / sigma), whose last step is infinitely long.

Adams methods: Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, 1993, section III.1 and III.5
(variable steps); a corrector without a second evaluation: Zhao et al. 2023, https://arxiv.org/abs/2302.04867. The
change of coordinates: Lipman et al. 2023, https://arxiv.org/abs/2210.02747; Kingma & Gao 2023,
https://arxiv.org/abs/2303.00848.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .table import Combination, Scales, SolverRow

UNCORRECTED_STEPS = 12
"""Number of steps at the start that are not corrected on paths whose clock is not 1."""

_GAUSS_RULE = tuple(0.5 * (np.polynomial.legendre.leggauss(16) + np.array([[1.0], [0.0]])))
"""Nodes and weights of Gauss' rule on [0, 1]."""


def straight_coordinates(point: Scales) -> tuple[float, float]:
    """Compute (s, rho) of a point of a path."""
    rho = point.alpha + point.sigma
    return point.sigma / rho, rho


def integral_weights(nodes: Sequence[float], start: float, end: float, clock: float = 1.0) -> list[float]:
    """Compute the weights w_j with which sum_j w_j D(nodes[j]) approximates the integral of D over s, start to end.

    They integrate the polynomial in u = (1 - s)^clock through the nodes, by Gauss' rule, which is exact for clock = 1.
    """
    if start == end:
        return [0.0] * len(nodes)
    first, last, *others = ((1 - np.array([start, end, *nodes])) ** clock).tolist()
    u = first + (last - first) * _GAUSS_RULE[0]
    scale = (first - last) * _GAUSS_RULE[1] * u ** (1 / clock - 1) / clock  # ds = -u^(1/clock - 1) / clock du
    basis = ([(u - z) / (node - z) for z in others if z != node] for node in others)
    return [float(np.prod([scale, *factors], axis=0).sum()) for factors in basis]


def adams_step(now: Scales, then: Scales, nodes: Sequence[Scales], clock: float = 1.0) -> Combination:
    """Compute x at `then` as a combination of x at `now` and D at `nodes`.

    The step is implicit if `then` is among the nodes, and explicit otherwise.
    """
    (start, rho), (end, rho_then) = straight_coordinates(now), straight_coordinates(then)
    weights = integral_weights([straight_coordinates(node)[0] for node in nodes], start, end, clock)
    return Combination(rho_then / rho, tuple(rho_then * weight for weight in weights))


def adams_rows(
    times: Sequence[float], points: Sequence[Scales], predictor: int, corrector: int = 0, clock: float = 1.0
) -> list[SolverRow]:
    """Make the rows of an Adams-Bashforth predictor and an Adams-Moulton corrector, with one evaluation per step.

    A corrector of order q >= 2 recomputes the end of a step once the network has been evaluated there. A predictor of
    order q - 1 and a corrector of order q make a method of order q. The last step has no corrector, and it may be
    longer than the steps before it. If there is a corrector, the predictor of the last step has order 2 or more. With a
    clock other than 1 the first `UNCORRECTED_STEPS` are not corrected: correcting them improves the samples of a
    perfect network, but not those of a trained one.

    Args:
        times: the grid, falling.
        points: the path's scales at these times.
        predictor: order of the predictor, at least 1.
        corrector: order of the corrector; 0: none.
        clock: exponent of the variable u = (1 - s)^clock in which D is interpolated.
    """
    last = len(points) - 2
    corrected_from = 1 if clock == 1 else UNCORRECTED_STEPS
    rows = []
    for n, (now, then) in enumerate(pairwise(points)):
        anchor = None
        if n >= corrected_from and corrector:
            anchor = adams_step(points[n - 1], now, points[max(n + 1 - corrector, 0) : n + 1][::-1], clock)
        explicit = max(predictor, 2) if corrector and (n == last or n < corrected_from) else predictor
        ahead = adams_step(now, then, points[max(n + 1 - explicit, 0) : n + 1][::-1], clock)
        rows.append(SolverRow(times[n], ahead, anchor))
    return rows
