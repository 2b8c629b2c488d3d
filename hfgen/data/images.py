"""A data set of images of one shape, decoded once into a cache in memory or each time they are read.

`load_images` turns options into `ImageData`, and `hfgen.data.batches` makes batches of it.
"""

import contextlib
import dataclasses
import functools
import hashlib
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
from torch import Tensor

from ..console.notes import tell
from ..console.progress import ProgressBar, without_datasets_bars
from ..console.text import escaped
from ..options import CaptionDataArgs, DataArgs
from ..utils.arguments import checked
from ..utils.pixels import from_levels
from ..utils.seeds import generator_of
from .batches import span, to_device
from .border import Border
from .captions import read_captions
from .columns import find_columns, read_labels
from .partial_labels import facts_of, hide_labels
from .sources import (
    CorruptImageError,
    Decoder,
    file_bytes,
    open_data,
    parse_colour,
    select_columns,
)
from .streams import ImageStream
from .survey import CHUNK, any_image, idle_options, survey
from .tensors import digest_of

logger = logging.getLogger(__name__)

FINGERPRINT_ROWS = 1 << 16
"""Number of images that a fingerprint depends on, at most."""

FLIP_BLOCK = 1 << 16
"""Number of successive positions whose mirroring is drawn at once."""


@dataclasses.dataclass(eq=False)
class ImageData:
    """A data set of N images, all uint8 (C, H, W), with labels 0..num_classes - 1 if it has any.

    A stream has no length and can't be indexed. Corrupt images are left out of the cache. Without a cache, a corrupt
    image is replaced by the next one that can be decoded, in a stream by the next one of the same batch.

    Attributes:
        name: for messages and cards.
        rows: encoded images, as a data set of the `datasets` library; None with a cache.
        decoder: decodes them.
        channels: C.
        images (N, C, H, W): the cache in memory; None if rows are decoded each time they are read.
        labels (N,): int64; None without labels, and for a stream.
        label_names: names of the classes; None without labels.
        label_column: column of the labels, for a stream.
        captions (N,): int64, the number of each image's caption; None without captions.
        caption_texts: the captions, all different; None without captions.
        streaming: whether the data set is a stream.
        skip_corrupt: whether corrupt images are skipped. If not, they are an error.
        storage: a description of where the decoded images are.
        source: a description of the stream, for its fingerprint.
        by_name: whether the images were loaded by a name, and can be loaded by it again.
        random_flip: whether `finish` mirrors half of the images.
        corrupt: marks the corrupt images, or counts those of a stream; shared by all workers.
    """

    name: str
    rows: Any
    decoder: Decoder | None
    channels: int = 1
    images: Tensor | None = None
    labels: Tensor | None = None
    label_names: list[str] | None = None
    label_column: str | None = None
    captions: Tensor | None = None
    caption_texts: list[str] | None = None
    streaming: bool = False
    skip_corrupt: bool = False
    storage: str = "streamed"
    source: str = ""
    by_name: bool = False
    random_flip: bool = False
    corrupt: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))

    unit = "images"
    value_range = (-1.0, 1.0)

    @property
    def size(self) -> tuple[int, int]:
        """Return (H, W)."""
        return tuple(self.images.shape[2:]) if self.decoder is None else self.decoder.shape[1:]

    @property
    def item_shape(self) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of an image."""
        return (self.channels, *self.size)

    @property
    def image_column(self) -> str | None:
        """Return the column of the images; None if they were given as tensors."""
        return None if self.decoder is None else self.decoder.column

    @property
    def in_memory(self) -> bool:
        """Return whether the images are decoded already."""
        return self.images is not None

    @property
    def divided(self) -> bool:
        """Return whether each process streams a part of its own."""
        return self.streaming

    @property
    def description(self) -> str:
        """Return name, number, size and channels in one line."""
        height, width = self.size
        count = "streamed" if self.streaming else f"{len(self):,} images"
        return f"{escaped(self.name)}, {count}, {width}x{height}, {self.channels} channel(s)"

    @property
    def resolution(self) -> int | tuple[int, int]:
        """Return the side of square images, else (H, W)."""
        return self.size[0] if self.size[0] == self.size[1] else self.size

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes; None without labels."""
        return None if self.label_names is None else len(self.label_names)

    @property
    def num_skipped(self) -> int:
        """Return the number of corrupt images so far, in all workers. A stream counts every reading of an image."""
        return int(self.corrupt.sum())

    def __len__(self) -> int:
        if self.streaming:
            raise TypeError(f"'{self.name}' is streamed, so its length is not known. Drop --streaming.")
        return len(self.rows) if self.images is None else len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        """Return image number `index`, uint8 (C, H, W), and its label, None without labels."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} images")
        images, labels = self.pixels(torch.tensor([index % len(self)]))
        return images[0], None if labels is None else int(labels[0])

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Return {"x": uint8 (B, C, H, W), "labels": int64 (B,), "captions": int64 (B,)} for the rows (B,), without
        labels and captions where there are none."""
        images, rows = self._decoded(rows)
        numbers = {"labels": self.labels, "captions": self.captions}
        return {"x": images} | {key: all.index_select(0, rows) for key, all in numbers.items() if all is not None}

    def stream(
        self, batch_size: int, seed: int, rank: int, world: int, start: int, workers: int
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the micro-batches of one rank from number `start` on, as `read` returns them, for ever."""
        return iter(ImageStream(self, batch_size, seed, rank, world, start, workers))

    def finish(self, batch: dict[str, Tensor], position: int, seed: int) -> dict[str, Tensor]:
        """Convert pixels 0..255 to float32 in [-1, 1]. With `random_flip`, mirror each image left to right with
        probability 1/2, drawn from (seed, position)."""
        images = batch["x"]
        if self.random_flip:
            mirrored = span(functools.partial(_flip_mask, seed), FLIP_BLOCK, position, len(images))
            rows = torch.arange(len(images)) + len(images) * mirrored  # selecting whole rows is fastest
            images = torch.cat([images, images.flip(-1)]).index_select(0, to_device(rows, images.device))
        return {**batch, "x": from_levels(images)}

    def pixels(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images uint8 (B, C, H, W) and labels int64 (B,), None without labels, for the rows `index` (B,)."""
        images, rows = self._decoded(index)
        return images, None if self.labels is None else self.labels.index_select(0, rows)

    def _decoded(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images uint8 (B, C, H, W) for the rows `index` (B,), and the rows (B,) that they are of."""
        if self.images is not None:
            return self.images.index_select(0, index), index
        cells = self.rows[index.tolist()][self.decoder.column]
        decoded, rows = zip(*map(self._decode_or_next, cells, index.tolist()), strict=True)
        return torch.from_numpy(np.stack(decoded)), torch.tensor(rows)

    def decode(self, cell: Any, row: int) -> np.ndarray | None:
        """Decode a cell to (C, H, W). With `skip_corrupt`, count a corrupt image and return None."""
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

    def _decode_or_next(self, cell: Any, row: int) -> tuple[np.ndarray, int]:
        """Return the first image from `row` on that can be decoded, and its row."""
        while (image := self.decode(cell, row)) is None:  # the loop ends, since loading decoded an image
            row = (row + 1) % len(self.rows)
            cell = self.rows[row][self.decoder.column]
        return image, row

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits that depend on encoded images, labels and decoding options, not on the place of files.

        Of more than 65,536 images, evenly spaced ones are read. For a stream the digits depend on `source` instead of
        the images.
        """
        if self.decoder is None:
            return digest_of({"x": self.images} | ({} if self.labels is None else {"labels": self.labels}))
        options = (self.size, self.channels, self.decoder.center_crop, self.decoder.background, self.label_names)
        options += () if self.decoder.levels is None else (self.decoder.levels,)
        digest = hashlib.blake2b(repr(options).encode(), digest_size=8)
        if self.streaming:
            digest.update(self.source.encode())
            return digest.hexdigest()
        picked = range(0, len(self.rows), math.ceil(len(self.rows) / FINGERPRINT_ROWS))
        for start in range(0, len(picked), CHUNK):
            for cell in self.rows[list(picked[start : start + CHUNK])][self.decoder.column]:
                blob = b""
                with contextlib.suppress(ValueError, OSError):  # the decoder reports a missing file
                    blob = file_bytes(cell, self.decoder.border)
                digest.update(len(blob).to_bytes(8, "big") + blob)
        if self.captions is not None:
            digest.update(repr((self.caption_texts, self.captions.tolist())).encode())
        digest.update(repr((len(self.rows), None if self.labels is None else self.labels.tolist())).encode())
        return digest.hexdigest()


@functools.lru_cache(4)
def _flip_mask(seed: int, block: int) -> Tensor:
    """Draw which of FLIP_BLOCK successive positions are mirrored: bool (FLIP_BLOCK,)."""
    return torch.rand(FLIP_BLOCK, generator=generator_of("flip", seed, block)) < 0.5


@checked
@without_datasets_bars()
def load_images(args: DataArgs, rows: Any = None, border: Border | None = None, own: bool = True) -> ImageData:
    """Load the images that the options name, decoded into memory if they fit.

    Args:
        args: the options.
        rows: a data set of the `datasets` library to read instead of `args.dataset`.
        border: of these rows, see `hfgen.data.border`; None: images may be any files, as the caller has made the rows.
        own: whether the options were given for these images; if they are those of other images, one that does nothing
            here is no error.

    Raises:
        ValueError: an option out of range, or without effect on these images; no such data set, split or column;
            corrupt images, or images of different sizes without a resolution. Says what to do.
    """
    if args.channels not in (None, 1, 3, 4):
        raise ValueError(f"--channels {args.channels} must be 1 (grey), 3 (RGB) or 4 (RGBA).")
    background, by_name = parse_colour(args.background), rows is None
    rows, border = open_data(args) if by_name else (rows, border)
    image, label = find_columns(rows.features, args)
    labels, names = (None, None) if label is None else read_labels(rows, label, args)
    if args.max_train_samples is not None:
        limit = args.max_train_samples
        rows = rows.take(limit if args.streaming else min(limit, len(rows)))
        labels = None if labels is None else labels[:limit].clone()
    captions, texts = read_captions(rows, args) if isinstance(args, CaptionDataArgs) else (None, None)
    path = Path(args.dataset).expanduser()
    counter = torch.zeros(1, dtype=torch.int64) if args.streaming else torch.zeros(len(rows), dtype=torch.uint8)
    data = ImageData(
        name=path.resolve().name if path.exists() else args.dataset,
        rows=select_columns(rows, image, label if args.streaming and names else None),
        decoder=Decoder(
            image, args.resolution, args.center_crop, args.channels, background, args.levels, border=border
        ),
        labels=labels,
        label_names=names,
        label_column=label if names else None,
        captions=captions,
        caption_texts=texts,
        streaming=args.streaming,
        skip_corrupt=args.skip_corrupt,
        random_flip=args.random_flip,
        by_name=by_name,
        source=repr((args.dataset, args.dataset_config_name, args.dataset_split, image, args.max_train_samples)),
        corrupt=counter.share_memory_(),  # which workers write to
    )
    _inspect_first_image(data)
    if not args.streaming:
        _fill_cache(data, args.cache_budget)
    hide_labels(data, args)
    findings = data.decoder.findings if data.in_memory or args.streaming else survey(data)
    for sentence in (*findings.sentences(args.levels), *idle_options(data, args, findings, own)):
        tell(f"{data.name}: {sentence}")
    if (partial := facts_of(data)) is not None:
        tell(f"{data.name}: {partial}")
    logger.info("%s: %s", data.name, data.storage)
    return data


def _inspect_first_image(data: ImageData) -> None:
    """Set size and channels to those of the first image that can be decoded. Raises ValueError if there is none."""
    for row, cells in enumerate(data.rows):
        cell = cells[data.decoder.column]
        if (image := data.decode(cell, row)) is not None:
            maybe_colour = data.decoder.channels is None and len(image) == 1  # a later image may be in colour
            data.channels = len(image)
            data.decoder = dataclasses.replace(
                data.decoder,
                channels=None if maybe_colour else len(image),
                shape=(3 if maybe_colour and not data.streaming else len(image), *image.shape[1:]),
                first=data.decoder.location(cell, f"row {row}"),
            )
            return
    raise ValueError(f"'{data.name}' has no image that can be decoded ({data.num_skipped} tried).")


def _fill_cache(data: ImageData, budget: float) -> None:
    """Decode all rows into `data.images` if they fit `budget` GiB, and set `data.channels` in either case."""
    rows, fits = len(data.rows), lambda channels: rows * channels * math.prod(data.size) <= budget * 2**30
    cached = fits(data.channels) and _decode_all(data, fits)
    if not cached and data.decoder.channels is None and any_image(data, lambda image: not data.decoder.is_grey(image)):
        data.channels = 3
    data.decoder = dataclasses.replace(data.decoder, channels=data.channels)
    size = f"{rows * data.channels * math.prod(data.size) / 2**20:,.1f} MiB"
    limit = f"{budget * 1024:,.1f} MiB (--cache_budget {budget:g})"
    data.storage = f"in memory, {size} of {limit}" if cached else f"decoded by workers: {size} exceed {limit}"
    if cached:
        _ = data.fingerprint  # needs encoded rows, whose files are closed now
        data.rows = None


def _decode_all(data: ImageData, fits: Callable[[int], bool]) -> bool:
    """Decode all rows into `data.images`, without corrupt ones, and drop the labels of those.

    Returns False if a later image is in colour, and the images do not fit with three channels.
    """

    def decode(start: int) -> list[np.ndarray | None]:
        cells = data.rows[start : start + CHUNK][data.decoder.column]
        return [data.decode(cell, row) for row, cell in enumerate(cells, start)]

    rows, decoded = len(data.rows), []
    cache = np.empty((rows, data.channels, *data.size), np.uint8)
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        ProgressBar(total=rows, desc=f"Decoding {escaped(data.name)}", unit="image") as bar,
        contextlib.closing(pool.map(decode, range(0, rows, CHUNK))) as chunks,  # an error cancels the remaining ones
    ):
        for row, image in enumerate(itertools.chain.from_iterable(chunks)):
            bar.update()
            if image is None:
                continue
            if len(image) > data.channels:  # the first image in colour after grey ones
                if not fits(3):
                    return False
                cache, data.channels = cache.repeat(3, axis=1), 3
            cache[len(decoded)] = image
            decoded.append(row)
    data.images = torch.from_numpy(cache[: len(decoded)])
    data.labels = None if data.labels is None else data.labels[decoded]
    data.captions = None if data.captions is None else data.captions[decoded]
    return True
