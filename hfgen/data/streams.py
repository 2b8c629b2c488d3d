"""Images that are read one after another from a data set that has no length."""

import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.seeds import seed_of
from .columns import NO_LABELS
from .sources import CorruptImageError

SHUFFLE_BUFFER = 1000
"""Encoded images among which a stream is shuffled."""


@dataclasses.dataclass
class ImageStream:
    """Micro-batches {"x": uint8 (B, C, H, W), "labels": (B,)} of one rank of a streamed `ImageData`.

    The stream is shuffled among SHUFFLE_BUFFER images, seeded by epoch. This process reads and decodes it, with
    `workers` threads.

    Args:
        data: the images.
        batch_size: images a micro-batch.
        seed: of the order.
        rank, world: this process, and the number of processes.
        start: number of the first micro-batch.
        workers: threads that decode, at least 1.
    """

    data: Any
    batch_size: int
    seed: int
    rank: int
    world: int
    start: int
    workers: int

    def epoch(self, number: int) -> Iterator[dict[str, Any]]:
        """Yield the encoded rows of this rank in an epoch."""
        from datasets.distributed import split_dataset_by_node

        shuffled = self.data.rows.shuffle(seed=seed_of("order", self.seed, number), buffer_size=SHUFFLE_BUFFER)
        yield from split_dataset_by_node(shuffled, self.rank, self.world)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the encoded rows of this rank, epoch after epoch."""
        for number in itertools.count():
            row = None
            for row in self.epoch(number):
                yield row
            if row is None:
                raise ValueError(f"The stream has no rows for rank {self.rank} of {self.world}: use fewer processes.")

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        first_row = self.start * self.batch_size
        rows = itertools.islice(self.rows(), first_row, None)
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for number in itertools.count(first_row, self.batch_size):
                yield self.decode(list(itertools.islice(rows, self.batch_size)), number, pool)

    def decode(self, batch: list[dict[str, Any]], first: int, pool: ThreadPoolExecutor) -> dict[str, Tensor]:
        """Decode B rows, whose samples are numbered from `first` on. A corrupt image is replaced by the next good one
        of the batch. Raises CorruptImageError if there is none."""
        cells = [row[self.data.decoder.column] for row in batch]
        images = list(pool.map(self.data.decode, cells, itertools.count(first)))
        good = [index for index, image in enumerate(images) if image is not None]
        if not good:
            raise CorruptImageError(f"No image of a batch of '{self.data.name}' can be decoded.")
        picked = [next((other for other in good if other >= index), good[0]) for index in range(len(batch))]
        pixels = torch.from_numpy(np.stack([images[index] for index in picked]))
        labels = self._labels(batch, picked)
        return {"x": pixels} if labels is None else {"x": pixels, "labels": labels}

    def _labels(self, batch: list[dict[str, Any]], picked: list[int]) -> Tensor | None:
        """Return the labels (B,) of the picked rows of a batch."""
        if self.data.label_column is None:
            return None
        labels = [batch[index][self.data.label_column] for index in picked]
        if not all(label in range(self.data.num_classes) for label in labels):
            raise ValueError(
                f"A row of '{self.data.name}' has no label in column '{self.data.label_column}': "
                f"ignore labels with --label_column {NO_LABELS}."
            )
        return torch.tensor(labels)
