"""Exponential integrators of the diffusion ODE and SDE in lambda = log(alpha / sigma).

With h = lambda_t - lambda_s > 0 and v in [0, 1], the exact solution between two times has one of four forms

    x_t = keep x_s + gain int_0^1 D(lambda(v)) dv + noise z,    lambda(v) = lambda_t - log(1 + v (e^{rate h} - 1))/rate

with D = x_0 or eps. (The exponential is substituted for the variable of integration.) A solver is a rule that
approximates the integral of D from a few values of D. Lu et al. 2022, https://arxiv.org/abs/2206.00927 (noise form) and
https://arxiv.org/abs/2211.01095 (data form, SDE).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .table import Scales


class Form(NamedTuple):
    """The constants of the exact solution between two times: everything except the integral of D."""

    keep: float
    gain: float
    rate: float
    noise: float
    h: float


def data_ode(now: Scales, then: Scales) -> Form:
    """Data form of the ODE, D = x_0: keep = sigma_t/sigma_s, gain = alpha_t (1 - e^{-h})."""
    keep = then.sigma / now.sigma
    return Form(keep, then.alpha - keep * now.alpha, -1.0, 0.0, then.lam - now.lam)


def data_sde(now: Scales, then: Scales) -> Form:
    """Data form of the SDE, D = x_0: keep = sigma_t/sigma_s e^{-h}, gain = alpha_t (1 - e^{-2h})."""
    h = then.lam - now.lam
    shrink, decay = then.sigma / now.sigma, math.exp(-h)
    noise = then.sigma * math.sqrt(-math.expm1(-2 * h))
    return Form(shrink * decay, then.alpha - shrink * decay * now.alpha, -2.0, noise, h)


def noise_ode(now: Scales, then: Scales) -> Form:
    """Noise form of the ODE, D = eps: keep = alpha_t/alpha_s, gain = -sigma_t (e^h - 1)."""
    keep = then.alpha / now.alpha
    return Form(keep, then.sigma - keep * now.sigma, 1.0, 0.0, then.lam - now.lam)


def noise_sde(now: Scales, then: Scales) -> Form:
    """Noise form of the SDE, D = eps: keep = alpha_t/alpha_s, gain = -2 sigma_t (e^h - 1).

    A step to clean data returns the estimate of x_0, as in the ODE: its noise would stay in the data.
    """
    if then.sigma == 0:
        return noise_ode(now, then)
    keep = then.alpha / now.alpha
    noise = math.sqrt(max((keep * now.sigma) ** 2 - then.sigma**2, 0.0))
    return Form(keep, 2 * (then.sigma - keep * now.sigma), 1.0, noise, then.lam - now.lam)


FORMS: dict[str, Callable[[Scales, Scales], Form]] = {
    "dpmsolver++": data_ode,
    "sde-dpmsolver++": data_sde,
    "dpmsolver": noise_ode,
    "sde-dpmsolver": noise_sde,
}
"""Algorithm type -> function that computes its `Form` from the scales at the start and at the end of a step."""


def phi(k: int, z: float) -> float:
    """Compute phi_k(z) = int_0^1 e^{z (1 - u)} u^{k-1}/(k-1)! du, for small z by its series: the recurrence cancels."""
    if abs(z) < 1:
        term, total = 1 / math.factorial(k), 0.0
        for m in range(20):
            total += term
            term *= z / (m + k + 1)
        return total
    value = math.exp(z)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def multistep(form: Form, points: Sequence[Scales], order: int, solver_type: str) -> tuple[float, ...]:
    """Compute the weights of D at the last `order` times, as published by the authors.

    The published third-order rule, `midpoint` here, gives the second difference half the weight that it has in the
    integral of a parabola, and has convergence order 2. `heun` gives it the full weight and has order 3.

    Args:
        form: the exact solution of this step.
        points: the path's scales at the current time and the times before it, newest first.
        order: 1, 2 or 3.
        solver_type: `midpoint` or `heun`.

    Returns:
        One weight for each of the last `order` values of D, newest first.
    """
    if order == 1 or form.h == 0:
        return (form.gain,)
    z = form.rate * form.h
    r_0 = (points[0].lam - points[1].lam) / form.h
    exact = solver_type == "heun" or order == 3
    slope = form.gain * (phi(2, z) / phi(1, z) if exact else 0.5)
    if order == 2:
        return (form.gain + slope / r_0, -slope / r_0)
    r_1 = (points[1].lam - points[2].lam) / form.h
    bend = form.gain * phi(3, z) / phi(1, z) / (r_0 + r_1) * (2 if solver_type == "heun" else 1)
    mix = slope * r_0 / (r_0 + r_1)
    near, far = slope + mix + bend, mix + bend  # weights of (D_1 - D_2) / r_0 and (D_2 - D_3) / r_1
    return (form.gain + near / r_0, -near / r_0 - far / r_1, far / r_1)


def singlestep(form: Form, points: Sequence[Scales], order: int, solver_type: str) -> tuple[float, ...]:
    """Compute the weights of D at the inner points and at the start of one step, newest first.

    Args:
        form: the exact solution of this step.
        points: the path's scales, newest first; the step starts at points[order - 1].
        order: 1, 2 or 3.
        solver_type: `midpoint` or `heun`.
    """
    if order == 1:
        return (form.gain,)
    z, start = form.rate * form.h, points[order - 1]
    slope = form.gain * (phi(2, z) / phi(1, z) if solver_type == "heun" or order == 3 else 0.5)
    r_1 = (points[order - 2].lam - start.lam) / form.h
    if order == 2:
        return (slope / r_1, form.gain - slope / r_1)
    r_0 = (points[0].lam - start.lam) / form.h
    if solver_type == "midpoint":
        return (slope / r_0, 0.0, form.gain - slope / r_0)
    bend = form.gain * phi(3, z) / phi(1, z) * 2
    newest, middle = (bend - slope * r_1) / (r_0 - r_1) / r_0, (slope * r_0 - bend) / (r_0 - r_1) / r_1
    return (newest, middle, form.gain - newest - middle)
