"""Pairs (noise, sample, label) of a model's own coupling, drawn once, cached on disk, and read as a data set.

Pair i has noise of the random stream "pairs", which nothing else draws from. If there are classes, it has label i mod
classes. The cache has one file (shard) per batch, see `hfgen.data.block_cache`: a generation that was interrupted
continues to the same bits, and pairs of another source are refused.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.block_cache import BlockCache
from ...data.tensors import TensorData, digest_of
from ...disk.files import read_json
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
        stream: of the noise, see `hfgen.utils.seeds`.
        option: names the place of the cache, for messages.
    """

    draw: DrawSamples
    shape: tuple[int, ...]
    classes: int | None
    seed: int
    batch_size: int
    facts: Mapping[str, Any]
    stream: str = "pairs"
    option: str = "--pair_dir"

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
        generators = (generator_of(self.stream, self.seed, i) for i in numbers)
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
    _refuse_former_noise(folder)
    cache_of(folder, count, size, source.identity, source.shard, source.option).fill(rank, world)


def cache_of(
    folder: Path,
    count: int,
    size: int,
    identity: Mapping[str, Any] | None = None,
    draw: Callable[[int], dict[str, Tensor]] | None = None,
    option: str = "--pair_dir",
) -> BlockCache:
    """Return the cache of at least `count` pairs in batches of `size`.

    Args:
        folder: of the cache.
        count, size: numbers.
        identity: of the source; None: what the index says.
        draw: number of a batch -> its tensors; None: nothing is drawn.
        option: names the place of the cache, for messages.
    """
    remedy = f"Remove {folder}, and run the same command again: the pairs are drawn anew."
    if identity is None:
        identity = read_json(folder / INDEX, remedy)
    words = {"again": "draws it again", "elsewhere": option}
    return BlockCache(folder, "pairs", identity, (size,) * -(-count // size), draw, "Drawing pairs", "pair", **words)


def _refuse_former_noise(folder: Path) -> None:
    """Refuse pairs that were drawn from the noise of samples, before random streams had names."""
    if not (folder / INDEX).exists():
        return
    stored = read_json(folder / INDEX, f"Remove {folder}, and run the same command again: the pairs are drawn anew.")
    if "random_streams" not in stored:
        raise ValueError(
            f"{folder} holds pairs of an earlier hfgen. Their noise has the seeds "
            f"{stored.get('pair_seed')} + i, as that of `hfgen sample` and `hfgen evaluate`: a model would be "
            "measured on noise that it was trained on. Remove the folder, or give another --pair_dir or "
            "--output_dir; new pairs are drawn then."
        )


def load_pairs(folder: Path, count: int, batch_size: int) -> TensorData:
    """Return the first `count` pairs as a data set with "x" and "noise" float32 (N, *item) and, if any, "labels" (N,).

    Args:
        folder: the cache.
        count: number of pairs.
        batch_size: that of the source.

    Raises:
        ValueError: a file is missing or damaged; names it.
    """
    first: dict[str, Tensor] = {}

    def wrong(shard: dict[str, Tensor], size: int) -> str | None:
        first.update({} if first else shard)
        shapes, wanted = ({name: tuple(tensor.shape) for name, tensor in part.items()} for part in (shard, first))
        if shapes != wanted or not shapes.keys() >= PARTS or any(shape[:1] != (size,) for shape in shapes.values()):
            return f"{shapes}, no batch of {size} pairs"
        return None

    shards = cache_of(folder, count, batch_size).load(wrong)
    tensors = {name: torch.cat([shard[name] for shard in shards])[:count] for name in shards[0]}
    images = tensors.pop("images")
    fingerprint = digest_of({"images": images})
    return TensorData({"x": images, **tensors}, "pairs", "images", (-1.0, 1.0), fingerprint=fingerprint)


def shard_file(folder: Path, shard: int) -> Path:
    """Return the path of a shard."""
    return folder / f"pairs-{shard:05d}.safetensors"
