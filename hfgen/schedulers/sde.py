"""The reverse-time SDE: Euler-Maruyama, and predictor-corrector sampling with Langevin steps.

Song et al. 2021, https://arxiv.org/abs/2011.13456 (eq. 6, algorithms 2 to 5, appendix G).
"""

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from ..utils.arguments import checked
from .solver import SolverMixin
from .table import NO_SIGNAL, Combination, SolverRow, scales


class ScoreSDEScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Integration of dx = (f x - g^2 score) dt + g dw backwards in time by Euler-Maruyama,

        f = alpha'/alpha,    g^2 = 2 sigma (sigma' - f sigma),    score = -eps/sigma,

    on the VP and VE paths, or any other. After each step follow `corrector_steps` steps of Langevin dynamics at the new
    time, x + a score + sqrt(2 a) z with a = 2 (snr sigma)^2. This is the step size of the paper's algorithms with
    expected norms in place of measured ones, so that a sample does not depend on the others of its batch. The last
    evaluation is a denoising step to x_0.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table of a
            discrete path, see `hfgen.paths.betas_of`.
        corrector_steps: Langevin steps after each step, each with one network evaluation; 0: Euler-Maruyama alone.
        snr: signal-to-noise ratio of the Langevin steps, r in the paper.
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        timestep_spacing, steps_offset: see `hfgen.schedulers.grids.spaced_positions`.
        path, sigma_min, sigma_max: None or `discrete`, or any other of `hfgen.paths.PATH_OPTIONS` and its parameters.

    Raises:
        ValueError: `corrector_steps` is negative or `snr` is not positive.
    """

    state_kind = "epsilon"
    default_num_inference_steps = 1000

    @checked
    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        corrector_steps: int = 0,
        snr: float = 0.16,
        prediction_type: str = "epsilon",
        timestep_spacing: Literal["linspace", "leading", "trailing"] = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        path: str | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ):
        if corrector_steps < 0 or not 0 < snr < math.inf:
            raise ValueError(f"corrector_steps={corrector_steps} must not be negative and snr={snr} must be positive.")
        self._set_up(sigma_min=sigma_min, sigma_max=sigma_max)

    @property
    def order(self) -> int:
        """Evaluations of the network in a step. The last step has one."""
        return 1 + self.config.corrector_steps

    @property
    def start_time(self) -> float:
        """The time that sampling starts from. It is never a time with alpha = 0, where the drift is infinite."""
        start = super().start_time
        return start if scales(self.path, start).alpha > 1e-4 else min(start, 1 - 1 / self.path.num_train_timesteps)

    def grid(self, num_inference_steps: int) -> list[float]:
        return self.spaced_times(num_inference_steps)

    def plan(self, times: list[float]) -> list[SolverRow]:
        rows = []
        if scales(self.path, times[0]).alpha < NO_SIGNAL:
            first = float(self.path.timestep(torch.tensor(times[0])))
            raise ValueError(f"The SDE can't start at time step {first:g}, where alpha is 0 and the drift infinite.")
        for t, then in pairwise(times):
            now, later = scales(self.path, t), scales(self.path, then)
            if later.sigma == 0:
                rows.append(SolverRow(t, Combination(1 / now.alpha, (-now.sigma / now.alpha,))))
                continue
            drift, spread = self._coefficients(t)
            step = then - t
            gain = spread / now.sigma * step
            rows.append(SolverRow(t, Combination(1 + drift * step, (gain,)), noise=math.sqrt(-spread * step)))
            size = 2 * (self.config.snr * later.sigma) ** 2
            langevin = SolverRow(then, Combination(1.0, (-size / later.sigma,)), noise=math.sqrt(2 * size))
            rows += [langevin] * self.config.corrector_steps
        return rows

    def _coefficients(self, t: float) -> tuple[float, float]:
        """Compute (f, g^2) at time t."""
        alpha, sigma, d_alpha, d_sigma = (float(value) for value in self.path(torch.tensor(t, dtype=torch.float64)))
        drift = d_alpha / alpha
        return drift, 2 * sigma * (d_sigma - drift * sigma)
