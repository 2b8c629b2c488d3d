"""Measure a pipeline, or a folder of images, against a data set."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..data.images import ImageData, load_images
from ..data.training_data import DataChoice, choose_data
from ..metrics import report
from ..metrics.feature_network import FeatureNetwork, ImageSet
from ..metrics.features import choose_features
from ..metrics.measures import MEASURES, Comparison, Measurement, check_counts
from ..options import DataArgs
from ..registry import resolve
from ..saving.saved import holds_pipeline
from ..utils.console import tell
from ..utils.devices import place
from .judged import load_alike
from .options import FORMER_METRICS, METRICS, PIPELINE_METRICS, EvaluateOptions
from .reference import data_protocol, reference_rows, reference_set
from .samples import FolderSamples, PipelineSamples


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The result of `measure`.

    Attributes:
        measurements: the metrics.
        entries: the metrics with their protocol, as metrics.json holds them.
        comparison: the real images and the samples; None if no metric compares samples.
        pipeline: whose samples they are; None for a folder of images, or if no metric compares samples.
        data_args: options of the real images, as they were read.
    """

    measurements: list[Measurement]
    entries: list[dict[str, Any]]
    comparison: Comparison | None
    pipeline: Any = None
    data_args: DataArgs | None = None


def measure(options: EvaluateOptions, data_args: DataArgs | Mapping[str, Any] | None = None) -> EvaluationResult | None:
    """Measure a pipeline or a folder of images; with several processes, each draws a share of the samples.

    Args:
        options: the options.
        data_args: the real images: options of `DataArgs` by name, and for all others those that the pipeline was
            trained with; None: what it was trained on. A whole `DataArgs` gives all options.

    Returns:
        The metrics in the first process, None in the others.

    Raises:
        ValueError: options, data and pipeline do not fit together, or it is not known what the pipeline was trained on.
    """
    names = metric_names(options.metrics)
    sample_names = [name for name in names if name not in PIPELINE_METRICS]
    pipeline_names = [name for name in names if name in PIPELINE_METRICS]
    if options.dtype != "float32" and pipeline_names:
        raise ValueError(f"{', '.join(sorted(pipeline_names))}: these need --dtype float32. Measure them separately.")
    state = PartialState(cpu=options.device == "cpu")
    device = options.device or state.device
    pipeline = _pipeline(options, device)
    choice = choose_data(getattr(pipeline, "training_data", None), options.target, data_args)
    data = _real_images(choice, state)
    count = options.num_reference or options.num_samples
    rows = reference_rows(data, count)
    samples = _samples(options, choice.args, data, pipeline)
    if sample_names:
        samples.check()
    network = _network(options, sample_names, data, len(rows), samples.count, device) if sample_names else None
    for name in pipeline_names:
        samples.method(name)  # raises before anything is computed
    split, main = choice.args.dataset_split, state.is_main_process
    pipeline_metrics = [samples.measure(name, data, split, rows) for name in pipeline_names if main]
    measurements, comparison, protocol = [], None, {}
    if network is not None:
        images = samples.draw(rows, state.process_index, state.num_processes, network.check)
        if main:
            real, fake = reference_set(data, count, network, options.reference_cache), network.describe(images)
            comparison = _comparison(options, choice, sample_names, network, real, fake)
            measurements = [each for name in sample_names for each in MEASURES[name](comparison)]
            protocol = comparison_protocol(data, split, comparison, samples)
    if not main:
        return None
    entries = report.entries(measurements, protocol)
    entries += [entry for each, protocol in pipeline_metrics for entry in report.entries([each], protocol)]
    measurements += [each for each, _ in pipeline_metrics]
    return EvaluationResult(measurements, entries, comparison, pipeline if comparison else None, choice.args)


