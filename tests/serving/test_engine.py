"""One queue for many callers: grouping, limits, deadlines, cancellation, failures, and the end."""

import asyncio
import dataclasses
import random
import threading
import time
from collections.abc import Hashable
from concurrent.futures import CancelledError, wait

import pytest

from hfgen.serving.engine import BatchEngine, DeadlineError, EngineClosedError, QueueFullError

LONG = 30


@dataclasses.dataclass
class Echo:
    """A job that gives its name back. `gate` holds its call up, and `log` gets the names of each call."""

    name: object
    key: Hashable = "a"
    size: int = 1
    log: list = dataclasses.field(default_factory=list)
    gate: threading.Event | None = None
    begun: threading.Event | None = None
    error: BaseException | None = None

    def run(self, jobs):
        self.log.append([job.name for job in jobs])
        if self.begun:
            self.begun.set()
        if self.gate:
            assert self.gate.wait(LONG)
        for job in jobs:
            if job.error:
                raise job.error
        return [job.name for job in jobs]


@pytest.fixture
def held():
    """An engine whose worker is held up in a first call: (engine, log of later calls, gate that lets it go on)."""
    gate, begun, log = threading.Event(), threading.Event(), []
    with BatchEngine(max_batch=4, max_wait=0.0, max_queue=8) as engine:
        engine.submit(Echo("first", "first", gate=gate, begun=begun))
        assert begun.wait(LONG)
        yield engine, log, gate
        gate.set()


def results(futures):
    return [future.result(LONG) for future in futures]


def test_jobs_of_one_key_share_calls_and_each_gets_its_own_result(held):
    engine, log, gate = held
    futures = [engine.submit(Echo(i, "ab"[i % 2], log=log)) for i in range(8)]
    gate.set()
    assert results(futures) == list(range(8))
    assert log == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_call_has_as_many_samples_as_fit_and_small_jobs_pass_a_large_one(held):
    engine, log, gate = held
    futures = [engine.submit(Echo(i, size=size, log=log)) for i, size in enumerate((2, 3, 1, 1, 1))]
    gate.set()
    assert results(futures) == list(range(5))
    assert log == [[0, 2, 3], [1, 4]]


def test_a_job_waits_for_others_and_a_full_batch_does_not_wait():
    log = []
    with BatchEngine(max_batch=2, max_wait=LONG) as engine:
        lonely = engine.submit(Echo("lonely", "b", log=log))
        full = [engine.submit(Echo(i, log=log)) for i in range(2)]
        assert results(full) == [0, 1] and not lonely.done()
    assert lonely.result(0) == "lonely" and log == [[0, 1], ["lonely"]]  # the end of the block does not wait either
    with BatchEngine(max_batch=8, max_wait=0.2) as engine:
        log.clear()
        futures = [engine.submit(Echo(i, log=log)) for i in range(3)]
        assert results(futures) == [0, 1, 2] and log == [[0, 1, 2]]


def test_the_oldest_job_is_computed_first_however_full_other_groups_are(held):
    engine, log, gate = held
    futures = [
        engine.submit(Echo(name, key, log=log)) for name, key in ((0, "old"), *((i, "new") for i in range(1, 5)))
    ]
    gate.set()
    assert results(futures) == list(range(5)) and log[0] == [0]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(held):
    engine, _, gate = held
    futures = [engine.submit(Echo(i, size=4)) for i in range(2)]
    start = time.monotonic()
    with pytest.raises(QueueFullError, match=r"^8 of at most 8 samples are waiting\. Try again in ") as refusal:
        engine.submit(Echo("late"))
    assert time.monotonic() - start < 0.05 and refusal.value.retry_after >= 0
    futures[0].cancel()
    again = engine.submit(Echo("again", size=4))  # its place is free at once
    gate.set()
    assert again.result(LONG) == "again" and futures[1].result(LONG) == 1


def test_the_time_to_come_back_is_that_of_the_queue():
    gate = threading.Event()
    with BatchEngine(max_batch=1, max_wait=0.0, max_queue=4) as engine:
        engine.submit(Echo(0, gate=gate))
        time.sleep(0.2)
        gate.set()
        assert engine.wait(LONG)
        gate.clear()
        waiting = [engine.submit(Echo(i, gate=gate)) for i in range(3)]
        assert 0.5 < engine.retry_after < 3  # three samples of 0.2 s
        gate.set()
        results(waiting)


def test_what_is_cancelled_in_the_queue_is_not_computed(held):
    engine, log, gate = held
    futures = [engine.submit(Echo(i, log=log)) for i in range(4)]
    assert futures[1].cancel() and futures[2].cancel() and engine.waiting == 2
    assert not wait(futures[1:3], 0).not_done  # who waits for them is told at once
    gate.set()
    assert results([futures[0], futures[3]]) == [0, 3] and log == [[0, 3]]
    with pytest.raises(CancelledError):
        futures[1].result(LONG)


def test_a_deadline_is_kept_while_the_worker_computes_something_else(held):
    engine, log, gate = held
    late, timely = engine.submit(Echo("late", log=log), timeout=0.05), engine.submit(Echo("timely", log=log), LONG)
    with pytest.raises(DeadlineError, match=r"^No result after 0\.05 s"):
        late.result(LONG)
    assert engine.waiting == 1 and not gate.is_set()
    gate.set()
    assert timely.result(LONG) == "timely" and log == [["timely"]]


