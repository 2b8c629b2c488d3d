"""Checkpoints are whole or absent: kill -9 at any moment, full disks, damage to anything, and runs that don't fit."""

import importlib
import json
import random
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from hfgen.options import EFFECTIVE_BATCH, TrainArgs, as_dict, resumable
from hfgen.registry import FAMILIES
from hfgen.trainer import checkpoint
from hfgen.trainer.checkpoint import CheckpointError, checkpoints, compare
from hfgen.trainer.ema import EMA
from hfgen.trainer.engine import Replicated
from tests.helpers.toys import ROOT, denoiser_networks, rows, run, weights


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with checkpoints 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, checkpointing_steps=2, checkpoints_total_limit=None)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


# --- killed and full --------------------------------------------------------------------------------------------------

TRIALS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from accelerate import Accelerator
from hfgen.trainer import checkpoint
from hfgen.trainer.ema import EMA
from hfgen.trainer.engine import Replicated

root, trials = Path(sys.argv[1]), int(sys.argv[2])
accelerator = Accelerator(cpu=True)
network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
network, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters()))
network(torch.ones(4, 8)).sum().backward()
optimizer.step()
averages, engine = {"net": EMA(network)}, Replicated(accelerator)

def fill(value):
    with torch.no_grad():
        for p in [*network.parameters(), *averages["net"].parameters()]:
            p.fill_(value)

def save(step):
    fill(step)
    checkpoint.save(engine, root, step, averages, {"config": {}}, limit=2)

def check(folder):
    fill(-1)
    state, _ = checkpoint.load(engine, folder, averages, {})
    step = int(folder.name.split("-")[1])
    assert state["step"] == step
    assert all((p == step).all() for p in [*network.parameters(), *averages["net"].parameters()])

start = time.perf_counter()
save(1)
save(2)
once, caught = (time.perf_counter() - start) / 2, 0
for trial in range(trials):
    before = checkpoint.checkpoints(root)
    newest = int(before[-1].name.split("-")[1])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(newest + 1, newest + 100):
            save(step)
            os.write(writing, b".")
        os._exit(0)
    time.sleep(random.Random(trial).uniform(0, 4 * once))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    announced = newest + len(os.read(reading, 1000))
    os.close(reading)
    here = checkpoint.checkpoints(root)
    caught += any(root.glob(".saving-*")) or any(root.glob(".removing-*"))
    # A save that is whole leaves two; one killed between its checkpoint and its rotation adds one to what was there.
    assert 2 <= len(here) <= (3 if announced > newest else len(before) + 1), here
    assert int(here[-1].name.split("-")[1]) in (announced, announced + 1)
    for folder in here:
        check(folder)
