"""Fit an anomaly detector to a trained autoencoder of normal images."""

from typing import Any

import torch
from torch import Tensor

import hfgen

from ...models.calibration import CalibrationModel
from ...models.priors import GaussianMixturePriorModel
from ..fit_mixture import fit_mixture

MOST_FITTED = 30_000
"""Images to which a density is fitted, at most."""

MOST_COMPONENTS = 64
"""Gaussians of a density, at most, unless their number is given."""

IMAGES_A_NUMBER = 10
"""Images for each dimension of a Gaussian, at least, unless the number of Gaussians is given."""


def fit(
    trained: Any,
    normal: Tensor,
    held_out: Tensor,
    score: str = "density",
    false_alarm_rate: float = 0.001,
    num_components: int | None = None,
    num_samples: int = 8,
    seed: int = 0,
    **preparation: Any,
) -> Any:
    """Return a calibrated AnomalyPipeline of a trained VAEPipeline.

    Args:
        trained: the VAEPipeline.
        normal (N, C, H, W): training images in [-1, 1], or others like them. `density` is fitted to the first
            `MOST_FITTED`.
        held_out (M, C, H, W): other normal images, for the threshold.
        score: see `hfgen.pipelines.anomaly.SCORES`.
        false_alarm_rate: see `CalibrationModel`.
        num_components: Gaussians of `density`; None: as many as there are images for, `MOST_COMPONENTS` at most.
        num_samples: latents an image for `elbo` and `likelihood`.
        seed: of the mixture's start.
        preparation: `center_crop` and `background`, see `AnomalyPipeline`.

    Raises:
        ValueError: numbers out of range, or too few images for them.
    """
    options = ("likelihood", "likelihood_sigma", "likelihood_components", "variational")
    options = {name: trained.config[name] for name in options}
    calls = {"score": score, "num_samples": num_samples, **preparation, **options}

    def pipeline(prior: Any) -> Any:
        return hfgen.AnomalyPipeline(trained.autoencoder, prior, CalibrationModel(), **calls)

    detector = pipeline(trained.prior)
    if score == "density":
        detector = pipeline(
            fit_density(detector.describe(normal[:MOST_FITTED]), num_components, seed).to(trained.device)
        )
    detector.calibrate(held_out, false_alarm_rate)
    return detector


def fit_density(features: Tensor, num_components: int | None = None, seed: int = 0) -> GaussianMixturePriorModel:
    """Fit a mixture of Gaussians to rows (N, D, 1, 1) by maximum likelihood.

    The fit is in units of each column's standard deviation, so that no column counts for more because of its unit.
    """
    if num_components is None:
        num_components = max(1, min(MOST_COMPONENTS, len(features) // (IMAGES_A_NUMBER * features.shape[1])))
    mean, deviation = features.mean(0, keepdim=True), features.std(0, keepdim=True).clamp(min=1e-6)
    density = fit_mixture((features - mean) / deviation, num_components, seed)
    scale = deviation.flatten().to(density.means)
    with torch.no_grad():
        density.means.mul_(scale).add_(mean.flatten().to(scale))
        density.scale_tril.mul_(scale[:, None])
    return density
