"""Where the files of a saved pipeline are: in its folder, or in two places after a save that was cut off."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..disk.saves import is_cut_off, whole_folder
from .errors import ADAPTER, INDEX

SAVE = "pipeline"
"""What saves of a pipeline are called, see `hfgen.disk.saves`."""


def holds_pipeline(folder: Path) -> bool:
    """Return whether a folder holds a saved pipeline, as far as names say: its index is there, or a save of it was cut
    off."""
    return (folder / INDEX).is_file() or was_cut_off(folder)


def holds_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, and no pipeline, as far as names say."""
    return (folder / ADAPTER).is_file() and not holds_pipeline(folder)


def refuse_adapter(folder: Path) -> None:
    """Raise ValueError for the folder of an adapter, where a pipeline is needed; says how it is used."""
    if holds_adapter(folder):
        raise ValueError(
            f"{folder} holds an adapter, which changes another pipeline. Give that pipeline, and the adapter with "
            f"--lora {folder}; in Python: pipeline.load_lora_weights({str(folder)!r})."
        )


def was_cut_off(folder: Path) -> bool:
    """Return whether the last save of a pipeline was cut off while its files were moved into the folder."""
    return folder.is_dir() and is_cut_off(folder, SAVE, INDEX)


@contextlib.contextmanager
def whole(source: str) -> Iterator[str]:
    """Yield where the files of one save of a pipeline are: the folder itself, or links to what a save that was cut off
    has left in two places. The name of a repository is yielded as it is.

    Raises:
        ValueError, OSError: as `hfgen.disk.saves.whole_folder`.
    """
    if not os.path.isdir(source):
        yield source
        return
    with whole_folder(Path(source), SAVE, INDEX) as folder:
        yield str(folder)
