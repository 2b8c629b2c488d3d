"""What a pipeline was trained on: the record travels with its folder, holds no path, and finds the images again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import hfgen
from hfgen import DenoisingPipeline, HFGenPipeline, cli
from hfgen.data.images import load_images
from hfgen.data.training_data import choose_data, describe, record_of
from hfgen.evaluation.evaluate import measure
from hfgen.evaluation.options import EvaluateOptions
from hfgen.options import DataArgs
from hfgen.paths import StraightPath
from hfgen.saving import hub
from hfgen.training import train_diffusion

TINY = ["--train_batch_size", "8", "--model_size", "xs", "--max_train_steps", "1", "--num_inference_steps", "1"]
TINY += ["--eval_batch_size", "2", "--sample_steps", "0", "--report_to", "none", "--lr_warmup_steps", "0"]


def wide_images(folder: Path, count: int = 12) -> Path:
    """Save images of 24 x 16 pixels, whose sides are white, in two classes and two splits."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(count):
            pixels = np.full((16, 24), 255, np.uint8)
            pixels[:, 4:20] = generator.integers(0, 200, (16, 16))
            path = folder / split / "ab"[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a local folder with options that are no defaults."""
    home = tmp_path_factory.mktemp("trained")
    data = wide_images(home / "secret place" / "faces")
    words = ["--dataset", data, "--resolution", "8", "--no_center_crop", "--max_train_samples", "10"]
    train_diffusion.main([str(word) for word in [*words, *TINY, "--output_dir", home / "run"]])
    return home / "run"


WORDS = {"dataset": "faces", "source": "local", "dataset_split": "train", "dataset_config_name": None}
WORDS |= {"image_column": "image", "label_column": "label", "resolution": 8, "center_crop": False, "channels": 1}
WORDS |= {"background": "white", "levels": None, "max_train_samples": 10, "skip_corrupt": False}


def test_the_record_says_everything_but_the_path(run: Path) -> None:
    index = json.loads((run / "model_index.json").read_text())
    data = load_images(DataArgs(str(run.parent / "secret place" / "faces"), resolution=8, center_crop=False,
                                max_train_samples=10))  # fmt: skip
    assert index["_training_data"] == {**WORDS, "fingerprint": data.fingerprint}
    pushed = hub.files_to_push(run)
    for name, content in pushed.items():
        content = content if isinstance(content, bytes) else content.read_bytes()
        assert b"secret place" not in content and str(run.parent).encode() not in content, name
    card = (run / "README.md").read_text()
    assert "| read | split train, columns image and label, the first 10 images |" in card
    assert "| prepared | the whole image, squeezed, resized to a side of 8 pixels, 1 channel(s)" in card
    assert data.fingerprint in card


def test_a_loaded_pipeline_is_saved_with_its_record_and_plain_diffusers_loads_it(run: Path, tmp_path: Path) -> None:
    HFGenPipeline.from_pretrained(run).save_pretrained(tmp_path / "copy")
    copy = HFGenPipeline.from_pretrained(tmp_path / "copy")
    assert (
        copy.training_data == HFGenPipeline.from_pretrained(run).training_data and copy.training_data["channels"] == 1
    )
    code = "import sys, diffusers; p = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)"
    code += "; print(type(p).__name__, p(2, num_inference_steps=1, output_type='np').images.shape)"
    environment = {"PATH": "", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment)
    assert done.returncode == 0 and "DenoisingPipeline (2, 8, 8, 1)" in done.stdout, done.stderr[-2000:]
    assert "_training_data" not in done.stderr  # no warning of an unknown entry


def test_the_images_of_the_training_are_found_by_the_config_beside_the_pipeline(run: Path, tmp_path: Path) -> None:
    pipeline = HFGenPipeline.from_pretrained(run)
    choice = choose_data(pipeline.training_data, str(run))
    data = load_images(choice.args)
    assert data.fingerprint == pipeline.training_data["fingerprint"] and choice.check(data) == choice.notes
    assert "max_train_samples 10" in choice.notes[0] and "center_crop False" in choice.notes[0]
    with pytest.raises(ValueError, match=r"the local data 'faces' \(fingerprint .*\).*Give it: --dataset PATH"):
        choose_data(pipeline.training_data, str(tmp_path))
    moved = wide_images(tmp_path / "faces")
    choice = choose_data(pipeline.training_data, str(tmp_path), {"dataset": str(moved)})
    assert (choice.args.resolution, choice.args.center_crop, choice.args.max_train_samples) == (8, False, 10)
    assert "have changed since the training" not in "".join(choice.check(load_images(choice.args)))
    Image.new("L", (24, 16)).save(moved / "train" / "a" / "00.png")
    assert "have changed since the training" in choice.check(load_images(choice.args))[-1]


def test_what_is_given_wins_and_another_data_set_starts_from_defaults(run: Path) -> None:
    record = HFGenPipeline.from_pretrained(run).training_data
    split = choose_data(record, str(run), {"dataset_split": "test"})
    assert (split.args.dataset_split, split.args.max_train_samples, split.args.label_column) == ("test", None, "label")
    assert split.training.max_train_samples == 10 and split.training.dataset_split == "train"
    assert "dataset_split test (trained with train)" in split.notes[1] and split.fingerprint is None
    other = choose_data({**record, "image_column": "picture"}, str(run), {"dataset": "digits", "center_crop": True})
    assert (other.args.image_column, other.args.max_train_samples, other.args.resolution) == (None, None, 8)
    assert other.args.center_crop and "center_crop True (trained with False)" in other.notes[-1]
    whole = choose_data(record, str(run), DataArgs(dataset="digits"))
    assert whole.args == DataArgs(dataset="digits")
    with pytest.raises(TypeError, match="splitt: no option of data"):
        choose_data(record, str(run), {"splitt": "test"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": "8"}, "resolution='8' must be"),
        ({"source": "hub", "dataset": "../../etc"}, "no name of the Hub"),
        ({"source": "hub", "dataset": "/etc"}, "no name of the Hub"),
        ({"source": "built-in", "dataset": "/etc"}, "is not built in"),
        ({"source": "elsewhere"}, "source='elsewhere'"),
        ({"dataset": None}, "dataset=None"),
    ],
)
def test_a_damaged_record_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_data({**WORDS, "fingerprint": "0", **change}, "folder", {})


def test_a_folder_without_a_record_is_taken_at_its_config_or_asks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not say what data it comes from\. Name the data set: --dataset"):
        choose_data(None, str(tmp_path))
    config = {"dataset": "digits", "resolution": 8, "center_crop": False, "seed": 3}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    choice = choose_data(None, str(tmp_path))
    assert choice.args == DataArgs(resolution=8, center_crop=False) and "config.yaml of its run" in choice.notes[0]
    (tmp_path / "best").mkdir()
    assert choose_data(None, str(tmp_path / "best")).args == choice.args


class Net(nn.Module):
    """A network of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x, timestep, **_):
        return self.layer(x)


