"""Options of normalizing flows. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import DataArgs, Options, SampleArgs, TrainArgs, option, variant
from ...utils.ranges import ABOVE_0, COUNT_OR_0, TWO_OR_MORE
from ..diffusion.options import NoiseArgs
from ..vae.options import HeldOutArgs


@dataclasses.dataclass
class FlowArgs(Options):
    """Network"""

    COMMON = ("pipeline", "model", "model_size", "elementwise", "class_conditional")

    pipeline: str | None = option(
        None, "folder of a VAE whose latents are modelled by couplings; default: pixels", resumable=True, path=True
    )
    model: Literal["transformer", "glow", "realnvp", "nice", "jet", "residual", "implicit"] = option(
        "transformer",
        "architecture; transformer: causal, in alternating directions; residual, implicit: x + g(x) and inverses of "
        "that, for small images; the others: couplings",
    )
    model_size: Literal["xs", "s", "m", "l"] = option("s", "width and depth")
    elementwise: Literal["additive", "affine", "logistic_mixture", "spline"] | None = option(
        None,
        "map of single numbers; default: logistic_mixture for transformer, additive for nice, else affine",
        only_with={"model": ("transformer", "glow", "realnvp", "nice", "jet")},
    )
    components: int | None = option(
        None,
        "distributions of a mixture, or bins of a spline; default: 16 for transformer, else 8",
        only_with={"elementwise": ("logistic_mixture", "spline")},
        range=TWO_OR_MORE,
    )
    extra_channels: int = option(
        0, "channels of noise that a network makes from the image and the flow models, too (VFlow)", range=COUNT_OR_0
    )
    class_conditional: bool = option(False, "give the network the class")


@dataclasses.dataclass
class LikelihoodArgs(Options):
    """Objective"""

    COMMON = ("dequantisation", "noise_level", "label_dropout")

    dequantisation: Literal["uniform", "variational", "gaussian"] = option(
        "uniform",
        "noise in the images; uniform: fills the bins of the 256 levels, for bits per dimension; variational: the "
        "same, by a network that learns to; gaussian: removed from samples in one step",
    )
    noise_level: float = option(
        0.05,
        "standard deviation of the noise, for pixels in [-1, 1]",
        only_with={"dequantisation": ("gaussian",)},
        range=ABOVE_0,
    )
    label_dropout: float = variant(NoiseArgs, "label_dropout", 0.1)


@dataclasses.dataclass
class FlowHeldOutArgs(HeldOutArgs):
    """Measurements after training"""

    likelihood_samples: int | None = variant(
        HeldOutArgs,
        "likelihood_samples",
        None,
        "draws per image, of the dequantisation or of the VAE's latent; default: 1, with --pipeline 20",
        only_with={},
    )


@dataclasses.dataclass
class FlowSampleArgs(SampleArgs):
    """Samples"""

    COMMON = ("temperature", "eval_steps")

    temperature: float = option(
        1.0, "standard deviation of the latents of samples; below 1: more typical", resumable=True, range=ABOVE_0
    )


DESCRIPTION = "Train a normalizing flow on images, or on a VAE's latents as their prior, by exact maximum likelihood."
EXAMPLE = "hfgen train flow --config flow_digits --max_train_steps 500"
GROUPS = (DataArgs, FlowArgs, LikelihoodArgs, FlowHeldOutArgs, FlowSampleArgs, TrainArgs)
