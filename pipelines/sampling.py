"""The denoising loop and guidance, for pipelines of any item: images, sequences, vectors, points."""

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from hfgen.models.conditions import Condition
from hfgen.paths import path_from_config
from hfgen.schedulers.configuration import network_facts, without_variances
from hfgen.schedulers.grids import numbers_of

from .calls import CallsMixin, SamplingCall
from .inputs import Generators
from .outputs import CALLBACK, NETWORK, SCHEDULER, StepRecord

_HIGH_ORDER = ("DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "SASolver", "UniPCMultistep")
_TABLE = ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "EulerDiscrete", "HeunDiscrete", "LMSDiscrete", *_HIGH_ORDER)
_NO_SAMPLE = ("DPMSolverSDE", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "PNDM")
_FLOW_MATCH = ("FlowMapEulerDiscrete", "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")

_KNOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(_TABLE, ("discrete", ("epsilon", "sample", "v_prediction"))),
    **dict.fromkeys(_NO_SAMPLE, ("discrete", ("epsilon", "v_prediction"))),
    **dict.fromkeys(_FLOW_MATCH, ("straight", ("flow_prediction",))),
}
"""Schedulers of diffusers, without "Scheduler", that draw from any network: their path and kinds of prediction."""

_WITH_FLOW_SIGMAS: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(_HIGH_ORDER, ("straight", ("epsilon", "sample", "flow_prediction"))),
    "UniPCMultistep": ("straight", ("sample", "flow_prediction")),
}
"""The same with the option `use_flow_sigmas`."""

_DRAW_NOISE = (
    *("DDPM", "DDPMParallel", "DPMSolverSDE", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "SASolver"),
    *("ScoreSDE", "Consistency", "AnnealedLangevin"),
)
"""Schedulers of diffusers and of hfgen, without "Scheduler", whose steps draw noise."""

GuidedPredict = Callable[..., Tensor]
"""(x_t (B, *item), time step (), guidance scale) -> the network's output (B, *item). That of a flow map is also
told the time step () at the end of the step, as a fourth argument."""

OnStep = Callable[[int, Tensor, Tensor], Tensor]
"""(step, time step (), x_t (B, *item)) -> the x_t to go on with."""


def clone_of(scheduler: Any) -> Any:
    """Return a copy of a scheduler for one call: schedulers keep state, and other threads use their own copies. Raises
    ValueError for one of diffusers' that does not know the path or the prediction of the model."""
    if is_foreign(scheduler):
        _check_foreign(scheduler)
    flat = {id(value): copy.copy(value) for value in vars(scheduler).values() if _is_flat(value)}
    return copy.deepcopy(scheduler, flat)


def _is_flat(value: Any) -> bool:
    """Return whether a value is a list, or a dictionary, of nothing but numbers, which can be copied at once."""
    parts = value if type(value) is list else (*value, *value.values()) if type(value) is dict else ()
    return bool(parts) and all(type(part) in (int, float) for part in parts)


def is_foreign(scheduler: Any) -> bool:
    """Return whether a scheduler is not one of hfgen's, which know every path."""
    return "path" not in inspect.signature(type(scheduler).__init__).parameters


def _foreign_names(scheduler: Any) -> list[str]:
    """Return the names of diffusers' classes that a scheduler is an instance of, the narrowest first."""
    names = [c.__name__ for c in type(scheduler).__mro__ if c.__module__.startswith("diffusers.schedulers.scheduling_")]
    return [name for name in names if name != "SchedulerMixin" and name.endswith("Scheduler")]


def ends_of(scheduler: Any) -> Tensor | None:
    """Return the time step at the end of each step (n,), for the network of a flow map. None: a scheduler that needs
    the velocity at one time, as which a flow map takes the same time twice."""
    if "FlowMapEulerDiscreteScheduler" in _foreign_names(scheduler):
        return scheduler.sigmas[1:] * scheduler.config.num_train_timesteps
    return getattr(scheduler, "r_timesteps", None)


def _refuse_energies(scheduler: Any) -> None:
    """Raise ValueError for a scheduler that follows an energy and no path."""
    if hasattr(scheduler, "needs_energy") and is_foreign(scheduler):
        raise ValueError(
            f"{type(scheduler).__name__} follows an energy, and this model has a path. Use one of hfgen's schedulers, "
            "which know every path and prediction."
        )


