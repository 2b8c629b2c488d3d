"""Kinds of values that a JSON file may hold, and a check of what is read back: anybody may have changed a file."""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

Holds = Callable[[Any], bool]
"""Whether a value is of a kind."""


def text(value: Any) -> bool:
    """Return whether this is a text."""
    return isinstance(value, str)


def number(value: Any) -> bool:
    """Return whether this is a finite number that a float can hold; JSON's whole numbers have any length."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, float) and math.isfinite(value)


def figure(value: Any) -> bool:
    """Return whether this is a number, or infinity or NaN, as Python's JSON writes them."""
    return isinstance(value, float) or number(value)


def count(value: Any) -> bool:
    """Return whether this is a whole number from 0 on."""
    return isinstance(value, int) and number(value) and value >= 0


def truth(value: Any) -> bool:
    """Return whether this is true or false."""
    return isinstance(value, bool)


def positive(value: Any) -> bool:
    """Return whether this is a number above 0."""
    return number(value) and value > 0


def pair(value: Any) -> bool:
    """Return whether these are two numbers."""
    return isinstance(value, list) and len(value) == 2 and all(map(number, value))


def optional(holds: Holds) -> Holds:
    """Return the kind of values that are None, or of this kind."""
    return lambda value: value is None or holds(value)


def listed(holds: Holds) -> Holds:
    """Return the kind of lists of values of this kind."""
    return lambda value: isinstance(value, list) and all(map(holds, value))


def by_name(holds: Holds) -> Holds:
    """Return the kind of objects whose values are of this kind."""
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


def entry(fields: Mapping[str, Holds], needed: frozenset[str] = frozenset()) -> Holds:
    """Return the kind of objects whose values under these names are of these kinds, where there are any.

    Args:
        fields: the kinds.
        needed: names without which it is no such object.
    """

    def holds(value: Any) -> bool:
        if not isinstance(value, dict) or needed - value.keys():
            return False
        return all(known(value[name]) for name, known in fields.items() if name in value)

    return holds


def problem(values: Mapping[str, Any], kinds: Mapping[str, Holds]) -> str | None:
    """Return what is wrong with the first of these values: "has no step", "has step='x'"; None if nothing is.

    Args:
        values: an object of JSON.
        kinds: by name; a value that may be missing is of an `optional` kind.
    """
    for name, holds in kinds.items():
        if not holds(values.get(name)):
            shown = f"{name}={str(values[name])[:60]!r}" if name in values else f"no {name}"
            return f"has {shown}"
    return None
