"""A disk that fails: the n-th write below a folder raises what a full, read-only or broken disk raises."""

import builtins
import errno
import io
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from safetensors import SafetensorError

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
REMOVALS = ("unlink", "remove", "rmdir")
NAMES = ("replace", "rename", "mkdir", "fsync", *REMOVALS)


def path_of(number: int) -> str:
    """Return the path of an open file or folder; on systems without /proc an empty text."""
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


class _CutFile:
    """A file whose first write puts half of its data on the disk, and fails."""

    def __init__(self, file: Any, code: int):
        self._file, self._code = file, code

    def write(self, data: Any) -> int:
        """Write half, and raise OSError."""
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise OSError(self._code, os.strerror(self._code))

    def fileno(self) -> int:
        """Raise: libraries would write past `write`."""
        raise io.UnsupportedOperation("fileno")

    def __enter__(self) -> "_CutFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class FailingDisk:
    """A context in which write number `at` below `root` fails, and with `lasting` all later ones.

    Writes are: opening a file to write to it, making, renaming and removing files and folders, flushing them to the
    disk, and what safetensors and torch write by themselves. On a full disk (ENOSPC) names can still be changed, and
    what is there can be removed; on a read-only one (EROFS) nothing can.

    Args:
        root: the folder.
        at: number of the first write that fails, from 1; 0: none, to count them.
        code: of `errno`.
        lasting: whether later writes fail, too.

    Attributes:
        count: number of writes so far.
        places: what each of them wrote to.
        removals: whether each write that failed was to remove something.
    """

    def __init__(self, root: Path, at: int, code: int = errno.ENOSPC, lasting: bool = True):
        self.root, self.at, self.code, self.lasting = os.path.realpath(root), at, code, lasting
        self.count, self.places, self.removals, self._patches = 0, [], [], []

    def _fails(self, path: Any, names: bool = False, removes: bool = False) -> bool:
        if isinstance(path, int):
            path = path_of(path)
        if not isinstance(path, str | os.PathLike) or not os.path.realpath(path).startswith(self.root):
            return False
        if names and self.code == errno.ENOSPC:
            return False
        self.count += 1
        self.places.append(str(path))
        fails = bool(self.at) and (self.count == self.at or (self.lasting and self.count > self.at))
        self.removals += [removes] * fails
        return fails

    @property
    def only_removals(self) -> bool:
        """Whether something failed, and nothing but to remove what is there."""
        return bool(self.removals) and all(self.removals)

    def _error(self, path: Any) -> OSError:
        return OSError(self.code, os.strerror(self.code), str(path))

    def _opening(self, real: Any) -> Any:
        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not re.search("[wax+]", mode) or not self._fails(file):
                return real(file, mode, *args, **kwargs)
            if self.code == errno.EROFS:
                raise self._error(file)
            return _CutFile(real(file, mode, *args, **kwargs), self.code)

        return opened

    def _naming(self, name: str, real: Any) -> Any:
        def named(path: Any, *args: Any, **kwargs: Any) -> Any:
            folder = kwargs.get("dir_fd")
            place = path if folder is None else os.path.join(path_of(folder), path)
            nothing = os.path.isdir(place) if name == "mkdir" else name in REMOVALS and not os.path.lexists(place)
            if not nothing and self._fails(place, name not in ("mkdir", "fsync"), name in REMOVALS):
                raise self._error(place)
            return real(path, *args, **kwargs)

        return named

    def _os_open(self, real: Any) -> Any:
        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
            if flags & WRITES and self._fails(path, names=True):
                raise self._error(path)
            return real(path, flags, *args, **kwargs)

        return opened

    def _library(self, real: Any, place: int, error: Exception) -> Any:
        def written(*args: Any, **kwargs: Any) -> Any:
            path = args[place] if len(args) > place else kwargs.get("filename")
            if self._fails(path):
                if self.code != errno.EROFS:
                    fd = self._real_open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                    os.write(fd, b"half")
                    os.close(fd)
                raise error
            return real(*args, **kwargs)

        return written

    def __enter__(self) -> "FailingDisk":
        self._real_open = os.open
        text = f"Error while serializing: I/O error: {os.strerror(self.code)} (os error {self.code})"
        torch_error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2509056 vs 2508944")
        patches = [
            (builtins, "open", self._opening(builtins.open)),
            (io, "open", self._opening(io.open)),
            (os, "open", self._os_open(os.open)),
            *((os, name, self._naming(name, getattr(os, name))) for name in NAMES),
            (
                safetensors.torch,
                "serialize_file",
                self._library(safetensors.torch.serialize_file, 1, SafetensorError(text)),
            ),
            (torch, "save", self._library(torch.save, 1, torch_error)),
        ]
        self._patches = [mock.patch.object(*patch) for patch in patches]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in reversed(self._patches):
            patch.stop()
