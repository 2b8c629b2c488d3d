"""The end of a likelihood: from x_t with the least noise of training to the data themselves.

A network is not trained with less noise than at a time t0 > 0, so its density p(x_t0) is known and that of clean data
is not. With a decoder p(x | x_t0) both make a model of clean data, which the path's own q(x_t0 | x) bounds:

    log p(x) >= E_q [ log p(x_t0) + log p(x | x_t0) - log q(x_t0 | x) ],

with equality if the decoder is the posterior of the data. The network knows the first two moments of this posterior at
each dimension: m = E[x | x_t0] is its estimate, and v = Var[x | x_t0] = sigma^2 / alpha * dm / dx_t0 (Tweedie's formula
of the second order). With r = sigma / alpha and y = x_t0 / alpha the decoder is, of all distributions with these
moments, the one of least KL divergence to the posterior N(y, r^2) that x_t0 alone gives. This is

    real values:            N(m, v);
    the levels 0, ..., 255:  P(k) ~ exp(a k + b k^2);
    dequantised levels:      the same for a uniform density on each bin, with the moments of N(y, r^2) inside the bin.

8-bit data are any of these three to a perfect network: it may have learnt the levels, the levels with uniform noise, or
a smooth density whose mass in a bin is wanted. Moments of an image that no distribution on the levels has rule the
first out, and so for the second. A real network errs by an unknown deviation, too. The decoder of an image is
therefore a mixture, over the possibilities that are left and over deviations of the error. A mixture over whole images
costs at most -log(weight) nats per image.

Units: levels, so that an image is k = 0, ..., 255 and r is the noise in levels.

Sources: Kingma et al. 2021, https://arxiv.org/abs/2107.00630 (a decoder of levels at the end of a path); Efron 2011,
https://doi.org/10.1198/jasa.2011.tm11181 (Tweedie's formula); Csiszar 1975, https://doi.org/10.1214/aop/1176996454 (the
projection).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL_REACH = 10
"""Levels on each side of the mean to which the two decoders of levels give mass."""

WIDE = (LEVEL_REACH / 4) ** 2
"""Largest variance, in squared levels, of a posterior that is projected on levels. A wider one would lose its tails.
It is a normal distribution, to which levels make no difference."""

VARIANCE_TOLERANCE = 5e-3
"""By how much, in squared levels, a variance may miss the least one: rounding of the network."""

LEVEL_ERRORS = (0.0, 0.02, 0.08, 0.3, 1.2, 5.0)
"""Variances of a network's own error in the mixture, in squared levels."""

REAL_ERRORS = (0.0, 0.06, 0.25, 1.0, 4.0)
"""Variances of a network's own error for real values, in units of r^2."""

LEAST_VARIANCE = 1e-6
"""Variances below this are raised to it: in squared levels, or for real values in units of r^2."""

LARGEST_STEP = 8.0
"""By how much a step of the projection changes the log-mass of a bin that has any mass."""

LEADING_WEIGHT = 0.999
"""Weight of the first possibility of a mixture."""


class LevelPosterior(NamedTuple):
    """A posterior on a window of levels (B, d, L), before the network's moments are known.

    Attributes:
        log_mass: its log-masses up to a constant; -inf outside 0..255.
        mean, variance: of the data inside each bin.
    """

    log_mass: Tensor
    mean: Tensor
    variance: Tensor


def real_log_density(x: Tensor, m: Tensor, v: Tensor, r: float) -> Tensor:
    """Compute log p(x | x_t0) in nats, (B,), of real values x (B, d) with posterior moments m and v (B, d)."""
    v = v.clamp(LEAST_VARIANCE * r**2, 4 * r**2)
    parts = []
    for error in REAL_ERRORS:
        spread = v + error * r**2
        parts.append(-0.5 * ((x - m).square() / spread + (2 * math.pi * spread).log()).sum(1))
    return _mixed(torch.stack(parts), LEADING_WEIGHT)


def level_log_mass(k: Tensor, y: Tensor, m: Tensor, v: Tensor, r: float) -> Tensor:
    """Compute log P(k | x_t0) in nats, (B,), of levels k (B, d) in 0..255.

    Args:
        k (B, d): the levels.
        y (B, d): x_t0 / alpha.
        m, v (B, d): the posterior's mean and variance by the network.
        r: sigma / alpha.
    """
    v = v.clamp(0, 4 * r**2)
    wide, normal = v > WIDE, log_bin(k, m, v.clamp(min=LEAST_VARIANCE).sqrt())
    smooth = torch.stack([log_bin(k, m, (v.clamp(min=LEAST_VARIANCE) + error).sqrt()).sum(1) for error in LEVEL_ERRORS])
    total, open_rows = _mixed(smooth, 1 / len(LEVEL_ERRORS)), torch.ones(len(k), dtype=torch.bool, device=k.device)
    for make, lead in ((levels_base, LEADING_WEIGHT), (dequantised_base, 0.9)):
        window = _window(m)
        base = make(window, y, r)
        mean, least = _least_variance(base, m)
        rows = open_rows & (v >= least - VARIANCE_TOLERANCE).all(1)
        if rows.any():
            part = LevelPosterior(*(value[rows] for value in base))
            largest = (0.8 * _largest_variance(part, mean[rows])).clamp(max=WIDE)
            target = torch.maximum(torch.minimum(v[rows], largest), least[rows] + LEAST_VARIANCE)
            masses = _select(project(part, mean[rows], target), window[rows], k[rows])
            own = torch.where(wide[rows], normal[rows], masses).sum(1)
            total[rows] = _mixed(torch.stack([own, *smooth[:, rows]]), lead)
        open_rows = open_rows & ~rows
    return total


