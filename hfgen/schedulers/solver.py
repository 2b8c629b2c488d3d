"""One engine for every solver: a scheduler is a table of rows, a step is two linear combinations.

Whatever the method, a step from noise towards data is linear in the sample and in what the network said:

    D    = p x + q output                     the model state: x_0, eps or dx/dt, and a short history of it
    base = x,  or  a_0 anchor + sum_j a_j D_j     the point the method steps from (a corrector recomputes it)
    next = b_0 base + sum_j b_j D_j + s z         z ~ N(0, I)

Multistep methods use the history D_1, D_2, ...; single-step methods and Heun's come back to the anchor, the base of
an earlier row. `plan` computes the numbers of all rows in float64 when the grid is set; they are held as Python
floats, so `step` indexes no tensor and never waits for the device.
"""

import math
from typing import Any, NamedTuple

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..paths import DiscretePath, Path, Point, coefficients, path_from_config, prediction_row, start_time


class Linear(NamedTuple):
    """keep * base + sum_j gains[j] * D_j, newest state first."""

    keep: float
    gains: tuple[float, ...] = ()


class Row(NamedTuple):
    """One network evaluation at time t and the linear combinations that follow from it."""

    t: float
    next: Linear
    anchor: Linear | None = None  # None: step from the sample itself
    noise: float = 0.0


class SchedulerOutput(BaseOutput):
    """What `step` returns.

    Args:
        prev_sample (B, C, H, W): the sample at the next, less noisy time.
        pred_original_sample (B, C, H, W) or None: the estimate of x_0, where the method computes it.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class Scales(NamedTuple):
    """A path's scales at one time, as Python floats. lam = log(alpha / sigma), infinite at the data end."""

    alpha: float
    sigma: float
    lam: float


def scales(path: Path, t: float) -> Scales:
    """The path at time t in float64."""
    alpha, sigma, _, _ = (float(value) for value in path(torch.tensor(t, dtype=torch.float64)))
    if sigma == 0:
        return Scales(alpha, sigma, math.inf)
    return Scales(alpha, sigma, math.log(alpha / sigma) if alpha > 0 else -math.inf)


def combine(linear: Linear, base: Tensor, history: list[Tensor]) -> Tensor:
    """keep * base + sum_j gains[j] * history[j], in as few passes as there are terms."""
    out = base if linear.keep == 1.0 else base * linear.keep
    for gain, state in zip(linear.gains, history, strict=False):
        if gain:
            out = torch.add(out, state, alpha=gain)
    return out


