"""The front door of diffusion: the files of a run, resumed runs, and every path with every prediction kind."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image

import hfgen
from hfgen.console import notes as console
from hfgen.registry import PATHS
from hfgen.training import train_diffusion
from tests.helpers.doors import check_refusal, file_contents, run_door

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("flow_prediction", "epsilon", "v_prediction", "sample", "score")
QUICK = ["--max_train_samples", "48", "--train_batch_size", "8", "--model_size", "xs", "--lr_warmup_steps", "2"]
FEW = ["--max_train_steps", "2", "--eval_batch_size", "4", "--num_inference_steps", "2", "--report_to", "none"]


def launch(*words):
    """Run `accelerate launch training/train_diffusion.py` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    options = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "training/train_diffusion.py"]
    return subprocess.run(
        [*command, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run(capsys, *words):
    return run_door(train_diffusion.main, capsys, *words)


# --- one run, as a user starts it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Run four steps with classes; return the folder and stdout."""
    folder = tmp_path_factory.mktemp("outputs") / "digits"
    recipe = ["--config", "training/configs/digits.yaml", "--output_dir", folder, *QUICK]
    few = ["--sample_steps", "2", "--checkpointing_steps", "2", "--logging_steps", "1", "--num_inference_steps", "4"]
    process = launch(*recipe, *few, "--max_train_steps", "4", "--eval_batch_size", "20")
    assert process.returncode == 0, process.stderr[-4000:]
    return folder, process.stdout


def test_a_run_saves_pipeline_pictures_logs_and_checkpoints(finished_run):
    folder, out = finished_run
    assert {path.name for path in folder.iterdir() if path.suffix != ".py"} == {
        *("samples.png", "denoising.gif", "loss.png", "metrics.json", "metrics.jsonl", "README.md", "config.yaml"),
        *("model_index.json", "denoiser", "scheduler", "samples", "logs", "checkpoint-2", "checkpoint-4"),
        "timelapse.gif",
    }
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-0000002.png"]
    with Image.open(folder / "samples.png") as grid, Image.open(folder / "denoising.gif") as film:
        assert grid.size[0] / grid.size[1] == pytest.approx(2 / 10, abs=0.02)  # one row per class, with two images
        assert film.n_frames == 5  # noise and four steps
    with Image.open(folder / "timelapse.gif") as film:
        assert film.n_frames == 2  # the grid of step 2, and the finished one
    assert f"hfgen sample {folder} --num_samples 16 --class_labels 3 --grid grid.png" in out
    assert ("tensorboard --logdir" in out) == (folder / "logs").is_dir()


def test_the_metrics_of_a_run(finished_run):
    folder, _ = finished_run
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["steps"], metrics["images_seen"], metrics["ema"]) == (4, 32, True)
    assert metrics["final_loss"] > 0 and metrics["parameters"]["denoiser"] > 1e5 and metrics["peak_memory_mib"] > 50
    # the version of the package may lack the build that torch itself names
    assert metrics["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert set(rows[0]) == {"step", "epoch", "loss", "grad_norm", "lr", "images_per_second", "seconds"}
    assert rows[-1]["loss"] == pytest.approx(metrics["final_loss"]) and rows[-1]["epoch"] == pytest.approx(4 * 8 / 48)


def test_the_card_of_a_run_is_valid_on_the_hub(finished_run):
    from huggingface_hub import ModelCard, RepoCard

    folder, _ = finished_run
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    facts = card.data.to_dict()
    assert facts["library_name"] == "diffusers" and facts["pipeline_tag"] == "unconditional-image-generation"
    assert {"hfgen", "rectified-flow"} <= set(facts["tags"]) and "datasets" not in facts
    assert yaml.safe_load(RepoCard.load(folder / "README.md").data.to_yaml()) == facts
    for text in (
        "](samples.png)",
        "](denoising.gif)",
        "](timelapse.gif)",
        "| classes | 10: numbers from 0 to 9 |",
        "](loss.png)",
        "trust_remote_code=True",
        "## Licence",
        "HFGenPipeline.from_pretrained",
        "--config config.yaml",
        "digits",
    ):
        assert text in card.text
    assert str(folder.parent) not in card.content  # a folder of this machine
    for name in ("samples.png", "loss.png", "denoising.gif", "config.yaml", "metrics.jsonl", "metrics.json"):
        assert (folder / name).is_file()


def test_the_saved_pipeline_draws_the_samples_of_the_grid(finished_run):
    from hfgen import HFGenPipeline
    from hfgen.utils import pictures

    folder, _ = finished_run
    pipeline = HFGenPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.label_names == [str(i) for i in range(10)]
    images = pipeline(
        class_labels=[c for c in range(10) for _ in range(2)],
        num_inference_steps=4,
        guidance_scale=yaml.safe_load((folder / "config.yaml").read_text())["guidance_scale"],
        generator=[torch.Generator().manual_seed(i) for i in range(20)],
    ).images
    with Image.open(folder / "samples.png") as grid:
        difference = np.subtract(grid, pictures.grid(images, 2, labels=list("0123456789")), dtype=int)
    assert np.abs(difference).max() <= 1


def test_the_saved_configuration_goes_on_and_does_not_train_twice(finished_run, capsys):
    folder, _ = finished_run
    before = (folder / "metrics.jsonl").read_text()
    weights = (folder / "denoiser" / "diffusion_pytorch_model.safetensors").read_bytes()
    status, out, errors = run(capsys, "--config", folder / "config.yaml", "--report_to", "none")
    assert status == 0, errors
    assert f"Resumed from {folder}/checkpoint-4" in out and "at step 4" in out
    assert (folder / "metrics.jsonl").read_text() == before
    assert (folder / "denoiser" / "diffusion_pytorch_model.safetensors").read_bytes() == weights

    status, out, errors = run(
        capsys, "--config", folder / "config.yaml", "--report_to", "none", "--max_train_steps", "6"
    )
    assert status == 0, errors
    rows = (folder / "metrics.jsonl").read_text()
    assert rows.startswith(before) and [json.loads(row)["step"] for row in rows.splitlines()] == [1, 2, 3, 4, 5, 6]
    assert (folder / "denoiser" / "diffusion_pytorch_model.safetensors").read_bytes() != weights
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 6
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}

    config = (folder / "config.yaml").read_text()
    for resume in ("none", "checkpoint-99"):
        words = ["--config", folder / "config.yaml", "--seed", "5", "--resume_from_checkpoint", resume]
        status, _, errors = run(capsys, *words, "--report_to", "none")
        assert status == 1 and errors.startswith("error: ") and "Traceback" not in errors
        assert (folder / "config.yaml").read_text() == config  # a refused run changes nothing


def test_a_misspelt_option_is_refused_with_a_suggestion(tmp_path):
    command = [sys.executable, "training/train_diffusion.py", "--output_dir", tmp_path / "run", "--learning_rat", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 2 and "did you mean --learning_rate?" in process.stderr
    assert not (tmp_path / "run").exists()


# --- every path with every prediction kind ----------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """Make `build_denoiser` return a very small network."""
    import hfgen
    from hfgen import DiTModel

    def build(
        architecture,
        size,
        resolution,
        channels,
        num_classes=None,
        gradient_checkpointing=False,
        null_class=True,
        learned_variance=False,
    ):
        return DiTModel(
            sample_size=resolution,
            in_channels=channels,
            out_channels=channels * (1 + learned_variance),
            patch_size=4,
            hidden_size=16,
            num_layers=1,
            num_attention_heads=2,
            num_class_embeds=None if num_classes is None else num_classes + null_class,
        )

    monkeypatch.setattr(hfgen, "build_denoiser", build, raising=False)


IMPOSSIBLE = {(path, "score") for path in PATHS} | {("ve", "flow_prediction"), ("ve", "v_prediction")}


@pytest.mark.parametrize(("path", "kind"), list(itertools.product(PATHS, KINDS)))
def test_every_pair_is_trained_and_sampled_or_refused_in_one_line(capsys, tmp_path, tiny, path, kind):
    folder = tmp_path / "run"
    words = [*QUICK, *FEW, "--output_dir", folder, "--path", path, "--prediction_type", kind]
    status, _, errors = run(capsys, *words)
    if (path, kind) in IMPOSSIBLE:
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1
        assert "--weighting min_snr" in errors
        assert not folder.exists()
        status, _, errors = run(capsys, *words, "--weighting", "min_snr")
    assert status == 0, errors
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and rows[-1]["loss"] < 100
    assert (folder / "samples.png").is_file() and (folder / "model_index.json").is_file()
    saved = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert saved["prediction_type"] == kind and saved["path"] == PATHS[path]["path"]


# --- dry runs and refusals --------------------------------------------------------------------------------------------


def test_a_dry_run_estimates_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*QUICK, "--max_train_steps", "1000", "--gradient_accumulation_steps", "2", "--class_conditional"]
    status, out, errors = run(capsys, *words, "--output_dir", "run", "--dry_run", "--push_to_hub")
    assert status == 0, errors
    facts = {line.split(":")[0]: line.split(":", 1)[1].strip() for line in out.splitlines() if ":" in line}
    assert int(facts["denoiser parameters"].replace(",", "")) > 1e5
    assert facts["optimiser steps"] == "1,000 (16,000 images)"
    speed, minutes = float(facts["speed"].split()[0]), float(facts["time"].split()[0])
    assert minutes == pytest.approx(16000 / speed / 60, rel=0.05, abs=0.06)
    assert facts["memory, weights and optimiser"].endswith("MiB")
    assert facts["memory, peak of the process"].endswith("MiB")
    assert not list(tmp_path.rglob("*"))


@pytest.fixture
def unlabelled(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        Image.new("L", (8, 8), 30 * i).save(folder / f"{i}.png")
    return folder


def test_classes_need_labels(capsys, tmp_path, unlabelled):
    words = [*QUICK, *FEW, "--output_dir", tmp_path / "run", "--class_conditional"]
    status, _, errors = run(capsys, *words, "--dataset", unlabelled)
    assert status == 2 and "has no labels for --class_conditional; name them: --label_column" in errors
    assert not (tmp_path / "run").exists()


def test_a_folder_of_images_is_trained_on_without_classes(capsys, tmp_path, tiny, unlabelled):
    status, _, errors = run(capsys, *QUICK, *FEW, "--output_dir", tmp_path / "run", "--dataset", unlabelled)
    assert status == 0, errors
    assert str(tmp_path) not in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resolution", "97", "--model", "unet"], "can't divide 97 x 97 images"),
        (["--path", "ve"], "prediction_type='flow_prediction' on the VEPath"),
        (["--scheduler", "dpm"], "scheduler='dpm' is not known"),
        (["--class_conditional", "--label_dropout", "2"], "--label_dropout 2.0 must be from 0 to 1"),
        (["--label_dropout", "0.2"], "--label_dropout 0.2 does nothing with --class_conditional False, only with True"),
        (["--snr_gamma", "3"], "--snr_gamma 3.0 does nothing with --weighting simple, only with min_snr"),
        (
            ["--logit_std", "3", "--time_sampling", "uniform"],
            "--logit_std 3.0 does nothing with --time_sampling uniform, only with logit_normal or null",
        ),
        (["--logit_std", "3", "--path", "cosine"], "--logit_std 3.0 does nothing with --path cosine and --weighting"),
        (["--logit_mean", "1", "--weighting", "sigmoid"], "--logit_mean 1.0 does nothing with --path straight and --w"),
        (["--variance", "learned_range"], "--variance learned_range needs a diffusion path, such as --path vp"),
        (["--time_sampling", "importance"], "--time_sampling importance needs a learned variance"),
        (["--vlb_weight", "1"], "--vlb_weight 1.0 does nothing with --variance fixed, only with learned_range"),
        (["--guidance_scale", "2"], "guidance_scale=2.0 needs a network that knows classes. Add --class_conditional"),
        (
            ["--guidance_scale", "2", "--class_conditional", "--label_dropout", "0"],
            "guidance_scale=2.0 needs images trained on without their class. Give --label_dropout 0.1",
        ),
        ("learning_rat: 1", "did you mean learning_rate?"),
        ("learning_rate: much", "learning_rate"),
        ("train_batch_size: 1.5", "train_batch_size"),
        ("model: [unet]", "model"),
    ],
)
def test_impossible_options_are_refused_before_data_are_read(capsys, tmp_path, monkeypatch, words, message):
    """`words` are flags, or the text of a YAML file."""
    if isinstance(words, str):
        (tmp_path / "recipe.yaml").write_text(words)
        words = ["--config", tmp_path / "recipe.yaml"]
    check_refusal(train_diffusion.main, capsys, monkeypatch, tmp_path / "run", words, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_train_steps", "0"], "--max_train_steps 0 must be at least 1"),
        (["--train_batch_size", "0"], "batch_size"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0"),
        (["--dataset", "no/such/data"], "no/such/data"),
        (["--push_every", "5"], "--push_every 5 does nothing with --push_to_hub False, only with True"),
        (
            ["--push_to_hub", "--push_every", "5", "--sample_steps", "0"],
            "--push_every 5 does nothing with --sample_steps 0, only with a number above 0",
        ),
        (["--push_to_hub"], "--push_to_hub needs a token"),
        (["--ema_max_decay", "1.5"], "ema_"),
        (["--guidance_scale", "2", "--eval_batch_size", "0"], "eval_batch_size"),
        (["--num_inference_steps", "0"], "num_inference_steps"),
        (["--report_to", "carrier_pigeon"], "report_to"),
    ],
)
def test_options_out_of_range_are_refused_in_one_message(capsys, tmp_path, tiny, monkeypatch, words, message):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    status, _, errors = run(capsys, *QUICK, *FEW, "--output_dir", tmp_path / "run", *words)
    assert status in (1, 2) and message in errors and errors.startswith("error: ")
    assert not (tmp_path / "run" / "model_index.json").exists()


