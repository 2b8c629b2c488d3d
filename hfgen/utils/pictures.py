"""Pictures: grids and animations of small images, curves, and reading of image files."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from ..console.text import escaped
from ..disk.files import check_writable, read_rows, write_picture
from ..disk.kinds import count, number

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2")
"""Colours of the curves, in this order."""

LABEL_SIZE = 12
"""Height of the text of labels in pixels."""

LABEL_WIDTH = 120
"""Most pixels that a label is wide."""

HIGHEST = 1 << 15
"""Most pixels that a grid is high because its images are enlarged."""

LEAST_COLUMNS = 10
"""Columns that a grid by classes may always have."""

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


def grid(
    images: Sequence[Image.Image | None],
    columns: int,
    width: int = 512,
    gap: int = 1,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Arrange images of one size in rows of `columns`.

    Each image is enlarged by the integer factor that makes the grid about `width` pixels wide, and at most `HIGHEST`
    pixels high. Enlarging repeats pixels, so that samples are shown unaltered. Transparent pixels become white.

    Args:
        images: at least one, of any mode; None leaves a place empty.
        columns: images per row.
        width: approximate width of the grid in pixels.
        gap: pixels between images.
        labels: a text for each row, written to the left of it; "" for none. Long ones are cut, and rows are at least
            as high as a line of text.

    Raises:
        ValueError: no images, or images of different sizes.
    """
    sizes = {image.size for image in images if image is not None}
    if len(sizes) != 1:
        raise ValueError(f"A grid needs images of one size; got {len(images)} of sizes {sizes or '{}'}.")
    ((w, h),) = sizes
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    factor = max(1, min(width // (columns * w), HIGHEST // (rows * h)), -(-LABEL_SIZE // h) if labels else 1)
    cell_w, cell_h = w * factor + gap, h * factor + gap
    margin, texts = _margin(labels or [])
    sheet = Image.new("RGB", (margin + columns * cell_w + gap, rows * cell_h + gap), "white")
    for i, image in enumerate(images):
        if image is not None:
            large = image.convert("RGBA").resize((w * factor, h * factor), Image.Resampling.NEAREST)
            sheet.paste(large, (margin + i % columns * cell_w + gap, i // columns * cell_h + gap), large)
    pen = ImageDraw.Draw(sheet)
    for row, text in enumerate(texts[:rows]):
        pen.text((margin - 4, row * cell_h + gap + cell_h // 2), text, "black", _font(), anchor="rm")
    return sheet


def class_grid(
    images: Sequence[Image.Image], classes: Sequence[int], names: Sequence[str], width: int = 512
) -> Image.Image:
    """Arrange images in rows of one class each, with the class's name to the left; a class may fill several rows.

    Args:
        images: at least one, of one size.
        classes: the class of each image, 0, 1, ...
        names: the classes' names.
        width: approximate width of the grid in pixels.

    Raises:
        ValueError: as `grid`.
    """
    groups = {label: [image for image, c in zip(images, classes, strict=True) if c == label] for label in classes}
    columns = min(max(map(len, groups.values())), max(LEAST_COLUMNS, round(len(images) ** 0.5)))
    cells, labels = [], []
    for label, group in groups.items():
        rows = -(-len(group) // columns)
        cells += [*group, *[None] * (rows * columns - len(group))]
        labels += [names[label], *[""] * (rows - 1)]
    return grid(cells, columns, width, labels=labels)


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """Return the picture with a line of text below it."""
    sheet = Image.new("RGB", (picture.width, picture.height + LABEL_SIZE + 6), "white")
    sheet.paste(picture)
    ImageDraw.Draw(sheet).text((4, picture.height + 2), text, "black", _font())
    return sheet


def tile(image: Image.Image, text: str, side: int = LABEL_WIDTH) -> Image.Image:
    """Return an image, enlarged by the integer factor that makes it about `side` pixels wide, with a line of text
    below. Long texts are cut."""
    factor = max(1, round(side / image.width))
    large = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (max(side + 8, large.width), large.height), "white")
    sheet.paste(large, ((sheet.width - large.width) // 2, 0))
    return captioned(sheet, _fitting(text))


def _font() -> Any:
    return ImageFont.load_default(LABEL_SIZE)


def _margin(labels: Sequence[str]) -> tuple[int, list[str]]:
    """Return the width of the column of labels in pixels, 0 without labels, and the labels as they are written."""
    texts = [_fitting(text) for text in labels]
    return (round(max(map(_font().getlength, texts))) + 8 if any(texts) else 0), texts


def _fitting(text: str) -> str:
    """Return the text in a line, cut where it is wider than a label may be."""
    text = escaped(text[:200])
    font, shown = _font(), text
    while font.getlength(shown) > LABEL_WIDTH:
        text = text[:-1]
        shown = f"{text}..."
    return shown


def animate(frames: Sequence[Image.Image], path: Path, seconds: float = 2.5, hold: float = 1.5) -> None:
    """Save frames as a GIF that repeats. It plays for `seconds`, then shows the last frame for `hold` seconds more."""
    each = max(20, round(1000 * seconds / len(frames)))
    times = [each] * (len(frames) - 1) + [each + round(1000 * hold)]
    options = {"save_all": True, "append_images": list(frames[1:]), "duration": times, "loop": 0, "optimize": True}
    write_picture(path, frames[0], **options)


def read_losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read all losses of a metrics.jsonl as name -> [(step, value), ...]. Without the file the result is empty.

    Raises DamagedFileError for a row without a step. What is no number is left out.
    """
    losses: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(path, {"step": count}):
        for name, value in row.items():
            if name.endswith("loss") and number(value):
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
        pen.text((box[2] - 150, box[1] + 8 + 14 * row), escaped(name)[:28], fill=colour)
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
