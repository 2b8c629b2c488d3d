"""`kill -9` and other signals at random moments: the same command then ends with the bits of a run that nobody stopped.

Commands run in forks of this process, which has imported everything already: so a moment costs little.
"""

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from hfgen.compare import jobs
from hfgen.console import endings
from hfgen.registry import FAMILIES
from tests.helpers.commands import DOORS


def forked(act: Callable[[], object], output: Path) -> int:
    """Run `act` in a fork of this process, whose output is appended to a file; return its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        endings.release_signals()  # the parent's; under nohup or in the background, pytest itself ignores some
        for number in endings.NUMBERS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        act()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(process: int) -> int:
    """Wait for a fork, and return its exit status, -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class ForkedTraining:
    """A `hfgen train` in a fork, in place of the new process that `subprocess.Popen` starts for `hfgen compare`.

    Args:
        words: python -m hfgen.cli train FAMILY --num_processes N ...
        stdout: the file that output is appended to.
    """

    def __init__(self, words: list[str], stdout: Any, **_: Any):
        door = DOORS[FAMILIES[words[4]].door.rpartition(".")[2]]

        def train() -> None:
            os.setsid()
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)
            rest = words[4:]
            del rest[1 : rest.index("--num_processes") + 2]
            door.main(rest[1:])

        self.returncode: int | None = None
        self.pid = forked(train, Path(stdout.name))

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        return self.wait(os.WNOHANG)

    def wait(self, options: int = 0) -> int | None:
        """Wait for the end, and return the exit status."""
        if self.returncode is None:
            process, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if process else None
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def popen_of(cls: type) -> SimpleNamespace:
    """Return what stands for the module `subprocess` in `hfgen.compare.jobs`: processes are of this class."""
    return SimpleNamespace(Popen=cls, STDOUT=subprocess.STDOUT)


def check_kills(
    act: Callable[[Path], object],
    work: Path,
    bits: Callable[[Path], Mapping[str, object]],
    moments: int,
    seed: int = 0,
    prepare: Callable[[Path], object] = lambda home: None,
    signals: Sequence[Sequence[int]] = ((signal.SIGKILL,),),
) -> int:
    """Stop a command at random moments of its run, repeat it, and compare all bits.

    After a signal that can be caught, the status is that of the signal, and no traceback is printed. A command that was
    done already has the status 0 and all bits.

    Args:
        act: home -> runs the command, which writes below `home`.
        work: a folder.
        bits: home -> what must be the same.
        moments: how many.
        seed: of the moments.
        prepare: home -> makes what the command starts from.
        signals: what is sent at each moment, in turn: one signal after the other, half a second apart at most.

    Returns:
        How many moments came before the end of the command.
    """
    generator, home, log, early = random.Random(seed), work / "home", work / "log.txt", 0
    with mock.patch.object(jobs, "subprocess", popen_of(ForkedTraining)):

        def fresh() -> None:
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            log.unlink(missing_ok=True)
            prepare(home)

        def run() -> int:
            return forked(lambda: act(home), log)

        fresh()
        start = time.perf_counter()
        assert status_of(run()) == 0, log.read_text()[-3000:]
        duration, expected = time.perf_counter() - start, bits(home)
        assert expected
        for number in range(moments):
            fresh()
            sent, process, moment = signals[number % len(signals)], run(), generator.uniform(0.02, duration)
            time.sleep(moment)
            for each in sent:
                os.kill(process, each)  # a process that is done is there until its status is asked for
                time.sleep(generator.uniform(0, 0.5) if len(sent) > 1 else 0)
            status, place = status_of(process), f"{sent} after {moment:.2f} of {duration:.2f} s"
            if sent[0] != signal.SIGKILL:
                said = log.read_text() if log.exists() else ""
                assert status in (0, 128 + sent[0], -sent[0]), (place, status, said[-3000:])
                assert "Traceback" not in said and (status or bits(home) == expected), (place, said[-3000:])
            early += status != 0
            assert status_of(run()) == 0, (place, log.read_text()[-3000:])
            assert bits(home) == expected, place
    return early
