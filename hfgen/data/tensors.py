"""Data sets of items that need not be images: tensors of any shape, data sets of torch, and endless samplers."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.arguments import checked
from ..utils.pixels import eight_bits, from_levels
from ..utils.seeds import generator_of
from .batches import Batch


class TensorData:
    """A data set that holds N items in memory as tensors of equal length.

    Args:
        tensors: "x" (N, *item), optionally "labels" int64 (N,), and any others (N, ...) that the objective or the
            condition reads, such as "noise", "mask", "tokens" or "observation". If x is uint8, its items are images
            (C, H, W), whose pixels 0..255 become -1..1.
        name: for messages and cards.
        unit: the plural noun for the items; default: "images" or "items".
        value_range: smallest and largest value of x in a batch; None: not bounded, but for images.
        label_names: names of the classes 0, 1, ...; default: the numbers.
        fingerprint: a string that identifies the data; default: a digest of every bit.

    Raises:
        ValueError: there is no "x", lengths differ, there are no items, uint8 items are no images, or labels are not
            int64 numbers from 0 on.
    """

    streaming, in_memory = False, True

    @checked
    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name: str = "tensors",
        unit: str | None = None,
        value_range: tuple[float, float] | None = None,
        label_names: list[str] | None = None,
        fingerprint: str | None = None,
    ):
        lengths = {key: len(value) for key, value in tensors.items()}
        if "x" not in lengths or len(set(lengths.values())) > 1 or not lengths["x"]:
            raise ValueError(f'tensors need "x" and others of the same length, at least 1; these are {lengths}.')
        self.tensors, self.name = dict(tensors), name
        self.item_shape = tuple(tensors["x"].shape[1:])
        self.is_image = _is_image(tensors["x"].dtype, self.item_shape)
        self.unit = unit or ("images" if self.is_image else "items")
        self.value_range = value_range or ((-1.0, 1.0) if self.is_image else None)
        self.label_names = _label_names(tensors.get("labels"), label_names)
        self._fingerprint = fingerprint

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes; None without labels."""
        return None if self.label_names is None else len(self.label_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits that depend on every bit of every tensor."""
        return self._fingerprint or digest_of(self.tensors)

    @property
    def description(self) -> str:
        """Return name, number and shape of the items."""
        return f"{self.name}, {len(self):,} {self.unit} of shape {self.item_shape}"

    def __len__(self) -> int:
        return len(self.tensors["x"])

    def read(self, rows: Tensor) -> Batch:
        """Return the rows (B,) of every tensor."""
        return {name: value.index_select(0, rows) for name, value in self.tensors.items()}

    def finish(self, batch: Batch, position: int, seed: int) -> Batch:
        """Return the batch, with pixels 0..255 as -1..1."""
        return {**batch, "x": from_levels(batch["x"])} if self.is_image else batch


class MappedData:
    """A map-style data set of torch (or a Hub data set of numbers) as a data set of hfgen.

    Each element is a tensor or array x, a pair (x, label), or a mapping with the key "x" and any others. A PIL image or
    a uint8 tensor (C, H, W) is an image: its pixels 0..255 become -1..1.

    Args:
        data: has `__len__` and `__getitem__`, and perhaps a list `classes` of the names of the labels. The same index
            must give the same element: augmentation that draws random numbers of its own makes a resumed run differ
            from an uninterrupted one.
        name: for messages and cards; default: the name of the class.
        unit: the plural noun for the items; default: "images" or "items".

    Raises:
        ValueError: the data set is empty, or its first element has no x.
    """

    streaming, in_memory = False, False

    @checked
    def __init__(self, data: Any, name: str | None = None, unit: str | None = None):
        if not len(data):
            raise ValueError(f"{type(data).__name__} has no elements.")
        self.data, self.name = data, name or type(data).__name__
        first = self._element(0)
        self.item_shape = tuple(first["x"].shape)
        self.is_image = _is_image(first["x"].dtype, self.item_shape)
        self.unit = unit or ("images" if self.is_image else "items")
        self.value_range = (-1.0, 1.0) if self.is_image else None
        self.label_names = self._read_classes() if "labels" in first else None

    num_classes = TensorData.num_classes
    description = TensorData.description
    finish = TensorData.finish

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits of 64 elements, evenly spaced, and the length."""
        rows = range(0, len(self.data), max(1, len(self.data) // 64))
        elements = [digest_of(self._element(row)) for row in rows]
        return hashlib.blake2b(repr((len(self.data), elements)).encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self.data)

    def read(self, rows: Tensor) -> Batch:
        """Return the elements of the rows (B,), stacked. Raises ValueError for elements of different shapes."""
        elements = [self._element(row) for row in rows.tolist()]
        try:
            batch = {name: torch.stack([element[name] for element in elements]) for name in elements[0]}
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"Elements of {self.name} do not fit together: {error}. Each one needs the same names, shapes and "
                'types; pad shorter ones, and mark padding with False in a "mask".'
            ) from None
        if "labels" in batch:
            _label_names(batch["labels"], self.label_names)  # refuses labels of other types, and out of range
        return batch

    def _read_classes(self) -> list[str]:
        """Return the names of the classes: those that the data set states, else the numbers up to the largest label."""
        names = getattr(self.data, "classes", None)
        if isinstance(names, list | tuple) and names:
            return list(map(str, names))
        return _label_names(torch.stack([self._element(row)["labels"] for row in range(len(self.data))]), None)

    def _element(self, row: int) -> Batch:
        element = self.data[row]
        if isinstance(element, tuple | list):
            if not 1 <= len(element) <= 2:
                raise ValueError(
                    f"Element {row} of {self.name} has {len(element)} parts. Give a pair (x, label), or a mapping with "
                    'the key "x" and any others.'
                )
            element = dict(zip(("x", "labels"), element, strict=False))
        elif not isinstance(element, Mapping):
            element = {"x": element}
        if "x" not in element:
            keys = ", ".join(map(str, element))
            raise ValueError(f'Element {row} of {self.name} has no "x", only {keys}. Name what the model learns "x".')
        return {name: as_tensor(value, f"{name!r} of element {row} of {self.name}") for name, value in element.items()}


class EndlessData:
    """A data set without end, whose items a function draws.

    Args:
        sample: (count, generator) -> tensors by name, "x" (count, *item) among them. It draws all its randomness from
            the generator.
        item_shape: shape of an item.
        name, unit, value_range: as of `TensorData`.
        stream: name of the random stream; another name gives other items.
    """

    streaming, in_memory = True, True
    num_classes = label_names = None

    def __init__(
        self,
        sample: Callable[[int, torch.Generator], Batch],
        item_shape: tuple[int, ...],
        name: str = "samples",
        unit: str = "items",
        value_range: tuple[float, float] | None = None,
        stream: str = "items",
    ):
        self.sample, self.item_shape, self.name, self.unit = sample, tuple(item_shape), name, unit
        self.value_range, self._stream, self.fingerprint = value_range, stream, f"endless {name}"
        self.description = f"{name}, drawn anew, of shape {self.item_shape}"

    def __len__(self) -> int:
        raise TypeError(f"{self.name} has no length: its {self.unit} are drawn for ever.")

    def stream(self, batch_size: int, seed: int, rank: int, world: int, start: int, workers: int) -> Iterator[Batch]:
        """Yield this rank's part of batch number `start`, `start` + 1, ..., each a function of seed and number."""
        while True:
            whole = self.sample(batch_size * world, generator_of("items", seed, self._stream, start))
            yield {name: value[rank * batch_size : (rank + 1) * batch_size] for name, value in whole.items()}
            start += 1

    def finish(self, batch: Batch, position: int, seed: int) -> Batch:
        """Return the batch as it is."""
        return batch


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that depend on every bit of named tensors, and on nothing else."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_image(dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether items of this type and shape are images. Raises ValueError for uint8 ones that are not (C, H, W)."""
    if dtype == torch.uint8 and (len(shape) != 3 or shape[0] not in (1, 3, 4)):
        raise ValueError(
            f"x has items of type uint8 and shape {shape}. Images need (C, H, W) with 1, 3 or 4 channels: add them by "
            "x.unsqueeze(-3), or move them by x.movedim(-1, -3). Give other numbers as x.float()."
        )
    return dtype == torch.uint8


def _label_names(labels: Tensor | None, names: list[str] | None) -> list[str] | None:
    """Return a name for each class of labels (N,); None without labels. Raises ValueError for labels out of range."""
    if labels is None:
        return None
    if labels.dtype != torch.int64 or labels.ndim != 1 or int(labels.min()) < 0:
        raise ValueError(
            f"labels need int64 numbers (N,) from 0 on; these are {labels.dtype}, {tuple(labels.shape)}. Give anything "
            'that is no class another name, such as "observation".'
        )
    count = int(labels.max()) + 1
    if names is not None and len(names) < count:
        raise ValueError(f"labels go up to {count - 1}, but there are {len(names)} label_names.")
    return list(names) if names is not None else [str(i) for i in range(count)]


def as_tensor(value: Any, name: str = "it") -> Tensor:
    """Return numbers as a tensor on the CPU: a PIL image as uint8 (C, H, W), float64 of NumPy in torch's default type.

    Raises:
        ValueError: the value holds no numbers; the message calls it `name`.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if hasattr(value, "getbands"):  # a PIL image
        value = eight_bits(value)
        pixels = np.asarray(value if value.mode in ("L", "RGB", "RGBA") else value.convert("RGB"))
        return torch.from_numpy(pixels.copy().reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is {type(value).__name__}, not numbers of one shape: {error}.") from None
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor
