"""The command line: help without torch, examples that parse, near misses answered, options and YAML, sampling."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hfgen import cli
from hfgen import options as arguments
from hfgen.command_line.recipes import recipes
from hfgen.options import TrainArgs, as_dict, parse, parser, save_config
from hfgen.registry import FAMILIES, SAMPLERS
from hfgen.training import train_diffusion
from hfgen.utils import pictures
from tests.helpers.commands import DOORS, assert_parses

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {name: door.GROUPS for name, door in DOORS.items()}
FRONT = ("train_diffusion.py", "Train.", "example", *train_diffusion.GROUPS)


def stem(family):
    """The file name of a family's door."""
    return FAMILIES[family].door.rpartition(".")[2]


def run(capsys, *words):
    """`hfgen words` in this process: (exit status, what it printed, what it complained of)."""
    try:
        cli.main(list(map(str, words)))
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    out = capsys.readouterr()
    return status, out.out, out.err


def options(*words):
    """The front door's options as one dictionary."""
    return as_dict(*parse(parser(*FRONT), list(map(str, words)), *train_diffusion.GROUPS))


# --- help -------------------------------------------------------------------------------------------------------------

HELP = """
import contextlib, io, sys, time
from hfgen import cli

for words in (["--help"], [], ["train", "--help"], ["train", "diffusion", "--help"],
              ["train", "reflow", "--help"], ["train", "flow_map", "--help"],
              ["train", "distill", "--help"],
              ["train", "vae", "--help"], ["train", "gan", "--help"],
              ["train", "vqgan", "--help"], ["sample", "--help"],
              ["anomaly"], ["anomaly", "fit", "--help"], ["anomaly", "score", "--help"],
              ["compare", "--help"], ["recommend", "--help"], ["attention", "--help"], ["explain", "--help"],
              ["evaluate", "--help"], ["push", "--help"], ["recipes", "--help"], ["train", "anomaly", "--help"],
              ["serve", "--help"], ["provenance", "--help"], ["demo", "--help"],
              ["train", "diffusion", "--help_all"], ["evaluate", "--help_all"], ["data", "--help_all"],
              ["data", "--help"], ["info", "--help"], ["--version"]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        cli.main(words)
    print("==== " + " ".join(words))
    print(out.getvalue())
heavy = {"torch", "diffusers", "transformers", "datasets", "accelerate", "numpy", "PIL", "huggingface_hub"}
print("==== imported" + " ".join(sorted(heavy & set(sys.modules))))
"""


@pytest.fixture(scope="module")
def helps():
    done = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    blocks = done.stdout.split("==== ")[1:]
    return {block.split("\n", 1)[0]: block.split("\n", 1)[1].rstrip() for block in blocks}


def test_help_imports_nothing_heavy(helps):
    assert "imported" in helps, sorted(helps)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hfgen.cli", "--help"], cwd=ROOT, capture_output=True, check=True, timeout=60)
    assert time.perf_counter() - start < 5  # half a second where nobody else works; torch alone takes longer than this


def test_help_names_every_command_and_option(helps):
    assert helps["--help"] == helps[""]
    for name, (what, _) in cli.COMMANDS.items():
        assert name in helps["--help"] and what in helps["--help"]
    for group in train_diffusion.GROUPS:
        for name in group.__dataclass_fields__:
            assert f"--{name}" in helps["train diffusion --help_all"]
    assert helps["--version"].startswith("hfgen 0.")


def test_every_help_ends_with_an_example_that_parses(helps):
    for words, text in helps.items():
        if words in ("imported", "--version"):
            continue
        *_, title, example = text.splitlines()
        assert title == "example:", words
        assert_parses(shlex.split(example))


def test_recipes_parse():
    for name, recipe in recipes().items():
        groups = GROUPS[stem(recipe.family)]
        values = as_dict(*parse(parser("x", "x", "x", *groups), ["--config", name], *groups))
        assert values["output_dir"] != "outputs/run", name


def test_every_family_has_a_door_with_options_of_its_own_names():
    folder = ROOT / "training"
    assert {path.stem for path in folder.glob("train_*.py")} == {stem(family) for family in FAMILIES}
    for door in map(stem, FAMILIES):
        assert (folder / f"{door}.py").is_file()
        names = [name for group in GROUPS[door] for name in group.__dataclass_fields__]
        assert len(names) == len(set(names))


# --- near misses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smaple"], "no command 'smaple'; did you mean sample?"),
        (["frobnicate"], "no command 'frobnicate'; there are: train, recipes, sample, serve, demo, provenance, "),
        (["train", "difusion"], "no family 'difusion'; did you mean diffusion?"),
        (["train", "diffusion", "--num_processes"], "--num_processes needs a positive number, not ''"),
        (["train", "diffusion", "--num_processes=0"], "--num_processes needs a positive number, not '0'"),
        (["sample", "folder", "--guidance", "2"], "did you mean --guidance_scale or --guidance_method?"),
        (
            ["sample", "folder", "--num_samples", "many"],
            "--num_samples: 'many' is no whole number; it must be at least 1.",
        ),
        (["sample"], "pipeline"),
        (["sample", "nowhere"], "no folder nowhere"),
        (["sample", "nowhere", "--num_samples", "0"], "--num_samples 0 must be at least 1"),
        (["sample", "nowhere", "--dtype", "int8"], "must be one of float32, bfloat16, float16; got 'int8'."),
        (["data", "--resolutoin", "8"], "did you mean --resolution?"),
        (["data", "/no/such/folder"], "/no/such/folder"),
        (["info", "--verbose"], "--verbose is no option of hfgen info"),
    ],
)
def test_mistakes_are_answered_in_a_line_or_two(capsys, words, message):
    status, _, complaint = run(capsys, *words)
    assert status == 2 and complaint.startswith("error: ") and message in complaint
    assert "Traceback" not in complaint and complaint.count("\n") == 1


