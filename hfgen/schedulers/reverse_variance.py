"""Optimal variances of reverse steps: from a table for all data, or from a network for each dimension.

A reverse step from time t to s < t draws x_s ~ N(keep x_t + gain x_0_hat, v). The chain draws x_s given x_t and x_0
with a variance `drawn`: that of q(x_s | x_t, x_0) for DDPM, eta^2 times as much for DDIM, 0 for eta = 0. If x_0_hat is
E[x_0 | x_t], the v with the least Kullback-Leibler divergence from the true reverse step also has what x_t leaves open:

    v = drawn + gain^2 V_t,    V_t = the mean of Var[x_0 | x_t] over data and dimensions
                                   = (sigma_t^2 / alpha_t^2) (1 - sigma_t^2 E ||score||^2 / d),
                               score = -eps_hat / sigma_t

(Bao et al. 2022, https://arxiv.org/abs/2201.06503, theorem 1; on a VP path it is their sigma_n*^2). V_t is a function
of the noise level alone, so one table serves every grid, DDPM and DDIM. Values are clamped to its bounds:

    0 <= V_t <= sigma_t^2 / alpha_t^2    for DDPM the same as small <= v <= large alpha_s^2 / alpha_t^2, beta / alpha
    V_t <= r^2                           for data in [-r, r]

A network can state V_t at each x_t and dimension instead (Bao et al. 2022, https://arxiv.org/abs/2206.07309; Ou et al.
2025, https://arxiv.org/abs/2406.10808): see `hfgen.objectives.reverse_variance`.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributions.posterior import posterior_of
from ..paths import Path, coefficients, compose, decompose, determinant, start_time
from .configuration import HEADS
from .grids import lambda_to_share
from .table import NO_SIGNAL, Scales, scales

LAST_LEVELS = 2
"""Noise of the last step that draws any, in 8-bit levels of mean absolute value, at most: see `last_noise`."""

MOST_CANDIDATES = 1000
"""Times that an optimal trajectory is chosen from, at most."""


# --- the table --------------------------------------------------------------------------------------------------------


def tabled_variance(table: Sequence[Sequence[float]], now: Scales, bound: float | None = None) -> float:
    """Return V_t where the path has the scales `now`, from a table of pairs (s, V) with s = sigma/(sigma + alpha).

    Between the entries log V is linear in log s, which is exact near data, where V is sigma^2/alpha^2.

    Args:
        table: pairs in the order of rising s.
        now: the scales at time t.
        bound: r of data in [-r, r]; None: not known.
    """
    s, shares = lambda_to_share(now.lam), [pair[0] for pair in table]
    right = min(max(bisect_left(shares, s), 1), len(table) - 1)
    (low, first), (high, last) = (table[right - 1], table[right]) if len(table) > 1 else (table[0], table[0])
    share = 0.0 if high == low else (math.log(s) - math.log(low)) / (math.log(high) - math.log(low))
    first, last = math.log(max(first, 1e-30)), math.log(max(last, 1e-30))
    # Below the first entry V goes on as sigma^2/alpha^2; above the last one there is nothing left to learn of the data.
    value = first + 2 * math.log(s / low) if share < 0 else first + min(share, 1.0) * (last - first)
    return bounded(math.exp(min(value, 700.0)), now, bound)


def bounded(value: float, now: Scales, bound: float | None) -> float:
    """Return a variance of x_0, clamped to the bounds of V_t."""
    most = [
        math.inf if now.alpha < NO_SIGNAL else (now.sigma / now.alpha) ** 2,
        math.inf if bound is None else bound**2,
    ]
    return min(max(value, 0.0), *most)


def check_table(table: Any) -> None:
    """Raise ValueError for what is no table of `tabled_variance`."""
    rows = table if isinstance(table, list | tuple) else ()
    pairs = [row for row in rows if isinstance(row, list | tuple) and len(row) == 2]
    numbers = [value for pair in pairs for value in pair if isinstance(value, int | float)]
    good = rows and len(numbers) == 2 * len(rows) and all(math.isfinite(value) and value >= 0 for value in numbers)
    shares = [pair[0] for pair in pairs] if good else []
    if not good or not all(0 < a < b for a, b in zip(shares, [*shares[1:], 1.0 + 1e-9], strict=True)):
        raise ValueError(
            "data_variances must be pairs (s, variance) with s rising in (0, 1] and variances of at least 0. Measure "
            "them: hfgen calibrate FOLDER"
        )


def last_noise() -> float:
    """Return the largest standard deviation of the last noise, E|noise| = `LAST_LEVELS` 8-bit levels of 2/255.

    Bao et al. 2022 clip it there, because no later step removes it. It applies where the step ends at no more noise
    than that: at a noisier time the last step still removes it.
    """
    return LAST_LEVELS * 2 / 255 * math.sqrt(math.pi / 2)


# --- schedulers with optimal variances --------------------------------------------------------------------------------


class OptimalVarianceMixin:
    """V_t for a scheduler whose configuration has `variance_type`, `data_variances`, `clip_sample` and its range."""

    def data_variance(self, t: float, output: Tensor | None = None, raw: Tensor | None = None) -> float | Tensor:
        """Return V_t, a number from the table; or with a head Var[x_0 | x_t], (B, C, ...).

        Args:
            t: the time.
            output (B, C, ...): the network's prediction, for a head.
            raw (B, C, ...): what the head says: the mean squared error of the prediction (`npr`, `ocm`), or the mean
                square of what is predicted (`sn`).
        """
        now, bound = scales(self.path, t), self._data_bound
        if self.config.get("variance_type") not in HEADS:
            return tabled_variance(self.config["data_variances"], now, bound)
        found = coefficients(self.config.prediction_type, self.path(torch.tensor(t, dtype=torch.float64)))
        spread = raw - output.square() if self.config["variance_type"] == "sn" else raw
        return (float(found.x_from_output) ** 2 * spread).clamp(0.0, math.inf if bound is None else bound**2)

    def clipped_std(self, variance: float | Tensor, then: Scales) -> float | Tensor:
        """Return the standard deviation of a step that ends at these scales, limited by `last_noise` if it stays."""
        if isinstance(variance, Tensor):
            std = variance.sqrt()
            return std.clamp(max=last_noise()) if then.sigma <= last_noise() else std
        std = math.sqrt(variance)
        return min(std, last_noise()) if then.sigma <= last_noise() else std

    @property
    def _data_bound(self) -> float | None:
        """Return r of data in [-r, r], which clipping states; None without it."""
        return self.config.clip_sample_range if self.config.clip_sample else None

    def _split(self, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prediction and the second half of channels, (B, C, ...) in float32.

        Raises:
            ValueError: there is no second half.
        """
        if output.shape[1] != 2 * sample.shape[1]:
            kind, wanted = self.config.get("variance_type"), 2 * sample.shape[1]
            fix = f" Train a head: hfgen calibrate FOLDER --kind {kind}" if kind in HEADS else ""
            raise ValueError(
                f"variance_type={kind!r} needs a network with {wanted} output channels, not {output.shape[1]}.{fix}"
            )
        output, raw = output.chunk(2, dim=1)
        return output, raw.to(torch.promote_types(raw.dtype, torch.float32))

    def _candidate_times(self) -> list[float]:
        """Return the rising times that an optimal trajectory is chosen from: those of the training up to the start, or
        `MOST_CANDIDATES` between."""
        steps = self.path.num_train_timesteps
        last = round(self.start_time * steps)
        if self.discrete or steps <= MOST_CANDIDATES:
            inner = [i / steps for i in range(1, last)]
        else:
            inner = [(1 + i * (last - 2) / (MOST_CANDIDATES - 2)) / steps for i in range(MOST_CANDIDATES - 1)]
        return [*inner, self.start_time]

    def _optimal_times(self, count: int) -> list[float]:
        """Return the start of each of `count` steps with the least bound, and the end: see `optimal_trajectory`."""
        candidates = self._candidate_times()
        if count > len(candidates):
            raise ValueError(f"num_inference_steps={count} must be at most {len(candidates)} for trajectory='optimal'.")
        chosen = range(len(candidates))
        if count < len(candidates):
            points = [scales(self.path, t) for t in candidates]
            values = [tabled_variance(self.config["data_variances"], now, self._data_bound) for now in points]
            chosen = optimal_trajectory(points, values, count)
        return [*(candidates[i] for i in reversed(chosen)), self.end_time]


