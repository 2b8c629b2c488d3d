"""Reading of small files that a stranger may have written: JSON and text, bounded in time and memory.

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

JSON_DEPTH = 64
"""Most levels of objects and lists in a JSON file."""


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


def numbers_in(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number and truth value in nested lists and objects with its key."""
    for name, value in values.items() if isinstance(values, Mapping) else ((key, value) for value in values):
        if isinstance(value, Mapping | list | tuple):
            yield from numbers_in(value, name)
        elif isinstance(value, int | float):
            yield name, value


def is_finite(value: Any) -> bool:
    """Return whether a number is neither NaN nor infinite; a whole number may be too large for a float."""
    return not isinstance(value, float) or math.isfinite(value)
