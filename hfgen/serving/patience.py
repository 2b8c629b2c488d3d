"""How long jobs wait for others to share their call. There is no clock here: times are arguments.

Callers that ask again when they have their answer come back together, within milliseconds of the end of a call. If the
next call begins with the first of them, the others wait for the one after it, and from then on the callers are in two
groups, each of which waits for the other's call. So the next call waits for those who were answered, as long as callers
do come back: with random arrivals, such waiting would only cost time.
"""

import dataclasses
from collections.abc import Hashable

LEAST = 0.005
"""Seconds that a job waits for others where none are expected."""

SHARE = 0.25
"""Seconds that a group waits at most for callers who were answered, by those of the call that answered them."""

HALF = 0.5
"""Share of answered samples that must have come back in this time, of late, for groups to wait for them."""

SMOOTHING = 0.2
"""Weight of the last call in this share."""


@dataclasses.dataclass
class _Expected:
    """The callers of a call that was answered.

    Attributes:
        key: of the call.
        size: number of samples that were answered.
        end: time until which they are expected back.
        missing: samples with this key that have not come since.
        away: samples that have not come since, whatever their key.
    """

    key: Hashable
    size: int
    end: float
    missing: int
    away: int


class Patience:
    """Says when a group of jobs must begin.

    Args:
        max_wait: seconds that a job waits for others, whoever is expected. None: `LEAST`, and after a call until as
            many samples with its key have come as were answered, at most `SHARE` of its time, if of late at least
            `HALF` of those who were answered came back in this time.
    """

    def __init__(self, max_wait: float | None = None):
        self.max_wait, self.returning = max_wait, 1.0
        self._expected: list[_Expected] = []

    def answered(self, key: Hashable, size: int, seconds: float, now: float) -> None:
        """Take note that a call has ended, before its callers have their answers.

        Args:
            key: of its jobs.
            size: samples whose callers still wait for them.
            seconds: that the call took.
            now: the time.
        """
        self._judge(now)
        if self.max_wait is None and size:
            self._expected.append(_Expected(key, size, now + SHARE * seconds, size, size))

    def came(self, key: Hashable, size: int, now: float) -> None:
        """Take note of a job with this key and number of samples."""
        self._judge(now)
        for expected in self._expected:
            if expected.away > 0:
                expected.away -= size
                break
        for expected in self._expected:
            if expected.key == key and expected.missing > 0:
                expected.missing -= size
                break

    def due(self, key: Hashable, arrived: float, now: float) -> float:
        """Return the time at which a group with this key must begin, whose oldest job arrived then."""
        if self.max_wait is not None:
            return arrived + self.max_wait
        self._judge(now)
        known = [expected for expected in self._expected if expected.key == key]
        ends = [expected.end for expected in known if expected.missing > 0]
        if known and not ends:
            return arrived  # all have come
        return max([arrived + LEAST, *(ends if self.returning >= HALF else [])])

    def _judge(self, now: float) -> None:
        """Forget those who are no longer expected, and remember how many of them came back."""
        for expected in [each for each in self._expected if each.end <= now]:
            self._expected.remove(expected)
            back = 1 - max(0, expected.away) / expected.size
            self.returning += SMOOTHING * (back - self.returning)
