"""Measure a pipeline, or a folder of images, against a data set."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from ..console.notes import tell
from ..data.images import ImageData, load_images
from ..data.summary import UNFLIPPED
from ..data.training_data import DataChoice, choose_data
from ..metrics import report
from ..metrics.feature_network import FeatureNetwork, network_facts
from ..metrics.features import choose_features
from ..metrics.measures import FEATURELESS, Comparison, Measurement, check_networks, measure_all
from ..metrics.names import NO_FEATURES
from ..options import DataArgs
from ..registry import resolve
from ..saving.saved import holds_pipeline, refuse_adapter
from ..utils.adapters import use_adapters
from ..utils.devices import cast, place
from ..utils.drawing import check_draws
from .guides import Guides, load_guides
from .judged import load_alike
from .options import FORMER_METRICS, METRICS, PIPELINE_METRICS, EvaluateOptions, GuideOptions
from .reference import data_protocol, reference_rows, reference_set, refuse_training_images
from .samples import NO_SAMPLES, FolderSamples, PipelineSamples


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The result of `measure`.

    Attributes:
        measurements: the metrics.
        entries: the metrics with their protocol, as metrics.json holds them.
        comparisons: the real images and the samples, by each feature network; none if no metric compares samples.
        pipeline: whose samples they are; None for a folder of images, or if no metric compares samples.
        data_args: options of the real images, as they were read.
    """

    measurements: list[Measurement]
    entries: list[dict[str, Any]]
    comparisons: list[Comparison]
    pipeline: Any = None
    data_args: DataArgs | None = None


def measure(
    options: EvaluateOptions,
    data_args: DataArgs | Mapping[str, Any] | None = None,
    guide_options: GuideOptions | None = None,
) -> EvaluationResult | None:
    """Measure a pipeline or a folder of images; with several processes, each draws a share of the samples.

    Args:
        options: the options.
        data_args: the real images: options of `DataArgs` by name, and for all others those that the pipeline was
            trained with; None: what it was trained on. A whole `DataArgs` gives all options.
        guide_options: guides of the pipeline; None: there are none.

    Returns:
        The metrics in the first process, None in the others.

    Raises:
        ValueError: options, data and pipeline do not fit together, or it is not known what the pipeline was trained on.
    """
    names, sample_names, pipeline_names = _names(options)
    state = PartialState(cpu=options.device == "cpu")
    device = options.device or state.device
    pipeline = _pipeline(options, device)
    if pipeline is not None and sample_names:
        check_draws(pipeline, NO_SAMPLES)
    guides = _guides(guide_options, options, pipeline, device)
    choice = choose_data(getattr(pipeline, "training_data", None), options.target, data_args)
    data = _real_images(choice, state)
    count = options.num_reference or options.num_samples
    rows = reference_rows(data, count)
    samples = _samples(options, choice.args, data, pipeline, guides)
    refuse_training_images(choice, data, rows)
    if sample_names:
        samples.check()
    if not set(sample_names) - set(FEATURELESS) and options.features not in ("auto", NO_FEATURES):
        tell(f"--features {options.features} has no effect: {', '.join(names)} use none.")
    networks = _networks(options, sample_names, data, len(rows), samples.count, device) if sample_names else []
    for name in pipeline_names:
        samples.method(name)  # raises before anything is computed
    split, main = choice.args.dataset_split, state.is_main_process
    pipeline_metrics = [samples.measure(name, data, split, rows) for name in pipeline_names if main]
    comparisons, results = [], []
    if networks:
        labels = _class_labels(sample_names, networks, samples, data, rows)
        images = samples.draw(rows, state.process_index, state.num_processes, networks[0].check)
        if main:
            sources = {"real": (data, count), **_memorised(options, choice, sample_names)}
            comparisons = [_comparison(options, sources, each, images, labels) for each in networks]
            results = [
                (measurement, comparison_protocol(data, split, those, samples))
                for measurement, those in measure_all(sample_names, comparisons)
            ]
    if not main:
        return None
    results += pipeline_metrics
    entries = [entry for each, protocol in results for entry in report.entries([each], protocol)]
    drawn = pipeline if comparisons else None
    return EvaluationResult([each for each, _ in results], entries, comparisons, drawn, choice.args)


def _names(options: EvaluateOptions) -> tuple[list[str], list[str], list[str]]:
    """Return the names of all metrics, of those of samples, and of those of `PIPELINE_METRICS`."""
    names = metric_names(options.metrics)
    of_pipelines = [name for name in names if name in PIPELINE_METRICS]
    if options.dtype != "float32" and of_pipelines:
        raise ValueError(f"{', '.join(sorted(of_pipelines))}: these need --dtype float32. Measure them separately.")
    return names, [name for name in names if name not in PIPELINE_METRICS], of_pipelines


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
        refuse_adapter(folder)
        if options.lora is not None:
            raise ValueError(f"{folder} is a folder of images: --lora {options.lora} has no effect. Leave it out.")
        if options.scheduler is not None or options.num_inference_steps is not None:
            raise ValueError(
                f"{folder} is a folder of images: --scheduler and --num_inference_steps have no effect. Leave them out."
            )
        return None
    if options.target_split is not None:
        raise ValueError(f"--target_split {options.target_split} has no effect on a pipeline. Leave it out.")
    pipeline = resolve("HFGenPipeline").from_pretrained(options.target)
    use_adapters(pipeline, options.lora)
    pipeline = place(pipeline, device)
    if options.scheduler is not None:
        pipeline.use_scheduler(options.scheduler)
    if options.dtype != "float32":
        cast(pipeline, options.dtype)
    return pipeline


