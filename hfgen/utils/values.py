"""Values of options, as configuration files hold them."""

import os
import types
import typing
from typing import Any

TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", types.NoneType: "None"}
"""Types of options, as messages call them."""


def plain_value(name: str, value: Any, kind: Any) -> Any:
    """Return the value of an option as configuration files hold it: numbers of NumPy and paths become Python's own.

    Raises:
        TypeError: the value is of another type than the option, or none of its choices.
    """
    if hasattr(value, "item"):
        value = value.item()
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    choices = [one for part in kinds if typing.get_origin(part) is typing.Literal for one in typing.get_args(part)]
    plain = [part for part in kinds if typing.get_origin(part) is not typing.Literal]
    number = float in plain and type(value) is int
    if not number and type(value) not in plain and (type(value), value) not in [(type(one), one) for one in choices]:
        expected = [*map(repr, choices), *(TYPES[part] for part in plain)]
        raise TypeError(f"{name}={value!r} must be {' or '.join(expected)}.")
    return value
