"""Data sets that come with hfgen, or with a package that it needs: their rows by split."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MNIST5K = Path(__file__).with_name("mnist5k")
"""Folder with a parquet file for each split, made by `benchmarks/mnist5k.py`."""


def digits() -> dict[str, Any]:
    """Return scikit-learn's 1,797 digits, 8 × 8, with values 0..16 scaled to 0..255, as the split train."""
    import datasets
    from sklearn.datasets import load_digits

    source, cells = load_digits(), []
    for image in np.rint(source.images * (255 / 16)).astype(np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PPM")  # uncompressed: the bytes do not depend on the version of zlib
        cells.append({"bytes": buffer.getvalue(), "path": None})
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(n) for n in range(10)])}
    columns = {"image": cells, "label": source.target.tolist()}
    return {"train": datasets.Dataset.from_dict(columns, features=datasets.Features(features))}


def mnist5k() -> dict[str, Any]:
    """Return 4,000 images of MNIST's test split as the split train, and 1,000 others of them as the split test."""
    import datasets
    from datasets.table import InMemoryTable
    from pyarrow import parquet

    files = {split: MNIST5K / f"{split}.parquet" for split in ("train", "test")}
    return {split: datasets.Dataset(InMemoryTable(parquet.read_table(file))) for split, file in files.items()}


BUILT_IN: dict[str, Callable[[], dict[str, Any]]] = {"digits": digits, "mnist5k": mnist5k}
"""Data sets by the names that `--dataset` takes: rows, as data sets of the `datasets` library, by split."""
