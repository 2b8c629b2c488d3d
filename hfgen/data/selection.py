"""A part of a data set of images."""

import dataclasses
import hashlib

from torch import Tensor

from .images import ImageData
from .partial_labels import num_unlabelled


def select_rows(data: ImageData, rows: Tensor) -> ImageData:
    """Return the rows (N,) of a data set that is no stream, as a data set."""
    fields = {"labels": None if data.labels is None else data.labels[rows]}
    if data.images is not None:
        fields["images"] = data.images[rows]
    else:
        fields |= {"rows": data.rows.select(rows.tolist()), "corrupt": data.corrupt[rows].share_memory_()}
    selection = dataclasses.replace(data, **fields)
    digest = hashlib.blake2b(data.fingerprint.encode() + rows.numpy().tobytes(), digest_size=8)
    selection.fingerprint = digest.hexdigest()
    return selection


def labelled_part(data: ImageData) -> ImageData:
    """Return those images that have a label, with the same names of classes; the data themselves if all have one."""
    return select_rows(data, (data.labels >= 0).nonzero()[:, 0]) if num_unlabelled(data) else data
