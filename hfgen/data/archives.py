"""Files in zip and tar archives: where they lie, so that each is read by itself whenever it is needed.

A file that is stored as it is, or deflated in a zip archive, is found by its place in the archive. It is never held in
memory, so data sets may be larger than that, and every process and worker reads the files of its own batches alone.
Compressed tar archives can only be read from the beginning: contents are held then.
"""

import dataclasses
import functools
import lzma
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, RuntimeError)
"""Errors of a damaged archive; RuntimeError is that of one with a password."""

Read = Callable[[int], bytes | None]
"""At most so many bytes of a file; None for what is no file."""

SEPARATOR = "\0"
"""Between the parts of a location; no path holds it."""

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a file in a zip archive: signature, and the lengths of name and extra field, which the contents follow."""

MOST_LINKS = 40
"""Links in a tar archive that lead one to the next, at most, as in Linux."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a file in an archive.

    Attributes:
        offset, stored: where its bytes begin, and how many they are.
        size: of the file, in bytes.
        deflated: whether the bytes are deflated; else they are the file.
    """

    offset: int
    stored: int
    size: int
    deflated: bool = False


def location_of(archive: Path, name: str, place: Place) -> str:
    """Return a text from which `read_location` reads a file, for the column of paths of a table; `name` is shown."""
    numbers = place.offset, place.stored, place.size, int(place.deflated)
    return SEPARATOR.join([str(archive), *map(str, numbers), name])


def is_location(path: str) -> bool:
    """Return whether a path is what `location_of` returned."""
    return SEPARATOR in path


def readable(path: str) -> str:
    """Return a path for messages; the location of a file in an archive as if the archive were a folder."""
    parts = path.split(SEPARATOR, 5)
    return "/".join([parts[0], *parts[5:]])


def read_location(location: str) -> bytes:
    """Return the file at a location.

    Raises:
        OSError: the archive can't be read.
        ValueError: the archive has changed, or is damaged.
    """
    archive, *numbers = location.split(SEPARATOR, 5)[:5]
    offset, stored, size, deflated = map(int, numbers)
    with Path(archive).open("rb") as file:
        file.seek(offset)
        content = file.read(stored)
    if len(content) == stored and deflated:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        except zlib.error as error:
            raise ValueError(f"its archive is damaged: {error}") from None
    if len(content) != size:
        raise ValueError(f"its archive is damaged: {len(content):,} bytes instead of {size:,}")
    return content


def members(archive: Path) -> Iterator[tuple[str, Place | None, Read]]:
    """Yield the name of each file of an archive; its place, None where it can't be read by itself; and how to read it
    now. What is no file, as a link to nothing, has no place and reads as None."""
    zipped = archive.name.lower().endswith(".zip")
    yield from _of_zip(archive) if zipped else _of_tar(archive)


def _of_zip(archive: Path) -> Iterator[tuple[str, Place | None, Read]]:
    with zipfile.ZipFile(archive) as opened, archive.open("rb") as raw:

        def read(info: zipfile.ZipInfo, limit: int) -> bytes:
            with opened.open(info) as file:
                return file.read(limit)

        for info in opened.infolist():
            name = _zip_name(info)
            if not name.endswith("/"):
                yield name, _zip_place(raw, info), functools.partial(read, info)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a member with slashes: some programs of Windows write backslashes, against the format."""
    windows = info.create_system == 0 and "/" not in info.filename
    return info.filename.replace("\\", "/") if windows else info.filename


def _zip_place(raw: BinaryIO, info: zipfile.ZipInfo) -> Place | None:
    """Return the place of a file that is stored or deflated, and not encrypted; None for others."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        return None
    raw.seek(info.header_offset)
    header = raw.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        return None  # reading it says what is wrong
    _, name, extra = LOCAL_HEADER.unpack(header)
    offset = info.header_offset + LOCAL_HEADER.size + name + extra
    return Place(offset, info.compress_size, info.file_size, info.compress_type == zipfile.ZIP_DEFLATED)


class _WholeTarInfo(tarfile.TarInfo):
    """A header whose damage is an error. tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "tarfile.TarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(f"{error}, after {tarfile_.offset:,} bytes") from error


def _of_tar(archive: Path) -> Iterator[tuple[str, Place | None, Read]]:
    opened, plain = _open_tar(archive)
    with opened:

        def read(member: tarfile.TarInfo, limit: int) -> bytes | None:
            file = opened.extractfile(member)
            if file is None:
                return None
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return file.read(min(limit, size))  # which takes as much memory as it is asked for

        known: dict[str, tarfile.TarInfo] = {}
        for member in opened:
            if (member.islnk() or member.issym()) and not known:
                known = {posixpath.normpath(each.name): each for each in opened.getmembers()}
            file = _file_of(member, known)
            if file is not None:
                alone = plain and not file.issparse()
                place = Place(file.offset_data, file.size, file.size) if alone else None
                yield member.name, place, functools.partial(read, file)
            elif not member.isdir():  # a link to nothing, a pipe or a device
                yield member.name, None, lambda limit: None


def _open_tar(archive: Path) -> tuple[tarfile.TarFile, bool]:
    """Return an opened tar archive, and whether it is not compressed."""
    try:
        return tarfile.open(archive, "r:", tarinfo=_WholeTarInfo), True
    except tarfile.ReadError:
        return tarfile.open(archive, tarinfo=_WholeTarInfo), False


def _file_of(member: tarfile.TarInfo, known: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """Return the file that a member of an archive is, or that its links lead to; None for links to nothing and for
    loops. tarfile itself looks for the target of each link among all members, and follows a loop for ever."""
    for _ in range(MOST_LINKS + 1):
        if member.isfile():
            return member
        if not (member.islnk() or member.issym()):
            return None
        folder = "" if member.islnk() else posixpath.dirname(member.name)
        target = known.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
        if target is None:
            return None
        member = target
    return None
