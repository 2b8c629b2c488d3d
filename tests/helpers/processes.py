"""Programs that run in two processes together, on gloo."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.toys import ROOT


def launch(program: str, folder: Path, *words: object) -> subprocess.CompletedProcess:
    """Save a program as two.py in a folder, and run it in two processes with these arguments."""
    (folder / "two.py").write_text(program)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [*launcher, str(folder / "two.py"), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
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
