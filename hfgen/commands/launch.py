"""Processes: run a module with `python -m`, by one process or by several."""

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from ..command_line.option_rules import split_tokens
from ..console.notes import tell
from ..disk.yaml_files import read_yaml


def launch(module: str, argv: list[str], called: str) -> NoReturn:
    """Replace this process by `python -m module argv`, started by accelerate's launcher if it needs one.

    Replacing the process (`os.execve`) hands signals and the exit status to the module without a parent in between.

    Args:
        module: the module.
        argv: its arguments.
        called: what its help and errors call it.
    """
    from ..command_line.parser import COMMAND  # and the parser's library: not for every command

    rest, environment = list(argv), {**os.environ, COMMAND: called}
    words = [sys.executable, *_launcher(rest, environment), "-m", module, *rest]
    _keep_out_of_working_directory(environment)
    os.execve(sys.executable, words, environment)


def hide_token(argv: list[str]) -> None:
    """Run this command again without a token among its arguments, which everybody on the machine can list.

    The token goes on in the environment, `HF_TOKEN`, which is this user's alone. Without a token nothing happens.
    """
    rest, tokens = split_tokens(argv)
    if not tokens:
        return
    environment = {**os.environ, "HF_TOKEN": tokens[-1]}
    tell(
        "a token among the arguments is in the list of processes and in the shell's history: log in with `hf auth "
        "login`, or set HF_TOKEN. It is passed on in the environment."
    )
    _keep_out_of_working_directory(environment)
    os.execve(sys.executable, [sys.executable, "-m", "hfgen.cli", *rest], environment)


def _keep_out_of_working_directory(environment: dict[str, str]) -> None:
    """Let the next Python look for no modules in the working directory, as `python -m` does: it may be a stranger's.

    Python 3.10 does not know the variable.
    """
    import hfgen

    if Path(hfgen.__file__).resolve().parents[1] != Path.cwd():  # a source tree that is not installed
        environment.setdefault("PYTHONSAFEPATH", "1")


def has_option(argv: list[str], flag: str) -> bool:
    """Return whether `flag` or `flag=...` is among the arguments."""
    return any(word.split("=")[0] == flag for word in argv)


def _launcher(argv: list[str], environment: dict[str, str]) -> list[str]:
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
        _check_launcher_config(default_config_file)
        return [*launcher, "accelerate", "--quiet"]
    processes = processes or str(max(1, torch.cuda.device_count()))
    threads = environment.setdefault("OMP_NUM_THREADS", str(min(8, os.cpu_count() or 1)))
    if processes == "1":
        return []
    if not torch.cuda.is_available():
        return [*launcher, "torchrun", "--standalone", "--nproc-per-node", processes]
    options = {"num_processes": processes, "num_machines": "1", "mixed_precision": "no", "dynamo_backend": "no"}
    options |= {"num_cpu_threads_per_process": threads, "main_process_port": "0"}  # 0: any that is free
    words = (word for name, value in options.items() for word in (f"--{name}", value))
    return [*launcher, "accelerate", "--quiet", "--multi_gpu", *words]


def _check_launcher_config(path: str) -> None:
    """Raise ValueError for a configuration of accelerate that its launcher would end on with a traceback."""
    from accelerate.commands.config.config_args import load_config_from_file

    fix = "Make it again with `accelerate config`, or give --num_processes"
    try:
        if not isinstance(read_yaml(path), dict):
            raise ValueError(f"{path} holds no options by name")
        load_config_from_file(path)
    except Exception as error:  # accelerate raises errors of many types
        reason = f"{error}".rstrip(".")
        raise ValueError(f"{reason if path in reason else f'{path}: {reason}'}. {fix}.") from error


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
