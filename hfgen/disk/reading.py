"""Reading of small files that a stranger may have written: JSON, YAML and text, bounded in time and memory.

A link may lead anywhere, and a name may be that of a pipe or a device, which ends never. So only regular files are
opened, no more is read than a limit, and what is read has a bounded depth.
"""

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

TEXT_BYTES = 64 << 20
"""Most bytes of a text file."""

JSON_BYTES = 4 << 20
"""Most bytes of a JSON file."""

JSON_SIZE = 16
"""Bytes of a JSON file for each of its values, at least, on average: many short values take long to look at."""

YAML_BYTES = 1 << 18
"""Most bytes of a YAML file."""

JSON_DEPTH = 64
"""Most levels of objects and lists in a JSON file."""

YAML_DEPTH = 24
"""Most levels of a YAML file."""

YAML_NODES = 20_000
"""Most values of a YAML file, where what an alias stands for counts each time."""


def read_bytes(path: str | os.PathLike, most_bytes: int = TEXT_BYTES) -> bytes:
    """Return the contents of a regular file, through links.

    Args:
        path: the file.
        most_bytes: its largest size.

    Raises:
        ValueError: the path names something else, such as a pipe, a device or a folder, or the file is larger.
        OSError: it can't be read.
    """
    check_regular(path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        _refuse_special(path, os.fstat(file.fileno()).st_mode)
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most_bytes else file.read(most_bytes + 1)
    if max(size, len(content)) > most_bytes:
        raise ValueError(f"{path} has {max(size, len(content))} bytes; no such file has more than {most_bytes}.")
    return content


def check_regular(path: str | os.PathLike) -> None:
    """Refuse what is no regular file.

    Raises:
        ValueError: the path names a pipe, a device, a socket or a folder.
        OSError: there is nothing.
    """
    _refuse_special(path, os.stat(path).st_mode)


def _refuse_special(path: str | os.PathLike, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a device": stat.S_ISCHR}
        kind = next((name for name, holds in kinds.items() if holds(mode)), "a device or a socket")
        raise ValueError(f"{path} is {kind}, and only regular files are read.")


def read_text(path: str | os.PathLike, most_bytes: int = TEXT_BYTES) -> str:
    """Return the text of a regular file in UTF-8, as `read_bytes`.

    Raises:
        ValueError: as `read_bytes`, or the file is no UTF-8.
        OSError: the file can't be read.
    """
    try:
        return read_bytes(path, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}.") from None


def read_object(path: str | os.PathLike, most_bytes: int = JSON_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file, at most `JSON_DEPTH` levels deep whatever Python's own limit is.

    Raises:
        ValueError: the file is too long or too deep, is not JSON, or holds no object.
        OSError: the file can't be read.
    """
    try:
        values = json.loads(read_text(path, most_bytes))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except ValueError as error:  # of the reading, which names the file, or of a number with too many digits
        raise ValueError(str(error) if str(path) in str(error) else f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object.")
    _refuse_depth(path, values, most_bytes // JSON_SIZE)
    return values


def _refuse_depth(path: str | os.PathLike, values: Any, most: int) -> None:
    """Raise ValueError for more than `JSON_DEPTH` levels, or more than `most` values, without recursion."""
    level, depth, count = [values], 0, 0
    while level := [part for value in level if isinstance(value, dict | list) for part in _parts(value)]:
        depth += 1
        count += len(level)
        if depth > JSON_DEPTH:
            raise ValueError(f"{path} nests more than {JSON_DEPTH} levels of objects and lists.")
        if count > most:
            raise ValueError(f"{path} holds more than {most:,} values.")


def _parts(values: dict | list) -> Any:
    return values.values() if isinstance(values, dict) else values


def numbers_of(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number and truth value in nested lists and objects with its key."""
    for name, value in values.items() if isinstance(values, Mapping) else ((key, value) for value in values):
        if isinstance(value, Mapping | list | tuple):
            yield from numbers_of(value, name)
        elif isinstance(value, int | float):
            yield name, value


def is_finite(value: Any) -> bool:
    """Return whether a number is neither NaN nor infinite; a whole number may be too large for a float."""
    return not isinstance(value, float) or math.isfinite(value)


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

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
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
