"""Base densities of normalizing flows, and dequantisation: a density of real numbers that bounds the probability of
levels."""

import math
from typing import Any

from torch import Tensor

from .likelihoods import HALF_LEVEL, upcast


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Compute log N(z; 0, I) in nats, (B,) for z (B, *item), in float32 at least."""
    z = upcast(z)
    return -(z.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2


def flow_log_prob(output: Any) -> Tensor:
    """Compute log p(x) = log N(f(x); 0, I) + log|det df/dx| in nats, (B,), from a flow's output.

    Args:
        output: has `latents` f(x) (B, *item) and `log_det` (B,).
    """
    log_prob = standard_normal_log_prob(output.latents)
    return log_prob + output.log_det.to(log_prob)


def dequantised(x: Tensor, uniform: Tensor) -> Tensor:
    """Return 8-bit data in [-1, 1] with uniform noise that fills the bin of each level:

        y = x + (2 u - 1) / 255,    log P(x) >= E_u log p(y) + d log(2 / 255)

    for d dimensions (Theis et al. 2016, https://arxiv.org/abs/1511.01844, section 3.1).

    Args:
        x: levels k / 127.5 - 1, (B, *item).
        uniform: u in [0, 1), of the same shape.
    """
    return x + (2 * uniform - 1) * HALF_LEVEL


def level_bits(log_prob: Tensor, dimensions: int) -> Tensor:
    """Convert the log-density of `dequantised` data in nats to bits per dimension of the levels, an upper bound."""
    return -(log_prob / dimensions + math.log(2 * HALF_LEVEL)) / math.log(2)


def symbol_bits(log_prob: Tensor, dimensions: int) -> Tensor:
    """Convert the log-probability of symbols in nats to bits per dimension, exactly."""
    return -log_prob / (dimensions * math.log(2))
