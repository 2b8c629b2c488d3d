"""Files that are whole or absent: each is written under a temporary name, synced to disk, and renamed.

So a full disk, a signal or `kill -9` at any moment leaves the file that was there before, or the new one.
"""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError

from ..console.notes import tell
from .kinds import Holds, problem
from .reading import TEXT_BYTES, read_object

ANY: Mapping[str, Holds] = MappingProxyType({})
"""Kinds of values of which none is needed."""

DRAFT = re.compile(r"\..*\.\d+-\d+\.part(\.\w+)?", re.DOTALL)
"""Temporary names of files and folders, see `draft_of`."""

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Free some disk space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Make the place writable, or give another one"),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG), "Give another place"),
}


TORCH_WROTE_PART = "only a part of it could be written, as on a full disk"
"""What torch means by "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0", where it names no cause."""


class DamagedFileError(ValueError):
    """A file that was cut off, or is another one. The message names it and what to do."""


class WriteError(OSError):
    """A file can't be written. The message names it, the cause and what to do; what was there before is untouched.

    Args:
        path: the file.
        cause: what the operating system or a library raised.

    Attributes:
        reason: the cause in a few words.
        advice: what to do about it, as the beginning of a sentence.
    """

    def __init__(self, path: str | os.PathLike, cause: BaseException):
        self.reason, number = _reason_of(cause)
        self.advice = _ADVICE.get(number, "Check the disk")
        super().__init__(
            f"{path} can't be written: {self.reason}. {self.advice}, and run the same command again; nothing that was "
            "saved before is lost."
        )
        self.errno = number


def _reason_of(cause: BaseException) -> tuple[str, int | None]:
    """Return why a write failed, in a few words, and the number of the error if there is one."""
    text = (str(cause).splitlines() or [""])[0].rstrip(".")
    if isinstance(cause, WriteError):
        return cause.reason, cause.errno
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror, cause.errno
    if found := re.search(r"\(os error (\d+)\)", text):  # as Rust's libraries write it
        return os.strerror(int(found[1])), int(found[1])
    if found := re.search(r"failed with strerror: (.+)", text):  # as torch does if it can't open the file
        return found[1], next((number for number in _ADVICE if os.strerror(number) == found[1]), None)
    if "inline_container" in text:
        return TORCH_WROTE_PART, errno.ENOSPC
    return text or type(cause).__name__, getattr(cause, "errno", None)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write a file to; after the block it replaces `path`.

    Folders are made. After an error there is the former file, or none. A device, as `/dev/stdout`, is written to as it
    is.

    Args:
        path: the file.
        sync: flush it to disk first, so that it outlives a loss of power; not worth the time for many pictures.

    Raises:
        WriteError: the file can't be written, or is read-only.
    """
    path = Path(path)
    if _is_device(path):
        try:
            yield path
        except OSError as error:
            raise WriteError(path, error) from error
        return
    target = Path(os.path.realpath(path))  # through a link, as plain writing does
    draft = target.with_name(draft_of(path).name)  # the ending of the link says the format
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = require_writable(target)
        yield draft
        if sync:
            sync_to_disk(draft)
        if mode is not None:
            os.chmod(draft, stat.S_IMODE(mode))
        os.replace(draft, target)
    except (OSError, SafetensorError) as error:
        raise WriteError(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def draft_of(target: Path) -> Path:
    """Return the temporary name of a file or folder: of this thread alone, and with the same ending."""
    stem = target.stem.encode(errors="surrogateescape")[:120].decode(errors="ignore")  # names have 255 bytes
    return target.with_name(f".{stem}.{os.getpid()}-{threading.get_ident()}.part{target.suffix}")


def _is_device(path: Path) -> bool:
    if re.match(r"/dev/(std(in|out|err)$|fd/)|/proc/", str(path)):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def require_writable(target: Path) -> int | None:
    """Return the mode of a file, None if there is none. Raises OSError for a folder and for a read-only file."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not target.exists():
        return None
    mode = target.stat().st_mode
    if not mode & 0o222 or not os.access(target, os.W_OK):  # the first also for root, who may do anything
        raise PermissionError(errno.EACCES, "the file is read-only", str(target))
    return mode