def optimal_trajectory(points: Sequence[Scales], values: Sequence[float], count: int) -> list[int]:
    """Return the numbers of `count` times, rising, from the first to the last, of the least variational bound.

    With optimal variances a step from t to s costs log(v / small) / 2 in nats per dimension, whatever the other steps
    are (Bao et al. 2022, https://arxiv.org/abs/2201.06503, theorem 3). Dynamic programming finds the least sum.

    Args:
        points: the path's scales at N rising times.
        values: V_t there.
        count: from 1 to N; a single step starts from the last time.
    """
    if count == 1:
        return [len(points) - 1]
    table = torch.tensor([point[:2] for point in points], dtype=torch.float64)
    alpha, sigma = table[:, 0], table[:, 1]
    now, then = Scales(alpha[:, None], sigma[:, None], 0.0), Scales(alpha, sigma, 0.0)  # from row t to column s
    large = posterior_of(now, then)[3].clamp(min=1e-300)
    _, gain, small, _ = posterior_of(now, then, large)
    cost = torch.log1p(gain.square() * torch.tensor(values, dtype=torch.float64)[:, None] / small) / 2
    cost = cost.masked_fill(torch.ones_like(cost).triu().bool(), math.inf)
    best, back = torch.full_like(alpha, math.inf), []
    best[0] = 0.0
    for _ in range(count - 1):
        best, chosen = (cost + best).min(dim=1)
        back.append(chosen)
    places = [len(points) - 1]
    for chosen in reversed(back):
        places.append(int(chosen[places[-1]]))
    return places[::-1]


