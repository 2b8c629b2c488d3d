"""Whatever a user has (a name, a tensor, a data set of torch or of the Hub) as a data set of hfgen."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..options import DataArgs
from .batches import Items
from .columns import find_labels, read_labels
from .images import ImageData, load_images
from .tensors import MappedData, TensorData, as_tensor

ALWAYS = ("dataset", "dataloader_num_workers")
"""Options that any data set accepts."""

OF_NAMES = ("dataset_config_name", "dataset_split", "streaming", "cache_dir")
"""Options that say which data set a name means."""


def as_items(source: Any, args: DataArgs | None = None) -> Items:
    """Return a data set that `Batches` reads.

    Args:
        source: one of
            a name or folder, as for `--dataset`;
            a tensor or array x (N, *item), or tensors by name, "x" and any others: see `TensorData`; uint8
            (N, C, H, W) are images;
            a data set of the `datasets` library: its images, else its columns of numbers;
            a map-style data set of torch: see `MappedData`;
            a data set of hfgen, which is returned as it is.
        args: options for images that are loaded by name; default: `DataArgs()`. Of these, uint8 tensors take
            `random_flip`, a data set of the `datasets` library those for columns and images.

    Raises:
        ValueError: there is nothing like it, it holds no items, or an option has no effect on it.
        TypeError: the source is of another type.
    """
    args = args or DataArgs()
    if isinstance(source, str | Path):
        return load_images(dataclasses.replace(args, dataset=str(source)))
    if "datasets" in sys.modules and (kind := _hub_kind(source)):
        return _of_hub(source, kind, args)
    if isinstance(source, Tensor | np.ndarray):
        source = {"x": source}
    if isinstance(source, Mapping):
        return _of_tensors({name: as_tensor(value, repr(name)) for name, value in source.items()}, args)
    _refuse_idle(args, source)
    if hasattr(source, "item_shape") and hasattr(source, "finish"):
        return source
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not _is_iterable_dataset(source):
        return MappedData(source)
    fix = "Give a name, tensors, or something with len and [index]."
    if hasattr(source, "dataset"):
        fix = "Give its data set, `.dataset`: batches are made here, in an order that can be resumed."
    raise TypeError(f"{type(source).__name__} is no data set. {fix}")


def _refuse_idle(args: DataArgs, source: Any, *used: str) -> None:
    """Raise ValueError for an option that this data set does not use."""
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name not in (*ALWAYS, *used) and value != field.default:
            raise ValueError(
                f"{field.name}={value!r} does nothing with data of type {type(source).__name__}, only with images that "
                "are loaded by a name. Leave it out, and prepare the data beforehand."
            )


def _of_tensors(tensors: dict[str, Tensor], args: DataArgs) -> Items:
    x = tensors.get("x")
    if x is not None and x.is_floating_point() and not x.isfinite().all():
        raise ValueError(f"x has {int((~x.isfinite()).sum())} values that are not finite. Remove or replace them.")
    data = TensorData(tensors)
    if not data.is_image or tensors.keys() - {"x", "labels"}:
        _refuse_idle(args, x)
        return data
    _refuse_idle(args, x, "random_flip")
    return ImageData(
        *("images", None, None, x.shape[1], x, tensors.get("labels"), data.label_names),
        storage=f"in memory, {x.numel() / 2**20:,.1f} MiB",
        random_flip=args.random_flip,
    )


def _is_iterable_dataset(source: Any) -> bool:
    """Whether it is a data set of torch that can't be indexed, although its base class has [index]."""
    return isinstance(source, torch.utils.data.IterableDataset)


def _hub_kind(source: Any) -> str | None:
    """Return "rows", "stream" or "splits" for a data set of the `datasets` library, None for anything else."""
    import datasets

    kinds = {
        "rows": datasets.Dataset,
        "stream": datasets.IterableDataset,
        "splits": datasets.DatasetDict | datasets.IterableDatasetDict,
    }
    return next((name for name, kind in kinds.items() if isinstance(source, kind)), None)


def _of_hub(rows: Any, kind: str, args: DataArgs) -> Items:
    """Return the images of a Hub data set, else its columns of numbers; "x" is the column "x", or the only one."""
    import datasets

    if kind == "splits":
        raise ValueError(
            f"The data set has the splits {', '.join(rows)}. Give one of them: data[{next(iter(rows))!r}]."
        )
    if rows.features is None:
        rows = rows._resolve_features()
    name = rows.info.dataset_name or "data set"
    if any(isinstance(feature, datasets.Image) for feature in rows.features.values()):
        _refuse_idle(args, rows, *(field.name for field in dataclasses.fields(args) if field.name not in OF_NAMES))
        return load_images(dataclasses.replace(args, dataset=name, streaming=kind == "stream"), rows)
    if kind == "stream":
        raise ValueError("A streamed data set is read for its images, and this one has no column of images.")
    return _of_numbers(rows, name, args)


def _of_numbers(rows: Any, name: str, args: DataArgs) -> TensorData:
    """Return the columns of numbers of a Hub data set, and the classes of its labels."""
    _refuse_idle(args, rows, "label_column")
    columns = rows.with_format("torch")[:]
    tensors = {key: value for key, value in columns.items() if isinstance(value, Tensor)}
    names = None
    if "labels" not in tensors and (label := find_labels(rows.features, args)):
        tensors.pop(label, None)
        labels, names = read_labels(rows, label, args)
        tensors |= {} if labels is None else {"labels": labels}
    items = [key for key in tensors if key != "labels"]
    if "x" not in items and len(items) == 1:
        tensors["x"] = tensors.pop(items[0])
    if "x" not in tensors:
        raise ValueError(
            f'Name the column of items "x"; columns of numbers, of one length each, are: {", ".join(items) or "none"}. '
            'Pad sequences of different lengths, and mark padding with False in a column "mask".'
        )
    return TensorData(tensors, name=name, label_names=names)
