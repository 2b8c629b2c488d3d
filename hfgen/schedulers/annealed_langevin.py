"""Annealed Langevin dynamics: Langevin steps at one level of noise after another, from much noise to little."""

import math
from itertools import pairwise
from typing import Any

from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from ..utils.arguments import checked
from .grids import uniform
from .solver import SolverMixin
from .table import Combination, SolverRow, scales

LEAST_SIGNAL = -8.0
"""The first level has at least this log(alpha / sigma): paths that reach pure noise have no other first level."""


class AnnealedLangevinScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Annealed Langevin dynamics (Song & Ermon 2019, https://arxiv.org/abs/1907.05600, algorithm 1), on any path: at
    each of n levels of noise `steps_per_level` steps

        x' = x + a score + sqrt(2 a) z,    a = snr sigma^2,    score = -eps / sigma,

    then on to the next level. The last evaluation is a denoising step to x_0 (Jolicoeur-Martineau et al. 2021,
    https://arxiv.org/abs/2009.05475). At much noise the density has one mode, and chains find the weights of the modes
    that it later parts into; Langevin steps at one level do not get from mode to mode.

    The levels are even in log(alpha / sigma). On the VE path that is a geometric sequence of sigmas; on other paths a
    sample is scaled by alpha from level to level. It draws from any denoiser, and from energies that were trained by
    `NoiseConditionalScore`, whose gradient is eps.

    Args:
        num_train_timesteps: the network's time step at t = 1.
        steps_per_level: Langevin steps at each level, each with one evaluation of the network.
        snr: a / sigma^2, above 0 and below 2.
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        path, beta_start, ..., sigma_max: `ve`, or any other of `hfgen.paths.PATH_OPTIONS` and its parameters.

    Raises:
        ValueError: a number out of range.
    """

    state_kind = "epsilon"
    needs_energy = False
    default_num_inference_steps = 50

    @checked
    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        steps_per_level: int = 3,
        snr: float = 0.1,
        prediction_type: str = "epsilon",
        path: str = "ve",
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        rescale_betas_zero_snr: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ):
        if steps_per_level < 1:
            raise ValueError(f"{steps_per_level=} must be a whole number from 1.")
        if not 0 < snr < 2:
            raise ValueError(f"{snr=} must be above 0 and below 2: longer steps overshoot the data.")
        self._set_up(sigma_min=sigma_min, sigma_max=sigma_max)

    @property
    def order(self) -> int:
        """Evaluations of the network at a level. The last level has one more."""
        return self.config.steps_per_level

    def grid(self, num_inference_steps: int) -> list[float]:
        first, last = (scales(self.path, t).lam for t in (self.start_time, 1 / self.path.num_train_timesteps))
        return self.times_at_levels(uniform(num_inference_steps, max(first, LEAST_SIGNAL), last))

    def plan(self, times: list[float]) -> list[SolverRow]:
        rows = []
        for t, then in pairwise(times):
            now, later = scales(self.path, t), scales(self.path, then)
            size = self.config.snr * now.sigma**2
            step = Combination(1.0, (-size / now.sigma,))
            rows += [SolverRow(t, step, noise=math.sqrt(2 * size))] * (self.config.steps_per_level - 1)
            if later.sigma == 0:
                rows.append(SolverRow(t, step, noise=math.sqrt(2 * size)))
                rows.append(SolverRow(t, Combination(1 / now.alpha, (-now.sigma / now.alpha,))))
            else:
                onwards = later.alpha / now.alpha
                gains = (-onwards * size / now.sigma,)
                rows.append(SolverRow(t, Combination(onwards, gains), noise=onwards * math.sqrt(2 * size)))
        return rows
