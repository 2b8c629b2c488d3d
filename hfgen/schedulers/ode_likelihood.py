"""Likelihoods of a denoiser: the log-density by the probability-flow ODE, and the variational bound of DDPM.

Items are (B, ...) with dimensions of any number: d is the number of dimensions of one item.

**The ODE.** With y = x_t / (alpha + sigma) and s = sigma / (alpha + sigma), the straight coordinates of
`adams_bashforth.py`, every path is y = (1 - s) x_0 + s eps. Every denoiser is a velocity, dy/ds = D(y, s) = eps - x_0
with its estimates of both. The log-density of clean data, y at s = 0, is that of the standard normal at s = 1 plus the
change of volume on the way:

    log p(x_0) = log N(y_1; 0, I) + int_0^1 div D(y_s, s) ds                                          in nats.

Networks are trained at times from t_min (the first of a table; 1e-3 on continuous paths) to t_max
(`hfgen.paths.start_time`). Outside these times the ODE uses quantities that are nearly constant there. Below t_min this
is the score, so that eps is proportional to s; above t_max it is the estimate of x_0. The ODE thus reaches s = 0 and
s = 1 on every path and with every prediction kind, and p is a density that integrates to one. Keeping the score
constant below t_min contributes a term of order t_min^2.

**Dequantisation.** 8-bit data are x = k / 127.5 - 1, k = 0, ..., 255. With u uniform in [-1/2, 1/2)

    -log P(k) <= -E_u log p(x + u / 127.5) + d log 127.5    (d dimensions; Theis et al. 2016),

so bits per dimension are -log2 p / d + log2 127.5. A density that is uniform on the union of all bins has 8 of them.

Sources: Chen et al. 2018, https://arxiv.org/abs/1806.07366 (change of volume along an ODE); Grathwohl et al. 2019,
https://arxiv.org/abs/1810.01367 (Hutchinson's estimate of the trace); Song et al. 2021,
https://arxiv.org/abs/2011.13456 (the probability-flow ODE); Theis et al. 2016, https://arxiv.org/abs/1511.01844
(dequantisation); Ho et al. 2020, https://arxiv.org/abs/2006.11239, and Nichol & Dhariwal 2021,
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
from .grids import lambda_to_share, share_to_lambda
from .table import posterior, scales
from .thresholding import limiter

Predict = Callable[[Tensor, Tensor], Tensor]
"""The network as a function of x_t (B, ...), scaled by the path's input scale, and a time step (): output (B, ...)."""

EVEN_DENSITY = 8.0
"""Nodes have the density 1/s + EVEN_DENSITY in s: steps proportional to s near the data, even steps in the middle."""


# --- 8-bit data -------------------------------------------------------------------------------------------------------


