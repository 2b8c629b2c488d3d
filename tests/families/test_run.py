"""`Run`, the frame of every front door: errors as one line and a status, what is read when, and former names."""

import dataclasses
import os
import re
import subprocess
import warnings
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

import hfgen
from hfgen.data.batches import Batches, RepeatedBatches
from hfgen.data.tensors import TensorData
from hfgen.families import run as runs
from hfgen.families.finish import Finished
from hfgen.families.identity import revision
from hfgen.families.run import Run, RunError, save_options
from hfgen.objectives.base import Loss, Objective
from hfgen.options import DataArgs, SampleArgs, TrainArgs
from hfgen.registry import RENAMED
from hfgen.trainer.checkpoint import CheckpointError
from hfgen.trainer.log import DivergenceError
from tests.helpers.toys import ROOT

DATA = TensorData({"x": torch.randn(32, 2, generator=torch.Generator().manual_seed(0))})


class Squares(Objective):
    """The squared output, or an error instead of a loss."""

    players = ("network",)

    def __init__(self, error=None, factor=1.0):
        self.error, self.factor = error, factor

    def loss(self, player, networks, batch, step):
        if self.error is not None:
            raise self.error
        value = self.factor * networks[player](batch["x"]).square().mean()
        return Loss(value, {"loss": value.detach()})


def train_args(folder, **options):
    few = {"max_train_steps": 3, "train_batch_size": 8, "logging_steps": 1, "report_to": "none"}
    return TrainArgs(output_dir=str(folder), **{**few, **options})


def make_run(folder, data=DATA, **options):
    return Run([train_args(folder, **options), SampleArgs(), DataArgs()], data=data)


def ended(capsys, folder, act, **options):
    """Run `act(run)` in the frame: (status, standard error)."""
    status = 0
    try:
        with make_run(folder, **options) as run:
            act(run)
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


# --- errors -----------------------------------------------------------------------------------------------------------


def fail(error):
    def act(run):
        raise error

    return act


@pytest.mark.parametrize("error", [ValueError("no such column"), FileNotFoundError("no file"), OSError("no disk")])
def test_an_error_of_the_setup_is_one_line_and_status_2(capsys, tmp_path, error):
    assert ended(capsys, tmp_path / "run", fail(error)) == (2, f"error: {error}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [{"use_ema": False, "ema_power": 0.5}, {"push_every": 5}, {"mixed_precision": "fp16"}]
)
def test_options_are_refused_before_anything_is_read(capsys, tmp_path, monkeypatch, options):
    monkeypatch.setattr(runs, "load_images", lambda args: pytest.fail("data were read"))

    def act(run):
        run.accelerator  # noqa: B018  makes it
        run.data  # noqa: B018

    status, lines = ended(capsys, tmp_path / "run", act, data=None, **options)
    assert status == 2 and lines.startswith("error: --") and lines.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error", [CheckpointError("damaged"), DivergenceError("nan"), RunError("collapsed"), torch.OutOfMemoryError("full")]
)
def test_an_error_of_the_training_is_one_line_and_status_1(capsys, tmp_path, error):
    assert ended(capsys, tmp_path / "run", fail(error)) == (1, f"error: {error}\n")


def test_a_loss_that_is_not_finite_ends_with_status_1(capsys, tmp_path):
    status, lines = ended(
        capsys, tmp_path / "run", lambda run: run.train({"network": nn.Linear(2, 1)}, Squares(factor=float("inf")))
    )
    assert status == 1 and "network/loss is inf at step 1" in lines and "Traceback" not in lines


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 80 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_does_not_suffice_is_answered_with_what_to_lower(capsys, tmp_path, error):
    objective = Squares(error)
    status, lines = ended(capsys, tmp_path / "run", lambda run: run.train({"network": nn.Linear(2, 1)}, objective))
    assert status == 1 and "Lower --train_batch_size 8 to 4 with --gradient_accumulation_steps 2" in lines


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), OSError("a bug")])
def test_a_bug_in_the_training_keeps_its_traceback(tmp_path, error):
    """Only what a user can mend by an option or a file becomes a line; in a loss an error is the author's."""
    with pytest.raises(type(error), match="a bug"), make_run(tmp_path / "run") as run:
        run.train({"network": nn.Linear(2, 1)}, Squares(error))


