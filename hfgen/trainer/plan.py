"""The length of a training: a number of steps, or a time, for which the number is planned again on the way."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..disk.kinds import count, entry, listed, number, pair, positive

WINDOW = 5
"""Steps, at least, over which the time of a step is measured."""

PART = 0.1
"""The plan is made again after this part of the steps that are left."""

REHEARSALS = (0.0, 0.75)
"""Shares of the time after which what follows the steps is rehearsed."""

STATE = entry(
    {
        "seconds": positive,
        "rows": lambda rows: listed(lambda row: listed(number)(row) and len(row) == 4)(rows) and bool(rows),
        "marks": listed(pair),
        "reserve": pair,
        "next": count,
    },
    frozenset({"seconds", "rows", "marks", "reserve", "next"}),
)
"""Kind of the state of a plan in a checkpoint."""


class Plan:
    """How many steps a training has, and where in its LR schedule a step lies.

    Without a time, that is `first` steps, and a step lies where its number says. With a time, the steps that still fit
    are planned again and again from the time of the latest steps, ever more often towards the end. The schedule is a
    function of the share of the training that is done: it is stretched or shortened over the steps that are left. The
    plan is part of a checkpoint, so a resumed run goes on by the same one.

    Args:
        first: number of steps; with a time only a first guess.
        seconds: of the training; None: the number of steps is kept.
        rehearse: does what follows the steps within that time, on the main process, and returns its seconds.

    Attributes:
        total: number of steps by the newest plan.
        rows: the plans [step, seconds, share, total]: from `step` on, reached after `seconds` and with `share` of the
            training done, the training has `total` steps.

    Raises:
        ValueError: a time that is not above 0.
    """

    def __init__(self, first: int, seconds: float | None = None, rehearse: Callable[[], float] | None = None):
        if seconds is not None and not 0 < seconds < math.inf:
            raise ValueError(f"max_train_seconds={seconds} must be a number above 0.")
        self.first, self.seconds, self.rehearse = first, seconds, rehearse
        self.rows: list[list[float]] = [[0, 0.0, 0.0, first if seconds is None else max(first, 1 + 2 * WINDOW)]]
        self._marks: list[list[float]] = []  # [step, seconds] of which the time of a step is computed
        self._reserve, self._rehearsals, self._next = 0.0, 0, 1

    @property
    def total(self) -> int:
        """The number of steps by the newest plan."""
        return int(self.rows[-1][-1])

    def start(self, state: Mapping[str, Any] | None, step: int, seconds: float) -> None:
        """Go on at `step`, which took `seconds`, by the plan in a checkpoint; None: a checkpoint of no such plan."""
        if self.seconds is None or not step:
            return
        if state is None:
            state = {"seconds": self.seconds, "rows": [[step, seconds, min(1.0, step / self.first), self.first]]}
            state |= {"marks": [[step, seconds]], "reserve": [0.0, 0], "next": step + 1}
        self.rows, (self._reserve, self._rehearsals) = [list(row) for row in state["rows"]], state["reserve"]
        self._marks, self._next = [list(mark) for mark in state["marks"]], state["next"]
        if (change := self.seconds / state["seconds"]) != 1:  # the schedule is then that of the new time
            share = min(1.0, self.position(step) / self.first / change)
            self.rows.append([step, seconds, share, max(step, round(self.total * change))])
            self._next = step + 1

    def state(self) -> dict[str, Any] | None:
        """Return what `start` needs, as JSON; None without a time."""
        if self.seconds is None:
            return None
        return {
            "seconds": self.seconds,
            "rows": self.rows,
            "marks": self._marks,
            "reserve": [self._reserve, self._rehearsals],
            "next": self._next,
        }

    def facts(self) -> dict[str, Any] | None:
        """Return the plan for metrics.json: the time, and the plans; None without a time."""
        return None if self.seconds is None else {"seconds": self.seconds, "plans": self.rows}

    def position(self, step: int) -> float:
        """Return the place of a step in an LR schedule over `first` steps."""
        if self.seconds is None:
            return step
        begin, _, share, total = self.rows[-1]
        return self.first * (share + (1 - share) * (step - begin) / max(1, total - begin))

    def due(self, step: int) -> bool:
        """Return whether the plan is to be made again after this step. It is the same in all processes."""
        return self.seconds is not None and self._next <= step < self.total

    def renew(self, step: int, seconds: float, accelerator: Accelerator) -> None:
        """Plan again how many steps fit, `step` of which took `seconds`. All processes call this."""
        if accelerator.is_main_process and self.rehearse is not None:
            while self._rehearsals < len(REHEARSALS) and seconds >= REHEARSALS[self._rehearsals] * self.seconds:
                self._reserve, self._rehearsals = self.rehearse(), self._rehearsals + 1
        shared = [seconds, self._reserve, self._rehearsals]
        if accelerator.num_processes > 1:
            shared = broadcast_object_list(shared)
        seconds, self._reserve, self._rehearsals = shared
        left = self._left(step, seconds)
        self._marks = [*self._marks[-WINDOW:], [step, seconds]]
        if len(self._marks) == 1:  # the first step is no measure: memory is allocated, code compiled
            self._next = step + (WINDOW if left > 4 * WINDOW else 1)
            return
        self.rows.append([step, round(seconds, 4), self.position(step) / self.first, step + left])
        self._next = step + max(1, math.ceil(PART * left))

    def _left(self, step: int, seconds: float) -> int:
        """Return how many steps fit in what is left of the time, if each takes as long as the latest ones did."""
        early = [mark for mark in self._marks if mark[0] <= step - WINDOW]
        begin, since = early[-1] if early else self._marks[0] if self._marks else (0, 0.0)
        pace = max(1e-9, seconds - since) / (step - begin)
        return max(0, round((self.seconds - self._reserve - seconds) / pace))