def _real_images(choice: DataChoice, state: PartialState) -> ImageData:
    """Load the real images, and tell where their options come from."""
    with state.main_process_first():
        data = load_images(choice.args, own=choice.own)
    if data.streaming:
        raise ValueError(f"{data.name} is streamed, and reference images are picked by number. Drop --streaming.")
    for note in choice.check(data):
        tell(note)
    if choice.args.random_flip:
        tell(UNFLIPPED)
    return data


def _guides(guide_options: GuideOptions | None, options: EvaluateOptions, pipeline: Any, device: Any) -> Guides | None:
    """Load the guides of the pipeline; None if no options name any."""
    if guide_options is None or guide_options == GuideOptions():
        return None
    if pipeline is None:
        raise ValueError(f"{options.target} is a folder of images, which nothing guides. Leave guides out.")
    return load_guides(guide_options, pipeline, device, options.dtype)


def _samples(
    options: EvaluateOptions, data_args: DataArgs, data: ImageData, pipeline: Any, guides: Guides | None
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
        samples, shape = PipelineSamples(pipeline, options, data, guides), tuple(pipeline.sample_shape)
    if shape != data.item_shape:
        real, judged = (f"{c} channel(s) and {h} x {w} pixels" for c, h, w in (data.item_shape, shape))
        raise ValueError(
            f"The real images have {real}, not {judged} as what is judged ({options.target}). Prepare both alike: "
            "--resolution, --channels."
        )
    return samples


def _networks(
    options: EvaluateOptions, names: list[str], data: ImageData, num_real: int, num_samples: int, device: Any
) -> list[FeatureNetwork]:
    """Return the feature networks on their device.

    Raises:
        ValueError: no network fits the images, a metric needs more images, or the device can't be used.
    """
    features = options.features if set(names) - set(FEATURELESS) else NO_FEATURES
    networks = [place(each, device) for each in choose_features(features, data.channels, data.size)]
    for network in networks:
        network.check(torch.zeros(1, *data.item_shape))
    check_networks(names, networks, num_real, num_samples, options.neighbours, options.kid_subset_size)
    return networks


def _memorised(options: EvaluateOptions, choice: DataChoice, names: list[str]) -> dict[str, tuple[ImageData, int]]:
    """Return all training images and all held-out images with their numbers; {} without the metric memorisation."""
    sources = {}
    for role in ("train", "held_out") if "memorisation" in names else ():
        split = getattr(options, f"{role}_split")
        known = choice.training if split is None else None  # as it was trained on, such as the first 1,000 images
        part = known or dataclasses.replace(choice.args, dataset_split=split or "train")
        data = load_images(part, own=False)
        sources[role] = (data, len(data))
    return sources


def _class_labels(
    names: list[str],
    networks: list[FeatureNetwork],
    samples: FolderSamples | PipelineSamples,
    data: ImageData,
    rows: Tensor,
) -> dict[str, Tensor]:
    """Return the classes of the real images (N,) and those that samples are asked for (M,), as "real" and "fake"; {}
    without the metric class_agreement.

    Raises:
        ValueError: there are no classes, or a network tells others apart.
    """
    labels = {}
    for network in networks if "class_agreement" in names else ():
        if network.scores:
            labels = samples.classes_asked_for(rows, network.count_classes(data.pixels(rows[:1])[0]))
    return labels


def _comparison(
    options: EvaluateOptions,
    sources: Mapping[str, tuple[ImageData, int]],
    network: FeatureNetwork,
    images: Tensor,
    labels: Mapping[str, Tensor],
) -> Comparison:
    """Return the comparison of images uint8 (N, C, H, W) with real ones by one network.

    Args:
        options: the options.
        sources: sets of real images by their names in `Comparison`: data, and how many of them.
        network: the feature network.
        images: the images to judge.
        labels: classes by the names of sets in `Comparison`, where a metric needs them.
    """
    sets = {role: reference_set(*source, network, options.reference_cache) for role, source in sources.items()}
    sets["fake"] = network.describe(images)
    sets |= {role: dataclasses.replace(sets[role], labels=each) for role, each in labels.items()}
    return Comparison(
        network,
        **sets,
        neighbours=options.neighbours,
        subset_size=options.kid_subset_size,
        repeats=options.bootstrap,
        seed=options.seed,
    )


def comparison_protocol(
    data: ImageData, split: str, comparisons: Sequence[Comparison], samples: FolderSamples | PipelineSamples
) -> dict[str, Any]:
    """Return the protocol of a metric of these comparisons, which are of the same images.

    Two values of a metric may be compared if their protocols agree, and one can be reproduced from its protocol.
    """
    return {
        **network_facts([each.network for each in comparisons]),
        **data_protocol(data, split),
        "real images": len(comparisons[0].real),
        "generated images": len(comparisons[0].fake),
        **samples.protocol(),
    }
