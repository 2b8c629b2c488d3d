"""Learned variances of reverse steps: Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..distributions.posterior import posterior_of
from ..models.conditions import Condition
from ..paths import coefficients
from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, check_range
from .base import Loss, Objective, Step, at_least_float32, loss_with_logs, sample_of
from .denoising import Denoising, NoisyItems, mean_error

BINS = 100
"""Intervals of time, each with losses of its own, that `importance` draws from."""

KEPT = 10
"""Losses that each of them keeps."""

FLOOR = 1e-3
"""Share of times that are uniform in any case."""


class LossHistory(nn.Module):
    """The last losses at each interval of time, by which later times are drawn: a state of the training.

    Times are uniform until each interval has `KEPT` losses. Then an interval has the probability
    sqrt(E[loss^2]) / sum, with a share `FLOOR` of the uniform one (Nichol & Dhariwal 2021, eq. 18).
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(BINS, KEPT, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(BINS, dtype=torch.int64))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def probabilities(self) -> Tensor:
        """Return the probability of each interval, (BINS,) float64 on the CPU."""
        uniform = torch.full((BINS,), 1 / BINS, dtype=torch.float64)
        if int(self.counts.min()) < KEPT:
            return uniform
        size = self.losses.square().mean(1).sqrt().cpu()
        return FLOOR * uniform + (1 - FLOOR) * size / size.sum()

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return times in [0, 1) and their weights 1 / (BINS p), (B,), from uniform float64 numbers (B,)."""
        p = self.probabilities()
        ends = p.cumsum(0)
        bins = torch.searchsorted(ends, uniform, right=True).clamp(max=BINS - 1)
        inside = ((uniform - (ends - p)[bins]) / p[bins]).clamp(0, 1 - 1e-12)
        return (bins + inside) / BINS, 1 / (BINS * p[bins])

    def note(self, t: Tensor, losses: Tensor) -> None:
        """Keep the losses (B,) of times (B,) in [0, 1) for `update`, those of all processes."""
        pair = torch.stack([t.to(losses.device).double(), losses.detach().double()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            pairs = [torch.empty_like(pair) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(pairs, pair.contiguous())
            pair = torch.cat(pairs, 1)
        self._pending.append(((pair[0] * BINS).long().clamp(0, BINS - 1), pair[1]))

    def update(self) -> None:
        """Write what was noted, after the update of the network: all micro-batches of a step see the same history."""
        for bins, losses in self._pending:
            for place, loss in zip(bins.tolist(), losses.tolist(), strict=True):
                if math.isfinite(loss):
                    self.losses[place, int(self.counts[place]) % KEPT] = loss
                    self.counts[place] += 1
        self._pending = []


class LearnedRange(Objective):
    """Denoising whose network also states the variance of a reverse step, improved DDPM's L_hybrid:

        L = L_simple + vlb_weight L_vlb,    L_vlb = T E_t [ KL(q(x_s | x_t, x_0) || N(mean, v)) ] in bits per dimension

    with s = t - 1/T, and log v = log small + (raw + 1)/2 (log large - log small) for the second half of the network's
    channels, raw: between the variances of q(x_s | x_t, x_0) and of q(x_t | x_s). The gradient of L_vlb stops at the
    mean, so that the prediction learns from L_simple alone. The step to the data is left out of L_vlb: there samples
    draw no noise.

    Args:
        denoising: L_simple, with its path, prediction kind, times, weighting and condition.
        vlb_weight: as above.
        importance: draw times by the size of the loss so far, and weight by 1/p, see `LossHistory`.

    Raises:
        ValueError: `vlb_weight` is not above 0.
    """

    players = ("denoiser",)

    @checked
    def __init__(self, denoising: Denoising, vlb_weight: float = 1e-3, importance: bool = False):
        check_range("vlb_weight", vlb_weight, ABOVE_0)
        self.denoising, self.vlb_weight = denoising, vlb_weight
        self.history = LossHistory() if importance else None
        self.state = {} if self.history is None else {"loss_history": self.history}
        self.path, self.prediction_type = denoising.path, denoising.prediction_type

    @property
    def condition(self) -> Condition | None:
        """Return the condition of the denoising."""
        return self.denoising.condition

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return L for "x" (B, *item) and the condition, with L_simple and L_vlb in the logs.

        Raises:
            ValueError: the network's output has no second half of channels.
        """
        denoising, count = self.denoising, len(batch["x"])
        if self.history is None:
            t, weight = denoising.times(step, count), torch.ones(count, dtype=torch.float64)
        else:
            share, weight = self.history.draw(step.rand("time", count))
            t = self.path.snap(denoising.earliest + (1 - denoising.earliest) * share)
        kwargs, noisy = denoising.condition_kwargs(batch, networks, step), denoising.noisy(batch, step, t)
        output = at_least_float32(sample_of(networks[player](noisy.scaled, noisy.timestep, **kwargs)))
        if output.shape[1] != 2 * noisy.x_0.shape[1]:
            raise ValueError(
                f"A learned variance needs a network with {2 * noisy.x_0.shape[1]} output channels, not "
                f"{output.shape[1]}: build_denoiser(..., learned_variance=True)."
            )
        prediction, raw = output.chunk(2, dim=1)
        simple = denoising.weight(t).to(output) * denoising.error(prediction, noisy)
        bits = self.bits(prediction.detach(), raw, noisy)
        each = simple + self.vlb_weight * self.path.num_train_timesteps * bits
        if self.history is not None:
            self.history.note(share, each)
        weight = weight.to(each)
        return loss_with_logs((weight * each).mean(), {"simple": simple.mean(), "vlb": bits.mean()})

    def bits(self, prediction: Tensor, raw: Tensor, noisy: NoisyItems) -> Tensor:
        """Return the Kullback-Leibler divergence of each item's step in bits per dimension, (B,)."""
        s = noisy.t - 1 / self.path.num_train_timesteps
        inner = s > 1e-9
        now, then = self.path(noisy.t), self.path(torch.where(inner, s, noisy.t / 2))
        _, gain, small, large = posterior_of(now, then)
        found = coefficients(self.prediction_type, now)
        low, high, gain, a, b = (
            value.to(raw.device, raw.dtype).reshape(-1, *[1] * (raw.ndim - 1))
            for value in (small.clamp(min=1e-20).log(), large.clamp(min=1e-20).log(), gain, *found[:2])
        )
        log_v = low + (raw + 1) / 2 * (high - low)
        away = gain * (noisy.x_0 - a * noisy.x_t - b * prediction)
        divergence = ((low - log_v).exp() - 1 - low + log_v + away.square() * (-log_v).exp()) / (2 * math.log(2))
        return torch.where(inner.to(raw.device), mean_error(divergence, noisy.mask), 0.0)

    def constrain(self, player: str, networks: Mapping[str, nn.Module]) -> None:
        """Write the losses of the step into the history."""
        if self.history is not None:
            self.history.update()
