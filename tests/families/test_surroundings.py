"""What surrounds a run: another run in its folder, readers that leave, a terminal that closes, names with spaces."""

import os
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hfgen.families.preview import Preview, show_command
from hfgen.options import SampleArgs, TrainArgs, parser
from hfgen.trainer.signals import StopSignals
from hfgen.utils.lock import LOCK, WRITER, FolderInUseError, FolderLock
from tests.families.test_run import Squares, ended, make_run
from tests.helpers.toys import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from hfgen.utils.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""
SPEAKER = """
import sys
from hfgen.utils.console import outlive_readers
outlive_readers()
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
