"""Checks of what callers pass to a pipeline: class labels, noise, images, latents."""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None
"""One generator for a batch, or one for each sample: then a sample is the same alone and in any batch."""


def labels_of(
    class_labels: Any, batch_size: int | None, num_classes: int | None, label_names: list[str] | None
) -> tuple[int, Tensor | None]:
    """Return the batch size, and the labels int64 (B,) or None.

    Args:
        class_labels: a class, or a list, tensor or array of classes, each by number or by name. A single label is
            repeated to `batch_size`.
        batch_size: None: as many as there are labels, or 1.
        num_classes: number of classes of the model; None for a model without classes.
        label_names: names of the classes.

    Raises:
        ValueError: the model does not have the class, the number of labels is not the batch size, or it is 0.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if class_labels is None:
        return batch_size or 1, None
    if num_classes is None:
        raise ValueError("class_labels were given but this model was trained without classes. Leave them out.")
    labels = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels  # tensors and arrays
    labels = list(labels) if isinstance(labels, list | tuple | range) else [labels]
    numbers = [label_names.index(c) if label_names and c in label_names else c for c in labels]
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < num_classes:
            names = f", or one of {', '.join(label_names)}" if label_names else ""
            raise ValueError(f"class {number!r} is not known: give a number from 0 to {num_classes - 1}{names}.")
    if len(numbers) == 1:
        numbers *= batch_size or 1
    if not numbers or batch_size not in (None, len(numbers)):
        raise ValueError(
            f"batch_size={batch_size} but {len(numbers)} class_labels; give one label, or one for each sample."
        )
    return len(numbers), torch.tensor(numbers, dtype=torch.long)


def noise_of(shape: tuple[int, ...], latents: Tensor | None, generator: Generators, device: torch.device) -> Tensor:
    """Return standard normal noise of this shape (B, *item) in float32: `latents` if given, else random.

    Raises:
        ValueError: the latents have another shape, or the list of generators another length than B.
    """
    _check_generators(generator, shape[0])
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents have shape {tuple(latents.shape)}; this call needs {tuple(shape)}.")
    return latents.to(device)


def uniform_of(shape: tuple[int, ...], generator: Generators, device: torch.device | str) -> Tensor:
    """Return uniform random numbers in [0, 1) of this shape (B, *item) in float32.

    Raises:
        ValueError: the list of generators has another length than B.
    """
    _check_generators(generator, shape[0])
    generators = generator if isinstance(generator, list) else [generator]
    rows = (shape[0] // len(generators), *shape[1:])
    draws = [torch.rand(rows, generator=one, device=device if one is None else one.device) for one in generators]
    return torch.cat(draws).to(device)


def _check_generators(generator: Generators, count: int) -> None:
    if isinstance(generator, list) and len(generator) != count:
        raise ValueError(
            f"{len(generator)} generators for {count} samples; give one generator, or one for each sample."
        )


def sample_shape_of(network: Any) -> tuple[int, ...]:
    """Return the shape of one sample that a network models: its `sample_shape`, else (C, H, W) by its configuration.

    diffusers' networks have no `sample_shape`. Their `sample_size` is a side or a pair of sides, and their channels are
    `in_channels`, or `out_channels` where nothing goes in.

    Raises:
        ValueError: the network has neither.
    """
    if (shape := getattr(network, "sample_shape", None)) is not None:
        return tuple(shape)
    config = getattr(network, "config", None) or {}
    channels, size = config.get("in_channels") or config.get("out_channels"), config.get("sample_size")
    if channels is None or size is None:
        raise ValueError(
            f"{type(network).__name__} does not say the shape of a sample: give it a property sample_shape, (C, H, W) "
            "for images, (T, D) for sequences."
        )
    return (channels, *(size if isinstance(size, list | tuple) else (size, size)))


def check_samples(samples: Tensor, shape: tuple[int, ...], name: str = "images") -> None:
    """Refuse what is not a batch of at least one sample of this shape.

    Args:
        samples: (B, *shape).
        shape: of one sample: (C, H, W) for images, (T, D) for sequences.
        name: what the message calls them.

    Raises:
        ValueError: names the shape that is needed.
    """
    if not samples.ndim or not len(samples):
        raise ValueError(f"{name} have shape {tuple(samples.shape)}; this model needs {_batch_of(shape)}.")
    check_latents(samples, shape, name)


def check_latents(latents: Tensor, shape: tuple[int, ...], name: str = "latents") -> None:
    """Refuse what is not a batch, perhaps an empty one, of latents (B, *shape).

    Raises:
        ValueError: names the shape that is needed.
    """
    if latents.ndim != len(shape) + 1 or tuple(latents.shape[1:]) != tuple(shape):
        raise ValueError(f"{name} have shape {tuple(latents.shape)}; this model needs {_batch_of(shape)}.")


def _batch_of(shape: tuple[int, ...]) -> str:
    """Return "(B, C, H, W)" with the numbers of `shape`."""
    return f"({', '.join(['B', *map(str, shape)])})"


def check_levels(images: Tensor) -> None:
    """Refuse images that are not 8-bit: values outside [-1, 1], or between the levels k / 127.5 - 1.

    Raises:
        ValueError: says which, and how to convert them.
    """
    if not (images.isfinite().all() and images.abs().max() <= 1 + 1e-4):
        low, high = float(images.min()), float(images.max())
        raise ValueError(
            f"images have values from {low:.3g} to {high:.3g}, not in [-1, 1]: of 8-bit ones, give k / 127.5 - 1."
        )
    levels = (images.double() + 1) * 127.5
    if (away := (levels - levels.round()).abs().max()) > 0.02:
        raise ValueError(
            f"images have values {away:.2f} of a level away from the 256 levels k / 127.5 - 1, and bits per dimension "
            "are those of 8-bit images: round them, ((x + 1) * 127.5).round() / 127.5 - 1, or use log_likelihood."
        )
