"""Options of anomaly detection. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import DataArgs, Options, TrainArgs, option, variant
from ...utils.ranges import COUNT, INSIDE_0_1
from ..vae.options import AutoencoderArgs, BoundArgs

TRAINED = {"pipeline": (None,)}
"""The condition of options of the training: an autoencoder is trained only without --pipeline."""


@dataclasses.dataclass
class AnomalyArgs(Options):
    """Anomalies"""

    COMMON = ("score", "false_alarm_rate", "num_calibration", "leave_out", "pipeline")

    score: Literal["density", "reconstruction", "elbo", "likelihood", "energy"] | None = option(
        None,
        "anomaly score; density: joint density of latent and reconstruction error; energy: of an energy, its only one; "
        "default: density, or energy",
        resumable=True,
    )
    false_alarm_rate: float = option(
        0.001, "share of normal images that may be classified as anomalous", resumable=True, range=INSIDE_0_1
    )
    num_calibration: int | None = option(
        None,
        "number of normal images held out for the threshold; default: a tenth, or the number that the rate needs",
        range=COUNT,
    )
    density_components: int | None = option(
        None,
        "number of Gaussians of the density; default: the number that the images suffice for",
        only_with={"score": ("density", None)},
        resumable=True,
        range=COUNT,
    )
    score_samples: int = option(
        8, "latents per image", only_with={"score": ("elbo", "likelihood")}, resumable=True, range=COUNT
    )
    leave_out: str | None = option(
        None, "names of the classes that are not normal, separated by commas; their images are not used"
    )
    pipeline: str | None = option(
        None,
        "folder of a trained VAEPipeline or of an energy to use; default: an autoencoder is trained",
        resumable=True,
        path=True,
    )


@dataclasses.dataclass
class AnomalyNetworkArgs(AutoencoderArgs):
    """Network and likelihood"""

    ONLY_WITH = TRAINED

    model: Literal["mlp", "conv", "kl", "vq", "vqmodel"] = variant(
        AutoencoderArgs, "model", "mlp", "mlp, conv: one latent vector per image; kl: a grid of them"
    )
    model_size: Literal["s", "m", "l"] = variant(
        AutoencoderArgs, "model_size", "m", "width, depth and latent dimension; mlp m: 512-256"
    )
    latent_channels: int | None = variant(
        AutoencoderArgs, "latent_channels", 16, "dimension of a latent vector; null: that of the size"
    )
    likelihood: Literal["bernoulli", "gaussian", "gaussian_learned", "discretized_logistic_mixture"] = variant(
        AutoencoderArgs, "likelihood", "gaussian", "p(x | z)"
    )
    likelihood_sigma: float = variant(
        AutoencoderArgs,
        "likelihood_sigma",
        0.2,
        "standard deviation of p(x | z), for pixels in [-1, 1]; a smaller one gives more exact reconstructions",
    )


@dataclasses.dataclass
class ObjectiveArgs(BoundArgs):
    """Objective"""

    ONLY_WITH = TRAINED


@dataclasses.dataclass
class AnomalyTrainArgs(TrainArgs):
    """Training"""

    ONLY_WITH = TRAINED
    ALWAYS = ("output_dir", "seed", "allow_tf32", "resume_from_checkpoint")

    output_dir: str = variant(
        TrainArgs, "output_dir", "outputs/anomaly", "folder for the pipeline, pictures, logs and checkpoints"
    )
    max_train_steps: int | None = variant(TrainArgs, "max_train_steps", 3000)
    num_epochs: float = variant(TrainArgs, "num_epochs", 100.0, only_with={"max_train_steps": (None,)})


DESCRIPTION = "Fit an anomaly detector to normal images, and its threshold to held-out normal images."
EXAMPLE = "hfgen anomaly fit --dataset path/to/normal_images --resolution 32 --output_dir outputs/anomaly"
GROUPS = (AnomalyArgs, DataArgs, AnomalyNetworkArgs, ObjectiveArgs, AnomalyTrainArgs)
