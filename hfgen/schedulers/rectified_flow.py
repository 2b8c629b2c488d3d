"""Solvers of dx/dt = v(x, t) for rectified flow, on any path.

Euler: Liu et al. 2023, https://arxiv.org/abs/2209.03003. Time shift: Esser et al. 2024,
https://arxiv.org/abs/2403.03206 (eq. 23). Heun with a final Euler step: Karras et al. 2022,
https://arxiv.org/abs/2206.00364. The rules themselves: Hairer, Norsett & Wanner 1993.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from .adams_bashforth import adams_rows, adams_step, straight_coordinates
from .grids import balanced_shares, share_to_lambda
from .solver import SolverMixin
from .table import Combination, Scales, SolverRow, scales

_SOLVERS = ("predictor_corrector", "adams_bashforth2", "euler", "midpoint", "heun")


class RectifiedFlowScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Solvers of the probability-flow ODE in straight coordinates (`adams_bashforth.py`), from noise to data.

    On the straight path the ODE is dx/dt = v from t = 1 to t = 0. Other paths are transformed to it, so that a network
    with any prediction on any path can be sampled, and Euler's method is DDIM. Adams-Bashforth 2,

        x_{n+1} = x_n + h_n ((1 + r/2) v_n - (r/2) v_{n-1}),    h_n = t_{n+1} - t_n,  r = h_n / h_{n-1},

    has order 2 with one evaluation per step. The default adds a third-order corrector that needs no further evaluation.
    Midpoint and Heun evaluate twice per step (2 n and 2 n - 1 evaluations for n steps).

    Args:
        num_train_timesteps: the network's time step at t = 1.
        solver_type: `predictor_corrector`, `adams_bashforth2`, `euler`, `midpoint` or `heun`.
        shift: s > 0 moves the grid towards noise (s > 1) or data, t' = s t / (1 + (s - 1) t).
        power: on the straight path the grid before the shift is (1 - i/n)^power, see
            `hfgen.schedulers.grids.balanced_shares`; 1 is uniform, more is finer near the data.
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        path: `straight`, or any other of `hfgen.paths.path_from_config`.

    Raises:
        ValueError: an unknown choice, or a shift or power that is not positive.
    """

    state_kind = "velocity"
    history_length = 3

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        solver_type: Literal[
            "predictor_corrector", "adams_bashforth2", "euler", "midpoint", "heun"
        ] = "predictor_corrector",
        shift: float = 1.0,
        power: float = 1.0,
        prediction_type: str = "flow_prediction",
        path: str = "straight",
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        rescale_betas_zero_snr: bool = False,
    ):
        if solver_type not in _SOLVERS:
            raise ValueError(f"solver_type={solver_type!r} is not known. Choose one of: {', '.join(_SOLVERS)}.")
        if not (shift > 0 and power > 0):
            raise ValueError(f"shift={shift} and power={power} must be positive; 1 and 1 make the uniform grid.")
        self.register_to_config(use_flow_sigmas=path == "straight", flow_shift=shift)
        self._set_up()

    def grid(self, num_inference_steps: int) -> list[float]:
        start = straight_coordinates(scales(self.path, self.start_time))[0]
        shares = self._shifted(balanced_shares(num_inference_steps, start, self.clock, self.config.power))
        return self.times_at_levels([share_to_lambda(s) for s in shares])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
    ) -> None:
        """Set the grid from a number of steps, or from the noise levels or the network's time steps themselves.

        Args:
            num_inference_steps: number of steps; None: `default_num_inference_steps`.
            device: device of `timesteps`.
            sigmas: times in (0, 1], strictly falling, before the time shift.
            timesteps: the network's time steps, strictly falling; the time shift does not apply to them.

        Raises:
            ValueError: more than one is given, or a list does not fall.
        """
        if sigmas is not None:
            if num_inference_steps not in (None, len(sigmas)) or timesteps is not None:
                raise ValueError("Give one of num_inference_steps, sigmas and timesteps.")
            shifted = torch.tensor(self._shifted([float(value) for value in sigmas]), dtype=torch.float64)
            num_inference_steps, timesteps = None, self.path.timestep(shifted)
        super().set_timesteps(num_inference_steps, device, timesteps)

    def _shifted(self, times: list[float]) -> list[float]:
        shift = self.config.shift
        return [shift * t / (1 + (shift - 1) * t) for t in times]

    def plan(self, times: list[float]) -> list[SolverRow]:
        points = [scales(self.path, t) for t in times]
        return getattr(self, f"_{self.config.solver_type}")(times, points)

    def _euler(self, times: list[float], points: list[Scales]) -> list[SolverRow]:
        return adams_rows(times, points, predictor=1)

    def _adams_bashforth2(self, times: list[float], points: list[Scales]) -> list[SolverRow]:
        return adams_rows(times, points, predictor=2, clock=self.clock)

    def _predictor_corrector(self, times: list[float], points: list[Scales]) -> list[SolverRow]:
        return adams_rows(times, points, predictor=2, corrector=3, clock=self.clock)

    def _midpoint(self, times: list[float], points: list[Scales]) -> list[SolverRow]:
        rows = []
        for t, (now, then) in zip(times, pairwise(points), strict=False):
            s = (straight_coordinates(now)[0] + straight_coordinates(then)[0]) / 2
            middle = float(self.path.time(torch.tensor(2 * share_to_lambda(s), dtype=torch.float64)))
            half = scales(self.path, middle)
            keep, gains = adams_step(now, then, [half])
            rows.append(SolverRow(t, adams_step(now, half, [now])))
            rows.append(SolverRow(middle, Combination(keep, gains), anchor=Combination(1.0)))
        return rows

    def _heun(self, times: list[float], points: list[Scales]) -> list[SolverRow]:
        rows = []
        for t, later, (now, then) in zip(times, times[1:], pairwise(points), strict=False):
            rows.append(SolverRow(t, adams_step(now, then, [now])))
            if then.sigma > 0:  # the network is not evaluated at clean data
                rows.append(SolverRow(later, adams_step(now, then, [then, now]), anchor=Combination(1.0)))
        return rows
