"""Pairs (noise, sample, label) of a model's own coupling, drawn once, cached on disk, and read as a data set.

Pair i has noise of the random stream "pairs", which nothing else draws from. If there are classes, it has label i mod
classes. The cache has one file (shard) per batch. A file is written under a temporary name and renamed when it is
complete, and a batch is always drawn as a whole. A generation that was interrupted therefore continues to the same
bits. `pairs.json` identifies the source of the pairs, and pairs of another source are refused.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...console.progress import ProgressBar
from ...data.tensors import TensorData, digest_of
from ...disk.files import read_json, replacing, write_json
from ...disk.reading import check_regular
from ...utils import seeds
from ...utils.seeds import generator_of

INDEX = "pairs.json"
PARTS = frozenset({"noise", "images"})
"""Tensors of each shard, at least."""

DrawSamples = Callable[[Tensor, list[int] | None], Tensor]
"""(noise (B, *item), labels) -> samples (B, *item)."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that draws pairs.

    Args:
        draw: the model, with its sampling options.
        shape: shape of a sample, such as (C, H, W).
        classes: number of classes, or None.
        seed: seed of the noise.
        batch_size: number of pairs drawn at a time.
        facts: values that identify the model and its sampling options, as JSON.
    """

    draw: DrawSamples
    shape: tuple[int, ...]
    classes: int | None
    seed: int
    batch_size: int
    facts: Mapping[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """Return everything that the bits of a pair depend on, with the types of JSON."""
        options = {
            "shape": self.shape,
            "classes": self.classes,
            "pair_seed": self.seed,
            "random_streams": seeds.VERSION,
        }
        return json.loads(json.dumps({**self.facts, **options, "pair_batch_size": self.batch_size}))

    def shard(self, number: int) -> dict[str, Tensor]:
        """Draw batch `number`: "noise" and "images" float32 (B, *item) and, if there are classes, "labels" (B,)."""
        numbers = range(number * self.batch_size, (number + 1) * self.batch_size)
        generators = (generator_of("pairs", self.seed, i) for i in numbers)
        noise = torch.stack([torch.randn(self.shape, generator=generator) for generator in generators])
        labels = None if self.classes is None else [i % self.classes for i in numbers]
        tensors = {"noise": noise, "images": self.draw(noise, labels).float().cpu().contiguous()}
        return tensors if labels is None else {**tensors, "labels": torch.tensor(labels)}


def draw_pairs(folder: Path, count: int, source: Source, rank: int = 0, world: int = 1) -> None:
    """Draw those of the first `count` pairs that the cache lacks, in whole batches.

    Args:
        folder: the cache.
        count: number of pairs.
        source: draws them.
        rank, world: this process, and the number of processes. Each one draws every `world`-th batch.

    Raises:
        ValueError: a number out of range, or a cache of another source.
    """
    size = source.batch_size
    if count < 1 or size < 1:
        raise ValueError(f"num_pairs={count} and pair_batch_size={size} must be at least 1.")
    if any(folder.glob("pairs*")):
        open_cache(folder, source.identity)
    shards = range(-(-count // size))
    missing = [shard for shard in shards if not shard_file(folder, shard).exists()]
    with ProgressBar(total=len(shards) * size, desc="Drawing pairs", unit="pair") as bar:
        bar.update((len(shards) - len(missing)) * size)
        for shard in missing:
            if shard % world == rank:
                tensors = source.shard(shard)
                open_cache(folder, source.identity)  # after drawing, so that a source that fails leaves no folder
                with replacing(shard_file(folder, shard)) as draft:
                    save_file(tensors, draft)
            bar.update(size)


def open_cache(folder: Path, identity: Mapping[str, Any]) -> None:
    """Create a cache for the pairs of this source, or check that an existing cache is of the same source.

    Raises:
        ValueError: the cache is of another source, or of an unknown one; names each difference.
    """
    shards = sorted(folder.glob("pairs-*.safetensors"))  # first: another process may write the index, then shards
    index = folder / INDEX
    if index.exists():
        stored = read_json(index, f"Remove {folder}, and run the same command again: the pairs are drawn anew.")
        if "random_streams" not in stored:
            raise ValueError(
                f"{folder} holds pairs of an earlier hfgen. Their noise has the seeds "
                f"{stored.get('pair_seed')} + i, as that of `hfgen sample` and `hfgen evaluate`: a model would be "
                "measured on noise that it was trained on. Remove the folder, or give another --pair_dir or "
                "--output_dir; new pairs are drawn then."
            )
        changed = sorted(key for key in {**stored, **identity} if stored.get(key) != identity.get(key))
        if changed:
            text = "; ".join(f"{key} is {stored.get(key)} there and {identity.get(key)} here" for key in changed)
            raise ValueError(f"{folder} holds pairs of another model or options: {text}. Give another --pair_dir.")
        return
    if shards:
        raise ValueError(
            f"{folder} holds {shards[0].name} and no {INDEX} that says which model has drawn it. Remove {folder}, and "
            "run the same command again: the pairs are drawn anew."
        )
    write_json(index, identity)


def load_pairs(folder: Path, count: int, batch_size: int) -> TensorData:
    """Return the first `count` pairs as a data set with "x" and "noise" float32 (N, *item) and, if any, "labels" (N,).

    Args:
        folder: the cache.
        count: number of pairs.
        batch_size: that of the source.

    Raises:
        ValueError: a file is missing or damaged; names it.
    """
    shards = []
    for shard in range(-(-count // batch_size)):
        file = shard_file(folder, shard)
        try:
            check_regular(file)
            shards.append(load_file(file))
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"{file} can't be read ({error}). Remove it; the same command draws it again.") from None
        _check_shard(file, shards[-1], shards[0], batch_size)
    tensors = {name: torch.cat([shard[name] for shard in shards])[:count] for name in shards[0]}
    images = tensors.pop("images")
    fingerprint = digest_of({"images": images})
    return TensorData({"x": images, **tensors}, "pairs", "images", (-1.0, 1.0), fingerprint=fingerprint)


def _check_shard(file: Path, shard: Mapping[str, Tensor], first: Mapping[str, Tensor], size: int) -> None:
    """Raise ValueError for a shard that is no batch of `size` pairs, or has not the shapes of the first one."""
    shapes, wanted = ({name: tuple(tensor.shape) for name, tensor in part.items()} for part in (shard, first))
    if shapes != wanted or not shapes.keys() >= PARTS or any(shape[:1] != (size,) for shape in shapes.values()):
        raise ValueError(
            f"{file} holds {shapes}, no batch of {size} pairs. Remove it; the same command draws it again."
        )


def shard_file(folder: Path, shard: int) -> Path:
    """Return the path of a shard."""
    return folder / f"pairs-{shard:05d}.safetensors"
