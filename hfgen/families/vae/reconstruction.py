"""Figures of reconstructions."""

from typing import Any

from torch import Tensor

from ...metrics import pixels
from ...metrics.distances import frechet_distance
from ...metrics.features import choose_features
from ...metrics.measures import Measurement


def figures(pipeline: Any, images: Tensor) -> list[Measurement]:
    """Mean squared error of a pipeline's reconstructions of images (N, C, H, W) in [-1, 1], and the Frechet distance
    between them and the images where there are built-in features for this shape and more images than features."""
    made = pipeline.reconstruct(images).cpu()
    found = [Measurement("reconstruction error, mse", pixels.reconstruction_error(images, made)["mse"], "lower")]
    try:
        network = choose_features("auto", images.shape[1], tuple(images.shape[2:]))
    except ValueError:  # none of this shape
        return found
    if len(images) > network.num_features:
        real, fake = (network.extract(x.split(250)) for x in (images, made))
        name = network.metric_name("Frechet distance of reconstructions")
        found.append(Measurement(name, frechet_distance(real, fake), "lower"))
    return found
