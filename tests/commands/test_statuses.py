"""Exit statuses of every command and every front door: 0 done, 1 failed, 2 refused, 128 + its number after a signal."""

import os
import re
import runpy
import signal
import subprocess
import sys

import pytest

from hfgen import cli, options
from hfgen.console import endings
from hfgen.families.run import Run
from hfgen.registry import FAMILIES
from tests.helpers.toys import ROOT

SCRIPTS = [f"training/{family.door.rpartition('.')[2]}.py" for family in FAMILIES.values()]
DOORS = [next(iter(FAMILIES.values())).door]
MODULES = ["hfgen.commands.evaluate", "hfgen.commands.train_classifier", "hfgen.commands.train_texture"]
COMMANDS = [name for name in cli.COMMANDS if name not in ("train", "anomaly")]
NEEDED = {
    "hfgen sample": ["nowhere"],
    "hfgen evaluate": ["nowhere"],
    "hfgen.commands.evaluate": ["nowhere"],
    "hfgen serve": ["nowhere"],
    "hfgen provenance": ["nowhere"],
    "hfgen demo": ["nowhere"],
    "hfgen push": ["nowhere", "a/b"],
    "hfgen attention": ["nowhere"],
    "hfgen anomaly score": ["nowhere", "nowhere"],
    "hfgen recipes": ["no_such"],
}
"""Arguments that a command needs; none of them is there."""

PROGRAMS = [*(f"hfgen {name}" for name in (*COMMANDS, "anomaly score")), *MODULES, *SCRIPTS, *DOORS]
TRAINS = {*SCRIPTS, *DOORS}


def status_of(monkeypatch, capsys, program, *words):
    """(status, standard error) of a program in this process, run as its own main module."""
    monkeypatch.setattr(sys, "argv", [program, *words])
    try:
        if program.startswith("hfgen "):
            cli.main([*program.split()[1:], *words])
        elif program.endswith(".py"):
            runpy.run_path(str(ROOT / program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=False)
        status = 0
    except SystemExit as stop:
        status = 0 if stop.code is None else stop.code
    return status, capsys.readouterr().err


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in endings.NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    endings._handlers.clear()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # who is refused or stopped has written nothing


def assert_refused(ended, word=""):
    status, errors = ended
    assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and word in errors, errors


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_done_and_wrong_use_refused(program, monkeypatch, capsys):
    needed = NEEDED.get(program, [])
    assert status_of(monkeypatch, capsys, program, "--help")[0] == 0
    assert_refused(status_of(monkeypatch, capsys, program, *needed, "--no_such_option", "1"), "no_such_option")
    for name, wrong in (("seed", "x"), ("seed", "-1"), ("dataset", "/nowhere"), ("config", "/nowhere.yaml")):
        assert_refused(status_of(monkeypatch, capsys, program, *needed, f"--{name}", wrong))


@pytest.mark.parametrize("program", [program for program in PROGRAMS if program in NEEDED])
def test_what_is_not_there_is_refused(program, monkeypatch, capsys):
    assert_refused(status_of(monkeypatch, capsys, program, *NEEDED[program]))


@pytest.mark.parametrize(
    ("program", "number"),
    [*((program, signal.SIGTERM) for program in PROGRAMS), *(("hfgen data", number) for number in endings.NUMBERS)],
)
def test_a_signal_is_its_status(program, number, monkeypatch, capfd, request):
    former = signal.signal(number, signal.SIG_DFL)  # nohup and shells' background jobs leave some ignored
    request.addfinalizer(lambda: signal.signal(number, former))

    def end(*_, **__):
        os.kill(os.getpid(), number)
        raise AssertionError("it goes on")

    monkeypatch.setattr(Run, "check", end)
    if program not in TRAINS:
        monkeypatch.setattr(options.CommandParser, "parse_args", end)
    status, errors = status_of(monkeypatch, capfd, program, *NEEDED.get(program, []))
    assert status == 128 + number and re.fullmatch(r"interrupted by SIG\w+: .*\n", errors), errors


class OutOfMemoryError(RuntimeError):
    """As torch's, by name."""


NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: ..."
)
"""As torch's on the CPU."""


@pytest.mark.parametrize(
    "error", [MemoryError(), OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), NO_MEMORY]
)
@pytest.mark.parametrize("program", ["hfgen data", "hfgen.commands.train_classifier", SCRIPTS[0]])
def test_a_lack_of_memory_is_a_failure(program, error, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    if program not in TRAINS:
        monkeypatch.setattr(options.CommandParser, "parse_args", fail)
    else:
        monkeypatch.setattr(Run, "check", lambda self: None)
        monkeypatch.setattr("hfgen.families.run.load_images", fail)
        monkeypatch.setattr("hfgen.families.run.FolderLock", NoLock)
    status, errors = status_of(monkeypatch, capsys, program)
    assert status == 1 and errors.startswith("error: out of memory") and errors.count("\n") == 1, errors


class NoLock:
    """A lock of a folder that is not made."""

    held = False

    def __init__(self, folder):
        pass

    def acquire(self):
        """Lock nothing."""

    def release(self):
        """Release nothing."""


@pytest.mark.parametrize("word", ["--hub_token=hf_SECRET", "--token=hf_SECRET", "--hub_token hf_SECRET"])
@pytest.mark.parametrize("program", [*SCRIPTS, DOORS[0]])
def test_a_front_door_takes_no_token_from_its_arguments(program, word, monkeypatch, capsys):
    """The arguments of `accelerate launch`, which started it, stay in the list of processes."""
    words = ["--push_to_hub", *word.split(), "--print_config"]
    status, errors = status_of(monkeypatch, capsys, program, *words)
    assert_refused((status, errors), "hf auth login")
    assert "SECRET" not in errors


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "unable to resize file </torch_14218_1806290702_0> to the right size: No space left on device (28)",
            "No space left on device",
        ),
        (
            "unable to open shared memory object </torch_9_1_2> in read-write mode: Too many open files (24)",
            "Too many open files",
        ),
        (
            "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            "RuntimeError: unable to allocate shared memory(shm) for file </torch_7_1_0>: Cannot allocate memory (12)",
            "Cannot allocate memory",
        ),
    ],
)
def test_a_lack_of_shared_memory_is_a_failure_that_says_what_to_enlarge(text, reason, monkeypatch, capsys):
    """As torch 2.11 writes it on Linux; in containers /dev/shm has 64 MB."""

    def fail(*_, **__):
        raise RuntimeError(f"{text}\nException raised from ...")

    monkeypatch.setattr(options.CommandParser, "parse_args", fail)
    status, errors = status_of(monkeypatch, capsys, "hfgen data")
    assert status == 1 and errors.startswith(f"error: out of shared memory: {reason}. Enlarge /dev/shm"), errors
    assert errors.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_torch_says_of_a_full_shared_memory_what_is_expected():
    """In a process of its own, whose files may have no bytes."""
    code = (
        "import resource, torch\n"
        "from hfgen.console.endings import lack_of_memory\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
        "try:\n    torch.zeros(9).share_memory_()\n"
        "except RuntimeError as error:\n    print(lack_of_memory(error))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("out of shared memory: File too large. Enlarge"), found
