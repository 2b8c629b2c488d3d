"""Hamiltonian Monte Carlo on an energy; with one leapfrog step it is the Metropolis-adjusted Langevin algorithm."""

import math
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..distributions.chains import acceptance, kinetic_energy
from ..utils.arguments import checked
from .chain import ChainMixin, normal_like, uniform_for


class HamiltonianScheduler(ChainMixin, SchedulerMixin, ConfigMixin):
    """Hamiltonian Monte Carlo (Duane et al. 1987, https://doi.org/10.1016/0370-2693(87)91197-X; Neal 2011,
    https://arxiv.org/abs/1206.1901): a move draws a momentum p ~ N(0, T I), makes L leapfrog steps of length e,

        p <- p - (e/2) dE/dx,    x <- x + e p,    p <- p - (e/2) dE/dx,

    and is accepted with probability min(1, exp((H - H') / T)), H = E(x) + |p|^2 / 2. So exp(-E / T) / Z is stationary
    exactly. With L = 1 it is MALA, whose proposals are steps of `LangevinScheduler` with the same `step_size` h =
    e^2 / 2.

    `step` is given the energy and its gradient where the chain asks for them: at the state, then at the end of each
    leapfrog step. So n moves take n L + 1 evaluations, and the sample that the last one returns is the state.

    Args:
        step_size: h = e^2 / 2, above 0.
        leapfrog_steps: L.
        temperature: T, above 0.
        initial_scale: standard deviation of the noise that samples begin as.

    Attributes:
        accepted: share of moves of the batch that were accepted so far; None before the first one.

    Raises:
        ValueError: a number out of range.
    """

    needs_energy = True

    @checked
    @register_to_config
    def __init__(
        self, step_size: float = 0.01, leapfrog_steps: int = 10, temperature: float = 1.0, initial_scale: float = 1.0
    ):
        if leapfrog_steps < 1:
            raise ValueError(f"{leapfrog_steps=} must be a whole number from 1; 1 is MALA.")
        self._set_up(temperature=temperature)

    def evaluations(self, num_inference_steps: int) -> int:
        """Return n L + 1."""
        return num_inference_steps * self.config.leapfrog_steps + 1

    def _begin(self) -> None:
        super()._begin()
        self._state: tuple[Tensor, Tensor, Tensor] | None = None  # x, E(x) and dE/dx where the move began
        self._momentum: Tensor | None = None
        self._total: Tensor | None = None  # H at the beginning of the move
        self._shares: list[Tensor] = []

    @property
    def accepted(self) -> float | None:
        """Share of moves of the batch that were accepted so far; None before the first one."""
        return float(torch.stack(self._shares).mean()) if self._shares else None

    def _moved(self, gradient: Tensor, sample: Tensor, energy: Tensor | None, generator: Any) -> Tensor:
        gradient, energy = gradient.to(sample.dtype), energy.to(kinetic_energy(sample).dtype)
        if self._state is None:
            self._state = sample, energy, gradient
        else:
            half = math.sqrt(2 * self.config.step_size) / 2
            self._momentum = torch.add(self._momentum, gradient, alpha=-half)
            if self._step_index % self.config.leapfrog_steps == 0:
                self._decide(sample, energy, gradient, generator)
        return self._state[0] if self._is_last else self._onwards(sample, gradient, generator)

    def _decide(self, x: Tensor, energy: Tensor, gradient: Tensor, generator: Any) -> None:
        """End a move: the proposal becomes the state of those items whose move is accepted."""
        probability = acceptance(self._total, energy + kinetic_energy(self._momentum), self.config.temperature)
        taken = uniform_for(x, generator) < probability
        rows = taken.reshape(-1, *[1] * (x.ndim - 1))
        before = self._state
        self._state = (
            torch.where(rows, x, before[0]),
            torch.where(taken, energy, before[1]),
            torch.where(rows, gradient, before[2]),
        )
        self._shares.append(taken.float().mean())
        self._momentum = None

    def _onwards(self, sample: Tensor, gradient: Tensor, generator: Any) -> Tensor:
        """Make the first half of a leapfrog step, and begin a move before it where the last one has ended."""
        length = math.sqrt(2 * self.config.step_size)
        x = sample
        if self._momentum is None:
            x, energy, gradient = self._state
            self._momentum = math.sqrt(self.config.temperature) * normal_like(x, generator)
            self._total = energy + kinetic_energy(self._momentum)
        self._momentum = torch.add(self._momentum, gradient, alpha=-length / 2)
        return torch.add(x, self._momentum, alpha=length)
