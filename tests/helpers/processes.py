"""Programs that run in several processes together, on gloo."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.toys import ROOT


def environment() -> dict[str, str]:
    """Return the environment of a launcher. By default, torch 2.13 keeps the store of a group that is restarted, and
    its processes read addresses of those before them (dynamic_rendezvous.py, line 1209)."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return {**os.environ, **own}


def launch(
    program: str, folder: Path, *words: object, processes: int = 2, restarts: int = 0
) -> subprocess.CompletedProcess:
    """Save a program as two.py in a folder, and run it in processes with these arguments; restart them if one ends."""
    (folder / "two.py").write_text(program)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    return subprocess.run(
        [*launcher, str(folder / "two.py"), *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def run_in_two_processes(program: str, folder: Path) -> str:
    """Run a program in two processes with the folder as its argument, and return its stdout. It must succeed."""
    process = launch(program, folder, folder)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout
