"""log|det(I + J)| for the Jacobian J of a contraction g: exact, and as an estimate by a power series.

log|det(I + J)| = sum_{k >= 1} (-1)^(k + 1) tr(J^k) / k
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CERTAIN_TERMS = 2
"""Terms of the series that are always computed."""

CONTINUATION = 0.5
"""Probability that one more term is computed."""

MOST_TERMS = 40
"""Terms that are computed at most: more come up once in 10^11 times."""


def exact_log_det(g: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return log|det(I + dg/dx)| (B,) from the whole Jacobian, differentiably: D backward passes for D numbers.

    Args:
        g: (B, *item) -> (B, *item), each item by itself.
        x (B, *item): where.
    """
    training = torch.is_grad_enabled()
    with torch.enable_grad():
        x = derivable(x)
        value, unit = g(x).flatten(1), torch.eye(x[0].numel(), device=x.device, dtype=x.dtype)
        rows = [
            torch.autograd.grad(value, x, one.expand_as(value), create_graph=training, retain_graph=True)[0].flatten(1)
            for one in unit
        ]
        determinants = torch.linalg.slogdet(torch.stack(rows, 1) + unit)[1]
    return determinants if training else determinants.detach()


def estimated_log_det(g: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, uniform: Tensor) -> Tensor:
    """Return an unbiased estimate of log|det(I + dg/dx)| (B,), whose gradient is an unbiased estimate, too.

    The trace of J^k is that of v^T J^k v for normal v (Hutchinson). The series ends at a random term: `CERTAIN_TERMS`
    are always computed, and each further one with probability `CONTINUATION`; a term is divided by the probability that
    it is computed (Russian roulette, Chen et al. 2019, https://arxiv.org/abs/1906.02735, section 3.1).

    Args:
        g, x: see `exact_log_det`.
        direction (B, *item): v, standard normal.
        uniform (B,): numbers in [0, 1) that decide the length of each item's series.
    """
    more = (uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log() / math.log(CONTINUATION)).floor()
    terms = (CERTAIN_TERMS + more).clamp(max=MOST_TERMS)  # P(terms >= k) = CONTINUATION^(k - CERTAIN_TERMS)
    training = torch.is_grad_enabled()
    with torch.enable_grad():
        x = derivable(x)
        value, product = g(x), direction
        total = x.new_zeros(len(x))
        for k in range(1, int(terms.max()) + 1):
            (product,) = torch.autograd.grad(value, x, product, create_graph=training, retain_graph=True)
            weight = (terms >= k) / CONTINUATION ** max(0, k - CERTAIN_TERMS)
            trace = (product * direction).flatten(1).sum(1)
            total = total + torch.where(terms >= k, (-1) ** (k + 1) / k * weight * trace, 0.0)
    return total if training else total.detach()


def derivable(x: Tensor) -> Tensor:
    """Return x as a tensor for derivatives. It is another one than x, whose hooks (those of `implicit_solution`) are
    for gradients of what x is computed from."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
