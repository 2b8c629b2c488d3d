"""The measurements of a masked autoencoder: its error on hidden patches, and a linear probe of its features."""

from typing import Any

import torch

from ...data.summary import sample
from ...metrics import report
from ...metrics.measures import Measurement, mean_measurement
from ...metrics.probe import linear_probe
from ...utils.pixels import from_levels
from ..finish import Finished
from ..vae.evaluation import HeldOut
from .options import ProbeArgs

SEED = 0
"""Of the masks of the images that are measured."""


def complete(pipeline: Any, data: Any, held_out: HeldOut, args: ProbeArgs) -> Finished:
    """Measure a trained masked autoencoder on held-out images, and print the measurements.

    Args:
        pipeline: the `MAEPipeline`.
        data: the training images.
        held_out: the images to measure.
        args: the options.
    """
    print(f"Measuring {held_out}", flush=True)
    facts = {**held_out.facts, "hidden share": pipeline.config.mask_ratio}
    found = report.entries([hidden_error(pipeline, held_out)], {**facts, "seed of masks": SEED})
    probe = probe_accuracy(pipeline, data, held_out, args.num_probe)
    if probe is not None:
        accuracy, count = probe
        found += report.entries([accuracy], {**held_out.facts, "training images of the probe": count})
    for entry in found:
        print(f"{entry['metric']}: {entry['value']:.4g}")
    return Finished(pipeline, evaluation=found)


def hidden_error(pipeline: Any, held_out: HeldOut) -> Measurement:
    """Return the mean squared error of predictions on the hidden pixels of held-out images in [-1, 1]."""
    images = held_out.images
    made = pipeline.reconstruct(images, seed=SEED).cpu()
    hidden = pipeline.mask(len(images), seed=SEED).expand_as(images)
    error = (made - images).square()[hidden].view(len(images), -1).mean(1)  # each image has as many hidden pixels
    name = "squared error of hidden pixels"
    return mean_measurement(f"{name}, moments known" if pipeline.config.normalised_targets else name, error, "lower")


def probe_accuracy(pipeline: Any, data: Any, held_out: HeldOut, most: int) -> tuple[Measurement, int] | None:
    """Return the accuracy of a linear probe on held-out images, and the number of training images that it is fitted to.

    None: one of both has no labels, or the training images have one class alone.
    """
    if held_out.labels is None or data.num_classes is None:
        return None
    levels, labels = sample(data, most)
    if labels is None or len(labels.unique()) < 2 or len(labels) < 10:
        return None
    features = pipeline.encode(from_levels(levels)).cpu(), pipeline.encode(held_out.images).cpu()
    with torch.no_grad():
        result = linear_probe(features[0], labels, features[1], held_out.labels)
    return mean_measurement("accuracy of a linear probe", result.right.double(), "higher"), len(labels)
