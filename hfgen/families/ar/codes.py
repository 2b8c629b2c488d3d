"""Codes of the training images, computed once by a trained autoencoder and cached on disk.

The cache of an autoencoder and of images is a folder whose name is the digest of both. It has one file for each block
of images. A file is written under a temporary name and renamed when it is complete, and a block is always computed as a
whole. An extraction that was interrupted therefore continues to the same bits.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...console.progress import ProgressBar, quiet
from ...data.images import ImageData
from ...data.tensors import TensorData, digest_of
from ...disk.files import read_json, replacing, write_json
from ...disk.kinds import number
from ...disk.reading import check_regular
from ...utils.pixels import from_levels

BLOCK = 1000
"""Images in a file."""

INDEX = "codes.json"


def identity_of(pipeline: Any, data: ImageData) -> dict[str, Any]:
    """Return what the codes of images depend on: digests of the autoencoder's weights and of the images."""
    return {
        "weights": digest_of(pipeline.autoencoder.state_dict()),
        "images": data.fingerprint,
        "shape": [data.channels, *data.size],
        "count": len(data),
        "block": BLOCK,
    }


def cache_of(home: Path, identity: Mapping[str, Any]) -> Path:
    """Return the folder of the codes of this identity."""
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()
    return home / f"codes-{digest}"


def extract(pipeline: Any, data: ImageData, home: Path, rank: int = 0, world: int = 1) -> Path:
    """Compute the blocks of codes that the cache lacks, and return its folder.

    Args:
        pipeline: a `VQPipeline`.
        data: the images.
        home: folder of caches.
        rank, world: this process, and the number of processes. Each one computes every `world`-th block.
    """
    identity = identity_of(pipeline, data)
    folder = cache_of(home, identity)
    blocks = range(-(-len(data) // BLOCK))
    missing = [block for block in blocks if not block_file(folder, block).exists()]
    with ProgressBar(total=len(data), desc="Computing codes", unit="image") as bar, quiet(pipeline):
        bar.update(len(data) - sum(len(_rows(data, block)) for block in missing))
        for block in missing:
            if block % world == rank:
                begin = time.perf_counter()
                codes = pipeline.encode(from_levels(data.pixels(_rows(data, block))[0]))
                seconds = round(time.perf_counter() - begin, 4)
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / INDEX, identity)
                write_json(_seconds_file(folder, block), {"seconds": seconds})  # the codes have the same bits always
                with replacing(block_file(folder, block)) as draft:
                    save_file({"codes": codes.int().cpu().contiguous()}, draft)
            bar.update(len(_rows(data, block)))
    return folder


def load(folder: Path, pipeline: Any, data: ImageData) -> TensorData:
    """Return the cached codes as a data set: "x" int32 (N, 1, h, w) and, if the images have classes, "labels" (N,).

    Raises:
        ValueError: a file is missing or damaged; names it.
    """
    parts = []
    for block in range(-(-len(data) // BLOCK)):
        file, shape = block_file(folder, block), (len(_rows(data, block)), *pipeline.code_shape)
        try:
            check_regular(file)
            codes = load_file(file)["codes"]
        except (OSError, ValueError, SafetensorError, KeyError) as error:
            raise ValueError(
                f"{file} can't be read ({error}). Remove it; the same command computes it again."
            ) from None
        alike = codes.dtype == torch.int32 and tuple(codes.shape) == shape
        if not alike or codes.min() < 0 or codes.max() >= pipeline.num_codes:
            raise ValueError(
                f"{file} holds no codes from 0 to {pipeline.num_codes - 1} of shape {shape}. Remove it; the same "
                "command computes it again."
            )
        parts.append(codes)
    return dataset(torch.cat(parts), pipeline, data)


def seconds_of(folder: Path) -> float:
    """Return how many seconds the autoencoder took for the codes of a cache, summed over processes. Blocks of earlier
    versions, which do not say it, count as 0.

    Raises:
        DamagedFileError: a file that says it can't be read.
    """
    files = sorted(folder.glob("codes-*.json"))
    return sum(read_json(file, f"Remove {file}.", {"seconds": number})["seconds"] for file in files)


def dataset(codes: Tensor, pipeline: Any, data: ImageData) -> TensorData:
    """Return codes int32 (N, h, w) of all images as a data set."""
    tensors = {"x": codes[:, None]}
    if data.labels is not None:
        tensors["labels"] = data.labels.long()
    name = f"the codes of {data.name}"
    return TensorData(tensors, name, "images", (0, pipeline.num_codes - 1), data.label_names)


def block_file(folder: Path, block: int) -> Path:
    """Return the path of a block."""
    return folder / f"codes-{block:05d}.safetensors"


def _seconds_file(folder: Path, block: int) -> Path:
    return block_file(folder, block).with_suffix(".json")


def _rows(data: ImageData, block: int) -> Tensor:
    return torch.arange(block * BLOCK, min((block + 1) * BLOCK, len(data)))
