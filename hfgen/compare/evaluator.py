"""Measure every row of a comparison by one protocol: metrics of samples and of held-out images, abilities, speed."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..console.text import first_line
from ..data.images import ImageData, load_images
from ..disk.files import read_json, write_picture
from ..disk.kinds import number, optional
from ..evaluation.evaluate import comparison_protocol
from ..evaluation.options import PIPELINE_METRICS, EvaluateOptions
from ..evaluation.reference import reference_rows, reference_set
from ..evaluation.samples import PipelineSamples, nearest_panel
from ..metrics import report
from ..metrics.distances import frechet_distance, geometric_mean
from ..metrics.features import choose_features
from ..metrics.measures import Comparison, check_networks, measure_all
from ..options import DataArgs
from ..registry import SAMPLERS_BY, resolve
from ..saving import card
from ..utils import pictures
from ..utils.devices import cast
from ..utils.seeds import generator_of
from .latency import latencies
from .recipes import Configuration

SAMPLE_METRICS = ("frechet", "kernel_distance", "classifier_score", "precision_recall", "memorisation")
MIN_HELD_OUT = 1000
"""Samples are compared with held-out images if there are at least this many, else with training images."""
SHEET_SIZE, COLUMNS = 40, 8
"""Samples on a sheet, and in a row of it."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Settings that all rows share.

    Attributes:
        features: feature networks, or "auto".
        num_samples: the most samples, and the most real images they are compared with.
        num_likelihood: held-out images for bits per dimension and reconstruction.
        neighbours: k of precision, recall, density and coverage.
        bootstrap: bootstrap samples for an interval.
        seed: image i is drawn with seed + i.
        steps: numbers of steps to time, for families with a scheduler.
        batches, dtypes: batch sizes and precisions to time.
        seconds: how long a timed call is repeated.
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


def _held_out_images(args: DataArgs, training: str) -> ImageData:
    """Load the held-out images. Raises ValueError, which says how to name others."""
    try:
        return load_images(args, own=False)
    except ValueError as error:
        part = training if training.replace("_", "").isalnum() else "train"
        raise ValueError(
            f"{error} These are the held-out images: --held_out_split names others, such as '{part}[80%:]' beside "
            f"--dataset_split '{part}[:80%]'."
        ) from error


