"""The collapse monitor: measures whether a generator still covers its data, and stops or rolls back if not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.images import ImageData
from ...data.partial_labels import told_labels
from ...data.summary import sample
from ...disk.kinds import count, figure, optional, text
from ...evaluation.reference import reference_rows
from ...metrics import modes, neighbours, report, sampling
from ...metrics.feature_network import FeatureNetwork, ImageSet
from ...metrics.features import BUILT_IN, choose_features
from ...metrics.measures import Measurement
from ..rollback import RollbackMonitor
from .options import HealthArgs

LEAST_DIVERSITY = 0.2
"""Diversity, as a share of that of real images, below which a generator has collapsed."""

LEAST_COVERAGE = 0.1
"""Once coverage has reached this, a value below half of the best one is a collapse."""

FIRST_STEPS = 500
"""Steps before which a first measurement of low diversity is no alarm: the generator has hardly begun."""

ADVICE = (
    "Lower --learning_rate for that; or start anew in another --output_dir with a steadier game (--r1, --r2, "
    "--gradient_penalty, --control, --n_critic) or, where data are few, --augment color,translation,cutout."
)


ROW = {
    "step": count,
    **dict.fromkeys(("recall", "coverage", "precision", "diversity"), figure),
    **dict.fromkeys(("features", "alarm"), optional(text)),
    **dict.fromkeys(("samples", "classes_covered", "classes", "rolled_back_to"), optional(count)),
}
"""What each row of `health.jsonl` holds. Older ones do not state features and samples, and are not compared."""


class PixelFeatures(nn.Module):
    """The mean of images (B, C, H, W) in each of 8 x 8 fields, (B, C 64): features if no network suits the images."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        return nn.functional.adaptive_avg_pool2d(images, 8).flatten(1) * self.scale


def features_of(name: str, data: ImageData) -> FeatureNetwork:
    """Return the first network of this name, see `choose_features`: for "auto" the built-in classifier of these images.

    Collapse is a loss of shapes and classes, which a classifier sees. If no built-in one fits: `PixelFeatures`.
    """
    if name == "auto" and (data.channels, *data.size) not in BUILT_IN.values():
        return FeatureNetwork("8 x 8 pixels", "-", PixelFeatures(), data.channels * 64, None, None)
    return choose_features(name, data.channels, data.size)[0]


def health(network: FeatureNetwork, real: ImageSet, fake: ImageSet) -> dict[str, float]:
    """Return recall, coverage and precision (`neighbours.prdc`), and diversity as a share of that of the real images.

    If the network is a classifier, also the number of classes that are covered and of all classes.
    """
    scores = neighbours.prdc(real.features, fake.features)
    diversity = neighbours.diversity(fake.features) / neighbours.diversity(real.features)
    row = {name: scores[name] for name in ("recall", "coverage", "precision")} | {"diversity": diversity}
    if network.scores:
        covered = modes.class_coverage(real.logits, fake.logits)
        row |= {"classes_covered": covered["covered"], "classes": covered["classes"]}
    return row


