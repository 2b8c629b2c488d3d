"""`hfgen anomaly score`: judge the images of a folder or data set, a line each."""

import csv
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..options import DataArgs, argument, option, parse, parser
from ..utils.devices import placed

COLUMNS = ("file", "row", "score", "p_value", "anomalous")


@dataclasses.dataclass
class ScoreOptions:
    """Scoring"""

    pipeline: str = argument("folder that `hfgen anomaly fit` wrote, or its repository on the Hub")
    images: str = argument("folder of images of any sizes, or a data set as for `hfgen data`")
    csv: str | None = option(None, f"write a table to this file: {', '.join(COLUMNS)}")
    json: str | None = option(None, "write the same with what it holds for to this file")
    heat_maps: str | None = option(None, "write a picture of each anomalous image and its heat map to this folder")
    all_heat_maps: bool = option(False, "pictures of all images, not of the anomalous ones alone")
    false_alarm_rate: float | None = option(None, "in place of the pipeline's own")
    dataset_split: str = option("train", "split of a data set")
    dataset_config_name: str | None = option(None, "configuration of a Hub data set")
    image_column: str | None = option(None, "column with the images; guessed when not given")
    max_images: int | None = option(None, "only the first so many")
    skip_corrupt: bool = option(False, "leave out images that can't be decoded, and count them")
    batch_size: int = option(256, "images at a time")
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")


@dataclasses.dataclass
class AnomalyDecision:
    """An image with what was said of it. `pixels` uint8 (C, H, W) and `heat` (H, W) are what pictures are made of."""

    file: str | None
    row: int
    score: float
    p_value: float
    anomalous: bool
    pixels: Any
    heat: Any

    def line(self) -> dict[str, Any]:
        """What tables hold of it."""
        return {name: getattr(self, name) for name in COLUMNS}


def main(argv: list[str]) -> None:
    """Judge, write what was asked for, and print a summary."""
    about = "Judge images by a pipeline of `hfgen anomaly fit`: a score, a p-value and a decision each."
    example = "hfgen anomaly score outputs/anomaly folder_of_images --csv scores.csv --heat_maps heat_maps"
    (options,) = parse(parser("hfgen anomaly score", about, example, ScoreOptions, config=False), argv, ScoreOptions)
    run(options)


