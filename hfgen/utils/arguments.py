"""Types of arguments: what a function or constructor is given against what its annotations say.

Numbers of NumPy and tensors of one number become Python's own, where no tensor is meant. No torch here: options, which
`--help` reads, use this file too.
"""

import collections.abc
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", types.NoneType: "None"}
"""Types of plain values, as messages call them."""

_LISTS = (tuple, list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_PLAIN = (*WORDS, bytes, list, tuple, dict, set)
"""Types that are never meant where an annotation names any other class."""


class ArgumentTypeError(TypeError, ValueError):
    """An argument is of another type than its annotation says. Callers may catch either of the two."""


def checked(target: Any) -> Any:
    """Decorate a function, or a class for its constructor: arguments of other types than their annotations are refused
    before anything is done with them.

    `True` is no number, a text is no list, and 2.0 is no whole number. A value that is the default is never refused.
    Annotations of classes are not enforced on objects, which may look alike, but plain data are refused there.
    A constructor gets its arguments by name: in the configurations of diffusers' classes those by position would count
    as left at their defaults, and `from_config` would drop them.

    Raises:
        ArgumentTypeError: when called; names the argument, its value and what it must be.
    """
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    parameters = inspect.signature(target).parameters
    constructs = getattr(target, "__name__", "") == "__init__"
    order = [name for name, one in parameters.items() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]

    def fitted(name: str, value: Any) -> Any:
        if name not in parameters or name not in _hints(target) or value is parameters[name].default:
            return value
        return argument(name, value, _hints(target)[name])

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [fitted(order[i], value) if i < len(order) else value for i, value in enumerate(args)]
        named = {name: fitted(name, value) for name, value in kwargs.items()}
        if constructs and len(given) <= len(order) and not set(order[1 : len(given)]) & set(named):
            named, given = {**dict(zip(order[1:], given[1:], strict=False)), **named}, given[:1]
        return target(*given, **named)

    return call


@functools.cache
def _hints(function: Callable) -> dict[str, Any]:
    """Return the annotations of the named arguments. They are read when it is first called, as they may name what
    stands below it in its file."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
    return {name: hint for name, hint in hints.items() if name in parameters and parameters[name].kind not in kinds}


def argument(name: str, value: Any, hint: Any, choices: bool = False) -> Any:
    """Return a value that is what an annotation says, in Python's own types; `choices` is that of `fits`.

    Raises:
        ArgumentTypeError: it is not; names the argument, its value and what it must be.
    """
    value = plain(value, hint)
    if not fits(value, hint, choices):
        raise ArgumentTypeError(f"{name}={shown(value)} must be {described(hint)}.")
    return value


def shown(value: Any) -> str:
    """Return a value in one line of at most 60 letters; of arrays the shape."""
    shape = getattr(value, "shape", None)
    text = f"{type(value).__name__} of shape {tuple(shape)}" if shape else " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(value: Any, hint: Any) -> Any:
    """Return numbers of NumPy and tensors of one number as Python's own, and arrays as lists, unless the annotation
    means such objects; the same for what is in a list."""
    kinds = alternatives(hint)
    if Any in kinds or any(hasattr(kind, "tolist") and isinstance(value, kind) for kind in kinds):
        return value
    if hasattr(value, "item") and hasattr(value, "tolist"):
        lists = [kind for kind in map(typing.get_origin, kinds) if kind in _LISTS]
        if value.ndim == 0 or not lists:
            return value.item() if value.ndim == 0 else value
        return tuple(value.tolist()) if lists[0] is tuple else value.tolist()
    if type(value) in (list, tuple) and any(hasattr(each, "item") for each in value):
        parts = [part for kind in kinds for part in typing.get_args(kind) if part is not Ellipsis]
        return type(value)(plain(each, typing.Union[tuple(parts)] if parts else Any) for each in value)  # noqa: UP007
    return value


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def fits(value: Any, hint: Any, choices: bool = False) -> bool:
    """Return whether a value is what an annotation says.

    Args:
        value: of any type.
        hint: the annotation.
        choices: whether of a choice the value itself must be one of those named, and not only its type. Functions name
            choices themselves.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, part, choices) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) and (value == part or not choices) for part in parts)
    if hint is Any or isinstance(hint, typing.TypeVar | str | typing.ForwardRef):
        return True
    if hint in (None, types.NoneType):
        return value is None
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if (origin or hint) in _LISTS:
        return _fits_list(value, origin or hint, parts, choices)
    if origin in _MAPPINGS:
        return isinstance(value, Mapping)
    if (origin or hint) is collections.abc.Callable:
        return callable(value)
    return _fits_class(value, origin or hint)


def _fits_list(value: Any, kind: Any, parts: tuple[Any, ...], choices: bool) -> bool:
    wanted = collections.abc.Iterable if kind is collections.abc.Iterable else collections.abc.Sequence
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, wanted):
        return False
    if not parts or not isinstance(value, list | tuple | range):  # another one may be long, or read once
        return True
    if kind is not tuple or parts[-1] is Ellipsis:
        return all(fits(each, parts[0], choices) for each in value)
    return len(value) == len(parts) and all(map(fits, value, parts, itertools.repeat(choices)))


def _fits_class(value: Any, kind: Any) -> bool:
    """Return whether a value is of a class, or at least an object and no plain data that this class has not."""
    try:
        if isinstance(value, kind):
            return True
    except TypeError:  # a protocol
        pass
    strict = kind in _PLAIN or hasattr(kind, "tolist") or getattr(kind, "__name__", "") == "Generator"
    return not (strict or isinstance(value, _PLAIN) or hasattr(value, "tolist"))


def described(hint: Any) -> str:
    """Return what values of an annotation are, for messages: "a whole number or None"."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(described, parts)))
    if origin is typing.Literal:
        return " or ".join(map(repr, parts))
    if hint in WORDS:
        return WORDS[hint]
    if (origin or hint) in _LISTS:
        kinds = dict.fromkeys(described(part) for part in parts if part is not Ellipsis)
        count = f"{len(parts)} values" if origin is tuple and parts[-1:] != (Ellipsis,) and parts else "a list"
        return f"{count}, each {' or '.join(kinds)}" if kinds else count
    if origin in _MAPPINGS or hint is dict:
        return "a dictionary"
    if (origin or hint) is collections.abc.Callable:
        return "a function"
    name = getattr(origin or hint, "__name__", str(hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
