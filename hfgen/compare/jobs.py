"""Trainings of a comparison: each a process of its ordinary front door, with the steps that the budget allows."""

import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..console.endings import handle_signals, status_of
from ..console.text import shell_text
from ..disk.files import read_json, read_rows, write_json, write_text
from ..disk.kinds import Holds, count, number
from ..disk.lock import FolderLock
from ..options import DataArgs
from .budget import Budget
from .recipes import HELD_OUT, Configuration
from .report_shape import SAVED_ROW

PROBE_SECONDS = (2.0, 10.0)
"""Bounds of the time that a probe trains to measure its speed: a tenth of the budget, within these."""
PATIENCE = 60.0
"""Seconds that a training has to save a checkpoint when its comparison has been killed."""
PLAN = {"steps": lambda value: count(value) and value > 0}
"""What a file of `plans/` holds besides what it belongs to."""
UNLIMITED = 10**9
"""Steps of a probe, which is stopped by a signal."""


class StopRequest(Exception):
    """A signal asked the comparison to stop; the running training has saved a checkpoint.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


class TrainingError(RuntimeError):
    """A training left no pipeline. The message is the training's own."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The training of one or more rows.

    Attributes:
        configuration: the front door and its options.
        data_args: the data; `dataset_split` is the training split.
        held_out: name of the held-out split, which some front doors measure.
        seed: of the training.
        home: folder of the comparison.
        seconds: budget of the training, for which it plans its steps again on the way; None: the steps are kept.
        first: the folder of the pipeline that it begins with; None: it begins from nothing.
    """

    configuration: Configuration
    data_args: DataArgs
    held_out: str
    seed: int
    home: Path
    seconds: float | None = None
    first: Path | None = None

    @property
    def folder(self) -> Path:
        """Folder of the training and its pipeline."""
        return self.home / self.configuration.run

    @property
    def options(self) -> dict[str, Any]:
        """Options of the front door without length and folder: data, recipe, seed."""
        fields = dataclasses.fields(DataArgs)
        data = {f.name: getattr(self.data_args, f.name) for f in fields}
        data = {f.name: data[f.name] for f in fields if data[f.name] != f.default}
        recipe = {
            key: self.held_out if value == HELD_OUT else value for key, value in self.configuration.options.items()
        }
        first = {} if self.first is None else {"pipeline": str(self.first)}
        return {**first, "dataset": self.data_args.dataset, **data, **recipe, "seed": self.seed}

    def arguments(self, steps: int | None, folder: Path | None = None) -> list[str]:
        """Return the arguments of `hfgen train`.

        Args:
            steps: optimiser steps; None: options of the length are left out.
            folder: default: the job's own.
        """
        length: dict[str, Any] = {}
        if steps is not None:
            length = {"max_train_steps": steps, "checkpointing_steps": max(1, steps // 5)}
            length["lr_warmup_steps"] = min(self.options.get("lr_warmup_steps", 100), steps // 10)
        if self.seconds is not None and steps not in (None, UNLIMITED):
            length["max_train_seconds"] = self.seconds
        output = {"sample_steps": 0, "report_to": "none", "output_dir": folder or self.folder}
        options = {"num_processes": 1, **self.options, **length, **output}
        return [self.configuration.door, *(word for name, value in options.items() for word in flag(name, value))]

    def command(self, steps: int | None) -> str:
        """Return the `hfgen train` command, quoted for a shell."""
        return shell_text(["hfgen", "train", *self.arguments(steps)])

    def is_complete(self, steps: int) -> bool:
        """Return whether the folder holds the pipeline of a training of `steps` steps, or of the budget's seconds."""
        try:
            metrics = read_json(self.folder / "metrics.json", "")
        except (OSError, ValueError):  # none, or cut off: the training ends once more, from its last checkpoint
            return False
        plan = metrics.get("plan")  # none in a training by steps, as comparisons of hfgen 0.1 have them
        timed = isinstance(plan, dict) and plan.get("seconds") == self.seconds
        whole = metrics.get("steps") == steps if plan is None else timed
        return whole and (self.folder / "model_index.json").is_file()


