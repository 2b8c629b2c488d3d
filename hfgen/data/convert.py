"""Whatever a user has (a name, a tensor, a data set of torch or of the Hub) as a data set of hfgen."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..options import DataArgs
from .batches import Items
from .images import ImageData, load_images
from .tensors import MappedData, TensorData


def as_items(source: Any, args: DataArgs | None = None) -> Items:
    """Return a data set that `Batches` reads.

    Args:
        source: one of
            a name or folder, as for `--dataset`;
            a tensor x (N, *item), or tensors by name, "x" and any others: see `TensorData`; uint8 (N, C, H, W) are
            images;
            a data set of the `datasets` library: its images, else its columns of numbers;
            a map-style data set of torch: see `MappedData`;
            a data set of hfgen, which is returned as it is.
        args: options for images; default: `DataArgs()`.

    Raises:
        ValueError: there is nothing like it, or it holds no items.
        TypeError: the source is of another type.
    """
    args = args or DataArgs()
    if hasattr(source, "item_shape") and hasattr(source, "finish"):
        return source
    if isinstance(source, str | Path):
        return load_images(dataclasses.replace(args, dataset=str(source)))
    if isinstance(source, Tensor):
        source = {"x": source}
    if isinstance(source, Mapping):
        return _of_tensors({name: torch.as_tensor(value) for name, value in source.items()}, args)
    if "datasets" in sys.modules and _is_hub_dataset(source):
        return _of_hub(source, args)
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return MappedData(source)
    raise TypeError(f"{type(source).__name__} is no data set. Give a name, tensors, or something with len and [index].")


def _of_tensors(tensors: dict[str, Tensor], args: DataArgs) -> Items:
    x = tensors.get("x")
    if x is None or x.dtype != torch.uint8 or x.ndim != 4:
        return TensorData(tensors)
    labels = tensors.get("labels")
    names = None if labels is None else [str(i) for i in range(int(labels.max()) + 1)]
    where = f"in memory, {x.numel() / 2**20:,.1f} MiB"
    return ImageData("images", None, None, x.shape[1], x, labels, names, storage=where, random_flip=args.random_flip)


def _is_hub_dataset(source: Any) -> bool:
    import datasets

    return isinstance(source, datasets.Dataset | datasets.IterableDataset)


def _of_hub(rows: Any, args: DataArgs) -> Items:
    """Return the images of a Hub data set, else its columns of numbers; "x" is the column "x", or the only one."""
    import datasets

    if rows.features is None:
        rows = rows._resolve_features()
    streaming = isinstance(rows, datasets.IterableDataset)
    if any(isinstance(feature, datasets.Image) for feature in rows.features.values()):
        name = rows.info.dataset_name or "data set"
        return load_images(dataclasses.replace(args, dataset=name, streaming=streaming), rows)
    if streaming:
        raise ValueError("A streamed data set is read for its images, and this one has no column of images.")
    numbers = rows.with_format("torch")[:]
    tensors = {name: value for name, value in numbers.items() if isinstance(value, Tensor)}
    if "x" not in tensors and len(tensors) == 1:
        tensors = {"x": next(iter(tensors.values()))}
    if "x" not in tensors:
        raise ValueError(f'Name the column of items "x"; columns of numbers are: {", ".join(tensors) or "none"}.')
    return TensorData(tensors, name=rows.info.dataset_name or "data set")
