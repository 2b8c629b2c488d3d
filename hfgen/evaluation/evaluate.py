"""Measure a pipeline, or a folder of images, against a data set."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..options import DataArgs
from ..registry import resolve
from ..utils.devices import placed
from .options import METRICS, PIPELINE_METRICS, EvaluateOptions


def names_in(metrics: str) -> list[str]:
    """The metrics that a list separated by commas names; ValueError for unknown ones."""
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ValueError(f"metrics={metrics!r}: {', '.join(unknown) or 'none'} not known. Choose {', '.join(METRICS)}.")
    return list(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured.

    Attributes:
        figures: `metrics.measures.Figure`s.
        entries: the same with their protocol, as metrics.json holds them.
        comparison: the `Comparison` of sample metrics; None without such a metric.
    """

    figures: list[Any]
    entries: list[dict[str, Any]]
    comparison: Any


def measure(options: EvaluateOptions, data_args: DataArgs) -> Evaluation | None:
    """Measure a pipeline or a folder of images. Returns None in processes other than the first.

    Raises:
        ValueError: options, data and pipeline that do not go together.
    """
    names = names_in(options.metrics)
    if options.dtype != "float32" and (exact := PIPELINE_METRICS.keys() & set(names)):
        raise ValueError(f"{', '.join(sorted(exact))} needs --dtype float32. Measure it in a call of its own.")
    from accelerate import PartialState

    from ..data.images import load_images
    from ..metrics import report

    state = PartialState(cpu=options.device == "cpu")
    device = options.device or state.device
    with state.main_process_first():
        data = load_images(data_args)
    if data.streaming:
        raise ValueError(f"{data.name} is streamed, and reference images are picked by number. Drop --streaming.")
    rows = rows_of(data, options.num_reference or options.num_samples)
    sample = _sampler(options, data_args, data, device)
    network = _network(options, [name for name in names if name not in PIPELINE_METRICS], data, rows, sample, device)
    own = _own(
        sample, [name for name in names if name in PIPELINE_METRICS], data_args, data, rows, state.is_main_process
    )
    figures, found, comparison = [], [], None
    if network is not None:
        images = sample.draw(rows, state.process_index, state.num_processes, network.check)
        if state.is_main_process:
            figures, comparison = _compared(options, data_args, names, network, data, rows, images)
            protocol = protocol_of(options, data_args, data, network, comparison, sample)
            found = report.entries(figures, protocol)
    if not state.is_main_process:
        return None
    found += [entry for figure, protocol in own for entry in report.entries([figure], protocol)]
    return Evaluation([*figures, *(figure for figure, _ in own)], found, comparison)


def _network(options: EvaluateOptions, names: list[str], data: Any, rows: Any, sample: Any, device: Any) -> Any:
    """The feature network that these metrics of drawn images need, on its device; None where there are none.

    Raises:
        ValueError: no features suit the images, there are too few images, or the device can't be used.
    """
    from ..metrics.features import choose_features
    from ..metrics.measures import check_counts

    if not names:
        return None
    network = placed(choose_features(options.features, data.channels, data.size), device)
    check_counts(names, network, len(rows), sample.count, options.neighbours, options.kid_subset_size)
    return network


def _own(
    sample: Any, names: list[str], data_args: DataArgs, data: Any, rows: Any, main: bool
) -> list[tuple[Any, Mapping[str, Any]]]:
    """Figures that the pipeline itself computes, each with its protocol, in the main process; refused by all, and
    before anything is drawn."""
    for name in names:
        sample.method(PIPELINE_METRICS[name])
    return [sample.figure(name, PIPELINE_METRICS[name], data, data_args.dataset_split, rows) for name in names if main]


