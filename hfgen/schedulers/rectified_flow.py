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

from .adams_bashforth import adams_rows, advance, straight
from .grids import balanced_shares, share_to_lambda
from .solver import SolverMixin
from .table import Linear, Row, Scales, scales

_SOLVERS = ("predictor_corrector", "adams_bashforth2", "euler", "midpoint", "heun")


class RectifiedFlowScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Integrates the probability-flow ODE in straight coordinates (`adams_bashforth.py`) from noise to data.

    On the straight path that is dx/dt = v from t = 1 to t = 0; other paths are brought to it, so that a network with
    any prediction on any path can be sampled here, and Euler is DDIM. Of second order with one evaluation a step is

        x_{n+1} = x_n + h_n ((1 + r/2) v_n - (r/2) v_{n-1}),    h_n = t_{n+1} - t_n,  r = h_n / h_{n-1},

    Adams-Bashforth 2; the default adds a third-order corrector that costs no evaluation. Midpoint and Heun evaluate
    twice a step (n steps, 2 n and 2 n - 1 evaluations).

    Args:
        num_train_timesteps: what t = 1 is called to the network.
        solver_type: `predictor_corrector`, `adams_bashforth2`, `euler`, `midpoint` or `heun`.
        shift: s > 0 moves the grid towards noise (s > 1) or data, t' = s t / (1 + (s - 1) t).
        power: the grid before the shift is (1 - i/n)^power on the straight path, see
            `hfgen.schedulers.grids.balanced_shares`; 1 is uniform, more is finer near the data.
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        path: `straight`, or any other of `hfgen.paths.path_from_config`.

    Raises:
        ValueError: an unknown choice, or a shift or power that is not positive.
    """

    state_kind = "velocity"
    history = 3

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
        start = straight(scales(self.path, self.start_time))[0]
        shares = self._shifted(balanced_shares(num_inference_steps, start, self.clock, self.config.power))
        return self.at_levels([share_to_lambda(s) for s in shares])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the grid: a number of steps, or the noise levels or network time steps themselves.

        Args:
            num_inference_steps: number of steps; None: `default_num_inference_steps`.
            device: where `timesteps` is put.
            sigmas: times in (0, 1], strictly falling, before the time shift.
            timesteps: the network's time steps, strictly falling, taken as they are.

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

    def plan(self, times: list[float]) -> list[Row]:
        points = [scales(self.path, t) for t in times]
        return getattr(self, f"_{self.config.solver_type}")(times, points)

    def _euler(self, times: list[float], points: list[Scales]) -> list[Row]:
        return adams_rows(times, points, predictor=1)

    def _adams_bashforth2(self, times: list[float], points: list[Scales]) -> list[Row]:
        return adams_rows(times, points, predictor=2, clock=self.clock)

    def _predictor_corrector(self, times: list[float], points: list[Scales]) -> list[Row]:
        return adams_rows(times, points, predictor=2, corrector=3, clock=self.clock)

    def _midpoint(self, times: list[float], points: list[Scales]) -> list[Row]:
        rows = []
        for t, (now, then) in zip(times, pairwise(points), strict=False):
            s = (straight(now)[0] + straight(then)[0]) / 2
            between = float(self.path.time(torch.tensor(2 * share_to_lambda(s), dtype=torch.float64)))
            half = scales(self.path, between)
            keep, gains = advance(now, then, [half])
            rows += [Row(t, advance(now, half, [now])), Row(between, Linear(keep, gains), anchor=Linear(1.0))]
        return rows

    def _heun(self, times: list[float], points: list[Scales]) -> list[Row]:
        rows = []
        for t, later, (now, then) in zip(times, times[1:], pairwise(points), strict=False):
            rows.append(Row(t, advance(now, then, [now])))
            if then.sigma > 0:  # nothing can be asked about clean data
                rows.append(Row(later, advance(now, then, [then, now]), anchor=Linear(1.0)))
        return rows