def _check_foreign(scheduler: Any) -> None:
    """Raise ValueError for a scheduler of diffusers that does not know the path or the prediction of the model.

    A scheduler class keeps unknown options in its configuration, where they can be compared.
    """
    names, advice = _foreign_names(scheduler), "Use one of hfgen's schedulers, which know every path and prediction."
    _refuse_energies(scheduler)
    if not names:
        return
    name = names[0]
    table = {**_KNOWN, **_WITH_FLOW_SIGMAS} if scheduler.config.get("use_flow_sigmas") else _KNOWN
    if name.removesuffix("Scheduler") not in table:
        raise ValueError(
            f"diffusers' {name} draws from networks of its own kind only, and hfgen has no path for them. {advice}"
        )
    path, kinds = table[name.removesuffix("Scheduler")]
    facts = network_facts(scheduler.config)
    known = {"path": (path,), "prediction_type": kinds}
    table = getattr(scheduler, "alphas_cumprod", None)
    if name == "PNDMScheduler" and not scheduler.config.skip_prk_steps and table[-1] < 1e-5:
        raise ValueError(f"diffusers' {name} needs skip_prk_steps=True for a model whose alpha is nearly 0 in noise.")
    if wrong := [f"{key}={facts[key]}" for key, values in known.items() if facts[key] not in values]:
        raise ValueError(
            f"The model was trained with {' and '.join(wrong)}, which diffusers' {name} does not know. {advice}"
        )


def check_noiseless(scheduler: Any) -> None:
    """Raise ValueError for a scheduler whose steps draw noise, so that one noise leads to many samples."""
    names = {cls.__name__.removesuffix("Scheduler") for cls in type(scheduler).__mro__}
    stochastic = str(scheduler.config.get("algorithm_type", "")).startswith("sde")
    if names & {*_DRAW_NOISE} or stochastic or scheduler.config.get("optimal_variance"):
        raise ValueError(
            f"{type(scheduler).__name__} draws noise in its steps, so that no noise leads back to a sample. Give one "
            "that draws none, such as 'ddim' or 'dpmsolver++'."
        )


