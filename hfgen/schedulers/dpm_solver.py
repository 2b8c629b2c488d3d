"""Fast solvers of the diffusion ODE and SDE: DPM-Solver++, its relatives, and a predictor-corrector.

Lu et al. 2022, https://arxiv.org/abs/2206.00927 (DPM-Solver) and https://arxiv.org/abs/2211.01095 (DPM-Solver++);
predictor and corrector: Zhao et al. 2023, https://arxiv.org/abs/2302.04867 (UniPC).
"""

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..utils.arguments import checked
from .adams_bashforth import adams_rows, straight_coordinates
from .configuration import default_options
from .exponential import FORMS, multistep, singlestep
from .grids import LEVEL_GRIDS, balanced_shares, share_to_lambda, shifted
from .solver import SolverMixin
from .table import NO_SIGNAL, Combination, Scales, SchedulerOutput, SolverRow, scales

LEAST_SIGNAL = 0.005
"""Smallest alpha at the start of a method with D = eps. Noise in place of x_t shifts samples by .005 deviations."""

_METHODS = ("predictor_corrector", "multistep", "singlestep")
_SOLVER_TYPES = ("midpoint", "heun")
_GRID_OPTIONS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "lambda",
    "use_lu_lambdas": "lambda",
    "use_beta_sigmas": "beta",
}


class DPMSolverPlusPlusScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Solvers of the diffusion ODE or SDE with few evaluations: DPM-Solver, DPM-Solver++ and, by default, a better one.

    The default is a predictor of order 2 and a corrector of order 3 with one network evaluation per step, in straight
    coordinates (`adams_bashforth.py`) on a grid that is even in them. diffusers' schedulers are reproduced by their own
    options: `from_config` follows every option that a configuration of theirs sets explicitly.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table of a
            discrete path, see `hfgen.paths.betas_of`.
        solver_order: 1, 2 or 3; 1 is DDIM.
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: `hfgen.schedulers.thresholding.dynamic_threshold`.
        algorithm_type: `dpmsolver++` or `dpmsolver`, D = x_0 or eps; with `sde-`, the SDE. `sde-dpmsolver` is published
            for `multistep` up to order 2; its order 3 is order 2.
        solver_type: `midpoint` or `heun`, the two published second-order rules of `multistep` and `singlestep`.
        lower_order_final: for these two methods, lower orders in the last steps if there are fewer than 15.
        euler_at_final: for these two methods, order 1 in the last step.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas: the grids `karras`, `lambda`, `beta`
            and `lambda` of `hfgen.schedulers.grids.LEVEL_GRIDS`.
        use_flow_sigmas: diffusers' name for the straight path.
        flow_shift: time shift of the straight path's `timestep_spacing` grids.
        final_sigmas_type: end at `zero` noise or at the smallest noise of the table, `sigma_min`.
        lambda_min_clipped: lower bound of lambda at the start.
        variance_type: `learned` or `learned_range` for networks whose output has a second half, or what `hfgen
            calibrate` states. It is not used here.
        timestep_spacing, steps_offset: grids in time, used if set explicitly; see
            `hfgen.schedulers.grids.spaced_positions`.
        path, sigma_min, sigma_max: None or `discrete`, or any other of `hfgen.paths.PATH_OPTIONS` and its parameters.
        method: `predictor_corrector`, `multistep` or `singlestep`. The last two integrate in lambda = log(alpha/sigma)
            and solve the exponential part exactly (`hfgen.schedulers.exponential`). None: `predictor_corrector` with
            `dpmsolver++`, else `multistep`.
        grid_type: `balanced`, `lambda`, `karras`, `beta`, or `spacing` for `timestep_spacing`. None: the grid that the
            options above name, or `balanced` if they name none.

    Raises:
        ValueError: an unknown choice, two grids at once, or an order other than 1, 2, 3.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        solver_order: int = 3,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"] = "dpmsolver++",
        solver_type: Literal["midpoint", "heun"] = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: Literal["zero", "sigma_min"] = "zero",
        lambda_min_clipped: float = -math.inf,
        variance_type: str | None = None,
        timestep_spacing: Literal["linspace", "leading", "trailing"] = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        path: str | None = None,
        method: Literal["predictor_corrector", "multistep", "singlestep"] | None = None,
        grid_type: str | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ):
        if algorithm_type not in FORMS:
            raise ValueError(f"algorithm_type={algorithm_type!r} is not known. Choose one of: {', '.join(FORMS)}.")
        if solver_order not in (1, 2, 3):
            raise ValueError(f"solver_order={solver_order} must be 1, 2 or 3.")
        self._resolve(method, grid_type)
        state = "sample" if algorithm_type.endswith("++") else "epsilon"
        self.state_kind = "velocity" if self.config.method == "predictor_corrector" else state
        self.history_length = solver_order
        self._set_up(sigma_min=sigma_min, sigma_max=sigma_max)

    def _resolve(self, method: str | None, grid_type: str | None) -> None:
        """Replace None by its meaning in the configuration, so that a saved configuration is explicit."""
        config = self.config
        if method is None:
            method = "predictor_corrector" if config.algorithm_type == "dpmsolver++" else "multistep"
        if grid_type is None:
            grids = [name for option, name in _GRID_OPTIONS.items() if config[option]]
            if len(grids) > 1:
                raise ValueError(f"Use only one of {', '.join(_GRID_OPTIONS)}.")
            explicit = {"timestep_spacing", "steps_offset"} - set(config.get("_use_default_values", ()))
            grid_type = grids[0] if grids else "spacing" if explicit else "balanced"
        if method not in _METHODS or config.solver_type not in _SOLVER_TYPES:
            raise ValueError(
                f"method={method!r} must be one of {', '.join(_METHODS)}, and "
                f"solver_type={config.solver_type!r} one of {', '.join(_SOLVER_TYPES)}."
            )
        if method == "predictor_corrector" and config.algorithm_type != "dpmsolver++":
            raise ValueError(f"algorithm_type={config.algorithm_type!r} needs method='multistep' or 'singlestep'.")
        if method == "singlestep" and config.algorithm_type == "sde-dpmsolver" and config.solver_order > 1:
            raise ValueError("algorithm_type='sde-dpmsolver' needs method='multistep' or solver_order=1.")
        if grid_type not in (*LEVEL_GRIDS, "balanced", "spacing"):
            names = ", ".join((*LEVEL_GRIDS, "balanced", "spacing"))
            raise ValueError(f"grid_type={grid_type!r} is not known. Choose one of: {names}.")
        if config.use_flow_sigmas and config.path not in (None, "straight"):
            raise ValueError(f"path={config.path!r} and use_flow_sigmas=True contradict each other. Leave one out.")
        self.register_to_config(method=method, grid_type=grid_type)

    @classmethod
    def _translated(cls, config: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keep what diffusers' solvers set explicitly, and drop the rules of those that name them differently."""
        return with_published_method(cls, config, kwargs)

    @property
    def start_time(self) -> float:
        """The time that sampling starts from.

        In lambda it is never a time with alpha = 0, where lambda is infinite. With D = eps it is the time at which
        alpha is `LEAST_SIGNAL`: the first step multiplies x and eps by alpha_t / alpha_s.
        """
        start, steps = super().start_time, self.path.num_train_timesteps
        least = LEAST_SIGNAL if self.config.algorithm_type.endswith("dpmsolver") else NO_SIGNAL
        if self.config.method != "predictor_corrector" and scales(self.path, start).alpha < least:
            log_snr = 2 * math.log(LEAST_SIGNAL)  # sigma is 1 there, except on a path with alpha = 1
            later = float(self.path.time(torch.tensor(log_snr, dtype=torch.float64)))
            start = math.floor(later * steps) / steps if least == LEAST_SIGNAL else 1 - 1 / steps
        if self.config.lambda_min_clipped == -math.inf:
            return start
        clipped = float(self.path.time(torch.tensor(2 * self.config.lambda_min_clipped, dtype=torch.float64)))
        steps = self.path.num_train_timesteps
        return min(start, math.floor(clipped * steps) / steps if self.discrete else clipped)

    @property
    def end_time(self) -> float:
        return 0.0 if self.config.final_sigmas_type == "zero" else 1 / self.path.num_train_timesteps

    def grid(self, num_inference_steps: int) -> list[float]:
        steps = self.path.num_train_timesteps
        if self.discrete and num_inference_steps == steps:
            return [*(i / steps for i in range(steps, 0, -1)), self.end_time]
        if self.config.grid_type == "spacing":
            times = self.spaced_times(num_inference_steps, ends=1)
            return shifted(times, self.config.get("shift")) if self.config.path == "straight" else times
        if self.config.grid_type == "balanced":
            first = straight_coordinates(scales(self.path, self.start_time))[0]
            shares = balanced_shares(num_inference_steps, first, self.clock)
            return self.times_at_levels([share_to_lambda(s) for s in shares])
        start, end = scales(self.path, self.start_time), scales(self.path, 1 / steps).lam
        if start.alpha < NO_SIGNAL:
            start = scales(self.path, 1 - 1 / steps)
        return self.times_at_levels(LEVEL_GRIDS[self.config.grid_type](num_inference_steps, start.lam, end))

    def plan(self, times: list[float]) -> list[SolverRow]:
        points = [scales(self.path, t) for t in times]
        if self.config.method != "predictor_corrector" and points[0].alpha < NO_SIGNAL:
            first = float(self.path.timestep(torch.tensor(times[0])))
            raise ValueError(f"method={self.config.method!r} can't start at time step {first}, where alpha is 0.")
        return getattr(self, f"_{self.config.method}")(times, points)

    def _predictor_corrector(self, times: list[float], points: list[Scales]) -> list[SolverRow]:
        order = self.config.solver_order
        return adams_rows(times, points, max(order - 1, 1), order if order > 1 else 0, self.clock)

    def _multistep(self, times: list[float], points: list[Scales]) -> list[SolverRow]:
        rows = []
        for n, (now, then) in enumerate(pairwise(points)):
            form = FORMS[self.config.algorithm_type](now, then)
            gains = multistep(form, points[n::-1], self._order(n, len(points) - 1, then), self.config.solver_type)
            rows.append(SolverRow(times[n], Combination(form.keep, gains), noise=form.noise))
        return rows

    def _order(self, n: int, steps: int, then: Scales) -> int:
        """Return the order of step n of `multistep`: limited by the history, the options and the end of the grid."""
        largest = 2 if self.config.algorithm_type == "sde-dpmsolver" else 3
        order, left = min(self.config.solver_order, n + 1, largest), steps - n
        few = self.config.lower_order_final and steps < 15
        if left == 1 and (few or self.config.euler_at_final or then.sigma == 0):
            return 1
        return min(order, 2) if left == 2 and few else order

    def _singlestep(self, times: list[float], points: list[Scales]) -> list[SolverRow]:
        to_zero = points[-1].sigma == 0
        split = to_zero or self.config.lower_order_final
        steps = len(points) - 1
        orders = block_orders(len(self._times) - 1, self.config.solver_order, to_zero, split)[-steps:]
        rows = []
        for n, order in enumerate(min(order, n + 1) for n, order in enumerate(orders)):  # a block that is cut has fewer
            now, then = points[n + 1 - order], points[n + 1]  # `now` is the start of the block
            form = FORMS[self.config.algorithm_type](now, then)
            gains = singlestep(form, points[n::-1], order, self.config.solver_type)
            anchor = Combination(1.0) if order > 1 else None
            rows.append(SolverRow(times[n], Combination(form.keep, gains), anchor, form.noise))
        return rows

    @checked
    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """Step from the sample at `timestep` to the next time on the grid.

        Args:
            model_output (B, C, ...): the network's output for the sample; (B, 2 C, ...) with a `variance_type`.
            timestep: one of `timesteps`, in their order; the first may be any of them (image to image).
            sample (B, C, ...): the current sample.
            generator: generator of the SDE's noise; or
            variance_noise (B, C, ...): the noise itself.
            return_dict: whether to return a SchedulerOutput instead of a tuple.
        """
        if self.config.variance_type is not None:
            model_output = model_output[:, : sample.shape[1]]
        out, x_0 = self._advance(self._stage(timestep), model_output, sample, generator, variance_noise)
        return SchedulerOutput(out, x_0) if return_dict else (out, x_0)


def block_orders(steps: int, order: int, to_zero: bool, split: bool) -> list[int]:
    """Return the order of each of `steps` evaluations of the single-step method.

    They form blocks 1, 2, ..., order, and a last block of lower order if `order` does not divide `steps`.

    Args:
        steps: number of evaluations.
        order: 1, 2 or 3.
        to_zero: whether the last evaluation ends at zero noise; it then has order 1.
        split: whether the last block is split into lower orders if `order` divides `steps`.
    """
    full, rest = divmod(steps, order)
    tail = list(range(1, rest + 1))
    if order > 1 and rest == 0 and split:
        full, tail = full - 1, [*range(1, order), 1]
    orders = list(range(1, order + 1)) * full + tail
    return [*orders[:-1], 1] if to_zero else orders


def with_published_method(cls: type, config: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Set `method` in `kwargs` if the configuration is of diffusers' DPM-Solver and sets its rule explicitly.

    The class is recognised by its options, because a configuration in memory does not hold the class's name. UniPC and
    DEIS name their rules differently; these names are left out.
    """
    rules = {"solver_type": _SOLVER_TYPES, "algorithm_type": FORMS}
    foreign = {key for key, names in rules.items() if config.get(key, next(iter(names))) not in names}
    if foreign or "predict_x0" in config:
        return {key: value for key, value in config.items() if key not in foreign}
    explicit = {"solver_order", *rules} & set(config) - default_options(cls, config)
    if "method" in config or "lambda_min_clipped" not in config or not explicit:
        return config
    method = "multistep" if "euler_at_final" in config else "singlestep"
    kwargs.update({"method": method, "solver_order": config["solver_order"], **kwargs})
    return config
