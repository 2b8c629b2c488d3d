"""Solvers of dx/dt = v(x, t) for rectified flow: Euler, Heun, midpoint and Adams-Bashforth 2.

Euler: Liu et al. 2023, https://arxiv.org/abs/2209.03003. Time shift: Esser et al. 2024,
https://arxiv.org/abs/2403.03206 (eq. 23). The second-order rules are in Hairer, Norsett & Wanner 1993.
"""

from typing import Any, Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from .solver import Linear, Row, SolverMixin

_EVALUATIONS = {"euler": 1, "adams_bashforth2": 1, "midpoint": 2, "heun": 2}


class RectifiedFlowScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Integrates the probability-flow ODE dx/dt = v from t = 1 (noise) to t = 0 (data).

    Adams-Bashforth 2, the default, is of second order at one evaluation a step:

        x_{n+1} = x_n + h_n ((1 + r/2) v_n - (r/2) v_{n-1}),    h_n = t_{n+1} - t_n,  r = h_n / h_{n-1},

    with one Euler step to start. Midpoint and Heun evaluate twice a step (n steps, 2 n or 2 n - 1 evaluations).

    Args:
        num_train_timesteps: what t = 1 is called to the network.
        solver_type: `adams_bashforth2`, `euler`, `midpoint` or `heun`.
        shift: s > 0 moves the grid towards noise, t' = s t / (1 + (s - 1) t); 1 is the uniform grid.
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        path: `straight`, or any other of `hfgen.paths.path_from_config`.
    """

    state_kind = "flow_prediction"
    history = 2

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        solver_type: Literal["adams_bashforth2", "euler", "midpoint", "heun"] = "adams_bashforth2",
        shift: float = 1.0,
        prediction_type: str = "flow_prediction",
        path: str = "straight",
    ):
        if solver_type not in _EVALUATIONS:
            raise ValueError(f"solver_type={solver_type!r} is not known. Choose one of: {', '.join(_EVALUATIONS)}.")
        if not shift > 0:
            raise ValueError(f"shift={shift}: the time shift must be positive; 1 leaves the grid uniform.")
        self._set_up()

    def grid(self, num_inference_steps: int) -> list[float]:
        start = self.start_time
        return self._shifted([start * (1 - i / num_inference_steps) for i in range(num_inference_steps + 1)])

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
        rows: list[Row] = []
        make: Any = getattr(self, f"_{self.config.solver_type}")
        for n in range(len(times) - 1):
            rows += make(n, times)
        return rows

    def _euler(self, n: int, times: list[float]) -> list[Row]:
        return [Row(times[n], Linear(1.0, (times[n + 1] - times[n],)))]

    def _adams_bashforth2(self, n: int, times: list[float]) -> list[Row]:
        if n == 0:
            return self._euler(n, times)
        step, before = times[n + 1] - times[n], times[n] - times[n - 1]
        half = step * step / before / 2
        return [Row(times[n], Linear(1.0, (step + half, -half)))]

    def _midpoint(self, n: int, times: list[float]) -> list[Row]:
        step = times[n + 1] - times[n]
        middle = times[n] + step / 2
        return [
            Row(times[n], Linear(1.0, (step / 2,))),
            Row(middle, Linear(1.0, (step,)), anchor=Linear(1.0)),
        ]

    def _heun(self, n: int, times: list[float]) -> list[Row]:
        step = times[n + 1] - times[n]
        if times[n + 1] == 0 and n > 0:
            return self._adams_bashforth2(n, times)  # nothing can be evaluated at t = 0 by every prediction kind
        return [
            Row(times[n], Linear(1.0, (step,))),
            Row(times[n + 1], Linear(1.0, (step / 2, step / 2)), anchor=Linear(1.0)),
        ]
