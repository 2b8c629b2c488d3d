"""Images as a trained autoencoder encodes them: codes or latents, computed once when a training begins."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..utils.seeds import generator_of
from .batches import Batch
from .block_cache import BlockCache
from .tensors import digest_of

EXAMPLES = 256
"""Images that are encoded where a few are enough: for an estimate, or to initialise a network."""


class EncodedData:
    """A data set of what an encoder makes of images.

    Nothing is encoded before `prepare`, which a training calls when nothing refuses it any more. Until then rows are
    encoded as they are read, which suffices for the few steps of an estimate.

    Attributes:
        tensors: of all images, by name; None until they are encoded.
        then: called with the tensors when all images are encoded; None: nothing is.

    Args:
        images: the data set of images, which has a length.
        encode: rows (B,) -> tensors by name, "x" (B, *item) among them.
        cache: where they are kept.
        check: as of `BlockCache.load`.
        labels int64 (N,): classes of all images; None: `encode` returns them, or the images have none.
        name, unit: for messages and cards.
        value_range: smallest and largest value of x; None: not bounded.
        fingerprint: a string that identifies the data; None: the tensors say it.
    """

    streaming, in_memory, is_image = False, True, False

    def __init__(
        self,
        images: Any,
        encode: Callable[[Tensor], Mapping[str, Tensor]],
        cache: BlockCache,
        check: Callable[[dict[str, Tensor], int], str | None],
        labels: Tensor | None,
        name: str,
        unit: str,
        item_shape: tuple[int, ...],
        value_range: tuple[float, float] | None = None,
        fingerprint: str | None = None,
    ):
        self.images, self.encode, self.cache, self.check = images, encode, cache, check
        self.name, self.unit, self.item_shape, self.value_range = name, unit, tuple(item_shape), value_range
        self.label_names = None if images.labels is None else images.label_names
        self._labels, self._fingerprint, self._world = labels, fingerprint, 1
        self.then: Callable[[Batch], None] | None = None
        self.tensors: dict[str, Tensor] | None = None

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes; None without labels."""
        return None if self.label_names is None else len(self.label_names)

    @property
    def description(self) -> str:
        """Return name, number and shape of the items."""
        return f"{self.name}, {len(self):,} {self.unit} of shape {self.item_shape}"

    @property
    def fingerprint(self) -> str:
        """Return a string that identifies the data."""
        if self._fingerprint is None:
            self.prepare()
            self._fingerprint = digest_of(self.tensors)
        return self._fingerprint

    def extend_fingerprint(self, *facts: Any) -> None:
        """Let the fingerprint depend on further facts, such as the scale of latents."""
        self._fingerprint = " ".join([self.fingerprint, *map(str, facts)])

    @property
    def seconds(self) -> float:
        """Return the seconds that the encoding took in each process."""
        return self.cache.seconds() / self._world

    def __len__(self) -> int:
        return len(self.images)

    def prepare(self, rank: int = 0, world: int = 1, wait: Callable[[], None] = lambda: None) -> None:
        """Encode what the cache lacks, and load all of it.

        Args:
            rank, world: this process, and the number of processes, which share the work.
            wait: returns when all processes have called it.

        Raises:
            ValueError: the cache is of another source, or a file of it is damaged.
        """
        if self.tensors is not None:
            return
        self.cache.fill(rank, world)
        wait()
        parts, self._world = self.cache.load(self.check), world
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.tensors = self._named(tensors, torch.arange(len(self)))
        if self.then is not None:
            self.then(self.tensors)

    def read(self, rows: Tensor) -> Batch:
        """Return the rows (B,) of every tensor."""
        if self.tensors is None:
            return self._named(self.encode(rows), rows)
        return {name: value.index_select(0, rows) for name, value in self.tensors.items()}

    def first(self, count: int = EXAMPLES) -> Batch:
        """Return the first rows of every tensor, as many as there are."""
        return self.read(torch.arange(min(count, len(self))))

    def finish(self, batch: Batch, position: int, seed: int) -> Batch:
        """Return the batch as it is."""
        return batch

    def _named(self, tensors: Mapping[str, Tensor], rows: Tensor) -> Batch:
        """Return the tensors of a block by the names of a batch."""
        return dict(tensors) if self._labels is None else {**tensors, "labels": self._labels[rows]}


class LatentData(EncodedData):
    """Latents z ~ q(z | x) of images, drawn anew for each batch from "x", the mean (B, d, h, w) of q, and its
    "deviation", which is 0 for an autoencoder without q. Arguments are those of `EncodedData`."""

    def finish(self, batch: Batch, position: int, seed: int) -> Batch:
        """Return the batch with "x" as draws from q."""
        return drawn(batch, position, seed)


def drawn(batch: Mapping[str, Tensor], position: int, seed: int) -> Batch:
    """Return a batch with "x" as draws from the normal distribution of mean "x" and its "deviation" (B, *item), and
    with "encoded"."""
    rest = {name: value for name, value in batch.items() if name != "deviation"}
    noise = torch.randn(batch["x"].shape, generator=generator_of("latents", seed, position))
    encoded = torch.ones(len(noise), dtype=torch.bool)  # so that `Encoded` does not encode them again
    return {**rest, "x": batch["x"] + batch["deviation"] * noise.to(batch["x"]), "encoded": encoded}
