"""A data set at a glance: a few of its images, its facts, and a grid of pictures."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..console.notes import tell
from ..disk.files import write_picture
from ..utils.pictures import grid
from .batches import Batches
from .images import ImageData
from .partial_labels import facts_of, num_unlabelled
from .sources import flatten
from .streams import SHUFFLE_BUFFER, ImageStream

UNFLIPPED = "--random_flip is for training. Images are measured as they are, not mirrored."
"""What commands that read images without a training say of the option."""

MOST_PIXELS = 1 << 26
"""Values that means and deviations are computed from, and that a preview holds, at most; of larger images, one."""


def sample(data: ImageData, count: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """Return the first `count` images that training sees, or all if there are fewer.

    Returns:
        uint8 images (B, C, H, W), and labels (B,) or None.
    """
    if data.streaming:
        stream = ImageStream(data, count, seed, rank=0, world=1, start=0, workers=1)
        with ThreadPoolExecutor() as pool:
            batch = stream.decode(list(itertools.islice(stream.epoch(0), count)), 0, pool)
    else:
        batch = next(Batches(data, min(count, len(data)), seed).stored(0))
    return batch["x"], batch.get("labels")


def describe(data: ImageData) -> list[tuple[str, str]]:
    """Return the facts of a data set as (name, value) pairs. Means and deviations are of pixels in [0, 1]."""
    most = _most_images(data)
    images, _ = sample(data, min(most, SHUFFLE_BUFFER) if data.streaming else most)  # a stream may be long
    counts = [np.bincount(images[:, channel].reshape(-1), minlength=256) for channel in range(data.channels)]
    levels = np.arange(256) / 255
    means = [count @ levels / count.sum() for count in counts]
    spreads = [math.sqrt(count @ (levels - mean) ** 2 / count.sum()) for count, mean in zip(counts, means, strict=True)]
    of = "" if not data.streaming and len(images) == len(data) else f" (of {len(images):,} images)"
    return [
        ("data set", data.name),
        ("images", "not known: streamed" if data.streaming else f"{len(data):,}"),
        ("left out", f"{data.num_skipped:,} that can't be decoded"),
        ("height × width", f"{data.size[0]} × {data.size[1]}"),
        ("channels", {1: "1 (grey)", 3: "3 (RGB)", 4: "4 (RGBA)"}[data.channels]),
        ("classes", _classes(data)),
        (f"mean{of}", ", ".join(f"{mean:.4f}" for mean in means)),
        (f"deviation{of}", ", ".join(f"{spread:.4f}" for spread in spreads)),
        ("fingerprint", data.fingerprint),
        ("storage", data.storage),
    ]


def _most_images(data: ImageData) -> int:
    return max(1, MOST_PIXELS // (data.channels * math.prod(data.size)))


def _classes(data: ImageData) -> str:
    """Return the classes with the number of images of each; of more than 20, the smallest and largest number."""
    if data.label_names is None:
        return "none"
    if data.labels is None:
        return f"{data.num_classes}: {', '.join(data.label_names)}"
    counts = torch.bincount(data.labels[data.labels >= 0], minlength=data.num_classes).tolist()
    rest = f"; {facts_of(data)}" if num_unlabelled(data) else ""
    if len(counts) > 20:
        return f"{len(counts)} of {min(counts):,} to {max(counts):,} images{rest}"
    listed = ", ".join(f"{n} ({c:,})" for n, c in zip(data.label_names, counts, strict=True))
    return f"{len(counts)}: {listed}{rest}"


def preview(data: ImageData, path: str | Path, rows: int = 8, cols: int = 8, seed: int = 0) -> Path:
    """Save a grid of up to rows x cols random images as PNG, small ones enlarged by a whole factor; return its path.

    Of very large images fewer are shown, which is said.
    """
    if min(rows, cols) < 1:
        raise ValueError(f"A grid of {rows} × {cols} images shows nothing: {rows=} and {cols=} must be at least 1.")
    most = _most_images(data)
    images, _ = sample(data, min(rows * cols, most), seed)
    if most < rows * cols and (data.streaming or most < len(data)):
        tell(f"the images are so large that the grid shows only {most:,}.")
    tiles = [Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()) for pixels in images]
    if data.channels == 4:
        tiles = [flatten(tile, data.decoder.background) for tile in tiles]
    write_picture(path, grid(tiles, cols), format="PNG")
    return Path(path)
