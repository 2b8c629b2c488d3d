"""One engine for every solver: a scheduler is a table of rows, a step is two linear combinations.

Whatever the method, a step from noise towards data is linear in the sample and in what the network said:

    D    = p x + q output                     the model state: x_0, eps or eps - x_0, and a short history of it
    base = x,  or  a_0 anchor + sum_j a_j D_j     the point the method steps from (a corrector recomputes it)
    next = b_0 base + sum_j b_j D_j + s z         z ~ N(0, I)

Multistep methods use the history D_1, D_2, ...; single-step methods and correctors come back to the anchor, the base
of an earlier row. `plan` computes the numbers of all rows in float64 when the grid is set; they are held as Python
floats, so `step` indexes no tensor and never waits for the device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..paths import DiscretePath, StraightPath, compose, path_from_config, prediction_row, start_time
from .grids import CLOCK, ROUNDING, lambda_to_share, share_to_lambda, spaced, whole
from .table import Row, Stage, combine, posterior, ready, scales
from .thresholding import limiter

FACTS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
    "path",
)
"""Options that say how the network was trained. They are never dropped as mere defaults when schedulers are swapped."""


@dataclass
class SchedulerOutput(BaseOutput):
    """What `step` returns.

    Args:
        prev_sample (B, C, H, W): the sample at the next, less noisy time.
        pred_original_sample (B, C, H, W) or None: the estimate of x_0, where the method computes it.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SolverMixin:
    """diffusers' scheduler contract over a table of rows. Mixed into `SchedulerMixin, ConfigMixin` classes.

    A scheduler says which model state it works with (`state_kind`), its grid of times (`grid`) and its rows
    (`plan`); everything else is here. An instance holds the state of one trajectory: sample from clones, as the
    pipelines do, and threads never meet.
    """

    _compatibles: ClassVar[list[str]] = [member.name for member in KarrasDiffusionSchedulers]
    order = 1
    state_kind = "sample"
    history = 1
    memoryless = False
    limits_itself = False  # `step` limits the estimate of x_0, not the engine
    default_num_inference_steps = 20

    # -- what a scheduler says

    def grid(self, num_inference_steps: int) -> list[float]:
        """Falling times t_0 > ... > t_n: the start of each step and the end of the last."""
        raise NotImplementedError

    def plan(self, times: list[float]) -> list[Row]:
        """One row an evaluation for this grid."""
        raise NotImplementedError

    def spaced(self, count: int, ends: int = 0) -> list[float]:
        """`count` times spaced as the option `timestep_spacing` says, from `start_time`, and `end_time`."""
        steps = self.path.num_train_timesteps
        last = self.start_time * steps - 1
        positions = spaced(self.config.timestep_spacing, count, last, self.config.steps_offset, ends)
        if self.discrete:
            positions = whole(positions, round(last), ROUNDING[self.config.timestep_spacing])
        times = [(position + 1) / steps for position in positions]
        return [*times, min(self.end_time, times[-1])]

    def at_levels(self, levels: list[float]) -> list[float]:
        """Times at which lambda has the given rising values, from `start_time` on, and `end_time`.

        Where they go on to less noise than networks are trained on, t = 1/T, they are drawn together to end there.
        """
        steps = self.path.num_train_timesteps
        shares, least = [lambda_to_share(lam) for lam in levels], lambda_to_share(scales(self.path, 1 / steps).lam)
        if shares[-1] < least < shares[0]:
            shrink = (shares[0] - least) / (shares[0] - shares[-1])
            levels = [share_to_lambda(least + (s - shares[-1]) * shrink) for s in shares]
        times = self.path.time(2 * torch.tensor(levels, dtype=torch.float64)).clamp(1 / steps, self.start_time)
        if self.discrete:
            last = round(self.start_time * steps) - 1
            times = [(i + 1) / steps for i in whole((times * steps - 1).tolist(), last)]
        times = [float(t) for t in times]
        return [*times, min(self.end_time, times[-1])]

    @property
    def end_time(self) -> float:
        """Where the last step ends: 0, clean data."""
        return 0.0

    # -- diffusers' contract

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler from another's configuration, ours or diffusers'; a flow-matching one means the straight path."""
        if isinstance(config, Mapping):
            config = {**_flow_facts(config), **config}
        loaded = super().from_config(config, return_unused_kwargs, **kwargs)
        scheduler = loaded[0] if return_unused_kwargs else loaded
        if scheduler.config.get("path") == "ve":
            scheduler._set_up()  # the path's own options came with those that this class does not know
        return loaded

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [cls, *super()._get_compatibles()]

    def _set_up(self) -> None:
        """To be called at the end of `__init__`: the path, and the grid of all training steps."""
        prediction_row(self.config.prediction_type)
        defaults = self.config.get("_use_default_values")
        if defaults is not None:
            facts = {key for key in FACTS if self.config.get(key) is not None}
            self.register_to_config(_use_default_values=sorted(set(defaults) - facts))
        self.path = path_from_config(self.config)
        self._clip = limiter(self.config)
        self._limit = None if self.limits_itself else self._clip
        self.num_inference_steps = None
        self._announce(self.grid(self.path.num_train_timesteps))

    @property
    def discrete(self) -> bool:
        """Whether the network knows whole time steps only."""
        return isinstance(self.path, DiscretePath)

    @property
    def start_time(self) -> float:
        """The time sampling starts from: 1, or just before where the prediction says nothing about x_0 at 1."""
        start = start_time(self.path, self.config.prediction_type)
        steps = self.path.num_train_timesteps
        return math.floor(start * steps + 1e-9) / steps if self.discrete and steps > 1 else start

    @property
    def clock(self) -> float:
        """The exponent c of u = (1 - s)^c, in which steps are even and what the network says is interpolated.

        It belongs to the path, not to the prediction, so that all kinds of prediction have one trajectory.
        """
        return 1.0 if isinstance(self.path, StraightPath) else CLOCK

    @property
    def betas(self) -> Tensor:
        """The table of betas (T,) of a discrete path."""
        table = self.alphas_cumprod.double()
        return (1 - table / torch.cat([table.new_ones(1), table[:-1]])).float()

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 at each training step (T,)."""
        steps = self.path.num_train_timesteps
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        return self.path(t).alpha.square().float()

    @property
    def step_index(self) -> int | None:
        """Index of the next row, None before the first step."""
        return self._step_index

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None) -> None:
        """Choose the grid.

        Args:
            num_inference_steps: number of steps; None: `default_num_inference_steps`.
            device: where `timesteps` is put.
            timesteps: the network's time steps themselves, strictly falling, instead of a number.

        Raises:
            ValueError: both are given, the number is not in [1, num_train_timesteps], or the list does not fall.
        """
        if timesteps is not None:
            if num_inference_steps is not None:
                raise ValueError("Give either num_inference_steps or timesteps, not both.")
            times = self._custom(timesteps)
        else:
            times = self.grid(self._count(num_inference_steps))
        self.num_inference_steps = len(times) - 1
        self._install(times, device)

    def _count(self, num_inference_steps: int | None) -> int:
        steps = self.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps < 1 or (self.discrete and steps > self.path.num_train_timesteps):
            raise ValueError(
                f"num_inference_steps={steps} must be at least 1 and, as the network knows "
                f"{self.path.num_train_timesteps} time steps, no more than that."
            )
        return steps

    def _custom(self, timesteps: Any) -> list[float]:
        values = torch.as_tensor(timesteps).to(torch.float64).cpu()
        times = self.path.time_of(values).tolist()
        if values.ndim != 1 or not len(times) or any(b >= a for a, b in pairwise(times)):
            raise ValueError(f"timesteps={timesteps} must be a strictly falling list.")
        if times[0] > 1 or times[-1] <= 0:
            raise ValueError(f"timesteps={timesteps}: the network knows {self.path.num_train_timesteps} time steps.")
        return [*times, min(self.end_time, times[-1])]

    def _announce(self, times: list[float]) -> None:
        """The grid of a new scheduler, which is not planned before it is used: most are given another."""
        self._times, self._stages = times, None
        self._show([*self._asked(times)], None)

    def _asked(self, times: list[float]) -> list[float]:
        """The times of the grid at which steps begin."""
        return times[:-1]

    def _install(self, times: list[float], device: Any) -> None:
        self._times = times
        self._compile()
        self._show([stage.row.t for stage in self._stages], device)

    def _show(self, times: list[float], device: Any) -> None:
        """Set what callers see: `timesteps`, one for each evaluation, and `init_noise_sigma`."""
        t = torch.tensor(times, dtype=torch.float64)
        timesteps = self.path.timestep(t)
        whole = self.discrete and bool((timesteps - timesteps.round()).abs().max() < 1e-6)
        self.timesteps = (timesteps.round().long() if whole else timesteps.float()).to(device)
        self._timesteps = self.timesteps.tolist()
        self._indices = {value: i for i, value in reversed(list(enumerate(self._timesteps)))}
        self._input_scales = self.path.input_scale(t).tolist()
        self._scaled = any(value != 1.0 for value in self._input_scales)
        start = scales(self.path, max(self._times))
        self.init_noise_sigma = math.sqrt(start.alpha**2 + start.sigma**2)
        self._step_index, self._history, self._anchor = None, [], None

    def _compile(self) -> None:
        self._stages = self._ready(self.plan(self._times))

    def _ready(self, rows: list[Row]) -> list[Stage]:
        return ready(rows, self.path, self.config.prediction_type, self.state_kind, self._limit is not None)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as the network is to see it."""
        if not self._scaled or timestep is None:
            return sample
        index = self._locate(timestep)
        if index is None:
            value = torch.as_tensor(timestep, dtype=torch.float64)
            return sample * float(self.path.input_scale(self.path.time_of(value)))
        return sample * self._input_scales[index]

    def _locate(self, timestep: Any) -> int | None:
        """Which row a time step means: the one that is due, or the one that has this time step; None if there is none.

        On a GPU the due row is taken without looking: asking for a number would wait for the device.
        """
        index, tensor = self._step_index, isinstance(timestep, Tensor)
        due = index is not None and index < len(self._timesteps)
        if due and tensor and timestep.device.type != "cpu":
            return index
        value = timestep.item() if tensor else timestep
        if due and self._timesteps[index] == value:
            return index
        return self._indices.get(value)

    def _stage(self, timestep: Any) -> Stage:
        if self._stages is None:
            self._install(self._times, self.timesteps.device)
        index = self._locate(timestep)
        if index is None:
            return self._off_grid(timestep)
        if not self.memoryless and index != (self._step_index or 0):
            self._restart(index)
        self._step_index = index + 1
        return self._stages[index]

    def _restart(self, index: int) -> None:
        """Begin in the middle of the grid (image to image), where later rows can't count on a history."""
        self._history, self._anchor = [], None
        start = self._stages[index].row.t
        rows = self.plan(self._times[self._times.index(start) :]) if start in self._times else []
        if len(rows) == len(self._stages) - index:
            self._stages = [*self._stages[:index], *self._ready(rows)]

    def _off_grid(self, timestep: Any) -> Stage:
        """A step from any other time to the next one on the grid, which has no history."""
        t = float(self.path.time_of(torch.as_tensor(timestep, dtype=torch.float64)))
        return self._ready(self.plan(self._pair(t)))[0]

    def _pair(self, t: float) -> list[float]:
        return [t, self._after(t)]

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """From the sample (B, ...) at `timestep` and the network's output (B, ...) to the sample at the next time.

        A time step that is not on the grid is stepped from to the next one that is, without history.
        """
        out, x_0 = self._advance(self._stage(timestep), model_output, sample, generator)
        return SchedulerOutput(out, x_0) if return_dict else (out, x_0)

    def _advance(
        self, stage: Stage, output: Tensor, sample: Tensor, generator: Any = None, z: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The next sample and, where the state is x_0, the state. Half-precision samples are computed in float32."""
        dtype = sample.dtype
        x = sample if dtype.itemsize >= 4 else sample.float()
        from_x, from_output, row, back = stage
        state = output if output.dtype == x.dtype else output.to(x.dtype)
        if from_output != 1.0:
            state = state * from_output
        if from_x:
            state = torch.add(state, x, alpha=from_x)
        if self._limit is not None:
            state = self._limit(state)
            if back is not None:
                state = torch.add(state * back[1], x, alpha=back[0])
        history = self._history = [state, *self._history[: self.history - 1]]
        base = x if row.anchor is None else combine(row.anchor, self._anchor, history)
        self._anchor = base
        out = combine(row.next, base, history)
        if row.noise:
            if z is None:
                z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            out = torch.add(out, z.to(x.dtype), alpha=row.noise)
        return out if dtype == out.dtype else out.to(dtype), state if self.state_kind == "sample" else None

    def previous_timestep(self, timestep: Any) -> Tensor:
        """The time step that follows `timestep` on the grid; past the last one, -1 on a discrete path, else 0."""
        t = float(self.path.time_of(torch.as_tensor(timestep, dtype=torch.float64)))
        later = self.path.timestep(torch.tensor(self._after(t), dtype=torch.float64))
        return later.round().long() if self.discrete else later

    def _after(self, t: float) -> float:
        """The next time on the grid after t."""
        return next((time for time in self._times if time < t - 1e-9), self._times[-1])

    def _get_variance(self, timestep: Any, prev_timestep: Any = None) -> Tensor:
        """The variance of q(x_s | x_t, x_0) between two time steps, by default to the next on the grid."""
        t = float(self.path.time_of(torch.as_tensor(timestep, dtype=torch.float64)))
        s = self._after(t) if prev_timestep is None else float(self.path.time_of(torch.as_tensor(prev_timestep)))
        return torch.tensor(posterior(scales(self.path, t), scales(self.path, s), self.discrete)[2])

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps at network time steps (B,); samples and noise (B, ...)."""
        return self.path.mix(original_samples, noise, self.path.time_of(timesteps.to(torch.float64)))

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha_t eps - sigma_t x_0 at network time steps (B,); samples and noise (B, ...)."""
        point = self.path(self.path.time_of(timesteps.to(torch.float64)))
        return compose("v_prediction", point, sample, noise)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _flow_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration of a flow-matching scheduler of diffusers says only by the options it has."""
    if config.get("path") is not None:
        return {}
    if config.get("use_flow_sigmas"):
        return {"path": "straight", "shift": config.get("flow_shift", 1.0)}
    if "beta_schedule" in config or "trained_betas" in config or "shift" not in config:
        return {}
    return {"path": "straight", "prediction_type": "flow_prediction"}
