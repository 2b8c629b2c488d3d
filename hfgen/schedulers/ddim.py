"""DDIM and its inversion: Song, Meng & Ermon 2021, https://arxiv.org/abs/2010.02502."""

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..paths import determinant
from ..utils.arguments import checked
from .adams_bashforth import adams_step, straight_coordinates
from .configuration import HEADS
from .reverse_variance import OptimalVarianceMixin, check_table
from .solver import SolverMixin
from .table import Combination, Scales, SchedulerOutput, SolverRow, posterior, scales


class DDIMScheduler(OptimalVarianceMixin, SolverMixin, SchedulerMixin, ConfigMixin):
    """DDIM: a step from time t to s < t with a share eta of the ancestral noise (eq. 12 and 16, for any path):

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z,    std = eta * the standard deviation of q(x_s|x_t,x_0)

    eta = 0 is a first-order step of the probability-flow ODE, eta = 1 is DDPM. A step always goes to the next time on
    the grid, whatever the number of steps.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table of a
            discrete path, see `hfgen.paths.betas_of`.
        clip_sample, clip_sample_range: clamp the estimate of x_0. Off by default, because it costs quality: unless
            `step` gets `use_clipped_model_output=True`, eps is not recomputed from the clipped x_0, and the two do not
            agree.
        set_alpha_to_one: end at clean data; otherwise end at the first entry of the table.
        steps_offset, timestep_spacing: see `hfgen.schedulers.grids.spaced_positions`.
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: `hfgen.schedulers.thresholding.dynamic_threshold`.
        path, sigma_min, sigma_max: None or `discrete`, or any other of `hfgen.paths.PATH_OPTIONS` and its parameters.
        optimal_variance: draw noise of the best variance for this eta, see `hfgen.schedulers.reverse_variance`. With
            eta = 0, too, a step then draws what x_t leaves open of the data. Off: a share of the ancestral noise.
        variance_type: of these `npr`, `sn` or `ocm`, by a head; any other: by the table.
        data_variances: the table, as `DDPMScheduler` has it.

    Raises:
        ValueError: `optimal_variance` without a table or a head.
    """

    limits_in_step = True
    default_num_inference_steps = 50
    _eta = 0.0

    @checked
    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        clip_sample: bool = False,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Literal["leading", "trailing", "linspace"] = "trailing",
        rescale_betas_zero_snr: bool = False,
        path: str | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        optimal_variance: bool = False,
        variance_type: str | None = None,
        data_variances: Any = None,
    ):
        if data_variances is not None:
            check_table(data_variances)
        if optimal_variance and data_variances is None and variance_type not in HEADS:
            raise ValueError("optimal_variance=True needs a variance that was measured: hfgen calibrate FOLDER")
        self._set_up(sigma_min=sigma_min, sigma_max=sigma_max)

    @property
    def needs_head(self) -> bool:
        """Whether a step needs what a variance head says."""
        return self.config.optimal_variance and self.config.variance_type in HEADS

    @property
    def end_time(self) -> float:
        return 0.0 if self.config.set_alpha_to_one else 1 / self.path.num_train_timesteps

    def grid(self, num_inference_steps: int) -> list[float]:
        return self.spaced_times(num_inference_steps)

    def plan(self, times: list[float]) -> list[SolverRow]:
        points = [scales(self.path, t) for t in times]
        rows = []
        for t, now, then in zip(times, points, points[1:], strict=False):
            variance = self._eta**2 * posterior(now, then, self.discrete)[2]
            keep = math.sqrt(max(then.sigma**2 - variance, 0.0)) / now.sigma
            gain, std = then.alpha - keep * now.alpha, math.sqrt(variance)
            if self.config.optimal_variance and then.sigma > 0:
                # A head says the variance of each dimension in `step`, which then scales the noise.
                std = 1.0 if self.needs_head else self.clipped_std(variance + gain**2 * self.data_variance(t), then)
            rows.append(SolverRow(t, Combination(keep, (gain,)), noise=std))
        return rows

    @checked
    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """Step from the sample at `timestep` to the next time on the grid.

        Args:
            model_output (B, ...): the network's output for the sample.
            timestep: one of `timesteps`, or any other time step; the step then goes to the next one on the grid.
            sample (B, ...): the current sample.
            eta: share of the ancestral noise, in [0, 1].
            use_clipped_model_output: whether eps is recomputed from a clipped x_0.
            generator: generator of the noise; or
            variance_noise (B, ...): the noise itself.
            return_dict: whether to return a SchedulerOutput instead of a tuple.

        Raises:
            ValueError: both `generator` and `variance_noise` are given, or `eta` is out of range.
        """
        if generator is not None and variance_noise is not None:
            raise ValueError("Give either generator or variance_noise, not both.")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} must be from 0 to 1.")
        if eta != self._eta:
            self._eta = eta
            self._stages = self._make_stages(self.plan(self._times))
        stage = self._stage(timestep)
        if self.needs_head:
            model_output, std = self._std(stage.row, model_output, sample)
            variance_noise = (
                variance_noise
                if variance_noise is not None
                else randn_tensor(std.shape, generator=generator, device=std.device, dtype=std.dtype)
            )
            variance_noise = std * variance_noise
        out, x_0 = self._advance(stage, model_output, sample, generator, variance_noise)
        if self._clip is not None:
            gain = stage.row.next.gains[0]
            if not use_clipped_model_output:
                gain += stage.row.next.keep * scales(self.path, stage.row.t).alpha
            out, x_0 = _replace_x_0(out, x_0, self._clip(x_0), gain)
        return SchedulerOutput(out, x_0) if return_dict else (out, x_0)

    def _std(self, row: SolverRow, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prediction (B, C, ...) without the head's channels, and the step's standard deviation by them."""
        output, raw = self._split(output, sample)
        now, then = scales(self.path, row.t), scales(self.path, self._next_time(row.t))
        drawn = self._eta**2 * posterior(now, then, self.discrete)[2]
        left = self.data_variance(row.t, output.to(torch.float32), raw)
        return output, self.clipped_std(drawn + row.next.gains[0] ** 2 * left, then)


def _replace_x_0(out: Tensor, x_0: Tensor, limited: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """Replace the estimate of x_0, which enters the sample with the factor `gain`, by a limited one. Return both."""
    return (out.to(x_0.dtype) + gain * (limited - x_0)).to(out.dtype), limited


class DDIMInverseScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """The inverse of DDIM's steps, from data to noise.

    In straight coordinates (`adams_bashforth.py`) DDIM steps from y_t to y_s = y_t + (s - t) D(y_t). Its inverse is
    therefore implicit, y_t = y_s + (t - s) D(y_t). This scheduler predicts y_t with a D extrapolated from the last two,
    evaluates the network there, and repeats the step with the new D. It needs one evaluation per step, at DDIM's own
    times. Without `corrector` the network is evaluated at y_s instead of y_t: the explicit inverse of Mokady et al.
    2023, https://arxiv.org/abs/2211.09794, and of diffusers. The error of its round trip is an order of magnitude
    larger.

    `timesteps` rise. The first step starts from clean data. It starts from the first entry of the table with
    `set_alpha_to_one=False`, or if the prediction does not determine eps at clean data.

    Args: those of `DDIMScheduler`, and
        corrector: as above. It is not used if x_0 is limited (`clip_sample`, `thresholding`).
    """

    state_kind = "velocity"
    history_length = 2
    limits_in_step = True
    rising = True
    default_num_inference_steps = 50

    @checked
    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        clip_sample: bool = False,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Literal["leading", "trailing", "linspace"] = "trailing",
        rescale_betas_zero_snr: bool = False,
        path: str | None = None,
        corrector: bool = True,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ):
        self._set_up(sigma_min=sigma_min, sigma_max=sigma_max)

    @property
    def end_time(self) -> float:
        """The time of the data that are inverted."""
        if self.config.set_alpha_to_one and not self._singular_at_data():
            return 0.0
        return 1 / self.path.num_train_timesteps

    def _singular_at_data(self) -> bool:
        point = self.path(torch.zeros((), dtype=torch.float64))
        det = determinant(self.config.prediction_type, point._replace(sigma=torch.zeros_like(point.sigma)))
        return not (det.isfinite() and det.abs() > 1e-4)

    def grid(self, num_inference_steps: int) -> list[float]:
        return self.spaced_times(num_inference_steps)[::-1]

    def plan(self, times: list[float]) -> list[SolverRow]:
        points = [scales(self.path, t) for t in times]
        rows = [SolverRow(times[1], adams_step(points[0], points[1], points[1:2]), sample_time=times[0])]
        if self._clip is not None or not self.config.corrector:
            moves = zip(times[1:], times[2:], points[1:], points[2:], strict=False)
            return rows + [SolverRow(t, adams_step(now, then, [then]), sample_time=s) for s, t, now, then in moves]
        for n in range(2, len(times)):
            rows[-1] = rows[-1]._replace(next=_extrapolated_step(points[n - 2 : n + 1], from_data=n == 2))
            rows.append(SolverRow(times[n], Combination(1.0), anchor=_inverse_steps(points[n - 1 - (n == 2) : n + 1])))
        return rows

    @checked
    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple:
        """Step from the sample at which the network was evaluated to the next sample to evaluate it at.

        Args:
            model_output (B, ...): the network's output for the sample at `timestep`.
            timestep: one of `timesteps`.
            sample (B, ...): the current sample.
            return_dict: whether to return a SchedulerOutput instead of a tuple.
        """
        stage = self._stage(timestep)
        out, _ = self._advance(stage, model_output, sample)
        velocity, x = self._history[0], sample.to(self._history[0].dtype)
        sample_time = stage.row.t if stage.row.sample_time is None else stage.row.sample_time
        now = scales(self.path, sample_time)
        x_0 = (x - now.sigma * velocity) / (now.alpha + now.sigma)
        if self._clip is not None:
            out, x_0 = _replace_x_0(out, x_0, self._clip(x_0), scales(self.path, stage.row.t).alpha)
        return SchedulerOutput(out, x_0) if return_dict else (out, x_0)

    def _evaluation_times(self, times: list[float]) -> list[float]:
        return times[1:]

    def _off_grid_times(self, t: float) -> list[float]:
        return [max((time for time in self._times if time < t - 1e-9), default=self._times[0]), t]


def _inverse_steps(points: list[Scales]) -> Combination:
    """Compute x at the last of `points` from x at the first by inverse DDIM steps, each with D at its end."""
    first, last = straight_coordinates(points[0]), straight_coordinates(points[-1])
    shares = [straight_coordinates(point)[0] for point in points]
    moves = tuple(last[1] * (end - start) for start, end in pairwise(shares))
    return Combination(last[1] / first[1], moves[::-1])


def _extrapolated_step(points: list[Scales], from_data: bool) -> Combination:
    """Compute the step from the second of three points to the third, with D extrapolated from the last two values.

    With `from_data`, compute both steps from the first point to the third, with D of the second point only.
    """
    (first, rho_first), (start, rho), (end, rho_end) = map(straight_coordinates, points)
    if from_data:
        return Combination(rho_end / rho_first, (rho_end * (end - first),))
    growth, step = (end - start) / (start - first), rho_end * (end - start)
    return Combination(rho_end / rho, (step * (1 + growth), -step * growth))
