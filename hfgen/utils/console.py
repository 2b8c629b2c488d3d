"""Notes for the user, and output that a closed pipe or a lost terminal does not end."""

import os
import sys
from typing import Any


class LastingOutput:
    """A text stream that goes on silently when nobody reads it any more, as after `| head` or a closed terminal.

    The first write that fails sends the file descriptor to the null device, so that libraries, child processes and the
    end of the interpreter write there too.

    Args:
        stream: the stream that it stands for, `sys.stdout` or `sys.stderr`.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        try:
            return self._stream.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def _discard(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """Let this process go on when its standard output or error is closed, or is on a disk that is full."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, LastingOutput) and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, LastingOutput(stream))


def tell(text: str) -> None:
    """Print a note on standard error, in the main process only: what was found, chosen or left out."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)
