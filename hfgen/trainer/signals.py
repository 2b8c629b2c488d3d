"""Signals as a question asked between steps."""

import contextlib
import signal
from typing import Any

from accelerate import Accelerator


class StopSignals:
    """Turns SIGINT and SIGTERM into a question asked between steps, so that the run can save and leave.

    One inside another hears what the outer one hears, so that whoever trains again and again knows a signal, which is
    for all of them, from `ask`, which ends one training.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._wanted, self._hearing = False, self
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(outer, StopSignals):
            self._hearing = outer
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: leave at once
        self.signal = number

    def ask(self) -> None:
        """Ask this process to stop, as SIGTERM would, but none around it."""
        self._wanted = True

    def asked(self, accelerator: Accelerator) -> bool:
        """Has any process been asked to stop?"""
        here = self._wanted or self._hearing.signal is not None
        if accelerator.num_processes == 1:
            return here
        if here:
            accelerator.set_trigger()
        return accelerator.check_trigger()