# --- measurement ------------------------------------------------------------------------------------------------------


def measurement_times(path: Path, kind: str, count: int) -> list[float]:
    """Return at most `count` rising times of training: dense in log s near data, even in s near noise."""
    first = float(path.snap(torch.zeros((), dtype=torch.float64))) or 1e-3
    ends = [lambda_to_share(scales(path, t).lam) for t in (first, start_time(path, kind))]
    fine = torch.logspace(*(math.log10(end) for end in ends), 4096, dtype=torch.float64)
    measure = fine.log() + 8 * fine
    wanted = torch.linspace(float(measure[0]), float(measure[-1]), count, dtype=torch.float64)
    shares = fine[torch.searchsorted(measure, wanted).clamp(max=4095)]
    times = path.time(2 * (torch.log1p(-shares) - shares.log())).clamp(first, start_time(path, kind))
    return sorted({float(t) for t in path.snap(times)})


def measured_variances(
    predict: Callable[[Tensor, Tensor], Tensor],
    path: Path,
    kind: str,
    x_0: Tensor,
    noise: Tensor,
    times: Tensor,
    residual: bool = False,
    bound: float | None = None,
) -> Tensor:
    """Return one estimate of V_t for each item, (B,) float64. Their mean over data is V_t.

    With the coefficient b of the network's output in x_0_hat, and the squares' means over dimensions:

        b^2 (||target||^2 - ||output||^2)    analytic; for eps it is (sigma/alpha)^2 (1 - E||eps_hat||^2/d), with the
                                             noise's own square in place of its mean 1: unbiased, with less variance
        ||x_0 - x_0_hat||^2                  residual, b^2 ||target - output||^2 without a bound: the same for a perfect
                                             network; of any other one its own best v

    Args:
        predict: the network at scaled samples (B, ...) and time steps (B,).
        path: of the samples.
        kind: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        x_0, noise (B, ...): data and standard normal noise.
        times (B,): float64.
        residual: see above.
        bound: r of data in [-r, r], to which the estimate of x_0 is then clamped, as `DDPMScheduler` does.
    """
    point = path(times)
    scale = path.input_scale(times).to(x_0).reshape(-1, *[1] * (x_0.ndim - 1))
    x_t = path.mix(x_0, noise, times)
    output = predict(x_t * scale, path.timestep(times).to(x_0.device, torch.float32)).double()
    if residual:
        estimate, _ = decompose(kind, point, x_t.double(), output)
        estimate = estimate if bound is None else estimate.clamp(-bound, bound)
        return (x_0.double() - estimate).square().flatten(1).mean(1).cpu()
    target = compose(kind, point, x_0, noise).double()
    factor = coefficients(kind, point).x_from_output.square()
    factor = torch.where(determinant(kind, point).abs() > NO_SIGNAL, factor, 0.0)
    return (target.square() - output.square()).flatten(1).mean(1).cpu() * factor
