"""Quality in few Euler steps: straightness of trajectories, and Frechet distances to data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..console.progress import quiet
from ..data.images import ImageData
from ..data.summary import sample
from ..metrics.distances import frechet_distance
from ..metrics.feature_network import FeatureNetwork
from ..metrics.features import BUILT_IN, choose_features
from ..metrics.straightness import straightness
from ..utils.pixels import from_levels, to_levels
from ..utils.seeds import generator_of
from .finish import Finished

STEPS = (1, 2, 4, 8)
"""Numbers of Euler steps at which Frechet distances are measured."""

FINE_STEPS = 32
"""Euler steps of the trajectories whose straightness is measured."""


def features_for(name: str | None, shape: tuple[int, int, int]) -> list[FeatureNetwork]:
    """Return the feature networks of that name, or for images of that shape (C, H, W); [] for "none", or if none fits.

    Raises:
        ValueError: no such network, or it takes other images.
    """
    if name == "none" or (name is None and tuple(shape) not in BUILT_IN.values()):
        return []
    networks = choose_features(name or "auto", shape[0], shape[1:])
    for network in networks:
        network.check(torch.zeros(1, *shape))
    return networks


def compare(
    before: Any | None,
    after: Any,
    data: ImageData,
    features: Sequence[FeatureNetwork],
    count: int,
    guidance_scale: float,
    batch_size: int,
) -> Finished:
    """Measure two pipelines, and print both values of each measurement.

    Args:
        before, after: the pipelines; None: nothing was before.
        data, features, count, guidance_scale, batch_size: see `measure`.

    Returns:
        `after`, with "a → b" for the name of each measurement, or "b".
    """
    print(f"Measuring few steps, {count:,} samples each")
    if not features:
        print("no feature network is named or fits these images (--features): Frechet distances are left out")
    rows = []
    for pipeline in filter(None, (before, after)):
        with quiet(pipeline):
            rows.append(measure(pipeline, data, features, count, guidance_scale, batch_size))
    order = "before → after" if len(rows) > 1 else "after"
    table = {}
    for names in zip(*rows, strict=True):  # which say Euler of a flow, and nothing of a flow map
        values = [f"{row[name]:.4g}" for row, name in zip(rows, names, strict=True)]
        table[f"{names[-1]}, {order}"] = " → ".join(values)
    print_rows(table)
    return Finished(after, table)


def print_rows(rows: Mapping[str, str]) -> None:
    """Print name and text of each row."""
    width = max(map(len, rows))
    print("\n".join(f"{name:{width}}  {text}" for name, text in rows.items()))


def measure(
    pipeline: Any,
    data: ImageData,
    features: Sequence[FeatureNetwork],
    count: int,
    guidance_scale: float,
    batch_size: int,
) -> dict[str, float]:
    """Measure samples in few steps of Euler, or of the flow map where the network is one: straightness, and Frechet
    distance at 1, 2, 4 and 8 steps by each of `features`.

    The seeds of the noise differ from those of all pairs. Classes are those of the real images.

    Args:
        pipeline: a rectified flow; its scheduler is the same afterwards.
        data: real images; the first `count` in the order of training are compared.
        features: the feature networks.
        count: samples of a distance; straightness uses 512 at most.
        guidance_scale: of class-conditional samples.
        batch_size: samples at a time.

    Returns:
        {name of the measurement: value}.
    """
    solver, word = ("flow_map", "") if pipeline.two_times else ("euler", "Euler ")
    real, labels = sample(data, count)
    count = len(real)
    labels = labels.tolist() if pipeline.config.num_classes is not None and labels is not None else None
    scheduler = pipeline.scheduler
    pipeline.use_scheduler(solver)
    options = {"guidance_scale": 1.0 if labels is None else guidance_scale}
    try:
        fine = {"num_inference_steps": FINE_STEPS, "return_trajectory": True, **options}
        outputs = outputs_of(pipeline, min(count, 512), labels, batch_size, **fine)
        values = {"straightness": float(torch.cat([straightness(each.trajectory) for each in outputs]).mean())}
        truths = [each.extract(from_levels(chunk) for chunk in real.split(batch_size)) for each in features]
        for steps in STEPS if features else ():
            images = list(samples_of(pipeline, count, labels, batch_size, num_inference_steps=steps, **options))
            plural = "steps" if steps > 1 else "step"
            for network, truth in zip(features, truths, strict=True):
                distance = frechet_distance(truth, network.extract(images))
                values[f"{network.metric_name()}, {steps} {word}{plural}"] = distance
    finally:
        pipeline.scheduler = scheduler
    return values


def outputs_of(pipeline: Any, count: int, labels: Sequence[int] | None, batch_size: int, **call: Any) -> Iterator[Any]:
    """Yield what calls of a pipeline return, from noise that no training draws.

    Args:
        pipeline: the pipeline.
        count: number of samples.
        labels: their classes; None: none.
        batch_size: samples of a call.
        call: further arguments of each; by default they return what the denoiser models.
    """
    for start in range(0, count, batch_size):
        numbers = range(start, min(start + batch_size, count))
        yield pipeline(
            batch_size=len(numbers),
            class_labels=None if labels is None else [labels[i] for i in numbers],
            generator=[generator_of("few steps", i) for i in numbers],
            **{"output_type": "latent", **call},
        )


def samples_of(
    pipeline: Any, count: int, labels: Sequence[int] | None, batch_size: int, **call: Any
) -> Iterator[Tensor]:
    """Yield batches of samples (B, C, H, W) in [-1, 1], rounded to 8 bits; arguments as those of `outputs_of`."""
    for output in outputs_of(pipeline, count, labels, batch_size, output_type="pt", **call):
        yield from_levels(to_levels(2 * output.images - 1))