print(caught)
"""


@pytest.mark.parametrize("trials", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_killed_at_any_moment_of_a_save_the_checkpoints_load(tmp_path, trials):
    (tmp_path / "trials.py").write_text(TRIALS)
    command = [sys.executable, str(tmp_path / "trials.py"), str(tmp_path / "run"), str(trials)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > trials / 4  # how often a save or a removal was really cut


def test_a_disk_that_is_full_leaves_the_checkpoints_before(folder):
    """No file may grow beyond a size, by which each of a checkpoint's files is once the largest that can't be."""
    before, limits = files_of(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    accelerator = Accelerator(cpu=True)
    network = denoiser_networks()["denoiser"]
    accelerator.prepare(network, torch.optim.AdamW(network.parameters()))
    averages, engine = {"denoiser": EMA(network)}, Replicated(accelerator)
    message = r"checkpoint-8 can't be written: .*The checkpoint before it is intact: .*checkpoint-6"
    sizes = sorted({path.stat().st_size for path in (folder / "checkpoint-6").iterdir()})
    assert len(sizes) > 4
    for size in sizes[:-1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
        try:
            with pytest.raises(CheckpointError, match=message):
                checkpoint.save(engine, folder, 8, averages, {"config": {}}, limit=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert files_of(folder) == before
    checkpoint.save(engine, folder, 8, averages, {"config": {}}, limit=1)
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["checkpoint-8"]


@pytest.mark.parametrize("failing", ["_seal", "sync_to_disk"])
def test_older_checkpoints_go_only_after_the_new_one_is_whole(folder, monkeypatch, failing):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = files_of(folder)
    monkeypatch.setattr(checkpoint, failing, full)
    with pytest.raises(CheckpointError, match=r"No space left.*The checkpoint before it is intact: .*checkpoint-6"):
        run(folder, max_train_steps=8, checkpoints_total_limit=1)
    after = files_of(folder)
    assert {name: after[name] for name in before if name != "metrics.jsonl"} == {
        name: data for name, data in before.items() if name != "metrics.jsonl"
    }
    monkeypatch.undo()
    assert run(folder, max_train_steps=8, checkpoints_total_limit=1)[1].step == 8
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["checkpoint-8"]


def test_what_killed_runs_left_is_cleared_and_never_continued(folder):
    for name in (".saving-checkpoint-9", ".removing-checkpoint-1"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    assert checkpoint.find(folder, "latest").name == "checkpoint-6"
    run(folder, max_train_steps=7, checkpoints_total_limit=2)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["checkpoint-6", "checkpoint-7"]


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_damage_to_any_file_is_named(folder, damage):
    kept = files_of(folder / "checkpoint-6")
    expected = {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "ema_denoiser.safetensors", "state.json"}
    assert expected | {"manifest.json"} == set(kept)
    for name, data in kept.items():
        file = folder / "checkpoint-6" / name
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
        with pytest.raises(CheckpointError, match=name):
            run(folder)
        file.write_bytes(data)
    assert run(folder)[1].finished


@pytest.mark.parametrize("name", ["model", "ema_denoiser"])
def test_a_tensor_of_another_shape_is_named(folder, name):
    """As if it had been saved so: the manifest agrees."""
    file = folder / "checkpoint-6" / f"{name}.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("body.0.weight"))
    save_file({**tensors, key: tensors[key][:5].clone()}, file)
    (folder / "checkpoint-6" / "manifest.json").unlink()
    checkpoint._seal(folder / "checkpoint-6")
    with pytest.raises(CheckpointError, match=r"does not fit this run: (.|\n)*body\.0\.weight"):
        run(folder)


def test_any_manifest_is_read_or_refused(trained):
    folder = trained / "checkpoint-6"
    good, chance = (folder / "manifest.json").read_bytes(), random.Random(0)
    wild = [b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"/etc/hostname": [1, "a"], "state.json": [1, "a"]}', b"\xff"]
    wild += [b'{"state.json": 3}', b'{"state.json": {"a": 1, "b": 2}}', b'{"a\\u0000": [1, "b"], "state.json": [1, 2]}']
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.choice((1, 3))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        wild.append(bytes(data))
    refused = 0
    try:
        for data in wild:
            (folder / "manifest.json").write_bytes(data)
            try:
                checkpoint.verify(folder)
            except CheckpointError as error:
                refused += str(folder) in str(error)
    finally:
        (folder / "manifest.json").write_bytes(good)
    assert refused > 250


# --- which one to continue --------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint-7.*there are: none"):
        run(tmp_path, resume_from_checkpoint="checkpoint-7")


@pytest.mark.parametrize("older", ["checkpoint-4", "none"])
def test_two_runs_are_never_mixed_in_a_folder(folder, older):
    before = files_of(folder)
    with pytest.raises(CheckpointError, match="another --output_dir"):
        run(folder, max_train_steps=8, resume_from_checkpoint=older)
    assert files_of(folder) == before


def test_an_older_checkpoint_is_continued_elsewhere(trained, tmp_path):
    networks, _ = run(tmp_path, resume_from_checkpoint=str(trained / "checkpoint-2"))
    whole, _ = run(trained)
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(networks).items())
    assert rows(tmp_path) == rows(trained)[1:]


def test_rotation_keeps_the_newest(tmp_path):
    run(tmp_path, checkpointing_steps=1, checkpoints_total_limit=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]


# --- whose it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"train_batch_size": 4}, "train_batch_size: 8 -> 4"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 1 -> 2"),
        ({"use_ema": False}, "use_ema: True -> False"),
        ({"overfit_batch": True}, "overfit_batch: False -> True"),
        ({"config": {"model": "b", "data_fingerprint": "1"}}, "model: a -> b; data_fingerprint: 0 -> 1"),
    ],
)
def test_another_run_is_refused_by_name_and_changes_nothing(tmp_path, options, named):
    config = {"model": "a", "data_fingerprint": "0", "versions": {"torch": "2.0"}}
    run(tmp_path, config=config)
    before = files_of(tmp_path)
    with pytest.raises(CheckpointError, match=f"does not fit this run: {named}\n"):
        run(tmp_path, **{"max_train_steps": 8, "config": config, **options})
    assert files_of(tmp_path) == before


def test_another_network_is_refused(folder):
    before = files_of(folder)
    with pytest.raises(CheckpointError, match=r"does not fit this run: (.|\n)*body\.1"):
        run(folder, networks=denoiser_networks(norm=False), max_train_steps=8)
    assert files_of(folder) == before


def test_what_may_change_takes_effect_and_is_said(tmp_path, capsys):
    run(tmp_path, config={"versions": {"torch": "2.0", "python": "3.10"}})
    options = {"learning_rate": 5e-4, "lr_scheduler": "constant", "adam_beta1": 0.5, "max_train_steps": 8}
    options |= {"train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}  # the same effective batch
    run(tmp_path, **options, config={"versions": {"torch": "2.1", "python": "3.10"}})
    said = capsys.readouterr().out
    assert "learning_rate: 0.001 -> 0.0005" in said and "versions/torch: 2.0 -> 2.1" in said and "python" not in said
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["lr"] == 5e-4
    group = torch.load(tmp_path / "checkpoint-8" / "optimizer.bin")["param_groups"][0]
    assert (group["lr"], group["betas"]) == (5e-4, (0.5, 0.99))
    state = json.loads((tmp_path / "checkpoint-8" / "state.json").read_text())
    assert state["config"]["versions"]["torch"] == "2.1" and state["config"]["adam_beta1"] == 0.5


# --- every option that may change -------------------------------------------------------------------------------------

OTHER = {"max_train_steps": 8, "num_epochs": 3.0, "learning_rate": 5e-4, "lr_scheduler": "linear", "adam_beta1": 0.5}
OTHER |= {"lr_warmup_steps": 0, "adam_beta2": 0.9, "adam_weight_decay": 0.1, "adam_epsilon": 1e-6}
OTHER |= {"max_grad_norm": 0.01, "mixed_precision": "bf16", "ema_max_decay": 0.5, "ema_inv_gamma": 3.0}
OTHER |= {"ema_power": 0.5, "gradient_checkpointing": True, "channels_last": True, "torch_compile": True}
OTHER |= {"allow_tf32": False, "checkpointing_steps": 1, "checkpoints_total_limit": 1, "sample_steps": 1}
OTHER |= {"logging_steps": 1, "report_to": "tensorboard", "dry_run": True, "push_to_hub": True, "hub_model_id": "me/x"}
OTHER |= {"hub_private_repo": True, "hub_license": "mit", "push_every": 2, "output_dir": "x"}
OTHER |= {"resume_from_checkpoint": "checkpoint-6", "timelapse": False}
"""Option of `TrainArgs` that a resumed run may change -> another value."""


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """A folder with a run of six steps."""
    folder = tmp_path_factory.mktemp("six") / "run"
    run(folder)
    return folder


ELSEWHERE = {"rmsprop_alpha", "muon_ratio", "muon_momentum", "muon_weight_decay", "max_train_seconds", "sharding"}
"""Options that other tests try: below, in test_muon.py, test_plan.py and in test_sharded.py."""


def test_every_option_that_may_change_is_tried():
    assert OTHER.keys() | ELSEWHERE == resumable(TrainArgs)


@pytest.mark.parametrize("name", [name for name in OTHER if name != "output_dir"])
def test_a_run_goes_on_with_another_value_of_each_option_that_may_change(tmp_path, six, capsys, name):
    tmp_path = shutil.copytree(six, tmp_path / "run")
    before = TrainArgs(max_train_steps=6, train_batch_size=8, report_to="none", sample_steps=0, checkpointing_steps=0)
    AcceleratorState._reset_state()  # a new process, which may have another precision
    seen = []
    options = {"max_train_steps": 8, name: OTHER[name]}
    _, result = run(tmp_path, **options, preview=lambda networks, step: seen.append(step))
    assert result.step == 8 and result.finished
    said = capsys.readouterr().out
    old = {"lr_warmup_steps": 2, "logging_steps": 2}.get(name, getattr(before, name))
    assert f"{name}: {old} -> {OTHER[name]}" in said
    state = json.loads((tmp_path / "checkpoint-8" / "state.json").read_text())
    assert state["config"][name] == OTHER[name]
    assert seen == ([7] if name == "sample_steps" else [])
    group = torch.load(tmp_path / "checkpoint-8" / "optimizer.bin")["param_groups"][0]
    effects = {"adam_beta1": group["betas"][0], "adam_beta2": group["betas"][1], "adam_epsilon": group["eps"]}
    effects |= {"adam_weight_decay": group["weight_decay"], "checkpoints_total_limit": len(checkpoints(tmp_path))}
    assert effects.get(name, OTHER[name]) == OTHER[name]
    if name == "checkpointing_steps":
        assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-7", "checkpoint-8"]
    if name == "logging_steps":
        assert [row["step"] for row in rows(tmp_path)][-2:] == [7, 8]


def test_rmsprop_goes_on_with_another_smoothing(tmp_path):
    run(tmp_path, optimizer="rmsprop")
    run(tmp_path, optimizer="rmsprop", max_train_steps=8, rmsprop_alpha=0.5)
    assert torch.load(tmp_path / "checkpoint-8" / "optimizer.bin")["param_groups"][0]["alpha"] == 0.5


WEIGHTS = ("learning_rate", "lr_scheduler", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon")
WEIGHTS += ("max_grad_norm", "mixed_precision", "ema_max_decay", "ema_inv_gamma", "ema_power", "lr_warmup_steps")


@pytest.fixture(scope="module")
def unchanged(six, tmp_path_factory):
    """The weights after two more steps with the same options."""
    AcceleratorState._reset_state()
    _, result = run(shutil.copytree(six, tmp_path_factory.mktemp("unchanged") / "run"), max_train_steps=8)
    return weights(result.networks)


@pytest.mark.parametrize("name", WEIGHTS)
def test_another_value_of_an_option_of_the_optimiser_or_the_average_changes_the_weights(tmp_path, six, unchanged, name):
    folder = shutil.copytree(six, tmp_path / "run")
    AcceleratorState._reset_state()
    value = 12 if name == "lr_warmup_steps" else OTHER[name]
    changed = weights(run(folder, max_train_steps=8, **{name: value})[1].networks)
    assert any(not torch.equal(unchanged[key], changed[key]) for key in changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_options_of_every_family_may_change_or_are_refused_as_they_say(family):
    groups = importlib.import_module(f"hfgen.families.{family}.options").GROUPS
    saved = as_dict(*(group() for group in groups))
    free = resumable(*groups)
    assert free
    for name, value in saved.items():
        if name in EFFECTIVE_BATCH:
            continue
        present = {**saved, name: "another" if value != "another" else "one"}
        if name in free:
            assert compare(saved, present, free) == [f"{name}: {value} -> another"]
        else:
            with pytest.raises(ValueError, match=f"^{name}: "):
                compare(saved, present, free)
