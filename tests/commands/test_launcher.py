"""Launchers of processes: their errors, which come from other libraries, end in one line with cause and fix."""

import os
import shlex
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from hfgen.commands import launcher
from hfgen.families import accelerator
from hfgen.options import TrainArgs
from hfgen.trainer.log import Log, TrackerError
from tests.helpers.toys import ROOT

MPI = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
num_processes: 2
num_machines: 1
mixed_precision: 'no'
use_cpu: true
mpirun_config: {mpirun_hostfile: /tmp/hosts, mpirun_ccl: '1'}
"""


def ended(capsys, start, words=()):
    """The status and the line of a launcher that fails."""
    with pytest.raises(SystemExit) as stop:
        launcher.guarded(start, words)
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (MPI, "mpirun or mpiexec were not found. "),
        ("distributed_type: [", "Correct the configuration of accelerate, or make it anew: accelerate config."),
        (
            MPI.replace("'no'", "fp7").replace("mpirun_config: {mpirun_hostfile: /tmp/hosts, mpirun_ccl: '1'}", ""),
            "fp7",
        ),
        (MPI.replace("MULTI_CPU", "MANY"), "MANY"),
        ("- a list", ""),
    ],
)
def test_configurations_of_accelerate_that_can_not_be_used(text, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "config.yaml"
    config.write_text(text)
    words = ["--config_file", str(config), "--quiet", "-m", "hfgen.training.train_vae"]
    status, line = ended(capsys, launcher.accelerate, words)
    assert status == 2 and line.startswith("error: the processes can't be started: ") and hint in line
    assert line.count("\n") == 1 and "Traceback" not in line


def raises(error):
    def start(_):
        raise error

    return start


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ConnectionError("Tried to launch distributed communication on port `29500`,\nbut"), "main_process_port"),
        (RuntimeError("EADDRINUSE: The server socket has failed"), "Another training has this port"),
        (ImportError("DeepSpeed is not installed => run `pip3 install deepspeed`"), "Install it, or choose another"),
        (ModuleNotFoundError("No module named 'torch_xla'"), "Install it, or leave out what needs it."),
        (ValueError(""), "ValueError. See `accelerate config`."),
    ],
)
def test_errors_of_launchers_have_a_hint(error, hint, capsys):
    status, line = ended(capsys, raises(error))
    assert status == 2 and hint in line and line.count("\n") == 1


def test_the_status_is_that_of_the_process_that_failed(capsys):
    for code, status in ((2, 2), (1, 1), (-9, 137)):
        failure = SimpleNamespace(exitcode=code, local_rank=0, timestamp=1, message="", error_file="", pid=1)
        error = ChildFailedError.__new__(ChildFailedError)
        error.get_first_failure = lambda failure=failure: (0, failure)
        assert ended(capsys, raises(error)) == (status, "")
    assert ended(capsys, raises(SignalException("", 15))) == (143, "")
    assert ended(capsys, raises(KeyboardInterrupt())) == (130, "")


def test_an_accelerator_that_can_not_start_is_a_value_error(monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"mixed_precision='fp8' of accelerate's launcher .*Correct it there, or give"):
        accelerator.start(TrainArgs(mixed_precision="fp8", report_to="none"))

    def fail(**_):
        raise RuntimeError("The server socket has failed to listen on any address. port: 29500,\nEADDRINUSE")

    monkeypatch.setattr(accelerator, "Accelerator", fail)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"^accelerate can't start here: .*Another training has this port") as error:
        accelerator.start(TrainArgs(mixed_precision="no", report_to="none"))
    assert "\n" not in str(error.value)
    assert "starts one process on CPUs, however many are asked for" in capsys.readouterr().err


def test_a_tracker_that_is_not_there_or_does_not_start_is_named():
    with pytest.raises(ValueError, match=r"report_to='abacus' is not installed\. There are: none, "):
        accelerator.start(TrainArgs(mixed_precision="no", report_to="abacus"))

    def init_trackers(*_, **__):
        raise RuntimeError("api_key not configured (no-tty).\nCall wandb.login")

    log = object.__new__(Log)
    log.accelerator, log.config = SimpleNamespace(init_trackers=init_trackers), {}
    with pytest.raises(TrackerError, match=r"^the tracker can't start: api_key .* Set it up, or give --report_to none"):
        log._start_trackers()


def test_a_tracker_whose_files_can_not_be_written_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def init_trackers(*_, **__):
        writer = threading.Thread(target=full)
        type(writer).__module__ = "tensorboard.writer"
        writer.start()  # while it starts TensorBoard's own thread writes the first values, and fails
        writer.join()
        full()

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(threading, "Thread", type("Thread", (threading.Thread,), {}))
    log = object.__new__(Log)
    log.accelerator, log.config = SimpleNamespace(init_trackers=init_trackers, trackers=["tensorboard"]), {}
    log._start_trackers()
    assert log.accelerator.trackers == []
    error = capsys.readouterr().err
    assert "No space left on device). The training goes on without it." in error and "Traceback" not in error


def test_nobody_is_asked_for_a_token_among_the_arguments(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(accelerator.RunError, match=r"needs a token\. Log in with `hf auth login`, or set HF_TOKEN\."):
        accelerator._check_login(TrainArgs())


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        "python -m hfgen.cli train diffusion --num_processes 2",
        "python -m torch.distributed.run --nproc-per-node 2 DOOR",
    ],
)
def test_several_processes(start, tmp_path):
    """As docs/training.md has it, in small."""
    words = shlex.split(start.replace("DOOR", "training/train_diffusion.py"))
    few = "--train_batch_size 8 --max_train_steps 1 --max_train_samples 40 --model_size xs --report_to none"
    few += f" --eval_batch_size 4 --num_inference_steps 2 --output_dir {tmp_path / 'two'}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *words[1:], *few.split()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "num_processes: 2" in (tmp_path / "two" / "README.md").read_text() or "Done" in done.stdout
    if "hfgen.cli" in start:
        command = [sys.executable, *words[1:], "--zzzz"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert set(lines) == {"error: --zzzz is no option of hfgen train diffusion; --help_all lists all."}
