"""How long a call takes, and which settings nothing else beats."""

import time
from collections.abc import Callable, Sequence
from typing import Any

LEAST, MOST = 5, 200
"""Calls that are timed, at least and at most."""


def latencies(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Median and 95th percentile of the seconds that a call takes: {"p50", "p95"}.

    After one call to warm up it is repeated for `seconds`, and 200 times at most. Slow calls are repeated 5 times, or
    twice where that would take ten times as long. On a GPU each call is waited for.
    """
    import numpy
    import torch

    def timed() -> float:
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed()
    taken: list[float] = []
    while len(taken) < MOST:
        enough = seconds if len(taken) >= LEAST else 10 * seconds
        if len(taken) >= 2 and sum(taken) >= enough:
            break
        taken.append(timed())
    middle, slow = numpy.percentile(taken, [50, 95])
    return {"p50": float(middle), "p95": float(slow)}


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points are on the Pareto front: those that no other point beats, that is, is at most as large in every
    coordinate and smaller in one."""

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [not any(beats(other, point) for other in points) for point in points]