# --- interrupted, refused, out of memory ------------------------------------------------------------------------------


LONG = [*QUICK, *FEW, "--max_train_steps", "6", "--sample_steps", "2", "--checkpointing_steps", "3"]
LONG += ["--logging_steps", "1"]


def test_an_interrupted_run_ends_like_an_uninterrupted_one(capsys, tmp_path, tiny, monkeypatch):
    import hfgen

    for name, stops in (("whole", ()), ("cut", (1, 4))):
        loss = hfgen.Denoising.loss

        def loss_and_stop(self, player, networks, batch, step, stops=stops, loss=loss):
            if step.number in stops:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(self, player, networks, batch, step)

        with monkeypatch.context() as patch:
            patch.setattr(hfgen.Denoising, "loss", loss_and_stop)
            for stop in stops:
                status, out, _ = run(capsys, *LONG, "--output_dir", tmp_path / name)
                assert (
                    status == 128 + signal.SIGTERM
                    and f"Stopped at step {stop + 1}; the same command goes on from" in out
                )
        assert run(capsys, *LONG, "--output_dir", tmp_path / name)[0] == 0
    whole, cut = (file_contents(tmp_path / name) for name in ("whole", "cut"))
    same = [name for name in whole if name.endswith((".png", ".gif", ".safetensors")) and "checkpoint-3" not in name]
    assert len(same) == 2 + 1 + 1 + 1 + 1 + 1 + 2  # grids, samples, films, losses, weights; the last checkpoint
    assert not [name for name in same if whole[name] != cut[name]]
    lines = [files["metrics.jsonl"].split(b"\n") for files in (whole, cut)]
    timeless = [[line.split(b', "images_per_second"')[0] for line in part] for part in lines]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 7


