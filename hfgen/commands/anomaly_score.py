"""`hfgen anomaly score`: score the images of a folder or data set, a row each."""

import contextlib
import csv
import dataclasses
import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..console.notes import tell
from ..console.progress import ProgressBar
from ..console.text import escaped, shell_text, with_article
from ..data.archives import readable
from ..disk.files import check_writable, write_json, write_text
from ..disk.saves import replacing_files
from ..options import DataArgs, Options, argument, option, parse, parser
from ..utils.devices import place
from ..utils.ranges import COUNT, INSIDE_0_1

COLUMNS = ("file", "row", "score", "p_value", "anomalous")


@dataclasses.dataclass
class ScoreOptions(Options):
    """Scoring"""

    pipeline: str = argument("folder that `hfgen anomaly fit` wrote, or its repository on the Hub")
    images: str = argument("folder of images of any sizes, or a data set as for `hfgen data`")
    csv: str | None = option(None, f"file for a table: {', '.join(COLUMNS)}", path=True)
    json: str | None = option(None, "file for the same, with pipeline, threshold and false-alarm rate", path=True)
    heat_maps: str | None = option(None, "folder for a picture of each anomalous image beside its heat map", path=True)
    all_heat_maps: bool = option(False, "save pictures of all images, not only of the anomalous ones")
    false_alarm_rate: float | None = option(None, "default: the pipeline's own", range=INSIDE_0_1)
    dataset_split: str = option("train", "split of a data set")
    dataset_config_name: str | None = option(None, "configuration of a Hub data set")
    image_column: str | None = option(None, "column with the images; default: guessed")
    num_samples: int | None = option(
        None, "score only the first images, at most this many", range=COUNT, former=("max_images",)
    )
    skip_corrupt: bool = option(False, "skip images that can't be decoded, and count them")
    batch_size: int = option(256, "images at a time", range=COUNT)
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")


@dataclasses.dataclass
class ScoredImage:
    """An image, uint8 `pixels` (C, H, W), its columns of the table, and its heat map `heat` (H, W)."""

    file: str | None
    row: int
    score: float
    p_value: float
    anomalous: bool
    pixels: Any
    heat: Any

    def columns(self) -> dict[str, Any]:
        """Return the row of the table."""
        return {name: getattr(self, name) for name in COLUMNS}


def main(argv: list[str] | None = None) -> None:
    """Score the images, write the files that the options name, and print a summary."""
    description = "Score images by a pipeline of `hfgen anomaly fit`: a score, a p-value and a decision for each."
    example = "hfgen anomaly score outputs/anomaly path/to/images --csv scores.csv --heat_maps heat_maps"
    command = parser("hfgen anomaly score", description, example, ScoreOptions, config=False)
    (options,) = parse(command, argv, ScoreOptions)
    run(options)


def run(options: ScoreOptions) -> list[dict[str, Any]]:
    """Score, write and print. Returns the rows of the table.

    Raises:
        ValueError: the pipeline is no anomaly detector, the images can't be read or resized to its size, or an option
            has no effect.
        OSError: a file can't be written; known before anything is scored.
    """
    if options.all_heat_maps and not options.heat_maps:
        raise ValueError("--all_heat_maps has no effect without --heat_maps FOLDER.")
    heat_map = options.heat_maps and Path(options.heat_maps, "heat_map.png")
    for path in filter(None, (options.csv, options.json, heat_map)):
        check_writable(path)
    pipeline = _pipeline(options)
    rate = pipeline.config.false_alarm_rate if options.false_alarm_rate is None else options.false_alarm_rate
    threshold = pipeline.calibration.threshold(rate)
    start = time.perf_counter()
    data = _images(options, pipeline)
    table, drawing_seconds = [], 0.0
    with _heat_maps(options) as draft:
        for image in ProgressBar(_score(pipeline, data, options, rate), total=len(data), desc="Scoring", unit="image"):
            table.append(image.columns())
            if draft is not None and (image.anomalous or options.all_heat_maps):
                drawing_start = time.perf_counter()
                _draw(draft, image, pipeline)
                drawing_seconds += time.perf_counter() - drawing_start
        seconds = time.perf_counter() - start - drawing_seconds
    facts = {
        "pipeline": options.pipeline,
        "data": data.name,
        "score": pipeline.score_name,
        "threshold": threshold,
        "false_alarm_rate": rate,
        "calibration_images": pipeline.calibration.config.num_images,
        "images": len(table),
        "left_out": data.num_skipped,
        "anomalous": sum(row["anomalous"] for row in table),
        "images_per_second": round(len(table) / seconds, 1),
    }
    _write(options, facts, table)
    return table


def _heat_maps(options: ScoreOptions) -> contextlib.AbstractContextManager[Path | None]:
    """Return a context with the folder to draw heat maps in; after it they are in the folder that the options name."""
    if not options.heat_maps:
        return contextlib.nullcontext()
    return replacing_files(Path(options.heat_maps), "heat_maps", sync=False)


