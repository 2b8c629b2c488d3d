"""What schedulers share that follow an energy E(x) instead of a path: chains and descents, from noise to samples.

They have diffusers' contract, with other arguments of `step`: the network's output is the gradient dE/dx at the sample,
and `energy` is E(x) itself, for those that accept or reject. The network is told no time, so `timesteps` only count the
evaluations that are left.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..utils.arguments import checked
from .grids import whole_steps
from .table import SchedulerOutput


class ChainMixin:
    """diffusers' contract for schedulers of energies. A mixin of `SchedulerMixin, ConfigMixin` classes with the options
    `step_size` and `initial_scale`. An instance holds the state of one batch.

    Attributes:
        needs_energy: whether `step` takes the energy, besides its gradient.
        draws_noise: whether `step` draws random numbers.
        default_num_inference_steps: number of steps if none is given.
    """

    order = 1
    needs_energy = False
    draws_noise = True
    default_num_inference_steps = 100

    def _set_up(self, **numbers: float) -> None:
        """Refuse numbers that are not positive and finite, and set the default grid; called at the end of `__init__`.

        Raises:
            ValueError: names the number.
        """
        numbers = {"step_size": self.config.step_size, "initial_scale": self.config.initial_scale, **numbers}
        for name, value in numbers.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be positive and finite.")
        # Another scheduler of this energy is given every option, from memory as from a folder.
        self.register_to_config(_use_default_values=[])
        self.set_timesteps()

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that samples begin as."""
        return float(self.config.initial_scale)

    @property
    def finished(self) -> bool:
        """Whether no further step changes a sample. A caller may stop then."""
        return False

    def evaluations(self, num_inference_steps: int) -> int:
        """Return the number of evaluations of the energy in so many steps."""
        return num_inference_steps

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """Begin a batch of so many steps; None: `default_num_inference_steps`.

        Raises:
            ValueError: it is not a whole number from 1.
        """
        count = self.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        if whole_steps(count) < 1:
            raise ValueError(f"num_inference_steps={count} must be at least 1.")
        self.num_inference_steps = count
        self.timesteps = torch.arange(self.evaluations(count) - 1, -1, -1, device=device)
        self._begin()

    def _begin(self) -> None:
        """Forget the last batch."""
        self._step_index = 0

    @property
    def step_index(self) -> int:
        """Number of evaluations so far."""
        return self._step_index

    @checked
    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        energy: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """Go on to where the energy is needed next; after the last evaluation to the sample that is drawn.

        Args:
            model_output (B, ...): dE/dx at the sample.
            timestep: not read.
            sample (B, ...): the current sample.
            energy (B,): E at the sample, which a scheduler with `needs_energy` reads.
            generator: generator of the noise, or one for each sample; read where `draws_noise`.
            return_dict: whether to return a SchedulerOutput instead of a tuple.

        Raises:
            ValueError: there is no energy, and the scheduler needs it.
        """
        if self.needs_energy and energy is None:
            raise ValueError(
                f"{type(self).__name__} accepts moves by the energy: give energy=, not its gradient alone."
            )
        out = self._moved(model_output, sample, energy, generator)
        self._step_index += 1
        return SchedulerOutput(out, None) if return_dict else (out, None)

    @property
    def _is_last(self) -> bool:
        """Whether the present evaluation is the last one."""
        return self._step_index + 1 >= len(self.timesteps)

    @abstractmethod
    def _moved(self, gradient: Tensor, sample: Tensor, energy: Tensor | None, generator: Any) -> Tensor:
        """Return what `step` does, (B, ...)."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample (B, ...) as it is."""
        return sample

    def __len__(self) -> int:
        return len(self.timesteps)


def chain_facts(scheduler: Any) -> dict[str, Any]:
    """Return what another scheduler of the same energy is given: the noise that samples begin as, and the step size and
    temperature where this one has them."""
    config = scheduler.config
    shared = {name: config[name] for name in ("step_size", "temperature") if name in config}
    return {**shared, "initial_scale": float(scheduler.init_noise_sigma)}


def normal_like(x: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Draw standard normal numbers of the shape, device and dtype of x, by one generator or one for each item."""
    return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def uniform_for(x: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Draw a uniform number in (0, 1) for each item of x (B, *item), by one generator or one for each item: (B,) in
    float64 where the device has it."""
    normal = randn_tensor((len(x), 1), generator=generator, device=x.device, dtype=torch.float32)[:, 0]
    real = normal if x.device.type == "mps" else normal.double()
    return torch.special.ndtr(real)
