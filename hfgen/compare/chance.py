"""What several trainings say about the next: intervals and tests of means and of relative deviations.

Trainings of one configuration differ in their seed. A single one says nothing of the spread between trainings, and the
bootstrap over its samples leaves this spread out.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

LEVEL = 0.05
"""Probability of a verdict where there is no difference."""


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A number that describes several trainings, with its 95 % interval and the test of two of them.

    Attributes:
        interval: values of N >= 2 trainings -> both ends.
        p_below: values of two rows, N >= 2 and M >= 2 -> p-value of "the first is below the second": the probability of
            such a difference, or a larger one, where both are equal.
    """

    interval: Callable[[Sequence[float]], tuple[float, float]]
    p_below: Callable[[Sequence[float], Sequence[float]], float]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval of the mean of N normal values, by Student's t with N - 1 degrees of freedom."""
    from scipy.special import stdtrit

    count, mean = len(values), statistics.fmean(values)
    half = float(stdtrit(count - 1, 0.975)) * statistics.stdev(values) / math.sqrt(count)
    return mean - half, mean + half


def mean_p_below(first: Sequence[float], second: Sequence[float]) -> float:
    """Compute the p-value of "the mean of the first is below that of the second" by Welch's t-test: the two need not
    have one variance (Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28)."""
    from scipy.special import stdtr

    difference = statistics.fmean(first) - statistics.fmean(second)
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (first, second)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0 if difference < 0 else 1.0
    freedom = variance**2 / sum(part**2 / rest for part, rest in parts)
    return float(stdtr(freedom, difference / math.sqrt(variance)))


def relative_deviation(values: Sequence[float]) -> float:
    """Compute the sample standard deviation divided by the mean."""
    return statistics.stdev(values) / abs(statistics.fmean(values))


def spread_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval of the relative deviation of N normal values, by chi-square with N - 1 degrees of
    freedom; the error of the mean is left out."""
    from scipy.special import chdtri

    rest, deviation = len(values) - 1, relative_deviation(values)
    low, high = (deviation * math.sqrt(rest / float(chdtri(rest, tail))) for tail in (0.025, 0.975))
    return low, high


def spread_p_below(first: Sequence[float], second: Sequence[float]) -> float:
    """Compute the p-value of "the relative deviation of the first is below that of the second" by the F-test."""
    from scipy.special import fdtr

    small, large = relative_deviation(first), relative_deviation(second)
    if not (small and large):  # a few equal values are rounded, and do not show that no others come
        return 1.0
    return float(fdtr(len(first) - 1, len(second) - 1, (small / large) ** 2))


MEAN = Statistic(mean_interval, mean_p_below)
SPREAD = Statistic(spread_interval, spread_p_below)


def differ(first: Sequence[float], second: Sequence[float]) -> bool | None:
    """Return whether the means of two rows differ beyond chance at `LEVEL`; None with fewer than two trainings."""
    if min(len(first), len(second)) < 2:
        return None
    return 2 * min(mean_p_below(first, second), mean_p_below(second, first)) <= LEVEL
