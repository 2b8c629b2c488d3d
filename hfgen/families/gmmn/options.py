"""Options of generative moment matching. No torch here: `--help` reads this file."""

import dataclasses
import re
from typing import Literal

from ...options import DataArgs, Options, TrainArgs, ValueRule, option, variant
from ...utils.ranges import ABOVE_0, COUNT, Form
from ..gan.options import GANArgs, GANSampleArgs, HealthArgs

GIVEN = ValueRule("the folder of an autoencoder", "FOLDER", bool)


def bandwidths_of(text: str) -> tuple[float, ...]:
    """Return the numbers of a text such as "0.5,1,2". Raises ValueError for anything else, which the caller names."""
    words = [word.strip() for word in str(text).split(",")]
    if all(re.fullmatch(r"[0-9]{0,9}(\.[0-9]{0,9})?", word) and word not in ("", ".") for word in words):
        numbers = tuple(map(float, words))
        if all(map(ABOVE_0.holds, numbers)):
            return numbers
    raise ValueError(f"{text!r} must be positive numbers, separated by commas.")


@dataclasses.dataclass
class GeneratorArgs(Options):
    """Network"""

    COMMON = ("model", "model_size")

    model: Literal["dcgan", "residual", "resnet", "mlp"] = variant(
        GANArgs, "model", "mlp", "architecture of the generator; with --autoencoder: mlp"
    )
    model_size: Literal["xs", "s", "m"] = variant(GANArgs, "model_size", "s", "width, depth and latent dimension")
    latent_channels: int | None = option(None, "dimension of a latent vector; default: that of the size", range=COUNT)


@dataclasses.dataclass
class MomentArgs(Options):
    """Objective"""

    COMMON = ("bandwidths", "estimator", "autoencoder")

    bandwidths: str = option(
        "0.125,0.25,0.5,1",
        "deviations of the Gaussian kernels, which are summed",
        range=Form(bandwidths_of, "positive numbers, separated by commas"),
    )
    bandwidth_unit: Literal["median", "item"] = option(
        "median", "unit of bandwidths: the median distance of two images (or of their latents), or the items' own"
    )
    estimator: Literal["unbiased", "biased"] = option("unbiased", "estimate of the squared discrepancy MMD^2")
    root: bool = option(False, "minimise MMD instead of its square, as Li et al. 2015", {"estimator": ("biased",)})
    autoencoder: str | None = option(
        None,
        "match in the latents of this autoencoder: folder or Hub id, as of hfgen train latent",
        resumable=True,
        path=True,
    )
    latent_dir: str | None = option(
        None,
        "folder of the latents, which are computed once; default: latents in output_dir",
        {"autoencoder": GIVEN},
        resumable=True,
        path=True,
    )


@dataclasses.dataclass
class GMMNTrainArgs(TrainArgs):
    """Training"""

    train_batch_size: int = variant(
        TrainArgs, "train_batch_size", 500, "items per process and micro-step, of which MMD is estimated"
    )


DESCRIPTION = "Train a generator by the maximum mean discrepancy alone, without a discriminator."
EXAMPLE = "hfgen train gmmn --config gmmn_digits --max_train_steps 500"
GROUPS = (DataArgs, GeneratorArgs, MomentArgs, HealthArgs, GANSampleArgs, GMMNTrainArgs)