def test_a_pipeline_that_can_not_be_made_is_an_error_of_the_setup(capsys, tmp_path):
    def act(run):
        run.train({"network": nn.Linear(2, 1)}, Squares(), pipeline=fail(ValueError("no shape")))

    assert ended(capsys, tmp_path / "run", act)[0] == 2
    assert not (tmp_path / "run").exists()  # refused before anything is trained


@pytest.mark.parametrize(("error", "status"), [(ValueError("no column"), 2), (CheckpointError("damaged"), 1)])
@pytest.mark.parametrize("made", [True, False])
def test_other_processes_are_silent(capsys, tmp_path, monkeypatch, error, status, made):
    """Before the accelerator exists, the launcher's number of the process tells which one is the main one."""
    monkeypatch.setenv("RANK", "1")

    def act(run):
        if made:
            run.accelerator = SimpleNamespace(is_main_process=False)
        raise error

    assert ended(capsys, tmp_path / "run", act) == (status, "")
    monkeypatch.setenv("RANK", "0")
    assert ended(capsys, tmp_path / "run", fail(error)) == (status, f"error: {error}\n")


def test_without_the_frame_errors_are_raised(tmp_path):
    with pytest.raises(ValueError, match="ema_power"):
        make_run(tmp_path, use_ema=False, ema_power=0.5).check()
    with pytest.raises(DivergenceError, match="inf at step 1"):
        make_run(tmp_path).train({"network": nn.Linear(2, 1)}, Squares(factor=float("inf")))


# --- what it holds ----------------------------------------------------------------------------------------------------


def test_data_are_read_when_they_are_used_and_once(monkeypatch, tmp_path):
    reads = []
    monkeypatch.setattr(runs, "load_images", lambda args, own: reads.append(args.dataset) or DATA)
    run = Run([train_args(tmp_path), DataArgs(dataset="mine")], "vae")
    assert reads == [] and run.world == 1
    assert run.data is run.data is DATA and reads == ["mine"]
    assert run.load(DataArgs(dataset="held out")) is DATA and reads == ["mine", "held out"]
    with pytest.raises(ValueError, match="no DataArgs that name images"):
        Run([train_args(tmp_path)]).data  # noqa: B018


def test_classes_are_those_of_the_data(tmp_path):
    labelled = TensorData({"x": DATA.tensors["x"], "labels": torch.arange(32) % 4})
    assert make_run(tmp_path, labelled).num_classes(True) == 4
    assert make_run(tmp_path, labelled).num_classes(False) is None
    with pytest.raises(ValueError, match="tensors has no labels for --class_conditional; name them: --label_column"):
        make_run(tmp_path).num_classes(True)


def test_batches_are_of_the_options(tmp_path):
    batches = make_run(tmp_path, seed=3).batches(DATA)
    assert isinstance(batches, Batches) and (batches.batch_size, batches.seed, batches.world) == (8, 3, 1)
    repeated = make_run(tmp_path, overfit_batch=True, gradient_accumulation_steps=2).batches(DATA)
    assert isinstance(repeated, RepeatedBatches) and repeated.count == 2


def test_the_configuration_is_all_options_and_what_the_launcher_decided(tmp_path):
    run = Run([train_args(tmp_path / "run", hub_token=None, seed=4), SampleArgs(eval_batch_size=9)], data=DATA)
    fields = {field.name for group in (TrainArgs, SampleArgs) for field in dataclasses.fields(group)} - {"hub_token"}
    assert run.config.keys() == fields | {"num_processes"}
    assert (run.config["seed"], run.config["eval_batch_size"], run.config["num_processes"]) == (4, 9, 1)
    save_options(tmp_path / "run", run.config)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()).keys() == fields


