"""What `tests.helpers.fuzz` changes: folders of every family, data sets of every form, configurations, reports."""

import contextlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from diffusers import UNet2DModel
from PIL import Image

import hfgen
from hfgen import HFGenPipeline
from tests.helpers.fuzz import Subject

MOST_VALUES = 1 << 22
"""Values of a sample, at most, that are drawn from a changed folder that could be loaded."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries, and register the family of sequences with a text encoder."""
    import datasets
    import diffusers
    import transformers

    from tests.pipelines import sequence_registry

    loud = [library.utils.logging for library in (diffusers, transformers)]
    for logging in loud:
        logging.set_verbosity(60)
        logging.disable_progress_bar()
    datasets.disable_progress_bars()
    sequence_registry.register()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()) as out:
            yield out
    finally:
        sequence_registry.unregister()
        datasets.enable_progress_bars()
        for logging in loud:
            logging.set_verbosity_warning()
            logging.enable_progress_bar()


# --- folders of pipelines ---------------------------------------------------------------------------------------------


def unet() -> Any:
    """diffusers' own network, whose normalisation no weight bounds, under one of its schedulers."""
    import diffusers

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    network = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=3, **blocks, **sizes)
    return hfgen.DenoisingPipeline(network, diffusers.DPMSolverMultistepScheduler(), 2, ["a", "b"])


def draw(pipeline: Any, call: dict[str, Any]) -> None:
    """Draw from a pipeline, or look words up; refuse anything but finite samples of its own shape."""
    pipeline.set_progress_bar_config(disable=True)
    if "words" in call:
        vectors = pipeline(**call)[0]
        assert len(vectors) == len(call["words"]) and torch.as_tensor(vectors).isfinite().all()
        return
    if torch.Size(pipeline.sample_shape).numel() > MOST_VALUES:
        return
    if "images" in call or len(pipeline.sample_shape) == 2:  # judged, or sequences
        values, count = pipeline(**call)[0], 2
        assert len(values) == count and not torch.as_tensor(values).isnan().any()
        return
    decoded = getattr(pipeline, "item_shape", pipeline.sample_shape) != pipeline.sample_shape
    output_type = "pt" if decoded else "latent"
    output = pipeline(**call, generator=torch.Generator().manual_seed(0), output_type=output_type)[0]
    assert tuple(output.shape[1:]) == tuple(pipeline.sample_shape), (output.shape, pipeline.sample_shape)
    assert output.isfinite().all()


def pipelines() -> Iterator[tuple[str, Callable[[], Any], dict[str, Any]]]:
    """Yield name, maker and call of a pipeline of each family and kind of network."""
    from tests.helpers.text import text_encoder, tokenizer
    from tests.pipelines.sequence_network import SequenceModel
    from tests.pipelines.sequences import TextSequencePipeline
    from tests.saving.test_portable import CASES

    for family, (make, call) in CASES.items():
        for name, pipeline in make().items():
            yield f"{family}-{name}", lambda pipeline=pipeline: pipeline, {**call, **STEPS.get(family, {})}
    yield "DenoisingPipeline-unet", unet, {"class_labels": [0, 1], "num_inference_steps": 2}
    parts = SequenceModel().eval(), hfgen.RectifiedFlowScheduler(), text_encoder(), tokenizer()
    text = TextSequencePipeline(*parts)
    yield "TextSequencePipeline", lambda: text, {"prompt": ["a cat", "dog"], "num_inference_steps": 2}


STEPS = {name: {"num_inference_steps": 2} for name in ("DenoisingPipeline", "EnergyPipeline", "TextToImagePipeline")}


def pipeline_subject(make: Callable[[], Any], call: dict[str, Any]) -> Subject:
    return Subject(
        lambda folder: make().save_pretrained(folder),
        HFGenPipeline.from_pretrained,
        lambda pipeline: draw(pipeline, call),
        lambda name: name.endswith((".json", ".safetensors")),
    )


# --- data sets --------------------------------------------------------------------------------------------------------