def dequantise(images: Tensor, uniform: Tensor) -> Tensor:
    """Spread 8-bit data (B, ...) over their bins: x + (u - 1/2) / 127.5, for u in [0, 1) of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if images.shape != uniform.shape:
        raise ValueError(f"images {tuple(images.shape)} and uniform {tuple(uniform.shape)} differ in shape.")
    return images.to(uniform) + (uniform - 0.5) / 127.5


def bits_per_dimension(log_density: Tensor, dimensions: int) -> Tensor:
    """Compute bits per dimension of 8-bit data, (B,), from the log-density of the dequantised data.

    Args:
        log_density (B,): log p in nats, one number per item.
        dimensions: d, the number of dimensions of an item: C H W for images, T D for sequences.

    Raises:
        ValueError: not one number per item, or no dimensions.
    """
    if log_density.ndim != 1 or dimensions < 1:
        raise ValueError(f"log_density {tuple(log_density.shape)} must be (B,), and {dimensions=} at least 1.")
    return math.log2(127.5) - log_density / (dimensions * math.log(2))


# --- the ODE ----------------------------------------------------------------------------------------------------------


class Velocity:
    """The velocity D(y, s) = eps - x_0 of a denoiser, for y (B, ...) and all s in (0, 1].

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
        x_0, eps = self.estimates(y, min(max(s, self.low), self.high))
        if s < self.low:
            eps = eps * (s / self.low)
            x_0 = (y - s * eps) / (1 - s)
        elif s > self.high:
            eps = (y - (1 - s) * x_0) / s
        return eps - x_0

    def estimates(self, y: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """Compute the network's estimates of x_0 and eps, for s inside the times that it was trained at."""
        t = self.path.time(torch.tensor(2 * share_to_lambda(s), dtype=torch.float64)).clamp(*self.times)
        point = self.path(t)
        x_t = y * float(point.alpha + point.sigma)
        output = self.predict(x_t * float(self.path.input_scale(t)), self.path.timestep(t))
        return decompose(self.kind, point, x_t, output)

    def nodes(self, steps: int) -> list[float]:
        """Return values of s from 0 to 1: `steps` steps inside the times of training, and one to each end outside."""
        fine = np.geomspace(self.low, self.high, 4096)
        measure = np.log(fine) + EVEN_DENSITY * fine
        inner = np.interp(np.linspace(measure[0], measure[-1], steps + 1), measure, fine)[1:-1].tolist()
        return [0.0, self.low, *inner, self.high, *([1.0] if self.high < 1 else [])]


def unit_vectors(y: Tensor) -> Iterator[Tensor]:
    """Yield the d unit vectors of the shape of y (B, ...), the same for each item. With them the trace is exact."""
    for i in range(y[0].numel()):
        unit = torch.zeros_like(y).flatten(1)
        unit[:, i] = 1
        yield unit.view_as(y)


def divergence(velocity: Velocity, y: Tensor, s: float, probes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute D (B, ...) and its divergence in y, (B,).

    The divergence is the mean of v^T (dD/dy) v over the probes v (B, ...). It is exact in expectation if E[v v^T] = I.
    Without probes it is the sum over the unit vectors, which is exact.
    """
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        flow = velocity(y, s)
        total = y.new_zeros(len(y))
        for probe in probes or unit_vectors(y):
            (product,) = torch.autograd.grad(flow, y, probe, retain_graph=True)
            total += _item_total(product * probe)
    return flow.detach(), total / (len(probes) or 1)


def log_density(velocity: Velocity, x: Tensor, steps: int, probes: Sequence[Tensor] = ()) -> Tensor:
    """Compute log p(x) in nats, (B,), by the ODE with the classical Runge-Kutta rule of order 4.

    Args:
        velocity: the model's velocity.
        x (B, ...): clean data, in the dtype in which the ODE is computed.
        steps: Runge-Kutta steps of four evaluations each. One or two steps more are needed for the ends.
        probes: random sign vectors (B, ...), each used along the whole way; none: the exact trace.

    Raises:
        ValueError: x has no item dimensions, or a probe has another shape.
    """
    if x.ndim < 2 or any(probe.shape != x.shape for probe in probes):
        shapes = [tuple(probe.shape) for probe in probes]
        raise ValueError(f"x {tuple(x.shape)} must be (B, ...) with item dimensions, and probes {shapes} of its shape.")
    y, volume = x, x.new_zeros(len(x))
    for start, end in pairwise(velocity.nodes(steps)):
        h, flow = end - start, torch.zeros_like(y)
        change, spread = torch.zeros_like(y), torch.zeros_like(volume)
        for fraction, weight in ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)):
            flow, trace = divergence(velocity, y + fraction * h * flow, start + fraction * h, probes)
            change, spread = change + weight * flow, spread + weight * trace
        y, volume = y + h * change, volume + h * spread
    return log_normal(y) + volume


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
    steps. On other paths the bound holds but may be loose.

    Args:
        predict: the network.
        scheduler: a `DDPMScheduler` with the path, prediction kind, clipping and fixed variances of the model.
        times: the times of the chain, from noise to 0.
        x_0 (B, ...): 8-bit data in [-1, 1], in the dtype in which the bound is computed.
        noise: draws standard normal noise of the shape of x_0.
        bar: wraps the steps to show progress.

    Raises:
        ValueError: the variances are learned, or x_0 has no item dimensions.
    """
    variance, kind = scheduler.config.variance_type, scheduler.config.prediction_type
    if variance.startswith("learned"):
        raise ValueError(f"variance_type={variance!r}: the bound is for fixed variances. Use log_likelihood.")
    limit = limiter(scheduler.config) or (lambda x: x)
    points = [scales(scheduler.path, t) for t in times]
    start, decoder = points[0], None
    prior = start.alpha**2 + start.sigma**2
    total = _gaussian_kl(start.sigma**2, prior, start.alpha * x_0)
    for t, (now, then) in bar(list(zip(times, pairwise(points), strict=False))):
        time = torch.tensor(t, dtype=torch.float64)
        x_t = now.alpha * x_0 + now.sigma * noise()
        output = predict(x_t * float(scheduler.path.input_scale(time)), scheduler.path.timestep(time))
        x_hat = limit(decompose(kind, scheduler.path(time), x_t, output)[0])
        _, gain, small, large = posterior(now, then)
        if then.sigma > 0:
            v = large if variance.startswith("fixed_large") else small
            total, decoder = total + _gaussian_kl(small, v, gain * (x_0 - x_hat)), small
        else:
            total = total - _log_bin(x_0, x_hat, math.sqrt(large if decoder is None else decoder))
    return total


def _gaussian_kl(q: float, p: float, away: Tensor) -> Tensor:
    """Compute KL(N(m, q I) || N(n, p I)) in nats, (B,), for away = m - n (B, ...)."""
    return 0.5 * _item_total(q / p - 1 - math.log(q / p) + away.square() / p)


def _log_bin(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Compute the log of the mass of N(mean, std^2) in the bin of 8-bit x, summed over dimensions: (B,)."""
    low, high = (x - 0.5 / 127.5 - mean) / std, (x + 0.5 / 127.5 - mean) / std
    low = torch.where(x < -1 + 0.5 / 127.5, -math.inf, low)
    high = torch.where(x > 1 - 0.5 / 127.5, math.inf, high)
    # A bin in the upper tail is mirrored to the lower one, where differences are exact.
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return _item_total(upper + torch.log(-torch.expm1(lower - upper)))
