"""Options of masked autoencoders. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import NEVER, DataArgs, Options, TrainArgs, option, variant
from ...utils.ranges import COUNT, INSIDE_0_1
from ..vae.options import HeldOutArgs


@dataclasses.dataclass
class MaskedArgs(Options):
    """Network and objective"""

    COMMON = ("model_size", "patch_size", "mask_ratio", "normalised_targets")

    model_size: Literal["xs", "s", "m", "l"] = option("s", "about 0.5, 2, 7 or 23 million parameters")
    patch_size: int | None = option(
        None,
        "side of a patch in pixels; default: the smallest with at most 64 patches, 256 of large images",
        range=COUNT,
    )
    mask_ratio: float = option(0.75, "share of the patches that is hidden", range=INSIDE_0_1)
    normalised_targets: bool = option(
        False, "predict patches less their mean, divided by their deviation, instead of pixels"
    )


@dataclasses.dataclass
class ProbeArgs(HeldOutArgs):
    """Measurements after training"""

    COMMON = ("held_out_split", "num_likelihood", "num_probe")

    likelihood_samples: int = variant(
        HeldOutArgs, "likelihood_samples", 100, "none: a masked autoencoder has no likelihood", only_with=NEVER
    )
    num_probe: int = option(
        5000,
        "training images that a linear classifier of the features is fitted to, at most",
        resumable=True,
        range=COUNT,
    )


@dataclasses.dataclass
class MaskedTrainArgs(TrainArgs):
    """Training"""

    output_dir: str = variant(
        TrainArgs, "output_dir", "outputs/mae", "folder for the pipeline, pictures, logs and checkpoints"
    )
    adam_beta2: float = variant(TrainArgs, "adam_beta2", 0.95)
    adam_weight_decay: float = variant(TrainArgs, "adam_weight_decay", 0.05)


DESCRIPTION = "Train a masked autoencoder, which learns representations of images by predicting what is hidden of them."
EXAMPLE = "hfgen train mae --config mae_digits --max_train_steps 500"
GROUPS = (DataArgs, MaskedArgs, ProbeArgs, MaskedTrainArgs)
