"""How good a pipeline is in few Euler steps: straightness of its trajectories, and Frechet distances to data."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...data.images import ImageData
from ...data.summary import sample
from ...metrics.distances import frechet_distance
from ...metrics.feature_network import FeatureNetwork
from ...metrics.features import BUILT_IN, choose_features
from ...metrics.straightness import straightness
from ...utils.pixels import from_levels, to_levels
from ...utils.seeds import seed_of

STEPS = (1, 2, 4, 8)
"""Euler steps that Frechet distances are measured at."""

FINE_STEPS = 32
"""Euler steps that trajectories are followed with."""


def features_for(name: str | None, shape: tuple[int, int, int]) -> FeatureNetwork | None:
    """The feature network of that name, or for images of that shape (C, H, W); None for "none", or where none fits.

    Raises:
        ValueError: no such network, or it takes other images.
    """
    if name == "none" or (name is None and tuple(shape) not in BUILT_IN.values()):
        return None
    network = choose_features(name or "auto", shape[0], shape[1:])
    network.check(torch.zeros(1, *shape))
    return network


def compare(
    before: Any,
    after: Any,
    data: ImageData,
    features: FeatureNetwork | None,
    count: int,
    guidance_scale: float,
    batch_size: int,
) -> dict[str, str]:
    """`measure` of two pipelines: prints and returns "a → b" for each figure's name."""
    print(f"Measuring few Euler steps, {count:,} samples each")
    if features is None:
        print("no feature network is named or fits these images (--features): Frechet distances are left out")
    found = []
    for pipeline in (before, after):
        pipeline.set_progress_bar_config(disable=True)
        found.append(measure(pipeline, data, features, count, guidance_scale, batch_size))
    first, then = found
    table = {f"{name}, before → after": f"{first[name]:.4g} → {then[name]:.4g}" for name in first}
    width = max(map(len, table))
    print("\n".join(f"{name:{width}}  {text}" for name, text in table.items()))
    return table


def measure(
    pipeline: Any, data: ImageData, features: FeatureNetwork | None, count: int, guidance_scale: float, batch_size: int
) -> dict[str, float]:
    """Straightness and, where there are features, Frechet distances by their names, of Euler samples.

    Noise has seeds of its own, which no coupling has; classes are those of the images compared with.

    Args:
        pipeline: a rectified flow; its scheduler is put back.
        data: what samples are compared with: as many images in the order of training.
        features: the feature network.
        count: samples of a distance; straightness is that of 512 at most.
        guidance_scale: of class-conditional samples.
        batch_size: samples at a time.
    """
    real, labels = sample(data, count)
    count = len(real)
    labels = labels.tolist() if pipeline.config.num_classes is not None and labels is not None else None
    kept = pipeline.scheduler
    pipeline.use_scheduler("euler")
    options = {"labels": labels, "guidance_scale": guidance_scale, "batch_size": batch_size}
    try:
        paths = _drawn(pipeline, min(count, 512), FINE_STEPS, trajectory=True, **options)
        found = {"straightness": float(torch.cat([straightness(path) for path in paths]).mean())}
        if features is not None:
            truth = features.extract(from_levels(chunk) for chunk in real.split(batch_size))
            for steps in STEPS:
                fake = features.extract(_drawn(pipeline, count, steps, **options))
                plural = "steps" if steps > 1 else "step"
                found[f"{features.metric_name()}, {steps} Euler {plural}"] = frechet_distance(truth, fake)
    finally:
        pipeline.scheduler = kept
    return found


def _drawn(
    pipeline: Any,
    count: int,
    steps: int,
    labels: list[int] | None,
    guidance_scale: float,
    batch_size: int,
    trajectory: bool = False,
) -> Iterator[Tensor]:
    """Batches of samples (B, C, H, W) in [-1, 1], as they would be saved; or of their trajectories, as they are."""
    for start in range(0, count, batch_size):
        numbers = range(start, min(start + batch_size, count))
        out = pipeline(
            batch_size=len(numbers),
            class_labels=None if labels is None else [labels[i] for i in numbers],
            num_inference_steps=steps,
            guidance_scale=1.0 if labels is None else guidance_scale,
            generator=[torch.Generator().manual_seed(seed_of("few steps", i)) for i in numbers],
            output_type="latent",
            return_trajectory=trajectory,
        )
        yield out.trajectory if trajectory else from_levels(to_levels(out.images))
