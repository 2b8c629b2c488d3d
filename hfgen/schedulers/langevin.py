"""Unadjusted Langevin dynamics on an energy."""

import math
from typing import Any

from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..distributions.chains import clipped_gradient, langevin_step
from ..utils.arguments import checked
from .chain import ChainMixin, normal_like


class LangevinScheduler(ChainMixin, SchedulerMixin, ConfigMixin):
    """Unadjusted Langevin dynamics, x' = x - h dE/dx + sqrt(2 h T) z, see `hfgen.distributions.chains.langevin_step`.

    Its samples have the density exp(-E / T) / Z after many steps, with an error of order h that `HamiltonianScheduler`
    removes. In the first `quiet` share of the steps there is no noise: they lead from noise to where data are, as in
    energy matching (Balcerak et al. 2025, https://arxiv.org/abs/2504.10612).

    Args:
        step_size: h, above 0.
        temperature: T, at least 0; 0: gradient descent.
        quiet: share of the steps, from the first on, without noise.
        clip: largest root mean square of a gradient, which longer ones are scaled down to; None: any. It keeps chains
            of a half-trained energy from running away, and changes what they draw.
        bound: states are clamped to [-bound, bound]; None: anything.
        initial_scale: standard deviation of the noise that samples begin as.

    Raises:
        ValueError: a number out of range.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        step_size: float = 0.01,
        temperature: float = 1.0,
        quiet: float = 0.0,
        clip: float | None = None,
        bound: float | None = None,
        initial_scale: float = 1.0,
    ):
        if not 0 <= temperature < math.inf or not 0 <= quiet <= 1:
            raise ValueError(f"{temperature=} must be at least 0 and finite, and {quiet=} a share from 0 to 1.")
        self._set_up(**{name: value for name, value in (("clip", clip), ("bound", bound)) if value is not None})

    def _moved(self, gradient: Tensor, sample: Tensor, energy: Tensor | None, generator: Any) -> Tensor:
        config = self.config
        quiet = self._step_index < round(config.quiet * self.num_inference_steps)
        temperature = 0.0 if quiet else config.temperature
        noise = normal_like(sample, generator) if temperature else sample
        gradient = clipped_gradient(gradient.to(sample.dtype), config.clip)
        out = langevin_step(sample, gradient, noise, config.step_size, temperature)
        if config.bound is not None:
            out = out.clamp(-config.bound, config.bound)
        return out