def _pipeline(options: ScoreOptions) -> Any:
    """Load the pipeline on its device."""
    import hfgen

    from ..pipelines.detector import DetectorMixin

    pipeline = hfgen.HFGenPipeline.from_pretrained(options.pipeline)
    if not isinstance(pipeline, DetectorMixin):
        fitted = isinstance(pipeline, hfgen.VAEPipeline | hfgen.EnergyPipeline)
        made_of = ["--pipeline", options.pipeline] if fitted else []
        raise ValueError(
            f"{options.pipeline} holds {with_article(type(pipeline).__name__)}, which has no anomaly score. Make a "
            f"detector{' of it' if made_of else ''}: {shell_text(['hfgen', 'anomaly', 'fit', *made_of])} --dataset ..."
        )
    return place(pipeline, options.device)


def _images(options: ScoreOptions, pipeline: Any) -> Any:
    """Load the images as in the pipeline's training: the same size and channels, cropped and flattened alike."""
    from ..data.images import load_images
    from ..data.training_data import levels_of

    channels, height, width = pipeline.sample_shape
    how = "cropped at the centre" if pipeline.config.center_crop else "squeezed"
    levels = levels_of(pipeline.training_data)
    white = "" if levels is None else f", 16-bit value {levels} as white"
    tell(
        f"images as in the training: {width} x {height}, {how}, {channels} channel(s), on {pipeline.config.background}"
        f"{white}"
    )
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
            levels=levels,
            max_train_samples=options.num_samples,
            skip_corrupt=options.skip_corrupt,
            cache_budget=0,  # cached images do not hold their file names
        ),
        own=False,
    )
    if data.size != (height, width):
        raise ValueError(
            f"{options.images} has images of {data.size[1]} x {data.size[0]} pixels, and the pipeline was trained on "
            f"{width} x {height}. Only squares are cropped and resized automatically: resize the images."
        )
    return data


def _score(pipeline: Any, data: Any, options: ScoreOptions, rate: float) -> Iterator[ScoredImage]:
    """Yield each image with its score, in order; images that can't be decoded are skipped."""
    import torch

    from ..utils.pixels import from_levels

    root = Path(options.images).expanduser().resolve()
    for rows in torch.arange(len(data)).split(options.batch_size):
        levels = data.pixels(rows)[0]
        decodable = data.corrupt[rows] == 0  # the place of a corrupt image holds another one
        rows, levels = rows[decodable], levels[decodable]
        if not len(rows):
            continue
        output = pipeline(from_levels(levels), rate, options.batch_size)
        columns = zip(
            (_file(cell, root) for cell in data.rows[rows.tolist()][data.decoder.column]),
            rows.tolist(),
            output.scores.tolist(),
            output.p_values.tolist(),
            output.decisions.tolist(),
            levels,
            output.heat_maps.cpu(),
            strict=True,
        )
        yield from itertools.starmap(ScoredImage, columns)


def _file(cell: Any, root: Path) -> str | None:
    """Return the path of an image's file, relative to the folder `root`; None if the data set has no files."""
    path = cell.get("path") if isinstance(cell, dict) else None
    if not path:
        return None
    path = readable(path)
    inside = Path(path).is_absolute() and Path(path).resolve().is_relative_to(root)
    return Path(path).resolve().relative_to(root).as_posix() if inside else str(path)


def _draw(draft: Path, image: ScoredImage, pipeline: Any) -> None:
    """Save the image and its heat map side by side, enlarged, in a file named by row and file."""
    from PIL import Image

    from ..utils import heatmap, pictures

    picture = Image.fromarray(image.pixels.permute(1, 2, 0).squeeze(-1).numpy())
    pair = [picture.convert("RGB"), heatmap.overlay(picture, image.heat, pipeline.config.heat_scale)]
    name = f"-{Path(image.file).stem}" if image.file else ""
    pictures.grid(pair, 2).save(draft / escaped(f"{image.row:06d}{name}.png", "file"))


def _write(options: ScoreOptions, facts: dict[str, Any], table: list[dict[str, Any]]) -> None:
    """Write the CSV and JSON files that the options name, and print the facts."""
    if options.csv:
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
        write_text(options.csv, lines.getvalue())
    if options.json:
        write_json(options.json, {**facts, "scores": table})
    files = [name for name in (options.csv, options.json, options.heat_maps) if name and Path(name).exists()]
    texts = {name: f"{value:,}" if isinstance(value, int) else value for name, value in facts.items()}
    texts["images_per_second"] = f"{facts['images_per_second']:,.0f}"
    texts["written"] = ", ".join(files) or "nothing: use --csv or --json"
    for name, text in texts.items():
        print(f"{name.replace('_', ' ') + ':':20}{escaped(text)}")
