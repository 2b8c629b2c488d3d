"""Ranges of numbers, and of texts that hold numbers. No torch here: `--help` reads this file.

Each kind of range says whether it `holds` for a value, and is a text for help and messages: "above 0".
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, get_args

from ..console.notes import tell
from .arguments import argument, plain

LARGEST = 2**31 - 1
"""The largest count of anything. It is above what a machine can do, and libraries hold it in 32 bits, so that no
computation with counts fails late. The texts of ranges leave it out."""


class Allowed:
    """Base of all kinds of ranges."""

    def told(self, value: Any) -> str:
        """Return what a value must be, as the refusal of this one says it."""
        return str(self)


@dataclasses.dataclass(frozen=True)
class Range(Allowed):
    """The finite numbers between two ends, which belong to it unless they are infinite or `above` or `below`.

    Attributes:
        low, high: the ends.
        above: whether numbers must be above `low`, and not only at least as large.
        below: whether numbers must be below `high`.
        zero: whether 0 belongs to it besides.
        quiet: whether only the refusal of a larger number says `high`, which nobody needs to know before.
        whole: whether they are whole numbers; help shows that as the type of the option.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    zero: bool = False
    quiet: bool = False
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether the value is a finite number in this range; a truth value is none."""
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        if self.whole and not isinstance(value, Integral):
            return False
        if not isinstance(value, int) and not math.isfinite(value):  # an int may be too large for a float
            return False
        high_enough = value > self.low if self.above else value >= self.low
        inside = high_enough and (value < self.high if self.below else value <= self.high)
        return inside or (self.zero and value == 0)

    def told(self, value: Any) -> str:
        """Return what a number must be, as the refusal of this one says it."""
        number = isinstance(value, Real) and not isinstance(value, bool)
        if self.whole and not (number and isinstance(value, Integral)):
            return f"a whole number, {self}"
        if number and not math.isfinite(value) and str(self) != str(FINITE):
            return f"finite, and {self}"
        large = self.quiet and number and self.high < value < math.inf
        return f"at most {self.high}" if large else str(self)

    def __str__(self) -> str:
        low, high = math.isfinite(self.low), math.isfinite(self.high) and not self.quiet
        if low and high and not (self.above or self.below):
            return f"from {self.low} to {self.high}"
        lower = [f"{'above' if self.above else 'at least'} {self.low}"] * low
        upper = [f"{'below' if self.below else 'at most'} {self.high}"] * high
        return ("0, or " if self.zero else "") + (" and ".join([*lower, *upper]) or "a finite number")


@dataclasses.dataclass(frozen=True)
class Listed(Allowed):
    """Texts of whole numbers that are separated by commas: "1,5,20".

    Attributes:
        each: the range of each number.
        count: how many there must be; None: one or more.
    """

    each: Range
    count: int | None = None

    def parse(self, text: str) -> tuple[int, ...]:
        """Return the numbers. Raises ValueError for anything else, which the caller names."""
        words = [word.strip() for word in str(text).split(",")]
        if not all(re.fullmatch(r"[+-]?[0-9]+", word) for word in words) or self.count not in (None, len(words)):
            raise ValueError(f"{text!r} must be {self}.")
        if not all(len(word) < 300 and self.each.holds(int(word)) for word in words):  # int() has a limit of its own
            raise ValueError(f"{text!r} must be {self.told(text)}.")
        return tuple(map(int, words))

    def holds(self, text: Any) -> bool:
        """Return whether `parse` accepts the text."""
        return _accepts(self.parse, text)

    def told(self, text: Any) -> str:
        """Return what texts must be, as the refusal of this one says it."""
        numbers = [int(word[:300]) for word in re.findall(r"[+-]?[0-9]+", str(text))]
        return self._of(self.each.told(max(numbers, default=0)))

    def __str__(self) -> str:
        return self._of(str(self.each))

    def _of(self, each: str) -> str:
        count = "" if self.count is None else f"{self.count} "
        return f"{count}whole numbers {each}, separated by commas"


@dataclasses.dataclass(frozen=True)
class Amount(Allowed):
    """Texts of a number with a unit: "20ms".

    Attributes:
        units: unit -> its size. Case and spaces around it do not matter.
    """

    units: Mapping[str, float]

    def parse(self, text: str) -> float:
        """Return the number times the size of its unit. Raises ValueError for anything else, which the caller names."""
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]+)\s*", str(text))
        size = match and next((size for unit, size in self.units.items() if unit.lower() == match[2].lower()), None)
        value = float(match[1]) * size if size else 0.0
        if not ABOVE_0.holds(value):
            raise ValueError(f"{text!r} must be {self}.")
        return value

    def holds(self, text: Any) -> bool:
        """Return whether `parse` accepts the text."""
        return _accepts(self.parse, text)

    def __str__(self) -> str:
        return f"a positive number and a unit: {', '.join(f'20{unit}' for unit in self.units)}"


@dataclasses.dataclass(frozen=True)
class Form(Allowed):
    """Texts that a function reads, such as those of a budget.

    Attributes:
        parse: raises ValueError for any other text.
        words: what the texts are, for help and messages.
    """

    parse: Callable[[str], Any]
    words: str

    def holds(self, text: Any) -> bool:
        """Return whether `parse` accepts the text."""
        return _accepts(self.parse, text)

    def __str__(self) -> str:
        return self.words


def _interval(text: str) -> tuple[float, float]:
    """Return (low, high) of a text such as "0,0.95". Raises ValueError for anything else, which the caller names."""
    words = [word.strip() for word in str(text).split(",")]
    if len(words) == 2 and all(
        re.fullmatch(r"[0-9]{0,9}(\.[0-9]{0,30})?", word) and word not in ("", ".") for word in words
    ):
        low, high = map(float, words)
        if low <= high <= 1:
            return low, high
    raise ValueError(f"{text!r} must be two times low,high, 0 <= low <= high <= 1.")


def _accepts(parse: Callable[[str], Any], text: Any) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Raise ValueError if a number is out of its range, or not finite; the message names all three."""
    if not allowed.holds(value):
        raise ValueError(f"{name}={value} must be {allowed.told(value)}.")