def run(options: ScoreOptions) -> list[dict[str, Any]]:
    """The lines of the table, after they are written and summed up.

    Raises:
        ValueError: a pipeline that judges nothing, images that can't be had or made to fit, or numbers out of range.
    """
    for name in ("batch_size", "max_images"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1.")
    if options.all_heat_maps and not options.heat_maps:
        raise ValueError("--all_heat_maps does nothing without --heat_maps and a folder.")
    pipeline = _pipeline(options)
    rate = pipeline.config.false_alarm_rate if options.false_alarm_rate is None else options.false_alarm_rate
    threshold = pipeline.calibration.threshold(rate)
    start = time.perf_counter()
    data = _images(options, pipeline)
    lines, used = [], 0.0
    for judged in _judged(pipeline, data, options, rate):
        lines.append(judged.line())
        if options.heat_maps and (judged.anomalous or options.all_heat_maps):
            begun = time.perf_counter()
            _draw(Path(options.heat_maps), judged, pipeline)
            used += time.perf_counter() - begun
    seconds = time.perf_counter() - start - used
    facts = {
        "pipeline": options.pipeline,
        "data": data.name,
        "score": pipeline.config.score,
        "threshold": threshold,
        "false_alarm_rate": rate,
        "calibration_images": pipeline.calibration.config.num_images,
        "images": len(lines),
        "left_out": data.num_skipped,
        "anomalous": sum(line["anomalous"] for line in lines),
        "images_per_second": round(len(lines) / seconds, 1),
    }
    _write(options, facts, lines)
    return lines


def _pipeline(options: ScoreOptions) -> Any:
    """The pipeline, on its device."""
    import hfgen

    pipeline = hfgen.HFGenPipeline.from_pretrained(options.pipeline)
    if not isinstance(pipeline, hfgen.AnomalyPipeline):
        raise ValueError(
            f"{options.pipeline} holds a {type(pipeline).__name__}, which judges nothing. Make it a detector: "
            f"hfgen anomaly fit --pipeline {options.pipeline} --dataset ..."
        )
    return placed(pipeline, options.device)


def _images(options: ScoreOptions, pipeline: Any) -> Any:
    """The images as the pipeline was trained on them: its size and channels, cropped and flattened alike."""
    from ..data.images import load_images

    channels, height, width = pipeline.sample_shape
    data = load_images(
        DataArgs(
            dataset=options.images,
            dataset_split=options.dataset_split,
            dataset_config_name=options.dataset_config_name,
            image_column=options.image_column,
            label_column="none",
            resolution=height if height == width else None,
            center_crop=pipeline.config.center_crop,
            background=pipeline.config.background,
            channels=channels,
            max_train_samples=options.max_images,
            skip_corrupt=options.skip_corrupt,
            cache_budget=0,  # a cache forgets which files its images come from
        )
    )
    if data.size != (height, width):
        raise ValueError(
            f"{options.images} has images of {data.size[1]} x {data.size[0]} pixels, and the pipeline was trained on "
            f"{width} x {height}, which are no squares that others are cropped to. Resize them."
        )
    return data


def _judged(pipeline: Any, data: Any, options: ScoreOptions, rate: float) -> Iterator[AnomalyDecision]:
    """Each image in turn; those that can't be decoded are left out."""
    import torch

    from ..utils.pixels import from_levels

    root = Path(options.images).expanduser().resolve()
    for numbers in torch.arange(len(data)).split(options.batch_size):
        levels = data.pixels(numbers)[0]
        kept = data.corrupt[numbers] == 0  # in the place of a corrupt image there is another
        numbers, levels = numbers[kept], levels[kept]
        if not len(numbers):
            continue
        found = pipeline(from_levels(levels), rate, options.batch_size)
        cells = data.rows[numbers.tolist()][data.decoder.column]
        said = (found.scores.tolist(), found.p_values.tolist(), found.decisions.tolist())
        for row, cell, *judgement, pixels, heat in zip(
            numbers.tolist(), cells, *said, levels, found.heat_maps.cpu(), strict=True
        ):
            yield AnomalyDecision(_name(cell, root), row, *judgement, pixels, heat)


def _name(cell: Any, root: Path) -> str | None:
    """The image's file, relative to the folder that was given; None where images have no files."""
    path = cell.get("path") if isinstance(cell, dict) else None
    if not path:
        return None
    inside = Path(path).is_absolute() and Path(path).resolve().is_relative_to(root)
    return Path(path).resolve().relative_to(root).as_posix() if inside else str(path)


def _draw(folder: Path, judged: AnomalyDecision, pipeline: Any) -> None:
    """Save image and heat map side by side, enlarged; named by row and file."""
    from PIL import Image

    from ..utils import heatmap as heat
    from ..utils import pictures

    image = Image.fromarray(judged.pixels.permute(1, 2, 0).squeeze(-1).numpy())
    pair = [image.convert("RGB"), heat.overlay(image, judged.heat, pipeline.config.heat_scale)]
    name = f"-{Path(judged.file).stem}" if judged.file else ""
    folder.mkdir(parents=True, exist_ok=True)
    pictures.grid(pair, 2).save(folder / f"{judged.row:06d}{name}.png")


def _write(options: ScoreOptions, facts: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """The files that were asked for, and the summary."""
    for name in ("csv", "json"):
        if getattr(options, name):
            Path(getattr(options, name)).parent.mkdir(parents=True, exist_ok=True)
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)
    if options.json:
        whole = {**facts, "scores": lines}
        Path(options.json).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    written = [name for name in (options.csv, options.json, options.heat_maps) if name and Path(name).exists()]
    shown = {name: f"{value:,}" if isinstance(value, int) else value for name, value in facts.items()}
    shown["images_per_second"] = f"{facts['images_per_second']:,.0f}"
    for name, value in {**shown, "written": ", ".join(written) or "nothing: give --csv, --json"}.items():
        print(f"{name.replace('_', ' ') + ':':20}{value}")
