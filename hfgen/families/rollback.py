"""A monitor that measures a training, raises alarms, and stops it or rolls it back to its last healthy checkpoint."""

import dataclasses
import itertools
import math
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ..disk.files import OptionalWrites, read_rows, write_rows
from ..options import TrainArgs
from ..trainer import checkpoint
from ..trainer.loop import Result
from ..trainer.signals import StopSignals
from .callbacks import Monitor
from .run import RunError

MOST_ROLLBACKS = 3
"""Rollbacks of one training, at most."""

OnAlarm = Literal["stop", "continue", "rollback"]


class RollbackMonitor(Monitor):
    """Measures a network every `every` steps, and writes a row of a file each time.

    A row holds `step` and `alarm`, a text or None, besides what a subclass measures. If training rolled back after an
    alarm, that row also holds `rolled_back_to` (a step) and is never dropped. `rows` are those of the run so far,
    oldest first.

    Attributes:
        subject, happened: of messages: "the generator", "collapsed". Checkpoints that are set aside are named
            `happened`-N.
        advice: the end of a message that training stops.
        columns: what each row of the file holds, see `read_rows`.
        recovers: errors of the training that count as an alarm.

    Args:
        every: number of steps between measurements.
        on_alarm: what follows an alarm: `stop`, `continue`, or `rollback` with half the learning rate.
        output: folder of the run.
        file: name of the file in it.
    """

    subject: str
    happened: str
    advice: str
    columns: Mapping[str, Any]
    recovers: tuple[type[Exception], ...] = ()

    def __init__(self, every: int, on_alarm: OnAlarm, output: Path, file: str):
        super().__init__(every)
        self.on_alarm, self.output, self.path = on_alarm, output, output / file
        self.alarm: str | None = None
        self.rows: list[dict[str, Any]] = []
        self._optional = OptionalWrites()

    @abstractmethod
    def row(self, pipeline: Any, step: int) -> dict[str, Any]:
        """Measure a pipeline; return the row, with its `step` and `alarm`, which may depend on `rows`."""

    @abstractmethod
    def line(self, row: Mapping[str, Any]) -> str:
        """Return a row as one line of text."""

    def measure(self, pipeline: Any, step: int) -> bool:
        """Measure a pipeline; return whether to stop the training."""
        self.rows = [old for old in self.rows if old["step"] < step or "rolled_back_to" in old]
        row = self.row(pipeline, step)
        self.alarm = row["alarm"]
        self.rows.append(row)
        self._write()
        tqdm.write(f"step {step}: {self.line(row)}")
        if self.alarm is not None:
            text = f"warning: at step {step} {self.subject} has {self.happened}: {self.alarm}."
            tqdm.write(text, file=sys.stderr)
        return self.alarm is not None and self.on_alarm != "continue"

    def begin(self) -> int:
        """Read the rows up to the newest checkpoint, where training goes on; return the number of rollbacks.

        Later rows are dropped, since their steps are repeated. A rollback to a checkpoint that somebody has removed
        does not count. Raises DamagedFileError for a row of another kind.
        """
        newest = max(map(checkpoint.step_of, checkpoint.checkpoints(self.output)), default=0)
        rows = read_rows(self.path, self.columns)
        while rows and rows[-1].get("rolled_back_to", rows[-1]["step"]) > newest:
            rows.pop()
        self.alarm, self.rows = None, [row for row in rows if "rolled_back_to" in row or row["step"] <= newest]
        return self.rollbacks

    def supervise(self, train: Callable[[Any], Result], args: Any, accelerator: Accelerator) -> Result | None:
        """Train, and roll back after an alarm as `on_alarm` says, each time with half the learning rate.

        Args:
            train: trains with the options that it is given.
            args: the options.
            accelerator: all processes call this.

        Returns:
            What `train` returned last. None if a signal requested a stop after a rollback.

        Raises:
            RunError: an alarm stops the training; says what to do.
        """
        with StopSignals() as stop:
            while True:
                rollbacks = _shared(self.begin() if accelerator.is_main_process else None, accelerator)
                result = self._attempt(train, args.slower(2**rollbacks))
                accelerator.wait_for_everyone()
                verdict = _shared(self.settle() if accelerator.is_main_process else None, accelerator)
                if verdict is None:
                    return result
                message, again = verdict
                if not again:
                    raise RunError(message)
                stopped = stop.requested(accelerator)
                when = "the next time" if stopped else "now"
                accelerator.print(f"{message}It does so {when}, with half the learning rate.")
                if stopped:
                    return None
                accelerator.free_memory()
                args = dataclasses.replace(args, resume_from_checkpoint="latest")

    @property
    def rollbacks(self) -> int:
        """Return the number of rollbacks so far."""
        return sum("rolled_back_to" in row for row in self.rows)

    def settle(self) -> tuple[str, bool] | None:
        """Decide what follows an alarm: return a message, and whether to roll back. None without an alarm that stops
        training.

        Checkpoints after the last healthy measurement are renamed to `happened`-N. Nothing is lost, and the newest
        checkpoint is healthy.
        """
        if self.path.is_file():
            self._write()  # without the rows that `begin` left out
        if self.alarm is None or self.on_alarm == "continue":
            return None
        rows, why = self.rows, self.alarm
        healthy = max((row["step"] for row in rows if row.get("alarm") is None), default=0)
        for folder in checkpoint.checkpoints(self.output):
            if checkpoint.step_of(folder) > healthy:
                os.replace(folder, _free(folder.with_name(folder.name.replace("checkpoint", self.happened))))
        left = checkpoint.checkpoints(self.output)
        step = rows[-1]["step"]
        message = (
            f"At step {step} {self.subject} had {self.happened}: {why}. Later checkpoints are now {self.happened}-*. "
        )
        if not left:
            return f"{message}There is no healthy one. {self.advice}", False
        message += f"The last healthy one is {left[-1]}; the same command goes on from it. "
        if self.on_alarm == "stop":
            return message + self.advice, False
        if self.rollbacks >= MOST_ROLLBACKS:
            return f"{message}Training has rolled back {MOST_ROLLBACKS} times. {self.advice}", False
        rows[-1]["rolled_back_to"] = checkpoint.step_of(left[-1])
        self._write()
        return message, True

    def _attempt(self, train: Callable[[TrainArgs], Result], args: TrainArgs) -> Result | None:
        """Train; an error that the monitor recovers from is an alarm, at the last measurement or later."""
        try:
            return train(args)
        except self.recovers as error:
            if self.on_alarm == "continue":
                raise
            newest = max((row["step"] for row in self.rows), default=0)
            self.alarm = str(error).split(". ")[0]
            self.rows.append({**self.failed(newest + 1), "step": newest + 1, "alarm": self.alarm})
            return None

    def failed(self, step: int) -> dict[str, Any]:
        """Return the row of a training that ended with an error after the last measurement; by default nothing."""
        return {}

    def alarms(self) -> str:
        """Return the number of measurements, alarms and rollbacks as a text."""
        steps = ", ".join(str(row["step"]) for row in self.rows if row.get("alarm") is not None)
        outcome = f"{self.happened} at step {steps}; {self.rollbacks} rollbacks" if steps else f"never {self.happened}"
        return f"measured {len(self.rows)} times, {outcome}" if self.every else "not measured"

    def _write(self) -> None:
        with self._optional(str(self.path)):
            write_rows(self.path, self.rows)


