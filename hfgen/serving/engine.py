"""A queue in front of pipelines: jobs of many callers that can share a call are computed together.

Each job has a key, and jobs with equal keys share a call. The group of the oldest job is computed, up to `max_batch`
samples of it, when it has waited for others; `patience.py` says how long. A group that fills a batch earlier does not
wait. What a job is, is said in `jobs.py`.
"""

import asyncio
import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Protocol

from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, COUNT
from .patience import LEAST, Patience

SMOOTHING = 0.2
"""Weight of the last call in the mean time of a sample."""


class Job(Protocol):
    """Work of one caller.

    Attributes:
        key: jobs with equal keys can share a call.
        size: number of samples, at least 1.
    """

    key: Hashable
    size: int

    def run(self, jobs: Sequence["Job"]) -> Sequence[Any]:
        """Return the results of jobs with this key, this one among them, in their order."""


class QueueFullError(RuntimeError):
    """A job was refused: the queue has no room for it.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, waiting: int, limit: int, retry_after: float):
        super().__init__(
            f"{waiting} of at most {limit} samples are waiting. Try again in {retry_after:.1f} s, or with fewer."
        )
        self.retry_after = retry_after


class EngineClosedError(RuntimeError):
    """A job was refused: the engine finishes what it accepted, and accepts nothing more."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down: it finishes what it has accepted. Try another.")


class DeadlineError(TimeoutError):
    """The time of a job was over before its result was there."""


@dataclasses.dataclass(frozen=True)
class Call:
    """What one call did.

    Attributes:
        jobs: of the call.
        size: number of their samples.
        waited: seconds that each job was in the queue; none where jobs are tried again alone.
        seconds: that the call took.
        error: what it raised; None if it gave results.
    """

    jobs: tuple[Job, ...]
    size: int
    waited: tuple[float, ...]
    seconds: float
    error: BaseException | None


class _Ticket:
    """A job in the engine: its future, when it came, and until when it is wanted, on the clock `time.monotonic`."""

    def __init__(self, job: Job, timeout: float | None):
        self.job, self.key, self.size = job, job.key, job.size  # read once: a job may change
        self.arrived, self.waited = time.monotonic(), 0.0
        self.future: Future[Any] = Future()
        self.timeout, self.deadline = timeout, math.inf if timeout is None else self.arrived + timeout

    def answer(self, result: Any = None, error: BaseException | None = None) -> None:
        """Give the caller a result or an error, unless there is an answer already."""
        with contextlib.suppress(InvalidStateError):
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)

    def expire(self) -> None:
        """Tell the caller that the time is over."""
        self.answer(error=DeadlineError(f"No result after {self.timeout:g} s. Ask for less, or wait longer."))

    def is_wanted(self) -> bool:
        """Return whether the caller waits for an answer. One whose time is over gets it here."""
        if self.deadline <= time.monotonic():
            self.expire()
        return not self.future.done()


