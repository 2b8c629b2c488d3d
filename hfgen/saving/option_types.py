"""Checks of a configuration's values against the constructor that takes them: the types that its annotations say.

Weights bound sizes, but not everything: True counts as 1, -1 groups divide any number of channels, and 2.5 heads are
truncated without a word.
"""

import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.arguments import alternatives, fits

SCALARS = (bool, int, float, str, types.NoneType)
"""Types of values in JSON that have no parts."""


def check_option_types(path: Path, config: Mapping[str, Any], cls: type) -> None:
    """Refuse values of other types than the options of a class: truth values and texts for numbers, fractions for
    whole numbers, and negative whole numbers unless the default is one.

    Options without an annotation, and other types, are left to the class.

    Args:
        path: the file, for messages.
        config: its values.
        cls: the class of the component or pipeline.

    Raises:
        ValueError: names file, option, value and types.
    """
    try:
        hints = typing.get_type_hints(cls.__init__)
    except (NameError, TypeError, AttributeError):  # annotations that only a type checker can resolve
        hints = {}
    exact = not cls.__module__.startswith("diffusers")  # which takes null, and some lists, where it says a number
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name not in config or name not in hints:
            continue
        value, default = as_list(config[name]), parameter.default
        kinds = {*_kinds(hints[name]), type(default), *map(type, _leaves(default))}
        problems = (_problem(leaf, kinds, default) for leaf in _leaves(value))
        problem = next((problem for problem in problems if problem is not None), None)
        wrong = not _fits(value, hints[name]) if exact else _is_stray_list(value, hints[name], name)
        if problem is None and wrong:
            problem = str(getattr(hints[name], "__name__", hints[name]))
        if problem is not None:
            shown = str(config[name])[:60]
            raise ValueError(f"{path} describes no {cls.__name__}: {name}={shown} must be {problem}.")


def as_list(value: Any) -> Any:
    """Return the list that an index of a pipeline holds as {"0": a, "1": b}, and anything else as it is."""
    numbers = [str(i) for i in range(len(value))] if isinstance(value, dict) else []
    return [value[i] for i in numbers] if numbers and set(numbers) == set(value) else value


def _is_stray_list(value: Any, hint: Any, name: str) -> bool:
    """Return whether this is a list for an option of diffusers that is one number or text; sizes may be pairs."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    hints = parts if origin in (types.UnionType, typing.Union) else (hint,)
    lone = all(part in SCALARS or typing.get_origin(part) is typing.Literal for part in hints)
    pair = name == "sample_size" and isinstance(value, list) and len(value) == 2
    return lone and isinstance(value, list) and not (pair and all(isinstance(side, int) for side in value))


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of JSON is what an annotation says. Classes are left alone: an index names them."""
    return not all(map(_is_plain, alternatives(hint))) or fits(value, hint, choices=True)


def _is_plain(hint: Any) -> bool:
    return hint in (None, *SCALARS, list, tuple) or typing.get_origin(hint) in (list, tuple, typing.Literal)


def _kinds(hint: Any) -> set[Any]:
    """Return the types that an annotation names at any depth; `Any` for what it does not name by a type of JSON."""
    if hint is None:
        return {types.NoneType}
    if typing.get_origin(hint) is typing.Literal:
        return set(map(type, typing.get_args(hint)))
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    if parts:
        return set().union(*map(_kinds, parts))
    return {hint} if hint in (*SCALARS, list, tuple) else {Any}


def _leaves(value: Any) -> list[Any]:
    """Return the values without parts in nested lists."""
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def _problem(value: Any, kinds: set[Any], default: Any) -> str | None:
    """Return what the option needs instead of a value, or None."""
    if Any in kinds or list in kinds or (tuple in kinds and not kinds & {int, float, str, bool}):
        return None
    if isinstance(value, dict):
        return "no object"
    if isinstance(value, bool):
        return None if bool in kinds else "a number or a text, not a truth value"
    if isinstance(value, str):
        return None if str in kinds else "a number or a truth value, not a text"
    if isinstance(value, float) and float not in kinds:
        return "a whole number" if int in kinds else "no number"
    if isinstance(value, int) and not kinds & {int, float}:
        return "no number"
    negative = any(isinstance(part, int) and part < 0 for part in _leaves(default))
    if isinstance(value, int) and value < 0 and float not in kinds and not negative:
        return "a number that is not negative"
    return None
