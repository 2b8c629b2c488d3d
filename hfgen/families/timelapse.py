"""The pictures that a training saved on its way, as an animation."""

import re
from pathlib import Path

from PIL import Image

from ..console.notes import tell
from ..utils import pictures

TIMELAPSE = "timelapse.gif"
"""Its file in the folder of the training."""

MOST_FRAMES = 48
"""Pictures of a time-lapse; of more, as many are taken at even distances."""


def save_timelapse(output: Path, step: int, finished: Path) -> dict[str, str]:
    """Save `timelapse.gif` of the grids in `samples/`, which show the same noise after more and more steps.

    The grids are files, so those from before a stop are there as well. One that can't be read is left out, which is
    said. Grids of another size than the newest are left out, too: they were drawn with other options. The picture of
    the finished pipeline is the last frame if it has this size, and else shows something else.

    Args:
        output: folder of the training.
        step: the last step; later grids are of another training.
        finished: the picture of the finished pipeline, if there is one.

    Returns:
        The caption by file name; nothing for fewer than two grids, which show no change.
    """
    files = {number: path for number, path in grid_files(output / "samples").items() if number < step}
    frames: dict[int, Image.Image] = {}
    for number, path in [*sorted(files.items()), *([(step, finished)] if finished.is_file() else [])]:
        try:
            with pictures.open_image(path) as image:
                frames[number] = image.convert("RGB")
        except (OSError, SyntaxError) as error:
            tell(f"{path} is left out of {TIMELAPSE}: {error}.")
    sizes = [frame.size for number, frame in frames.items() if number < step]
    steps = [number for number, frame in frames.items() if frame.size == sizes[-1]] if sizes else []
    if len(steps) < 2:
        return {}
    count = min(len(steps), MOST_FRAMES)
    chosen = [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]
    shown = [pictures.captioned(frames[number], f"step {number:,}") for number in chosen]
    pictures.animate(shown, output / TIMELAPSE, seconds=max(2.5, count / 8))
    return {TIMELAPSE: f"the same noise after {chosen[0]:,} to {chosen[-1]:,} steps"}


def grid_files(folder: Path) -> dict[int, Path]:
    """Return the grids of samples in a folder by their steps."""
    found = ((re.fullmatch(r"step-(\d+)\.png", path.name), path) for path in folder.glob("step-*.png"))
    return {int(match[1]): path for match, path in found if match}
