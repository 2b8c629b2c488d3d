"""Measurements during training: a distance every `eval_steps` steps, and the best pipeline so far."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.batches import Items
from ..data.partial_labels import told_labels
from ..disk.files import OptionalWrites, read_json, read_rows, write_json, write_rows
from ..disk.kinds import count, entry, listed, number, optional, text
from ..evaluation.options import FORMER_METRICS
from ..evaluation.reference import matching_labels, reference_rows
from ..metrics import report, sampling
from ..metrics.feature_network import ImageSet, network_facts
from ..metrics.features import choose_features
from ..metrics.measures import Comparison, check_networks, measure_all
from ..options import SampleArgs
from .adaptation import save_trained
from .callbacks import Callback, MakePipeline
from .preview import Preview

BEST = {"evaluation": optional(listed(entry({"metric": text, "value": number}, frozenset({"metric", "value"}))))}
"""What `best/metrics.json` holds."""

ROW = {"step": count}
"""What each row of `evaluations.jsonl` holds."""


class Evaluation(Callback):
    """A callback that compares `eval_num_samples` images, always from the same noise, with training images.

    Each value is a row of `evaluations.jsonl`. The pipeline with the lowest value is saved in `best/`, with its value,
    protocol and step in `best/metrics.json`.

    Args:
        pipeline: networks -> pipeline.
        preview: has the options of the call, and entries of the protocol.
        sample_args: the options.
        seed: of the images, which no other command draws.
        data: the training images.
        output: folder of the run.

    Raises:
        ValueError: data without images, a stream, too few images for the metric, no features for their shape, or a file
            of earlier values that is damaged.
    """

    def __init__(
        self,
        pipeline: MakePipeline,
        preview: Preview,
        sample_args: SampleArgs,
        seed: int,
        data: Items,
        output: Path,
    ):
        super().__init__(sample_args.eval_steps)
        if data.unit != "images" or not (data.streaming or data.read(torch.tensor([0]))["x"].dtype == torch.uint8):
            raise ValueError(f"eval_steps={self.every} measures 8-bit images, and {data.name} holds others. Give 0.")
        self.pipeline, self.preview = pipeline, preview
        self.metric = FORMER_METRICS.get(sample_args.eval_metric, sample_args.eval_metric)
        self.seed, self.data, self.output = seed, data, output
        self.count = sample_args.eval_num_samples
        channels, *size = data.item_shape
        self.networks = choose_features(sample_args.eval_features, channels, tuple(size))
        if data.streaming:
            raise ValueError(
                f"--eval_steps compares with the training images, and {data.name} is streamed. Give --eval_steps 0."
            )
        self.rows = reference_rows(data, self.count)
        self.subset = min(1000, self.count)
        check_networks([self.metric], self.networks, len(self.rows), self.count, 1, self.subset)
        self._real: list[ImageSet] = []
        self._optional = OptionalWrites()
        self.writes = f"{output}/best"
        self._entries()  # files of another kind are an error before the training
        read_rows(output / "evaluations.jsonl", ROW)

    def __call__(self, networks: dict[str, Any], step: int) -> None:
        """Measure the pipeline of these networks after `step` steps, and save it if it is the best so far."""
        self.measure(self.pipeline(networks), step)

    def at_end(self, networks: dict[str, Any], step: int) -> None:
        """Measure the finished pipeline."""
        self.measure(self.pipeline(networks), step)

    def measure(self, pipeline: Any, step: int) -> float:
        """Measure a pipeline after `step` steps, save it if it is the best so far, and return the value.

        With several feature networks, the value is the geometric mean of their Frechet distances. Of kernel distances,
        which may be below 0, it is that of the first network.
        """
        real = self.data.read(self.rows)
        for network in self.networks:
            network.to(pipeline.device)
        self._real = self._real or [network.describe(real["x"]) for network in self.networks]
        classes = pipeline.config.get("num_classes")
        labels = None if classes is None else matching_labels(told_labels(real["labels"], classes), self.count)
        options = dict(self.preview.call_options)
        images = sampling.draw(
            pipeline, self.count, self.seed, class_labels=labels, options=options, stream="validation"
        )
        comparisons = [
            Comparison(network, real, network.describe(images), subset_size=self.subset, repeats=0)
            for network, real in zip(self.networks, self._real, strict=True)
        ]
        results = measure_all([self.metric], comparisons)
        deciding = results[-1 if self.metric == "frechet" else 0][0]
        entries = [entry for each, those in results for entry in report.entries([each], self.protocol(pipeline, those))]
        with self._optional(str(self.output / "evaluations.jsonl")):
            values = {each.metric: each.value for each, _ in results}
            self._log({"step": step, "metric": deciding.metric, "value": deciding.value, "values": values})
        if not deciding.value >= self.best(deciding.metric):
            self._save_best(pipeline, {"step": step, "evaluation": entries})
        return deciding.value

    def protocol(self, pipeline: Any, comparisons: Sequence[Comparison]) -> dict[str, Any]:
        """Return the protocol of a value of these comparisons."""
        return {
            **network_facts([each.network for each in comparisons]),
            "data": self.data.name,
            "split": "the training images",
            "real images": len(self.rows),
            "generated images": self.count,
            **sampling.sampler_facts(pipeline),
            **self.preview.protocol,
            "seed": f"{self.seed}, of validation",
        }

    def best(self, metric: str) -> float:
        """Return the lowest value of the metric so far; infinity if there is none."""
        path, old = self.output / "best" / "metrics.json", self.output / ".best.old"
        if old.is_dir() and not path.parent.exists():  # a process was killed between the two renames
            os.replace(old, path.parent)
        return min((row["value"] for row in self._entries() if row["metric"] == metric), default=float("inf"))

    def _entries(self) -> list[dict[str, Any]]:
        """Return the measurements of the best pipeline so far. Raises DamagedFileError for another file."""
        path = self.output / "best" / "metrics.json"
        remedy = f"Remove {path.parent}, and run the same command again."
        return read_json(path, remedy, BEST).get("evaluation") or [] if path.exists() else []

    def _log(self, row: dict[str, Any]) -> None:
        """Append a row, after removing rows of this step and later steps, which a resumed run repeats."""
        path = self.output / "evaluations.jsonl"
        write_rows(path, [*(old for old in read_rows(path, ROW) if old["step"] < row["step"]), row])

    def _save_best(self, pipeline: Any, metrics: dict[str, Any]) -> None:
        """Replace the folder `best/`."""
        part, old, best = (self.output / name for name in (".best.part", ".best.old", "best"))
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
        save_trained(pipeline, part)
        write_json(part / "metrics.json", metrics)
        if best.exists():
            os.replace(best, old)
        try:
            os.replace(part, best)
        except OSError:
            if old.exists():
                os.replace(old, best)
            raise
        shutil.rmtree(old, ignore_errors=True)
