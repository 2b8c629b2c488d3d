"""Whether a progress bar may be shown: bars are for people, not for files and pipes, and one is enough."""

import os
import sys
from typing import Any

BAR_DELAY = 1.0
"""Seconds before a progress bar appears: what is done by then needs none."""

OPEN_BARS: list[Any] = []
"""The bars of `hfgen.console.progress` that are shown."""


def in_main_process() -> bool:
    """Return whether this is the main one of the processes that a launcher started, by its environment."""
    return os.environ.get("RANK", "0") == "0"


def is_watched() -> bool:
    """Return whether standard error is a terminal, or this is a notebook, in the main process of a launch."""
    stream = sys.stderr
    terminal = stream is not None and not getattr(stream, "closed", False) and stream.isatty()
    return (terminal or "ipykernel" in sys.modules) and in_main_process()


def bar_may_show() -> bool:
    """Return whether somebody watches, and no other bar is shown."""
    return is_watched() and not OPEN_BARS
