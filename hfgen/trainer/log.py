"""The log of a training: metrics.jsonl, trackers and one progress bar."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import Tensor

from ..console.notes import tell
from ..console.progress import ProgressBar
from ..disk.files import GrowingRows, OptionalWrites, read_rows, write_rows
from ..disk.kinds import count


class TrackerError(RuntimeError):
    """A tracker of accelerate does not start."""


class DivergenceError(RuntimeError):
    """A loss or gradient is no longer a finite number."""


class Log:
    """Averages the values of steps and writes a row every `every` steps: to metrics.jsonl, to accelerate's trackers and
    to one progress bar. Without a terminal, a line is printed each tenth of the run. A value that is not finite stops
    the run; a row or tracker that can't be written does not, and is said once.

    Values stay on the device until a row is due, so that logging never makes a step wait. Values that are not yet
    written are part of `state`: a resumed run writes the rows that the uninterrupted one would have written.

    Args:
        accelerator: of accelerate.
        output: folder of the run.
        every: steps a row.
        total: steps of the run.
        items: items an optimiser step, over all processes.
        steps_per_epoch: None for a stream.
        config: for the trackers.
        unit: the plural noun for the items: "images" gives the column images_per_second.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output: Path,
        every: int,
        total: int,
        items: int,
        steps_per_epoch: float | None,
        config: Mapping[str, Any],
        unit: str = "items",
    ):
        self.accelerator, self.every, self.total = accelerator, every, total
        self.items, self.steps_per_epoch, self.config, self.unit = items, steps_per_epoch, config, unit
        self.last_checkpoint: Path | None = None
        self.latest: dict[str, float] = {}
        self.items_per_second = 0.0
        self._rows, self._optional = GrowingRows(output / "metrics.jsonl"), OptionalWrites()
        self._fresh: list[tuple[int, str, Tensor]] = []
        self._pending: list[tuple[int, str, float]] = []
        self._now = self._first = self._written = 0
        self._seconds = self._seconds_written = 0.0
        self._bar, self._hook = ProgressBar(disable=True), threading.excepthook

    def position(self, step: int) -> str:
        """Return the place of `step` in the data as a text."""
        epoch = f" (epoch {step / self.steps_per_epoch:.2f})" if self.steps_per_epoch else ""
        return f"data from {self.unit.removesuffix('s')} {step * self.items:,}{epoch} on"

    def start(self, state: Mapping[str, Any]) -> int:
        """Begin with the `state` of a checkpoint, {} without one; return the step to begin at."""
        step = state.get("step", 0)
        if state:
            self._seconds = self._seconds_written = state["log"]["seconds"]
            self._pending = [tuple(entry) for entry in state["log"]["pending"]]
        self._now = self._first = self._written = step
        if self.accelerator.is_main_process:
            self._drop_rows_after(step)
        self._start_trackers()
        self._bar = ProgressBar(
            total=self.total,
            initial=step,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self._since = time.perf_counter()
        return step

    def reach(self, total: int) -> None:
        """Set the number of steps of the run, which a plan may change on the way."""
        self.total = self._bar.total = total

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        with self._optional(str(self._rows.path)):
            self._rows.write()  # a last row that could not be written has no next one
        self._track(lambda tracker: tracker.finish())  # end_training would take the process group down as well
        threading.excepthook = self._hook

    @property
    def seconds(self) -> float:
        """Return the seconds spent in training steps since the first start, without samples and checkpoints."""
        return self._seconds + time.perf_counter() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block, time does not count as training time."""
        self._seconds = self.seconds
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def add(self, player: str, logs: Mapping[str, Tensor]) -> None:
        """Record scalars of the present step."""
        for key, value in logs.items():
            self._fresh.append((self._now + 1, f"{player}/{key}", _number(player, key, value)))

    def step(self, step: int, lr: Mapping[str, float]) -> None:
        """End a step: move the bar, and write a row if one is due."""
        self._now = step
        self._bar.update()
        if step % self.every == 0 or step == self.total:
            self.collect()
            self._write(lr)

    def state(self) -> dict[str, Any]:
        """Return what `start` needs to continue exactly, as JSON. Raises DivergenceError for a value not finite."""
        self.collect()
        return {"seconds": self.seconds, "pending": self._pending}

    def collect(self) -> None:
        """Fetch the recorded scalars from the device, average them over processes and refuse any that is not finite."""
        if not self._fresh:
            return
        device = self.accelerator.device
        values = torch.stack([value.detach().float().reshape(()).to(device) for _, _, value in self._fresh])
        values = self.accelerator.reduce(values, reduction="mean").tolist()
        found = [(step, name, value) for (step, name, _), value in zip(self._fresh, values, strict=True)]
        self._refuse_infinite(found)
        self._pending += found
        self._fresh.clear()

    def _refuse_infinite(self, found: Sequence[tuple[int, str, float]]) -> None:
        """Raise DivergenceError for values that are not finite, and name all of the first step that has any: what is
        finite there has not caused them."""
        bad = [each for each in found if not math.isfinite(each[2])]
        if self.accelerator.scaler:  # fp16 skips a step whose gradient overflows, by design
            bad = [each for each in bad if not each[1].endswith("grad_norm")]
        if bad:
            step, player = bad[0][0], bad[0][1].split("/", 1)[0]
            here = [each for each in bad if each[0] == step and each[1].split("/", 1)[0] == player]
            raise DivergenceError(self._advice(step, here))

    def _write(self, lr: Mapping[str, float]) -> None:
        columns: dict[str, list[float]] = {}
        for _, name, value in self._pending:
            columns.setdefault(name, []).append(value)
        row = {name: sum(column) / len(column) for name, column in columns.items()}
        row |= {f"{player}/lr": value for player, value in lr.items()}
        if len(lr) == 1:
            row = {name.split("/", 1)[1]: value for name, value in row.items()}
        steps, seconds = self._now - self._written, self.seconds - self._seconds_written
        self.items_per_second = steps * self.items / seconds
        self._written, self._seconds_written, self.latest = self._now, self.seconds, row
        self._pending.clear()
        place = {"step": self._now} | ({"epoch": self._now / self.steps_per_epoch} if self.steps_per_epoch else {})
        timing = {f"{self.unit}_per_second": round(self.items_per_second, 1), "seconds": round(self.seconds, 2)}
        if self.accelerator.is_main_process:
            with self._optional(str(self._rows.path)):
                self._rows.append({**place, **row, **timing})
            self._show(row)
        step = self._now
        self._track(lambda tracker: tracker.log({**row, **timing}, step=step))

    def _start_trackers(self) -> None:
        """Start the trackers; those whose files can't be written are left out.

        Raises TrackerError for what they refuse, such as a missing login.
        """
        self._hook, threading.excepthook = threading.excepthook, self._print_thread_error  # they start threads
        try:
            self.accelerator.init_trackers("hfgen", config=_scalars(self.config))
        except OSError as error:
            self.accelerator.trackers.clear()
            tell(f"trackers can't write their log ({error}). The training goes on without it.")
        except Exception as error:  # of many kinds, each tracker has its own
            threading.excepthook = self._hook
            text = " ".join(str(error).split()) or type(error).__name__
            raise TrackerError(
                f"the tracker can't start: {text.rstrip('.')}. Set it up, or give --report_to none."
            ) from error

    def _print_thread_error(self, args: Any) -> None:
        """Print the error of a thread, unless it is TensorBoard's that writes its file: `_track` says that."""
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard")):
            self._hook(args)

    def _track(self, call: Callable[[GeneralTracker], None]) -> None:
        """Call a method of each tracker. One that fails, by its disk or network, is left out from then on."""
        for tracker in list(self.accelerator.trackers):
            try:
                call(tracker)
            except Exception as error:  # what a tracker raises is its own, and no log is worth the run
                self.accelerator.trackers.remove(tracker)
                tell(f"{tracker.name} does not log any more ({error}). The training goes on without it.")

    def _show(self, row: Mapping[str, float]) -> None:
        losses = {name: f"{value:.4f}" for name, value in row.items() if name.endswith("loss")}
        self._bar.set_postfix({**losses, f"{self.unit}/s": f"{self.items_per_second:.0f}"})
        tenths = [step * 10 // self.total for step in (self._now - self.every, self._now)]
        if self._bar.disable and tenths[0] != tenths[1]:
            text = ", ".join(f"{name} {value}" for name, value in losses.items())
            rate = self.items_per_second and (self.total - self._now) * self.items / self.items_per_second
            print(
                f"step {self._now}/{self.total}: {text}, {self.items_per_second:.0f} {self.unit}/s, {rate:.0f} s left"
            )

    def _advice(self, step: int, bad: Sequence[tuple[int, str, float]]) -> str:
        (_, first, value), *others = bad
        names = [name.split("/", 1)[1] for _, name, _ in others if not name.endswith("grad_norm")]  # which follows
        also = f" (so are {', '.join(names)})" if names else ""
        saved = self.last_checkpoint
        last = f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved before"
        remedy = "use --mixed_precision bf16" if self.accelerator.scaler else "lower --max_grad_norm"
        return (
            f"{first} is {value} at step {step}{also}; {last}. "
            f"Lower --learning_rate, lengthen --lr_warmup_steps or {remedy}."
        )

    def _drop_rows_after(self, step: int) -> None:
        """Remove rows after this step, which will be written again, and a line that was cut off, to which the next row
        would be appended."""
        rows = read_rows(self._rows.path, {"step": count})
        if self._rows.path.exists():
            write_rows(self._rows.path, [row for row in rows if row["step"] <= step])


def _number(player: str, key: str, value: Any) -> Tensor:
    """Return a log as a real tensor of one element. Raises TypeError for anything but one real number of Python, NumPy
    or torch."""
    try:
        number = torch.as_tensor(value)  # a text, None or an object is none
    except (TypeError, ValueError, RuntimeError):
        number = torch.empty(0)
    if number.numel() != 1 or number.is_complex() or not isinstance(key, str):
        raise TypeError(f"The log {key!r} of {player} is {value!r}; it must be one number, tensor or float.")
    return number


def _scalars(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if isinstance(value, int | float | str | bool)}
