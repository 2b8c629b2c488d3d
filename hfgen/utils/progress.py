"""One progress bar at a time, for what takes a while: it appears late, goes without a trace, and is not for pipes."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from tqdm.auto import tqdm

from .watching import is_watched

DELAY = 1.0
"""Seconds before a bar appears: what is done by then needs none."""


class ProgressBar(tqdm):
    """tqdm's bar by the rules of this module. A bar inside of another one that is shown stays hidden.

    Args:
        iterable, total, desc, unit, kwargs: as those of tqdm.
    """

    outer: ClassVar["ProgressBar | None"] = None

    def __init__(self, iterable: Iterable | None = None, **kwargs: Any):
        hidden = ProgressBar.outer is not None or not is_watched()
        rules = {"delay": DELAY, "leave": False, "dynamic_ncols": True, "disable": hidden}
        super().__init__(iterable, **{**rules, **kwargs})
        if not self.disable:
            ProgressBar.outer = self

    def close(self) -> None:
        """Remove the bar."""
        if ProgressBar.outer is self:
            ProgressBar.outer = None
        super().close()


@contextlib.contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """Hide the progress bars of a pipeline inside the block, whatever its user has chosen."""
    chosen = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if chosen is not None:
            pipeline.set_progress_bar_config(**chosen)
        elif hasattr(pipeline, "_progress_bar_config"):
            del pipeline._progress_bar_config
