"""Options of anomaly detection. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import TrainArgs, option
from ..vae.options import AutoencoderArgs


@dataclasses.dataclass
class AnomalyArgs:
    """Anomalies"""

    score: Literal["density", "reconstruction", "elbo", "likelihood"] = option(
        "density", "what is high for anomalies; density: of latent and reconstruction error together"
    )
    false_alarm_rate: float = option(0.001, "share of normal images that may be called anomalous")
    num_calibration: int | None = option(
        None, "normal images held out for the threshold; default: a tenth, or as many as the rate needs"
    )
    density_components: int | None = option(None, "Gaussians of density; default: as many as there are images for")
    score_samples: int = option(8, "latents an image for elbo and likelihood")
    leave_out: str | None = option(None, "classes, by name and separated by commas, that are not normal: not used")
    pipeline: str | None = option(None, "folder of a trained VAEPipeline to use; default: one is trained")


@dataclasses.dataclass
class NetworkArgs(AutoencoderArgs):
    """Network and likelihood"""

    model_size: Literal["s", "m", "l"] = option("m", "width, depth and latent dimension; mlp m: 512-256")
    latent_channels: int | None = option(16, "dimension of a latent vector; null: that of the size")
    likelihood: Literal["bernoulli", "gaussian", "gaussian_learned", "discretized_logistic_mixture"] = option(
        "gaussian", "p(x | z)"
    )
    likelihood_sigma: float = option(0.2, "of gaussian, for pixels in [-1, 1]: the smaller, the more a latent tells")


@dataclasses.dataclass
class LearningArgs(TrainArgs):
    """Training"""

    output_dir: str = option("outputs/anomaly", "folder for the pipeline, pictures, logs and checkpoints")
    max_train_steps: int | None = option(3000, "optimiser steps; overrides num_epochs")