def test_data_given_from_python_have_a_name_and_no_way_back(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    options = {
        "max_train_steps": 1,
        "train_batch_size": 4,
        "sample_steps": 0,
        "report_to": "none",
        "eval_batch_size": 2,
    }
    objective, scheduler = hfgen.Denoising(StraightPath()), hfgen.RectifiedFlowScheduler()
    options["pipeline"] = lambda networks: DenoisingPipeline(networks["denoiser"], scheduler)
    result = hfgen.train(Net(), objective, images, tmp_path / "run", **options)
    record = result.pipeline.training_data
    assert (record["source"], record["dataset"], record["resolution"], record["channels"]) == ("python", "images", 8, 1)
    with pytest.raises(ValueError, match="was trained from Python on 'images', which has no name"):
        choose_data(record, str(tmp_path / "run"))
    assert choose_data(record, str(tmp_path / "run"), {"dataset": "digits"}).args.resolution == 8
    assert "read" not in describe(record)


def test_evaluate_takes_the_data_of_the_training_in_both_fronts(run: Path, tmp_path: Path, capsys) -> None:
    words = [
        "--metrics",
        "spectrum",
        "--num_samples",
        "4",
        "--num_inference_steps",
        "1",
        "--device",
        "cpu",
        "--features",
        "digits",
    ]
    output = tmp_path / "metrics.json"
    cli.main(["evaluate", str(run), *words, "--output", str(output)])
    notes = capsys.readouterr().err
    assert f"data as {run} was trained on, by its record: dataset faces" in notes and "given" not in notes
    (entry,) = json.loads(output.read_text())["evaluation"]
    assert entry["protocol"]["data fingerprint"] == HFGenPipeline.from_pretrained(run).training_data["fingerprint"]
    options = EvaluateOptions(str(run), "spectrum", 4, num_inference_steps=1, device="cpu", features="digits")
    assert measure(options).entries == [entry]
    test = measure(options, {"dataset_split": "test"}).entries[0]["protocol"]
    assert test["split"] == "test" and "dataset_split test (trained with train)" in capsys.readouterr().err
    cli.main(["evaluate", str(run), *words, "--dataset", "digits", "--output", str(output)])
    assert json.loads(output.read_text())["evaluation"][-1]["protocol"]["data"] == "digits"
    with pytest.raises(ValueError, match=r"not 1 channel.s. and 8 x 8 pixels as what is judged"):
        measure(options, {"resolution": 10})


def test_a_record_is_plain() -> None:
    record = record_of(DataArgs(), load_images(DataArgs()))
    assert (record["source"], record["dataset"], record["resolution"]) == ("built-in", "digits", None)
    assert json.loads(json.dumps(record)) == record
    assert describe(record) == {
        "read": "split train, columns image and label",
        "prepared": "sizes as they are, 1 channel(s), transparent pixels on white",
        "data fingerprint": record["fingerprint"],
    }
    pipeline = DenoisingPipeline(hfgen.TorchModel(Net(), (1, 8, 8)), hfgen.RectifiedFlowScheduler())
    with pytest.raises(ValueError, match="by name"):
        pipeline.training_data = {"rows": [1, 2]}
