"""The state of calls of a pipeline: what a callback reads and changes belongs to one call, not to the pipeline."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any


class SamplingCall:
    """What one call of a pipeline knows and a callback may change. Calls in other threads have their own.

    Args:
        guidance_scale, num_timesteps: of the call.
    """

    def __init__(self, guidance_scale: float = 1.0, num_timesteps: int = 0):
        self.guidance_scale, self.num_timesteps, self.interrupt = guidance_scale, num_timesteps, False


class SamplingCalls(threading.local):
    """The calls of one thread by pipeline: those that run, the innermost last, and the last one that ended."""

    def __init__(self) -> None:
        self.running: Any = weakref.WeakKeyDictionary()
        self.ended: Any = weakref.WeakKeyDictionary()


_CALLS = SamplingCalls()
_RUNNING: Any = weakref.WeakKeyDictionary()
"""All calls that run, of all threads, by pipeline."""
_LOCK = threading.Lock()


class CallsMixin:
    """For a pipeline whose calls have a state: the attributes that diffusers' callbacks know, of this thread's call."""

    @property
    def num_timesteps(self) -> int:
        """Return the number of network evaluations of this thread's call, the present or the last one; guidance doubles
        the batch, not the number."""
        return self._call.num_timesteps

    @property
    def guidance_scale(self) -> float:
        """Return the guidance scale of this thread's call. A callback may set it, for the steps that are left."""
        return self._call.guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        self._call.guidance_scale = float(scale)

    @property
    def interrupt(self) -> bool:
        """Return whether this thread's call is to stop before its next step."""
        return self._call.interrupt

    @property
    def _interrupt(self) -> bool:
        return self._call.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """Stop this thread's call, as a callback does; from a thread without a call, all that run."""
        with _LOCK:
            calls = [self._call] if _CALLS.running.get(self) else [self._call, *_RUNNING.get(self, ())]
        for call in calls:
            call.interrupt = bool(value)

    _guidance_scale = guidance_scale  # the names by which callbacks for diffusers' pipelines know them
    _num_timesteps = num_timesteps

    @property
    def _call(self) -> SamplingCall:
        """Return the state of the innermost call of this thread; without one, of the last call."""
        running = _CALLS.running.get(self)
        return running[-1] if running else _CALLS.ended.setdefault(self, SamplingCall())

    @contextlib.contextmanager
    def _called(self, call: SamplingCall) -> Iterator[None]:
        """Make `call` the innermost call of this thread inside the block."""
        here = _CALLS.running.setdefault(self, [])
        with _LOCK:
            everywhere = _RUNNING.setdefault(self, [])
            everywhere.append(call)
        here.append(call)
        try:
            yield
        finally:
            here.remove(call)
            with _LOCK:
                everywhere.remove(call)
            _CALLS.ended[self] = call
