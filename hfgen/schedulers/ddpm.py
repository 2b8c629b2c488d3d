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
from .configuration import LEARNED
from .solver import SolverMixin
from .table import Combination, SchedulerOutput, SolverRow, posterior, scales

logger = logging.getLogger(__name__)

_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", *LEARNED)


class DDPMScheduler(SolverMixin, SchedulerMixin, ConfigMixin):
    """Ancestral sampling: x_s ~ q(x_s | x_t, x_0) with the network's estimate of x_0, see `hfgen.schedulers.table`.

    Samples follow the reverse-time SDE. Any path and any spacing may be used. The last step returns the estimate of
    x_0.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table of a
            discrete path, see `hfgen.paths.betas_of`.
        variance_type: `fixed_small`, the variance of q(x_s | x_t, x_0); `fixed_large`, that of q(x_t | x_s), DDPM's
            beta; `learned` or `learned_range`, the second half of the network's output channels. They hold the variance
            itself, or a value in [-1, 1]: the position of its logarithm between small (-1) and large (1). The names
            with `_log` are diffusers' names of the same variances.
        clip_sample, clip_sample_range: clamp the estimate of x_0 to [-clip_sample_range, clip_sample_range].
        prediction_type: what the network predicts, a row of `hfgen.paths.PREDICTIONS`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: `hfgen.schedulers.thresholding.dynamic_threshold`.
        timestep_spacing, steps_offset: see `hfgen.schedulers.grids.spaced_positions`.
        path, sigma_min, sigma_max: None or `discrete`, or any other of `hfgen.paths.PATH_OPTIONS` and its parameters.
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
            "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"
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
    ):
        if variance_type not in _VARIANCES:
            logger.warning(
                "variance_type=%r is not known; 'fixed_small' is used. Choose one of: %s.",
                variance_type,
                ", ".join(_VARIANCES),
            )
        self._set_up(sigma_min=sigma_min, sigma_max=sigma_max)

    def _count(self, num_inference_steps: int | None) -> int:
        if num_inference_steps is None:
            num_inference_steps = self.path.num_train_timesteps
        return super()._count(num_inference_steps)

    def grid(self, num_inference_steps: int) -> list[float]:
        return self.spaced_times(num_inference_steps)

    def plan(self, times: list[float]) -> list[SolverRow]:
        points = [scales(self.path, t) for t in times]
        rows = []
        for t, now, then in zip(times, points, points[1:], strict=False):
            keep, gain, small, large = posterior(now, then, self.discrete)
            variance = large if self.config.variance_type.startswith("fixed_large") else small
            if self.config.variance_type in LEARNED:
                variance = 1.0  # `step` scales the noise, element by element
            rows.append(SolverRow(t, Combination(keep, (gain,)), noise=math.sqrt(variance) if then.sigma > 0 else 0.0))
        return rows

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
        if self.config.variance_type in LEARNED:
            if model_output.shape[1] != 2 * sample.shape[1]:
                raise ValueError(
                    f"variance_type={self.config.variance_type!r} needs a network with {2 * sample.shape[1]} output "
                    f"channels, not {model_output.shape[1]}."
                )
            model_output, raw = model_output.chunk(2, dim=1)
            z = self._learned_std(stage.row.t, raw.to(torch.float32))
            z = z * randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        out, x_0 = self._advance(stage, model_output, sample, generator, z)
        return SchedulerOutput(out, x_0) if return_dict else (out, x_0)

    def _learned_std(self, t: float, raw: Tensor) -> Tensor:
        """Compute the standard deviation at time t from the second half of the network's output."""
        if self.config.variance_type == "learned":
            return raw.clamp(min=0).sqrt()
        _, _, small, large = posterior(scales(self.path, t), scales(self.path, self._next_time(t)), self.discrete)
        low, high = math.log(max(small, 1e-20)), math.log(max(large, 1e-20))
        return torch.exp((low + (raw + 1) / 2 * (high - low)) / 2)
