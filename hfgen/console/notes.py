"""Notes for the user, and output that a closed pipe or a lost terminal does not end."""

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from .text import MOST, printable
from .watching import in_main_process

UNREAD = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)
"""Errors of a pipe that was closed and of a terminal that is gone. All others lose what somebody wanted to read."""


LIBRARIES = ("diffusers", "transformers", "datasets", "huggingface_hub", "accelerate", "PIL")
"""Libraries whose warnings repeat what files say, by the names of their loggers."""


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


def own_console() -> None:
    """Make the standard streams those of a command: the process goes on when they are closed, or on a disk that is
    full, and what libraries warn of is one line each."""
    _open_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, LastingOutput) and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, LastingOutput(stream))
            warnings.formatwarning = _line_of_warning


def _line_of_warning(text: Warning | str, category: type, filename: str, lineno: int, line: str | None = None) -> str:
    """Return a warning of Python as `warn` prints it, without the place in the code; nothing in other processes than
    the main one."""
    said = " ".join(str(text).split())
    return message(f"warning: {said}") + "\n" if in_main_process() else ""


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


def message(text: object) -> str:
    """Return a message whose words may come from data, for a terminal: of a very long one both ends."""
    text = str(text)
    cut = f"{text[: MOST // 2]}... ({len(text):,} characters) ...{text[-MOST // 2 :]}"
    return printable(text if len(text) <= MOST else cut)


class _Legible(logging.Filter):
    """A filter that lets all records through, and makes their messages harmless on the way."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the message by its printable beginning."""
        if record.name.split(".")[0] in LIBRARIES:
            record.msg, record.args = message(record.getMessage()), ()
        return True


@contextlib.contextmanager
def legible_logs() -> Iterator[None]:
    """Inside the block, what LIBRARIES log of a stranger's file moves no cursor, and is short. Other threads may be in
    such a block, too."""
    loggers = [logging.getLogger(), *map(logging.getLogger, LIBRARIES)]
    handlers, legible = [handler for logger in loggers for handler in logger.handlers], _Legible()
    for handler in handlers:
        handler.addFilter(legible)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(legible)


def tell(text: str) -> None:
    """Print a note on standard error, in the main process only: what was found, chosen or left out."""
    if in_main_process():
        print(message(f"note: {text}"), file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    print(message(f"warning: {text}"), file=sys.stderr)


def say_error(error: object) -> None:
    """Print why a command ends, on standard error, with the `file` that an error may have as its origin.

    Its words may come from data, and move no cursor.
    """
    origin = f" See {error.file}." if getattr(error, "file", None) else ""
    print(message(f"error: {error}{origin}"), file=sys.stderr)
