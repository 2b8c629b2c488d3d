"""Options of diffusion and rectified-flow models. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...data.label_options import PartialLabelDataArgs
from ...options import Options, SampleArgs, SolverArgs, TrainArgs, ValueRule, option, variant
from ...registry import PATHS
from ...utils.ranges import ABOVE_0, COUNT, FINITE, PROBABILITY
from ..adapter_options import AdapterArgs


@dataclasses.dataclass
class DenoiserArgs(Options):
    """Network"""

    model: Literal["patch_unet", "unet", "dit", "uvit"] = option("patch_unet", "architecture of the denoiser")
    model_size: Literal["xs", "s", "m", "l"] = option("s", "about 0.7, 2.7, 10 or 36 million parameters")
    class_conditional: bool = option(False, "give the network the class, and train for classifier-free guidance")


LOGIT_NORMAL = {"time_sampling": ("logit_normal", None)}


@dataclasses.dataclass
class NoiseArgs(Options):
    """Path and objective"""

    COMMON = ("path", "prediction_type", "label_dropout")

    path: Literal[tuple(PATHS)] = option("straight", "from data to noise; straight: rectified flow, vp: DDPM")
    prediction_type: Literal["flow_prediction", "epsilon", "v_prediction", "sample", "score"] = option(
        "flow_prediction", "what the network predicts"
    )
    time_sampling: Literal["low_discrepancy", "uniform", "logit_normal", "importance"] | None = option(
        None,
        "distribution of the times to train on; default: logit_normal on the straight path, if weighting is simple, "
        "else low_discrepancy; importance: where the loss is large, with a learned variance",
        former_default="low_discrepancy",
    )
    logit_mean: float = option(
        0.0,
        "mean of the logit of time; positive: more times near the noise",
        LOGIT_NORMAL,
        range=FINITE,
    )
    logit_std: float = option(1.0, "standard deviation of the logit of time", LOGIT_NORMAL, range=ABOVE_0)
    weighting: Literal["simple", "min_snr", "sigmoid"] = option("simple", "weight of the loss over time")
    snr_gamma: float = option(
        5.0, "signal-to-noise ratio that min_snr clips at", only_with={"weighting": ("min_snr",)}, range=ABOVE_0
    )
    sigmoid_bias: float = option(
        0.0, "log signal-to-noise ratio at which sigmoid is 1/2", only_with={"weighting": ("sigmoid",)}, range=FINITE
    )
    variance: Literal["fixed", "learned_range"] = option(
        "fixed", "variance of a reverse step; learned_range: the network's, between DDPM's least and largest one"
    )
    vlb_weight: float = option(
        1e-3,
        "weight of the variational bound, which the variance learns from",
        only_with={"variance": ("learned_range",)},
        range=ABOVE_0,
    )
    label_dropout: float = option(
        0.1,
        "share of images trained on without their class, for guidance",
        only_with={"class_conditional": (True,)},
        off=0.0,
        range=PROBABILITY,
    )


@dataclasses.dataclass
class LikelihoodArgs(Options):
    """Likelihood of a rectified flow"""

    COMMON = ()

    objective: Literal["denoising", "likelihood"] = option(
        "denoising",
        "likelihood: exact log-density of a rectified flow's ODE (CNF), for the last steps after --init_from",
    )
    likelihood_steps: int = option(
        8, "Runge-Kutta steps of the ODE, 4 evaluations each", only_with={"objective": ("likelihood",)}, range=COUNT
    )


MAE = ValueRule("a masked autoencoder", "PIPELINE", lambda value: value is not None)
ALIGNED = {"align_with": MAE}


@dataclasses.dataclass
class AlignmentArgs(Options):
    """Representation alignment"""

    COMMON = ()

    align_with: str | None = option(
        None,
        "folder or Hub id of a masked autoencoder, whose features a hidden layer of the denoiser learns besides (REPA)",
        {"objective": ("denoising",), "lora_rank": (None,), "torch_compile": (False,)},
        path=True,
    )
    align_weight: float = option(0.5, "weight of the distance of directions, from 0 to 2", ALIGNED, range=ABOVE_0)
    align_layer: str | None = option(None, "module of the denoiser that learns them; default: the middle", ALIGNED)


@dataclasses.dataclass
class DiffusionTrainArgs(TrainArgs):
    """Training"""

    optimizer: Literal["adamw", "muon", "rmsprop"] = variant(
        TrainArgs, "optimizer", "muon", "optimiser of the denoiser", former_default="adamw"
    )


DESCRIPTION = "Train a diffusion or rectified-flow model on images."
EXAMPLE = "hfgen train diffusion --config quickstart --max_train_steps 500"
GROUPS = (
    PartialLabelDataArgs,
    DenoiserArgs,
    NoiseArgs,
    LikelihoodArgs,
    AlignmentArgs,
    AdapterArgs,
    SolverArgs,
    SampleArgs,
    DiffusionTrainArgs,
)