def check_writable(path: str | os.PathLike) -> None:
    """Raise WriteError if a file can't be written now. Nothing is left, and a file that is there is untouched."""
    path = Path(path)
    if _is_device(path):
        return
    target = Path(os.path.realpath(path))
    made = next((folder for folder in reversed([target.parent, *target.parent.parents]) if not folder.exists()), None)
    probe = draft_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        require_writable(target)
        probe.write_bytes(b"\n")
    except OSError as error:
        raise WriteError(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
            for folder in [target.parent, *target.parent.parents] if made is not None else []:
                folder.rmdir()
                if folder == made:
                    break


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file. Raises WriteError."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text in UTF-8. Raises WriteError."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, values: Any) -> None:
    """Write values as indented JSON. Raises WriteError. NaN and infinity are written as Python reads them."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_picture(path: str | os.PathLike, picture: Any, **options: Any) -> None:
    """Write a PIL image in the format of the file's name, with further options of its `save`. Raises WriteError."""
    with replacing(path, sync=False) as draft:
        picture.save(draft, **options)


def read_json(path: str | os.PathLike, remedy: str, kinds: Mapping[str, Holds] = ANY) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        remedy: what to do if it holds none, for the message.
        kinds: of the values that the object must have, by name; see `hfgen.disk.kinds`.

    Raises:
        DamagedFileError: it holds none, as a file that was cut off, or lacks a value, or has one of another kind.
        OSError: it can't be read.
    """
    try:
        values = read_object(path, TEXT_BYTES)
    except ValueError:
        raise DamagedFileError(f"{path} holds no JSON object: it was cut off, or is another file. {remedy}") from None
    if (wrong := problem(values, kinds)) is not None:
        raise DamagedFileError(f"{path} {wrong}: it was changed, or is another file. {remedy}")
    return values


def read_rows(path: str | os.PathLike, kinds: Mapping[str, Holds] = ANY, growing: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; none if there is no file.

    A last line that was cut off, as by a full disk, is left out, which is said.

    Args:
        path: the file.
        kinds: of the values that each row must have, by name; see `hfgen.disk.kinds`.
        growing: another process may be writing the last line, so leaving it out is not worth a word.

    Raises:
        DamagedFileError: another line is no JSON object, or a row lacks a value, or has one of another kind. Names the
            line.
        OSError: the file can't be read.
    """
    path = Path(path)
    if not path.exists():
        return []
    if not path.is_file():
        raise DamagedFileError(f"{path} is no file. Move it away, and run the same command again.")
    rows, lines = [], path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        wrong = problem(row, kinds) if isinstance(row, dict) else "is no JSON object"
        if wrong is None:
            rows.append(row)
        elif isinstance(row, dict) or number < len(lines):
            raise DamagedFileError(
                f"line {number} of {path} {wrong}: the file was damaged. Remove that line, or the file, and run the "
                "same command again."
            )
        elif not growing:
            tell(f"{path}: its last line was cut off, and is left out.")
    return rows


def write_rows(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines. Raises WriteError."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


class GrowingRows:
    """A file of JSON lines to append to. Rows that could not be written are kept, and written with the next one.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._kept = b""
        self._whole: int | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row at the end. Raises WriteError; the row is then kept for the next call."""
        self._kept += json.dumps(row).encode() + b"\n"
        self.write()

    def write(self) -> None:
        """Write what is kept, if anything is. Raises WriteError; it is then kept for the next call."""
        if not self._kept:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                if self._whole is not None:  # the part of a line that a full disk has left
                    file.truncate(self._whole)
                self._whole = file.seek(0, io.SEEK_END)
                rest = memoryview(self._kept)
                while rest:
                    rest = rest[file.write(rest) :]
        except OSError as error:
            raise WriteError(self.path, error) from error
        self._kept, self._whole = b"", None


class OptionalWrites:
    """Writes that the work does not depend on: one that fails is said, once for each name, and the work goes on."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Inside the block, an OSError leaves the block, and so does a DamagedFileError of what is to be changed.

        Args:
            what: what is written, for the note.
        """
        try:
            yield
        except (OSError, DamagedFileError) as error:
            if what not in self._said:
                self._said.add(what)
                reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
                tell(f"{what} can't be written ({reason}). The work goes on without it; this is said once.")


def remove_drafts(folder: Path) -> None:
    """Remove the temporary files that a killed process has left in a folder, and in the folders in it that have no lock
    of their own.

    Only the one process that writes to the folder may call this.
    """
    inside = [path for path in folder.iterdir() if path.is_dir() and not (path / ".lock").exists()]
    for path in (path for place in (folder, *inside) for path in place.glob(".*.part*")):
        if DRAFT.fullmatch(path.name):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync_to_disk(path: Path) -> None:
    """Flush a file or folder to disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