def test_a_checkpoint_holds_options_versions_and_the_fingerprint_of_the_data(capsys, tmp_path, tiny):
    folder = tmp_path / "run"
    assert run(capsys, *QUICK, *FEW, "--output_dir", folder)[0] == 0
    config = json.loads((folder / "checkpoint-2" / "state.json").read_text())["config"]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert {name: config[name] for name in saved} == saved and config["num_processes"] == 1
    assert config["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    from hfgen.data.images import load_images
    from hfgen.options import DataArgs

    assert config["data_fingerprint"] == load_images(DataArgs(max_train_samples=48)).fingerprint
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert config["versions"]["revision"].rstrip("+") == head.strip()
    else:
        assert "revision" not in config["versions"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "5"], "seed: 0 -> 5"),
        (["--train_batch_size", "4"], "train_batch_size: 8 -> 4"),
        (["--model", "dit"], "model: patch_unet -> dit"),
        (["--path", "vp"], "path: straight -> vp"),
        (["--max_train_samples", "40"], "max_train_samples: 48 -> 40"),
        (["--dataset", "folder"], "data_fingerprint: "),
        (["--resume_from_checkpoint", "none"], "asks for a new one"),
        (["--resume_from_checkpoint", "checkpoint-99"], "checkpoint-99: there is no such folder"),
        ("optimizer.bin", "optimizer.bin has"),
    ],
)
def test_a_refused_run_changes_nothing(capsys, tmp_path, tiny, unlabelled, words, message):
    folder = tmp_path / "run"
    assert run(capsys, *QUICK, *FEW, "--output_dir", folder)[0] == 0
    if isinstance(words, str):
        file = folder / "checkpoint-2" / words
        file.write_bytes(file.read_bytes()[:-9])
        words = []
    words = [unlabelled if word == "folder" else word for word in words]
    before = file_contents(folder)
    status, _, errors = run(capsys, *QUICK, *FEW, "--output_dir", folder, "--max_train_steps", "4", *words)
    assert status == 1 and "error: " in errors and message in errors and "Traceback" not in errors
    assert file_contents(folder) == before


