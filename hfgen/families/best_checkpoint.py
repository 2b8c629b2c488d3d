"""Measuring while training: a number every so many steps, and the best pipeline so far kept with it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..data.images import ImageData
from ..evaluation.reference import reference_rows
from ..metrics import report, sampling
from ..metrics.feature_network import ImageSet
from ..metrics.features import choose_features
from ..metrics.measures import MEASURES, Comparison, check_counts
from ..options import SampleArgs
from .preview import Preview


class Evaluation:
    """Draws `eval_num_samples` images, always from the same noise, and measures them against as many training images.

    Each value is a row of `evaluations.jsonl`; the pipeline with the lowest is kept in `best/`, with its figure,
    protocol and step in `best/metrics.json`.

    Raises:
        ValueError: there are too few images for the metric, or no features that suit them.
    """

    def __init__(self, gallery: Preview, sample_args: SampleArgs, seed: int, data: ImageData, output: Path):
        self.gallery, self.metric, self.seed, self.data = gallery, sample_args.eval_metric, seed, data
        self.output = output
        self.count = sample_args.eval_num_samples
        self.network = choose_features(sample_args.eval_features, data.channels, data.size)
        if data.streaming:
            raise ValueError(f"--eval_steps compares with the training images, and {data.name} is streamed. Drop one.")
        self.rows = reference_rows(data, self.count)
        self.subset = min(1000, self.count)
        check_counts([self.metric], self.network, len(self.rows), self.count, 1, self.subset)
        self._real: ImageSet | None = None

    def __call__(self, pipeline: Any, step: int) -> float:
        """Measure the pipeline as it is after `step` steps, and keep it if none was better."""
        pixels, labels = self.data.pixels(self.rows)
        self.network.to(pipeline.device)
        self._real = self._real or self.network.describe(pixels)
        conditional = pipeline.config.get("num_classes") is not None
        labels = [int(labels[i % len(labels)]) for i in range(self.count)] if conditional else None
        options = dict(self.gallery.options)
        images = sampling.draw(pipeline, self.count, self.seed, class_labels=labels, options=options)
        comparison = Comparison(
            self.network, self._real, self.network.describe(images), subset_size=self.subset, repeats=0
        )
        figure = MEASURES[self.metric](comparison)[0]
        (entry,) = report.entries([figure], self.protocol(pipeline))
        self._log({"step": step, "metric": figure.metric, "value": figure.value})
        if not figure.value >= self.best(figure.metric):
            self._keep(pipeline, {"step": step, "evaluation": [entry]})
        return figure.value

    def protocol(self, pipeline: Any) -> dict[str, Any]:
        """What the figures hold for."""
        return {
            "features": self.network.name,
            "revision": self.network.revision,
            "resize": self.network.resize,
            "data": self.data.name,
            "split": "the training images",
            "real images": len(self.rows),
            "generated images": self.count,
            **sampling.sampler_facts(pipeline),
            **self.gallery.protocol,
            "seed": self.seed,
        }

    def best(self, metric: str) -> float:
        """The lowest value of the metric so far, infinity without one."""
        path = self.output / "best" / "metrics.json"
        found = json.loads(path.read_text())["evaluation"] if path.is_file() else []
        return min((entry["value"] for entry in found if entry["metric"] == metric), default=float("inf"))

    def _log(self, row: dict[str, Any]) -> None:
        """Add a row; rows from this step on, of a run that this one repeats after a resume, go."""
        path = self.output / "evaluations.jsonl"
        rows = path.read_text().splitlines() if path.is_file() else []
        kept = [old for old in rows if json.loads(old)["step"] < row["step"]]
        path.write_text("\n".join([*kept, json.dumps(row)]) + "\n")

    def _keep(self, pipeline: Any, figures: dict[str, Any]) -> None:
        """Replace `best/` as a whole."""
        part, old, best = (self.output / name for name in (".best.part", ".best.old", "best"))
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
        pipeline.save_pretrained(part)
        (part / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
        if best.exists():
            os.replace(best, old)
        os.replace(part, best)
        shutil.rmtree(old, ignore_errors=True)
