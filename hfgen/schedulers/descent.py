"""Gradient descent on an energy, with Nesterov's momentum and a rule that ends it."""

from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..distributions.chains import root_mean_square
from ..utils.arguments import checked
from .chain import ChainMixin


class GradientDescentScheduler(ChainMixin, SchedulerMixin, ConfigMixin):
    """Gradient descent from noise to a minimum of the energy,

        x_{k+1} = y_k - h dE/dx(y_k),    y_{k+1} = x_{k+1} + m (x_{k+1} - x_k),

    with Nesterov's momentum m (Nesterov 1983), the samplers of equilibrium matching (Wang & Du 2025,
    https://arxiv.org/abs/2510.02300). An item whose gradient has a root mean square of at most `tolerance` has
    arrived, and moves no more: hard images take more steps than easy ones.

    The samples that `step` takes and returns are the y_k, where the gradient is needed; the last one is x.

    Args:
        step_size: h, above 0.
        momentum: m, at least 0 and below 1; 0 is plain descent.
        tolerance: of the stopping rule, at least 0; 0: all steps are made.
        initial_scale: standard deviation of the noise that samples begin as.

    Raises:
        ValueError: a number out of range.
    """

    draws_noise = False
    default_num_inference_steps = 50

    @checked
    @register_to_config
    def __init__(
        self, step_size: float = 0.05, momentum: float = 0.0, tolerance: float = 0.0, initial_scale: float = 1.0
    ):
        if not 0 <= momentum < 1 or not 0 <= tolerance < float("inf"):
            raise ValueError(f"{momentum=} must be at least 0 and below 1, and {tolerance=} at least 0 and finite.")
        self._set_up()

    def _begin(self) -> None:
        super()._begin()
        self._before: Tensor | None = None
        self._arrived: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether all items have arrived."""
        return self._arrived is not None and bool(self._arrived.all())

    def _moved(self, gradient: Tensor, sample: Tensor, energy: Tensor | None, generator: Any) -> Tensor:
        moved = torch.add(sample, gradient.to(sample.dtype), alpha=-self.config.step_size)
        before = sample if self._before is None else self._before
        onwards = not self._is_last and self.config.momentum
        out = torch.lerp(before, moved, 1 + self.config.momentum) if onwards else moved
        if self.config.tolerance:
            arrived = root_mean_square(gradient.float()) <= self.config.tolerance
            self._arrived = arrived if self._arrived is None else self._arrived | arrived
            still = self._arrived.reshape(-1, *[1] * (sample.ndim - 1))
            out, moved = torch.where(still, sample, out), torch.where(still, sample, moved)
        self._before = moved
        return out