def flag(name: str, value: Any) -> list[str]:
    """Return the command-line arguments that set an option."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}", "null" if value is None else str(value)]


def plan_steps(job: Job, budget: Budget, log: Callable[[str], None]) -> int:
    """Return the number of steps that the budget allows; for a budget of seconds a first guess, see `Job.seconds`.

    The cost of a step is measured once and saved in `plans/`, so that a repeated comparison uses the same number.

    Raises:
        ValueError: the folder holds a training with other options or another budget.
        TrainingError: the front door refuses the options.
    """
    path = job.home / "plans" / f"{job.configuration.run}.json"
    options = job.options if job.first is None else {**job.options, "pipeline": job.first.name}  # wherever home lies
    plan = json.loads(json.dumps({"door": job.configuration.door, "options": options, "budget": budget.text}))
    if path.is_file():
        previous = read_saved(path, PLAN)
        for name, value in plan.items():
            if previous.get(name) != value:
                raise ValueError(
                    f"{job.home} holds {job.configuration.run} with {name} {previous.get(name)}, not {value}. Use the "
                    "same again, or another --output_dir."
                )
        return previous["steps"]
    cost = {"seconds": _step_seconds, "images": _step_images, "flops": _step_flops}[budget.kind](job, budget)
    steps = budget.steps(cost)
    guess = ", planned again on the way" if budget.kind == "seconds" else ""
    log(f"{cost:.4g} {budget.kind} a step: {steps:,} steps{guess}")
    write_json(path, {**plan, "a_step": cost, "steps": steps})
    return steps


def check_saved(home: Path) -> None:
    """Refuse plans and rows of an earlier call that were changed by something else, before anything is trained.

    Raises:
        DamagedFileError: names the file, and what to do.
    """
    for folder, kinds in (("plans", PLAN), ("rows", SAVED_ROW)):
        for path in sorted((home / folder).glob("*.json")):
            read_saved(path, kinds)


def read_saved(path: Path, kinds: Mapping[str, Holds]) -> dict[str, Any]:
    """Return what a file of `plans/` or `rows/` holds. Raises DamagedFileError if it is of another kind."""
    return read_json(path, f"Remove {path}, and run the same command again.", kinds)


def train(job: Job, steps: int, log: Callable[[str], None]) -> None:
    """Train to the end, from the last checkpoint if there is one. A complete job is not trained again.

    Args:
        job: the training.
        steps: optimiser steps.
        log: prints a line; gets the training's progress.

    Raises:
        TrainingError: the training ended without a pipeline.
        StopRequest: a signal came, and the training has saved a checkpoint.
    """
    if job.is_complete(steps):
        return log("is trained already")
    wait_for_former(job.folder)
    path, count = _log_file(job, "train"), 0

    def is_progress(line: str) -> bool:
        return line.startswith(("step ", "Resumed from "))

    def print_progress() -> bool:
        nonlocal count
        lines = list(filter(is_progress, path.read_text(encoding="utf-8", errors="replace").splitlines()))
        for line in lines[count:]:
            log(line)
        count = len(lines)
        return False

    status = _run(["-m", "hfgen.cli", "train", *job.arguments(steps)], path, print_progress)
    print_progress()
    if status or not job.is_complete(steps):
        raise TrainingError(_error_message(path, status))


def wait_for_former(folder: Path) -> None:
    """Wait until the training of a comparison that was killed has saved its checkpoint and left the folder.

    Raises:
        FolderInUseError: it is still there after `PATIENCE` seconds; says which process.
    """
    if folder.is_dir():
        lock = FolderLock(folder)
        lock.acquire(PATIENCE)
        lock.release()


def _step_images(job: Job, budget: Budget) -> float:
    """Return the images of an optimiser step."""
    return job.configuration.options["train_batch_size"]


def _step_seconds(job: Job, budget: Budget) -> float:
    """Return the seconds of an optimiser step, measured in a few seconds of training whose folder is deleted."""
    shortest, longest = PROBE_SECONDS
    duration = min(max(budget.amount / 10, shortest), longest)
    folder = job.home / "probes" / job.configuration.run
    wait_for_former(folder)
    shutil.rmtree(folder, ignore_errors=True)
    path = _log_file(job, "probe")

    def is_long_enough() -> bool:
        rows = _metric_rows(folder / "metrics.jsonl")
        return len(rows) > 2 and rows[-1]["seconds"] - rows[0]["seconds"] >= duration

    status = _run(["-m", "hfgen.cli", "train", *job.arguments(UNLIMITED, folder)], path, is_long_enough)
    rows = _metric_rows(folder / "metrics.jsonl")
    if status not in (0, status_of(signal.SIGTERM)) or len(rows) < 3:
        raise TrainingError(_error_message(path, status))
    shutil.rmtree(folder)
    return (rows[-1]["seconds"] - rows[0]["seconds"]) / (rows[-1]["step"] - rows[0]["step"])


def _metric_rows(path: Path) -> list[dict[str, Any]]:
    """Return the complete rows of a metrics.jsonl; another process may be writing the last one."""
    return read_rows(path, {"step": count, "seconds": number}, growing=True)


def _step_flops(job: Job, budget: Budget) -> float:
    """Return the floating-point operations of an optimiser step, counted in a dry run."""
    path = _log_file(job, "flops")
    arguments = job.arguments(UNLIMITED, job.home / "probes" / "flops")
    status = _run(["-m", "hfgen.compare.flops", *arguments], path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if status or not lines:
        raise TrainingError(_error_message(path, status))
    return float(lines[-1])


def _log_file(job: Job, kind: str) -> Path:
    """Create an empty file for a process's output."""
    path = job.home / "logs" / f"{job.configuration.run}-{kind}.txt"
    write_text(path, "")
    return path


def _error_message(path: Path, status: int) -> str:
    """Return why a process failed: its last error message in the log file, or else its last line."""
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    message = " ".join(lines[errors[-1] :])[:600] if errors else (lines or ["no output"])[-1]
    return f"{message.removeprefix('error: ')} (exit status {status})"


def _run(arguments: list[str], path: Path, poll: Callable[[], bool] = lambda: False) -> int:
    """Run Python in a process of its own, and return its exit status.

    Args:
        arguments: of Python.
        path: file that output is appended to.
        poll: called five times a second; True stops the process by SIGTERM.

    Raises:
        StopRequest: this process got a signal. It was forwarded, and the child has ended.
    """
    with path.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which forwards it
            preexec_fn=_terminate_with_parent if sys.platform == "linux" else None,
        )
    with _forward_signals(process) as signals:
        stopping = False
        while process.poll() is None:
            time.sleep(0.2)
            if not stopping and poll():
                stopping = True
                process.terminate()
    if signals:
        raise StopRequest(signals[0])
    return process.returncode


def _terminate_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process if its parent dies, so that it saves a checkpoint and ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def _forward_signals(process: subprocess.Popen) -> Iterator[list[int]]:
    """Forward the signals that end a command to a child as SIGTERM; a second Ctrl-C ends it at once.

    Yields the list of those that came.
    """
    signals: list[int] = []

    def forward(number: int, _: object) -> None:
        again = bool(signals) and number == signal.SIGINT
        signals.append(number)
        process.kill() if again else process.terminate()

    handlers = handle_signals(forward)
    try:
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if process.poll() is None:  # after an exception in this process
            process.terminate()
            process.wait()
