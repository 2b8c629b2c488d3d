"""How probable images are to a denoiser: by the probability-flow ODE, and by the variational bound of DDPM.

**The ODE.** With y = x_t / (alpha + sigma) and s = sigma / (alpha + sigma), the straight coordinates of
`adams_bashforth.py`, every path is y = (1 - s) x_0 + s eps and every denoiser a velocity, dy/ds = D(y, s) =
eps - x_0 by its estimates. The density of clean data, y at s = 0, is that of the standard normal at s = 1 and the
change of volume on the way:

    log p(x_0) = log N(y_1; 0, I) + int_0^1 div D(y_s, s) ds                                          in nats.

Networks know times from t_min (the first of a table; 1e-3 on continuous paths, as in training) to t_max
(`hfgen.paths.start_time`). Outside them the ODE goes on with what is nearly constant there: below, the score, so that
eps is proportional to s; above, the estimate of x_0. So it reaches s = 0 and s = 1 on every path and with every
prediction kind, and p is a density that integrates to one. The score held below t_min is a term of order t_min^2.

**Dequantisation.** 8-bit images are x = k / 127.5 - 1, k = 0, ..., 255. With u uniform in [-1/2, 1/2)

    -log P(k) <= -E_u log p(x + u / 127.5) + d log 127.5    (d dimensions; Theis et al. 2016),

so bits per dimension are -log2 p / d + log2 127.5, and a density uniform on the cube that all bins fill has 8 of them.

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
"""The network's output for x_t (B, C, H, W), scaled as the path says, at a time step (): (B, C, H, W)."""

FINE = 8.0
"""Nodes have the density 1/s + FINE in s: relative steps near the data, even ones in the middle."""


# --- 8-bit images -----------------------------------------------------------------------------------------------------


def dequantise(images: Tensor, uniform: Tensor) -> Tensor:
    """8-bit images (B, ...) spread over their bins, x + (u - 1/2) / 127.5, with u in [0, 1) of the same shape."""
    return images.to(uniform) + (uniform - 0.5) / 127.5


def bits(log_density: Tensor, dimensions: int) -> Tensor:
    """Bits per dimension of 8-bit images from the log-density (B,) in nats of dequantised ones."""
    return math.log2(127.5) - log_density / (dimensions * math.log(2))


# --- the ODE ----------------------------------------------------------------------------------------------------------


class Velocity:
    """D(y, s) = eps - x_0 of a denoiser, for all s in (0, 1]; y (B, ...).

    Args:
        predict: the network.
        path: where it was trained.
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
        """The network's (x_0, eps) at a time that it knows."""
        t = self.path.time(torch.tensor(2 * share_to_lambda(s), dtype=torch.float64)).clamp(*self.times)
        point = self.path(t)
        x_t = y * float(point.alpha + point.sigma)
        output = self.predict(x_t * float(self.path.input_scale(t)), self.path.timestep(t))
        return decompose(self.kind, point, x_t, output)

    def nodes(self, steps: int) -> list[float]:
        """s from 0 to 1: `steps` steps over the times that the network knows, and one to each end beyond them."""
        fine = np.geomspace(self.low, self.high, 4096)
        measure = np.log(fine) + FINE * fine
        inner = np.interp(np.linspace(measure[0], measure[-1], steps + 1), measure, fine)[1:-1].tolist()
        return [0.0, self.low, *inner, self.high, *([1.0] if self.high < 1 else [])]


def basis(y: Tensor) -> Iterator[Tensor]:
    """The d unit vectors of images like y (B, ...), the same for each: with these the trace is exact."""
    for i in range(y[0].numel()):
        unit = torch.zeros_like(y).flatten(1)
        unit[:, i] = 1
        yield unit.view_as(y)


def divergence(velocity: Velocity, y: Tensor, s: float, probes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """D (B, ...) and its divergence in y, (B,): the mean of v^T (dD/dy) v over the probes v (B, ...), which is exact
    in expectation where E[v v^T] = I; the sum over the unit vectors, which is exact, where there are none."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        flow = velocity(y, s)
        total = y.new_zeros(len(y))
        for probe in probes or basis(y):
            (pulled,) = torch.autograd.grad(flow, y, probe, retain_graph=True)
            total += (pulled * probe).flatten(1).sum(1)
    return flow.detach(), total / (len(probes) or 1)


def log_density(velocity: Velocity, x: Tensor, steps: int, probes: Sequence[Tensor] = ()) -> Tensor:
    """log p(x) in nats, (B,), of clean data x (B, ...): the ODE by the classical Runge-Kutta rule of order 4.

    Args:
        velocity: of the model.
        x: data, in the dtype that the ODE is to be computed in.
        steps: four evaluations each, and one or two steps more for the ends.
        probes: random sign vectors (B, ...), each kept along the whole way; none: the exact trace.
    """
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
    """log N(y; 0, I) in nats, (B,), of y (B, ...)."""
    return -0.5 * (y.square() + math.log(2 * math.pi)).flatten(1).sum(1)


# --- the variational bound --------------------------------------------------------------------------------------------


def variational_bound(
    predict: Predict,
    scheduler: Any,
    times: Sequence[float],
    x_0: Tensor,
    noise: Callable[[], Tensor],
    bar: Callable[[Sequence], Iterable] = iter,
) -> Tensor:
    """An upper bound on -log P(x_0) in nats, (B,), of 8-bit images to the chain that DDPM samples with:

        L_T + sum_t L_{t-1} + L_0,   L_T = KL(q(x_T | x_0) || N(0, (alpha_T^2 + sigma_T^2) I)),
        L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || N(keep x_t + gain x_0_hat, v_t I)),   L_0 = -log P(bin of x_0 | x_1),

    with one x_t for each t and image: unbiased. The last step is a normal around the estimate of x_0, whose mass in the
    bin counts; bins at -1 and 1 are open. Its variance is the posterior's of the step before, as that of its own is 0:
    DDPM's rule, made for tables that begin with small steps. On other paths the bound holds and may be loose.

    Args:
        predict: the network.
        scheduler: a `DDPMScheduler`: its path, prediction kind, clipping and fixed variances are the model's.
        times: the chain, from noise to 0.
        x_0: images (B, ...) in [-1, 1], in the dtype to compute in.
        noise: draws standard normal noise of that shape.
        bar: wraps the steps to show progress.

    Raises:
        ValueError: the variances are learned.
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
    """KL(N(m, q I) || N(n, p I)) in nats, (B,), of away = m - n (B, ...)."""
    return 0.5 * (q / p - 1 - math.log(q / p) + away.square() / p).flatten(1).sum(1)


def _log_bin(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log of the mass that N(mean, std^2) has in the bin of 8-bit x, summed over dimensions: (B,)."""
    low, high = (x - 0.5 / 127.5 - mean) / std, (x + 0.5 / 127.5 - mean) / std
    low = torch.where(x < -1 + 0.5 / 127.5, -math.inf, low)
    high = torch.where(x > 1 - 0.5 / 127.5, math.inf, high)
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)  # the tail where masses are exact
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return (upper + torch.log(-torch.expm1(lower - upper))).flatten(1).sum(1)
