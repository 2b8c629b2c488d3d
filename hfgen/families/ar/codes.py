"""Codes of the training images, computed once by a trained autoencoder and cached on disk, see `BlockCache`.

The cache of an autoencoder and of images is a folder whose name is the digest of both.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...console.progress import quiet
from ...data.block_cache import BlockCache, block_sizes, folder_of
from ...data.encoded import EncodedData
from ...data.images import ImageData
from ...data.tensors import digest_of
from ...utils.pixels import from_levels

BLOCK = 1000
"""Images in a file."""


def identity_of(pipeline: Any, data: ImageData) -> dict[str, Any]:
    """Return what the codes of images depend on: digests of the autoencoder's weights and of the images."""
    return {
        "weights": digest_of(pipeline.autoencoder.state_dict()),
        "images": data.fingerprint,
        "shape": [data.channels, *data.size],
        "count": len(data),
        "block": BLOCK,
    }


def code_data(pipeline: Any, data: ImageData, home: Path) -> EncodedData:
    """Return the codes of all images as a data set: "x" int32 (N, 1, h, w) and, if the images have classes, "labels"
    (N,).

    Args:
        pipeline: a `VQPipeline`.
        data: the images.
        home: folder of caches.
    """

    def codes_of(rows: Tensor) -> Tensor:
        with quiet(pipeline):
            return pipeline.encode(from_levels(data.pixels(rows)[0])).int().cpu()  # (B, h, w)

    def compute(block: int) -> dict[str, Tensor]:
        return {"codes": codes_of(torch.arange(block * BLOCK, min((block + 1) * BLOCK, len(data))))}

    def wrong(tensors: dict[str, Tensor], size: int) -> str | None:
        codes, shape, last = tensors.get("codes"), (size, *grid), pipeline.num_codes - 1
        if codes is not None and codes.dtype == torch.int32 and tuple(codes.shape) == shape:
            return None if int(codes.min()) >= 0 and int(codes.max()) <= last else f"no codes from 0 to {last}"
        return f"no codes from 0 to {last} of shape {shape}"

    grid, identity = pipeline.code_shape, identity_of(pipeline, data)
    folder, sizes = folder_of(home, "codes", identity), block_sizes(len(data), BLOCK)
    cache = BlockCache(folder, "codes", identity, sizes, compute, "Computing codes", "image", source="autoencoder")
    return CodeData(
        *(data, lambda rows: {"codes": codes_of(rows)}, cache, wrong, data.labels),
        name=f"the codes of {data.name}",
        unit="images",
        item_shape=(1, *grid),
        value_range=(0, pipeline.num_codes - 1),
    )


class CodeData(EncodedData):
    """Codes of images, which are cached as "codes" (B, h, w)."""

    def _named(self, tensors: Any, rows: Tensor) -> dict[str, Tensor]:
        return super()._named({"x": tensors["codes"][:, None]}, rows)
