"""Data whose classes have other numbers: those that a trained model knows, and after them new ones."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .batches import Batch, Items
from .images import ImageData


def labelled(data: Items, name: str) -> Items:
    """Return data without labels as data of one class of this name.

    Raises:
        ValueError: the data have labels.
    """
    if data.label_names is not None:
        raise ValueError(
            f"--new_class {name}: {data.name} has labels, {', '.join(data.label_names[:10])}. Leave it out, or give "
            "--label_column none."
        )
    numbers = torch.zeros(1, dtype=torch.int64)
    if isinstance(data, ImageData) and not data.streaming:
        return _changed(data, numbers.expand(len(data)).clone(), [name])
    return RelabelledData(data, numbers, [name])


def classes_after(known: Sequence[str], data: Items) -> list[str]:
    """Return the names `known`, and after them those of the data's classes that are not among them.

    Raises:
        ValueError: the data have no labels, or two known classes have one name.
    """
    if data.label_names is None:
        raise ValueError(
            f"{data.name} has no labels, and the pipeline has classes. Name their column, --label_column, or their one "
            "class: --new_class NAME."
        )
    if len(set(known)) != len(known):
        double = next(name for name in known if list(known).count(name) > 1)
        raise ValueError(f"Two classes of the pipeline are named {double!r}, so that those of data have no place.")
    return [*known, *(name for name in data.label_names if name not in set(known))]


def relabelled(data: Items, names: Sequence[str]) -> Items:
    """Return the data with the numbers that its classes have in `names`, which holds the names of all of them."""
    if list(names) == data.label_names:
        return data
    numbers = torch.tensor([list(names).index(name) for name in data.label_names], dtype=torch.int64)
    if isinstance(data, ImageData) and data.labels is not None:
        return _changed(data, _renumbered(data.labels, numbers), list(names))
    return RelabelledData(data, numbers, list(names))


def _renumbered(labels: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the new numbers of labels (N,); missing labels stay missing."""
    return torch.where(labels < 0, labels, numbers[labels.clamp(min=0)])


def _changed(data: ImageData, labels: torch.Tensor, names: list[str]) -> ImageData:
    """Return images with other labels (N,), and with a fingerprint of both."""
    digest = hashlib.blake2b(repr((data.fingerprint, labels.tolist(), names)).encode(), digest_size=8).hexdigest()
    changed = dataclasses.replace(data, labels=labels, label_names=names)
    changed.__dict__["fingerprint"] = digest  # that of a copy would read encoded images, which are gone
    return changed


class RelabelledData:
    """A data set with other numbers of classes. All else is that of the data set.

    Args:
        data: the data set; without labels, all its items are of class 0.
        numbers: the new number of each of its classes.
        names: of the classes by their new numbers.
    """

    def __init__(self, data: Items, numbers: torch.Tensor, names: list[str]):
        self.original, self._numbers, self.label_names, self.num_classes = data, numbers, names, len(names)

    @property
    def fingerprint(self) -> str:
        """Return that of the data and of the numbers."""
        return f"{self.original.fingerprint}-{'-'.join(map(str, self._numbers.tolist()))}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "original":
            raise AttributeError(name)
        return getattr(self.original, name)

    def __len__(self) -> int:
        return len(self.original)

    def read(self, rows: torch.Tensor) -> Batch:
        """Return what the data set returns; labels are changed in `finish`."""
        return self.original.read(rows)

    def stream(self, batch_size: int, seed: int, rank: int, world: int, start: int, workers: int) -> Iterator[Batch]:
        """Return what the data set returns; labels are changed in `finish`."""
        return self.original.stream(batch_size, seed, rank, world, start, workers)

    def finish(self, batch: Batch, position: int, seed: int) -> Batch:
        """Return the batch as the data set finishes it, with the new numbers."""
        done = self.original.finish(batch, position, seed)
        labels = done.get("labels", torch.zeros(len(done["x"]), dtype=torch.int64, device=done["x"].device))
        return {**done, "labels": _renumbered(labels, self._numbers.to(labels.device))}