def levels_base(window: Tensor, y: Tensor, r: float) -> LevelPosterior:
    """Return the posterior of levels, all equally likely, given y = k + r eps; y is (B, d), the window (B, d, L)."""
    log_mass = -0.5 * ((window - y[..., None]) / r).square()
    return LevelPosterior(_off_edges(log_mass, window), window, torch.zeros_like(window))


def dequantised_base(window: Tensor, y: Tensor, r: float) -> LevelPosterior:
    """Return the posterior of real values, uniform on all bins, given y = x + r eps; y is (B, d), the window (B, d, L).

    Inside a bin this is a truncated normal distribution.
    """
    low, high = ((window + half - y[..., None]) / r for half in (-0.5, 0.5))
    log_mass = log_interval(low, high)
    constant = 0.5 * math.log(2 * math.pi) + log_mass
    at_low, at_high = (-low.square() / 2 - constant).exp(), (-high.square() / 2 - constant).exp()
    mean = (y[..., None] + r * (at_low - at_high)).clamp(window - 0.5, window + 0.5)
    variance = r**2 * (1 + low * at_low - high * at_high - (at_low - at_high).square())
    away = window - y[..., None]
    far = away.abs() > 6 * r + 1  # where the differences above have no digits left: the tail is nearly exponential
    scale = r**2 / (away.abs() - 0.5).clamp(min=0.5)
    mean = torch.where(far, window - away.sign() * (0.5 - scale).clamp(min=0), mean)
    variance = torch.where(far, scale.square(), variance)
    return LevelPosterior(_off_edges(log_mass, window), mean, variance.clamp(0, 1 / 12))


def project(base: LevelPosterior, m: Tensor, v: Tensor, steps: int = 100) -> Tensor:
    """Return the log-masses (B, d, L) of least KL divergence to the base with mean m and variance v (B, d).

    They are base + a s + b (s^2 + variance) for the distance s from m, up to a constant. Newton's method with limited
    steps finds a and b, the minimum of a convex function. Where nearly all mass is on one bin this function is flat, so
    the first a and b put it near m: those of a normal distribution, or of three bins with the right moments.
    """
    s = base.mean - m[..., None]
    features = torch.stack([s, s.square() + base.variance])  # (2, B, d, L)
    target = torch.stack([torch.zeros_like(v), v])
    near, ends = _nearest(base, s)
    three, wide = (features.gather(-1, at.expand(2, *at.shape)) for at in (near, ends))
    normal = -0.5 * wide[1] / v.clamp(min=0.05)[..., None]
    start = _through(wide, normal - base.log_mass.gather(-1, ends))
    log_mass = _bounded(base.log_mass + (start[..., None] * features).sum(0))

    def dual(natural: Tensor) -> tuple[Tensor, Tensor]:
        scores = log_mass + (natural[..., None] * features).sum(0)
        total = scores.logsumexp(-1)
        return total - (natural * target).sum(0), scores - total[..., None]

    natural, own = torch.zeros_like(target), _through(three, _masses_of(three, v).log() - log_mass.gather(-1, near))
    natural = torch.where(dual(own)[0] < dual(natural)[0], own, natural)
    value, masses = dual(natural)
    for _ in range(steps):
        p = masses.exp()
        mean = (p * features).sum(-1)
        gradient, (one, two) = mean - target, features - mean[..., None]
        a, b, c = (p * one * one).sum(-1) + 1e-12, (p * one * two).sum(-1), (p * two * two).sum(-1) + 1e-12
        if gradient.abs().max() < 1e-9:
            break
        g, h = gradient
        step = torch.stack([b * h - c * g, b * g - a * h]) / (a * c - b * b).clamp(min=1e-24)
        change = (step[..., None] * (features - target[..., None])).sum(0).abs() * (p > 1e-9)
        step = step * (LARGEST_STEP / change.amax(-1)).clamp(max=1)
        slope = (gradient * step).sum(0)
        for _ in range(12):
            worse = ~(dual(natural + step)[0] <= value + 1e-4 * slope + 1e-13)
            if not worse.any():
                break
            step, slope = torch.where(worse, step / 2, step), torch.where(worse, slope / 2, slope)
        natural = torch.where(worse, natural, natural + step)
        value, masses = dual(natural)
    return masses


