"""Batches of any data set: {"x": (B, *item), "labels": (B,), ...}, in an order that a run can resume anywhere.

The order is a pure function of the seed and of a sample's absolute position p in an endless stream, which is one
independent permutation after another: sample p of a data set of N is row perm_{p // N}[p % N]. Micro-batch m of rank r
holds positions (m * world + r) * batch_size onwards. Nothing is dropped, and nothing has to be saved to resume.

A data set is any object with the attributes of `Items`: `hfgen.data.images.ImageData` holds images,
`hfgen.data.tensors.TensorData` holds tensors of any shape.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..utils.seeds import generator_of

Batch = dict[str, Tensor]


class Items(Protocol):
    """What `Batches` needs of a data set.

    Attributes:
        name: for messages and cards.
        unit: the plural noun for its items, such as "images": in the log and on the card.
        item_shape: shape of one item `x`, without the batch dimension.
        value_range: the smallest and largest value of `x` in a batch; None if `x` is not bounded.
        num_classes, label_names: of "labels", or None.
        fingerprint: a string that changes when the data change.
        description: the data set in a line, for the card.
        streaming: whether the data set has no length and is read by `stream` instead of `read`.
        in_memory: whether `read` is fast enough for the training process itself; if not, workers call it.

    A data set may have an attribute `divided`: whether `stream` gives each process a part of its own, so that the order
    of the items depends on their number, and a run goes on with as many alone.
    """

    name: str
    unit: str
    item_shape: tuple[int, ...]
    value_range: tuple[float, float] | None
    num_classes: int | None
    label_names: list[str] | None
    fingerprint: str
    description: str
    streaming: bool
    in_memory: bool

    def __len__(self) -> int:
        """Return the number of items."""

    def read(self, rows: Tensor) -> Batch:
        """Return the stored tensors of these rows (B,) by name, each (B, ...), on the CPU."""

    def stream(self, batch_size: int, seed: int, rank: int, world: int, start: int, workers: int) -> Iterator[Batch]:
        """Yield the micro-batches of one rank from number `start` on, as `read` returns them, for ever."""

    def finish(self, batch: Batch, position: int, seed: int) -> Batch:
        """Turn stored tensors, on the device of the training, into what networks and objectives are given.

        `position` is the absolute position of the first sample; an augmentation draws from (seed, position).
        """


class Order:
    """Which rows of a data set the samples are, by their position in the endless stream.

    Args:
        rows: the data set.
        seed: of the permutations.
    """

    def __init__(self, rows: Sized, seed: int):
        self._rows, self._seed = rows, seed
        self._epoch = functools.lru_cache(2)(self._permutation)

    def __call__(self, start: int, count: int) -> Tensor:
        """Return the rows (count,) at positions [start, start + count)."""
        return span(self._epoch, len(self._rows), start, count)

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(len(self._rows), generator=generator_of("order", self._seed, epoch))


class Batches:
    """Micro-batches of one process, a pure function of their number: the module's docstring says in which order.

    `batches_per_epoch` is len(data) / (batch_size * world), None for a stream. A stream is shuffled by the data set
    itself, and each rank reads its own part of it, so there the order depends on `world`, as `order` says. A stream
    resumes by reading past what was seen.

    Args:
        data: the data set, see `Items`.
        batch_size: items a micro-batch and process, at least 1.
        seed: of the order and of augmentations.
        rank, world: this process, and the number of processes.
        device: where batches go. Tensors travel as they are stored.
        num_workers: processes that read data that are not in memory; 0: this one.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        data: Items,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
    ):
        if batch_size < 1 or num_workers < 0 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size={batch_size} must be at least 1, {num_workers=} not negative, and {rank=} from 0 to below "
                f"{world=}."
            )
        self.data, self.batch_size, self.seed, self.rank, self.world = data, batch_size, seed, rank, world
        self.device, self.num_workers = torch.device(device), num_workers
        self.batches_per_epoch = None if data.streaming else len(data) / (batch_size * world)
        self._order = Order(data, seed)

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the data."""
        return self.data.fingerprint

    @property
    def unit(self) -> str:
        """Return the plural noun for the items."""
        return self.data.unit

    @property
    def order(self) -> str | None:
        """Return what the order of the items depends on besides the seed, as a text; None: on nothing else."""
        return f"a stream divided over {self.world} process(es)" if getattr(self.data, "divided", False) else None

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Yield micro-batches from number `start` on, for ever: "x" (B, *item), "labels" int64 (B,) where there are
        labels, and whatever else the data set holds. Raises ValueError for a negative start."""
        if start < 0:
            raise ValueError(f"start={start} must be at least 0.")
        return (self._finish(number, batch) for number, batch in enumerate(self.stored(start), start))

    def stored(self, start: int) -> Iterator[Batch]:
        """Yield micro-batches from number `start` on as the data set stores them, on the CPU."""
        if self.data.streaming:
            stream = self.data.stream(self.batch_size, self.seed, self.rank, self.world, start, self.num_workers)
            return _ahead(stream) if self.num_workers else iter(stream)
        rows = (self._order(self._position(number), self.batch_size) for number in itertools.count(start))
        if self.data.in_memory:
            return map(self.data.read, rows)
        loader = DataLoader(
            _Rows(self.data),
            batch_size=None,  # the sampler's items are batches
            sampler=(index.tolist() for index in rows),  # endless, so workers persist
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=generator_of("workers", self.seed),  # leaves the global one alone
        )
        return iter(loader)

    def _position(self, number: int) -> int:
        """Return the absolute position of the first sample of this rank's micro-batch `number`."""
        return (number * self.world + self.rank) * self.batch_size

    def _finish(self, number: int, batch: Mapping[str, Tensor]) -> Batch:
        """Move micro-batch `number` to its device and let the data set finish it."""
        batch = {name: to_device(value, self.device) for name, value in batch.items()}
        return self.data.finish(batch, self._position(number), self.seed)


class RepeatedBatches:
    """The first `count` micro-batches of `batches` over and over, in a run of the same length."""

    def __init__(self, batches: Batches, count: int):
        self.batches, self.count = batches, count
        for name in ("batch_size", "batches_per_epoch", "fingerprint", "unit", "data"):
            setattr(self, name, getattr(batches, name))

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Yield micro-batches from number `start` on, for ever."""
        first = list(itertools.islice(self.batches.iterate(0), self.count))
        return (first[number % self.count] for number in itertools.count(start))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device, without waiting for the copy where that is possible."""
    if device.type == "cuda" and not (tensor.is_pinned() or tensor.is_cuda):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def span(block: Callable[[int], Tensor], size: int, start: int, count: int) -> Tensor:
    """Return items [start, start + count) of the concatenation of block(0), block(1), ... of `size` items each."""
    pieces, end = [], start + count
    while start < end:
        number, offset = divmod(start, size)
        pieces.append(block(number)[offset : offset + end - start])
        start += len(pieces[-1])
    return torch.cat(pieces)


class _Rows(Dataset):
    """Batches of rows for the workers of a DataLoader."""

    def __init__(self, data: Items):
        self.data = data

    def __getitem__(self, index: list[int]) -> Batch:
        return self.data.read(torch.tensor(index))


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the same, each read in the background while the one before is used."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, batches)
        while True:
            batch, following = following.result(), reader.submit(next, batches)
            yield batch
