"""The noise corner: denoising, score matching and flow matching as one regression on a path."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..models.conditions import Condition
from ..paths import Path, broadcast, coefficients, compose, prediction_row
from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, FINITE, PROBABILITY, check_range
from .base import Loss, Objective, Step, choose, sample_of
from .conditioning import condition_kwargs, condition_of

TimeSampling = Literal["uniform", "logit_normal", "low_discrepancy"]
Weighting = Literal["simple", "min_snr", "sigmoid"]

MIN_LOG_SNR = -15.0
"""The least log SNR that `sigmoid` weights. Paths that reach pure noise have an infinite slope of log SNR there. The
paths of Hoogeboom et al. 2023, https://arxiv.org/abs/2301.11093, end at this value."""


class NoisyItems(NamedTuple):
    """Items with noise.

    Args:
        x_0, eps, x_t (B, *item): items, noise, and both mixed at time t.
        scaled (B, *item): x_t as the network sees it.
        t (B,): float64 times on the CPU.
        timestep (B,): the network's time steps.
        mask: 1 for data and 0 for padding, with as many dimensions as the items; None: no padding.
    """

    x_0: Tensor
    eps: Tensor
    x_t: Tensor
    scaled: Tensor
    t: Tensor
    timestep: Tensor
    mask: Tensor | None


class Denoising(Objective):
    """Regress a prediction of (x_0, eps) on a path:

        L = E_{t, eps} w(t) || f(s_t x_t, t, y) - (c_x x_0 + c_e eps) ||^2 / d,    x_t = alpha_t x_0 + sigma_t eps

    for items x_0 of any shape with d dimensions. On the discrete path with `epsilon` this is DDPM's L_simple (Ho et al.
    2020, https://arxiv.org/abs/2006.11239). On the straight path with `flow_prediction` it is rectified flow (Liu et
    al. 2023, https://arxiv.org/abs/2209.03003) and conditional flow matching (Lipman et al. 2023,
    https://arxiv.org/abs/2210.02747). By default eps is drawn independently of x_0. A batch that carries its own
    "noise" (B, *item) defines another coupling (reflow, mini-batch optimal transport). A "mask" (B, ...) over the first
    dimensions of the items marks padding with False: padding has no noise and no loss.

    Args:
        path: defines x_t.
        prediction_type: the target, a row of `hfgen.paths.PREDICTIONS`.
        time_sampling: `uniform`; `logit_normal`, t = sigmoid(mean + std n) (Esser et al. 2024,
            https://arxiv.org/abs/2403.03206); `low_discrepancy`, one t in each of N equal intervals for the N items
            of an optimiser step, in random order: uniform with less variance (Kingma et al. 2021,
            https://arxiv.org/abs/2107.00630).
        logit_mean, logit_std: mean and std of `logit_normal`. A positive mean gives times near the noise.
        weighting: `simple`, w = 1; `min_snr`, min(SNR, gamma) on the error in x_0 (Hang et al. 2023,
            https://arxiv.org/abs/2303.09556); `sigmoid`, -(d log SNR / dt) sigmoid(bias - log SNR) on the error in eps
            (Kingma & Gao 2023, https://arxiv.org/abs/2303.00848; Hoogeboom et al. 2024,
            https://arxiv.org/abs/2410.19324), and 0 where log SNR is below `MIN_LOG_SNR`. With times that are uniform
            it is an integral over log SNR, the same on every path.
        snr_gamma: gamma of `min_snr`.
        sigmoid_bias: bias of `sigmoid`.
        num_classes: a short form of condition=ClassCondition(num_classes); None: unconditional, unless `condition` is
            given.
        label_dropout: probability in [0, 1] of training on the null condition, for classifier-free guidance (Ho &
            Salimans 2022, https://arxiv.org/abs/2207.12598).
        condition: y, the network's inputs besides sample and time, see `hfgen.models.conditions`.

    Raises:
        ValueError: an unknown choice, a number out of range, both `num_classes` and `condition`, or a prediction whose
            plain squared error is dominated by a few times (`score`; on the VE path `flow_prediction` and
            `v_prediction` as well).
    """

    players = ("denoiser",)
    call = ("timestep",)

    @checked
    def __init__(
        self,
        path: Path,
        prediction_type: str = "flow_prediction",
        time_sampling: TimeSampling = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        weighting: Weighting = "simple",
        snr_gamma: float = 5.0,
        sigmoid_bias: float = 0.0,
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        condition: Condition | None = None,
    ):
        prediction_row(prediction_type)
        choose("time_sampling", time_sampling, _TIMES)
        choose("weighting", weighting, _WEIGHTS)
        check_range("label_dropout", label_dropout, PROBABILITY)
        for name, value in (("logit_std", logit_std), ("snr_gamma", snr_gamma)):
            check_range(name, value, ABOVE_0)
        for name, value in (("logit_mean", logit_mean), ("sigmoid_bias", sigmoid_bias)):
            check_range(name, value, FINITE)
        self.path, self.prediction_type = path, prediction_type
        self.time_sampling, self.logit_mean, self.logit_std = time_sampling, logit_mean, logit_std
        self.weighting, self.snr_gamma, self.sigmoid_bias = weighting, snr_gamma, sigmoid_bias
        self.condition = condition_of(num_classes, condition)
        self.label_dropout = label_dropout
        # On a continuous path there is no noise at t = 0, and some targets are infinite. The first entry of a table is
        # above 0, and must be as frequent as the others.
        self.earliest = 0.0 if path.snap(torch.zeros(())) > 0 else 1e-3
        self._refuse_unbounded()

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the weighted squared error for "x" (B, *item), "noise" (B, *item) if given, and the condition."""
        kwargs = self.condition_kwargs(batch, networks, step)
        noisy = self.noisy(batch, step, self.times(step, len(batch["x"])))
        output = sample_of(networks[player](noisy.scaled, noisy.timestep, **kwargs))
        error = self.error(output, noisy)  # (B,)
        value = (self.weight(noisy.t).to(error) * error).mean()
        return Loss(value, {"loss": value.detach()})

    def noisy(self, batch: Mapping[str, Tensor], step: Step, t: Tensor) -> "NoisyItems":
        """Return the items of a batch with noise at times t (B,), float64 on the CPU: scales are exact, whatever the
        networks' dtype."""
        x_0 = real_items(batch["x"])  # (B, *item)
        eps = batch["noise"] if "noise" in batch else step.randn("noise", x_0)
        mask = error_mask(batch, x_0)
        if mask is not None:
            x_0, eps = x_0 * mask, eps * mask
        x_t = self.path.mix(x_0, eps, t)
        scaled = x_t * broadcast(self.path.input_scale(t), x_0)
        return NoisyItems(x_0, eps, x_t, scaled, t, self.path.timestep(t).to(x_0.device, torch.float32), mask)

    def error(self, output: Tensor, noisy: "NoisyItems") -> Tensor:
        """Return the mean squared error of each item's prediction, (B,)."""
        target = compose(self.prediction_type, self.path(noisy.t), noisy.x_0, noisy.eps)
        return mean_error((output.float() - target.float()).square(), noisy.mask)

    def times(self, step: Step, count: int) -> Tensor:
        """Draw `count` times in (0, 1], float64 on the CPU."""
        t = _TIMES[self.time_sampling](self, step, count)
        return self.path.snap(self.earliest + (1 - self.earliest) * t)

    def weight(self, t: Tensor) -> Tensor:
        """Compute w(t), of the shape of t."""
        return _WEIGHTS[self.weighting](self, t)

    def condition_kwargs(
        self, batch: Mapping[str, Tensor], networks: Mapping[str, nn.Module], step: Step
    ) -> dict[str, Tensor]:
        """Return the network's keyword arguments (B, ...) for the condition; {} for an unconditional model.

        Each item has the null condition with probability `label_dropout`.
        """
        return condition_kwargs(self.condition, self.label_dropout, batch, networks, step)

    def _refuse_unbounded(self) -> None:
        """Refuse targets whose size at some times is more than 20 times the median, with the weighting `simple`."""
        if self.weighting != "simple":
            return
        t = self.path.snap(torch.linspace(self.earliest, 1, 1001, dtype=torch.float64))
        rows = torch.stack([value.expand(t.shape) for value in prediction_row(self.prediction_type)(self.path(t))])
        size = rows.abs().amax(0)
        if (ratio := size.max() / size.median()) > 20:
            raise ValueError(
                f"prediction_type={self.prediction_type!r} on the {type(self.path).__name__} has targets that are "
                f"{ratio:.0f} times larger at some times than in the median, and dominate the loss with "
                "weighting='simple'. Use --weighting min_snr or sigmoid, or --prediction_type epsilon."
            )


def real_items(x: Tensor) -> Tensor:
    """Return x. Raises ValueError for whole numbers, to which no noise can be added."""
    if not x.is_floating_point():
        raise ValueError(f"x holds {x.dtype}, and noise is added to real numbers. Give x.float().")
    return x


def error_mask(batch: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
    """Return the batch's mask with as many dimensions as x, 1 for data and 0 for padding; None if there is none."""
    if "mask" not in batch:
        return None
    mask = batch["mask"]
    if tuple(mask.shape) != tuple(x.shape[: mask.ndim]):
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must be the first dimensions of x, {tuple(x.shape)}.")
    return mask.to(x.dtype).reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))


def mean_error(error: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the mean of each item's error (B, *item), without padding: (B,)."""
    if mask is None:
        return error.flatten(1).mean(1)
    weight = mask.to(error).expand_as(error).flatten(1)
    return (error.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1)


# --- times in [0, 1) and weights: one function per choice -------------------------------------------------------------


def _uniform(objective: Denoising, step: Step, count: int) -> Tensor:
    return step.rand("time", count)


def _low_discrepancy(objective: Denoising, step: Step, count: int) -> Tensor:
    total = count * step.shards
    interval = torch.randperm(total, generator=step.generator("interval"))
    return (step.cut(interval) + step.rand("time", count)) / total


def _logit_normal(objective: Denoising, step: Step, count: int) -> Tensor:
    n = step.randn("time", torch.empty(count, dtype=torch.float64))
    return torch.sigmoid(objective.logit_mean + objective.logit_std * n)


def _simple(objective: Denoising, t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _min_snr(objective: Denoising, t: Tensor) -> Tensor:
    found = coefficients(objective.prediction_type, objective.path(t))
    # SNR times an error in x_0 is the error in eps, which is finite where there is no signal left.
    return torch.minimum(found.eps_from_output.square(), objective.snr_gamma * found.x_from_output.square())


def _sigmoid(objective: Denoising, t: Tensor) -> Tensor:
    point, log_snr = objective.path(t), objective.path.log_snr(t)
    eps_from_output = coefficients(objective.prediction_type, point).eps_from_output
    slope = 2 * (point.d_alpha / point.alpha - point.d_sigma / point.sigma)  # of log SNR
    weight = -slope * torch.sigmoid(objective.sigmoid_bias - log_snr) * eps_from_output.square()
    return torch.where(log_snr < MIN_LOG_SNR, 0.0, weight)


_TIMES = {"uniform": _uniform, "low_discrepancy": _low_discrepancy, "logit_normal": _logit_normal}
_WEIGHTS = {"simple": _simple, "min_snr": _min_snr, "sigmoid": _sigmoid}