def images(count: int = 6) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, file and class of small images of several formats."""
    chance = np.random.default_rng(0)
    kinds = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tiff": "TIFF"}
    for number, (ending, kind) in zip(range(count), kinds.items(), strict=False):
        file = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (8, 8, 3), np.uint8)).save(file, kind)
        yield f"a{number}.{ending}", file.getvalue(), number % 2


def folder_of_images(folder: Path) -> None:
    for name, content, label in images():
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        (folder / f"class{label}" / name).write_bytes(content)


def archive(folder: Path, ending: str, labels: bool = False) -> None:
    folder.mkdir()
    path = folder / f"images{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w") as opened:
            for name, content, label in images():
                opened.writestr(f"class{label}/{name}", content)
        return
    with tarfile.open(path, "w:gz" if ending.endswith("gz") else "w") as opened:
        for name, content, label in images():
            files = {name if labels else f"class{label}/{name}": content}
            files |= {f"{Path(name).stem}.cls": str(label).encode()} if labels else {}
            for place, text in files.items():
                info = tarfile.TarInfo(place)
                info.size = len(text)
                opened.addfile(info, io.BytesIO(text))


def rows(paths: bool = False) -> Any:
    import datasets

    cells = [{"bytes": None if paths else content, "path": name} for name, content, _ in images()]
    columns = {"image": cells, "label": [label for _, _, label in images()]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def parquet(folder: Path) -> None:
    folder.mkdir()
    rows().to_parquet(folder / "train.parquet")
    front = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n# Data\n")


def parquet_of_paths(folder: Path) -> None:
    folder.mkdir()
    for name, content, _ in images():
        (folder / name).write_bytes(content)
    table = rows(paths=True)  # whose own method would look for the files in the working directory
    schema = table.features.arrow_schema.metadata
    pyarrow.parquet.write_table(table.data.table.replace_schema_metadata(schema), folder / "train.parquet")


def saved(folder: Path) -> None:
    rows().save_to_disk(folder)


def metadata(folder: Path, ending: str) -> None:
    folder.mkdir()
    entries = []
    for name, content, label in images():
        (folder / name).write_bytes(content)
        entries.append({"file_name": name, "label": label})
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    if ending == "csv":
        text = "file_name,label\n" + "".join(f"{entry['file_name']},{entry['label']}\n" for entry in entries)
    (folder / f"metadata.{ending}").write_text(text)


def read_data(folder: Path) -> Any:
    """Load what the folder holds into memory, by a cache of its own."""
    from hfgen.data.images import load_images
    from hfgen.options import DataArgs

    cache = folder.parent / "cache"
    try:
        return load_images(DataArgs(dataset=str(folder), resolution=8, cache_dir=str(cache)))
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def use_data(data: Any) -> None:
    from hfgen.data.summary import describe

    assert data.images.shape[1:] == (data.channels, 8, 8) and len(data) <= 12, data.images.shape
    describe(data)


# --- configurations and reports ---------------------------------------------------------------------------------------


def configuration(folder: Path) -> None:
    from hfgen.options import DataArgs, SampleArgs, TrainArgs, as_dict, save_config

    folder.mkdir()
    save_config(folder / "config.yaml", as_dict(DataArgs(), TrainArgs(), SampleArgs()))


def read_configuration(folder: Path) -> Any:
    from hfgen.options import DataArgs, SampleArgs, TrainArgs, parse, parser

    groups = (DataArgs, TrainArgs, SampleArgs)
    return parse(parser("hfgen", "", "", *groups), ["--config", str(folder / "config.yaml")], *groups)


def report(folder: Path) -> None:
    from hfgen.compare.recommend import SHIPPED

    folder.mkdir()
    content = json.loads(SHIPPED.read_text(encoding="utf-8"))
    content["rows"] = content["rows"][:3]
    (folder / "report.json").write_text(json.dumps(content))


def read_report(folder: Path) -> Any:
    from hfgen.compare.recommend import load_report

    return load_report(str(folder / "report.json"))


def use_report(content: Any) -> None:
    from hfgen.compare.recommend import recommend
    from hfgen.compare.rules import check_rules, rules_table

    recommend(content, [])
    rules_table(check_rules(content))


def figures(folder: Path) -> None:
    from hfgen.saving.card import MARK

    folder.mkdir()
    entry = {"metric": "FID", "value": 1.5, "interval": [1.0, 2.0], "protocol": {"features": "x", "seed": 0}}
    (folder / "metrics.json").write_text(json.dumps({"steps": 3, "evaluation": [entry]}))
    card = f"---\nlibrary_name: diffusers\n---\n{MARK}\n# Title\n\n<!-- results -->\n<!-- end of results -->\n"
    (folder / "README.md").write_text(card)


def read_figures(folder: Path) -> Any:
    from hfgen.metrics import report as entries
    from hfgen.saving.card import add_results

    entries.write(folder / "metrics.json", [{"metric": "KID", "value": 0.1, "protocol": {}}])
    add_results(folder)


def subjects() -> dict[str, Subject]:
    """Return everything that is changed, by name."""
    found = {name: pipeline_subject(make, call) for name, make, call in pipelines()}
    data: dict[str, Callable[[Path], None]] = {
        "images": folder_of_images,
        **{f"archive{end}": (lambda folder, end=end: archive(folder, end)) for end in (".zip", ".tar", ".tar.gz")},
        "webdataset": lambda folder: archive(folder, ".tar", labels=True),
        **{"parquet": parquet, "parquet of paths": parquet_of_paths, "save_to_disk": saved},
        **{f"metadata.{end}": (lambda folder, end=end: metadata(folder, end)) for end in ("csv", "jsonl")},
    }
    found |= {f"data: {name}": Subject(make, read_data, use_data) for name, make in data.items()}
    found["yaml"] = Subject(configuration, read_configuration, lambda values: None)
    found["report"] = Subject(report, read_report, use_report)
    found["metrics"] = Subject(figures, read_figures, lambda values: None)
    return found
