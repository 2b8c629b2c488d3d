"""Options of classifiers of noisy images. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...data.label_options import PartialLabelDataArgs
from ...options import NEVER, Options, TrainArgs, option, variant
from ...registry import PATHS
from ...utils.ranges import BELOW_1


@dataclasses.dataclass
class ClassifierArgs(Options):
    """Network and objective"""

    COMMON = ("noise", "path", "model_size")

    noise: bool = option(True, "classify images with noise, as guidance needs it; off: clean images alone")
    path: Literal[tuple(PATHS)] = option("vp", "from data to noise, that of the denoiser to guide", {"noise": (True,)})
    model_size: Literal["xs", "s", "m"] = option("xs", "about 0.1, 0.5 or 2 million parameters")
    augment: str = option(
        "none", "augmentations of clean images, separated by commas: color, translation, cutout", {"noise": (False,)}
    )
    label_smoothing: float = option(0.0, "share of the target that is uniform over classes", range=BELOW_1)


@dataclasses.dataclass
class ClassifierTrainArgs(TrainArgs):
    """Training"""

    output_dir: str = variant(
        TrainArgs, "output_dir", "outputs/classifier", "folder for the classifier, logs and checkpoints"
    )
    gradient_checkpointing: bool = variant(TrainArgs, "gradient_checkpointing", False, only_with=NEVER)
    sample_steps: int = variant(TrainArgs, "sample_steps", 0)


DESCRIPTION = "Train a classifier of images with noise, whose gradient guides a denoiser of the same path."
EXAMPLE = "hfgen train classifier --noise --path vp --max_train_steps 500"
GROUPS = (PartialLabelDataArgs, ClassifierArgs, ClassifierTrainArgs)