class SolverMixin:
    """diffusers' scheduler contract over a table of rows. Mixed into `SchedulerMixin, ConfigMixin` classes.

    A scheduler says which model state it works with (`state_kind`), its grid of times (`grid`) and its rows
    (`plan`); everything else is here. An instance holds the state of one trajectory: sample from clones, as the
    pipelines do, and threads never meet.
    """

    order = 1
    state_kind = "sample"
    history = 1
    default_num_inference_steps = 20

    # -- what a scheduler says

    def grid(self, num_inference_steps: int) -> list[float]:
        """Falling times t_0 > ... > t_n: the start of each step and the end of the last."""
        raise NotImplementedError

    def plan(self, times: list[float]) -> list[Row]:
        """One row an evaluation for this grid."""
        raise NotImplementedError

    def limit(self, x_0: Tensor) -> Tensor:
        """What is done to an estimate of x_0 before it is used: nothing, unless a scheduler clips it."""
        return x_0

    # -- what every scheduler does

    def _set_up(self) -> None:
        """To be called at the end of `__init__`: the path, and the grid of all training steps."""
        prediction_row(self.config.prediction_type)
        self.path = path_from_config(self.config)
        self.num_inference_steps = None
        self._install(self.grid(min(self.config.num_train_timesteps, 1000)), None)

    @property
    def start_time(self) -> float:
        """The time sampling starts from: 1, or just before where the prediction says nothing about x_0 at 1."""
        return start_time(self.path, self.config.prediction_type)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the sample to start from: sqrt(alpha^2 + sigma^2), 1 on a VP path."""
        start = scales(self.path, self.start_time)
        return math.hypot(start.alpha, start.sigma)

    @property
    def step_index(self) -> int | None:
        """Index of the next row, None before the first step."""
        return self._step_index

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """Choose the grid: `num_inference_steps` steps (default: `default_num_inference_steps`)."""
        steps = self.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise ValueError(f"num_inference_steps={steps}: at least one step is needed.")
        self.num_inference_steps = steps
        self._install(self.grid(steps), device)

    def _install(self, times: list[float], device: Any) -> None:
        rows = self.plan(times)
        t = torch.tensor([row.t for row in rows], dtype=torch.float64)
        timesteps = self.path.timestep(t)
        whole = isinstance(self.path, DiscretePath) and bool((timesteps - timesteps.round()).abs().max() < 1e-6)
        self.timesteps = (timesteps.round().long() if whole else timesteps.float()).to(device)
        self._timesteps, self._rows = self.timesteps.tolist(), rows
        point = self.path(t)
        weights = coefficients(self.config.prediction_type, point)
        row = prediction_row(self.state_kind)
        self._states = [_state_weights(row, point, weights, i) for i in range(len(rows))]
        self._input_scales = self.path.input_scale(t).tolist()
        self._step_index, self._history, self._anchor = None, [], None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as the network is to see it."""
        scale = self._input_scales[self._locate(timestep)] if timestep is not None else 1.0
        return sample if scale == 1.0 else sample * scale

    def _locate(self, timestep: Any) -> int:
        """Which row a time step means: the one that is due, or the one that has this time step."""
        index = self._step_index or 0
        due = index < len(self._timesteps)
        if due and self._step_index is not None and isinstance(timestep, Tensor) and timestep.is_cuda:
            return index  # asking a GPU for a number would wait for it
        value = timestep.item() if isinstance(timestep, Tensor) else timestep
        if due and self._timesteps[index] == value:
            return index
        nearest = min(range(len(self._timesteps)), key=lambda i: abs(self._timesteps[i] - value))
        if abs(self._timesteps[nearest] - value) > 1e-3:
            raise ValueError(f"timestep {value} is not on the grid; call set_timesteps and use scheduler.timesteps.")
        return nearest

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """From the sample (B, ...) at `timestep` and the network's output (B, ...) to the sample at the next time.

        Raises:
            ValueError: `timestep` is not on the grid.
        """
        index = self._locate(timestep)
        row, x = self._rows[index], sample if sample.dtype.itemsize >= 4 else sample.float()
        from_x, from_output = self._states[index]
        state = model_output.to(x.dtype) if from_output == 1.0 and not from_x else None
        if state is None:
            state = torch.add(model_output.to(x.dtype) * from_output, x, alpha=from_x)
        state = self.limit(state)
        self._history = [state, *self._history][: self.history]
        base = x if row.anchor is None else combine(row.anchor, self._anchor, self._history)
        self._anchor, self._step_index = base, index + 1
        out = combine(row.next, base, self._history)
        if row.noise:
            z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            out = torch.add(out, z, alpha=row.noise)
        out = out.to(sample.dtype)
        x_0 = state if self.state_kind == "sample" else None
        return SchedulerOutput(prev_sample=out, pred_original_sample=x_0) if return_dict else (out, x_0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps at network time steps (B,); samples and noise (B, ...)."""
        return self.path.mix(original_samples, noise, self.path.time_of(timesteps.to(torch.float64)))

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _state_weights(row: Any, point: Point, weights: Any, i: int) -> tuple[float, float]:
    """(p, q) such that the model state is p x + q output, at the i-th time."""
    c_x, c_e = (float(value[i]) for value in row(point))
    x_x, x_o, e_x, e_o = (float(value[i]) for value in weights)
    return (_dot(c_x, x_x, c_e, e_x), _dot(c_x, x_o, c_e, e_o))


def _dot(a: float, b: float, c: float, d: float) -> float:
    """a b + c d, where a zero switches off even an infinite partner."""
    return (a * b if a else 0.0) + (c * d if c else 0.0)
