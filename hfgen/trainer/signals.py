"""SIGINT, SIGTERM and SIGHUP as a question that the training loop asks between steps."""

import signal
from typing import Any

from accelerate import Accelerator

from ..console.endings import handle_signals


class StopSignals:
    """A context in which SIGINT, SIGTERM and SIGHUP request a stop between steps, so that a run saves before it ends.

    SIGHUP and SIGTERM stay ignored where they are ignored already, as SIGHUP is under `nohup`. SIGINT does not: shells
    let each command in the background ignore it.

    Nested instances share the outer one's signals. A signal therefore stops all trainings of a loop; `request` stops
    the current one.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._requested, self._outer = False, self
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(outer, StopSignals):
            self._outer = outer
            return self
        self._handlers = handle_signals(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second time: end at once
        self.signal = number

    @property
    def received(self) -> int | None:
        """Return the number of the signal that came to this process; None if there was none."""
        return self._outer.signal

    def request(self) -> None:
        """Request that this process stops its current training."""
        self._requested = True

    def requested(self, accelerator: Accelerator) -> bool:
        """Return whether any process was requested to stop."""
        here = self._requested or self.received is not None
        if accelerator.num_processes == 1:
            return here
        if here:
            accelerator.set_trigger()
        return accelerator.check_trigger()
