"""What a model computes once of many items, in files of whole blocks: pairs of reflow, codes, latents.

A folder is the cache of one source. Its index, `<name>.json`, says what the values depend on: digests of weights and of
data, and the options of the preparation. A block is computed as a whole, written under a temporary name, and renamed
when it is complete. A computation that was interrupted therefore continues to the same bits, and a cache of another
source is refused.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..console.progress import ProgressBar
from ..console.text import differences
from ..disk.files import read_json, replacing, write_json
from ..disk.kinds import number
from ..disk.reading import check_regular


@dataclasses.dataclass(frozen=True)
class BlockCache:
    """The files of what a model computes.

    Attributes:
        folder: holds the index and the blocks.
        name: of the values, a plural noun: files are `<name>-00000.safetensors`.
        identity: everything that the bits of the values depend on, as JSON.
        sizes: number of values in each block.
        compute: number of a block -> its tensors by name.
        what: the work in words, for the progress bar.
        unit: a value in words.
        again: what the same command does with a file that was removed.
        source: what has computed the values, for messages.
        elsewhere: what a user gives for another folder, for messages.
    """

    folder: Path
    name: str
    identity: Mapping[str, Any]
    sizes: tuple[int, ...]
    compute: Callable[[int], dict[str, Tensor]]
    what: str
    unit: str
    again: str = "computes it again"
    source: str = "model or options"
    elsewhere: str = "--output_dir"

    @property
    def index(self) -> Path:
        """Return the path of the index."""
        return self.folder / f"{self.name}.json"

    def file(self, block: int) -> Path:
        """Return the path of a block."""
        return self.folder / f"{self.name}-{block:05d}.safetensors"

    def fill(self, rank: int = 0, world: int = 1) -> None:
        """Compute the blocks that the cache lacks.

        Args:
            rank, world: this process, and the number of processes. Each one computes every `world`-th block.

        Raises:
            ValueError: the cache is of another source.
        """
        if any(self.folder.glob(f"{self.name}*")):
            self.open()
        missing = [block for block in range(len(self.sizes)) if not self.file(block).exists()]
        with ProgressBar(total=sum(self.sizes), desc=self.what, unit=self.unit) as bar:
            bar.update(sum(self.sizes) - sum(self.sizes[block] for block in missing))
            for block in missing:
                if block % world == rank:
                    start = time.perf_counter()
                    tensors = self.compute(block)
                    seconds = round(time.perf_counter() - start, 4)
                    self.open()  # after computing, so that a source that fails leaves no folder
                    write_json(self._seconds_file(block), {"seconds": seconds})  # the values have the same bits always
                    with replacing(self.file(block)) as draft:
                        save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, draft)
                bar.update(self.sizes[block])

    def open(self) -> None:
        """Write the index, or check that an existing one is of the same source.

        Raises:
            ValueError: the cache is of another source, or of an unknown one; names each difference.
        """
        blocks = sorted(self.folder.glob(f"{self.name}-*.safetensors"))  # first: another process may write the index
        anew = f"Remove {self.folder}, and run the same command again"
        if self.index.exists():
            stored = read_json(self.index, f"{anew}: the {self.name} are made anew.")
            if text := differences(stored, self.identity):
                raise ValueError(
                    f"{self.folder} holds {self.name} of another {self.source}: {text}. Give another {self.elsewhere}."
                )
        elif blocks:
            raise ValueError(
                f"{self.folder} holds {blocks[0].name} and no {self.index.name} that says which model they come "
                f"from. {anew}: the {self.name} are made anew."
            )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.index, self.identity)

    def load(self, check: Callable[[dict[str, Tensor], int], str | None]) -> list[dict[str, Tensor]]:
        """Return the tensors of all blocks.

        Args:
            check: (tensors of a block, its size) -> what is wrong with them in words, or None.

        Raises:
            ValueError: the cache is of another source, or a file is missing or damaged; names it.
        """
        self.open()
        parts = []
        for block, size in enumerate(self.sizes):
            file = self.file(block)
            try:
                check_regular(file)
                parts.append(load_file(file))
            except (OSError, ValueError, SafetensorError) as error:
                advice = f"Remove it; the same command {self.again}."
                raise ValueError(f"{file} can't be read ({error}). {advice}") from None
            if (wrong := check(parts[-1], size)) is not None:
                raise ValueError(f"{file} holds {wrong}. Remove it; the same command {self.again}.")
        return parts

    def seconds(self) -> float:
        """Return how many seconds the values of the cache took, summed over processes. Blocks of earlier versions,
        which do not say it, count as 0.

        Raises:
            DamagedFileError: a file that says it can't be read.
        """
        files = [file for block in range(len(self.sizes)) if (file := self._seconds_file(block)).exists()]
        return sum(read_json(file, f"Remove {file}.", {"seconds": number})["seconds"] for file in files)

    def _seconds_file(self, block: int) -> Path:
        return self.file(block).with_suffix(".json")


def block_sizes(count: int, block: int) -> tuple[int, ...]:
    """Return the sizes of the blocks of `count` items, `block` in each but the last."""
    return tuple(min(block, count - start) for start in range(0, count, block))


def folder_of(home: Path, name: str, identity: Mapping[str, Any]) -> Path:
    """Return a folder of its own for values of this identity."""
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()
    return home / f"{name}-{digest}"