def check_rollback(on_alarm: str, every: int, args: TrainArgs, option: str, every_option: str) -> None:
    """Refuse options under which a rollback would find no checkpoint from before the last measurement.

    Args:
        on_alarm: what follows an alarm.
        every: number of steps between measurements.
        args: the options of checkpoints.
        option, every_option: names of the first two, for messages.

    Raises:
        ValueError: says how many checkpoints to keep, or that none are saved.
    """
    if on_alarm != "rollback":
        return
    if not args.checkpointing_steps:
        raise ValueError(f"--{option} rollback goes back to checkpoints, and --checkpointing_steps 0 saves none.")
    apart = every % args.checkpointing_steps != 0
    least = math.ceil(every / args.checkpointing_steps) + apart + 1
    if args.checkpoints_total_limit is not None and args.checkpoints_total_limit < least:
        steps = f"--checkpointing_steps {args.checkpointing_steps} and --{every_option} {every}"
        raise ValueError(
            f"--{option} rollback needs a checkpoint from before the last evaluation: --checkpoints_total_limit "
            f"{args.checkpoints_total_limit} with {steps} keeps none. Raise it to {least}."
        )


def _shared(value: Any, accelerator: Accelerator) -> Any:
    """Return the main process's value on every process."""
    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def _free(path: Path) -> Path:
    """Return the path, with the first free number from 2 on appended if it exists."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())
