"""What surrounds a run: another run in its folder, readers that leave, a terminal that closes, names with spaces."""

import errno
import os
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

from hfgen.console.endings import one_line
from hfgen.disk.files import GrowingRows, read_rows
from hfgen.disk.lock import LOCK, WRITER, FolderInUseError, FolderLock
from hfgen.families.preview import Preview, show_command
from hfgen.options import SampleArgs, TrainArgs, parser
from hfgen.trainer.checkpoint import checkpoints, verify
from hfgen.trainer.signals import StopSignals
from tests.families.test_run import Squares, ended, make_run
from tests.helpers.full_disk import FailingDisk
from tests.helpers.toys import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from hfgen.disk.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""
SPEAKER = """
import sys
from hfgen.console.notes import own_console
own_console()
for number in range(20000):
    print("line", number)
    print("warning", number, file=sys.stderr)
open(sys.argv[1], "w").write("reached the end")
"""


def hold(folder):
    """Start a process that holds the lock of a folder, and wait until it does."""
    words = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_told_who_writes_and_a_killed_one_is_no_obstacle(tmp_path, capsys):
    folder = tmp_path / "run"
    holder = hold(folder)
    try:
        status, error = ended(capsys, folder, lambda run: pytest.fail("the frame was entered"))
        assert status == 2 and f"process {holder.pid}" in error and "another folder" in error
        with pytest.raises(FolderInUseError, match=f"process {holder.pid}"):  # from Python too
            make_run(folder).train({"network": torch.nn.Linear(2, 2)}, Squares())
    finally:
        holder.kill()
        holder.wait()
    lock = FolderLock(folder)
    lock.acquire()
    lock.acquire()  # again by its owner
    assert lock.held and (folder / LOCK).exists()
    lock.release()
    assert not folder.exists()  # nothing else was in it


def test_the_writer_leaves_no_files_of_its_own(tmp_path):
    (tmp_path / "kept").write_text("x")
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert {path.name for path in tmp_path.iterdir()} == {"kept", LOCK, WRITER}
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    lock.release()  # of what is not held


def test_output_that_nobody_reads_ends_no_work(tmp_path):
    script = tmp_path / "speaker.py"
    script.write_text(SPEAKER)
    mark = tmp_path / "mark"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{shlex.quote(sys.executable)} -u {shlex.quote(str(script))} {shlex.quote(str(mark))} 2>&1 | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    assert mark.read_text() == "reached the end"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_output_is_no_file_that_is_opened_later(tmp_path, closed):
    script = tmp_path / "speaker.py"
    after = "os.write(1, b'from C'); os.write(2, b'from C'); sys.stdout.isatty(); sys.stderr.isatty()"
    script.write_text(
        SPEAKER.replace("for number", f"import os; file = open(sys.argv[1] + 'x', 'w'); {after}\nfor number")
    )
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {shlex.quote(str(tmp_path / 'mark'))} {closed}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", command], capture_output=True, env=environment, cwd=ROOT, check=True)
    assert (tmp_path / "mark").read_text() == "reached the end" and (tmp_path / "markx").read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_is_lost_on_a_full_disk_is_said(tmp_path):
    script = tmp_path / "speaker.py"
    script.write_text(SPEAKER.replace('print("warning"', 'number or print("warning"'))
    words = [sys.executable, str(script), str(tmp_path / "mark")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0 and done.stderr.count("standard output can't be written (No space left") == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_each_signal_asks_the_loop_to_stop_and_is_given_back(number):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup the tests inherit that SIGHUP is ignored
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), number)
            assert stop.requested(Accelerator(cpu=True))
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_ctrl_c_reaches_a_run_that_a_shell_started_in_the_background():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested(Accelerator(cpu=True))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_the_process_ignores_stays_ignored():
    """`nohup` starts a process that ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested(Accelerator(cpu=True))
    finally:
        signal.signal(signal.SIGHUP, before)


WORKER = """
import signal, sys, time
from hfgen.console.endings import one_line
if "ignored" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
with one_line():
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        if "slow" in sys.argv:
            print("leaving", flush=True)
            time.sleep(60)
