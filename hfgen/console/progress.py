"""One progress bar at a time, for what takes a while: it appears late, goes without a trace, and is not for pipes."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

from .watching import BAR_DELAY, OPEN_BARS, bar_may_show, is_watched


class ProgressBar(tqdm):
    """tqdm's bar by the rules of this module. A bar inside of another one that is shown stays hidden.

    Args:
        iterable, total, desc, unit, kwargs: as those of tqdm.
    """

    def __init__(self, iterable: Iterable | None = None, **kwargs: Any):
        rules = {"delay": BAR_DELAY, "leave": False, "dynamic_ncols": True, "disable": not bar_may_show()}
        super().__init__(iterable, **{**rules, **kwargs})
        if not self.disable:
            OPEN_BARS.append(self)

    def close(self) -> None:
        """Remove the bar."""
        OPEN_BARS[:] = [bar for bar in OPEN_BARS if bar is not self]
        super().close()


@contextlib.contextmanager
def bar_options(pipeline: Any, **options: Any) -> Iterator[None]:
    """Show the progress bars of a pipeline with these options inside the block; afterwards as its user has chosen."""
    chosen = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(**options)
    try:
        yield
    finally:
        if chosen is not None:
            pipeline.set_progress_bar_config(**chosen)
        elif hasattr(pipeline, "_progress_bar_config"):
            del pipeline._progress_bar_config


def quiet(pipeline: Any) -> contextlib.AbstractContextManager[None]:
    """Hide the progress bars of a pipeline inside the block, whatever its user has chosen."""
    return bar_options(pipeline, disable=True)


@contextlib.contextmanager
def without_datasets_bars() -> Iterator[None]:
    """Hide the bars of the `datasets` library inside the block where nobody watches: it also writes them to pipes."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = not is_watched() and not are_progress_bars_disabled()
    if hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        if hidden:
            enable_progress_bars()


@contextlib.contextmanager
def without_loading_bars() -> Iterator[None]:
    """Hide the bars that diffusers and transformers show while they load and save components, where nobody watches."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    makers = [] if is_watched() else [of_diffusers, of_transformers]
    hidden = [maker for maker in makers if maker.is_progress_bar_enabled()]
    for maker in hidden:
        maker.disable_progress_bar()
    try:
        yield
    finally:
        for maker in hidden:
            maker.enable_progress_bar()
