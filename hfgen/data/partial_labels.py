"""Class labels that are missing in part of a data set: which they are, which are hidden, and batches of those known.

A missing label is `MISSING` in "labels". Only a family whose options of data are `PartialLabelDataArgs` is given such
labels. For all others the data room refuses them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..utils.arguments import checked
from ..utils.seeds import generator_of
from .batches import Batch, Items, Order
from .label_options import MISSING, PartialLabelDataArgs


def num_unlabelled(data: Items) -> int:
    """Return how many items of a data set have classes, but no label. Of a stream it is 0, which refuses such rows."""
    labels = getattr(data, "labels", None)
    return 0 if labels is None else int((labels < 0).sum())


def facts_of(data: Items) -> str | None:
    """Return how many items have a label as a text; None: all have one, or none has."""
    unknown = num_unlabelled(data)
    return f"{len(data) - unknown:,} of {len(data):,} {data.unit} have a label" if unknown else None


def told_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels (N,) themselves; if one of them is missing, all classes in turn."""
    return torch.arange(len(labels)) % num_classes if bool((labels < 0).any()) else labels


@checked
def hidden_labels(labels: Tensor, num_classes: int, count: int, seed: int = 0) -> Tensor:
    """Return labels (N,) of which `count` are kept, and all others are `MISSING`.

    Each class keeps count // num_classes labels. The remaining count % num_classes are of that many classes, one each,
    which are drawn, too. The images of a class are drawn without replacement. Fewer labels of the same seed are a
    subset of more as long as both are multiples of the number of classes.

    Args:
        labels: int64 (N,), from 0 on; `MISSING` ones stay so.
        num_classes: number of classes.
        count: labels to keep, at least one of each class.
        seed: of the choice.

    Raises:
        ValueError: fewer labels than classes, or a class with too few.
    """
    if count < num_classes:
        raise ValueError(f"--num_labels {count} is too few for {num_classes} classes: give {num_classes} or more.")
    more = torch.randperm(num_classes, generator=generator_of("kept labels", seed))[: count % num_classes].tolist()
    kept = torch.full_like(labels, MISSING)
    for label in range(num_classes):
        rows, wanted = (labels == label).nonzero()[:, 0], count // num_classes + (label in more)
        if len(rows) < wanted:
            raise ValueError(
                f"--num_labels {count} keeps {wanted} labels of each class, and class {label} has {len(rows)}. Give a "
                "smaller number."
            )
        rows = rows[torch.randperm(len(rows), generator=generator_of("kept labels", seed, label))[:wanted]]
        kept[rows] = label
    return kept


def hide_labels(data: Any, args: Any) -> None:
    """Hide labels of an `ImageData` as its options say, and give it another fingerprint.

    Raises:
        ValueError: see `hidden_labels`; or there are no labels.
    """
    if not isinstance(args, PartialLabelDataArgs) or args.num_labels is None:
        return
    if data.labels is None:
        raise ValueError(f"--num_labels {args.num_labels}: {data.name} has no labels. Name the column: --label_column.")
    digest = data.fingerprint  # of the images with all their labels
    data.labels = hidden_labels(data.labels, data.num_classes, args.num_labels, args.label_seed)
    data.__dict__["fingerprint"] = f"{digest}-{args.num_labels}-{args.label_seed}"


class LabelledPairs:
    """A data set whose batches hold a second batch: pairs of an item and its class, of those items that have one.

    Batches are those of the data set, with "pair_x" (B, *item) and "pair_labels" (B,) besides. Pair p of the endless
    stream is row perm_{p // L}[p % L] of the L labelled rows, a pure function of the seed. "x" holds labelled and
    unlabelled items alike.

    Args:
        data: images in memory, or on disk, some of which have labels.

    Raises:
        ValueError: the data are streamed, or none of them has a label.
    """

    @checked
    def __init__(self, data: Any):
        if data.streaming:
            raise ValueError(f"{data.name} is streamed, and pairs are read again and again. Drop --streaming.")
        labels = getattr(data, "labels", None)
        rows = [] if labels is None else (labels >= 0).nonzero()[:, 0]
        if not len(rows):
            raise ValueError(
                f"{data.name} has no labels, and pairs of image and class are learnt. Name the column: --label_column."
            )
        self.original, self.rows = data, rows
        self._orders: dict[int, Order] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "original":
            raise AttributeError(name)
        return getattr(self.original, name)

    def __len__(self) -> int:
        return len(self.original)

    def read(self, rows: Tensor) -> Batch:
        """Return what the data set returns; pairs are added in `finish`."""
        return self.original.read(rows)

    def stream(self, batch_size: int, seed: int, rank: int, world: int, start: int, workers: int) -> Iterator[Batch]:
        """Raise ValueError: there are no pairs of a stream."""
        raise ValueError(f"{self.original.name} can't be streamed as pairs.")

    def finish(self, batch: Batch, position: int, seed: int) -> Batch:
        """Return the batch as the data set finishes it, with the pairs of its positions, augmented like other items."""
        order = self._orders.setdefault(seed, Order(self.rows, seed))
        known = self.original.read(self.rows[order(position, len(batch["x"]))])
        known = {name: known[name].to(batch["x"].device) for name in ("x", "labels")}
        pairs = self.original.finish(known, position, seed)
        return {**self.original.finish(batch, position, seed), "pair_x": pairs["x"], "pair_labels": pairs["labels"]}
