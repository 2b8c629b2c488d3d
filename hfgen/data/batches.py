"""Data set -> batches {"images": (B, C, H, W) float32 in [-1, 1], "labels": (B,) int64}.

The order of the data is a pure function of the seed and of a sample's absolute position p in an endless stream, which
is one independent permutation after another: sample p of a data set of N is row perm_{p // N}[p % N]. Micro-batch m of
rank r holds positions (m * world + r) * batch_size onwards. Nothing is dropped, and nothing has to be saved to resume.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..utils.pictures import grid
from ..utils.pixels import from_levels
from ..utils.seeds import seed_of
from .images import ImageData, load_images
from .sources import NO_LABELS, CorruptImageError, flatten

__all__ = ["Batches", "CorruptImageError", "ImageData", "Order", "describe", "load_images", "preview", "sample"]

SHUFFLE_BUFFER = 1000
"""Encoded images that a stream is shuffled among."""
FLIP_BLOCK = 1 << 16
DESCRIBED_PIXELS = 1 << 26


class Order:
    """Which rows of a data set the samples are, by their position in the endless stream: see the top.

    Args:
        rows: the data set.
        seed: of the permutations.
    """

    def __init__(self, rows: Sized, seed: int):
        self._rows, self._seed = rows, seed
        self._epoch = functools.lru_cache(2)(self._permutation)

    def __call__(self, start: int, count: int) -> Tensor:
        """The rows (count,) at positions [start, start + count)."""
        return _cut(self._epoch, len(self._rows), start, count)

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(len(self._rows), generator=_generator(self._seed, "order", epoch))


class Batches:
    """Micro-batches of one process, a pure function of their index: see the order of the data at the top.

    `batches_per_epoch` is len(data) / (batch_size * world), None for a stream. A stream is shuffled among
    SHUFFLE_BUFFER images, seeded by epoch, and each rank reads its own part of it, so there the order depends on
    `world`; it resumes by reading past what was seen. It is read by this process, ahead and with `num_workers` threads.

    Args:
        data: the images.
        batch_size: images a micro-batch and process.
        seed: of order and flips.
        rank, world: this process, and how many there are.
        device: where batches go; pixels travel as uint8.
        random_flip: mirror left-right with probability 1/2, drawn from (seed, position).
        num_workers: processes that decode when data are not cached; 0: this one.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        random_flip: bool = False,
        num_workers: int = 0,
    ):
        if batch_size < 1 or num_workers < 0 or not 0 <= rank < world:
            raise ValueError(f"batch_size={batch_size} >= 1, {num_workers=} >= 0, 0 <= {rank=} < {world=} must hold.")
        self.data, self.batch_size, self.seed, self.rank, self.world = data, batch_size, seed, rank, world
        self.device, self.random_flip, self.num_workers = torch.device(device), random_flip, num_workers
        self.batches_per_epoch = None if data.streaming else len(data) / (batch_size * world)
        self._order = Order(data, seed)
        self._flips = functools.lru_cache(2)(self._coins)

    @property
    def fingerprint(self) -> str:
        """That of the data."""
        return self.data.fingerprint

    def iterate(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Micro-batches from index `start` on, for ever: "images" float32 (B, C, H, W) in [-1, 1], "labels" (B,)."""
        if start < 0:
            raise ValueError(f"start={start} must be at least 0.")
        return (self._finish(number, *micro) for number, micro in enumerate(self._micro(start), start))

    def _coins(self, block: int) -> Tensor:
        """Which of FLIP_BLOCK successive positions are mirrored: bool (FLIP_BLOCK,)."""
        return torch.rand(FLIP_BLOCK, generator=_generator(self.seed, "flip", block)) < 0.5

    def _position(self, number: int) -> int:
        """The absolute position of the first sample of this rank's micro-batch `number`."""
        return (number * self.world + self.rank) * self.batch_size

    def _micro(self, start: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images uint8 (B, C, H, W) on the CPU and labels int64 (B,) or None of the micro-batches from `start` on."""
        index = (self._order(self._position(number), self.batch_size) for number in itertools.count(start))
        if self.data.images is not None:
            return map(self.data.read, index)
        if self.data.streaming:
            stream = _Stream(self.data, self.batch_size, self.seed, self.rank, self.world, start, self.num_workers)
            return _ahead(iter(stream)) if self.num_workers else iter(stream)
        loader = DataLoader(
            _Rows(self.data),
            batch_size=None,  # the sampler's items are batches
            sampler=(rows.tolist() for rows in index),  # endless, so workers persist
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # leaves the global one alone
        )
        return iter(loader)

    def _finish(self, number: int, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Micro-batch `number` on its device: mirrored, and 0..255 made -1..1."""
        images = self._move(images)
        if self.random_flip:
            mirrored = _cut(self._flips, FLIP_BLOCK, self._position(number), len(images))
            chosen = torch.arange(len(images)) + len(images) * mirrored  # whole rows are the fastest to pick
            images = torch.cat([images, images.flip(-1)]).index_select(0, self._move(chosen))
        batch = {"images": from_levels(images)}
        return batch if labels is None else {**batch, "labels": self._move(labels)}

    def _move(self, tensor: Tensor) -> Tensor:
        """To the device, without waiting for it where that can be."""
        if self.device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _generator(*key: object) -> torch.Generator:
    """A generator seeded by all parts of the key."""
    return torch.Generator().manual_seed(seed_of(*key))


def _cut(block: Callable[[int], Tensor], size: int, start: int, count: int) -> Tensor:
    """Items [start, start + count) of the concatenation of block(0), block(1), ... of `size` items each: (count,)."""
    pieces, end = [], start + count
    while start < end:
        number, offset = divmod(start, size)
        pieces.append(block(number)[offset : offset + end - start])
        start += len(pieces[-1])
    return torch.cat(pieces)


class _Rows(Dataset):
    """Batches of rows for a DataLoader's workers."""

    def __init__(self, data: ImageData):
        self.data = data

    def __getitem__(self, index: list[int]) -> tuple[Tensor, Tensor | None]:
        return self.data.read(torch.tensor(index))


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same, each read in the background while the one before is used."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, batches)
        while True:
            batch, following = following.result(), reader.submit(next, batches)
            yield batch


@dataclasses.dataclass
class _Stream:
    """Micro-batches of a stream from index `start` on."""

    data: ImageData
    batch_size: int
    seed: int
    rank: int
    world: int
    start: int
    threads: int

    def epoch(self, number: int) -> Iterator[dict[str, Any]]:
        """This rank's encoded rows in an epoch."""
        from datasets.distributed import split_dataset_by_node

        shuffled = self.data.rows.shuffle(seed=seed_of(self.seed, "order", number), buffer_size=SHUFFLE_BUFFER)
        yield from split_dataset_by_node(shuffled, self.rank, self.world)

    def rows(self) -> Iterator[dict[str, Any]]:
        """This rank's encoded rows, epoch after epoch."""
        for number in itertools.count():
            row = None
            for row in self.epoch(number):
                yield row
            if row is None:
                raise ValueError(f"The stream has no rows for rank {self.rank} of {self.world}: use fewer processes.")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        seen = self.start * self.batch_size
        rows = itertools.islice(self.rows(), seen, None)
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            for first in itertools.count(seen, self.batch_size):
                yield self.decode(list(itertools.islice(rows, self.batch_size)), first, pool)

    def decode(self, batch: list[dict[str, Any]], first: int, pool: ThreadPoolExecutor) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) and labels (B,) of B rows, whose samples are numbered from `first` on."""
        cells = [row[self.data.decoder.column] for row in batch]
        images = list(pool.map(self.data.decode, cells, itertools.count(first)))
        good = [index for index, image in enumerate(images) if image is not None]
        if not good:
            raise CorruptImageError(f"No image of a batch of '{self.data.name}' can be decoded.")
        picked = [next((other for other in good if other >= index), good[0]) for index in range(len(batch))]
        return torch.from_numpy(np.stack([images[index] for index in picked])), self.labels(batch, picked)

    def labels(self, batch: list[dict[str, Any]], picked: list[int]) -> Tensor | None:
        """The labels (B,) of the picked rows of a batch."""
        if self.data.label_column is None:
            return None
        labels = [batch[index][self.data.label_column] for index in picked]
        if not all(label in range(self.data.num_classes) for label in labels):
            raise ValueError(
                f"A row of '{self.data.name}' has no label in column '{self.data.label_column}': "
                f"ignore labels with --label_column {NO_LABELS}."
            )
        return torch.tensor(labels)


def sample(data: ImageData, count: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """The first `count` images that training sees, or all if there are fewer: uint8 (B, C, H, W), and labels (B,)."""
    if data.streaming:
        stream = _Stream(data, count, seed, rank=0, world=1, start=0, threads=1)
        with ThreadPoolExecutor() as pool:
            return stream.decode(list(itertools.islice(stream.epoch(0), count)), 0, pool)
    return next(Batches(data, min(count, len(data)), seed)._micro(0))


def describe(data: ImageData) -> list[tuple[str, str]]:
    """What there is to know of a data set, as (name, value) pairs. Means and deviations are of pixels in [0, 1]."""
    most = max(1, DESCRIBED_PIXELS // (data.channels * math.prod(data.size)))
    images, _ = sample(data, min(most, SHUFFLE_BUFFER) if data.streaming else most)  # a stream may be long
    counts = [np.bincount(images[:, channel].reshape(-1), minlength=256) for channel in range(data.channels)]
    levels = np.arange(256) / 255
    means = [count @ levels / count.sum() for count in counts]
    squares = [count @ levels**2 / count.sum() for count in counts]
    spreads = [math.sqrt(square - mean**2) for square, mean in zip(squares, means, strict=True)]
    of = "" if not data.streaming and len(images) == len(data) else f" (of {len(images):,} images)"
    return [
        ("data set", data.name),
        ("images", "not known: streamed" if data.streaming else f"{len(data):,}"),
        ("left out", f"{data.num_skipped:,} that can't be decoded"),
        ("height × width", f"{data.size[0]} × {data.size[1]}"),
        ("channels", {1: "1 (grey)", 3: "3 (RGB)", 4: "4 (RGBA)"}[data.channels]),
        ("classes", _classes(data)),
        (f"mean{of}", ", ".join(f"{mean:.4f}" for mean in means)),
        (f"deviation{of}", ", ".join(f"{spread:.4f}" for spread in spreads)),
        ("fingerprint", data.fingerprint),
        ("storage", data.storage),
    ]


def _classes(data: ImageData) -> str:
    """Classes with how many images each has; of more than 20, the extremes."""
    if data.label_names is None:
        return "none"
    if data.labels is None:
        return f"{data.num_classes}: {', '.join(data.label_names)}"
    counts = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    if len(counts) > 20:
        return f"{len(counts)} of {min(counts):,} to {max(counts):,} images"
    return f"{len(counts)}: " + ", ".join(f"{n} ({c:,})" for n, c in zip(data.label_names, counts, strict=True))


def preview(data: ImageData, path: str | Path, rows: int = 8, cols: int = 8, seed: int = 0) -> Path:
    """Save a grid of up to rows x cols images drawn at random as PNG; small ones are enlarged by a whole factor."""
    if min(rows, cols) < 1:
        raise ValueError(f"A grid of {rows} × {cols} images shows nothing: {rows=} and {cols=} must be at least 1.")
    images, _ = sample(data, rows * cols, seed)
    tiles = [Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()) for pixels in images]
    if data.channels == 4:
        tiles = [flatten(tile, data.decoder.background) for tile in tiles]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    grid(tiles, cols).save(path, "PNG")
    return Path(path)
