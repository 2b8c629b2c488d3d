"""Fit an anomaly detector to a trained autoencoder or energy of normal images."""

from typing import Any

import torch
from torch import Tensor

import hfgen

from ...models.calibration import CalibrationModel
from ...models.priors import GaussianMixturePriorModel
from ...utils.seeds import seed_of
from ..fit_mixture import fit_mixture

MAX_FITTED_IMAGES = 30_000
"""Number of images to which a density is fitted, at most."""

MAX_COMPONENTS = 64
"""Default number of Gaussians of a density, at most."""

IMAGES_PER_DIMENSION = 10
"""Number of images for each dimension of a Gaussian, at least, with the default number of Gaussians."""


def fit(
    pipeline: Any,
    normal: Tensor,
    held_out: Tensor,
    score: str = "density",
    false_alarm_rate: float = 0.001,
    num_components: int | None = None,
    num_samples: int = 8,
    seed: int = 0,
    **preparation: Any,
) -> Any:
    """Fit an AnomalyPipeline to a trained VAEPipeline, and calibrate it.

    Args:
        pipeline: the VAEPipeline.
        normal (N, C, H, W): training images, or images like them, in [-1, 1]. `density` is fitted to the first
            `MAX_FITTED_IMAGES`.
        held_out (M, C, H, W): other normal images in [-1, 1], for the threshold.
        score: see `hfgen.pipelines.anomaly.SCORES`.
        false_alarm_rate: see `CalibrationModel`.
        num_components: number of Gaussians of `density`; None: the number that the images suffice for, at most
            `MAX_COMPONENTS`.
        num_samples: latents per image for `elbo` and `likelihood`.
        seed: of the start of the fit.
        preparation: `center_crop` and `background`, see `AnomalyPipeline`.

    Raises:
        ValueError: numbers out of range, or too few images.
    """
    options = ("likelihood", "likelihood_sigma", "likelihood_components", "variational")
    options = {name: pipeline.config[name] for name in options}
    options |= {"score": score, "num_samples": num_samples, "noise_seed": seed_of("anomaly score"), **preparation}

    def detector_with(prior: Any) -> Any:
        return hfgen.AnomalyPipeline(pipeline.autoencoder, prior, CalibrationModel(), **options)

    detector = detector_with(pipeline.prior)
    if score == "density":
        features = detector.describe(normal[:MAX_FITTED_IMAGES])
        detector = detector_with(fit_density(features, num_components, seed).to(pipeline.device))
    detector.calibrate(held_out, false_alarm_rate)
    return detector


def fit_energy(pipeline: Any, held_out: Tensor, false_alarm_rate: float = 0.001, **preparation: Any) -> Any:
    """Make an EnergyAnomalyPipeline of a trained EnergyPipeline, and calibrate it. Nothing else is fitted.

    Args:
        pipeline: the EnergyPipeline.
        held_out (M, C, H, W): normal images in [-1, 1] that it was not trained on, for the threshold.
        false_alarm_rate: see `CalibrationModel`.
        preparation: `center_crop` and `background`, see `EnergyAnomalyPipeline`.

    Raises:
        ValueError: too few images, or an energy that scores no images without a class.
    """
    classes = {name: pipeline.config[name] for name in ("num_classes", "label_names")}
    detector = hfgen.EnergyAnomalyPipeline(pipeline.energy_model, CalibrationModel(), **classes, **preparation)
    detector.calibrate(held_out, false_alarm_rate)
    return detector


def fit_density(features: Tensor, num_components: int | None = None, seed: int = 0) -> GaussianMixturePriorModel:
    """Fit a mixture of Gaussians to features (N, D, 1, 1) by maximum likelihood.

    The features are divided by their standard deviations before the fit, so the result does not depend on their units.

    Args:
        features (N, D, 1, 1): one row per image.
        num_components: number of Gaussians; None: see `fit`.
        seed: of the start.
    """
    if num_components is None:
        num_components = max(1, min(MAX_COMPONENTS, len(features) // (IMAGES_PER_DIMENSION * features.shape[1])))
    mean, deviation = features.mean(0, keepdim=True), features.std(0, keepdim=True).clamp(min=1e-6)
    density = fit_mixture((features - mean) / deviation, num_components, seed)
    scale = deviation.flatten().to(density.means)
    with torch.no_grad():
        density.means.mul_(scale).add_(mean.flatten().to(scale))
        density.scale_tril.mul_(scale[:, None])
    return density
