"""The distributions of single numbers that autoregressive models put together: of symbols, and of real numbers."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor

from .layers import real

BISECTIONS = 60
"""Halvings of the interval in which a mixture's quantile lies: more than the bits of a number of double precision."""

WIDEST = 12.0
"""Quantiles of uniform numbers in single precision lie within so many standard deviations of a mean."""

LARGEST_LOG_SCALE = 7.0
"""Standard deviations of mixtures are between e^-7 and e^7, so that no density is infinite."""


@dataclasses.dataclass
class AutoregressiveOutput(BaseOutput):
    """Output of an autoregressive model for B items of N tokens with S numbers each.

    Args:
        log_prob (B,): log p(x) in nats, float32 at least: of discrete items a probability, of real ones a density.
        params (B, N, S, P): parameters of the distribution of each number, given those before it: log-odds of V
            symbols, or of a mixture. None where several orders are averaged.
    """

    log_prob: Tensor
    params: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Categorical:
    """A symbol 0, ..., V - 1: its probabilities are the softmax of the parameters.

    Args:
        count: V, at least 2.
        free: parameters of a number: V, or V - 1, where the first one is 0; with V = 2 that one is the logit of 1.
    """

    count: int
    free: int

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """Return log p of symbols (...), int64, given parameters (..., P): (...)."""
        logits = self._logits(params)
        return -F.cross_entropy(logits.flatten(0, -2), values.flatten(), reduction="none").view(values.shape)

    def draw(self, params: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        """Return symbols (...), the quantiles of the uniform numbers u (...) in [0, 1).

        Args:
            params: (..., P).
            uniform: u.
            temperature: divides the log-odds; 0: the most likely symbol.
        """
        logits = self._logits(params)
        if temperature == 0:
            return logits.argmax(-1)
        mass = (logits / temperature).softmax(-1).cumsum(-1)
        return (mass <= uniform[..., None] * mass[..., -1:]).sum(-1).clamp(max=self.count - 1)

    def _logits(self, params: Tensor) -> Tensor:
        return F.pad(real(params), (self.count - self.free, 0))


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """A real number of a mixture of K normal distributions (RNADE, Uria et al. 2013, https://arxiv.org/abs/1306.0186).
    Its 3 K parameters are the log-odds of the components, their means, and their log standard deviations, which are
    bounded smoothly.

    Args:
        components: K.
    """

    components: int

    @property
    def free(self) -> int:
        """Return the number of parameters of a number."""
        return 3 * self.components

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """Return the log-density at values (...), given parameters (..., P): (...)."""
        log_weights, means, log_scales = self._split(params)
        distance = (values[..., None].to(means) - means) * (-log_scales).exp()
        log_normal = -(distance.square() + math.log(2 * math.pi)) / 2 - log_scales
        return torch.logsumexp(log_weights + log_normal, -1)

    def draw(self, params: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        """Return numbers (...), the quantiles of the uniform numbers u (...), by bisection.

        Args:
            params: (..., P).
            uniform: u in [0, 1).
            temperature: multiplies the standard deviations; 0: the mean of the heaviest component.
        """
        log_weights, means, log_scales = self._split(params)
        if temperature == 0:
            return means.gather(-1, log_weights.argmax(-1, keepdim=True)).squeeze(-1)
        scales, weights = log_scales.exp() * temperature, log_weights.exp()
        low, high = (means - WIDEST * scales).amin(-1), (means + WIDEST * scales).amax(-1)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = (weights * torch.special.ndtr((middle[..., None] - means) / scales)).sum(-1) <= uniform
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and log standard deviations, (..., K) each."""
        odds, means, scales = real(params).unflatten(-1, (3, -1)).unbind(-2)
        return odds.log_softmax(-1), means, LARGEST_LOG_SCALE * (scales / LARGEST_LOG_SCALE).tanh()


def symbols_of(x: Tensor, levels: int) -> Tensor:
    """Return the numbers 0, ..., levels - 1 of values in [-1, 1], each rounded to the nearest of `levels` equidistant
    ones; whole numbers are returned as they are. int64."""
    if not x.is_floating_point():
        return x.long()
    return ((x + 1) * ((levels - 1) / 2)).round().long()


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Return a tensor (B, ...) with its last row repeated, if it has fewer than this many rows."""
    return torch.cat([x, x[-1:].expand(max(0, rows - len(x)), *x.shape[1:])])


def guided_labels(
    class_labels: Tensor | None, guidance_scale: float, num_class_embeds: int | None, rows: int
) -> tuple[Tensor | None, int]:
    """Return the classes of a drawing, padded as by `pad_rows`, and the number of copies of each item: 1, or with
    guidance 2, the second of 'no class', which is the last one."""
    labels = None if class_labels is None else pad_rows(class_labels, rows)
    if guidance_scale == 1.0:
        return labels, 1
    return torch.cat([labels, torch.full_like(labels, num_class_embeds - 1)]), 2


def require_finite_params(finite: Tensor) -> None:
    """Raise ValueError unless `finite` () is true: a choice among symbols never chooses NaN, and would hide it."""
    if not bool(finite):
        raise ValueError(
            "The parameters of the numbers became not finite while they were drawn. The weights are not finite, or "
            "values overflowed: load other weights, or use bfloat16 or float32 in place of float16."
        )
