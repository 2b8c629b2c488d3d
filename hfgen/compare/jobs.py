"""Trainings of a comparison: each by its ordinary front door, a process of its own, for as long as the budget says."""

import contextlib
import ctypes
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..options import DataArgs
from .budget import Budget
from .recipes import HELD_OUT, Configuration

PROBE = (2.0, 10.0)
"""Seconds of training after which a probe's speed is believed: a tenth of the budget, within these bounds."""
FOR_EVER = 10**9
"""Steps of a probe, which is stopped by a signal."""


class Stopped(Exception):
    """The comparison was asked to stop, and the training under way has saved where it is."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The training behind one or more rows.

    Attributes:
        configuration: what is trained.
        data_args: the data, `dataset_split` being what is trained on.
        held_out: the split that front doors measure by themselves.
        seed: of the training.
        home: folder of the comparison.
    """

    configuration: Configuration
    data_args: DataArgs
    held_out: str
    seed: int
    home: Path

    @property
    def folder(self) -> Path:
        """Where the pipeline goes."""
        return self.home / self.configuration.run

    @property
    def options(self) -> dict[str, Any]:
        """Options of the front door beside length and folder: data, recipe, seed."""
        data = {f.name: getattr(self.data_args, f.name) for f in dataclasses.fields(DataArgs)}
        changed = {f.name: data[f.name] for f in dataclasses.fields(DataArgs) if data[f.name] != f.default}
        recipe = {
            key: self.held_out if value == HELD_OUT else value for key, value in self.configuration.options.items()
        }
        return {"dataset": self.data_args.dataset, **changed, **recipe, "seed": self.seed}

    def words(self, steps: int | None, folder: Path | None = None) -> list[str]:
        """What follows `hfgen train` in the training of so many steps; None where it is not known how many."""
        length: dict[str, Any] = {}
        if steps is not None:
            length = {"max_train_steps": steps, "checkpointing_steps": max(1, steps // 5)}
            length["lr_warmup_steps"] = min(self.options.get("lr_warmup_steps", 100), steps // 10)
        same = {"sample_steps": 0, "report_to": "none", "output_dir": folder or self.folder}
        given = {"num_processes": 1, **self.options, **length, **same}
        return [self.configuration.door, *(word for name, value in given.items() for word in flag(name, value))]

    def command(self, steps: int | None) -> str:
        """The training of so many steps, to be copied into a shell."""
        return shlex.join(["hfgen", "train", *self.words(steps)])

    def finished(self, steps: int) -> bool:
        """Whether the folder holds what a training of so many steps leaves."""
        try:
            figures = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return figures.get("steps") == steps and (self.folder / "model_index.json").is_file()


def flag(name: str, value: Any) -> list[str]:
    """The words that give an option this value on a command line."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}", "null" if value is None else str(value)]


def planned(job: Job, budget: Budget, say: Callable[[str], None]) -> int:
    """How many steps the budget buys this job: measured once, and kept, so that the same comparison goes on with it.

    Raises:
        ValueError: the folder holds a training under other options or another budget.
        TrainingError: the front door refuses the options.
    """
    path = job.home / "plans" / f"{job.configuration.run}.json"
    asked = json.loads(json.dumps({"door": job.configuration.door, "options": job.options, "budget": budget.text}))
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        for name, value in asked.items():
            if kept[name] != value:
                raise ValueError(
                    f"{job.home} holds {job.configuration.run} with {name} {kept[name]}, not {value}. Give the same "
                    "again, or another --output_dir."
                )
        return kept["steps"]
    cost = {"seconds": _seconds, "images": _images, "flops": _flops}[budget.kind](job, budget)
    steps = budget.steps(cost)
    say(f"{cost:.4g} {budget.kind} a step: {steps:,} steps")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**asked, "a_step": cost, "steps": steps}, indent=2) + "\n", encoding="utf-8")
    return steps


def train(job: Job, steps: int, say: Callable[[str], None]) -> None:
    """Train to the end, or on from where it was stopped; nothing to do where it is finished.

    Raises:
        TrainingError: the training ended without a pipeline; says why.
        Stopped: a signal came, and the training has saved where it is.
    """
    if job.finished(steps):
        return say("is trained already")
    log, told = _log(job, "train"), 0

    def tick() -> bool:
        nonlocal told
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if shown(line)]
        for line in lines[told:]:
            say(line)
        told = len(lines)
        return False

    def shown(line: str) -> bool:
        return line.startswith(("step ", "Resumed from "))

    status = _run(["-m", "hfgen.cli", "train", *job.words(steps)], log, tick)
    tick()
    if status or not job.finished(steps):
        raise TrainingError(_last_words(log, status))


class TrainingError(RuntimeError):
    """A training that left no pipeline; its message is the training's own."""


def _images(job: Job, budget: Budget) -> float:
    """Images of an optimiser step."""
    return job.configuration.options["train_batch_size"]


def _seconds(job: Job, budget: Budget) -> float:
    """Seconds of an optimiser step, from a few seconds of the real training, thrown away."""
    enough = min(max(budget.amount / 10, PROBE[0]), PROBE[1])
    folder = job.home / "probes" / job.configuration.run
    shutil.rmtree(folder, ignore_errors=True)
    log, rows = _log(job, "probe"), folder / "metrics.jsonl"

    def tick() -> bool:
        seen = _rows(rows)
        return len(seen) > 2 and seen[-1]["seconds"] - seen[0]["seconds"] >= enough

    status = _run(["-m", "hfgen.cli", "train", *job.words(FOR_EVER, folder)], log, tick)
    seen = _rows(rows)
    if status or len(seen) < 3:
        raise TrainingError(_last_words(log, status))
    shutil.rmtree(folder)
    return (seen[-1]["seconds"] - seen[0]["seconds"]) / (seen[-1]["step"] - seen[0]["step"])


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics.jsonl, of which another process may be writing the last."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _flops(job: Job, budget: Budget) -> float:
    """Floating-point operations of an optimiser step, counted in a dry run."""
    log = _log(job, "flops")
    status = _run(["-m", "hfgen.compare.flops", *job.words(FOR_EVER, job.home / "probes" / "flops")], log)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if status or not lines:
        raise TrainingError(_last_words(log, status))
    return float(lines[-1])


def _log(job: Job, kind: str) -> Path:
    """An empty file for what a process prints."""
    path = job.home / "logs" / f"{job.configuration.run}-{kind}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", encoding="utf-8")
    return path


def _last_words(log: Path, status: int) -> str:
    """Why a process failed: its own error message, or else the last it said."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    said = " ".join(lines[errors[-1] :])[:600] if errors else (lines or ["it said nothing"])[-1]
    return f"{said.removeprefix('error: ')} (exit status {status})"


def _run(words: list[str], log: Path, tick: Callable[[], bool] = lambda: False) -> int:
    """Run Python with these words, its output in `log`; `tick` is asked now and then, and True stops it by a signal.

    Raises:
        Stopped: this process got a signal. It was handed on, and the child has ended.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches it through us alone
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    with _handing_on(process) as asked:
        ending = False
        while process.poll() is None:
            time.sleep(0.2)
            if not ending and tick():
                ending = True
                process.terminate()
    if asked:
        raise Stopped
    return process.returncode


def _end_with_parent() -> None:
    """Have the child that calls this asked to stop, and so to save, where its parent is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def _handing_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Signals to stop go to the child; yields those that came."""
    came: list[int] = []

    def hand_on(number: int, _: object) -> None:
        came.append(number)
        process.terminate()

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
            before[number] = signal.signal(number, hand_on)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if process.poll() is None:  # an error here
            process.terminate()
            process.wait()
