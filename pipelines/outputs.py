"""The check between networks and what a pipeline returns: numbers that are not finite are refused, and traced."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class NotFiniteError(ValueError):
    """Networks computed NaN or infinity."""


def require_finite(values: Tensor, what: str, components: Mapping[str, Any], given: Tensor | None = None) -> Tensor:
    """Return values that are all finite numbers.

    Args:
        values: what networks computed, of any shape.
        what: what they are, for the message: "images".
        components: the networks, and anything else, by name.
        given: the latents or images that the networks were given.

    Raises:
        NotFiniteError: some are NaN or infinite. Names the component whose weights are not finite, if there is one.
    """
    if not values.isfinite().all():
        raise NotFiniteError(f"The {what} have values that are not finite. {cause_of(components, given)}")
    return values


def require_numbers(values: Tensor, what: str, components: Mapping[str, Any]) -> Tensor:
    """Return values without NaN, where infinity has a meaning: -log of a probability of 0.

    Args:
        values, what, components: as those of `require_finite`.

    Raises:
        NotFiniteError: some are NaN, as `require_finite`.
    """
    require_finite(torch.where(values.isinf(), 0.0, values), what, components)
    return values


def require_sound(network: nn.Module, name: str) -> None:
    """Refuse a small component whose broken weights may not show: a choice among numbers never chooses NaN.

    Raises:
        NotFiniteError: some weights are not finite.
    """
    if text := broken_weights(network, name):
        raise NotFiniteError(f"{text}. {OTHER_WEIGHTS}")


def cause_of(components: Mapping[str, Any], given: Tensor | None = None) -> str:
    """Return a sentence about where numbers come from that are not finite: what was given, or a component's weights."""
    if given is not None and given.is_floating_point() and not given.isfinite().all():
        return f"Already {int((~given.isfinite()).sum())} of the given values are not finite: correct the input."
    networks = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
    broken = [text for name, part in networks.items() if (text := broken_weights(part, name)) is not None]
    if broken:
        return f"{'; '.join(broken)}. {OTHER_WEIGHTS}"
    dtypes = {str(p.dtype).removeprefix("torch.") for part in networks.values() for p in part.parameters()}
    precision = " float16 overflows above 65504: use bfloat16 or float32." if "float16" in dtypes else ""
    names = ", ".join(networks) or "the networks"
    return f"The weights of {names} are finite, so the values overflowed, or an argument is too large.{precision}"


def broken_weights(network: nn.Module, name: str) -> str | None:
    """Return "The denoiser has 3 weights that are not finite, in conv.bias and 2 other tensors", or None."""
    tensors = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    real = {key: value for key, value in tensors.items() if value.is_floating_point() and not value.is_meta}
    counts = {key: int((~value.isfinite()).sum()) for key, value in real.items()}
    bad = [key for key, count in counts.items() if count]
    if not bad:
        return None
    others = f" and {len(bad) - 1} other tensors" if len(bad) > 1 else ""
    return f"The {name} has {sum(counts.values())} weights that are not finite, in {bad[0]}{others}"


class StepRecord:
    """A record of whether the numbers of a sampling loop stay finite. It waits for the device once, at the end.

    Args:
        noise: what the loop starts from, (B, *item).
    """

    def __init__(self, noise: Tensor):
        self.noise = noise
        self.stages: list[str] = []
        self.finite: list[Tensor] = []

    def add(self, stage: str, values: Tensor) -> None:
        """Record whether all values are finite after a stage of the present step."""
        self.stages.append(stage)
        self.finite.append(values.isfinite().all())

    def require(self, timesteps: Sequence[Any], components: Mapping[str, Any]) -> None:
        """Refuse a loop whose numbers did not stay finite.

        Args:
            timesteps: of the steps.
            components: the pipeline's, by name.

        Raises:
            NotFiniteError: names the step, what was computed then, and the component whose weights are not finite.
        """
        if not self.finite or bool(torch.stack(self.finite).all()):
            return
        first = torch.stack(self.finite).tolist().index(False)
        step = self.stages[: first + 1].count(self.stages[0])
        at = f"in step {step} of {len(timesteps)}, at time step {float(timesteps[step - 1]):.6g}"
        stage = self.stages[first]
        if not self.noise.isfinite().all():
            raise NotFiniteError(f"The latents that sampling begins with have values that are not finite. {GIVE_NOISE}")
        if stage == NETWORK:
            raise NotFiniteError(f"{stage} became not finite {at}. {cause_of(components)}")
        raise NotFiniteError(
            f"{stage} became not finite {at}, after a network's output that is finite. These options of the scheduler "
            "do not fit the model: use others, or another scheduler."
            if stage == SCHEDULER
            else f"{stage} are not finite {at}. Correct the callback."
        )


NETWORK, SCHEDULER, CALLBACK = "The network's output", "The scheduler's sample", "The latents that a callback returned"
OTHER_WEIGHTS = "Load other weights, such as an earlier checkpoint's."
GIVE_NOISE = "Give standard normal noise, or leave latents out."
