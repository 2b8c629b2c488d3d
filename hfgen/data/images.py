"""A data set: images of one shape, decoded once into a cache in memory, or when they are needed.

`load_images` turns options into `ImageData`; `hfgen.data.batches` makes batches of it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..options import DataArgs
from ..utils.pixels import from_levels
from .batches import generator_of, span, to_device
from .sources import CorruptImageError, Decoder, encoded, find_columns, only, open_rows, parse_colour, read_labels
from .streams import ImageStream
from .tensors import digest_of

logger = logging.getLogger(__name__)

CHUNK = 64
"""Rows that a thread reads at once."""
FINGERPRINT_ROWS = 1 << 16
FLIP_BLOCK = 1 << 16


@dataclasses.dataclass(eq=False)
class ImageData:
    """A data set of N images, all uint8 (C, H, W), with labels 0..num_classes - 1 where it has any.

    `images` (N, C, H, W) is the cache in memory, which `rows` is let go for; None where rows are decoded when they are
    needed, and `storage` says which. A stream (`streaming`) has no length and can't be indexed. `num_skipped` counts
    images that can't be decoded: those left out of the cache, else those met so far in any worker, and each time that a
    stream comes by. A row that can't be decoded then is replaced by the next one that can (in a stream: of the same
    batch).
    """

    name: str
    rows: Any
    decoder: Decoder | None
    channels: int = 1
    images: Tensor | None = None
    labels: Tensor | None = None
    label_names: list[str] | None = None
    label_column: str | None = None
    streaming: bool = False
    skip_corrupt: bool = False
    storage: str = "streamed"
    source: str = ""
    random_flip: bool = False
    corrupt: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))

    unit = "images"
    value_range = (-1.0, 1.0)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return tuple(self.images.shape[2:]) if self.decoder is None else self.decoder.shape[1:]

    @property
    def item_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.channels, *self.size)

    @property
    def in_memory(self) -> bool:
        """Whether images are decoded already."""
        return self.images is not None

    @property
    def description(self) -> str:
        """Name, number, size and channels in a line."""
        height, width = self.size
        count = "streamed" if self.streaming else f"{len(self):,} images"
        return f"{self.name}, {count}, {width}x{height}, {self.channels} channel(s)"

    @property
    def resolution(self) -> int | tuple[int, int]:
        """The side of square images, else (height, width)."""
        return self.size[0] if self.size[0] == self.size[1] else self.size

    @property
    def num_classes(self) -> int | None:
        """How many classes there are; None without labels."""
        return None if self.label_names is None else len(self.label_names)

    @property
    def num_skipped(self) -> int:
        """How many images could not be decoded."""
        return int(self.corrupt.sum())

    def __len__(self) -> int:
        if self.streaming:
            raise TypeError(f"'{self.name}' is streamed: its length is not known. Drop --streaming.")
        return len(self.rows) if self.images is None else len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        """Image `index`, uint8 (C, H, W), and its label, None without labels."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} images")
        images, labels = self.pixels(torch.tensor([index % len(self)]))
        return images[0], None if labels is None else int(labels[0])

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Return {"x": uint8 (B, C, H, W), "labels": int64 (B,)} of the rows (B,); without labels "x" alone."""
        images, labels = self.pixels(rows)
        return {"x": images} if labels is None else {"x": images, "labels": labels}

    def stream(
        self, batch_size: int, seed: int, rank: int, world: int, start: int, workers: int
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the micro-batches of one rank from number `start` on, as `read` returns them, for ever."""
        return iter(ImageStream(self, batch_size, seed, rank, world, start, workers))

    def finish(self, batch: dict[str, Tensor], position: int, seed: int) -> dict[str, Tensor]:
        """Make pixels 0..255 float32 in [-1, 1]; with `random_flip` mirror each image left-right with probability 1/2,
        drawn from (seed, position)."""
        images = batch["x"]
        if self.random_flip:
            mirrored = span(functools.partial(_coins, seed), FLIP_BLOCK, position, len(images))
            rows = torch.arange(len(images)) + len(images) * mirrored  # whole rows are the fastest to pick
            images = torch.cat([images, images.flip(-1)]).index_select(0, to_device(rows, images.device))
        return {**batch, "x": from_levels(images)}

    def pixels(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images uint8 (B, C, H, W) and labels int64 (B,), None without labels, of the rows `index` (B,)."""
        if self.images is not None:
            images = self.images.index_select(0, index)
        else:
            cells = self.rows[index.tolist()][self.decoder.column]
            decoded, rows = zip(*map(self._good, cells, index.tolist()), strict=True)
            images, index = torch.from_numpy(np.stack(decoded)), torch.tensor(rows)
        return images, None if self.labels is None else self.labels.index_select(0, index)

    def decode(self, cell: Any, row: int) -> np.ndarray | None:
        """Decode a cell to (C, H, W); a corrupt one is None and counted if such are to be skipped."""
        try:
            return self.decoder(cell, f"{'sample' if self.streaming else 'row'} {row}")
        except CorruptImageError:
            if not self.skip_corrupt:
                raise
            if self.streaming:
                self.corrupt += 1
            else:
                self.corrupt[row] = 1
            return None

    def _good(self, cell: Any, row: int) -> tuple[np.ndarray, int]:
        """The image of the first row from `row` on that can be decoded, and that row's number."""
        while (image := self.decode(cell, row)) is None:  # ends: loading has seen a good one
            row = (row + 1) % len(self.rows)
            cell = self.rows[row][self.decoder.column]
        return image, row

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify encoded images, labels and how they are processed, wherever the files lie.

        Of more than 65,536 images, evenly spaced ones are read. A stream is identified by what it was asked for.
        """
        if self.decoder is None:
            return digest_of({"x": self.images} | ({} if self.labels is None else {"labels": self.labels}))
        options = (self.size, self.channels, self.decoder.center_crop, self.decoder.background, self.label_names)
        digest = hashlib.blake2b(repr(options).encode(), digest_size=8)
        if self.streaming:
            digest.update(self.source.encode())
            return digest.hexdigest()
        picked = range(0, len(self.rows), math.ceil(len(self.rows) / FINGERPRINT_ROWS))
        for start in range(0, len(picked), CHUNK):
            for cell in self.rows[list(picked[start : start + CHUNK])][self.decoder.column]:
                blob = b""
                with contextlib.suppress(ValueError, OSError):  # a missing file is the decoder's to report
                    blob = encoded(cell)
                digest.update(len(blob).to_bytes(8, "big") + blob)
        digest.update(repr((len(self.rows), None if self.labels is None else self.labels.tolist())).encode())
        return digest.hexdigest()


@functools.lru_cache(4)
def _coins(seed: int, block: int) -> Tensor:
    """Which of FLIP_BLOCK successive positions are mirrored: bool (FLIP_BLOCK,)."""
    return torch.rand(FLIP_BLOCK, generator=generator_of(seed, "flip", block)) < 0.5


def load_images(args: DataArgs, rows: Any = None) -> ImageData:
    """Load the images that the options name, decoded into memory if they fit.

    Args:
        args: the options.
        rows: a data set of the `datasets` library to read in place of `args.dataset`.

    Raises:
        ValueError: an option out of range; no such data set, split or column; images that are corrupt, or that differ
            in size without a resolution. Says what there is and what to do.
    """
    _check(args)
    background, rows = parse_colour(args.background), open_rows(args) if rows is None else rows
    image, label = find_columns(rows.features, args)
    labels, names = (None, None) if label is None else read_labels(rows, label, args)
    if args.max_train_samples is not None:
        most = args.max_train_samples
        rows = rows.take(most if args.streaming else min(most, len(rows)))
        labels = None if labels is None else labels[:most].clone()
    path = Path(args.dataset).expanduser()
    counter = torch.zeros(1, dtype=torch.int64) if args.streaming else torch.zeros(len(rows), dtype=torch.uint8)
    data = ImageData(
        name=path.resolve().name if path.exists() else args.dataset,
        rows=only(rows, image, label if args.streaming and names else None),
        decoder=Decoder(image, args.resolution, args.center_crop, args.channels, background),
        labels=labels,
        label_names=names,
        label_column=label if names else None,
        streaming=args.streaming,
        skip_corrupt=args.skip_corrupt,
        random_flip=args.random_flip,
        source=repr((args.dataset, args.dataset_config_name, args.dataset_split, image, args.max_train_samples)),
        corrupt=counter.share_memory_(),  # workers write to it
    )
    _look(data)
    if not args.streaming:
        _cache(data, args.cache_budget)
    logger.info("%s: %s", data.name, data.storage)
    return data


def _check(args: DataArgs) -> None:
    """Refuse numbers out of range."""
    least = {"resolution": 1, "max_train_samples": 1, "cache_budget": 0, "dataloader_num_workers": 0}
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and not value >= bound:
            raise ValueError(f"--{name} {value} must be at least {bound}.")
    if args.channels not in (None, 1, 3, 4):
        raise ValueError(f"--channels {args.channels} must be 1 (grey), 3 (RGB) or 4 (RGBA).")


def _look(data: ImageData) -> None:
    """Learn size and channels from the first image that can be decoded."""
    for row, cells in enumerate(data.rows):
        cell = cells[data.decoder.column]
        if (image := data.decode(cell, row)) is not None:
            unsure = data.decoder.channels is None and len(image) == 1  # a later image may be in colour
            data.channels = len(image)
            data.decoder = dataclasses.replace(
                data.decoder,
                channels=None if unsure else len(image),
                shape=(3 if unsure and not data.streaming else len(image), *image.shape[1:]),
                first=data.decoder.where(cell, f"row {row}"),
            )
            return
    raise ValueError(f"'{data.name}' has no image that can be decoded ({data.num_skipped} tried).")


def _cache(data: ImageData, budget: float) -> None:
    """Decode all rows into `data.images` if they fit `budget` GiB; either way `data.channels` is final after."""
    rows, fits = len(data.rows), lambda channels: rows * channels * math.prod(data.size) <= budget * 2**30
    cached = fits(data.channels) and _decode_all(data, fits)
    if not cached and data.decoder.channels is None and _any_colour(data):
        data.channels = 3
    data.decoder = dataclasses.replace(data.decoder, channels=data.channels)
    size = f"{rows * data.channels * math.prod(data.size) / 2**20:,.1f} MiB"
    limit = f"{budget * 1024:,.1f} MiB (--cache_budget {budget:g})"
    data.storage = f"in memory, {size} of {limit}" if cached else f"decoded by workers: {size} exceed {limit}"
    if cached:
        _ = data.fingerprint  # the last that reads encoded rows: their files need not stay mapped
        data.rows = None


def _decode_all(data: ImageData, fits: Callable[[int], bool]) -> bool:
    """Fill `data.images`, and keep the labels of the images that are kept; False if colour makes them too many."""

    def decode(start: int) -> list[np.ndarray | None]:
        cells = data.rows[start : start + CHUNK][data.decoder.column]
        return [data.decode(cell, row) for row, cell in enumerate(cells, start)]

    rows, kept = len(data.rows), []
    cache = np.empty((rows, data.channels, *data.size), np.uint8)
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=rows, desc=f"Decoding {data.name}", unit="image", disable=None) as bar,
        contextlib.closing(pool.map(decode, range(0, rows, CHUNK))) as chunks,  # an error cancels what is left
    ):
        for row, image in enumerate(itertools.chain.from_iterable(chunks)):
            bar.update()
            if image is None:
                continue
            if len(image) > data.channels:  # the first in colour after grey ones
                if not fits(3):
                    return False
                cache, data.channels = cache.repeat(3, axis=1), 3
            cache[len(kept)] = image
            kept.append(row)
    data.images = torch.from_numpy(cache[: len(kept)])
    data.labels = None if data.labels is None else data.labels[kept]
    return True


def _any_colour(data: ImageData) -> bool:
    """Is any image in colour? Reads the headers of files, up to the first that is."""

    def colour(start: int) -> bool:
        for cell in data.rows[start : start + CHUNK][data.decoder.column]:
            with contextlib.suppress(Exception):  # corrupt: noticed when it is decoded
                if not data.decoder.is_grey(Image.open(io.BytesIO(encoded(cell)))):
                    return True
        return False

    starts = range(0, len(data.rows), CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool, contextlib.closing(pool.map(colour, starts)) as found:
        return any(found)
