"""Grids and animations of small images, for people to look at."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def grid(images: Sequence[Image.Image], columns: int, width: int = 512, gap: int = 1) -> Image.Image:
    """Images of one size in rows of `columns`, each enlarged by the whole factor that brings the grid to about `width`
    pixels; enlarging repeats pixels, so that what is seen is what was drawn. Transparent pixels show a white ground.

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
    """Save frames as a GIF that plays in `seconds`, shows the last frame for `hold` seconds and starts again."""
    each = max(20, round(1000 * seconds / len(frames)))
    times = [each] * (len(frames) - 1) + [each + round(1000 * hold)]
    frames[0].save(path, save_all=True, append_images=list(frames[1:]), duration=times, loop=0, optimize=True)
