"""One writer for each folder."""

import contextlib
import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, WRITER = ".lock", ".writer.json"


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

    def acquire(self) -> None:
        """Take the lock; nothing happens if this object has it already.

        Raises:
            FolderInUseError: another process has it; says which one.
            OSError: the folder can't be written to.
        """
        if self.held:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise FolderInUseError(
                f"{self.folder} is in use: {self._writer()} is writing to it. Wait for its end, or give another folder."
            ) from None
        self._lock = lock
        (self.folder / WRITER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")

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
            writer = json.loads((self.folder / WRITER).read_text())
            return f"process {int(writer['pid'])} on {writer['host']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"
