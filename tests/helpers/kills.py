"""`kill -9` at random moments: the same command then ends with the bits of a run that nobody killed.

Commands run in forks of this process, which has imported everything already: so a moment costs little.
"""

import ctypes
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

from hfgen.compare import jobs
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


def run_training_in_a_fork(arguments: list[str], path: Path, poll: Callable[[], bool] = lambda: False) -> int:
    """Do what `jobs._run` does for `hfgen train`, in a fork in place of a new process."""

    def train() -> None:
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        words = arguments[3:]  # after -m hfgen.cli train
        del words[1 : words.index("--num_processes") + 2]
        DOORS[FAMILIES[arguments[3]].door.rpartition(".")[2]].main(words[1:])

    return status_of(forked(train, path))


def check_kills(
    act: Callable[[Path], object],
    work: Path,
    bits: Callable[[Path], Mapping[str, object]],
    moments: int,
    seed: int = 0,
    prepare: Callable[[Path], object] = lambda home: None,
) -> int:
    """Kill a command at random moments of its run, repeat it, and compare all bits.

    Args:
        act: home -> runs the command, which writes below `home`.
        work: a folder.
        bits: home -> what must be the same.
        moments: how many.
        seed: of the moments.
        prepare: home -> makes what the command starts from.

    Returns:
        How many moments came before the end of the command.
    """
    generator, home, log, early = random.Random(seed), work / "home", work / "log.txt", 0
    with mock.patch.object(jobs, "_run", run_training_in_a_fork):

        def fresh() -> None:
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            prepare(home)

        def run() -> int:
            return forked(lambda: act(home), log)

        fresh()
        start = time.perf_counter()
        assert status_of(run()) == 0, log.read_text()[-3000:]
        duration, expected = time.perf_counter() - start, bits(home)
        assert expected
        for _ in range(moments):
            fresh()
            process, moment = run(), generator.uniform(0, duration)
            time.sleep(moment)
            os.kill(process, signal.SIGKILL)
            early += status_of(process) == -signal.SIGKILL
            assert status_of(run()) == 0, log.read_text()[-3000:]
            assert bits(home) == expected, f"killed after {moment:.2f} of {duration:.2f} s"
    return early
