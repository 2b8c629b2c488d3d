"""Likelihoods of a denoiser: the log-density by the probability-flow ODE, and the variational bound of DDPM.

Items are (B, ...) with dimensions of any number: d is the number of dimensions of one item.

**The ODE.** With y = x_t / (alpha + sigma) and s = sigma / (alpha + sigma), the straight coordinates of
`adams_bashforth.py`, every path is y = (1 - s) x_0 + s eps. Every denoiser is a velocity, dy/ds = D(y, s) = eps - x_0
with its estimates of both. The log-density of y at s is that of the standard normal at s = 1 plus the change of volume
on the way:

    log p_s(y) = log N(y_1; 0, I) + int_s^1 div D(y_u, u) du                                          in nats.

Networks are trained at times from t_min (the first of a table; 1e-3 on continuous paths) to t_max
(`hfgen.paths.start_time`). Above t_max the ODE keeps the estimate of x_0. The ODE thus reaches s = 1 on every path and
with every prediction kind, and p_s is a density that integrates to one.

**The end.** Below t_min the network is not used. The step from x_t to the data is a decoder with the mean and the
variance that the network states there (`end_decoder.py`), and the result is a bound:

    log p(x) >= E_q [ log p_s(y) + log p(x | y) - log q(y | x) ],    q(y | x) = N((1 - s) x, s^2 I),

by one y for each item, which is unbiased. The end is where the noise is `END_LEVELS` 8-bit levels, or t_min if the
noise is more there, so that all paths end nearly alike. A density that is uniform on all bins has 8 bits per dimension.

Sources: Chen et al. 2018, https://arxiv.org/abs/1806.07366 (change of volume along an ODE); Grathwohl et al. 2019,
https://arxiv.org/abs/1810.01367 (Hutchinson's estimate of the trace); Song et al. 2021,
https://arxiv.org/abs/2011.13456 (the probability-flow ODE); Kingma et al. 2021, https://arxiv.org/abs/2107.00630 (a
decoder at the end); Ho et al. 2020, https://arxiv.org/abs/2006.11239, and Nichol & Dhariwal 2021,
https://arxiv.org/abs/2102.09672 (the variational bound).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..paths import Path, decompose, start_time
from .end_decoder import level_log_mass, log_bin, real_log_density
from .grids import lambda_to_share, share_to_lambda
from .table import posterior, scales
from .thresholding import limiter

Predict = Callable[[Tensor, Tensor], Tensor]
"""The network as a function of x_t (B, ...), scaled by the path's input scale, and a time step (): output (B, ...)."""

EVEN_DENSITY = 8.0
"""Nodes have the density 1/s + EVEN_DENSITY in s: steps proportional to s near the data, even steps in the middle."""

END_LEVELS = 1.25
"""Noise sigma / alpha, in 8-bit levels of 1/127.5, at which the ODE ends. At DDPM's first entry it is 1.28."""


# --- the ODE ----------------------------------------------------------------------------------------------------------


