"""Notes for the user, and output that a closed pipe or a lost terminal does not end."""

import errno
import os
import sys
from collections.abc import Iterable
from typing import Any

from .text import printable
from .watching import in_main_process

UNREAD = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)
"""Errors of a pipe that was closed and of a terminal that is gone. All others lose what somebody wanted to read."""


class LastingOutput:
    """A text stream that goes on silently when nobody reads it any more, as after `| head` or a closed terminal.

    The first write that fails sends the file descriptor to the null device, so that libraries, child processes and the
    end of the interpreter write there too. Standard output holds text alone: names from data move no cursor. Progress
    bars do, on standard error.

    Args:
        stream: the stream that it stands for, `sys.stdout` or `sys.stderr`.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        try:
            return self._stream.write(printable(text) if self._stream is sys.__stdout__ else text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        if error.errno not in UNREAD and self._stream is sys.__stdout__:
            tell(f"standard output can't be written ({error.strerror}): what follows is lost, and some of it before.")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """Let this process go on when its standard output or error is closed, or is on a disk that is full."""
    _open_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, LastingOutput) and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, LastingOutput(stream))


def _open_closed() -> None:
    """Send standard streams that were closed from the start to the null device, as `>&-` closes them.

    Files opened later would take their numbers otherwise, and what C libraries print would go into those files.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, f"__{name}__") is None and getattr(sys, name) is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the process ends
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def say_next(lines: Iterable[str]) -> None:
    """Print these command lines under "Next:"; nothing if there are none."""
    if lines := list(lines):
        print("Next:", *lines, sep="\n  ")


def tell(text: str) -> None:
    """Print a note on standard error, in the main process only: what was found, chosen or left out."""
    if in_main_process():
        print(printable(f"note: {text}"), file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    print(printable(f"warning: {text}"), file=sys.stderr)


def say_error(error: object) -> None:
    """Print why a command ends, on standard error, with the `file` that an error may have as its origin.

    Its words may come from data, and move no cursor.
    """
    origin = f" See {error.file}." if getattr(error, "file", None) else ""
    print(printable(f"error: {error}{origin}"), file=sys.stderr)
