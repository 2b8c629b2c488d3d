"""What callers give to a pipeline, checked: classes, noise, images, schedulers."""

import copy
import inspect
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

_KNOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "match": {"path": ("straight",), "prediction_type": ("flow_prediction",)},
    "flow": {"path": ("straight",)},
    "table": {"path": ("discrete",), "prediction_type": ("epsilon", "sample", "v_prediction")},
}
"""What diffusers' schedulers know: the FlowMatch ones, those set to `use_flow_sigmas`, and all others."""


def classes_of(
    class_labels: Any, batch_size: int | None, num_classes: int | None, label_names: list[str] | None
) -> tuple[int, Tensor | None]:
    """How many images to draw and of which classes: (batch size, labels (B,) or None).

    `class_labels` is a class, or a list or tensor of classes, each by number or by name; one label is repeated to
    `batch_size`.

    Raises:
        ValueError: a class that the model does not have, a list whose length is not the batch size, or nothing to draw.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if class_labels is None:
        return batch_size or 1, None
    if num_classes is None:
        raise ValueError("class_labels were given but this model was trained without classes. Leave them out.")
    given = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels  # tensors and arrays
    given = list(given) if isinstance(given, list | tuple | range) else [given]
    numbers = [label_names.index(c) if label_names and c in label_names else c for c in given]
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < num_classes:
            names = f", or one of {', '.join(label_names)}" if label_names else ""
            raise ValueError(f"class {number!r} is not known: give a number from 0 to {num_classes - 1}{names}.")
    if len(numbers) == 1:
        numbers *= batch_size or 1
    if not numbers or batch_size not in (None, len(numbers)):
        raise ValueError(f"batch_size={batch_size} but {len(numbers)} class_labels; give one label, or one an image.")
    return len(numbers), torch.tensor(numbers, dtype=torch.long)


def noise_of(shape: tuple[int, ...], latents: Tensor | None, generator: Any, device: torch.device) -> Tensor:
    """Standard normal noise of this shape (B, ...) in float32: `latents` if given, else drawn.

    Raises:
        ValueError: latents of another shape, or a list of generators that are not one an image.
    """
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} images; give one generator, or one an image.")
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; this call needs {shape}.")
    return latents.to(device)


def uniform_of(shape: tuple[int, ...], generator: Any, device: torch.device | str) -> Tensor:
    """Numbers in [0, 1) of this shape (B, ...) in float32, from one generator or one an image.

    Raises:
        ValueError: a list of generators that are not one an image.
    """
    each = generator if isinstance(generator, list) else [generator]
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} images; give one generator, or one an image.")
    rows = (shape[0] // len(each), *shape[1:])
    draws = [torch.rand(rows, generator=one, device=device if one is None else one.device) for one in each]
    return torch.cat(draws).to(device)


def image_shape_of(config: Any) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network with this configuration takes; its `sample_size` is a side or a pair."""
    return (config.in_channels, *size_of(config))


def size_of(config: Any) -> tuple[int, int]:
    """(H, W) of the images of a network with this configuration, whose `sample_size` is a side or a pair."""
    size = config.sample_size
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def check_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Refuse what is not a batch of images of this shape (C, H, W).

    Raises:
        ValueError: says which shape is needed.
    """
    if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != tuple(shape):
        needed = ", ".join(map(str, shape))
        raise ValueError(f"images have shape {tuple(images.shape)}; this model needs (B, {needed}).")


def check_latents(latents: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what is not a batch of latents of this shape (d, h, w).

    Raises:
        ValueError: says which shape is needed.
    """
    if latents.ndim != 4 or tuple(latents.shape[1:]) != tuple(shape):
        needed = ", ".join(map(str, shape))
        raise ValueError(f"latents have shape {tuple(latents.shape)}; this model needs (B, {needed}).")


def check_levels(images: Tensor) -> None:
    """Refuse images that are not 8-bit: values outside [-1, 1], or between the levels k / 127.5 - 1.

    Raises:
        ValueError: says which, and how to make them so.
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


def clone_of(scheduler: Any) -> Any:
    """A clone of the scheduler: schedulers keep state, and calls in other threads have theirs.

    Raises:
        ValueError: a scheduler of diffusers' that does not know the path or the prediction of the model.
    """
    if "path" not in inspect.signature(type(scheduler).__init__).parameters:
        # What a scheduler class does not know survives in its configuration, where it can be compared.
        name, config = type(scheduler).__name__, scheduler.config
        kind = "match" if "FlowMatch" in name else "flow" if config.get("use_flow_sigmas") else "table"
        wrong = [f"{key}={config[key]}" for key, known in _KNOWN[kind].items() if config.get(key) not in (None, *known)]
        if wrong:
            raise ValueError(
                f"The model was trained with {' and '.join(wrong)}, which diffusers' {name} does not know. Use one of "
                "hfgen's schedulers, which know every path and prediction."
            )
    return copy.deepcopy(scheduler)
