"""YAML: files that a stranger may have written, read within bounds, and texts that are read back as they were written.

Numbers are those of YAML 1.2, with `1e-3` and `1_000` besides. PyYAML by itself follows YAML 1.1, in which `1:30:00` is
the number 5400, to the base 60, `010` is 8, and `1e-3` is a text.
"""

import functools
import os
import re
from collections.abc import Iterator
from typing import Any

from .reading import read_text

YAML_BYTES = 1 << 18
"""Most bytes of a YAML file."""

YAML_DEPTH = 24
"""Most levels of a YAML file."""

YAML_NODES = 20_000
"""Most values of a YAML file, where what an alias stands for counts each time."""

SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]*[0-9a-fA-F]|0b[01_]*[01])", "-+0123456789"),
    "float": (
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}
"""Kinds of values -> what is one without quotes, and the letters that one may begin with. Anything else is a text, also
a date."""


@functools.cache
def _yaml_loader() -> type:
    """Return the class of PyYAML that reads plain values, with the numbers of `SCALARS`."""
    import yaml

    return _with_scalars(
        type("Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {"yaml_implicit_resolvers": {}})
    )


@functools.cache
def _yaml_dumper() -> type:
    import yaml

    return _with_scalars(type("Dumper", (yaml.SafeDumper,), {}))  # it quotes what YAML 1.1 reads as a number, too


def _with_scalars(cls: Any) -> Any:
    for kind, (form, letters) in SCALARS.items():
        first = ["" if letter == "\0" else letter for letter in letters]  # "": of an empty value
        cls.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{form})$"), first)
    return cls


def yaml_text(values: Any) -> str:
    """Return plain values as YAML, which `parse_yaml` and any other reader of YAML read as these values."""
    import yaml

    return yaml.dump(values, Dumper=_yaml_dumper(), sort_keys=False)


def read_yaml(path: str | os.PathLike, most_bytes: int = YAML_BYTES) -> Any:
    """Return what a YAML file holds: plain values, lists and objects.

    Raises:
        ValueError: names the file, which is too long or too deep, is not YAML, holds tags of Python, names an entry
            twice, or has aliases that stand for very much.
        OSError: the file can't be read.
    """
    return parse_yaml(read_text(path, most_bytes), str(path))


def parse_yaml(text: str, name: str, most_values: int = YAML_NODES) -> Any:
    """Return what a YAML text holds; `name` stands for it in messages. Errors are those of `read_yaml`."""
    import yaml

    loader = _yaml_loader()
    try:
        _refuse_size(yaml.parse(text, loader), name, most_values)
        _refuse_doubles(yaml.compose(text, loader), name)
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{name}{place}: not valid YAML: {reason}.") from error
    except Exception as error:  # PyYAML raises errors of many types for dates, tags and keys that are none
        raise ValueError(str(error) if name in str(error) else f"{name} is not valid YAML: {error}") from error


def _refuse_size(events: Iterator[Any], name: str, most_values: int) -> None:
    """Raise ValueError for too many levels or values, before anything is built of them.

    An alias counts as what its anchor stands for, so that a few lines can't stand for billions of values.
    """
    import yaml

    sizes: dict[str, int] = {}
    open_parts: list[list[Any]] = [[None, 0]]  # [anchor, values so far] of each part that is not at its end
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"{name} has the alias *{event.anchor} for what holds it, or for nothing.")
            open_parts[-1][1] += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            open_parts[-1][1] += 1
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_parts.append([event.anchor, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_parts.pop()
            sizes[anchor] = size
            open_parts[-1][1] += size
        if len(open_parts) > YAML_DEPTH:
            raise ValueError(f"{name} nests more than {YAML_DEPTH} levels.")
        if open_parts[-1][1] > most_values:
            raise ValueError(f"{name} stands for more than {most_values:,} values.")


def _refuse_doubles(node: Any, name: str) -> None:
    """Raise ValueError for an object that names an entry twice: PyYAML would take the last one without a word."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise ValueError(f"{name}, line {key.start_mark.line + 1}: {key.value!r} is there twice. Remove one.")
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
            _refuse_doubles(value, name)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _refuse_doubles(part, name)
