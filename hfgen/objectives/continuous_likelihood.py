"""Maximum likelihood of the ODE of a flow-matching network."""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ..distributions.densities import dequantised, level_bits, standard_normal_log_prob
from ..models.conditions import Condition
from ..paths import StraightPath
from ..utils.arguments import checked
from ..utils.ranges import COUNT, PROBABILITY, check_range
from .base import Loss, Objective, Step, choose, loss_with_logs, sample_of
from .conditioning import condition_kwargs, condition_of

RUNGE_KUTTA = ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6))
"""Of the classical rule of order 4: where in a step the velocity is computed, from the one before, and its weight."""


class ContinuousLikelihood(Objective):
    """Maximise the log-density of a continuous normalizing flow (CNF), the ODE of a velocity v on the straight path:

        dx/dt = v(x, t),    log p(x_0) = log N(x_1; 0, I) + int_0^1 div v(x_t, t) dt

    (Chen et al. 2018, https://arxiv.org/abs/1806.07366), with t = 0 at the data. Flow matching trains v without
    following the ODE; this objective trains it further. The divergence is estimated without bias by one random sign
    vector e for each item and its whole way: e^T (dv/dx) e (FFJORD, Grathwohl et al. 2019,
    https://arxiv.org/abs/1810.01367). The steps are those of the classical Runge-Kutta rule; the k-th of n ends at
    (k / n)^2, since velocities change fastest near the data. What is maximised is the density of this discrete rule, up
    to its error of order 4.

    The backward pass computes each step again, so that the memory for activations is that of one step whatever their
    number. Evaluations of the network: 12 n forward and 8 n backward for each batch.

    Args:
        num_steps: n.
        dequantisation: `uniform` for 8-bit data in [-1, 1], see `MaximumLikelihood`, or `none`.
        num_classes: a short form of condition=ClassCondition(num_classes); None: unconditional, unless `condition` is
            given.
        label_dropout: probability in [0, 1] of training on the null condition.
        condition: the network's inputs besides sample and time, see `hfgen.models.conditions`.

    Raises:
        ValueError: an unknown dequantisation, a number out of range, or both `num_classes` and `condition`.
    """

    players = ("denoiser",)
    call = ("timestep",)
    differentiates_twice = True

    @checked
    def __init__(
        self,
        num_steps: int = 8,
        dequantisation: Literal["uniform", "none"] = "uniform",
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        condition: Condition | None = None,
    ):
        choose("dequantisation", dequantisation, ("uniform", "none"))
        check_range("num_steps", num_steps, COUNT)
        check_range("label_dropout", label_dropout, PROBABILITY)
        self.num_steps, self.dequantisation, self.label_dropout = num_steps, dequantisation, label_dropout
        self.condition = condition_of(num_classes, condition)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the mean of -log p / d for "x" (B, *item) with d dimensions, and the condition."""
        x, levels = batch["x"], self.dequantisation == "uniform"
        if not x.is_floating_point():
            raise ValueError(f"x holds {x.dtype}, and a density is one of real numbers. Give x.float().")
        if any(getattr(part, "gradient_checkpointing", False) for part in _parts(networks[player])):
            raise ValueError(
                "The network has gradient_checkpointing, and this objective computes whole steps again in the backward "
                "pass. They fail together. Leave gradient_checkpointing out."
            )
        y = dequantised(x, step.uniform("dequantisation", x)) if levels else x
        kwargs = condition_kwargs(self.condition, self.label_dropout, batch, networks, step)
        probe = torch.where(step.uniform("probe", y) < 0.5, -1.0, 1.0).to(y)
        log_prob, d = self.log_prob(networks[player], y, probe, kwargs).mean(), math.prod(x.shape[1:])
        bits = {"bits_per_dim": level_bits(log_prob, d)} if levels else {}
        return loss_with_logs(-log_prob / d, {"log_prob": log_prob, **bits})

    def log_prob(self, network: nn.Module, x: Tensor, probe: Tensor, kwargs: Mapping[str, Tensor]) -> Tensor:
        """Return an unbiased estimate of log p(x) in nats, (B,).

        Args:
            network: called as network(x, timestep, **kwargs) for v.
            x (B, *item): the data.
            probe (B, *item): e, random signs.
            kwargs: of the network.
        """

        def advance(x: Tensor, volume: Tensor, now: float, end: float) -> tuple[Tensor, Tensor]:
            h, velocity, change = end - now, torch.zeros_like(x), torch.zeros_like(x)
            for place, weight in RUNGE_KUTTA:
                at = x + place * h * velocity
                velocity, divergence = self._velocity(network, at, now + place * h, probe, kwargs)
                change, volume = change + weight * velocity, volume + h * weight * divergence
            return x + h * change, volume

        volume, times = x.new_zeros(len(x)), [(k / self.num_steps) ** 2 for k in range(self.num_steps + 1)]
        for now, end in pairwise(times):
            x, volume = checkpoint(advance, x, volume, now, end, use_reentrant=False)
        return standard_normal_log_prob(x) + volume

    @staticmethod
    def _velocity(
        network: nn.Module, x: Tensor, t: float, probe: Tensor, kwargs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return v (B, *item) and e^T (dv/dx) e (B,) at x and t."""
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            timestep = StraightPath().timestep(torch.full((len(x),), t, device=x.device))
            with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative
                velocity = sample_of(network(x, timestep, **kwargs)).to(x)
            (slope,) = torch.autograd.grad(velocity, x, probe, create_graph=training, retain_graph=training)
        divergence = (slope * probe).flatten(1).sum(1)
        return (velocity, divergence) if training else (velocity.detach(), divergence.detach())


def _parts(network: Any) -> Iterable[nn.Module]:
    """Return the parts of a network; none of a function."""
    return network.modules() if isinstance(network, nn.Module) else ()
