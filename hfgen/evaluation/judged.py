"""A folder of images to judge, prepared exactly as the real images that it is compared with."""

import dataclasses
import itertools
from pathlib import Path

from ..console.notes import tell
from ..data.images import ImageData, load_images
from ..data.sources import open_data
from ..options import DataArgs


def load_alike(folder: str, split: str | None, args: DataArgs, real: ImageData) -> tuple[ImageData, str]:
    """Return the images of a folder and their split, read and prepared as the real images are.

    Every option of `args` holds for both: crop, size, background, channels, the number of images, corrupt images. So a
    folder that is compared with itself is compared with the same pixels in the same order. What the folder does not
    have (the configuration, the split, the column of images) is chosen as if it had not been named.

    Args:
        folder: the folder.
        split: of the folder; None: that of `args` if the folder has it, else train.
        args: options of the real images.
        real: the real images, whose channels count.

    Raises:
        ValueError: there are no such images, or no such split.
    """
    alike = dataclasses.replace(
        args,
        dataset=str(Path(folder).expanduser().resolve()),  # a folder called digits is not the built-in data set
        image_column=None,
        label_column="none",
        channels=real.channels,
    )
    choices = itertools.product((split,) if split else (args.dataset_split, "train"), (args.dataset_config_name, None))
    for part, configuration in dict.fromkeys(choices):
        alike = dataclasses.replace(alike, dataset_split=part, dataset_config_name=configuration)
        try:
            rows, border = open_data(alike)
            break
        except ValueError as error:
            problem = error  # the last choice is what every folder of images has
    else:
        raise ValueError(f"{folder} holds no pipeline, and can't be read as images: {problem}") from problem
    column = real.image_column if real.image_column in rows.features else None
    tell(f"split {part} of {folder} is judged.")
    return load_images(dataclasses.replace(alike, image_column=column), rows, border, own=False), part
