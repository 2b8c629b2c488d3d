"""What is wrong with an option, in one line: messages of jsonargparse and argparse in plain words. No torch here."""

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
SHOWN = 80
"""Characters of a wrong value that a message repeats."""


def quoted(value: Any) -> str:
    """Return a value in quotes, in one line and cut where it is long."""
    text = str(value)
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def choices_of(kind: Any) -> tuple[Any, ...]:
    """Return the values of a `Literal`, also of one that may be None; () for other types."""
    parts = get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)
    return tuple(value for part in parts if get_origin(part) is Literal for value in get_args(part))


def _plain(kind: Any) -> Any:
    """Return the type that a value has if it is not None."""
    if get_origin(kind) in (types.UnionType, Union):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return get_origin(kind) if get_origin(kind) not in (None, Literal) else kind


def takes_none(kind: Any) -> bool:
    """Return whether a value of this type may be None."""
    return type(None) in get_args(kind)


def is_number(kind: Any) -> bool:
    """Return whether a value of this type is a number, or may be None besides."""
    return not choices_of(kind) and _plain(kind) in (int, float)


def placeholder(field: Any) -> str:
    """Return what help shows for the value of an option: its choices, N, X, PATH or TEXT."""
    if choices := choices_of(field.type):
        return f"{{{','.join(map(str, choices))}}}"
    if field.metadata.get("path"):
        return "PATH"
    return {int: "N", float: "X"}.get(_plain(field.type), "TEXT")


def wanted(kind: Any, allowed: Any = None) -> str:
    """Return what a value of this type may be: "a whole number, at least 1", "one of a, b".

    Args:
        kind: the type of the option.
        allowed: its range, from `hfgen.utils.ranges`, or None.
    """
    if choices := choices_of(kind):
        return f"one of {', '.join(map(str, choices))}"
    kind = _plain(kind)
    if issubclass(kind, Mapping):
        return "values by name"
    words = KINDS[kind] if kind is bool else f"a {KINDS[kind]}"
    return words if allowed is None or kind is str else f"{words}, {allowed}"


def wrong_value(name: str, value: Any, kind: Any, allowed: Any = None) -> str:
    """Return the message about a value of the wrong type, or one that is none of the choices.

    Args:
        name: "--seed", or "seed" of a configuration file.
        value: what was given.
        kind, allowed: see `wanted`.
    """
    if choices_of(kind):
        return f"{name}: must be {wanted(kind)}; got {quoted(value)}"
    kind = _plain(kind)
    if issubclass(kind, Mapping):
        return f"{name}: {quoted(value)} are no values by name. Give them singly: {name}.NAME VALUE"
    if kind is bool:
        return f"{name}: {quoted(value)} is neither true nor false"
    if kind is str:
        return f"{name}: {quoted(value)} is no text; put it in quotes"
    finite = str(allowed) == "a finite number"
    more = f"; it must be {allowed}" if allowed is not None and not finite else ""
    return f"{name}: {quoted(value)} is no {KINDS[kind]}{more}"


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are spelt like `name`, at most three: the nearest, and others that are about as near. Names
    that begin with it as a whole word are nearer than all others.

    Where none is, those that hold the name as one of their words, such as `num_epochs` for `epochs`.
    """
    names = sorted(set(names))
    bare = name.lower().replace("-", "_").strip("_")
    bare_names = {each.replace("-", "_").strip("_"): each for each in names}
    longer = [each for each in bare_names if each.startswith(f"{bare}_") and bare not in bare_names]
    near = difflib.get_close_matches(bare, longer, n=3) or difflib.get_close_matches(bare, bare_names, n=3)
    score = {each: difflib.SequenceMatcher(None, bare, each).ratio() for each in near}
    near = [each for each in near if score[each] > score[near[0]] - 0.06]
    return [bare_names[each] for each in near or [each for each in bare_names if bare in each.split("_")][:3]]


def unknown_option(name: str, names: Iterable[str], where: str) -> str:
    """Return the message about an option that there is not: with the nearest ones, or with where all are listed."""
    near = nearest(name, names)
    return f"{where}; {f'did you mean {_or(near)}?' if near else '--help_all lists all.'}"


def _or(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def key_and_value(message: str) -> tuple[str, str] | None:
    """Return the option and the value that a message of jsonargparse about a type names; None for other messages."""
    key = re.search(r'Parser key "([^"]+)"', message)
    given = r"\n *Given value type: [^\n]*\n *Given value: (.*)\Z"  # after a complaint for each type that it may have
    single = r"(?:Got value|Given value|Value not boolean): (.*)\Z"
    value = re.search(given, message, re.DOTALL) or re.search(single, message, re.DOTALL)
    return (key[1], value[1]) if key and value else None