FINITE = Range()
ABOVE_0 = Range(0, above=True)
AT_LEAST_0 = Range(0)
COUNT = Range(1, LARGEST, quiet=True, whole=True)
COUNT_OR_0 = Range(0, LARGEST, quiet=True, whole=True)
TWO_OR_MORE = Range(2, LARGEST, quiet=True, whole=True)
"""Counts of what a spread or a difference needs two of."""
SPAN = Range(0, LARGEST, above=True, quiet=True)
"""Seconds, or passes over the data, of which a count is computed."""
BATCH_SIZES = Range(1, 2**24, whole=True)
"""Items in memory at a time."""
WORKERS = Range(0, 1024, whole=True)
"""Processes beside a training."""
COUNTS = Listed(COUNT)
INTERVAL = Form(_interval, "two times low,high, 0 <= low <= high <= 1, such as 0,0.95")
REPEATS = Range(2, LARGEST, zero=True, quiet=True, whole=True)
"""Of a bootstrap, whose spread needs two; 0 is none."""
PROBABILITY = Range(0, 1)
BELOW_1 = Range(0, 1, below=True)
"""A decay, or a share that leaves something."""
SHARE = Range(0, 1, above=True)
"""A share of something."""
INSIDE_0_1 = Range(0, 1, above=True, below=True)
SEED = Range(0, 2**31 - 1, whole=True)
"""Seeds of samples, see `hfgen.utils.seeds`: sample i has seed + i."""


def range_of(field: dataclasses.Field) -> Any:
    """Return the range of an option; None for one that holds no number."""
    return field.metadata.get("range") or (FINITE if {int, float} & set(_kinds(field)) else None)


def _kinds(field: dataclasses.Field) -> tuple[Any, ...]:
    return get_args(field.type) or (field.type,)


def check_ranges(*groups: Any) -> None:
    """Refuse numbers out of their ranges, in instances of dataclasses of options.

    Raises:
        ValueError: names the option, its value and the range.
    """
    for field, value in (
        (field, getattr(group, field.name)) for group in groups for field in dataclasses.fields(group)
    ):
        allowed, kinds = range_of(field), _kinds(field)
        if allowed is None or (value is None and (field.default is None or type(None) in kinds)):
            continue
        if int in kinds and float not in kinds and not isinstance(value, Integral):
            raise ValueError(f"--{field.name} {value} must be a whole number, {allowed}.")
        if not allowed.holds(value):
            raise ValueError(f"--{field.name} {value} must be {allowed.told(value)}.")


def former_names(fields: Iterable[dataclasses.Field]) -> dict[str, str]:
    """Return the names that options had in former releases, and the present ones."""
    return {old: field.name for field in fields for old in field.metadata.get("former", ())}


class FormerNames(type):
    """The class of `Options`: values are also taken by the names that options had in former releases, with a hint."""

    def __call__(cls, *values: Any, **named: Any) -> Any:
        """Make an instance; TypeError for a former name beside the present one."""
        former = former_names(dataclasses.fields(cls))
        for old in former.keys() & named.keys():
            if former[old] in named:
                raise TypeError(f"{old} and {former[old]} are one option. Leave one out.")
            tell(f"{old} is now {former[old]}; the old name will go.")
            named[former[old]] = named.pop(old)
        return super().__call__(*values, **named)


class Options(metaclass=FormerNames):
    """Base of dataclasses of options: wherever one is made, its values have their types, its numbers are in their
    ranges, and a `~` that begins a path is the home folder."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.metadata.get("path") and isinstance(value, str | os.PathLike):
                if not os.fspath(value).strip() or "\0" in os.fspath(value):
                    wrong = "it has a zero byte" if os.fspath(value).strip() else "it is empty"
                    raise ValueError(f"--{field.name} {value!r} is no path: {wrong}.")
                setattr(self, field.name, os.path.expanduser(value))  # a text
            elif value is not field.default:
                setattr(self, field.name, self._typed(field, value))
        check_ranges(self)

    def _typed(self, field: dataclasses.Field, value: Any) -> Any:
        """Return a value in Python's own types. Of another type than the option it is refused, here or as a number."""
        return plain(value, field.type) if range_of(field) else argument(field.name, value, field.type)
