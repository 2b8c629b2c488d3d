"""One engine for all solvers: a scheduler is a table of rows, and a step is two linear combinations.

For every method, a step from noise towards data is linear in the sample and in the network's output:

    D    = p x + q output                         the model state: x_0, eps or eps - x_0
    base = x,  or  a_0 anchor + sum_j a_j D_j     the point from which the method steps (a corrector recomputes it)
    next = b_0 base + sum_j b_j D_j + s z         z ~ N(0, I)

D_1 is the newest state, and D_2, D_3, ... are the states before it. Multistep methods use this history. Single-step
methods and correctors return to the anchor, the base of the previous row. When the grid is set, `plan` computes the
numbers of all rows in float64. They are held as Python floats, so `step` indexes no tensor and never waits for the
device.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..paths import DiscretePath, StraightPath, compose, determinant, path_from_config, start_time
from ..utils.arguments import checked
from .configuration import ConfigurationMixin, prediction_half
from .grids import (
    CLOCK,
    ROUNDING,
    integer_positions,
    lambda_to_share,
    numbers_of,
    share_to_lambda,
    shifted,
    spaced_positions,
    times_on,
    whole_steps,
)
from .table import SchedulerOutput, SolverRow, Stage, combine, make_stages, posterior, scales
from .thresholding import limiter


class SolverMixin(ConfigurationMixin):
    """diffusers' scheduler contract over a table of rows. A mixin of `SchedulerMixin, ConfigMixin` classes.

    A scheduler defines its model state (`state_kind`), its grid of times (`grid`) and its rows (`plan`); this class
    does the rest. An instance holds the state of one trajectory. Threads must therefore use clones, as the pipelines
    do.

    Attributes:
        state_kind: the model state, a row of `hfgen.schedulers.table.STATES`.
        history_length: number of states that the rows use.
        limits_in_step: whether `step` limits the estimate of x_0 itself, instead of `_advance`.
        rising: whether time steps rise, from data to noise.
        needs_head: whether a step needs what a variance head says, see `reverse_variance.py`.
        default_num_inference_steps: number of steps if none is given.
    """

    order = 1
    state_kind = "sample"
    history_length = 1
    limits_in_step = False
    rising = False
    needs_head = False
    default_num_inference_steps = 20

    # -- what a scheduler defines

    def grid(self, num_inference_steps: int) -> list[float]:
        """Return falling times t_0 > ... > t_n: the start of each of n steps, and the end of the last."""
        raise NotImplementedError

    def plan(self, times: list[float]) -> list[SolverRow]:
        """Return one row for each network evaluation on this grid."""
        raise NotImplementedError

    def spaced_times(self, count: int, ends: int = 0) -> list[float]:
        """Return `count` times from `start_time`, spaced by the option `timestep_spacing`, and then `end_time`."""
        steps = self.path.num_train_timesteps
        last = self.start_time * steps - 1
        positions = spaced_positions(self.config.timestep_spacing, count, last, self.config.steps_offset, ends)
        if self.discrete:
            positions = integer_positions(positions, round(last), ROUNDING[self.config.timestep_spacing])
        times = [(position + 1) / steps for position in positions]
        return [*times, min(self.end_time, times[-1])]

    def times_at_levels(self, levels: list[float]) -> list[float]:
        """Return the times, from `start_time` on, at which lambda has these rising values, and then `end_time`.

        Networks are trained down to the noise at t = 1/T. If the values reach less noise, they are compressed to end
        there.
        """
        steps = self.path.num_train_timesteps
        shares, least = [lambda_to_share(lam) for lam in levels], lambda_to_share(scales(self.path, 1 / steps).lam)
        if shares[-1] < least < shares[0]:
            shrink = (shares[0] - least) / (shares[0] - shares[-1])
            levels = [share_to_lambda(least + (s - shares[-1]) * shrink) for s in shares]
        times = self.path.time(2 * torch.tensor(levels, dtype=torch.float64)).clamp(1 / steps, self.start_time)
        if self.discrete:
            last = round(self.start_time * steps) - 1
            times = [(i + 1) / steps for i in integer_positions((times * steps - 1).tolist(), last)]
        times = [float(t) for t in times]
        return [*times, min(self.end_time, times[-1])]

    @property
    def end_time(self) -> float:
        """The time at which the last step ends: 0, clean data."""
        return 0.0

    # -- diffusers' contract

    def _set_up(self, **ends: float | None) -> None:
        """Set the path and the grid of all training steps; subclasses call this at the end of `__init__`. `ends` are
        options of the `ve` path, in the configuration of this path alone: diffusers' schedulers have the same names."""
        self._state_facts({key: value for key, value in ends.items() if value is not None})
        self.path = path_from_config(self.config)
        self._clip = limiter(self.config)
        self._limit = None if self.limits_in_step else self._clip
        self.num_inference_steps = None
        self._set_unplanned_grid(self.whole_grid())

    def whole_grid(self) -> list[float]:
        """Return the grid of all training steps, which a new scheduler has."""
        return self.grid(self.path.num_train_timesteps)

    @property
    def discrete(self) -> bool:
        """Whether the network was trained at integer time steps only."""
        return isinstance(self.path, DiscretePath)

    @property
    def start_time(self) -> float:
        """The time that sampling starts from: 1, or just before 1 if the prediction does not determine x_0 at 1."""
        start = start_time(self.path, self.config.prediction_type)
        steps = self.path.num_train_timesteps
        return math.floor(start * steps + 1e-9) / steps if self.discrete and steps > 1 else start

    @property
    def clock(self) -> float:
        """The exponent c of u = (1 - s)^c. Steps are even in u, and the network's output is interpolated in it.

        It depends on the path but not on the prediction, so that all prediction kinds have the same trajectory.
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

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None, sigmas: Any = None
    ) -> None:
        """Set the grid from a number of steps, or from the noise levels or the network's time steps themselves.

        Args:
            num_inference_steps: number of steps; None: `default_num_inference_steps`.
            device: device of `timesteps`.
            timesteps: the network's time steps, strictly falling (or `rising`). No time shift applies to them.
            sigmas: on the straight path, times in (0, 1], strictly falling, before the time shift.

        Raises:
            ValueError: two of them are given and do not agree, the number is not in [1, num_train_timesteps], a list
                does not fall, or the path has no `sigmas`.
        """
        lists = {name: value for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None}
        numbers = {name: numbers_of(name, value) for name, value in lists.items()}
        agree = timesteps is None and len(numbers.get("sigmas", ())) == num_inference_steps
        if len(lists) + (num_inference_steps is not None) > 1 and not agree:
            raise ValueError("Give one of num_inference_steps, timesteps and sigmas, not both or all.")
        try:
            times = self._times_of(**numbers) if lists else self.grid(self._count(num_inference_steps))
            self._set_grid(times, device)
        except ValueError as error:
            raise ValueError("".join(f"{name}={value}: " for name, value in lists.items()) + str(error)) from None
        self.num_inference_steps = len(times) - 1

    def _count(self, num_inference_steps: int | None) -> int:
        steps = self.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        if whole_steps(steps) < 1 or (self.discrete and steps > self.path.num_train_timesteps):
            raise ValueError(
                f"num_inference_steps={steps} must be at least 1 and, on a discrete path, at most "
                f"{self.path.num_train_timesteps}, the network's number of time steps."
            )
        return steps

    def _times_of(self, timesteps: list[float] | None = None, sigmas: list[float] | None = None) -> list[float]:
        """Return the grid of time steps or sigmas, see `set_timesteps`. Errors leave it to the caller to name them."""
        values = (timesteps if sigmas is None else sigmas)[:: -1 if self.rising else 1]
        if not all(a > b for a, b in pairwise(values)):
            raise ValueError(f"strictly {'rising' if self.rising else 'falling'} numbers are needed.")
        if sigmas is not None and not isinstance(self.path, StraightPath):
            raise ValueError("these are times of the path 'straight'. Give timesteps on other paths.")
        times = self.path.time_of(torch.tensor(values, dtype=torch.float64)).tolist() if sigmas is None else values
        if times[0] > 1 or times[-1] <= 0:
            most = f"the network has {self.path.num_train_timesteps} time steps."
            raise ValueError(most if sigmas is None else "these times are above 0 and at most 1.")
        times = times if sigmas is None else shifted(times, self.config.get("shift"))
        kind, first = self.config.prediction_type, self.path(torch.tensor(times[0], dtype=torch.float64))
        if determinant(kind, first).abs() < torch.finfo(torch.float32).eps:
            last = float(self.path.timestep(torch.tensor(self.start_time, dtype=torch.float64)))
            raise ValueError(f"{kind!r} says nothing of the data above time step {last:g}.")
        return [*times, min(self.end_time, times[-1])][:: -1 if self.rising else 1]

    def _set_unplanned_grid(self, times: list[float]) -> None:
        """Set the grid of a new scheduler. Its rows are planned at the first step: most schedulers get another grid."""
        self._times, self._stages = times, None
        self._set_outputs([*self._evaluation_times(times)], None)

    def _evaluation_times(self, times: list[float]) -> list[float]:
        """Return the times of the grid at which the network is evaluated: the starts of the steps."""
        return times[:-1]

    def _set_grid(self, times: list[float], device: Any) -> None:
        former, self._times = self._times, times  # some methods plan a row by the whole grid
        try:
            self._stages = self._make_stages(self.plan(times))
        except Exception:
            self._times = former  # both are set, or after an error neither
            raise
        self._set_outputs([stage.row.t for stage in self._stages], device)

    def _set_outputs(self, times: list[float], device: Any) -> None:
        """Set what callers read: `timesteps`, one for each evaluation, and `init_noise_sigma`. Reset the state."""
        t = torch.tensor(times, dtype=torch.float64)
        timesteps = self.path.timestep(t)
        integers = self.discrete and bool((timesteps - timesteps.round()).abs().max() < 1e-6)
        self.timesteps = (timesteps.round().long() if integers else timesteps.float()).to(device)
        self._timesteps = self.timesteps.tolist()
        self._indices = {value: i for i, value in enumerate(self._timesteps)}  # the last row starts a step
        self._repeated = len(self._indices) < len(self._timesteps)
        self._input_scales = self.path.input_scale(t).tolist()
        self._scaled = any(value != 1.0 for value in self._input_scales)
        start = scales(self.path, max(self._times))
        self.init_noise_sigma = math.sqrt(start.alpha**2 + start.sigma**2)
        self._step_index, self._history, self._anchor, self._begin = None, [], None, None

    def _make_stages(self, rows: list[SolverRow]) -> list[Stage]:
        return make_stages(rows, self.path, self.config.prediction_type, self.state_kind, self._limit is not None)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Scale the sample (B, ...) for the network's input at this time step."""
        if not self._scaled or timestep is None:
            return sample
        index = self._locate(timestep)
        if index is None:
            value = torch.as_tensor(timestep, dtype=torch.float64)
            return sample * float(self.path.input_scale(self.path.time_of(value)))
        return sample * self._input_scales[index]

    def _locate(self, timestep: Any) -> int | None:
        """Return the index of a time step's row: the next row, or any other with this time step; None if there is none.

        On a GPU the next row is returned without comparing the time step, because reading it would wait for the device.
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
            self._set_grid(self._times, self.timesteps.device)
        index = self._locate(timestep)
        if index is None:
            return self._off_grid(timestep)
        if index != (self._step_index or 0):
            self.set_begin_index(index)
        self._step_index = index + 1
        return self._stages[index]

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this row, in the middle of the grid (image to image): plan the later rows anew, without a history.

        The second evaluation of a step starts no step. Where there are such rows, steps start at every `order`-th one.
        """
        if self._stages is None:
            self._set_grid(self._times, self.timesteps.device)
        self._history, self._anchor, self._step_index = [], None, begin_index
        self._begin = self._timesteps[begin_index] if self._repeated and begin_index else None
        start = self._stages[begin_index].row.t
        rows = self.plan(self._times[self._times.index(start) :]) if start in self._times else []
        if len(rows) == len(self._stages) - begin_index:
            self._stages = [*self._stages[:begin_index], *self._make_stages(rows)]

    def _made(self, timestep: Any) -> bool:
        """Return whether the step that begins at this time has just been made.

        A caller who starts in the middle may pass the time step of several evaluations as often as the grid has it.
        """
        if self._begin is None or float(timestep) != self._begin or self._begin in self._timesteps[self._step_index :]:
            self._begin = None
            return False
        return True

    def _off_grid(self, timestep: Tensor | float) -> Stage:
        """Make a step, without history, from a time that is not on the grid to the next one that is."""
        t = float(times_on(self.path, torch.as_tensor(timestep)))
        return self._make_stages(self.plan(self._off_grid_times(t)))[0]

    def _off_grid_times(self, t: float) -> list[float]:
        return [t, self._next_time(t)]

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
            model_output (B, ...): the network's output for the sample.
            timestep: one of `timesteps`. Any other time step is allowed; the step then uses no history.
            sample (B, ...): the current sample.
            generator: generator of the noise, or one for each sample.
            return_dict: whether to return a SchedulerOutput instead of a tuple.
        """
        if self._made(timestep):
            return SchedulerOutput(sample) if return_dict else (sample, None)
        out, x_0 = self._advance(self._stage(timestep), model_output, sample, generator)
        return SchedulerOutput(out, x_0) if return_dict else (out, x_0)

    def _advance(
        self, stage: Stage, output: Tensor, sample: Tensor, generator: Any = None, z: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the next sample, in float32 at least, and x_0 if the method's state is x_0."""
        dtype = sample.dtype
        x = sample if dtype.itemsize >= 4 else sample.float()
        from_x, from_output, row, from_limited = stage
        if output.shape != sample.shape:
            output = prediction_half(self, output, sample)
        state = output if output.dtype == x.dtype else output.to(x.dtype)
        if from_output != 1.0:
            state = state * from_output
        if from_x:
            state = torch.add(state, x, alpha=from_x)
        if self._limit is not None:
            state = self._limit(state)
            if from_limited is not None:
                state = torch.add(state * from_limited[1], x, alpha=from_limited[0])
        history = self._history = [state, *self._history[: self.history_length - 1]]
        base = x if row.anchor is None else combine(row.anchor, self._anchor, history)
        self._anchor = base
        out = combine(row.next, base, history)
        if row.noise:
            if z is None:
                z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            out = torch.add(out, z.to(x.dtype), alpha=row.noise)
        return out if dtype == out.dtype else out.to(dtype), state if self.state_kind == "sample" else None

    def previous_timestep(self, timestep: Any) -> Tensor:
        """Return the next time step on the grid. After the last one it is -1 on a discrete path, else 0."""
        t = float(times_on(self.path, torch.as_tensor(timestep)))
        later = self.path.timestep(torch.tensor(self._next_time(t), dtype=torch.float64))
        return later.round().long() if self.discrete else later

    def _next_time(self, t: float) -> float:
        """Return the next time on the grid after t, in the direction of data."""
        return next((time for time in self._times if time < t - 1e-9), self._times[-1])

    def _get_variance(self, timestep: Any, prev_timestep: Any = None) -> Tensor:
        """Compute the variance of q(x_s | x_t, x_0) for two time steps; by default s is the next one on the grid."""
        t = float(times_on(self.path, torch.as_tensor(timestep)))
        s = self._next_time(t) if prev_timestep is None else float(self.path.time_of(torch.as_tensor(prev_timestep)))
        return torch.tensor(posterior(scales(self.path, t), scales(self.path, s), self.discrete)[2])

    @checked
    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Compute x_t = alpha_t x_0 + sigma_t eps at network time steps (B,), for samples and noise (B, ...)."""
        return self.path.mix(original_samples, noise, times_on(self.path, timesteps))

    @checked
    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Compute v = alpha_t eps - sigma_t x_0 at network time steps (B,), for samples and noise (B, ...)."""
        return compose("v_prediction", self.path(times_on(self.path, timesteps)), sample, noise)

    def __len__(self) -> int:
        return self.config.num_train_timesteps
