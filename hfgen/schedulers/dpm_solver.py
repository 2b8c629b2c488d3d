"""DPM-Solver and DPM-Solver++: exponential integrators of the diffusion ODE and SDE in lambda = log(alpha / sigma).

Lu et al. 2022, https://arxiv.org/abs/2206.00927 (noise prediction) and https://arxiv.org/abs/2211.01095 (data
prediction, multistep, SDE). Karras grid: Karras et al. 2022, https://arxiv.org/abs/2206.00364 (eq. 5).
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .solver import Linear, Row, Scales, SchedulerOutput, SolverMixin, scales


class Form(NamedTuple):
    """x_t = keep x_s + scale int_0^1 factor e^{z (1 - u)} D(u) du + noise z, u = (lambda - lambda_s)/h."""

    keep: float
    scale: float
    factor: float
    z: float
    noise: float


class DPMSolverPlusPlusScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Multistep DPM-Solver++ of order 1 to 3."""

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"] = "dpmsolver++",
        solver_type: Literal["midpoint", "heun"] = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: Literal["zero", "sigma_min"] = "zero",
        timestep_spacing: Literal["linspace", "leading", "trailing"] = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        path: str | None = None,
    ):
        self.state_kind = "sample" if algorithm_type.endswith("++") else "epsilon"
        self.history = solver_order
        self._set_up()

    @property
    def end_time(self) -> float:
        return 0.0 if self.config.final_sigmas_type == "zero" else 1 / self.path.num_train_timesteps

    def grid(self, num_inference_steps: int) -> list[float]:
        whole_table = num_inference_steps == self.path.num_train_timesteps
        return self.spaced(num_inference_steps, ends=0 if whole_table else 1)

    def plan(self, times: list[float]) -> list[Row]:
        points = [scales(self.path, t) for t in times]
        steps = len(times) - 1
        rows = []
        for n in range(steps):
            order = self._order(n, steps, points[n + 1])
            form = self._form(points[n], points[n + 1])
            gains = published_gains(form, points[: n + 2][::-1], order, self.config.solver_type)
            rows.append(Row(times[n], Linear(form.keep, gains), noise=form.noise))
        return rows

    def _order(self, n: int, steps: int, then: Scales) -> int:
        """The order of step n: what the history allows, lower where the options or the end call for it."""
        order, few = self.config.solver_order, self.config.lower_order_final and steps < 15
        left = steps - n
        if left == 1 and (few or self.config.euler_at_final or then.sigma == 0):
            return 1
        if left == 2 and few:
            order = min(order, 2)
        return min(order, n + 1)

    def _form(self, now: Scales, then: Scales) -> Form:
        return FORMS[self.config.algorithm_type](now, then)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """From the sample (B, ...) at `timestep` and the network's output (B, ...) to the sample at the next time."""
        out, x_0 = self._advance(self._stage(timestep), model_output, sample, generator, variance_noise)
        return SchedulerOutput(out, x_0) if return_dict else (out, x_0)


def _data_ode(now: Scales, then: Scales) -> Form:
    h = then.lam - now.lam
    return Form(then.sigma / now.sigma, then.alpha, h, -h, 0.0)


def _data_sde(now: Scales, then: Scales) -> Form:
    h = then.lam - now.lam
    noise = then.sigma * math.sqrt(-math.expm1(-2 * h))
    return Form(then.sigma / now.sigma * math.exp(-h), then.alpha, 2 * h, -2 * h, noise)


def _noise_ode(now: Scales, then: Scales) -> Form:
    h = then.lam - now.lam
    return Form(then.alpha / now.alpha, -then.sigma, h, h, 0.0)


def _noise_sde(now: Scales, then: Scales) -> Form:
    h = then.lam - now.lam
    return Form(then.alpha / now.alpha, -then.sigma, 2 * h, h, then.sigma * math.sqrt(math.expm1(2 * h)))


FORMS = {"dpmsolver++": _data_ode, "sde-dpmsolver++": _data_sde, "dpmsolver": _noise_ode, "sde-dpmsolver": _noise_sde}


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^{z (1 - u)} u^{k-1}/(k-1)! du."""
    if abs(z) < 1:
        term, total = 1 / math.factorial(k), 0.0
        for m in range(20):
            total += term
            term *= z / (m + k + 1)
        return total
    value = math.exp(z)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def published_gains(form: Form, points: list[Scales], order: int, solver_type: str) -> tuple[float, ...]:
    """The multistep rules as their authors published them; points run from the next time backwards."""
    first = form.scale * form.factor * phi(1, form.z) if math.isfinite(form.z) else form.scale
    h = points[0].lam - points[1].lam
    if order == 1 or h == 0:
        return (first,)
    r_0 = (points[1].lam - points[2].lam) / h
    slope = form.scale * form.factor * phi(2, form.z) if solver_type == "heun" or order == 3 else first / 2
    if order == 2:
        return (first + slope / r_0, -slope / r_0)
    r_1 = (points[2].lam - points[3].lam) / h
    bend = form.scale * form.factor * phi(3, form.z)
    return tuple(_differences(r_0, r_1, first, slope, bend))


def _differences(r_0: float, r_1: float, first: float, slope: float, bend: float) -> list[float]:
    mix = r_0 / (r_0 + r_1)
    near = slope * (1 + mix) + bend / (r_0 + r_1)
    far = -slope * mix - bend / (r_0 + r_1)
    return [first + near / r_0, -near / r_0 + far / r_1, -far / r_1]