def metric_names(text: str) -> list[str]:
    """Return the names in a list that is separated by commas, each once.

    Raises:
        ValueError: a name that is not in `METRICS`, or no name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for former in dict.fromkeys(name for name in names if name in FORMER_METRICS):
        tell(f"--metrics {former} is now {FORMER_METRICS[former]}.")
    names = [FORMER_METRICS.get(name, name) for name in names]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        problem = f"{', '.join(unknown)} not known" if unknown else "no name"
        raise ValueError(f"metrics={text!r}: {problem}. Choose from {', '.join(METRICS)}.")
    return list(dict.fromkeys(names))


def _pipeline(options: EvaluateOptions, device: Any) -> Any:
    """Load the pipeline on its device; None for a folder of images, which is one without a model_index.json."""
    folder = Path(options.target)
    if folder.is_dir() and not holds_pipeline(folder):
        if options.scheduler is not None or options.num_inference_steps is not None:
            raise ValueError(
                f"{folder} is a folder of images: --scheduler and --num_inference_steps have no effect. Leave them out."
            )
        return None
    if options.target_split is not None:
        raise ValueError(f"--target_split {options.target_split} has no effect on a pipeline. Leave it out.")
    pipeline = place(resolve("HFGenPipeline").from_pretrained(options.target), device)
    if options.scheduler is not None:
        pipeline.use_scheduler(options.scheduler)
    if options.dtype != "float32":
        pipeline.to(getattr(torch, options.dtype))
    return pipeline


def _real_images(choice: DataChoice, state: PartialState) -> ImageData:
    """Load the real images, and tell where their options come from."""
    with state.main_process_first():
        data = load_images(choice.args)
    if data.streaming:
        raise ValueError(f"{data.name} is streamed, and reference images are picked by number. Drop --streaming.")
    for note in choice.check(data):
        tell(note)
    if choice.args.random_flip:
        tell("--random_flip is for training. Images are measured as they are, not mirrored.")
    return data


def _samples(
    options: EvaluateOptions, data_args: DataArgs, data: ImageData, pipeline: Any
) -> FolderSamples | PipelineSamples:
    """Return what is evaluated: samples of the pipeline, or the images of the folder if there is none.

    Raises:
        ValueError: they have another shape than the real images.
    """
    if pipeline is None:
        images, split = load_alike(options.target, options.target_split, data_args, data)
        samples = FolderSamples(images, reference_rows(images, options.num_samples), split)
        shape = images.item_shape
    else:
        samples, shape = PipelineSamples(pipeline, options, data), tuple(pipeline.sample_shape)
    if shape != data.item_shape:
        real, judged = (f"{c} channel(s) and {h} x {w} pixels" for c, h, w in (data.item_shape, shape))
        raise ValueError(
            f"The real images have {real}, not {judged} as what is judged ({options.target}). Prepare both alike: "
            "--resolution, --channels."
        )
    return samples


def _network(
    options: EvaluateOptions, names: list[str], data: ImageData, num_real: int, num_samples: int, device: Any
) -> FeatureNetwork:
    """Return the feature network on its device.

    Raises:
        ValueError: no network fits the images, a metric needs more images, or the device can't be used.
    """
    network = place(choose_features(options.features, data.channels, data.size), device)
    check_counts(names, network, num_real, num_samples, options.neighbours, options.kid_subset_size)
    return network


def _comparison(
    options: EvaluateOptions,
    choice: DataChoice,
    names: list[str],
    network: FeatureNetwork,
    real: ImageSet,
    fake: ImageSet,
) -> Comparison:
    """Return the comparison; for memorisation it holds all training images and all held-out images besides."""
    sets = {}
    for role in ("train", "held_out") if "memorisation" in names else ():
        split = getattr(options, f"{role}_split")
        known = choice.training if split is None else None  # as it was trained on, such as the first 1,000 images
        data = load_images(known or dataclasses.replace(choice.args, dataset_split=split or "train"))
        sets[role] = reference_set(data, len(data), network, options.reference_cache)
    return Comparison(
        network,
        real,
        fake,
        **sets,
        neighbours=options.neighbours,
        subset_size=options.kid_subset_size,
        repeats=options.bootstrap,
        seed=options.seed,
    )


def comparison_protocol(
    data: ImageData, split: str, comparison: Comparison, samples: FolderSamples | PipelineSamples
) -> dict[str, Any]:
    """Return the protocol of a comparison's metrics.

    Two values of a metric may be compared if their protocols agree, and one can be reproduced from its protocol.
    """
    network = comparison.network
    return {
        "features": network.name,
        "revision": network.revision,
        "resize": network.resize,
        **data_protocol(data, split),
        "real images": len(comparison.real),
        "generated images": len(comparison.fake),
        **samples.protocol(),
    }
