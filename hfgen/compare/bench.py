"""One protocol for all rows of a comparison: figures of samples, of real images, of what a training cost, and speed."""

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hfgen

from ..data.batches import load_images
from ..evaluation.evaluate import EvaluateOptions, protocol_of, reference, rows_of
from ..evaluation.subjects import PipelineSamples, panel
from ..metrics import report
from ..metrics.distances import frechet_distance
from ..metrics.feature_network import FeatureNetwork, ImageSet
from ..metrics.features import choose_features
from ..metrics.measures import MEASURES, Comparison, check_counts
from ..options import DataArgs
from ..registry import SAMPLERS
from ..saving import card
from ..utils import pictures
from .latency import latencies
from .recipes import Configuration

OF_SAMPLES = ("frechet", "kid", "is", "prdc", "memorisation")
OF_IMAGES = (("bpd", "bits_per_dim"), ("reconstruction", "reconstruct"))
"""Figures that pipelines themselves compute of held-out images, and the method."""
ENOUGH = 1000
"""Held-out images from which on samples are compared with them; with the training images where there are fewer."""
SHOWN = 40
"""Samples on a sheet, in rows of `COLUMNS`."""
COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What all rows share.

    Attributes:
        features: feature network, or "auto".
        num_samples: images drawn, and real ones they are compared with, at most.
        num_likelihood: held-out images for bits per dimension and reconstruction.
        neighbours: k of precision, recall, density and coverage.
        bootstrap: repeats behind intervals.
        seed: image i is drawn with seed + i.
        steps: numbers of steps to time, of families that draw in steps.
        batches, dtypes: batch sizes and precisions to time.
        seconds: for which a call is repeated, at least.
    """

    features: str
    num_samples: int
    num_likelihood: int
    neighbours: int
    bootstrap: int
    seed: int
    steps: tuple[int, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    seconds: float


class Evaluator:
    """Measures pipelines against the same real images.

    Args:
        data_args: the data, `dataset_split` being what is trained on.
        held_out: the split that is not.
        protocol: the rest.
        device: for networks.
        cache: folder for features of real images.

    Raises:
        ValueError: no such split, no features suit the images, or too few images.
    """

    def __init__(self, data_args: DataArgs, held_out: str, protocol: Protocol, device: Any, cache: str | None = None):
        self.protocol, self.device = protocol, device
        splits = {"train": data_args, "held_out": dataclasses.replace(data_args, dataset_split=held_out)}
        data = {role: load_images(args) for role, args in splits.items()}
        self.role = "held_out" if len(data["held_out"]) >= ENOUGH else "train"
        self.data_args, self.data, self.held_out = splits[self.role], data[self.role], data["held_out"]
        self.held_out_split, self.training = held_out, data["train"]
        self.network: FeatureNetwork = choose_features(protocol.features, self.data.channels, self.data.size).to(device)
        self.rows = rows_of(self.data, protocol.num_samples)
        self.held_out_rows = rows_of(self.held_out, protocol.num_likelihood)
        self.subset_size = min(1000, len(self.rows) // 2)  # whole sets would have no spread
        check_counts(
            *(list(OF_SAMPLES), self.network, len(self.rows), len(self.rows), protocol.neighbours, self.subset_size)
        )
        self.real = reference(self.data, self.rows, self.network, cache)
        every = {role: reference(part, rows_of(part, len(part)), self.network, cache) for role, part in data.items()}
        self.shared = {**every, "neighbours": protocol.neighbours, "subset_size": self.subset_size}
        self.shared |= {"repeats": protocol.bootstrap, "seed": protocol.seed}

    @property
    def side(self) -> int:
        """The shorter side of an image."""
        return min(self.data.size)

    def facts(self) -> dict[str, Any]:
        """The protocol in words and numbers."""
        height, width = self.data.size
        return {
            "data": self.data.name,
            "size": f"{self.data.channels} x {height} x {width}",
            "trained on": f"{len(self.training):,} images",
            "compared with": f"{len(self.rows):,} images of {self.data_args.dataset_split}",
            "held out": f"{len(self.held_out):,} images of {self.held_out_split}",
            "data fingerprint": self.data.fingerprint,
            "features": self.network.label,
            "generated images": len(self.rows),
            "images for bits per dimension and reconstruction": len(self.held_out_rows),
            "seed": self.protocol.seed,
            "figures in": "float32",
        }

    def options(self, folder: Path, **changed: Any) -> EvaluateOptions:
        """Options of `hfgen evaluate` that draw this bench's samples."""
        given = {"num_samples": len(self.rows), "num_likelihood": len(self.held_out_rows), "seed": self.protocol.seed}
        return EvaluateOptions(str(folder), **given, **changed)

    def measure(self, row: Configuration, folder: Path, sheets: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """What report.json says of the pipeline in `folder` beyond its training: status, notes, figures, speed,
        abilities. Figures are added to its metrics.json and its card; pictures go to `sheets`."""
        pipeline = hfgen.HFGenPipeline.from_pretrained(str(folder)).to(self.device)
        pipeline.set_progress_bar_config(disable=True)
        drawn = PipelineSamples(pipeline, self.options(folder, steps=row.steps), self.data)
        found, notes = self._of_images(drawn)
        status, speed = "measured", []
        try:
            images = drawn.draw(self.rows, 0, 1, self.network.check)
        except (ValueError, RuntimeError) as error:
            status = "no samples"
            notes.append(f"draws no images: {_first_line(error)}")
        else:
            found = [*self._of_samples(drawn, images, sheets, row), *found]
            say("figures are measured; speed")
            speed, slow = self._speed(pipeline, row, folder)
            notes += slow
        report.write(folder / "metrics.json", found)
        card.add_results(folder)
        keys = ("value", "interval", "deviation", "better")
        figures = {entry["metric"]: {key: entry.get(key) for key in keys} for entry in found}
        own = {**({"sampling": True} if speed else {}), **abilities(pipeline, figures)}
        parts = (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
        return {
            "status": status,
            "notes": notes,
            "parameters": sum(p.numel() for part in parts for p in part.parameters()),
            "figures": figures,
            "speed": speed,
            "abilities": [name for name, can in own.items() if can],
        }

    def _of_samples(
        self, drawn: PipelineSamples, images: Tensor, sheets: Path, row: Configuration
    ) -> list[dict[str, Any]]:
        """Figures of samples, with their sheet and the panel of nearest training images."""
        comparison = Comparison(self.network, self.real, self.network.describe(images), **self.shared)
        figures = [figure for name in OF_SAMPLES for figure in MEASURES[name](comparison)]
        name = f"{row.run}-{row.steps}.png" if row.steps else f"{row.run}.png"
        sheet = sheet_of(images[:SHOWN])
        for kind, picture in (("samples", sheet), ("nearest", panel(comparison, rows=5, columns=COLUMNS))):
            (sheets / kind).mkdir(parents=True, exist_ok=True)
            picture.save(sheets / kind / name)
        protocol = protocol_of(drawn.options, self.data_args, self.data, self.network, comparison, drawn)
        return report.entries(figures, protocol)

    def _of_images(self, drawn: PipelineSamples) -> tuple[list[dict[str, Any]], list[str]]:
        """Figures of held-out images, and why some can't be had."""
        found, notes = [], []
        for metric, method in OF_IMAGES:
            if not hasattr(drawn.pipeline, method):
                continue
            given = (metric, method, self.held_out, self.held_out_split, self.held_out_rows)
            parameters = inspect.signature(getattr(drawn.pipeline, method)).parameters
            # The exact trace of a small image's Jacobian takes minutes, and its estimate is unbiased.
            changed = {"trace": "hutchinson"} if "trace" in parameters else {}
            try:
                figure, protocol = drawn.figure(*given, changed)
            except (ValueError, RuntimeError) as error:
                notes.append(f"no {method}: {_first_line(error)}")
                continue
            if math.isfinite(figure.value):
                found += report.entries([figure], protocol)
            else:
                notes.append(f"{figure.metric} is {figure.value}")
        return found, notes

    def _speed(self, pipeline: Any, row: Configuration, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
        """Speed and Frechet distance over precision, steps and batch; and what could not be run."""
        found, notes = [], []
        for dtype in self.protocol.dtypes:
            pipeline.to(getattr(torch, dtype))
            for scheduler, steps, default in self._settings(pipeline, row):
                drawn = PipelineSamples(
                    pipeline, self.options(folder, steps=steps if scheduler else None, dtype=dtype), self.data
                )
                try:
                    fake = self.network.describe(drawn.draw(self.rows, 0, 1, self.network.check))
                    entries = [*self._timed(drawn, self._distance(fake))]
                except (ValueError, RuntimeError) as error:
                    notes.append(f"{dtype}, {steps} steps: {_first_line(error)}")
                    continue
                about = {"dtype": dtype, "steps": steps, "scheduler": scheduler}
                found += [{**about, **entry, "default": default and dtype == "float32"} for entry in entries]
        return found, notes

    def _settings(self, pipeline: Any, row: Configuration) -> list[tuple[str | None, int, bool]]:
        """(scheduler, steps, whether it is the default) of each setting to time."""
        if "scheduler" not in pipeline.components:
            return [(None, 1, True)]
        name = row.options.get("scheduler") or scheduler_of(pipeline)
        default = row.steps or pipeline.scheduler.default_num_inference_steps
        counts = {default, *self.protocol.steps} if row.study == "families" else {default}
        return [(name, steps, steps == default) for steps in sorted(counts)]

    def _distance(self, fake: ImageSet) -> float | None:
        """Frechet distance; None where samples are not finite enough to have one."""
        if not fake.features.isfinite().all():
            return None
        return frechet_distance(self.real.features, fake.features)

    def _timed(self, drawn: PipelineSamples, distance: float | None) -> Iterator[dict[str, Any]]:
        """An entry for each batch size."""
        call = drawn.pipeline.call_with(num_inference_steps=drawn.options.steps)
        for batch in self.protocol.batches:
            generator = torch.Generator().manual_seed(self.protocol.seed)
            classes = drawn.pipeline.config.get("num_classes")
            labels = {} if classes is None else {"class_labels": [i % classes for i in range(batch)]}
            given = {"batch_size": batch, "generator": generator, "output_type": "pt", **labels, **call}
            found = latencies(lambda given=given: drawn.pipeline(**given), self.protocol.seconds)
            rate = batch / found["p50"]
            times = {f"latency_{name}_ms": 1000 * value for name, value in found.items()}
            yield {"batch": batch, "images_per_second": rate, **times, "frechet": distance}


def trained(folder: Path) -> dict[str, Any]:
    """What report.json says of a training, from the metrics.json that it left."""
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    names = {"training_seconds": "training_seconds", "training_steps": "steps", "images_seen": "images_seen"}
    return {name: figures[key] for name, key in (names | {"peak_memory_mib": "peak_memory_mib"}).items()}


def sheet_of(images: Tensor) -> Any:
    """A grid of images uint8 (N, C, H, W)."""
    from PIL import Image

    tiles = [Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in images]
    return pictures.grid(tiles, COLUMNS)


def abilities(pipeline: Any, figures: dict[str, Any]) -> dict[str, bool]:
    """What a pipeline can do beside drawing. A likelihood counts where bits per dimension came out."""
    return {
        "likelihood": "bits per dimension" in figures,
        "reconstruction": hasattr(pipeline, "reconstruct"),
        "latent-edit": hasattr(pipeline, "encode") and hasattr(pipeline, "interpolate"),
        "class-conditional": "class_labels" in inspect.signature(type(pipeline).__call__).parameters,
    }


def scheduler_of(pipeline: Any) -> str:
    """What `hfgen.registry.SAMPLERS` calls the scheduler of a pipeline."""
    return next(name for name, (cls, _) in SAMPLERS.items() if cls == type(pipeline.scheduler).__name__)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
