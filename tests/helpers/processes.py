"""Programs that two processes run together, on gloo."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.toys import ROOT


def launched(program: str, folder: Path, *words: object) -> subprocess.CompletedProcess:
    """The source of a program, kept in the folder and run by two processes with these words: how it ended."""
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


def two_processes(program: str, folder: Path) -> str:
    """What a program prints that two processes run with the folder as its word, and that must succeed."""
    done = launched(program, folder, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
