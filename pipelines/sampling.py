"""The denoising loop and guidance, for pipelines of any item: images, sequences, vectors, points."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hfgen.models.conditions import Condition

from .inputs import Generators

_KNOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "match": {"path": ("straight",), "prediction_type": ("flow_prediction",)},
    "flow": {"path": ("straight",)},
    "table": {"path": ("discrete",), "prediction_type": ("epsilon", "sample", "v_prediction")},
}
"""Paths and predictions of diffusers' schedulers: the FlowMatch ones, those with `use_flow_sigmas`, and all others."""

GuidedPredict = Callable[[Tensor, Tensor, float], Tensor]
"""(x_t (B, *item), time step (), guidance scale) -> the network's output (B, *item)."""

OnStep = Callable[[int, Tensor, Tensor], Tensor]
"""(step, time step (), x_t (B, *item)) -> the x_t to go on with."""


def clone_of(scheduler: Any) -> Any:
    """Return a copy of a scheduler for one call: schedulers keep state, and other threads use their own copies.

    Raises:
        ValueError: a scheduler of diffusers' that does not know the path or the prediction of the model.
    """
    if "path" not in inspect.signature(type(scheduler).__init__).parameters:
        # A scheduler class keeps unknown options in its configuration, where they can be compared.
        name, config = type(scheduler).__name__, scheduler.config
        kind = "match" if "FlowMatch" in name else "flow" if config.get("use_flow_sigmas") else "table"
        wrong = [f"{key}={config[key]}" for key, known in _KNOWN[kind].items() if config.get(key) not in (None, *known)]
        if wrong:
            raise ValueError(
                f"The model was trained with {' and '.join(wrong)}, which diffusers' {name} does not know. Use one of "
                "hfgen's schedulers, which know every path and prediction."
            )
    return copy.deepcopy(scheduler)


def denoise(
    predict: GuidedPredict,
    scheduler: Any,
    noise: Tensor,
    generator: Generators = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    on_step: OnStep | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    return_trajectory: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Follow a scheduler from noise to a sample.

    Args:
        predict: the network's output at x_t, scaled as the scheduler wants it.
        scheduler: hfgen's or diffusers', after `set_timesteps`. It keeps state: use a copy, see `clone_of`.
        noise: standard normal (B, *item).
        generator: for a scheduler that draws noise in its steps.
        guidance_scale: what `predict` is called with inside the interval; 1 outside.
        guidance_interval: from low to high, in [0, 1] from data to noise (Kynkaanniemi et al. 2024,
            https://arxiv.org/abs/2404.07724).
        on_step: called after each step; returns the x_t to go on with.
        interrupted: called before each step; True ends the loop early.
        return_trajectory: keep every x_t.

    Returns:
        The sample (B, *item), and the trajectory (steps + 1, B, *item) from the scaled noise on, or None.
    """
    x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    draws = "generator" in inspect.signature(scheduler.step).parameters
    options, trajectory = {"generator": generator} if draws else {}, [x]
    low, high = (end * scheduler.config.num_train_timesteps for end in guidance_interval)
    for i, t in enumerate(scheduler.timesteps):
        if interrupted():
            break
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = predict(scaled, t, guidance_scale if low <= t <= high else 1.0)
        x = scheduler.step(output, t, x, **options, return_dict=False)[0]
        if on_step is not None:
            x = on_step(i, t, x)
        if return_trajectory:
            trajectory.append(x)
    return x, torch.stack(trajectory) if return_trajectory else None


def guided(
    network: Any,
    x: Tensor,
    t: Tensor | float,
    condition: Condition | None = None,
    kwargs: Mapping[str, Tensor] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Evaluate a network with classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598):

        output = scale f(x, t, c) + (1 - scale) f(x, t, null),    both from one forward pass of 2 B samples.

    Without a condition, or at scale 1, it is f(x, t, c) from a pass of B samples.

    Args:
        network: called as network(x, timestep (B,), **kwargs), any torch module. It returns an output with the field
            `sample`, or the tensor itself.
        x: (B, *item).
        t: time step of all samples.
        condition: gives the null values; None for a network without conditions.
        kwargs: c, tensors (B, ...) by name, as `condition.kwargs` returns them.
        scale: 1 is no guidance, above 1 sharpens towards the condition.

    Returns:
        (B, *item) in the dtype of x.
    """
    doubled = bool(kwargs) and condition is not None and scale != 1.0
    dtype = next((p.dtype for p in network.parameters()), x.dtype)
    kwargs = {name: _cast(value, dtype) for name, value in (kwargs or {}).items()}
    batch, arguments = (torch.cat([x, x]), condition.with_null(kwargs)) if doubled else (x, kwargs)
    timestep = torch.as_tensor(t, device=x.device).expand(len(batch))
    output = network(batch.to(dtype), timestep, **arguments)
    output = getattr(output, "sample", output).to(x.dtype)
    if not doubled:
        return output
    conditional, unconditional = output.chunk(2)
    return torch.lerp(unconditional, conditional, scale)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return real numbers in this dtype, anything else (labels, masks) as it is."""
    return value.to(dtype) if value.is_floating_point() else value


class SamplingMixin:
    """For a pipeline with a `scheduler`: `_sample` is `denoise` with diffusers' callbacks and progress bar."""

    _callback_tensor_inputs = ("latents",)

    @property
    def num_timesteps(self) -> int:
        """Return the number of network evaluations of the last call; guidance doubles the batch, not the number."""
        return self._num_timesteps

    def _sample(
        self,
        predict: GuidedPredict,
        noise: Tensor,
        num_inference_steps: int | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the sample (B, *item), and the trajectory or None.

        Args:
            predict, noise, options: of `denoise`.
            num_inference_steps: steps of the scheduler; None: its own default.
            callback_on_step_end: called as f(pipeline, step, timestep, {"latents": x_t}) after each step. It may return
                {"latents": x} to replace x_t, and set `pipeline._interrupt = True` to stop early.
            callback_on_step_end_tensor_inputs: names of the tensors that the callback receives.

        Raises:
            ValueError: the scheduler does not fit the model, or can't take so many steps.
        """
        scheduler = clone_of(self.scheduler)
        if num_inference_steps is None:
            num_inference_steps = getattr(scheduler, "default_num_inference_steps", 50)
        scheduler.set_timesteps(num_inference_steps)
        self._num_timesteps, self._interrupt = len(scheduler.timesteps), False
        with self.progress_bar(total=self._num_timesteps) as bar:

            def on_step(i: int, t: Tensor, x: Tensor) -> Tensor:
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, x)
                    x = (callback_on_step_end(self, i, t, tensors) or {}).get("latents", x)
                bar.update()
                return x

            return denoise(predict, scheduler, noise, on_step=on_step, interrupted=lambda: self._interrupt, **options)
