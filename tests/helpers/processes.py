"""Programs that run in several processes together, on gloo."""

import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.kills import forked
from tests.helpers.toys import ROOT

LIMIT = 1200  # seconds that a program may take


def environment() -> dict[str, str]:
    """Return the environment of a launcher. By default, torch 2.13 keeps the store of a group that is restarted, and
    its processes read addresses of those before them (dynamic_rendezvous.py, line 1209)."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return {**os.environ, **own}


def launch(
    program: str, folder: Path, *words: object, processes: int = 2, restarts: int = 0
) -> subprocess.CompletedProcess:
    """Save a program as two.py in a folder, and run it by torchrun in processes with these arguments; restart them if
    one ends."""
    (folder / "two.py").write_text(program)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    return subprocess.run(
        [*launcher, str(folder / "two.py"), *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def ends_of(processes: list[int]) -> list[int]:
    """Wait for forks, and return their exit statuses. Where one fails, the others are ended: they would wait for it."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT
    while len(statuses) < len(processes):
        for process in processes:
            if process not in statuses:
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    statuses[process] = os.waitstatus_to_exitcode(status)
        if any(statuses.values()) or time.monotonic() > deadline:
            for process in processes:
                if process not in statuses:
                    os.kill(process, 9)
                    statuses[process] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        time.sleep(0.01)
    return [statuses[process] for process in processes]


def launch_forks(program: str, folder: Path, *words: object, processes: int = 2) -> subprocess.CompletedProcess:
    """Do what `launch` does in forks of this process, which has imported everything already.

    Returns:
        The result: a status (0, or that of a process that failed), and what all processes wrote, in both of `stdout`
        and `stderr`.
    """
    (folder / "two.py").write_text(program)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> None:
        os.environ.update(
            environment(),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(processes),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        sys.argv = [str(folder / "two.py"), *map(str, words)]
        runpy.run_path(sys.argv[0], run_name="__main__")

    output = folder / "two.txt"
    output.write_text("")
    statuses = ends_of([forked(lambda rank=rank: run(rank), output) for rank in range(processes)])
    said = output.read_text()
    return subprocess.CompletedProcess(program, next(filter(None, statuses), 0), said, said)


def run_in_two_processes(program: str, folder: Path) -> str:
    """Run a program in two processes with the folder as its argument, and return what they write. It must succeed."""
    process = launch_forks(program, folder, folder)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout
