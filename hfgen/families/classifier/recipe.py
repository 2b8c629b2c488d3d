"""The recipe of a classifier of noisy images: network, and its accuracy at levels of noise."""

from typing import Any

import torch

import hfgen

from ...data.summary import sample
from ...paths import path_from_config
from ...registry import PATHS
from ...utils.pixels import from_levels
from ...utils.seeds import generator_of
from ..finish import Finished

WIDTHS = {"xs": (16, 32, 64), "s": (32, 64, 128), "m": (64, 128, 256)}
"""Size -> widths of the levels."""

SHOWN_TIMES = (0.1, 0.3, 0.5, 0.7)
"""Times on the path at which the accuracy is stated."""

SHOWN_IMAGES = 1000


def build(data: Any, size: str) -> Any:
    """Return the classifier for images of these data. Raises ValueError if they have no classes."""
    if data.num_classes is None:
        raise ValueError(f"{data.name} has no labels, which a classifier needs; name them: --label_column.")
    patch = 2 if min(data.size) >= 16 else 1
    side = data.resolution
    return hfgen.NoisyClassifierModel(side, data.channels, data.num_classes, patch, WIDTHS[size])


def measure(pipeline: Any, data: Any, path_name: str, noise: bool) -> Finished:
    """Return the pipeline with its accuracy on the first images of the training, at levels of noise."""
    path = path_from_config(PATHS[path_name])
    images, labels = sample(data, SHOWN_IMAGES)
    x, facts = from_levels(images), {}
    eps = torch.randn(x.shape, generator=generator_of("classifier", 0))
    for time in SHOWN_TIMES if noise else (0.0,):
        t = path.snap(torch.tensor(time, dtype=torch.float64))
        noisy = path.mix(x, eps, t) if noise else x
        step = float(path.timestep(t))
        parts = [pipeline(part, step)[0].argmax(1).cpu() for part in noisy.split(250)]
        share = float((torch.cat(parts) == labels).float().mean())
        facts[f"accuracy at t = {time:g}, {len(x):,} training images"] = f"{share:.3f}"
    for name, value in facts.items():
        print(f"{name}: {value}")
    return Finished(pipeline, facts)
