"""Latency of a call, and Pareto fronts."""

import time
from collections.abc import Callable, Sequence
from typing import Any

MIN_CALLS, MAX_CALLS = 5, 200


def latencies(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Time a call repeatedly: {"p50", "p95"}, median and 95th percentile in seconds.

    After one call to warm up, the call is repeated for `seconds`, at most 200 times. At least 5 calls are timed, unless
    2 to 4 of them take ten times `seconds`. On a GPU each call is timed to its end (`torch.cuda.synchronize`).
    """
    import numpy
    import torch

    def time_call() -> float:
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    time_call()
    times: list[float] = []
    while len(times) < MAX_CALLS:
        limit = seconds if len(times) >= MIN_CALLS else 10 * seconds
        if len(times) >= 2 and sum(times) >= limit:
            break
        times.append(time_call())
    p50, p95 = numpy.percentile(times, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Return for each point whether it is on the Pareto front: no other point dominates it.

    A point dominates another if no coordinate of it is larger and at least one is smaller.
    """

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [not any(dominates(other, point) for other in points) for point in points]
