"""Options of models of latents. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import DataArgs, Options, SampleArgs, SolverArgs, TrainArgs, option, variant
from ...utils.ranges import ABOVE_0, AT_LEAST_0, BATCH_SIZES, COUNT, SPAN
from ..adapter_options import LowRankArgs
from ..diffusion.options import DenoiserArgs, DiffusionTrainArgs, NoiseArgs


@dataclasses.dataclass
class LatentArgs(Options):
    """Autoencoder"""

    COMMON = ("autoencoder", "from_scratch")

    autoencoder: str | None = option(
        None,
        "folder or Hub id of an autoencoder, hfgen's or diffusers', or of a pipeline with one; default: as init_from",
        {"from_scratch": (False,), "lora_rank": (None,)},
        resumable=True,
        path=True,
    )
    from_scratch: bool = option(False, "train the autoencoder first, in the same folder", {"lora_rank": (None,)})
    measure_latents: bool = option(
        False,
        "measure mean and deviation of the latents on the images",
        {"from_scratch": (False,), "lora_rank": (None,)},
    )
    latent_dir: str | None = option(
        None, "folder of the latents, which are computed once; default: latents in output_dir", None, True, path=True
    )


@dataclasses.dataclass
class ScratchArgs(Options):
    """Training of the autoencoder"""

    ONLY_WITH = {"from_scratch": (True,)}  # noqa: RUF012
    COMMON = ("autoencoder_steps",)

    autoencoder_size: Literal["s", "m", "l"] = option("s", "width and depth")
    latent_channels: int = option(4, "channels of the latents, a quarter as high and wide as the images", range=COUNT)
    kl_weight: float = option(0.1, "weight of KL beside -log p(x | z); 1: VAE", range=AT_LEAST_0)
    perceptual: float = option(1.0, "weight of the perceptual distance of reconstructions; 0: off", range=AT_LEAST_0)
    perceptual_features: str = option(
        "auto",
        "network of the perceptual distance: digits, mnist, cifar10, one of these with -texture, a Hub id; auto: the "
        "classifier for the images' shape",
        path=True,
    )
    adversarial_weight: float = option(
        0.1, "weight of a discriminator of reconstructions; 0 with --perceptual 0: none", range=AT_LEAST_0
    )
    discriminator_size: Literal["xs", "s", "m"] = option("xs", "width and depth of the discriminator")
    autoencoder_steps: int = option(5000, "optimiser steps", range=COUNT)
    autoencoder_seconds: float | None = option(None, "seconds; steps are a first guess, planned on the way", range=SPAN)
    autoencoder_batch_size: int = option(64, "images per process and step", range=BATCH_SIZES)
    autoencoder_learning_rate: float = option(5e-4, "peak learning rate of both players", range=ABOVE_0)


@dataclasses.dataclass
class LatentDenoiserArgs(DenoiserArgs):
    """Network"""

    model: Literal["patch_unet", "unet", "dit", "uvit"] = variant(
        DenoiserArgs, "model", "dit", "architecture of the denoiser of latents"
    )


@dataclasses.dataclass
class LatentNoiseArgs(NoiseArgs):
    """Path and objective"""

    COMMON = ("path", "time_shift")

    time_shift: float | None = option(
        None,
        "shift of times, for training and sampling; above 1: more noise; default: by the size of a latent",
        {"path": ("straight",), "lora_rank": (None,)},
        range=ABOVE_0,
    )


@dataclasses.dataclass
class LatentTrainArgs(DiffusionTrainArgs):
    """Training"""

    output_dir: str = variant(
        TrainArgs, "output_dir", "outputs/latent", "folder for the pipeline, pictures, logs and checkpoints"
    )


DESCRIPTION = "Train a diffusion or rectified-flow model on the latents of an autoencoder, or both from scratch."
EXAMPLE = "hfgen train latent --config mnist_latent --autoencoder_steps 200 --max_train_steps 500"
GROUPS = (
    DataArgs,
    LatentArgs,
    ScratchArgs,
    LatentDenoiserArgs,
    LatentNoiseArgs,
    LowRankArgs,
    SolverArgs,
    SampleArgs,
    LatentTrainArgs,
)
