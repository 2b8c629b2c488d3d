"""Consistency sampling: estimate clean data, add new noise of a lower level, and so on."""

import math
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..paths import start_time
from ..utils.arguments import checked
from .grids import balanced_shares, lambda_to_share, share_to_lambda, shifted
from .solver import SolverMixin
from .table import Combination, SolverRow, scales


class ConsistencyScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Multistep consistency sampling (Song et al. 2023, https://arxiv.org/abs/2303.01469, algorithm 1), on any path: a
    step from time t goes to the network's estimate of clean data, and with new noise to the next time s,

        x_s = alpha_s f(x_t, t) + sigma_s z.

    The last step ends at the estimate, so one step draws no noise. f is x_t - t u(x_t, t, 0) of a flow map, whose
    network is told r = 0, and the estimate that belongs to the prediction of any other denoiser. Only a network that
    has learnt to draw from one time needs few of these steps: an estimate of a plain denoiser is a mean of images.

    Args:
        num_train_timesteps: the network's time step at t = 1.
        start_ratio: sigma / alpha at the first step; None: the noise at the end of the path. A denoiser that was
            distilled into a generator (`hfgen.Distilled`) has learnt to draw from one such level.
        shift: s > 0 moves the levels towards noise (s > 1) or data, t' = s t / (1 + (s - 1) t), except the first.
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        path, beta_start, ..., sigma_max: `straight`, or any other of `hfgen.paths.PATH_OPTIONS` and its parameters.

    Raises:
        ValueError: a ratio or a shift that is not positive and finite.
    """

    default_num_inference_steps = 1

    @checked
    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        start_ratio: float | None = None,
        shift: float = 1.0,
        prediction_type: str = "flow_prediction",
        path: str = "straight",
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        rescale_betas_zero_snr: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ):
        if not 0 < shift < math.inf or (start_ratio is not None and not 0 < start_ratio < math.inf):
            raise ValueError(f"start_ratio={start_ratio} and shift={shift} must be positive and finite.")
        self._set_up(sigma_min=sigma_min, sigma_max=sigma_max)

    @property
    def start_time(self) -> float:
        """The time of the first step: that of `start_ratio`, and at most where sampling starts otherwise."""
        return min(start_time(self.path, self.config.prediction_type, self.config.start_ratio), super().start_time)

    @property
    def r_timesteps(self) -> Tensor:
        """The time step of clean data for each step (n,), which the network of a flow map takes as `r_timestep`."""
        return torch.zeros_like(self.timesteps, dtype=torch.float32)

    def grid(self, num_inference_steps: int) -> list[float]:
        start = lambda_to_share(scales(self.path, self.start_time).lam)
        first, *others = balanced_shares(num_inference_steps, start)
        levels = [first, *(share * start for share in shifted([s / start for s in others], self.config.shift))]
        return self.times_at_levels([share_to_lambda(share) for share in levels])

    def plan(self, times: list[float]) -> list[SolverRow]:
        points = [scales(self.path, t) for t in times[1:]]
        rows = zip(times, points, strict=False)
        return [SolverRow(t, Combination(0.0, (then.alpha,)), noise=then.sigma) for t, then in rows]