def test_a_deadline_is_kept_during_the_call_itself():
    gate = threading.Event()
    with BatchEngine(max_wait=0.0) as engine:
        with pytest.raises(DeadlineError):
            engine.submit(Echo("slow", gate=gate), timeout=0.05).result(LONG)
        gate.set()
        assert engine.submit(Echo("next")).result(LONG) == "next"


def test_an_error_reaches_only_its_own_job(held):
    engine, log, gate = held
    errors = {1: ValueError("bad"), 2: SystemExit(3)}
    futures = [engine.submit(Echo(i, log=log, error=errors.get(i))) for i in range(4)]
    gate.set()
    assert results([futures[0], futures[3]]) == [0, 3]
    assert [futures[i].exception(LONG) for i in errors] == list(errors.values())
    assert log == [[0, 1, 2, 3], [0], [1], [2], [3]]
    assert engine.submit(Echo("next")).result(LONG) == "next"


def test_a_job_that_answers_for_too_few_is_an_error():
    class Half(Echo):
        def run(self, jobs):
            return []

    with BatchEngine(max_wait=0.0) as engine, pytest.raises(RuntimeError, match="0 results for 1 jobs"):
        engine.submit(Half("a")).result(LONG)


def test_what_was_accepted_is_computed_before_the_end_and_nothing_more_is_accepted():
    gate, begun = threading.Event(), threading.Event()
    engine = BatchEngine(max_batch=1, max_wait=LONG, max_queue=8)
    futures = [engine.submit(Echo(i, gate=gate, begun=begun)) for i in range(5)]
    assert begun.wait(LONG)
    engine.drain()
    assert engine.closing and not engine.wait(0.01)
    with pytest.raises(EngineClosedError):
        engine.submit(Echo("late"))
    gate.set()
    engine.close()
    assert results(futures) == list(range(5)) and engine.wait(0) and engine.waiting == 0
    assert not [thread for thread in (*engine._workers, engine._watch) if thread.is_alive()]
    engine.close()  # a second time does nothing


def test_several_workers_compute_at_once():
    gate, log = threading.Event(), []
    with BatchEngine(max_wait=0.0, workers=2) as engine:
        slow = engine.submit(Echo("slow", gate=gate))
        assert engine.submit(Echo("fast", "b", log=log)).result(LONG) == "fast" and not slow.done()
        gate.set()


def test_each_call_is_told_of():
    calls = []
    with BatchEngine(max_batch=4, max_wait=0.05, on_call=calls.append) as engine:
        futures = [engine.submit(Echo(i, size=2, error=KeyError(i) if i else None)) for i in range(2)]
        wait(futures, LONG)
    assert [(call.size, type(call.error), len(call.waited)) for call in calls] == [
        *((4, KeyError, 2), (2, type(None), 0), (2, KeyError, 0))
    ]
    assert all(call.seconds >= 0 and all(0 <= waited < LONG for waited in call.waited) for call in calls)


def test_an_observer_that_fails_stops_nothing(caplog):
    def fail(call):
        raise SystemExit(call)

    with BatchEngine(max_wait=0.0, on_call=fail) as engine:
        assert results([engine.submit(Echo(name)) for name in "ab"]) == ["a", "b"]
    assert "on_call raised" in caplog.text


def test_a_coroutine_gets_its_result_and_its_cancellation_is_the_job_s(held):
    engine, log, gate = held

    async def ask():
        kept, left = (asyncio.ensure_future(engine.result(Echo(name, log=log))) for name in ("kept", "left"))
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.sleep(0.01)
        gate.set()
        return await kept

    assert asyncio.run(ask()) == "kept" and log == [["kept"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, r"^max_batch=0 must be "),
        ({"workers": 0}, r"^workers=0 must be "),
        ({"max_wait": -1.0}, r"^max_wait=-1.0 must be at least 0"),
        ({"max_batch": 8, "max_queue": 7}, r"^max_queue=7 must be at least max_batch=8"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchEngine(**options)


@pytest.mark.parametrize(("size", "timeout"), [(0, None), (17, None), (1, 0.0), (1, float("nan")), (1, float("inf"))])
def test_jobs_that_can_never_be_computed_are_refused(size, timeout):
    with BatchEngine() as engine, pytest.raises(ValueError, match=r"^(A job of|timeout=)"):
        engine.submit(Echo("a", size=size), timeout)


def test_random_cancellations_and_deadlines_leave_no_slot_taken_and_mix_no_answers():
    chance, answers = random.Random(0), {}
    with BatchEngine(max_batch=4, max_wait=0.001, max_queue=1000, workers=2) as engine:
        for i in range(200):
            timeout = chance.choice([None, 0.001, 0.01, LONG])
            answers[i] = engine.submit(Echo(i, chance.choice("abc"), chance.randint(1, 4)), timeout)
            if chance.random() < 0.3:
                answers[chance.randrange(i + 1)].cancel()
            if chance.random() < 0.05:
                time.sleep(0.002)
        assert engine.wait(LONG) and engine.waiting == 0 and not engine._running
    done = {i: future.result(0) for i, future in answers.items() if not future.cancelled() and not future.exception(0)}
    assert all(i == result for i, result in done.items()) and len(done) > 50
    assert all(future.done() for future in answers.values())


def test_a_key_that_cannot_be_compared_is_refused_and_stops_nothing():
    with BatchEngine(max_wait=0.0) as engine:
        with pytest.raises(TypeError):
            engine.submit(Echo("a", key=[]))
        assert engine.submit(Echo("b")).result(LONG) == "b" and engine.waiting == 0
