"""Whether somebody watches this process: progress bars are for people, not for files and pipes."""

import os
import sys


def is_watched() -> bool:
    """Return whether standard error is a terminal, or this is a notebook, in the main process of a launch."""
    stream = sys.stderr
    terminal = stream is not None and not getattr(stream, "closed", False) and stream.isatty()
    return (terminal or "ipykernel" in sys.modules) and os.environ.get("RANK", "0") == "0"