def alarm_of(row: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why a generator with these measurements has collapsed; None if it has not.

    Images of a generator that has hardly begun differ little as well, but more from measurement to measurement.

    Args:
        row: the newest measurement.
        before: earlier measurements without an alarm.
    """
    most, best_coverage = (max((old[name] for old in before), default=0.0) for name in ("diversity", "coverage"))
    growing = row["diversity"] > most if before else row["step"] < FIRST_STEPS
    if row["diversity"] < LEAST_DIVERSITY and not growing:
        return f"its images differ {row['diversity']:.2g} times as much as real ones, below {LEAST_DIVERSITY}"
    if best_coverage >= LEAST_COVERAGE and row["coverage"] < best_coverage / 2:
        return f"it covers {row['coverage']:.2f} of the real images, less than half of the {best_coverage:.2f} before"
    return None


class CollapseMonitor(RollbackMonitor):
    """Measures a generator every `every` steps, always from the same noise, and writes rows of `health.jsonl`.

    A row is {step, recall, coverage, precision, diversity, classes_covered, classes, features, samples, alarm}, see
    `RollbackMonitor`. Only measurements with the same features and number of samples are compared.

    Args:
        args: the options.
        features: name of the feature network, see `features_of`.
        seed: of the images, which no other command draws.
        data: the training images, some of which are compared with.
        output: folder of the run.
        advice: the end of a message that training stops.

    Raises:
        ValueError: too few images, or features that do not suit them.
    """

    subject, happened, columns = "the generator", "collapsed", ROW

    def __init__(self, args: HealthArgs, features: str, seed: int, data: ImageData, output: Path, advice: str = ADVICE):
        self.advice = advice
        super().__init__(args.health_steps, args.on_collapse, output, "health.jsonl")
        self.count, self.seed, self.data = args.health_samples, seed, data
        self._real: tuple[ImageSet, Tensor | None] | None = None
        if self.every:
            self.network = features_of(features, data)
            if not data.streaming and len(data) < 20:
                raise ValueError(f"{data.name} has {len(data)} images, too few for --health_steps. Give 0.")

    def row(self, pipeline: Any, step: int) -> dict[str, Any]:
        """Measure a pipeline; an alarm is that of `alarm_of`."""
        real, labels = self._reference(pipeline.device)
        if pipeline.config.num_classes is None or labels is None:
            labels = None
        else:
            labels = told_labels(labels, pipeline.config.num_classes)
            labels = [int(labels[i % len(labels)]) for i in range(self.count)]
        fake = self.network.describe(
            sampling.draw(pipeline, self.count, self.seed, class_labels=labels, stream="health")
        )
        setting = {"features": self.network.label, "samples": self.count}
        row = {"step": step, **health(self.network, real, fake), **setting}
        alike = [old for old in self.rows if setting.items() <= old.items() and old.get("alarm") is None]
        return {**row, "alarm": alarm_of(row, alike)}

    def line(self, row: Mapping[str, Any]) -> str:
        """Return a row as one line of text."""
        return line_of(row)

    def entries(self) -> list[dict[str, Any]]:
        """Return the last measurement with its protocol, for metrics.json and the card."""
        if not self.rows or self._real is None:
            return []
        name, row = self.network.metric_name, self.rows[-1]
        measurements = [Measurement(name(f"{key}, k = 5"), row[key], "higher") for key in ("recall", "coverage")]
        measurements.append(Measurement(name("diversity against real images"), row["diversity"], "1"))
        if "classes" in row:
            measurements.append(
                Measurement(name(f"classes covered of {row['classes']}"), row["classes_covered"], "higher")
            )
        protocol = {
            "features": self.network.name,
            "revision": self.network.revision,
            "data": self.data.name,
            "split": "the training images",
            "real images": len(self._real[0]),
            "generated images": self.count,
            "seed": f"{self.seed}, of the monitor",
        }
        return report.entries(measurements, protocol)

    def summary(self) -> str:
        """Return the number of measurements, alarms and rollbacks as a text."""
        return self.alarms()

    def _reference(self, device: torch.device) -> tuple[ImageSet, Tensor | None]:
        """Return the features of real images, and their labels."""
        self.network.to(device)
        if self._real is None:
            if self.data.streaming:
                images, labels = sample(self.data, self.count)
            else:
                images, labels = self.data.pixels(reference_rows(self.data, self.count))
            self._real = self.network.describe(images), labels
        return self._real


def line_of(row: Mapping[str, Any]) -> str:
    """Return a row as one line of text."""
    values = [f"{name} {row[name]:.2f}" for name in ("recall", "coverage", "precision", "diversity")]
    return ", ".join(values + ([f"classes {row['classes_covered']} of {row['classes']}"] if "classes" in row else []))
