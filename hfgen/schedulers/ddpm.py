"""Ancestral sampling: Ho, Jain & Abbeel 2020, https://arxiv.org/abs/2006.11239 (algorithm 2).

Learned variances: Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672 (eq. 15).
"""

import logging
import math
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..utils.arguments import checked
from .configuration import HEADS, LEARNED, OPTIMAL
from .reverse_variance import OptimalVarianceMixin, check_table
from .solver import SolverMixin
from .table import Combination, Scales, SchedulerOutput, SolverRow, posterior, scales

logger = logging.getLogger(__name__)

_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", *LEARNED, *OPTIMAL)


class DDPMScheduler(OptimalVarianceMixin, SolverMixin, SchedulerMixin, ConfigMixin):
    """Ancestral sampling: x_s ~ q(x_s | x_t, x_0) with the network's estimate of x_0, see `hfgen.schedulers.table`.

    Samples follow the reverse-time SDE. Any path and any spacing may be used. The last step returns the estimate of
    x_0.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table of a
            discrete path, see `hfgen.paths.betas_of`.
        variance_type: `fixed_small`, the variance of q(x_s | x_t, x_0); `fixed_large`, that of q(x_t | x_s), DDPM's
            beta; `learned` or `learned_range`, the second half of the network's output channels. They hold the variance
            itself, or a value in [-1, 1]: the position of its logarithm between small (-1) and large (1). `analytic`,
            the best one for all data, from `data_variances`; `npr`, `sn` or `ocm`, the best one for each dimension, by
            a `variance_head`: see `hfgen.schedulers.reverse_variance`. The names with `_log` are diffusers' names of
            the same variances.
        clip_sample, clip_sample_range: clamp the estimate of x_0 to [-clip_sample_range, clip_sample_range].
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: `hfgen.schedulers.thresholding.dynamic_threshold`.
        timestep_spacing, steps_offset: see `hfgen.schedulers.grids.spaced_positions`.
        path, sigma_min, sigma_max: None or `discrete`, or any other of `hfgen.paths.PATH_OPTIONS` and its parameters.
        data_variances: pairs (s, V) of noise levels and variances of the data given x_t, as `hfgen calibrate` measures
            them.
        trajectory: `spaced`, the times by `timestep_spacing`; `optimal`, those of the least variational bound.

    Raises:
        ValueError: `analytic` or `optimal` without `data_variances`.
    """

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
        variance_type: Literal[
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
            "learned",
            "learned_range",
            "analytic",
            "npr",
            "sn",
            "ocm",
        ] = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Literal["linspace", "leading", "trailing"] = "trailing",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        path: str | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        data_variances: Any = None,
        trajectory: Literal["spaced", "optimal"] = "spaced",
    ):
        check_variances(variance_type == "analytic", trajectory, data_variances)
        if variance_type not in _VARIANCES:
            logger.warning(
                "variance_type=%r is not known; 'fixed_small' is used. Choose one of: %s.",
                variance_type,
                ", ".join(_VARIANCES),
            )
        self._set_up(sigma_min=sigma_min, sigma_max=sigma_max)

    def _count(self, num_inference_steps: int | None) -> int:
        if num_inference_steps is None:
            num_inference_steps = len(self.whole_grid()) - 1
        return super()._count(num_inference_steps)

    @property
    def needs_head(self) -> bool:
        """Whether a step needs what a variance head says."""
        return self.config.variance_type in HEADS

    def whole_grid(self) -> list[float]:
        if self.config.trajectory == "optimal":
            return [*reversed(self._candidate_times()), self.end_time]
        return super().whole_grid()

    def grid(self, num_inference_steps: int) -> list[float]:
        if self.config.trajectory == "optimal":
            return self._optimal_times(num_inference_steps)
        return self.spaced_times(num_inference_steps)

    def plan(self, times: list[float]) -> list[SolverRow]:
        points, rows = [scales(self.path, t) for t in times], []
        elementwise = self.config.variance_type in (*LEARNED, *HEADS)  # `step` then scales the noise
        for t, s, now, then in zip(times, times[1:], points, points[1:], strict=False):
            keep, gain, _, _ = posterior(now, then, self.discrete)
            std = 1.0 if elementwise else self._step_std(self.reverse_variance(t, s), then)
            rows.append(SolverRow(t, Combination(keep, (gain,)), noise=std if then.sigma > 0 else 0.0))
        return rows

    def reverse_variance(
        self, t: float, s: float, output: Tensor | None = None, raw: Tensor | None = None, exact: bool = False
    ) -> float | Tensor:
        """Return the variance of a step from time t to s < t: a number, or (B, C, ...) where it is learned.

        Args:
            t, s: the times.
            output, raw (B, C, ...): the network's prediction and the second half of its channels, where it is learned.
            exact: without the rounding of diffusers' tables, see `posterior`.
        """
        _, gain, small, large = posterior(scales(self.path, t), scales(self.path, s), self.discrete and not exact)
        kind = self.config.variance_type
        if kind in OPTIMAL:
            return small + gain**2 * self.data_variance(t, output, raw)
        if kind == "learned":
            return raw.clamp(min=0)
        if kind == "learned_range":
            low, high = math.log(max(small, 1e-20)), math.log(max(large, 1e-20))
            return torch.exp(low + (raw + 1) / 2 * (high - low))
        return large if kind.startswith("fixed_large") else small

    def halves(self, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the network's prediction (B, C, ...) for the sample, and the second half of its channels or None."""
        if self.config.variance_type in (*LEARNED, *HEADS):
            return self._split(output, sample)
        return output, None

    @checked
    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """Step from the sample at `timestep` to the next time on the grid.

        Args:
            model_output (B, C, ...): the network's output for the sample; (B, 2 C, ...) with a learned variance.
            timestep: one of `timesteps`, or any other time step.
            sample (B, C, ...): the current sample.
            generator: generator of the noise, or one for each sample.
            return_dict: whether to return a SchedulerOutput instead of a tuple.

        Raises:
            ValueError: the output does not have the channels that `variance_type` needs.
        """
        stage, z = self._stage(timestep), None
        model_output, raw = self.halves(model_output, sample)
        if raw is not None:
            z = self._std(stage.row.t, model_output.to(torch.float32), raw)
            z = z * randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        out, x_0 = self._advance(stage, model_output, sample, generator, z)
        return SchedulerOutput(out, x_0) if return_dict else (out, x_0)

    def _std(self, t: float, output: Tensor, raw: Tensor) -> Tensor:
        """Compute the standard deviation of the step from time t, from both halves of the network's output."""
        s = self._next_time(t)
        return self._step_std(self.reverse_variance(t, s, output, raw), scales(self.path, s))

    def _step_std(self, variance: Any, then: Scales) -> Any:
        """Return the standard deviation of the noise of a step; an optimal one is clipped."""
        if self.config.variance_type in OPTIMAL:
            return self.clipped_std(variance, then)
        return variance.sqrt() if isinstance(variance, Tensor) else math.sqrt(variance)


def check_variances(tabled: bool, trajectory: str, table: Any) -> None:
    """Raise ValueError for a table of variances that is none or is lacking, or for an unknown trajectory."""
    if trajectory not in ("spaced", "optimal"):
        raise ValueError(f"trajectory={trajectory!r} is not known. Choose one of: spaced, optimal.")
    if table is not None:
        check_table(table)
    elif tabled or trajectory == "optimal":
        option = "trajectory='optimal'" if trajectory == "optimal" else "variance_type='analytic'"
        raise ValueError(f"{option} needs data_variances. Measure them: hfgen calibrate FOLDER")