def denoise(
    predict: GuidedPredict,
    scheduler: Any,
    noise: Tensor,
    generator: Generators = None,
    guidance_scale: float | Callable[[], float] = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    on_step: OnStep | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    return_trajectory: bool = False,
    components: Mapping[str, Any] = MappingProxyType({}),
    two_times: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Follow a scheduler from noise to a sample.

    Args:
        predict: the network's output at x_t, scaled as the scheduler wants it.
        scheduler: hfgen's or diffusers', after `set_timesteps`. It keeps state: use a copy, see `clone_of`.
        noise: standard normal (B, *item).
        generator: for a scheduler that draws noise in its steps.
        guidance_scale: what `predict` is called with inside the interval, a number or a function that returns it before
            each evaluation; 1 outside.
        guidance_interval: from low to high, path times in [0, 1] from data to noise (Kynkaanniemi et al. 2024,
            https://arxiv.org/abs/2404.07724). Both ends belong to it.
        on_step: called after each step; returns the x_t to go on with.
        interrupted: called before each step; True ends the loop early.
        return_trajectory: keep every x_t.
        components: networks by name, one of which a message names if its weights are not finite.
        two_times: whether `predict` takes the end of a step, too, where the scheduler has one, see `ends_of`.

    Returns:
        The sample (B, *item), and the trajectory (steps + 1, B, *item) from the scaled noise on, or None.

    Raises:
        ValueError: the noise, an output of the network or a sample is not finite; says which, and in which step. Or
            the interval is none.
    """
    x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    draws = "generator" in inspect.signature(scheduler.step).parameters
    options, trajectory = {"generator": generator} if draws else {}, [x]
    inside, record = _inside(scheduler, guidance_interval), StepRecord(noise)
    ends = ends_of(scheduler) if two_times else None
    for i, t in enumerate(scheduler.timesteps):
        if interrupted():
            break
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        scale = guidance_scale() if callable(guidance_scale) else guidance_scale
        output = predict(scaled, t, scale if inside[i] else 1.0, *([] if ends is None else [ends[i]]))
        record.add(NETWORK, output)
        x = scheduler.step(output, t, x, **options, return_dict=False)[0]
        record.add(SCHEDULER, x)
        if on_step is not None:
            x = on_step(i, t, x)
            record.add(CALLBACK, x)
        if return_trajectory:
            trajectory.append(x)
    record.require(scheduler.timesteps, components)
    return x, torch.stack(trajectory) if return_trajectory else None


def _inside(scheduler: Any, interval: tuple[float, float]) -> list[bool]:
    """Return for each time step of a scheduler whether its time on the path is in an interval.

    Raises:
        ValueError: not two times 0 <= low <= high <= 1.
    """
    ends = [float(end) for end in interval] if isinstance(interval, Sequence | Tensor) and len(interval) == 2 else []
    if not ends or not 0 <= ends[0] <= ends[1] <= 1:
        raise ValueError(f"guidance_interval={interval} must be two times (low, high), 0 <= low <= high <= 1.")
    if ends == [0.0, 1.0]:
        return [True] * len(scheduler.timesteps)
    timesteps = torch.as_tensor(scheduler.timesteps, dtype=torch.float64)
    low, high = ends[0] - 1e-7, ends[1] + 1e-7  # time steps are float32
    return [low <= t <= high for t in path_from_config(scheduler.config).time_of(timesteps).tolist()]


def set_timesteps(scheduler: Any, num_inference_steps: int | None, timesteps: Any = None, sigmas: Any = None) -> None:
    """Set a scheduler's grid from a number of steps, or from time steps or noise levels themselves.

    Args:
        scheduler: hfgen's or diffusers'.
        num_inference_steps: number of steps; None: the scheduler's own default.
        timesteps: the network's time steps, falling; or
        sigmas: noise levels, falling, in the scheduler's unit.

    Raises:
        ValueError: the scheduler takes no such list or number, or two of them that do not agree.
    """
    values = {name: value for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None}
    for name, value in values.items():
        numbers_of(name, value)
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(f"{type(scheduler).__name__} takes no {name} of a call's own. Give num_inference_steps.")
    if len(values) > 1 or any(num_inference_steps not in (None, len(value)) for value in values.values()):
        raise ValueError("Give one of num_inference_steps, timesteps and sigmas, not both or all.")
    if values:
        values = {name: value.tolist() if hasattr(value, "tolist") else list(value) for name, value in values.items()}
        scheduler.set_timesteps(**values)
    else:
        default = getattr(scheduler, "default_num_inference_steps", 50)
        scheduler.set_timesteps(default if num_inference_steps is None else num_inference_steps)
    if is_foreign(scheduler) and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or diffusers' schedulers skip a first time step that their grid has twice


def warn_of_other_levels(scheduler: Any) -> None:
    """Say it, once for each scheduler, where a network that has learnt to draw from one level of noise is asked for
    others."""
    name, ratio = type(scheduler).__name__, scheduler.config.get("start_ratio")
    steps = getattr(scheduler, "num_inference_steps", None) or len(scheduler.timesteps)
    if ratio is not None and (steps > 1 or name != "ConsistencyScheduler"):
        _say_other_levels(name, float(ratio), steps)


@functools.cache
def _say_other_levels(name: str, ratio: float, steps: int) -> None:
    logging.getLogger(__name__).warning(
        "The network was distilled to draw in one step, from noise %g times as strong as the signal. %s in %d step%s "
        "asks it for other levels of noise, which it has not learnt: samples may be poor. Leave both out.",
        *(ratio, name, steps, "s" * (steps > 1)),
    )


def guided(
    network: Any,
    x: Tensor,
    t: Tensor | float,
    condition: Condition | None = None,
    kwargs: Mapping[str, Tensor] | None = None,
    scale: float = 1.0,
    r: Tensor | float | None = None,
    combine: Callable[[Tensor, Tensor], Tensor] | None = None,
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
        r: time step at the end of the step, of a network of two times; None: it is not told.
        combine: (f(x, t, c), f(x, t, null)) -> output, in place of the formula.

    Returns:
        (B, *item) in the dtype of x.
    """
    doubled = bool(kwargs) and condition is not None and scale != 1.0
    dtype = next((p.dtype for p in network.parameters()), x.dtype)
    kwargs = {name: _cast(value, dtype) for name, value in (kwargs or {}).items()}
    batch, arguments = (torch.cat([x, x]), condition.with_null(kwargs)) if doubled else (x, kwargs)
    times = {"timestep": t} if r is None else {"timestep": t, "r_timestep": r}
    times = {name: torch.as_tensor(value, device=x.device).expand(len(batch)) for name, value in times.items()}
    output = network(batch.to(dtype), times.pop("timestep"), **times, **arguments)
    output = getattr(output, "sample", output).to(x.dtype)
    if not doubled:
        return output
    conditional, unconditional = output.chunk(2)
    if combine is not None:
        return combine(conditional, unconditional)
    return torch.lerp(unconditional, conditional, scale)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return real numbers in this dtype, anything else (labels, masks) as it is."""
    return value.to(dtype) if value.is_floating_point() else value


class SamplingMixin(CallsMixin):
    """For a pipeline with a `scheduler`: `_sample` is `denoise` with diffusers' callbacks and progress bar.

    Each call has its own copy of the scheduler and its own state, so several threads may use one pipeline.
    """

    _callback_tensor_inputs = ("latents",)

    def _scheduler_of(self, scheduler: Any) -> Any:
        """Return a copy of the scheduler for one call.

        Args:
            scheduler: one of hfgen's by name, hfgen's or diffusers' as an object, or None for the pipeline's own.

        Raises:
            ValueError: an unknown name, or a scheduler of another path or prediction than the model's.
        """
        own = self.scheduler  # read once: another thread may change it meanwhile
        if scheduler is None:
            return clone_of(own)
        if isinstance(scheduler, str):
            return self.named_scheduler(scheduler, own)
        if not all(hasattr(scheduler, name) for name in ("set_timesteps", "step", "config")):
            raise ValueError(
                f"scheduler={scheduler!r} is none. Give a name, such as 'ddim', or a scheduler made with "
                "from_config(pipeline.scheduler.config)."
            )
        _refuse_energies(scheduler)
        facts, others = (network_facts(without_variances(each.config)) for each in (own, scheduler))
        wrong = [f"{key} is {others.get(key)}, not {facts.get(key)}" for key in facts if facts[key] != others.get(key)]
        if wrong:
            name = type(scheduler).__name__
            raise ValueError(
                f"The {name} is for another model: {'; '.join(wrong)}. Make it with "
                f"{name}.from_config(pipeline.scheduler.config)."
            )
        return clone_of(scheduler)

    def _sample(
        self,
        predict: GuidedPredict,
        noise: Tensor,
        num_inference_steps: int | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        guidance_scale: float = 1.0,
        scheduler: Any = None,
        copied: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the sample (B, *item), and the trajectory or None.

        Args:
            predict, noise, options: of `denoise`.
            num_inference_steps, timesteps, sigmas: of `set_timesteps`.
            guidance_scale: what `predict` is called with; a callback may change it, see the property of this name.
            scheduler: of this call, see `_scheduler_of`; `copied` if that has copied it already.
            callback_on_step_end: called as f(pipeline, step, timestep, {"latents": x_t}) after each step. It may return
                {"latents": x} to replace x_t, and set `pipeline._interrupt = True` to stop early.
            callback_on_step_end_tensor_inputs: names of the tensors that the callback receives.

        Raises:
            ValueError: the scheduler does not fit the model, or can't take so many steps, and as `denoise`.
        """
        scheduler = scheduler if copied else self._scheduler_of(scheduler)
        set_timesteps(scheduler, num_inference_steps, timesteps, sigmas)
        warn_of_other_levels(scheduler)
        call = SamplingCall(float(guidance_scale), len(scheduler.timesteps))
        with self._called(call), self.progress_bar(total=call.num_timesteps) as bar:

            def on_step(i: int, t: Tensor, x: Tensor) -> Tensor:
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, x)
                    x = (callback_on_step_end(self, i, t, tensors) or {}).get("latents", x)
                bar.update()
                return x

            return denoise(
                predict,
                scheduler,
                noise,
                guidance_scale=lambda: call.guidance_scale,
                on_step=on_step,
                interrupted=lambda: call.interrupt,
                components=self.components,
                **options,
            )