def complaint_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        options(*words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_unknown_options_are_answered_with_the_nearest(capsys, tmp_path):
    assert "did you mean --learning_rate?" in complaint_of(capsys, "--learning_rte", "0.1")
    assert "did you mean --learning_rate?" in complaint_of(capsys, "--seed", "3", "--lerning_rate=0.1")
    config = tmp_path / "c.yaml"
    config.write_text("seed: 3\nlearnin_rate: 0.1\n")
    message = complaint_of(capsys, "--config", config)
    assert "learnin_rate" in message and "did you mean learning_rate?" in message
    assert "did you mean" not in complaint_of(capsys, "--zzzzzz", "1")
    assert "--seed" in complaint_of(capsys, "--see", "1")  # no guessing at abbreviations


@pytest.mark.parametrize(
    "words",
    [
        ["--train_batch_size", "many"],
        ["--train_batch_size", "1.5"],
        ["--learning_rate", "fast"],
        ["--use_ema", "perhaps"],
        ["--lr_scheduler", "cosin"],
        ["--path", "curved"],
        ["--channels", "2"],
        ["--max_train_steps", "[1]"],
        ["--config", "no/such/file.yaml"],
    ],
)
def test_values_of_the_wrong_type_are_refused(capsys, words):
    message = complaint_of(capsys, *words)
    assert message.startswith("error: ") and words[0].removeprefix("--") in message and "Traceback" not in message


# --- options and YAML -------------------------------------------------------------------------------------------------


def test_switches(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("use_ema: false\nrandom_flip: true\n")
    assert (options()["use_ema"], options()["random_flip"]) == (True, False)
    assert options("--no_use_ema")["use_ema"] is False
    assert options("--use_ema")["use_ema"] is True
    assert options("--use_ema", "false")["use_ema"] is False
    assert options("--use_ema=true")["use_ema"] is True
    assert options("--config", config)["use_ema"] is False
    assert options("--config", config, "--use_ema")["use_ema"] is True
    assert options("--config", config, "--no_random_flip")["random_flip"] is False
    assert options("--config", config)["random_flip"] is True


def test_flags_override_yaml_and_yaml_overrides_defaults(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("learning_rate: 1e-4\nnum_epochs: 3\nmax_grad_norm: null\nseed: 7\ndataset: folder/of images\n")
    values = options("--config", config, "--seed", 8)
    assert values["learning_rate"] == 1e-4  # YAML 1.1 would call this a string
    assert (values["num_epochs"], values["max_grad_norm"], values["seed"]) == (3, None, 8)
    assert values["dataset"] == "folder/of images"
    assert values["train_batch_size"] == TrainArgs().train_batch_size
    assert options("--seed", 9, "--config", config)["seed"] == 9  # whatever their order
    assert options("--seed", 9, f"--config={config}")["seed"] == 9
    assert options("--max_grad_norm", "null")["max_grad_norm"] is None
    assert options("--dataset", "123")["dataset"] == "123" and options("--hub_model_id", "1e3")["hub_model_id"] == "1e3"


def test_the_resolved_configuration_repeats_the_run_and_keeps_no_secret(tmp_path):
    words = ["--learning_rate", "3e-4", "--no_use_ema", "--path", "vp", "--prediction_type", "epsilon"]
    words += ["--max_grad_norm", "null", "--dataset", "a: b #c", "--hub_token", "hf_secret", "--push_to_hub"]
    parsed = parse(parser(*FRONT), words, *train_diffusion.GROUPS)
    save_config(tmp_path / "config.yaml", as_dict(*parsed))
    text = (tmp_path / "config.yaml").read_text()
    assert "hub_token" not in text and "hf_secret" not in text
    assert "hub_token" not in as_dict(*parsed)
    assert options("--config", tmp_path / "config.yaml") == as_dict(*parsed)
    names = {name for group in train_diffusion.GROUPS for name in group.__dataclass_fields__}
    assert set(yaml.safe_load(text)) == names - set(arguments.SECRETS)


def test_options_of_all_groups_have_names_of_their_own():
    names = [name for group in train_diffusion.GROUPS for name in group.__dataclass_fields__]
    assert len(names) == len(set(names))
    users_know = """output_dir train_batch_size max_train_steps num_epochs learning_rate lr_scheduler lr_warmup_steps
    gradient_accumulation_steps mixed_precision use_ema checkpointing_steps checkpoints_total_limit
    resume_from_checkpoint seed push_to_hub hub_model_id resolution center_crop random_flip"""
    assert set(users_know.split()) <= set(names)


def test_train_becomes_a_launch_of_the_front_door(monkeypatch, capsys):
    seen = []

    def execve(program, command, environment):
        seen.append((program, command))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for words in (["--num_processes", "2", "--seed", "1"], ["--seed", "1", "--num_processes=2"]):
        assert run(capsys, "train", "diffusion", *words)[0] == 0
    (program, command), other = seen
    assert program == sys.executable and other[1] == command
    assert command[1:4] == ["-m", "hfgen.commands.launcher", "torchrun"]
    assert command[-4:] == ["-m", "hfgen.training.train_diffusion", "--seed", "1"]
    launch = command[4:-4]
    assert launch[launch.index("--nproc-per-node") + 1] == "2" and "--standalone" in launch
    with monkeypatch.context() as gpus:
        gpus.setattr(torch.cuda, "is_available", lambda: True)
        assert run(capsys, "train", "diffusion", "--num_processes", "2")[0] == 0
    launch = seen.pop()[1][3:]
    assert launch[:3] == ["accelerate", "--quiet", "--multi_gpu"] and launch[launch.index("--num_processes") + 1] == "2"
    assert run(capsys, "train", "diffusion", "--seed", "1", "--num_processes", "1")[0] == 0
    assert seen[-1][1][1:] == ["-m", "hfgen.training.train_diffusion", "--seed", "1"]  # gets its signals itself


# --- hfgen sample -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from hfgen import DenoisingPipeline, DiTModel, RectifiedFlowScheduler

    def build(name, classes, labels):
        torch.manual_seed(0)
        network = DiTModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            hidden_size=32,
            num_layers=1,
            num_attention_heads=2,
            num_class_embeds=classes and classes + 1,
        )
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.2)
        folder = tmp_path_factory.mktemp("pipelines") / name
        DenoisingPipeline(network, RectifiedFlowScheduler(), classes, labels).save_pretrained(folder)
        return folder

    return build("classes", 3, ["cat", "7", "owl"]), build("plain", None, None)


def drawn(capsys, folder, pipeline, *words):
    """The PNGs that `hfgen sample` writes, as one array."""
    status, out, complaint = run(
        capsys, "sample", pipeline, "--num_inference_steps", "2", "--device", "cpu", "--output_dir", folder, *words
    )
    assert status == 0, complaint
    files = sorted(Path(folder).glob("*.png"))
    assert f"{len(files)} images in {folder}" in out
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_sample_draws_a_grid(capsys, saved, tmp_path):
    target = tmp_path / "new" / "grid.png"
    words = ("--num_samples", "9", "--num_inference_steps", "2", "--device", "cpu", "--grid", target)
    status, out, complaint = run(capsys, "sample", saved[0], *words)
    assert status == 0, complaint
    assert f"9 images in {target}" in out
    assert Image.open(target).size == (3 * (8 * 21 + 1) + 1,) * 2
    assert [p.name for p in target.parent.iterdir()] == ["grid.png"]


def test_sample_does_not_depend_on_the_batch_size(capsys, saved, tmp_path):
    labels = ("--class_labels", "cat,owl", "--guidance_scale", "1.5")
    whole = drawn(capsys, tmp_path / "whole", saved[0], "--num_samples", "5", *labels)
    parts = drawn(capsys, tmp_path / "parts", saved[0], "--num_samples", "5", "--batch_size", "2", *labels)
    assert whole.shape == (5, 8, 8, 3)
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert sorted(p.name for p in (tmp_path / "parts").iterdir())[-1] == "000004.png"
    later = drawn(capsys, tmp_path / "later", saved[0], "--num_samples", "1", "--seed", "2", "--class_labels", "cat")
    alone = drawn(capsys, tmp_path / "alone", saved[0], "--num_samples", "3", "--class_labels", "cat")
    assert np.abs(later[0].astype(int) - alone[2]).max() <= 1


def test_sample_classes(capsys, saved, tmp_path):
    by_class = [
        drawn(capsys, tmp_path / name, saved[0], "--num_samples", "3", "--class_labels", name)
        for name in ("cat", "1", "owl")
    ]
    assert np.abs(by_class[0].astype(int) - by_class[1]).max() > 2
    mixed = drawn(capsys, tmp_path / "all", saved[0], "--num_samples", "3", "--class_labels", "all")
    for i in range(3):
        assert np.abs(mixed[i].astype(int) - by_class[i][i]).max() <= 1
    named = drawn(
        capsys, tmp_path / "named", saved[0], "--num_samples", "3", "--class_labels", "7"
    )  # a name before a number
    assert np.abs(named.astype(int) - by_class[1]).max() <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_with_any_scheduler(capsys, saved, tmp_path, name):
    images = drawn(capsys, tmp_path, saved[1], "--num_samples", "1", "--scheduler", name)
    assert images.std() > 0


@pytest.mark.parametrize(
    ("which", "words", "message"),
    [
        (0, ["--scheduler", "dpm"], "scheduler='dpm' is not known. Choose one of: ddpm"),
        (0, ["--class_labels", "dog"], "class 'dog' is not known: give a number from 0 to 2, or one of cat, 7, owl"),
        (0, ["--class_labels", "3"], "class 3 is not known"),
        (1, ["--class_labels", "0"], "trained without classes"),
        (1, ["--class_labels", "all"], "trained without classes"),
        (0, ["--guidance_scale", "2"], "class_labels are needed"),
        (0, ["--num_inference_steps", "0"], "--num_inference_steps 0 must be at least 1"),
        (0, ["--device", "abacus"], "device='abacus' can't be used"),
    ],
)
def test_what_can_not_be_drawn_is_refused(capsys, saved, tmp_path, monkeypatch, which, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, complaint = run(capsys, "sample", saved[which], "--device", "cpu", *words)
    assert status == 2 and message in complaint and "Traceback" not in complaint
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    from hfgen import NormalizingFlowPipeline, TransformerFlowModel

    torch.manual_seed(0)
    network = TransformerFlowModel(8, 1, num_blocks=2, layers_per_block=1, hidden_size=32, num_attention_heads=2)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    pipeline, folder = NormalizingFlowPipeline(network), tmp_path_factory.mktemp("flow")
    pipeline.save_pretrained(folder)
    return pipeline, folder


@pytest.mark.parametrize(
    "call",
    [
        {"temperature": 0.5},
        {"num_segments": 4, "num_inference_steps": 1},
        {"temperature": 0.0, "num_segments": 2},
        {"num_segments": 1, "num_inference_steps": 3},
    ],
)
def test_a_flow_draws_from_the_shell_what_it_draws_from_python(capsys, flow, tmp_path, call):
    pipeline, folder = flow
    words = [word for name, value in call.items() for word in (f"--{name}", value)]
    status, _, errors = run(
        capsys, "sample", folder, "--num_samples", 2, "--device", "cpu", "--output_dir", tmp_path, *words
    )
    assert status == 0, errors
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    for path, image in zip(sorted(tmp_path.glob("*.png")), pipeline(2, generator=seeds, **call).images, strict=True):
        assert np.array_equal(np.array(Image.open(path)), np.array(image))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--truncation", "1"], "NormalizingFlowPipeline takes no truncation (1.0 given), only GANPipeline"),
        (["--num_segments", "99"], "num_segments=99 must be from 1 to 16"),
        (["--num_inference_steps", "2"], "num_inference_steps=2 bounds the iterations of segments"),
        (["--temperature", "-1"], "--temperature -1.0 must be at least 0"),
        (
            ["--temperature", "0.5", "--call.temperature", "0.7"],
            "--call.temperature and --temperature are one",
        ),
    ],
)
def test_what_a_flow_does_not_take_is_refused_by_name(capsys, flow, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(capsys, "sample", flow[1], "--device", "cpu", *words)
    assert status == 2 and message in errors and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["temperature", "num_segments", "truncation"])
