"""Pictures: grids and animations of small images, curves, and reading of image files."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, UnidentifiedImageError

from .files import check_writable, read_rows, write_picture

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2")
"""Colours of the curves, in this order."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats of image files that are read, by Pillow's names. A file of PostScript would start Ghostscript."""


warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # data.findings says it with the name


def open_image(file: Any) -> Image.Image:
    """Open an image file, a path or a file object, of one of the FORMATS, whatever its name says.

    Raises:
        PIL.UnidentifiedImageError: the file has another format.
        OSError: it can't be read.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from None


def check_picture_file(option: str, path: str) -> None:
    """Raise ValueError if no picture can be written to a path, for its ending or since it is a folder, and WriteError
    if nothing can."""
    kinds = Image.registered_extensions()
    if kinds.get(Path(path).suffix.lower()) not in Image.SAVE or Path(path).is_dir():
        raise ValueError(f"--{option} {path} is no file of a picture. Give one that ends in .png.")
    check_writable(path)


def grid(images: Sequence[Image.Image], columns: int, width: int = 512, gap: int = 1) -> Image.Image:
    """Arrange images of one size in rows of `columns`.

    Each image is enlarged by the integer factor that makes the grid about `width` pixels wide. Enlarging repeats
    pixels, so that samples are shown unaltered. Transparent pixels become white.

    Args:
        images: at least one, of any mode.
        columns: images per row.
        width: approximate width of the grid in pixels.
        gap: pixels between images.

    Raises:
        ValueError: no images, or images of different sizes.
    """
    if not images or len({image.size for image in images}) != 1:
        raise ValueError(f"A grid needs images of one size; got {len(images)} of sizes { ({i.size for i in images}) }.")
    w, h = images[0].size
    columns = min(columns, len(images))
    factor = max(1, width // (columns * w))
    rows = -(-len(images) // columns)
    cell_w, cell_h = w * factor + gap, h * factor + gap
    sheet = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + gap), "white")
    for i, image in enumerate(images):
        large = image.convert("RGBA").resize((w * factor, h * factor), Image.Resampling.NEAREST)
        sheet.paste(large, (i % columns * cell_w + gap, i // columns * cell_h + gap), large)
    return sheet


def animate(frames: Sequence[Image.Image], path: Path, seconds: float = 2.5, hold: float = 1.5) -> None:
    """Save frames as a GIF that repeats. It plays for `seconds`, then shows the last frame for `hold` seconds more."""
    each = max(20, round(1000 * seconds / len(frames)))
    times = [each] * (len(frames) - 1) + [each + round(1000 * hold)]
    options = {"save_all": True, "append_images": list(frames[1:]), "duration": times, "loop": 0, "optimize": True}
    write_picture(path, frames[0], **options)


def read_losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read all losses of a metrics.jsonl as name -> [(step, value), ...]. Without the file the result is empty."""
    losses: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(path):
        for name, value in row.items():
            if name.endswith("loss"):
                losses.setdefault(name, []).append((row["step"], value))
    return losses


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], width: int = 640, height: int = 320, axis: str = "step"
) -> Image.Image:
    """Draw one line for each name through its points (x, y). The common axes show their minimum and maximum; `axis`
    names the horizontal one."""
    points = [point for line in series.values() for point in line]
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    box = (70, 10, width - 10, height - 30)  # left, top, right, bottom of the axes
    across, up = (box[2] - box[0]) / (right - left or 1), (box[3] - box[1]) / (high - low or 1)
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle(box, outline="#888888")
    for (name, line), colour, row in zip(series.items(), COLOURS, range(len(COLOURS)), strict=False):
        pen.line([(box[0] + (x - left) * across, box[3] - (y - low) * up) for x, y in line], colour, width=2)
        pen.text((box[2] - 150, box[1] + 8 + 14 * row), name, fill=colour)
    for place, text in {(8, box[1]): f"{high:.4g}", (8, box[3] - 10): f"{low:.4g}"}.items():
        pen.text(place, text, fill="black")
    pen.text((box[0], box[3] + 8), f"{axis} {left}", fill="black")
    pen.text((box[2] - 60, box[3] + 8), f"{right}", fill="black")
    return picture


def scatter(points: Sequence[tuple[float, float]], side: int = 480) -> Image.Image:
    """Draw points (x, y) as dots in a square, both axes on one scale. The corners show the smallest and largest
    value."""
    low, high = min(map(min, points)), max(map(max, points))
    scale = (side - 20) / (high - low or 1)
    picture = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(picture)
    for x, y in points:
        across, down = 10 + (x - low) * scale, side - 10 - (y - low) * scale
        pen.ellipse((across - 1.5, down - 1.5, across + 1.5, down + 1.5), fill=COLOURS[0])
    pen.text((4, side - 14), f"{low:.3g}", fill="black")
    pen.text((side - 50, 4), f"{high:.3g}", fill="black")
    return picture