def _nearest(base: LevelPosterior, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places (B, d, 3) of the bin that is nearest to s = 0 with its two neighbours, and with both ends."""
    inside = base.log_mass > -math.inf
    first, last = inside.long().argmax(-1), inside.shape[-1] - 1 - inside.flip(-1).long().argmax(-1)
    nearest = s.masked_fill(~inside, math.inf).abs().argmin(-1)
    middle = torch.minimum(torch.maximum(nearest, first + 1), last - 1)
    return torch.stack([middle - 1, middle, middle + 1], -1), torch.stack([first, middle, last], -1)


def _through(three: Tensor, values: Tensor) -> Tensor:
    """Return a and b (2, B, d) for which a f + b g + constant has these values (B, d, 3), of features f and g."""
    (f, g), (u, w) = (three[..., 1:] - three[..., :1]).unbind(0), (values[..., 1:] - values[..., :1]).unbind(-1)
    determinant = f[..., 0] * g[..., 1] - f[..., 1] * g[..., 0]
    found = torch.stack([u * g[..., 1] - w * g[..., 0], w * f[..., 0] - u * f[..., 1]]) / determinant
    return torch.where(found.isfinite().all(0), found, 0.0)


def _masses_of(three: Tensor, v: Tensor) -> Tensor:
    """Return the masses (B, d, 3) of three bins with mean 0 and variance v; at least 1e-12."""
    f, g = three
    wanted = torch.stack([torch.ones_like(v), torch.zeros_like(v), v], -1)
    solution, failed = torch.linalg.solve_ex(torch.stack([torch.ones_like(f), f, g], -2), wanted)
    return torch.where(failed[..., None] > 0, 1 / 3, solution.nan_to_num(1 / 3)).clamp(min=1e-12)


def log_bin(k: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
    """Compute the log of the mass of N(mean, std^2) in the bin of level k, for each dimension. The first and the last
    bin are open."""
    low, high = (k - 0.5 - mean) / std, (k + 0.5 - mean) / std
    return log_interval(torch.where(k < 0.5, -math.inf, low), torch.where(k > 254.5, math.inf, high))


def log_interval(low: Tensor, high: Tensor) -> Tensor:
    """Compute log [Phi(high) - Phi(low)]. An interval in the upper tail is mirrored to the lower one, where differences
    are exact."""
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return upper + torch.log(-torch.expm1(lower - upper))


def _window(m: Tensor) -> Tensor:
    """Return the levels within `LEVEL_REACH` of the means (B, d), also those outside 0..255: (B, d, L)."""
    offsets = torch.arange(-LEVEL_REACH, LEVEL_REACH + 1, dtype=m.dtype, device=m.device)
    return m.round().clamp(0, 255)[..., None] + offsets


def _off_edges(log_mass: Tensor, window: Tensor) -> Tensor:
    """Remove levels outside 0..255, and scale log-masses so that the largest one of the others is 0."""
    log_mass = log_mass.masked_fill((window < 0) | (window > 255), -math.inf)
    return log_mass - log_mass.amax(-1, keepdim=True)


def _bounded(log_mass: Tensor) -> Tensor:
    """Scale log-masses so that the largest one is 0, and bound those of possible levels from below."""
    scaled = log_mass - log_mass.amax(-1, keepdim=True)
    return torch.where(log_mass > -math.inf, scaled.clamp(min=-1e4), -math.inf)


def _least_variance(base: LevelPosterior, m: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest mean (B, d) that data of this base may have, and the least variance for it: that of two
    neighbouring bins."""
    inside = base.log_mass > -math.inf
    first = base.mean.masked_fill(~inside, math.inf).amin(-1)
    m = torch.minimum(torch.maximum(m, first), base.mean.masked_fill(~inside, -math.inf).amax(-1))
    s = base.mean - m[..., None]
    left, i = s.masked_fill(~inside | (s > 0), -math.inf).max(-1)
    right, j = s.masked_fill(~inside | (s < 0), math.inf).min(-1)
    share = torch.where(right - left > 0, -left / (right - left), 0.0)
    variances = (base.variance.gather(-1, at[..., None])[..., 0] for at in (i, j))
    parts = [variance + side.square() for variance, side in zip(variances, (left, right), strict=True)]
    return m, (1 - share) * parts[0] + share * parts[1]


def _largest_variance(base: LevelPosterior, m: Tensor) -> Tensor:
    """Return the largest variance (B, d) of all distributions on the window with mean m: that of its two ends."""
    s = (base.mean - m[..., None]).masked_fill(base.log_mass == -math.inf, 0)
    return -s.amin(-1) * s.amax(-1)


def _select(masses: Tensor, window: Tensor, k: Tensor) -> Tensor:
    """Return the log-masses of the levels k (B, d), -inf outside the window."""
    at = (k - window[..., 0]).round().long()
    chosen = masses.gather(-1, at.clamp(0, 2 * LEVEL_REACH)[..., None])[..., 0]
    return torch.where((at >= 0) & (at <= 2 * LEVEL_REACH), chosen, -math.inf)


def _mixed(parts: Tensor, lead: float) -> Tensor:
    """Compute the log of a mixture (B,) from the log-masses (M, B) of its parts: the first has the weight `lead`, and
    the others share the rest."""
    weights = [lead, *[(1 - lead) / (len(parts) - 1)] * (len(parts) - 1)]
    return (parts + parts.new_tensor(weights).log()[:, None]).logsumexp(0)