class Velocity:
    """The velocity D(y, s) = eps - x_0 of a denoiser, for y (B, ...) and s from `low`, that of t_min, to 1.

    Args:
        predict: the network.
        path: the path that it was trained on.
        kind: what it predicts, a row of `hfgen.paths.PREDICTIONS`.
    """

    def __init__(self, predict: Predict, path: Path, kind: str):
        first = float(path.snap(torch.zeros((), dtype=torch.float64))) or 1e-3
        self.predict, self.path, self.kind = predict, path, kind
        self.times = first, start_time(path, kind)
        self.low, self.high = (lambda_to_share(scales(path, t).lam) for t in self.times)

    def __call__(self, y: Tensor, s: float) -> Tensor:
        x_0, eps = self.estimates(y, min(s, self.high))
        return eps - x_0 if s <= self.high else (y - x_0) / s

    def estimates(self, y: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """Compute the network's estimates of x_0 and eps, for s inside the times that it was trained at."""
        t = self.path.time(torch.tensor(2 * share_to_lambda(s), dtype=torch.float64)).clamp(*self.times)
        point = self.path(t)
        x_t = y * float(point.alpha + point.sigma)
        output = self.predict(x_t * float(self.path.input_scale(t)), self.path.timestep(t))
        return decompose(self.kind, point, x_t, output)

    def nodes(self, start: float, steps: int) -> list[float]:
        """Return values of s from `start` to 1: `steps` steps inside the times of training, one beyond if needed."""
        fine = np.geomspace(start, self.high, 4096)
        measure = np.log(fine) + EVEN_DENSITY * fine
        inner = np.interp(np.linspace(measure[0], measure[-1], steps + 1), measure, fine)[1:-1].tolist()
        return [start, *inner, self.high, *([1.0] if self.high < 1 else [])]


def unit_vectors(y: Tensor) -> Iterator[Tensor]:
    """Yield the d unit vectors of the shape of y (B, ...), the same for each item. With them the trace is exact."""
    for i in range(y[0].numel()):
        unit = torch.zeros_like(y).flatten(1)
        unit[:, i] = 1
        yield unit.view_as(y)


def diagonal(output: Tensor, y: Tensor, probes: Sequence[Tensor]) -> Tensor:
    """Estimate the diagonal of d output / dy, (B, ...), as the mean of v * (v^T d output / dy) over the probes v.

    It is exact in expectation if E[v v^T] = I (B, ...), and exact without probes, by the sum over the unit vectors.
    """
    total = torch.zeros_like(y)
    for probe in probes or unit_vectors(y):
        (product,) = torch.autograd.grad(output, y, probe, retain_graph=True)
        total += product * probe
    return total / (len(probes) or 1)


def divergence(velocity: Velocity, y: Tensor, s: float, probes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute D (B, ...) and its divergence in y, (B,), by the trace that `diagonal` estimates."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        flow = velocity(y, s)
        return flow.detach(), _item_total(diagonal(flow, y, probes))


def moments(velocity: Velocity, y: Tensor, s: float, probes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute E[x | y] and Var[x | y] of the data at each dimension, (B, ...) both.

    The variance is s^2 / (1 - s) times the diagonal of the mean's Jacobian, by `diagonal`. It may be negative where the
    network is not the mean of any data.
    """
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        mean, _ = velocity.estimates(y, s)
        return mean.detach(), diagonal(mean, y, probes) * (s**2 / (1 - s))


def log_density(velocity: Velocity, y: Tensor, start: float, steps: int, probes: Sequence[Tensor] = ()) -> Tensor:
    """Compute log p_s(y) in nats, (B,), by the ODE with the classical Runge-Kutta rule of order 4 and `volume_weights`.

    Args:
        velocity: the model's velocity.
        y (B, ...): noisy data at s = start, in the dtype in which the ODE is computed.
        start: at least `velocity.low`.
        steps: Runge-Kutta steps of four evaluations each. One more is needed if the times of training end before 1.
        probes: random sign vectors (B, ...), each used along the whole way; none: the exact trace.

    Raises:
        ValueError: y has no item dimensions, or a probe has another shape.
    """
    if y.ndim < 2 or any(probe.shape != y.shape for probe in probes):
        shapes = [tuple(probe.shape) for probe in probes]
        raise ValueError(f"y {tuple(y.shape)} must be (B, ...) with item dimensions, and probes {shapes} of its shape.")
    volume = y.new_zeros(len(y))
    for now, end in pairwise(velocity.nodes(start, steps)):
        h, flow, change, traces = end - now, torch.zeros_like(y), torch.zeros_like(y), []
        for fraction, weight in ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)):
            flow, trace = divergence(velocity, y + fraction * h * flow, now + fraction * h, probes)
            change, traces = change + weight * flow, [*traces, trace]
        ends, middle = volume_weights(now, end)
        y, volume = y + h * change, volume + ends * (traces[0] + traces[3]) + middle * (traces[1] + traces[2]) / 2
    return log_normal(y) + volume


def log_likelihood(
    velocity: Velocity,
    x: Tensor,
    eight_bit: bool,
    steps: int,
    noise: Tensor,
    probes: Sequence[Tensor] = (),
    end_probes: Sequence[Tensor] = (),
) -> Tensor:
    """Compute a lower bound on the log-density of real values, or on the log-mass of 8-bit data, in nats, (B,).

    The bound is the mean over noise, and exact where the decoder is the posterior; see the module.

    Args:
        velocity: the model's velocity.
        x (B, ...): clean data, in the dtype in which the ODE is computed.
        eight_bit: x are the levels k / 127.5 - 1, and the result is the log of their probability.
        steps: Runge-Kutta steps, see `log_density`.
        noise (B, ...): standard normal.
        probes: random sign vectors (B, ...) for the trace; none: exact.
        end_probes: further ones for the variances at the end; none: exact.

    Raises:
        ValueError: the shapes differ, or x has no item dimensions.
    """
    if noise.shape != x.shape:
        raise ValueError(f"x {tuple(x.shape)} and noise {tuple(noise.shape)} differ in shape.")
    unit, ratio = 127.5 if eight_bit else 1.0, END_LEVELS / 127.5  # data are measured in levels, or as they are
    s = max(velocity.low, ratio / (1 + ratio))
    y = (1 - s) * x + s * noise
    total = log_density(velocity, y, s, steps, probes) - log_normal(noise) + x[0].numel() * math.log(s)
    mean, variance = moments(velocity, y, s, end_probes)
    r, variance = s / (1 - s) * unit, variance.flatten(1) * unit**2
    x, mean, y = ((value.flatten(1) + (1 if eight_bit else 0)) * unit for value in (x, mean, y / (1 - s)))
    if eight_bit:
        return total + level_log_mass(x.round(), y, mean, variance, r)
    return total + real_log_density(x, mean, variance, r)


def bits_per_dimension(log_probability: Tensor, dimensions: int) -> Tensor:
    """Convert log-probabilities of 8-bit items in nats, (B,), to bits per dimension: -log2 P / d.

    Args:
        log_probability (B,): log P in nats, one number per item.
        dimensions: d, the number of dimensions of an item: C H W for images, T D for sequences.

    Raises:
        ValueError: not one number per item, or no dimensions.
    """
    if log_probability.ndim != 1 or dimensions < 1:
        raise ValueError(f"log_probability {tuple(log_probability.shape)} must be (B,), and {dimensions=} at least 1.")
    return -log_probability / (dimensions * math.log(2))


def volume_weights(a: float, b: float) -> tuple[float, float]:
    """Return the weights of f at the ends and in the middle of [a, b] for the integral of f, exact if s f(s) is a
    parabola.

    Where data are narrower than the noise the divergence is d / s, for which Simpson's weights err.
    """
    h, middle, log = b - a, (a + b) / 2, math.log(b / a)
    return 2 * a * b / h**2 * (middle * log - h), 4 * middle / h**2 * (middle * h - a * b * log)


def log_normal(y: Tensor) -> Tensor:
    """Compute log N(y; 0, I) in nats, (B,), for y (B, ...)."""
    return -0.5 * _item_total(y.square() + math.log(2 * math.pi))


def _item_total(x: Tensor) -> Tensor:
    """Sum (B, ...) over all dimensions of an item: (B,)."""
    if x.ndim < 2:
        raise ValueError(f"x {tuple(x.shape)} must be (B, ...) with at least one dimension of an item.")
    return x.flatten(1).sum(1)


# --- the variational bound --------------------------------------------------------------------------------------------


def variational_bound(
    predict: Predict,
    scheduler: Any,
    times: Sequence[float],
    x_0: Tensor,
    noise: Callable[[], Tensor],
    bar: Callable[[Sequence], Iterable] = iter,
) -> Tensor:
    """Compute an upper bound on -log P(x_0) in nats, (B,), of 8-bit data under the chain that DDPM samples with:

        L_T + sum_t L_{t-1} + L_0,   L_T = KL(q(x_T | x_0) || N(0, (alpha_T^2 + sigma_T^2) I)),
        L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || N(keep x_t + gain x_0_hat, v_t I)),   L_0 = -log P(bin of x_0 | x_1),

    with one x_t for each t and item, which is unbiased. The last step is a normal around the estimate of x_0. Its
    probability is the mass in the bin of x_0; bins at -1 and 1 are open. Its variance is that of the posterior of the
    step before, because its own posterior has variance 0. This is DDPM's rule, made for tables that begin with small
    steps, and the same for all kinds of variances, so that bounds differ by L_{t-1} alone. On other paths the bound
    holds but may be loose. Noise is not clipped as it is for pictures.

    Args:
        predict: the network; with the second half of its channels, where the variances are learned.
        scheduler: a `DDPMScheduler` with the path, prediction kind, clipping and variances of the model.
        times: the times of the chain, from noise to 0.
        x_0 (B, ...): 8-bit data in [-1, 1], in the dtype in which the bound is computed.
        noise: draws standard normal noise of the shape of x_0.
        bar: wraps the steps to show progress.

    Raises:
        ValueError: x_0 has no item dimensions, or a learned variance lacks its channels.
    """
    kind = scheduler.config.prediction_type
    limit = limiter(scheduler.config) or (lambda x: x)
    points = [scales(scheduler.path, t) for t in times]
    start, decoder = points[0], None
    prior = start.alpha**2 + start.sigma**2
    total = _gaussian_kl(start.sigma**2, prior, start.alpha * x_0)
    for (t, s), (now, then) in bar(list(zip(pairwise(times), pairwise(points), strict=True))):
        time = torch.tensor(t, dtype=torch.float64)
        x_t = now.alpha * x_0 + now.sigma * noise()
        output = predict(x_t * float(scheduler.path.input_scale(time)), scheduler.path.timestep(time))
        halves = scheduler.halves(output, x_0)
        x_hat = limit(decompose(kind, scheduler.path(time), x_t, halves[0])[0])
        _, gain, small, large = posterior(now, then)
        if then.sigma > 0:
            v = scheduler.reverse_variance(t, s, *halves, exact=True)
            total, decoder = total + _gaussian_kl(small, v, gain * (x_0 - x_hat)), small
        else:
            levels, mean = ((value + 1) * 127.5 for value in (x_0, x_hat))
            std = 127.5 * math.sqrt(large if decoder is None else decoder)
            total = total - _item_total(log_bin(levels, mean, std))
    return total


def _gaussian_kl(q: float, p: float | Tensor, away: Tensor) -> Tensor:
    """Compute KL(N(m, q I) || N(n, p)) in nats, (B,), for away = m - n (B, ...) and p, a number or (B, ...)."""
    ratio = torch.as_tensor(q / p, dtype=away.dtype, device=away.device)
    return 0.5 * _item_total(ratio - 1 - ratio.log() + away.square() / p)
