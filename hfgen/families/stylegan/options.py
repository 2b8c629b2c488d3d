"""Options of style-based generators. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import NEVER, POSITIVE, DataArgs, Options, TrainArgs, option, variant
from ...utils.ranges import AT_LEAST_0, COUNT, PROBABILITY
from ..gan.options import AdversarialArgs, GANArgs, GANSampleArgs, GANTrainArgs, HealthArgs


@dataclasses.dataclass
class StyleGANArgs(Options):
    """Networks"""

    COMMON = ("model_size", "class_conditional")

    model_size: Literal["xs", "s", "m"] = variant(
        GANArgs, "model_size", "s", "widths, dimension of latents and styles, and layers of the mapping network"
    )
    latent_channels: int | None = option(None, "dimension of a latent vector; default: that of the size", range=COUNT)
    patch_size: int | None = option(
        None, "side of the square of pixels that forms a position; default: 2 for sides from 16 on, else 1", range=COUNT
    )
    class_conditional: bool = option(False, "give both networks the class")


@dataclasses.dataclass
class StyleArgs(Options):
    """Styles"""

    COMMON = ("style_mixing", "path_length")

    style_mixing: float = option(0.9, "share of generated images with the styles of two latents", range=PROBABILITY)
    path_length: float = option(0.01, "weight of the path length penalty of the generator; 0: none", range=AT_LEAST_0)
    path_length_every: int = option(
        4,
        "apply it every so many steps only, with so many times the weight",
        {"path_length": POSITIVE},
        range=COUNT,
    )


@dataclasses.dataclass
class StyleAdversarialArgs(AdversarialArgs):
    """Objective"""

    spectral_norm: bool = variant(AdversarialArgs, "spectral_norm", False, only_with=NEVER)


@dataclasses.dataclass
class StyleGANTrainArgs(GANTrainArgs):
    """Training"""

    gradient_checkpointing: bool = variant(TrainArgs, "gradient_checkpointing", False, only_with=NEVER)


DESCRIPTION = "Train a style-based generator (StyleGAN) against a discriminator on images."
EXAMPLE = "hfgen train stylegan --config stylegan_digits --max_train_steps 500"
GROUPS = (DataArgs, StyleGANArgs, StyleAdversarialArgs, StyleArgs, HealthArgs, GANSampleArgs, StyleGANTrainArgs)
