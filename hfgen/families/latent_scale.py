"""The scale of an autoencoder's latents, measured on training images and stated in its configuration."""

from collections.abc import Iterator
from typing import Any

import torch

from ..console.notes import tell
from ..data.images import ImageData
from ..data.summary import sample
from ..distributions.latents import Coded, coded, measured_scale, state_scale
from ..utils.pixels import from_levels
from ..utils.seeds import generator_of

MEASURED = 20_000
"""Images on which the scale is measured, at most."""

PASS = 250
"""Images that are encoded in one pass."""


def state_measured_scale(pipeline: Any, data: ImageData, seed: int) -> None:
    """Measure mean and deviation of each channel of the latents, and state them in the autoencoder's configuration.

    Latents with a constant channel have no scale: this is told, and none is stated.

    Args:
        pipeline: of an `autoencoder` with its `likelihood`.
        data: training images.
        seed: of the choice of images, and of black and white pixels of `bernoulli`.
    """
    moments = list(_moments(pipeline, data, seed))
    try:
        scale = measured_scale(moments)
    except ValueError as error:  # of a constant channel: the autoencoder is sound, but no model of its latents is
        tell(f"No scale of the latents is stated for models of them. {error}")
        return
    state_scale(pipeline.autoencoder, scale)


@torch.no_grad()
def _moments(pipeline: Any, data: ImageData, seed: int) -> Iterator[Coded]:
    generator = generator_of("latent scale", seed)
    variational = pipeline.config.get("variational", False)
    for levels in sample(data, MEASURED, seed)[0].split(PASS):
        x = pipeline.likelihood.prepare(from_levels(levels), lambda x: torch.rand(x.shape, generator=generator))
        yield coded(pipeline.autoencoder, x, variational)
