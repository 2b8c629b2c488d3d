"""Measurements of a distilled generator beside its teacher: quality and cost of an image."""

import time
from collections.abc import Sequence
from typing import Any

from ...console.progress import quiet
from ...data.images import ImageData
from ...data.summary import sample
from ...metrics.distances import frechet_distance
from ...metrics.feature_network import FeatureNetwork
from ...utils.pixels import from_levels
from .. import few_steps
from ..estimate import parameters
from ..finish import Finished
from ..preview import Preview

TIMED = 64
"""Images that are drawn to measure speed where no features are."""


class OneStepPreview(Preview):
    """Samples of one step."""

    card_options = ("method", "alpha", "last_alpha", "alpha_steps", "teacher_guidance_scale", "adversarial_weight")

    def facts(self, pipeline: Any) -> dict[str, Any]:
        """Return how the samples were drawn."""
        return {"samples above": "one evaluation of the network, fixed seeds"}


def compare(
    teacher: Any,
    student: Any,
    about: dict[str, str],
    guidance_scale: float,
    data: ImageData,
    features: Sequence[FeatureNetwork],
    count: int,
    batch_size: int,
) -> Finished:
    """Measure teacher and student, print the values, and return the student with them as rows for the card.

    Args:
        teacher: the pipeline of the teacher, in the default steps of its scheduler, one evaluation each.
        student: the pipeline that draws in one step.
        about: further rows.
        guidance_scale: of the teacher.
        data: real images; the first `count` in the order of training are compared, and the samples have their classes.
        features: the feature networks; []: no Frechet distance.
        count: samples of a distance.
        batch_size: samples at a time.
    """
    steps = teacher.scheduler.default_num_inference_steps
    real, labels = sample(data, count if features else min(count, TIMED))
    count, labels = len(real), None if teacher.config.num_classes is None else labels.tolist()
    print(f"Measuring one step, and {steps} of the teacher, {count:,} samples each")
    options = ({"num_inference_steps": steps, "guidance_scale": guidance_scale}, {})
    images, rates = [], []
    for pipeline, call in zip((teacher, student), options, strict=True):
        start = time.perf_counter()
        with quiet(pipeline):
            images.append(list(few_steps.samples_of(pipeline, count, labels, batch_size, **call)))
        rates.append(count / (time.perf_counter() - start))
    drawing = [getattr(pipeline, "generator", None) or pipeline.denoiser for pipeline in (teacher, student)]
    sizes = [parameters(network) for network in drawing]
    rows = {
        "evaluations of the network for an image, teacher → student": f"{steps} → 1",
        "parameters, teacher → student": f"{sizes[0]:,} → {sizes[1]:,}",
        "images/s, teacher → student": f"{rates[0]:.4g} → {rates[1]:.4g}",
    }
    for network in features:
        truth = network.extract(from_levels(chunk) for chunk in real.split(batch_size))
        values = [frechet_distance(truth, network.extract(iter(drawn))) for drawn in images]
        rows[f"{network.metric_name()}, teacher → student"] = f"{values[0]:.4g} → {values[1]:.4g}"
    few_steps.print_rows(rows)
    return Finished(student, {**about, **rows})
