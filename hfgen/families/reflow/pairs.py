"""Couplings: pairs (noise, sample, label) drawn from a model, kept on disk, and read as training batches.

Pair i has noise from a generator seeded with seed + i and, where there are classes, label i mod classes. Pairs lie in
shards of one batch each, written to a temporary name and renamed when whole: a shard is there or it is not, and since
every batch is always drawn whole, a generation that was interrupted goes on to the same bits. `pairs.json` says what
drew them; with anything else the cache is refused.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ...data.tensors import TensorData, digest_of

INDEX = "pairs.json"

Draw = Callable[[Tensor, list[int] | None], Tensor]
"""From noise (B, C, H, W) and labels to samples (B, C, H, W)."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What draws couplings.

    Args:
        draw: the model.
        shape: (C, H, W) of a sample.
        classes: number of classes, or None.
        seed: of pair 0.
        batch_size: pairs drawn at a time.
        facts: what identifies the model and how it is asked, as JSON.
    """

    draw: Draw
    shape: tuple[int, int, int]
    classes: int | None
    seed: int
    batch_size: int
    facts: Mapping[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """All that the bits of a coupling depend on, as JSON gives it back."""
        own = {"shape": self.shape, "classes": self.classes, "pair_seed": self.seed}
        return json.loads(json.dumps({**self.facts, **own, "pair_batch_size": self.batch_size}))

    def shard(self, number: int) -> dict[str, Tensor]:
        """One batch of couplings."""
        numbers = range(number * self.batch_size, (number + 1) * self.batch_size)
        each = [torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed + i)) for i in numbers]
        noise, labels = torch.stack(each), None if self.classes is None else [i % self.classes for i in numbers]
        tensors = {"noise": noise, "images": self.draw(noise, labels).float().cpu().contiguous()}
        return tensors if labels is None else {**tensors, "labels": torch.tensor(labels)}


def make(folder: Path, count: int, source: Source, rank: int = 0, world: int = 1) -> None:
    """Draw what is missing of the first `count` pairs into the cache, in whole batches; this process draws every
    `world`-th of them.

    Raises:
        ValueError: a number out of range, or a cache that something else has drawn.
    """
    size = source.batch_size
    if count < 1 or size < 1:
        raise ValueError(f"num_pairs={count} and pair_batch_size={size} must be at least 1.")
    if (folder / INDEX).exists():
        claim(folder, source.identity)
    shards = range(-(-count // size))
    missing = [shard for shard in shards if not shard_file(folder, shard).exists()]
    quiet = None if rank == 0 else True
    with tqdm(total=len(shards) * size, desc="Drawing pairs", unit="pair", disable=quiet) as bar:
        bar.update((len(shards) - len(missing)) * size)
        for shard in missing:
            if shard % world == rank:
                tensors = source.shard(shard)
                claim(folder, source.identity)  # a source that can't draw leaves nothing behind
                _whole(shard_file(folder, shard), lambda path, tensors=tensors: save_file(tensors, path))
            bar.update(size)


def claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what draws the pairs of this cache, or compare it with what did.

    Raises:
        ValueError: it differs; names each difference.
    """
    index = folder / INDEX
    if index.exists():
        found = json.loads(index.read_text())
        changed = [key for key in {**found, **facts} if found.get(key) != facts.get(key)]
        if changed:
            told = "; ".join(f"{key} is {found.get(key)} there and {facts.get(key)} here" for key in sorted(changed))
            raise ValueError(f"{folder} holds pairs of another model or options: {told}. Give another --pair_dir.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    _whole(index, lambda path: path.write_text(json.dumps(facts, indent=2) + "\n"))


def load(folder: Path, count: int, batch_size: int) -> TensorData:
    """Return the first `count` pairs as a data set with "x" and "noise" float32 (N, C, H, W), "labels" (N,) if any.

    Raises:
        ValueError: a shard is missing or damaged; names it.
    """
    shards = []
    for shard in range(-(-count // batch_size)):
        file = shard_file(folder, shard)
        try:
            shards.append(load_file(file))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} can't be read ({error}). Remove it; the same command draws it anew.") from None
    whole = {name: torch.cat([shard[name] for shard in shards])[:count] for name in shards[0]}
    images = whole.pop("images")
    identity = digest_of({"images": images})
    return TensorData({"x": images, **whole}, "pairs", "images", (-1.0, 1.0), fingerprint=identity)


def shard_file(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"pairs-{shard:05d}.safetensors"


def _whole(target: Path, write: Callable[[Path], Any]) -> None:
    """Have a file written under another name, synced, and given its own."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    write(draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, target)
