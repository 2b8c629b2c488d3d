"""Options of autoregressive models. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import DataArgs, Options, SampleArgs, TrainArgs, option, variant
from ...utils.ranges import AT_LEAST_0, COUNT
from ..diffusion.options import NoiseArgs
from ..vae.options import HeldOutArgs


@dataclasses.dataclass
class ARArgs(Options):
    """Network"""

    COMMON = ("pipeline", "model", "model_size", "class_conditional")

    pipeline: str | None = option(
        None, "folder of a VQ-VAE or VQ-GAN whose codes are modelled; default: pixels", resumable=True, path=True
    )
    model: Literal["transformer", "fvsbn", "made", "nade"] = option(
        "transformer", "architecture; with --pixels real nade is RNADE"
    )
    model_size: Literal["xs", "s", "m", "l"] = option("s", "width and depth; fvsbn has one size")
    patch_size: int | None = option(
        None,
        "side of a patch, which is a token; default: the smallest with at most 256 tokens",
        only_with={"model": ("transformer",)},
        range=COUNT,
    )
    num_orders: int = option(1, "orders of the pixels, over which p(x) is averaged", {"model": ("made",)}, range=COUNT)
    class_conditional: bool = option(False, "give the network the class")


@dataclasses.dataclass
class PixelArgs(Options):
    """Objective"""

    COMMON = ("pixels", "label_dropout")

    pixels: Literal["levels", "binary", "real", "flow"] | None = option(
        None,
        "levels: the 256 levels; binary: black or white, drawn anew in each step; real: densities, with noise that "
        "fills the bins of the levels; flow: patches drawn by flow matching; default: levels, or the pipeline's codes",
    )
    random_order: bool = option(
        False, "predict the patches in a new order in each step", only_with={"pixels": ("flow",)}
    )
    components: int = option(
        10, "normal distributions in the mixture of a pixel", only_with={"pixels": ("real",)}, range=COUNT
    )
    label_dropout: float = variant(NoiseArgs, "label_dropout", 0.1)


@dataclasses.dataclass
class ARHeldOutArgs(HeldOutArgs):
    """Measurements after training"""

    likelihood_samples: int = variant(
        HeldOutArgs,
        "likelihood_samples",
        1,
        "draws of black and white pixels, or of the noise, per image",
        only_with={"pixels": ("binary", "real")},
    )


@dataclasses.dataclass
class ARSampleArgs(SampleArgs):
    """Samples"""

    COMMON = ("temperature", "guidance_scale", "eval_steps")

    temperature: float = option(
        1.0, "of samples; below 1: more typical; 0: the most likely pixels", resumable=True, range=AT_LEAST_0
    )
    guidance_scale: float = option(
        1.0, "guidance of samples by class; 1: none", {"class_conditional": (True,)}, resumable=True, range=AT_LEAST_0
    )


DESCRIPTION = (
    "Train an autoregressive model on pixels (transformer, FVSBN, MADE, NADE, RNADE) or on the codes of a VQ-VAE."
)
EXAMPLE = "hfgen train ar --config ar_digits --max_train_steps 500"
GROUPS = (DataArgs, ARArgs, PixelArgs, ARHeldOutArgs, ARSampleArgs, TrainArgs)