"""


def start_worker(*words):
    """Start a command that sleeps, and wait until it is at work."""
    command = [sys.executable, "-c", WORKER, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored under nohup, and by all children then
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    signal.signal(signal.SIGHUP, before)
    assert process.stdout.readline() == "at work\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_in_one_line_and_its_status(number):
    process = start_worker()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    name = signal.Signals(number).name
    assert error == f"interrupted by {name}: run the same command again to go on from what is saved.\n"


def test_a_second_signal_ends_a_command_at_once():
    process = start_worker("slow")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "leaving\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130


def test_a_command_under_nohup_goes_on_and_one_in_the_background_ends():
    process = start_worker("ignored")
    process.send_signal(signal.SIGHUP)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130


@pytest.mark.parametrize("error", [ValueError("wrong option"), OSError("wrong file")])
def test_what_a_command_refuses_is_one_line_and_signals_are_given_back(capsys, error):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as stop, one_line():
        raise error
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {error}\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


SIGNALS = []
"""Signals that come at the second step of `Signalled`."""


class Signalled(Squares):
    """The squared output."""

    def loss(self, player, networks, batch, step):
        while SIGNALS and step.number == 1:
            os.kill(os.getpid(), SIGNALS.pop(0))
        return super().loss(player, networks, batch, step)


def signalled(capsys, folder, *numbers):
    """Train in the frame of a command; at the second step signals come: (status, standard error)."""
    SIGNALS[:] = numbers
    return ended(capsys, folder, lambda run: run.train({"network": torch.nn.Linear(2, 2)}, Signalled()))


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM)])
def test_a_training_that_a_signal_stopped_has_no_pipeline_and_its_status(tmp_path, capsys, numbers):
    status, _ = signalled(capsys, tmp_path, *numbers)
    assert status == 128 + numbers[0] and (tmp_path / "checkpoint-2").is_dir()
    assert signalled(capsys, tmp_path)[0] == 0 and (tmp_path / "network.safetensors").is_file()


def test_a_signal_in_the_last_step_stops_what_follows_the_training(tmp_path, capsys):
    SIGNALS[:] = [signal.SIGTERM]
    act = lambda run: run.train({"network": torch.nn.Linear(2, 2)}, Signalled())  # noqa: E731
    status, _ = ended(capsys, tmp_path, act, max_train_steps=2)
    assert status == 143 and (tmp_path / "checkpoint-2").is_dir() and not (tmp_path / "network.safetensors").exists()
    assert ended(capsys, tmp_path, act, max_train_steps=2)[0] == 0 and (tmp_path / "network.safetensors").is_file()


def test_a_second_ctrl_c_ends_a_training_at_once_in_one_line(tmp_path, capsys):
    status, error = signalled(capsys, tmp_path, signal.SIGINT, signal.SIGINT)
    assert status == 130 and not list(tmp_path.glob("checkpoint-*"))
    assert error.splitlines()[-1].startswith("error: interrupted: run the same command again")
    assert signalled(capsys, tmp_path)[0] == 0


def squares(folder, **options):
    """Train a small network in the frame of a command, and return (status or None, bytes of the weights)."""
    torch.manual_seed(0)
    status = 0
    try:
        with make_run(folder, max_train_steps=2, checkpointing_steps=1, **options) as run:
            run.train({"network": torch.nn.Linear(2, 2)}, Squares())
    except SystemExit as stop:
        status = stop.code
    weights = folder / "network.safetensors"
    return status, weights.read_bytes() if weights.is_file() else None


@pytest.mark.parametrize(
    ("code", "lasting"),
    [(errno.ENOSPC, True), pytest.param(errno.EROFS, True, marks=pytest.mark.slow), (errno.EIO, False)],
)
def test_a_disk_that_fails_at_any_write_of_a_training_ends_it_in_one_line_or_not_at_all(
    tmp_path, capsys, code, lasting
):
    whole = tmp_path / "whole"
    with FailingDisk(whole, 0, code) as disk:
        status, expected = squares(whole)
    assert status == 0
    for at in range(1, disk.count + 1, 6):
        folder = tmp_path / str(at)
        with FailingDisk(folder, at, code, lasting):
            status, _ = squares(folder)
        error = capsys.readouterr().err
        assert status in (0, 1, 2) and "Traceback" not in error, disk.places[at - 1]
        assert "can't be" in error or "can't write" in error or status == 0, disk.places[at - 1]
        assert sum(line.startswith("error: ") for line in error.splitlines()) == bool(status)
        for checkpoint in checkpoints(folder):
            verify(checkpoint)
        assert squares(folder) == (0, expected), disk.places[at - 1]
        assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
        assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [1, 2]


def test_what_is_left_of_checkpoints_goes_with_the_next_run_also_if_it_saves_none(tmp_path):
    expected = squares(tmp_path)
    for name in (".removing-checkpoint-1", ".saving-checkpoint-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert squares(tmp_path) == expected  # nothing is left to train
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".removing", ".saving"))]


def test_the_last_row_is_written_where_its_first_write_failed(tmp_path, monkeypatch):
    write, calls = GrowingRows.write, []

    def fail_once(self):
        calls.append(self)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")
        write(self)

    monkeypatch.setattr(GrowingRows, "write", fail_once)
    assert squares(tmp_path, logging_steps=2)[0] == 0
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [2]


def test_a_row_and_a_tracker_that_fail_do_not_end_a_training(tmp_path, capsys, monkeypatch):
    calls = []

    def fail(self, *values, **kwargs):
        calls.append(type(self).__name__)
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    monkeypatch.setattr(GrowingRows, "append", fail)
    status, weights = squares(tmp_path / "run", report_to="tensorboard")
    error = capsys.readouterr().err
    assert status == 0 and weights is not None
    assert calls.count("TensorBoardTracker") == 1 and calls.count("GrowingRows") == 2
    assert error.count("metrics.jsonl can't be written (No space left on device)") == 1
    assert error.count("tensorboard does not log any more") == 1


@pytest.mark.parametrize("name", ["my runs", "it's", "a;b", "$HOME", 'say "hi"', "plain"])
def test_commands_to_try_next_survive_a_shell(tmp_path, name):
    model, output = SimpleNamespace(config={"num_classes": 3}, sample_shape=(1, 8, 8)), tmp_path / name
    words = shlex.split(Preview("Model", "flow", SampleArgs(), 0).commands(model, output)[0])
    assert words[:3] == ["hfgen", "sample", str(output)]
    assert int(words[words.index("--class_labels") + 1]) in range(3)  # a class that the model has
    code = shlex.split(show_command(output))[2]
    compile(code, "shown", "exec")
    assert repr(str(output)) in code


def test_a_token_is_not_printed_with_the_configuration(capsys):
    command = parser("p", "d", "e", TrainArgs)
    with pytest.raises(SystemExit):
        command.parse_args(["--hub_token", "hf_SECRETSECRET", "--seed", "7", "--print_config"])
    printed = capsys.readouterr().out
    assert "SECRET" not in printed and "seed: 7" in printed
