"""Checks of what callers pass to a pipeline: class labels, noise, latents, samples. For images see `images.py`."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .classes import class_numbers

Generators = torch.Generator | list[torch.Generator] | None
"""One generator for a batch, or one for each sample: then a sample is the same alone and in any batch."""

MOST_SAMPLES = 2**31 - 1
"""Largest number of samples."""


def labels_of(
    class_labels: Any, batch_size: int | None, num_classes: int | None, label_names: list[str] | None
) -> tuple[int, Tensor | None]:
    """Return the batch size, and the labels int64 (B,) or None.

    Args:
        class_labels: a class, or classes, as `class_numbers` reads them. A single label is repeated to `batch_size`.
        batch_size: None: as many as there are labels, or 1.
        num_classes: number of classes of the model; None for a model without classes.
        label_names: names of the classes.

    Raises:
        ValueError: as `class_numbers`; the number of labels is not the batch size, or it is 0.
    """
    if batch_size is not None:
        check_count("batch_size", batch_size)
    if class_labels is None:
        return batch_size or 1, None
    if num_classes is None:
        raise ValueError("class_labels were given but this model was trained without classes. Leave them out.")
    numbers = class_numbers(class_labels, num_classes, label_names)
    if len(numbers) == 1:
        numbers *= batch_size or 1
    if not numbers or batch_size not in (None, len(numbers)):
        raise ValueError(
            f"batch_size={batch_size} but {len(numbers)} class_labels; give one label, or one for each sample."
        )
    return len(numbers), torch.tensor(numbers, dtype=torch.long)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError for anything but a whole number from `least` that 31 bits hold: a larger one fits no memory."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value > MOST_SAMPLES:
        raise ValueError(f"{name}={value!r} must be a whole number from {least} to {MOST_SAMPLES}.")
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}.")


def noise_of(shape: tuple[int, ...], latents: Tensor | None, generator: Generators, device: torch.device) -> Tensor:
    """Return standard normal noise of this shape (B, *item) in float32: `latents` if given, else random.

    Raises:
        ValueError: the latents have another shape or are no finite real numbers, or the list of generators has another
            length than B.
    """
    check_generators(generator, shape[0])
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    check_numbers(latents, "latents")
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents have shape {tuple(latents.shape)}; this call needs {tuple(shape)}.")
    return latents.to(device)


def uniform_of(shape: tuple[int, ...], generator: Generators, device: torch.device | str) -> Tensor:
    """Return uniform random numbers in [0, 1) of this shape (B, *item) in float32.

    Raises:
        ValueError: the list of generators has another length than B.
    """
    check_generators(generator, shape[0])
    generators = _generator_list(generator)
    rows = (shape[0] // len(generators), *shape[1:])
    draws = [torch.rand(rows, generator=one, device=device if one is None else one.device) for one in generators]
    return torch.cat(draws).to(device)


def check_generators(generator: Generators, count: int) -> None:
    """Raise ValueError for what is neither a generator, nor a list of one for each sample, nor None."""
    wrong = [each for each in _generator_list(generator) if not isinstance(each, torch.Generator)]
    if wrong and generator is not None:
        raise ValueError(
            f"generator={wrong[0]!r} is no torch.Generator: give torch.Generator().manual_seed(0), or a list."
        )
    if isinstance(generator, list) and len(generator) != count:
        raise ValueError(
            f"{len(generator)} generators for {count} samples; give one generator, or one for each sample."
        )


def _generator_list(generator: Generators) -> list[Any]:
    return generator if isinstance(generator, list) else [generator]


def check_network(role: str, network: Any, needs: Sequence[str], examples: str) -> None:
    """Refuse a network that lacks what a pipeline draws with.

    Args:
        role: the component that it is to be.
        network: the network.
        needs: names of attributes and methods, or of entries of the configuration, "config.latent_channels".
        examples: networks that have them, for the message.

    Raises:
        ValueError: names the network and what it lacks.
    """
    lacking = [name for name in needs if not _has(network, name)]
    if lacking:
        kind = type(network).__name__
        raise ValueError(f"{role} ({kind}) has no {' and no '.join(lacking)}. Give {examples}.")


def _has(network: Any, name: str) -> bool:
    """Return whether there is an attribute, or an entry of the configuration: "config.latent_channels"."""
    owner, _, entry = name.rpartition(".")
    return entry in (getattr(network, owner, None) or {}) if owner else hasattr(network, name)


def sample_shape_of(network: Any) -> tuple[int, ...]:
    """Return the shape of one sample that a network models: its `sample_shape`, else (C, H, W) by its configuration.

    diffusers' networks have no `sample_shape`. Their `sample_size` is a side or a pair of sides, and their channels are
    `in_channels`, or `out_channels` where nothing goes in.

    Raises:
        ValueError: the network has neither, or what it says is no shape.
    """
    if (shape := getattr(network, "sample_shape", None)) is not None:
        return _sizes(network, tuple(shape))
    config = getattr(network, "config", None) or {}
    channels, size = config.get("in_channels") or config.get("out_channels"), config.get("sample_size")
    if channels is None or size is None:
        raise ValueError(
            f"{type(network).__name__} does not say the shape of a sample: give it a property sample_shape, (C, H, W) "
            "for images, (T, D) for sequences."
        )
    return _sizes(network, (channels, *(size if isinstance(size, list | tuple) else (size, size))))


def _sizes(network: Any, shape: tuple[Any, ...]) -> tuple[int, ...]:
    """Return a shape. Raises ValueError if its sizes are no whole numbers from 1."""
    if not all(isinstance(size, Integral) and not isinstance(size, bool) and size >= 1 for size in shape):
        raise ValueError(f"{type(network).__name__} says that a sample has the shape {shape}, which is none.")
    return shape


def check_numbers(values: Any, name: str) -> None:
    """Refuse what is not a tensor of finite floating-point numbers.

    Raises:
        ValueError: names the type, or how many values are not finite.
    """
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} are of type {type(values).__name__}; give a tensor.")
    if not values.is_floating_point():
        raise ValueError(f"{name} have type {values.dtype}; give floating-point numbers.")
    if not (finite := values.isfinite()).all():
        raise ValueError(f"{name} have {int((~finite).sum())} of {values.numel()} values that are not finite.")


def check_number(name: str, value: Any, least: float = -math.inf) -> None:
    """Raise ValueError for what is no finite number, or below the least one."""
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not least <= number < math.inf or math.isinf(number):
        must = "be a finite number" if math.isinf(least) else f"be at least {least:g}, and finite"
        raise ValueError(f"{name}={value!r} must {must}.")


def count_of(batch_size: int | None, latents: Any) -> int | None:
    """Return the number of samples of a call: `batch_size`, else as many as there are latents, else None.

    Raises:
        ValueError: there are no latents in what was given, or no numbers.
    """
    if batch_size is not None or latents is None:
        return batch_size
    check_numbers(latents, "latents")
    if not latents.numel():
        raise ValueError(
            f"latents have shape {tuple(latents.shape)} and hold nothing. Give one or more, or batch_size."
        )
    return len(latents) if latents.ndim else 1


def check_latents(latents: Tensor, shape: tuple[int, ...], name: str = "latents") -> None:
    """Refuse what is not a batch, perhaps an empty one, of finite latents (B, *shape).

    Raises:
        ValueError: names the shape that is needed, or says how many values are not finite.
    """
    check_numbers(latents, name)
    if not _is_batch(latents, shape):
        raise ValueError(_shape_message(latents, shape, name))


def check_shape(samples: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Refuse a tensor that is not (B, *shape) with B at least 1.

    Raises:
        ValueError: names the shape that is needed.
    """
    if not _is_batch(samples, shape) or not len(samples):
        raise ValueError(_shape_message(samples, shape, name))


def _is_batch(samples: Tensor, shape: tuple[int, ...]) -> bool:
    return samples.ndim == len(shape) + 1 and tuple(samples.shape[1:]) == tuple(shape)


def _shape_message(samples: Tensor, shape: tuple[int, ...], name: str) -> str:
    """Return a message with the shape that there is and the shape that is needed, such as (B, 3, 32, 32)."""
    needed = f"({', '.join(['B', *map(str, shape)])})"
    return f"{name} have shape {tuple(samples.shape)}; this model needs {needed}."


def check_levels(images: Tensor) -> None:
    """Refuse images in [-1, 1] that are not 8-bit: values between the levels k / 127.5 - 1.

    Raises:
        ValueError: says how far they are, and how to convert them.
    """
    levels = (images.double() + 1) * 127.5
    if (away := (levels - levels.round()).abs().max()) > 0.02:
        raise ValueError(
            f"images have values {away:.2f} of a level away from the 256 levels k / 127.5 - 1, and bits per dimension "
            "are those of 8-bit images: round them, ((x + 1) * 127.5).round() / 127.5 - 1, or use log_likelihood."
        )
