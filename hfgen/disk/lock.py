"""One writer for each folder."""

import contextlib
import json
import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .files import OptionalWrites, WriteError, remove_drafts
from .reading import read_object

LOCK, WRITER = ".lock", ".writer.json"


WRITTEN = (".json", ".jsonl", ".md", ".yaml", ".png", ".gif", ".csv", ".html")
"""Endings of files that are written into a folder again and again, besides weights."""


class FolderInUseError(ValueError):
    """Another process writes to the folder."""


class FolderLock:
    """The right to write to a folder, of one process at a time: a file lock, which ends with its process.

    A lock of a process that was killed is therefore no obstacle. filelock is used because it works on Windows, and on
    file systems without flock, as well.

    Args:
        folder: the folder. `acquire` makes it; `release` removes it if nothing else is in it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock: FileLock | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._lock is not None

    def acquire(self, wait: float = 0) -> None:
        """Take the lock, and remove what a killed writer has left half-written.

        Nothing happens if this object has it already.

        Args:
            wait: seconds to wait for another process to give it back.

        Raises:
            FolderInUseError: another process has it; says which one.
            ValueError: as `refuse_ways_out`.
            OSError: the folder can't be written to.
        """
        if self.held:
            return
        refuse_ways_out(self.folder)
        lock = FileLock(self.folder / LOCK, timeout=wait)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:  # an OSError, too
            raise FolderInUseError(
                f"{self.folder} is in use: {self._writer()} is writing to it. Wait for its end, or give another folder."
            ) from None
        except OSError as error:
            raise WriteError(self.folder, error) from error
        self._lock = lock
        with OptionalWrites()(f"{self.folder / WRITER}, the name of who writes here,"):
            (self.folder / WRITER).unlink(missing_ok=True)  # a link in a stranger's folder may lead anywhere
            with open(self.folder / WRITER, "x", encoding="utf-8") as file:
                file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        remove_drafts(self.folder)

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):  # a full or lost disk: the lock itself ends with the process
            (self.folder / WRITER).unlink(missing_ok=True)
            (self.folder / LOCK).unlink(missing_ok=True)
        self._lock.release()
        self._lock = None
        with contextlib.suppress(OSError):  # it holds the run
            self.folder.rmdir()

    def _writer(self) -> str:
        try:
            writer = read_object(self.folder / WRITER)
            return f"process {int(writer['pid'])} on {writer['host']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"


def refuse_ways_out(folder: Path, names: Collection[str] | None = None) -> None:
    """Refuse a folder in which a file to be written is a link that leads out of it, or a pipe or device: what is
    written there would go wherever the maker of the folder wants. Nor may it be a folder: the work would be done, and
    could not be written.

    Args:
        folder: the folder, if there is one.
        names: of the files to be written; None: those that end in one of `WRITTEN`.

    Raises:
        ValueError: names the file.
    """
    home = os.path.realpath(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        written = path.suffix in WRITTEN and path.name != WRITER if names is None else path.name in names
        if not written:
            continue
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
            where = f"is a link to {os.readlink(path)}, which lies outside of the folder"
        elif path.is_dir():
            where = "is a folder, where a file belongs"
        elif path.exists() and not path.is_file():
            where = "is a pipe or a device"
        else:
            continue
        raise ValueError(f"{path} {where}, and would be written to. Remove it, or give another folder.")


@contextlib.contextmanager
def exclusive(path: Path, wait: float = 60) -> Iterator[None]:
    """Inside the block, no other process that asks for it changes a file: for one that is read, changed and written.

    Args:
        path: the file; its folder is made.
        wait: seconds to wait for another process.

    Raises:
        FolderInUseError: another process still has it.
        WriteError: its folder can't be written to.
    """
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place, timeout=wait)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FolderInUseError(f"{path} is in use by another process. Run the same command again.") from None
    except OSError as error:
        raise WriteError(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
        lock.release()