def test_what_steps_do_not_know_is_refused_by_name(capsys, saved, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(capsys, "sample", saved[1], "--device", "cpu", f"--{name}", "1")
    assert status == 2 and f"DenoisingPipeline takes no {name} (1" in errors and not list(tmp_path.iterdir())


def test_sample_in_half_precision(capsys, saved, tmp_path):
    full = drawn(capsys, tmp_path / "full", saved[1], "--num_samples", "2")
    half = drawn(capsys, tmp_path / "half", saved[1], "--num_samples", "2", "--dtype", "bfloat16")
    assert 0 < np.abs(full.astype(int) - half).max() < 40


# --- hfgen data, info -------------------------------------------------------------------------------------------------


def test_data_says_what_is_there(capsys, tmp_path):
    status, out, complaint = run(capsys, "data", "digits", "--grid", tmp_path / "new" / "p.png")
    assert status == 0, complaint
    for fact in ("1,797", "8 × 8", "grey", "10:"):
        assert fact in out
    assert Image.open(tmp_path / "new" / "p.png").size[0] >= 512
    same = run(capsys, "data", "--dataset", "digits", "--grid", tmp_path / "q.png")[1]
    assert same.splitlines()[:-1] == out.splitlines()[:-1]
    assert (tmp_path / "q.png").read_bytes() == (tmp_path / "new" / "p.png").read_bytes()
    few = run(capsys, "data", "digits", "--max_train_samples", "5", "--grid", tmp_path / "r.png")[1]
    assert "1,797" not in few


def test_info_names_versions(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0 and torch.__version__.split("+")[0] in out
    assert {"hfgen", "python", "torch", "diffusers", "accelerate"} <= {line.split(":")[0] for line in out.splitlines()}


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_grid_shows_every_pixel_enlarged_in_its_place():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)
    sheet = np.asarray(pictures.grid([Image.fromarray(p) for p in pixels], 3, width=60, gap=2))
    factor = 60 // (3 * 6)
    assert sheet.shape == (3 * (4 * factor + 2) + 2, 3 * (6 * factor + 2) + 2, 3)
    for i in range(7):
        top, left = i // 3 * (4 * factor + 2) + 2, i % 3 * (6 * factor + 2) + 2
        cell = sheet[top : top + 4 * factor, left : left + 6 * factor]
        np.testing.assert_array_equal(cell, pixels[i].repeat(factor, 0).repeat(factor, 1))
    assert (sheet[-4 * factor :, -6 * factor :] == 255).all()  # places without an image are white


def test_grids_of_other_modes():
    red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert pictures.grid([red], 1, width=2).getpixel((1, 1)) == (255, 255, 255)  # transparent: white shows
    assert pictures.grid([Image.new("L", (2, 2), 7)], 5, width=2).getpixel((1, 1)) == (7, 7, 7)
    assert pictures.grid([Image.new("L", (600, 2))] * 2, 2).size == (2 * 601 + 1, 4)  # never made smaller
    with pytest.raises(ValueError, match=r"images of one size; got 2 of sizes"):
        pictures.grid([Image.new("L", (2, 2)), Image.new("L", (2, 3))], 2)
    with pytest.raises(ValueError, match=r"got 0"):
        pictures.grid([], 2)


def test_an_animation_holds_its_last_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), (20 * i, 0, 0)) for i in range(10)]
    pictures.animate(frames, tmp_path / "a.gif", seconds=1.0, hold=2.0)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 10 and gif.info["loop"] == 0
        times, reds = [], []
        for i in range(10):
            gif.seek(i)
            times.append(gif.info["duration"])
            reds.append(gif.convert("RGB").getpixel((8, 8))[0])
    assert times == [100] * 9 + [2100]
    assert np.abs(np.subtract(reds, [20 * i for i in range(10)])).max() <= 8


def test_defaults_of_the_dataclasses_are_those_of_the_parser():
    values = options()
    for group in train_diffusion.GROUPS:
        for name, value in as_dict(group()).items():
            assert values[name] == value, name
