"""A disk that fails at every k-th write of the commands that `test_full_disk.py` does not sweep in full.

These are the other families, adapters, the best pipeline and TensorBoard, and the commands that write one thing. A few
writes of the short ones are fast enough for every change.
"""

import errno
import importlib

import pytest

from hfgen.console.endings import one_line
from tests.commands.test_full_disk import SHORT, SMALL, Case, command, door, save_pipeline, sweep
from tests.helpers.commands import DOORS
from tests.helpers.shell import write_captions, write_images

STILL = [*SHORT, "--sample_steps", "0"]
DRAWN = [*STILL, "--eval_batch_size", "2"]
PLAIN = ["--perceptual", "0", "--adversarial_weight", "0", "--autoencoder_batch_size", "4", "--autoencoder_steps", "1"]
TEACHER = ["--features", "none", "--num_samples", "8"]
CODES = {"full": errno.ENOSPC, "read-only": errno.EROFS, "broken": errno.EIO}

MOST = 6
"""Writes of a training that fail in a sweep, at even distances."""


def beside(family, *words):
    """A training whose options name what lies in its home."""

    def run(home):
        given = [str(word).replace("HOME", str(home)) for word in words]
        DOORS[f"train_{family}"].main([*given, "--output_dir", str(home / "made")])

    return run


def module(name, *words):
    """A program of hfgen that is no command: `python -m hfgen.commands.NAME`."""

    def run(home):
        main = importlib.import_module(f"hfgen.commands.{name}").main
        with one_line():
            main([word.replace("HOME", str(home)) for word in words])

    return run


def save_captions(home):
    write_images(home / "images", count=8)
    write_captions(home / "images", ("a 3 left of a 7", "a 1 above a 2"))


def save_detector(home):
    few = ["--num_calibration", "20", "--false_alarm_rate", "0.1"]
    door("anomaly", *STILL, *few)(home)


CAPTIONED = ["--dataset", "HOME/images", *STILL[2:], "--eval_batch_size", "2"]

SHORT_ONES = {
    "data": Case(command("data digits --max_train_samples 20 --grid HOME/new/g.png"), "new/g.png", 2),
    "score": Case(
        command(
            "anomaly score HOME/run digits --num_samples 6 --csv HOME/s/a.csv --json HOME/s/a.json --all_heat_maps "
            "--heat_maps HOME/s/maps --device cpu"
        ),
        "s/a.csv",
        0,
        save_detector,
    ),
    "calibrate": Case(
        command("calibrate HOME/run --num_images 8 --num_levels 2 --repeats 1 --device cpu --dataset digits"),
        "run/model_index.json",
        1,
        save_pipeline,
    ),
    "head": Case(
        command(
            "calibrate HOME/run --kind sn --max_train_steps 1 --train_batch_size 4 --device cpu --dataset digits "
            "--output_dir HOME/headed"
        ),
        "headed/model_index.json",
        0,
        save_pipeline,
    ),
    "space": Case(command("demo HOME/run --space HOME/space"), "space/app.py", 1, save_pipeline),
    "features": Case(
        module("train_classifier", "--num_epochs", "1", "--widths", "4,4,4", "--output", "HOME/new/f.safetensors"),
        "new/f.safetensors",
    ),
    "texture": Case(
        module("train_texture", "--max_train_steps", "1", "--widths", "8,8,8,8", "--output", "HOME/new/t.safetensors"),
        "new/t.safetensors",
    ),
}
"""Commands all of whose writes can fail in a sweep."""

TRAININGS = {
    "tensorboard": Case(door("diffusion", *STILL, *SMALL, "--report_to", "tensorboard"), "run/model_index.json"),
    "best": Case(
        door(
            "diffusion",
            *SHORT,
            "--max_train_samples",
            "80",
            *SMALL,
            "--eval_steps",
            "1",
            "--eval_num_samples",
            "70",
            "--eval_features",
            "digits",
        ),
        "run/model_index.json",
    ),
    "adapter": Case(
        beside("diffusion", *STILL, "--init_from", "HOME/run", "--lora_rank", "2", "--num_inference_steps", "1"),
        "made/model_index.json",
        0,
        save_pipeline,
    ),
    "energy": Case(door("energy", *DRAWN, *SMALL), "run/model_index.json"),
    "flow": Case(door("flow", *DRAWN, "--model_size", "xs", "--num_likelihood", "4"), "run/model_index.json"),
    "gmmn": Case(door("gmmn", *DRAWN, "--model_size", "xs", "--health_steps", "0"), "run/model_index.json"),
    "stylegan": Case(door("stylegan", *DRAWN, "--model_size", "xs", "--health_steps", "0"), "run/model_index.json"),
    "triple_gan": Case(
        door("triple_gan", *DRAWN, "--model_size", "xs", "--health_steps", "0", "--num_likelihood", "4"),
        "run/model_index.json",
    ),
    "mae": Case(door("mae", *STILL, "--model_size", "xs", "--num_likelihood", "4"), "run/model_index.json"),
    "classifier": Case(door("classifier", *SHORT), "run/model_index.json"),
    "vqgan": Case(
        door("vqgan", *DRAWN, "--discriminator_size", "xs", "--num_likelihood", "4", "--perceptual", "0"),
        "run/model_index.json",
    ),
    "latent": Case(
        door("latent", *DRAWN, *SMALL, *PLAIN, "--from_scratch"),
        "run/model_index.json",
    ),
    "distill": Case(
        beside("distill", *DRAWN, *TEACHER, "--pipeline", "HOME/run"), "made/model_index.json", 0, save_pipeline
    ),
    "flow_map": Case(
        beside("flow_map", *DRAWN, *TEACHER, "--model", "dit", "--model_size", "xs"), "made/model_index.json"
    ),
    "text_to_image": Case(
        beside("text_to_image", *CAPTIONED, *SMALL, "--model", "uvit"), "made/model_index.json", 0, save_captions
    ),
    "unidiffuser": Case(
        beside("unidiffuser", *CAPTIONED, *SMALL, "--text_steps", "2"), "made/model_index.json", 0, save_captions
    ),
}
"""Trainings of which every k-th write can fail in a sweep."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    from hfgen.disk import saves

    monkeypatch.setattr(saves, "PATIENCE", 0.01)


@pytest.mark.parametrize("name", [name for name, case in SHORT_ONES.items() if case.few])
def test_a_disk_that_fails_at_some_write(name, tmp_path, capsys):
    code = list(CODES.values())[sum(map(ord, name)) % 3]
    assert sweep(SHORT_ONES[name], tmp_path, capsys, code, code != errno.EIO, SHORT_ONES[name].few)


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("name", [*SHORT_ONES, *TRAININGS])
def test_a_disk_that_fails_at_every_kth_write(name, code, tmp_path, capsys):
    case = {**SHORT_ONES, **TRAININGS}[name]
    assert sweep(case, tmp_path, capsys, code, code != errno.EIO, MOST if name in TRAININGS else 0)


def test_every_family_is_swept():
    from hfgen.registry import FAMILIES
    from tests.commands.test_full_disk import CASES

    others = {"again": "diffusion", "codes": "ar", "words": "word2vec", "anomaly": "anomaly", "reflow": "reflow"}
    assert {*TRAININGS, *CASES, *others.values()} >= set(FAMILIES)