def test_a_loss_that_diverges_ends_the_run_with_advice(capsys, tmp_path, tiny):
    words = ["--learning_rate", "1e30", "--lr_scheduler", "constant", "--lr_warmup_steps", "0"]
    words += ["--max_train_steps", "9", "--checkpointing_steps", "1"]
    status, _, errors = run(capsys, *QUICK, *FEW, *words, "--output_dir", tmp_path / "run")
    assert status == 1 and errors.startswith("error: ") and " at step " in errors and "Lower --learning_rate" in errors
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoint-'}" in errors


def test_an_out_of_memory_error_names_options_that_help(capsys, tmp_path, tiny, monkeypatch):
    import hfgen

    def loss(*_):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(hfgen.Denoising, "loss", loss)
    words = ["--train_batch_size", "24", "--gradient_accumulation_steps", "3"]
    status, _, errors = run(capsys, *QUICK, *FEW, *words, "--output_dir", tmp_path / "run")
    assert status == 1 and "out of memory (tried to allocate 9 GiB)" in errors
    assert "--train_batch_size 24 to 12 with --gradient_accumulation_steps 6 (the same result)" in errors
    assert "--gradient_checkpointing" in errors and "--mixed_precision bf16" in errors


def test_one_batch_can_be_overfitted(capsys, tmp_path):
    """Each step sees the same images, whatever the accumulation, and the loss falls by 40 %."""
    from hfgen.data.images import load_images
    from hfgen.families.run import Run
    from hfgen.options import DataArgs, TrainArgs

    args = TrainArgs(train_batch_size=4, gradient_accumulation_steps=2, overfit_batch=True)
    loader = Run([args], accelerator=Accelerator(cpu=True)).batches(load_images(DataArgs(max_train_samples=24)))
    first, second, third = itertools.islice(loader.iterate(0), 3)
    assert torch.equal(first["x"], third["x"]) and not torch.equal(first["x"], second["x"])
    assert torch.equal(next(loader.iterate(7))["x"], second["x"])
    assert loader.batches_per_epoch == 6

    few = ["--model", "dit", "--model_size", "xs", "--train_batch_size", "16", "--lr_warmup_steps", "10"]
    few += ["--eval_batch_size", "4", "--optimizer", "adamw"]
    words = ["--max_train_steps", "80", "--logging_steps", "20", "--report_to", "none", "--num_inference_steps", "2"]
    status, _, errors = run(capsys, "--overfit_batch", *few, *words, "--output_dir", tmp_path / "run")
    assert status == 0, errors
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.6 * losses[0]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["overfit_batch"] is True