def _compared(
    options: EvaluateOptions, data_args: DataArgs, names: list[str], network: Any, data: Any, rows: Any, images: Any
) -> tuple[list[Any], Any]:
    """Figures of drawn images, and the comparison that they are of."""
    from ..metrics.measures import MEASURES, Comparison

    comparison = Comparison(
        network,
        reference(data, rows, network, options.reference_cache),
        network.describe(images),
        **(_splits(options, data_args, network) if "memorisation" in names else {}),
        neighbours=options.neighbours,
        subset_size=options.kid_subset_size,
        repeats=options.bootstrap,
        seed=options.seed,
    )
    return [figure for name in names if name in MEASURES for figure in MEASURES[name](comparison)], comparison


def rows_of(data: Any, count: int) -> Any:
    """Which rows (N,) of a data set serve as reference: `count` or all, drawn without replacement by a fixed seed."""
    import torch

    return torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]


def reference(data: Any, rows: Any, network: Any, cache: str | None) -> Any:
    """The `ImageSet` of some rows of a data set. Features are kept on disk by data and network, and found again.

    Raises:
        ValueError: the file that should hold them is damaged, or of another network.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    from ..metrics.feature_network import ImageSet

    home = Path(cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfgen")
    path = home / f"{data.fingerprint}-{network.revision}-{len(rows)}.safetensors"
    images, about = data.pixels(rows)[0], {"network": network.label, "data": data.fingerprint}
    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                kept, parts = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}). Remove it; it will be made again.") from error
        if kept != about or len(parts["features"]) != len(rows):
            raise ValueError(f"{path} holds features of {kept}, not of {about}. Remove it; it will be made again.")
        return ImageSet(network.label, images, parts["features"], parts.get("logits"))
    found = network.describe(images)
    home.mkdir(parents=True, exist_ok=True)
    parts = {"features": found.features} | ({} if found.logits is None else {"logits": found.logits})
    temporary = path.with_suffix(f".{os.getpid()}")
    save_file(parts, temporary, metadata=about)
    os.replace(temporary, path)
    return found


def _splits(options: EvaluateOptions, data_args: DataArgs, network: Any) -> dict[str, Any]:
    """All training and held-out images, as memorisation wants them."""
    from ..data.images import load_images

    splits, found = {"train": options.train_split, "held_out": options.held_out_split}, {}
    for role, split in splits.items():
        part = load_images(dataclasses.replace(data_args, dataset_split=split))
        found[role] = reference(part, rows_of(part, len(part)), network, options.reference_cache)
    return found


def _sampler(options: EvaluateOptions, data_args: DataArgs, data: Any, device: Any) -> Any:
    """What the images to judge come from."""
    from ..data.images import load_images
    from .subjects import FolderSamples, PipelineSamples

    folder = Path(options.target)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        if options.scheduler is not None or options.steps is not None:
            raise ValueError(f"{folder} is a folder of images: --scheduler and --steps mean nothing there.")
        form = {"resolution": data_args.resolution, "channels": data.channels, "label_column": "none"}
        shown = load_images(DataArgs(dataset=str(folder), **form))
        return FolderSamples(shown, rows_of(shown, options.num_samples))
    import torch

    pipeline = placed(resolve("HFGenPipeline").from_pretrained(options.target), device)
    if options.scheduler is not None:
        pipeline.use_scheduler(options.scheduler)
    if options.dtype != "float32":
        pipeline.to(getattr(torch, options.dtype))
    return PipelineSamples(pipeline, options, data)


def protocol_of(
    options: EvaluateOptions, data_args: DataArgs, data: Any, network: Any, comparison: Any, sample: Any
) -> Mapping[str, Any]:
    """What must be the same for two figures to be compared, and stated for one to be repeated."""
    height, width = data.size
    return {
        "features": network.name,
        "revision": network.revision,
        "resize": network.resize,
        "data": data.name,
        "split": data_args.dataset_split,
        "data fingerprint": data.fingerprint,
        "size": f"{data.channels} x {height} x {width}",
        "real images": len(comparison.real),
        "generated images": len(comparison.fake),
        **sample.protocol(),
    }
