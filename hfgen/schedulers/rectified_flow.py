"""Solvers of dx/dt = v(x, t) for rectified flow, on any path.

Euler: Liu et al. 2023, https://arxiv.org/abs/2209.03003. Time shift: Esser et al. 2024,
https://arxiv.org/abs/2403.03206 (eq. 23). Heun with a final Euler step: Karras et al. 2022,
https://arxiv.org/abs/2206.00364. The rules themselves: Hairer, Norsett & Wanner 1993.
"""

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..utils.arguments import checked
from .adams_bashforth import adams_rows, adams_step, straight_coordinates
from .grids import balanced_shares, share_to_lambda, shifted
from .solver import SolverMixin
from .table import Combination, Scales, SchedulerOutput, SolverRow, scales

_SOLVERS = ("predictor_corrector", "adams_bashforth2", "euler", "midpoint", "heun", "flow_map")


class RectifiedFlowScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Solvers of the probability-flow ODE in straight coordinates (`adams_bashforth.py`), from noise to data.

    On the straight path the ODE is dx/dt = v from t = 1 to t = 0. Other paths are transformed to it, so that a network
    with any prediction on any path can be sampled, and Euler's method is DDIM. Adams-Bashforth 2,

        x_{n+1} = x_n + h_n ((1 + r/2) v_n - (r/2) v_{n-1}),    h_n = t_{n+1} - t_n,  r = h_n / h_{n-1},

    has order 2 with one evaluation per step. The default adds a third-order corrector that needs no further evaluation.
    Midpoint and Heun evaluate twice per step (2 n and 2 n - 1 evaluations for n steps).

    Args:
        num_train_timesteps: the network's time step at t = 1.
        solver: `predictor_corrector`, `adams_bashforth2`, `euler`, `midpoint` or `heun`; or `flow_map`, the steps of
            Euler for a network that says the mean velocity to the end of each of them, see `r_timesteps`.
        shift: s > 0 moves the grid towards noise (s > 1) or data, t' = s t / (1 + (s - 1) t).
        power: on the straight path the grid before the shift is (1 - i/n)^power, see
            `hfgen.schedulers.grids.balanced_shares`; 1 is uniform, more is finer near the data.
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        path, beta_start, ..., sigma_max: `straight`, or any other of `hfgen.paths.PATH_OPTIONS` and its parameters.
        solver_type: former name of `solver`. It is not in the configuration, where diffusers' solvers have an option of
            this name with other values.

    Raises:
        ValueError: an unknown choice, or a shift or power that is not positive.
    """

    state_kind = "velocity"
    history_length = 3
    ignore_for_config = ("solver_type", "sigma_min", "sigma_max")

    @checked
    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        solver: Literal[
            "predictor_corrector", "adams_bashforth2", "euler", "midpoint", "heun", "flow_map"
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
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        solver_type: str | None = None,
    ):
        if solver_type is not None:
            left = [key for key in self.config.get("_use_default_values", ()) if key != "solver"]
            self.register_to_config(solver=solver_type, _use_default_values=left)
        if self.config.solver not in _SOLVERS:
            name = "solver" if solver_type is None else "solver_type"
            raise ValueError(f"{name}={self.config.solver!r} is not known. Choose one of: {', '.join(_SOLVERS)}.")
        if not (0 < shift < math.inf and 0 < power < math.inf):
            raise ValueError(f"shift={shift} and power={power} must be above 0; 1 and 1 make the uniform grid.")
        self._set_up(sigma_min=sigma_min, sigma_max=sigma_max)

    @classmethod
    def _translated(cls, config: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Replace `solver_type`, unless it is the option of one of diffusers' solvers, by `solver`."""
        if "solver_type" in kwargs:
            kwargs["solver"] = kwargs.pop("solver_type")
        solver = config.get("solver_type")
        if "solver" not in config and solver in _SOLVERS and not {"solver_order", "algorithm_type"} & set(config):
            config = {**config, "solver": solver}
        return {key: value for key, value in config.items() if key != "solver_type"}

    @property
    def order(self) -> int:
        """Evaluations of the network in a step. The last step of Heun has one."""
        return 2 if self.config.solver in ("midpoint", "heun") else 1

    @property
    def default_num_inference_steps(self) -> int:
        """Number of steps if none is given: 4 of `flow_map`, else 20."""
        return 4 if self.config.solver == "flow_map" else 20

    @property
    def r_timesteps(self) -> Tensor | None:
        """The time step at the end of each step (n,), which the network of a flow map takes as `r_timestep`. None for
        all solvers but `flow_map`: they need the velocity at `timesteps` itself."""
        if self.config.solver != "flow_map":
            return None
        ends = torch.tensor(self._times[1:], dtype=torch.float64)
        return self.path.timestep(ends).clamp(min=0).to(self.timesteps)

    @checked
    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        r_timestep: Any = None,
    ) -> SchedulerOutput | tuple:
        """Step from the sample at `timestep` to the next time on the grid, or with `flow_map` to `r_timestep`.

        Args:
            model_output, timestep, sample, generator, return_dict: see `SolverMixin.step`.
            r_timestep: the end of a step of `flow_map`, on the grid or not; None: the next time.

        Raises:
            ValueError: an end for another solver.
        """
        if r_timestep is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        if self.config.solver != "flow_map":
            raise ValueError(f"r_timestep={r_timestep} is for flow maps. Set solver='flow_map', or leave it out.")
        ends = (torch.as_tensor(value, dtype=torch.float64) for value in (timestep, r_timestep))
        t, r = (float(self.path.time_of(value)) for value in ends)
        out, x_0 = self._advance(self._make_stages(self.plan([t, r]))[0], model_output, sample)
        return SchedulerOutput(out, x_0) if return_dict else (out, x_0)

    def grid(self, num_inference_steps: int) -> list[float]:
        start = straight_coordinates(scales(self.path, self.start_time))[0]
        shares = balanced_shares(num_inference_steps, start, self.clock, self.config.power)
        return self.times_at_levels([share_to_lambda(s) for s in shifted(shares, self.config.shift)])

    def plan(self, times: list[float]) -> list[SolverRow]:
        points = [scales(self.path, t) for t in times]
        return getattr(self, f"_{self.config.solver}")(times, points)

    def _euler(self, times: list[float], points: list[Scales]) -> list[SolverRow]:
        return adams_rows(times, points, predictor=1)

    _flow_map = _euler

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

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this row. If it is the second evaluation of a step, the rest of this step is one of Euler's."""
        super().set_begin_index(begin_index)
        row = self._stages[begin_index].row
        if row.anchor is not None:
            now = scales(self.path, row.t)
            then = scales(self.path, next(time for time in self._times if time < row.t + 1e-9))
            stage = self._make_stages([SolverRow(row.t, adams_step(now, then, [now]))])
            self._stages = [*self._stages[:begin_index], *stage, *self._stages[begin_index + 1 :]]
