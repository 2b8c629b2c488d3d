"""Processes: run a module with `python -m`, by one process or by several."""

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from ..utils.command_line import COMMAND


def launch(module: str, argv: list[str], called: str) -> NoReturn:
    """Replace this process by `python -m module argv`, started by accelerate's launcher if it needs one.

    Replacing the process (`os.execve`) hands signals and the exit status to the module without a parent in between.

    Args:
        module: the module.
        argv: its arguments.
        called: what its help and errors call it.
    """
    rest = list(argv)
    words = [sys.executable, *_launcher(rest), "-m", module, *rest]
    os.execve(sys.executable, words, {**os.environ, COMMAND: called})


def has_option(argv: list[str], flag: str) -> bool:
    """Return whether `flag` or `flag=...` is among the arguments."""
    return any(word.split("=")[0] == flag for word in argv)


def _launcher(argv: list[str]) -> list[str]:
    """Return the arguments of Python that start a launcher of processes; none for a single process.

    `--num_processes N` is removed from `argv`. Without it, the user's configuration of accelerate decides if there is
    one; else there is one process a GPU. On CPUs it is torch's launcher: accelerate's starts one process there, however
    many are asked for. `--quiet`: the module prints its error message, and the launcher would repeat it.
    """
    import torch
    from accelerate.commands.config.config_args import default_config_file

    processes = _pop_number(argv, "--num_processes")
    launcher = ["-m", "hfgen.commands.launcher"]
    if processes is None and Path(default_config_file).exists():
        return [*launcher, "accelerate", "--quiet"]
    processes = processes or str(max(1, torch.cuda.device_count()))
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(min(8, os.cpu_count() or 1)))
    if processes == "1":
        return []
    if not torch.cuda.is_available():
        return [*launcher, "torchrun", "--standalone", "--nproc-per-node", processes]
    options = {"num_processes": processes, "num_machines": "1", "mixed_precision": "no", "dynamo_backend": "no"}
    options |= {"num_cpu_threads_per_process": threads, "main_process_port": "0"}  # 0: any that is free
    words = (word for name, value in options.items() for word in (f"--{name}", value))
    return [*launcher, "accelerate", "--quiet", "--multi_gpu", *words]


def _pop_number(argv: list[str], flag: str) -> str | None:
    """Remove `flag N` or `flag=N` from `argv` and return N; None if the flag is absent.

    Raises:
        ValueError: N is not a positive integer.
    """
    index = next((i for i, word in enumerate(argv) if word.split("=")[0] == flag), None)
    if index is None:
        return None
    _, equals, value = argv[index].partition("=")
    length = 1 if equals else 2
    value = value if equals else "".join(argv[index + 1 : index + 2])
    if not re.fullmatch(r"[1-9]\d*", value):
        raise ValueError(f"{flag} needs a positive number, not {value!r}.")
    del argv[index : index + length]
    return value