class Evaluator:
    """Measures pipelines against the same real images.

    Args:
        data_args: the data; `dataset_split` is the split that pipelines are trained on.
        held_out: the split that they are not trained on.
        protocol: the other settings.
        device: where networks run.
        cache: folder for features of real images.

    Raises:
        ValueError: a split does not exist, no feature network fits the images, or there are too few images.
    """

    def __init__(self, data_args: DataArgs, held_out: str, protocol: Protocol, device: Any, cache: str | None = None):
        self.protocol, self.device = protocol, device
        splits = {"train": data_args, "held_out": dataclasses.replace(data_args, dataset_split=held_out)}
        unseen = _held_out_images(splits["held_out"], data_args.dataset_split)  # first: it is what may be missing
        data = {"train": load_images(data_args), "held_out": unseen}
        self.training, self.held_out, self.held_out_split = data["train"], data["held_out"], held_out
        reference = "held_out" if len(self.held_out) >= MIN_HELD_OUT else "train"
        self.data, self.split = data[reference], splits[reference].dataset_split
        networks = choose_features(protocol.features, self.data.channels, self.data.size)
        self.networks = [network.to(device) for network in networks]
        self.rows = reference_rows(self.data, protocol.num_samples)
        self.held_out_rows = reference_rows(self.held_out, protocol.num_likelihood)
        count = len(self.rows)
        subset_size = min(1000, count // 2)  # subsets of all images would not differ
        check_networks(list(SAMPLE_METRICS), self.networks, count, count, protocol.neighbours, subset_size)
        sources = {"real": (self.data, protocol.num_samples)}
        sources |= {role: (images, len(images)) for role, images in data.items()}
        self.sets = [
            {role: reference_set(*source, network, cache) for role, source in sources.items()}
            for network in self.networks
        ]
        self.settings = {"neighbours": protocol.neighbours, "subset_size": subset_size}
        self.settings |= {"repeats": protocol.bootstrap, "seed": protocol.seed}

    @property
    def side(self) -> int:
        """The shorter side of an image, in pixels."""
        return min(self.data.size)

    def facts(self) -> dict[str, Any]:
        """Return the protocol as report.json states it."""
        height, width = self.data.size
        return {
            "data": self.data.name,
            "size": f"{self.data.channels} x {height} x {width}",
            "trained on": f"{len(self.training):,} images",
            "compared with": f"{len(self.rows):,} images of {self.split}",
            "held out": f"{len(self.held_out):,} images of {self.held_out_split}",
            "data fingerprint": self.data.fingerprint,
            "features": "; ".join(network.label for network in self.networks),
            "generated images": len(self.rows),
            "images for bits per dimension and reconstruction": len(self.held_out_rows),
            "seed": self.protocol.seed,
            "figures in": "float32",
        }

    def measure(self, row: Configuration, folder: Path, sheets: Path, log: Callable[[str], None]) -> dict[str, Any]:
        """Measure the pipeline in `folder`, and add the metrics to its metrics.json and its card.

        Args:
            row: the configuration that was trained.
            folder: its pipeline.
            sheets: folder for the pictures, in `samples/` and `nearest/`.
            log: prints a line.

        Returns:
            The keys of a row of report.json that do not describe the training: status, notes, parameters, figures,
            speed, abilities.
        """
        pipeline = resolve("HFGenPipeline").from_pretrained(str(folder)).to(self.device)
        pipeline.set_progress_bar_config(disable=True)
        samples = self._samples(pipeline, folder, num_inference_steps=row.steps)
        entries, notes = self._pipeline_metrics(samples)
        status, speed = "measured", []
        try:
            images = samples.draw(self.rows, 0, 1, self.networks[0].check)
        except (ValueError, RuntimeError) as error:
            status = "no samples"
            notes.append(f"draws no images: {first_line(error)}")
        else:
            entries = [*self._sample_metrics(samples, images, sheets, row), *entries]
            log("metrics are measured; measuring speed")
            speed, failures = self._speed(pipeline, row, folder)
            notes += failures
        report.write(folder / "metrics.json", entries)
        card.add_results(folder)
        keys = ("value", "interval", "deviation", "better")
        figures = {entry["metric"]: {key: entry.get(key) for key in keys} for entry in entries}
        networks = (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
        offers = {"sampling": bool(speed), **abilities(pipeline, figures)}
        return {
            "status": status,
            "notes": notes,
            "parameters": sum(p.numel() for network in networks for p in network.parameters()),
            "figures": figures,
            "speed": speed,
            "abilities": [name for name, offered in offers.items() if offered],
        }

    def _samples(self, pipeline: Any, folder: Path, **options: Any) -> PipelineSamples:
        """Return the samples that the protocol draws, with these options of `hfgen evaluate` besides."""
        counts = {"num_samples": len(self.rows), "num_likelihood": len(self.held_out_rows)}
        return PipelineSamples(
            pipeline, EvaluateOptions(str(folder), seed=self.protocol.seed, **counts, **options), self.data
        )

    def _sample_metrics(
        self, samples: PipelineSamples, images: Tensor, sheets: Path, row: Configuration
    ) -> list[dict[str, Any]]:
        """Return the entries of sample metrics; save the sheet of samples and the panel of nearest training images."""
        comparisons = [
            Comparison(network, fake=network.describe(images), **sets, **self.settings)
            for network, sets in zip(self.networks, self.sets, strict=True)
        ]
        results = measure_all(SAMPLE_METRICS, comparisons)
        name = f"{row.run}-{row.steps}.png" if row.steps else f"{row.run}.png"
        sheet, panel = sample_sheet(images[:SHEET_SIZE]), nearest_panel(comparisons[0], rows=5, columns=COLUMNS)
        for kind, picture in (("samples", sheet), ("nearest", panel)):
            write_picture(sheets / kind / name, picture)
        return [
            entry
            for each, those in results
            for entry in report.entries([each], comparison_protocol(self.data, self.split, those, samples))
        ]

    def _pipeline_metrics(self, samples: PipelineSamples) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the entries of metrics of held-out images, and a note for each that failed or is not finite."""
        entries, notes = [], []
        for metric, method in PIPELINE_METRICS.items():
            if not hasattr(samples.pipeline, method):
                continue
            # The exact trace of a small image's Jacobian takes minutes, and Hutchinson's estimate is unbiased.
            parameters = inspect.signature(getattr(samples.pipeline, method)).parameters
            arguments = {"trace": "hutchinson"} if "trace" in parameters else {}
            try:
                measurement, protocol = samples.measure(
                    metric, self.held_out, self.held_out_split, self.held_out_rows, arguments
                )
            except (ValueError, RuntimeError) as error:
                notes.append(f"no {method}: {first_line(error)}")
                continue
            if math.isfinite(measurement.value):
                entries += report.entries([measurement], protocol)
            else:
                notes.append(f"{measurement.metric} is {measurement.value}")
        return entries, notes

    def _speed(self, pipeline: Any, row: Configuration, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
        """Return speed and Frechet distances over precision, steps and batch size, and a note for each failure."""
        entries, notes = [], []
        for dtype in self.protocol.dtypes:
            cast(pipeline, dtype)
            for scheduler, steps, default in self._settings(pipeline, row):
                samples = self._samples(pipeline, folder, num_inference_steps=steps if scheduler else None, dtype=dtype)
                try:
                    images = samples.draw(self.rows, 0, 1, self.networks[0].check)
                    timings = list(self._timings(samples, self._distances(images)))
                except (ValueError, RuntimeError) as error:
                    notes.append(f"{dtype}, {steps} steps: {first_line(error)}")
                    continue
                setting = {"dtype": dtype, "steps": steps, "scheduler": scheduler}
                entries += [{**setting, **timing, "default": default and dtype == "float32"} for timing in timings]
        return entries, notes

    def _settings(self, pipeline: Any, row: Configuration) -> list[tuple[str | None, int, bool]]:
        """Return (scheduler, steps, whether these are the row's own) of each setting to time."""
        if "scheduler" not in pipeline.components:
            return [(None, 1, True)]
        name = row.options.get("scheduler") or scheduler_name(pipeline)
        default = row.steps or pipeline.scheduler.default_num_inference_steps
        counts = {default, *self.protocol.steps} if row.study == "families" else {default}
        return [(name, steps, steps == default) for steps in sorted(counts)]

    def _distances(self, images: Tensor) -> dict[str, float] | None:
        """Return the Frechet distances of images by network; None if a feature of a sample is not finite."""
        distances = {}
        for network, sets in zip(self.networks, self.sets, strict=True):
            fake = network.describe(images).features
            if not fake.isfinite().all():
                return None
            distances[network.label] = frechet_distance(sets["real"].features, fake)
        return distances

    def _timings(self, samples: PipelineSamples, distances: dict[str, float] | None) -> Iterator[dict[str, Any]]:
        """Yield an entry for each batch size."""
        quality = {"frechet": distances and geometric_mean(list(distances.values())), "distances": distances}
        call = samples.pipeline.call_with(num_inference_steps=samples.options.num_inference_steps)
        num_classes = samples.pipeline.config.get("num_classes")
        for batch in self.protocol.batches:
            generator = generator_of("timing", self.protocol.seed)
            labels = {} if num_classes is None else {"class_labels": [i % num_classes for i in range(batch)]}
            kwargs = {"batch_size": batch, "generator": generator, "output_type": "pt", **labels, **call}
            seconds = latencies(lambda kwargs=kwargs: samples.pipeline(**kwargs), self.protocol.seconds)
            rate = batch / seconds["p50"]
            times = {f"latency_{name}_ms": 1000 * value for name, value in seconds.items()}
            yield {"batch": batch, "images_per_second": rate, **times, **quality}


def training_facts(*folders: Path) -> dict[str, Any]:
    """Return the keys of a row of report.json that describe its trainings, from the metrics.json of each run.

    Their seconds are those of the steps and of what else counts as training, such as the fit of a prior. Seconds, steps
    and images are sums.
    """
    keys = {"training_seconds": "training_seconds", "training_steps": "steps", "images_seen": "images_seen"}
    keys |= {"peak_memory_mib": "peak_memory_mib"}
    kinds = {**dict.fromkeys(keys.values(), number), "fitting_seconds": optional(number)}
    paths = [folder / "metrics.json" for folder in folders]
    runs = [read_json(path, f"Remove {path}, and run the same command again.", kinds) for path in paths]
    facts = {name: sum(run[key] for run in runs) for name, key in keys.items()}
    facts["peak_memory_mib"] = max(run["peak_memory_mib"] for run in runs)
    fitting = sum(run.get("fitting_seconds") or 0.0 for run in runs)
    facts["training_seconds"] = float(f"{facts['training_seconds'] + fitting:.4g}")
    return facts


def sample_sheet(images: Tensor) -> Image.Image:
    """Return a grid of images uint8 (N, C, H, W)."""
    tiles = [Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in images]
    return pictures.grid(tiles, COLUMNS)


def abilities(pipeline: Any, figures: dict[str, Any]) -> dict[str, bool]:
    """Return what a pipeline offers besides sampling. A likelihood counts if bits per dimension were measured."""
    return {
        "likelihood": "bits per dimension" in figures,
        "reconstruction": hasattr(pipeline, "reconstruct"),
        "latent-edit": hasattr(pipeline, "encode") and hasattr(pipeline, "interpolate"),
        "class-conditional": "class_labels" in inspect.signature(type(pipeline).__call__).parameters,
    }


def scheduler_name(pipeline: Any) -> str:
    """Return the name of a pipeline's scheduler in its table of `registry.SAMPLERS_BY`."""
    table = SAMPLERS_BY[pipeline.samples_by]
    return next(name for name, (cls, _) in table.items() if cls == type(pipeline.scheduler).__name__)