class BatchEngine:
    """Computes jobs on threads of its own. Callers get futures.

    A job that its caller cancels (`future.cancel()`), or whose time is over, leaves the queue at once and is not
    computed. If a call raises an exception, its jobs are tried one by one, so that each gets its own result or error.
    `with BatchEngine() as engine:` finishes what it accepted at the end of the block.

    Args:
        max_batch: samples in a call, and of a job.
        max_wait: seconds that a job waits for others to share its call. None: as `hfgen.serving.patience` says, 0.005
            on an idle service, and longer after a call while its callers come back.
        max_queue: samples that wait; further jobs are refused. At least `max_batch`.
        workers: threads, and so calls at a time. One is best for one device.
        on_call: called with what each `Call` did, on the thread that made it.

    Raises:
        ValueError: a number out of range.
    """

    @checked
    def __init__(
        self,
        max_batch: int = 16,
        max_wait: float | None = None,
        max_queue: int = 256,
        workers: int = 1,
        on_call: Callable[[Call], None] | None = None,
    ):
        for name, value in (("max_batch", max_batch), ("max_queue", max_queue), ("workers", workers)):
            if not COUNT.holds(value):
                raise ValueError(f"{name}={value} must be {COUNT}.")
        if max_wait is not None and not AT_LEAST_0.holds(max_wait):
            raise ValueError(f"max_wait={max_wait} must be {AT_LEAST_0}.")
        if max_queue < max_batch:
            raise ValueError(
                f"max_queue={max_queue} must be at least max_batch={max_batch}, or full batches never fit."
            )
        self.max_batch, self.max_wait, self.max_queue, self.on_call = max_batch, max_wait, max_queue, on_call
        self._waiting: dict[_Ticket, None] = {}  # by arrival
        self._patience = Patience(max_wait)
        self._running: set[_Ticket] = set()
        self._closing = self._ended = False
        self._size, self._sample_seconds = 0, 0.0
        lock = threading.RLock()
        self._arrival, self._clock, self._idle = (threading.Condition(lock) for _ in range(3))
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        self._watch = threading.Thread(target=self._keep_deadlines, daemon=True)
        for thread in (*self._workers, self._watch):
            thread.start()

    def __enter__(self) -> "BatchEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Return the number of samples in the queue."""
        return self._size

    @property
    def closing(self) -> bool:
        """Return whether the engine accepts nothing more."""
        return self._closing

    @property
    def retry_after(self) -> float:
        """Return the seconds after which what waits now should be computed."""
        with self._idle:
            samples = self._size + sum(ticket.size for ticket in self._running)
            least = LEAST if self.max_wait is None else self.max_wait
            return max(least, samples * self._sample_seconds / len(self._workers))

    @checked
    def submit(self, job: Job, timeout: float | None = None) -> "Future[Any]":
        """Accept a job, and return the future of its result.

        Args:
            job: see `Job`.
            timeout: seconds after which the result is no longer wanted: the future then raises `DeadlineError`. None:
                it is always wanted.

        Raises:
            ValueError: the job has more than `max_batch` samples or none, or the timeout is not above 0.
            TypeError: its key can't be compared.
            QueueFullError: there is no room.
            EngineClosedError: the engine is closing.
        """
        ticket = _Ticket(job, timeout)
        hash(ticket.key)  # a TypeError here is the caller's, and on a worker it would be everyone's
        if not 1 <= ticket.size <= self.max_batch:
            raise ValueError(f"A job of {ticket.size} samples must have from 1 to max_batch={self.max_batch}.")
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError(f"timeout={timeout} must be above 0 s and finite, or None.")
        with self._arrival:
            if self._closing:
                raise EngineClosedError
            if self._size + ticket.size > self.max_queue:
                raise QueueFullError(self._size, self.max_queue, self.retry_after)
            self._waiting[ticket] = None
            self._size += ticket.size
            self._patience.came(ticket.key, ticket.size, ticket.arrived)
            self._arrival.notify()
            if timeout is not None:
                self._clock.notify()
        ticket.future.add_done_callback(lambda _: self._drop(ticket))
        return ticket.future

    async def result(self, job: Job, timeout: float | None = None) -> Any:
        """Return the result of a job, in a coroutine. If the coroutine is cancelled, so is the job.

        Raises:
            ValueError, QueueFullError, EngineClosedError: as `submit`.
            DeadlineError: the time was over; and whatever the job raises.
        """
        return await asyncio.wrap_future(self.submit(job, timeout))

    def drain(self) -> None:
        """Accept nothing more from now on; what was accepted is computed."""
        with self._arrival:
            self._closing = True
            for condition in (self._arrival, self._clock):
                condition.notify_all()

    @checked
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing waits or is computed, at most `timeout` seconds. Return whether that is so."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._waiting and not self._running, timeout)

    def close(self) -> None:
        """Accept nothing more, and return when all that was accepted is answered."""
        self.drain()
        for worker in self._workers:
            worker.join()
        with self._clock:
            self._ended = True
            self._clock.notify_all()
        self._watch.join()

    def _drop(self, ticket: _Ticket) -> None:
        """Take a ticket that is done from the queue, and tell who waits for it that it was cancelled, if it was."""
        if self._leave(ticket) and ticket.future.cancelled():
            ticket.future.set_running_or_notify_cancel()

    def _leave(self, ticket: _Ticket) -> bool:
        """Take a ticket from the queue; return whether it was there."""
        with self._idle:
            if ticket not in self._waiting:
                return False
            del self._waiting[ticket]
            self._size -= ticket.size
            self._arrival.notify()
            self._idle.notify_all()
            return True

    def _work(self) -> None:
        while tickets := self._next():
            if wanted := [ticket for ticket in tickets if ticket.is_wanted()]:
                self._compute(wanted)
            with self._idle:
                self._running.difference_update(tickets)
                self._idle.notify_all()

    def _next(self) -> list[_Ticket]:
        """Return tickets that share a call, when it is time for it; none if the engine closes and nothing waits."""
        with self._arrival:
            while self._waiting or not self._closing:
                now, rest = time.monotonic(), None
                if self._waiting:
                    oldest = next(iter(self._waiting))
                    rest = self._patience.due(oldest.key, oldest.arrived, now) - now
                    tickets = self._group(self._closing or rest <= 0)
                    for ticket in tickets:
                        self._leave(ticket)
                        ticket.waited = now - ticket.arrived
                    if tickets := [ticket for ticket in tickets if ticket.future.set_running_or_notify_cancel()]:
                        self._running.update(tickets)
                        self._arrival.notify()  # another worker may take the next group
                        return tickets
                    rest = rest if rest > 0 else 0
                self._arrival.wait(rest)
            self._arrival.notify_all()
            return []

    def _group(self, due: bool) -> list[_Ticket]:
        """Return the group of the oldest ticket if it is due, else one that fills a batch, else none."""
        groups: dict[Hashable, list[_Ticket]] = {}
        sizes: dict[Hashable, int] = {}
        for ticket in self._waiting:
            key, size = ticket.key, ticket.size
            fits = sizes.setdefault(key, 0) + size <= self.max_batch
            if fits:
                groups.setdefault(key, []).append(ticket)
                sizes[key] += size
            if not due and (not fits or sizes[key] == self.max_batch):
                return groups[key]
        return next(iter(groups.values())) if due else []

    def _compute(self, tickets: list[_Ticket], again: bool = False) -> None:
        """Make one call for tickets and answer them. If it fails, make one for each, which is `again` for them."""
        jobs, start = tuple(ticket.job for ticket in tickets), time.monotonic()
        results: Sequence[Any] = ()
        error: BaseException | None = None
        try:
            results = jobs[0].run(jobs)
            if len(results) != len(jobs):
                raise RuntimeError(f"{type(jobs[0]).__name__}.run gave {len(results)} results for {len(jobs)} jobs.")
        except BaseException as raised:  # whatever it is, the callers must hear of it and the thread must go on
            error = raised
        waited = () if again else tuple(ticket.waited for ticket in tickets)
        self._tell(Call(jobs, sum(ticket.size for ticket in tickets), waited, time.monotonic() - start, error))
        if error is None:
            self._expect(tickets, start)
            for ticket, result in zip(tickets, results, strict=True):
                ticket.answer(result)
        elif len(tickets) == 1:
            tickets[0].answer(error=error)
        else:
            for ticket in tickets:
                if ticket.is_wanted():
                    self._compute([ticket], again=True)

    def _expect(self, tickets: Sequence[_Ticket], start: float) -> None:
        """Take note of a call that began then: those who still wait for its results may ask again."""
        with self._arrival:
            now, waiting = time.monotonic(), [ticket.size for ticket in tickets if not ticket.future.done()]
            self._patience.answered(tickets[0].key, sum(waiting), now - start, now)

    def _tell(self, call: Call) -> None:
        """Remember how long a sample takes, and tell `on_call`."""
        seconds, share = call.seconds / call.size, SMOOTHING if self._sample_seconds else 1.0
        self._sample_seconds += share * (seconds - self._sample_seconds)
        if self.on_call is not None:
            try:
                self.on_call(call)
            except BaseException:  # the thread must go on
                logging.getLogger(__name__).exception("on_call raised an exception, and the engine goes on.")

    def _keep_deadlines(self) -> None:
        """Answer those whose time is over, also while all workers compute."""
        while True:
            with self._clock:
                if self._ended:
                    return
                now = time.monotonic()
                wanted = [ticket for ticket in (*self._waiting, *self._running) if not ticket.future.done()]
                late = [ticket for ticket in wanted if ticket.deadline <= now]
                for ticket in late:
                    self._leave(ticket)
                if not late:
                    soon = min((ticket.deadline for ticket in wanted), default=math.inf)
                    self._clock.wait(None if math.isinf(soon) else soon - now)
            for ticket in late:  # outside of the lock: callbacks of the caller run here
                ticket.expire()