def test_control_c_saves_a_checkpoint_and_ends_with_its_status(tmp_path):
    """The signal goes to the command and to all processes that it started, as from a terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["HF_HOME"] = str(tmp_path)  # without a configuration of accelerate
    words = ["train", "diffusion", *QUICK, *FEW, "--max_train_steps", "100000", "--logging_steps", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "hfgen.cli", *words, "--output_dir", str(tmp_path / "run")],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Stopped at step " in out and "Traceback" not in errors


def test_a_failed_push_keeps_the_model(capsys, tmp_path, tiny, monkeypatch):
    from hfgen.saving import hub

    pushes = []

    def push(folder, repo, private, token):
        pushes.append((folder, repo, private, token))
        raise ValueError("The Hub refused")

    monkeypatch.setattr(hub, "push", push)
    folder = tmp_path / "run"
    words = ["--push_to_hub", "--hub_token", "hf_secret", "--hub_model_id", "a/b", "--hub_private_repo"]
    status, _, errors = run(capsys, *QUICK, *FEW, "--output_dir", folder, *words)
    assert status == 0 and "the push failed (The Hub refused)" in errors
    assert pushes == [(folder, "a/b", True, "hf_secret")]
    assert (folder / "model_index.json").is_file()
    for path in folder.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes()


def test_pushes_during_training_may_fail_without_stopping_it(capsys, tmp_path, tiny, monkeypatch):
    import huggingface_hub.utils._http as client

    from hfgen import HFGenPipeline
    from tests.helpers.hub_server import Hub, use

    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)  # the client waits before it retries
    words = ["--push_to_hub", "--hub_token", "writer", "--hub_model_id", "me/run", "--hub_private_repo"]
    words += ["--push_every", "2", "--sample_steps", "1", "--max_train_steps", "6", "--logging_steps", "1"]
    words += ["--hub_license", "cc0-1.0"]
    with Hub() as hub:
        use(hub, monkeypatch, tmp_path / "home", token=None)
        hub.cut = ("/api/models/me/run/commit/",)  # the server cuts off the first push only
        warnings = []

        def warn_and_repair(text):
            console.warn(text)
            if "the push at step 2 failed" in text:
                warnings.append(text)
                hub.cut = ()

        monkeypatch.setattr("hfgen.families.callbacks.warn", warn_and_repair)
        status, _, errors = run(capsys, *QUICK, *FEW, "--output_dir", tmp_path / "run", *words)
        assert status == 0, errors
        assert len(warnings) == 1 and errors.count("warning: ") == 1
        repo = hub.repos["me/run"]
        assert repo.private and len(repo.commits) == 3  # empty, step 4, and step 6, which is the last
        early, late = (repo.trees[sha] for sha in repo.commits[1:])
        assert {"samples.png", "config.yaml", "metrics.jsonl", "README.md", "model_index.json"} <= set(early)
        assert not [name for name in early if "checkpoint" in name or "logs" in name or name.endswith(".bin")]
        assert json.loads(early["metrics.jsonl"].splitlines()[-1])["step"] <= 4 and "loss.png" not in early
        assert b"license: cc0-1.0" in late["README.md"] and b'from_pretrained("me/run"' in late["README.md"]
        assert not any(b"writer" in content or str(tmp_path).encode() in content for content in late.values())
        first = HFGenPipeline.from_pretrained("me/run", revision=repo.commits[1], token="writer")
        last = HFGenPipeline.from_pretrained("me/run", token="writer")
        weights = [next(pipeline.denoiser.parameters()) for pipeline in (first, last)]
        assert weights[0].shape == weights[1].shape and not torch.equal(*weights)


def test_without_label_dropout_there_is_no_null_label_and_no_guidance():
    """Guidance by a label that the network was not trained on would be noise."""
    from hfgen import DenoisingPipeline, RectifiedFlowScheduler, build_denoiser

    network = build_denoiser("dit", "xs", 8, 1, num_classes=10, null_class=False)
    pipeline = DenoisingPipeline(network, RectifiedFlowScheduler(), num_classes=10)
    assert network.config.num_class_embeds == 10 and pipeline.null_label is None
    with pytest.raises(ValueError, match=r"without label dropout"):
        pipeline(class_labels=3, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"needs class_labels"):
        pipeline()


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharding_by_accelerate_is_refused(capsys, tmp_path, monkeypatch, kind):
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", getattr(DistributedType, kind))
    status, _, errors = run(capsys, *QUICK, *FEW, "--output_dir", tmp_path / "run")
    assert status == 2 and f"asks for {kind}, which" in errors and "give --sharding fsdp2" in errors
    assert not (tmp_path / "run").exists()


def test_a_learned_variance_is_trained_resumed_and_drawn_with(capsys, tmp_path):
    """With times by their losses, which are part of the checkpoints."""
    import hfgen

    words = [*QUICK, *FEW, "--model", "dit", "--path", "vp", "--prediction_type", "epsilon"]
    words += ["--variance", "learned_range", "--time_sampling", "importance"]
    words += ["--checkpointing_steps", "2", "--lr_scheduler", "constant_with_warmup"]
    for folder, steps in (("a", 2), ("a", 4), ("b", 4)):
        status, _, errors = run(capsys, *words, "--max_train_steps", steps, "--output_dir", tmp_path / folder)
        assert status == 0, errors
    name = "denoiser/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "a")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.variance_type == "learned_range" and pipeline.denoiser.config.out_channels == 2
    pipeline.use_scheduler("ddpm")
    assert pipeline(num_inference_steps=3, output_type="latent").images.isfinite().all()
    bits = pipeline.variational_bound(torch.zeros(2, 1, 8, 8) - 1, num_inference_steps=5)
    assert bits.isfinite().all() and (bits > 0).all()


def test_a_flow_is_trained_further_by_the_likelihood_of_its_ode(tmp_path, capsys):
    words = ["--dataset", "digits", "--max_train_samples", "16", "--train_batch_size", "4", "--model", "dit"]
    words += ["--model_size", "xs", "--report_to", "none", "--sample_steps", "0", "--max_train_steps", "1"]
    words += ["--eval_batch_size", "2", "--num_inference_steps", "1", "--logging_steps", "1", "--class_conditional"]
    words += ["--lr_scheduler", "constant", "--no_use_ema"]
    assert run_door(train_diffusion.main, capsys, *words, "--output_dir", tmp_path / "flow")[0] == 0
    more = [*words, "--objective", "likelihood", "--likelihood_steps", "1", "--init_from", tmp_path / "flow"]
    more += ["--time_sampling", "uniform"]  # of the recipe of the former training
    status, _, errors = run_door(train_diffusion.main, capsys, *more, "--output_dir", tmp_path / "run")
    assert status == 0 and "--time_sampling uniform: of denoising alone" in errors, errors
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert sum(name.endswith(("log_prob", "bits_per_dim")) for name in row) == 2
    before, after = (hfgen.HFGenPipeline.from_pretrained(tmp_path / name).denoiser for name in ("flow", "run"))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    for given, message in (
        (["--path", "vp"], "--objective likelihood is that of a rectified flow's ODE, and --path is vp"),
        (["--prediction_type", "sample"], "--prediction_type is sample"),
        (["--gradient_checkpointing"], "does nothing with --objective likelihood"),
    ):
        status, _, errors = run_door(train_diffusion.main, capsys, *more, *given, "--output_dir", tmp_path / "x")
        assert status == 2 and message in errors, errors
