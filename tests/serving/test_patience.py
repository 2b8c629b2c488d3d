"""How long groups wait: for callers who come back after their answers, and hardly at all for others."""

import heapq
import threading
import time

import numpy as np
import pytest

from hfgen.serving.engine import BatchEngine
from hfgen.serving.patience import Patience


def test_on_an_idle_service_a_job_waits_for_five_milliseconds_or_as_long_as_is_said():
    assert Patience().due("a", 7.0, 7.0) == pytest.approx(7.005)
    assert Patience(0.3).due("a", 7.0, 7.0) == pytest.approx(7.3)
    assert Patience(0.0).due("a", 7.0, 7.0) == 7.0


def test_after_a_call_its_key_waits_until_as_many_samples_have_come_as_were_answered():
    patience = Patience()
    patience.answered("a", 8, 2.0, 10.0)
    patience.came("a", 3, 10.1)
    assert patience.due("a", 10.1, 10.1) == 10.5  # a quarter of two seconds
    assert patience.due("b", 10.1, 10.1) == pytest.approx(10.105)  # of other callers
    patience.came("b", 9, 10.2)
    patience.came("a", 4, 10.2)
    assert patience.due("a", 10.1, 10.2) == 10.5
    patience.came("a", 1, 10.3)
    assert patience.due("a", 10.1, 10.3) <= 10.3  # all are here


def test_nobody_is_waited_for_longer_than_a_quarter_of_the_call():
    patience = Patience()
    patience.answered("a", 8, 2.0, 10.0)
    assert patience.due("a", 9.0, 10.499) == 10.5
    assert patience.due("a", 9.0, 10.5) < 10.5
    assert patience.due("a", 10.6, 10.6) == pytest.approx(10.605)


def test_a_time_that_is_given_is_not_exceeded_by_callers_who_may_come_back():
    patience = Patience(0.01)
    patience.answered("a", 8, 2.0, 10.0)
    patience.came("a", 1, 10.1)
    assert patience.due("a", 10.1, 10.1) == pytest.approx(10.11)


def test_callers_who_do_not_come_back_are_no_longer_waited_for_until_others_do():
    patience, now = Patience(), 0.0
    for number in range(20):
        now += 1.0
        patience.answered("a", 4, 0.4, now)
        if number < 10:  # nobody comes within a tenth of a second
            continue
        patience.came("a", 4, now + 0.05)
        waits = patience.due("a", now + 0.01, now + 0.01) > now + 0.02
        assert not waits  # all are here, or nobody is expected
    patience.answered("a", 4, 0.4, now + 1)
    assert patience.due("a", now + 1, now + 1) == pytest.approx(now + 1.1)
    for _ in range(10):
        now += 1.0
        patience.answered("a", 4, 0.4, now)
    assert patience.due("a", now, now) == pytest.approx(now + 0.005)


def test_two_calls_at_a_time_each_have_their_callers():
    patience = Patience()
    patience.answered("a", 2, 0.4, 1.0)
    patience.answered("a", 3, 0.8, 1.01)
    patience.came("a", 2, 1.02)
    assert patience.due("a", 1.02, 1.03) == pytest.approx(1.21)
    patience.came("a", 3, 1.04)
    assert patience.due("a", 1.02, 1.05) <= 1.05
    patience.answered("b", 0, 0.4, 1.06)  # all of its callers have left
    assert patience.due("b", 1.07, 1.07) == pytest.approx(1.075)


def simulated(arrivals, patience, back=None, calls=400):
    """Serve jobs at most 16 at a time, in calls of 50 ms and 15 ms a sample.

    Args:
        arrivals: times at which jobs come.
        patience: says how long they wait.
        back: seconds after which the i-th caller of a call asks again, i + 1 times; None: nobody does.
        calls: after which it ends.

    Returns:
        The size of each call, and the time that each job waited.
    """
    coming, waiting, sizes, waits, now = list(arrivals), [], [], [], 0.0
    heapq.heapify(coming)
    while (coming or waiting) and len(sizes) < calls:
        due = patience.due("a", waiting[0], now) if waiting else float("inf")
        full = len(waiting) >= 16
        if not full and due > now and coming and coming[0] <= due:
            now = max(now, coming[0])
            waiting.append(heapq.heappop(coming))
            patience.came("a", 1, now)
            continue
        start = now if full else max(now, due)
        sizes.append(min(16, len(waiting)))
        waits += [start - came for came in waiting[: sizes[-1]]]
        del waiting[: sizes[-1]]
        now = start + 0.05 + 0.015 * sizes[-1]
        while coming and coming[0] <= now:
            waiting.append(heapq.heappop(coming))
            patience.came("a", 1, waiting[-1])
        patience.answered("a", sizes[-1], now - start, now)
        for i in range(sizes[-1] if back else 0):
            heapq.heappush(coming, now + back * (i + 1))
    return sizes, waits


@pytest.mark.parametrize("clients", [1, 2, 5, 8, 12])
def test_clients_who_ask_again_at_once_share_each_call(clients):
    arrivals = [0.001 * i for i in range(clients)]
    assert set(simulated(arrivals, Patience(), 0.003)[0][3:]) == {clients}
    if clients == 8:
        assert 8 not in simulated(arrivals, Patience(0.005), 0.003)[0]  # without it there are two groups for ever


@pytest.mark.parametrize("rate", [5, 27, 38])
def test_random_arrivals_are_served_as_if_nobody_was_expected(rate):
    """At a tenth, a half and seven tenths of the largest rate, the median wait differs by less than a tenth."""
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, 5000))
    plain, adaptive = (
        np.median(simulated(arrivals, patience, calls=10**6)[1]) for patience in (Patience(0.005), Patience())
    )
    assert abs(adaptive / plain - 1) < 0.1


class Slow:
    """A job whose call takes a fifth of a second, or as long as its gate is closed. `calls` gets the size of each."""

    key, size = "a", 1

    def __init__(self, calls, gate=None):
        self.calls, self.gate = calls, gate

    def run(self, jobs):
        self.calls.append(len(jobs))
        if self.gate is None:
            time.sleep(0.2)
        else:
            assert self.gate.wait(30)
        return [None] * len(jobs)


def test_callers_of_an_engine_find_into_one_call():
    """One is computed and three wait; each asks again 10 ms after its answer, when the others have begun."""
    calls, gate, together = [], threading.Event(), threading.Event()
    with BatchEngine(max_batch=8) as engine:

        def again(future):
            if 4 in calls or len(calls) > 20:
                together.set()
            else:
                threading.Timer(0.01, ask).start()

        def ask(gate=None):
            engine.submit(Slow(calls, gate)).add_done_callback(again)

        ask(gate)
        while not calls:
            time.sleep(0.001)
        for _ in range(3):
            ask()
        time.sleep(0.1)
        gate.set()
        assert together.wait(60)
    assert calls[0] == 1 and 4 in calls