def test_networks_may_be_made_by_a_function_and_a_data_set_given_to_train(tmp_path):
    other = TensorData({"x": torch.zeros(16, 2)}, name="zeros")
    result = make_run(tmp_path / "run").train(lambda: {"network": nn.Linear(2, 1)}, Squares(), data=other)
    assert result.finished and "zeros, 16 items" in (tmp_path / "run" / "README.md").read_text()
    batches = Batches(other, 8, seed=1)
    assert make_run(tmp_path / "more").train({"network": nn.Linear(2, 1)}, Squares(), data=batches).step == 3


def test_what_completes_a_run_may_keep_another_pipeline_with_figures(tmp_path):
    pipeline = hfgen.DenoisingPipeline(hfgen.TorchModel(nn.Bilinear(2, 1, 2), (2,)), hfgen.RectifiedFlowScheduler())
    pipeline.denoiser.forward = lambda x, timestep: x

    def complete(trained):
        assert trained == "trained"
        return Finished(pipeline, {"figure": "42"})

    args = train_args(tmp_path / "run", sample_steps=0)
    run = Run([args, SampleArgs(), DataArgs()], data=DATA)
    result = run.train({"network": nn.Linear(2, 1)}, Squares(), pipeline=lambda networks: "trained", complete=complete)
    assert result.pipeline is pipeline and "| figure | 42 |" in (tmp_path / "run" / "README.md").read_text()


def test_a_dry_run_gives_no_result_and_leaves_nothing(capsys, tmp_path):
    assert make_run(tmp_path / "run", dry_run=True).train({"network": nn.Linear(2, 1)}, Squares()) is None
    assert not (tmp_path / "run").exists() and "optimiser steps:" in capsys.readouterr().out


def test_the_revision_is_that_of_hfgens_checkout(monkeypatch, tmp_path):
    known = revision().get("revision", "")
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert known.rstrip("+") == head.strip()
    monkeypatch.setattr(hfgen, "__file__", str(tmp_path / "hfgen" / "__init__.py"))
    assert revision() == {}
    (tmp_path / ".git").mkdir()  # no repository in it
    assert revision() == {}


# --- former names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RENAMED)
def test_former_names_are_the_present_ones_with_a_warning(name):
    with pytest.warns(FutureWarning, match=re.escape(f"hfgen.{name} is now hfgen.{RENAMED[name]}.")) as warned:
        former = getattr(hfgen, name)
    assert former is getattr(hfgen, RENAMED[name])
    assert warned[0].filename == os.path.abspath(__file__)  # the line of the caller


def test_present_names_do_not_warn_and_unknown_ones_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in hfgen.__all__:
            getattr(hfgen, name)
    with pytest.raises(AttributeError, match="module 'hfgen' has no attribute 'Denoiser'; it offers"):
        hfgen.Denoiser  # noqa: B018


def test_remembering_warns_and_says_what_to_give():
    with pytest.warns(FutureWarning, match=r"Remembering will be removed: .* replay=hfgen.ReplayBuffer"):
        hfgen.Remembering(nn.Linear(2, 1), 4, (2,))


# --- streams ----------------------------------------------------------------------------------------------------------


class Divided(TensorData):
    """Items that are streamed, a part of them to each process."""

    streaming = divided = True

    def stream(self, batch_size, seed, rank, world, start, workers):
        rows = torch.arange(rank, len(self), world)
        while True:
            yield self.read(rows[(torch.arange(batch_size) + start * batch_size) % len(rows)])
            start += 1


def test_a_stream_goes_on_with_as_many_processes_alone(tmp_path, monkeypatch, capsys):
    """Another number has another order, also where the effective batch is the same."""
    data, networks = Divided(DATA.tensors), {"network": nn.Linear(2, 1)}

    def act(world, **options):
        batch = {"train_batch_size": 8 // world}
        run = make_run(tmp_path, data=data, **batch, **options)
        batches = Batches(data, 8 // world, 0, 0, world)
        monkeypatch.setattr(type(run), "config", {**run.config, "num_processes": world})
        return run.train(networks, Squares(), data=batches)

    assert act(1).step == 3 and act(1, max_train_steps=4).step == 4
    with pytest.raises(CheckpointError, match=r"data_order: a stream divided over 1 process\(es\) -> a .* 2 process"):
        act(2, max_train_steps=5)
    assert Batches(DATA, 4, 0, 0, 2).order is None
