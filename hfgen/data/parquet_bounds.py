"""Bounds of parquet files: a small file may stand for very much, since it holds equal values once.

What a file decodes to is known before it is read: from its metadata, and for texts and images from the dictionaries
that it holds their values in.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console.text import escaped, first_line
from ..disk.reading import check_regular
from ..utils.devices import memory

WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a value by its physical type in parquet; texts, images and other bytes have none."""

PLAIN = frozenset({"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "DELTA_LENGTH_BYTE_ARRAY"})
"""Encodings of bytes whose values are in the file, once at least."""

MOST_LEVELS = 32
"""Levels of nested lists and objects, at most."""

MOST_CELL = 1 << 30
"""Bytes of one value, at most: beyond any image that Pillow opens."""

LAST_BYTES, MOST_METADATA = 8, 256 << 20
"""Bytes at the end of a file that say how long its metadata are, and bytes of metadata, at most."""

USUAL_BYTES, MOST_TIMES = 4 << 30, 200
"""A file may decode to so many bytes, or to so many times its own."""


COLUMNS = """
import sys
from pyarrow import parquet
for path in sys.stdin.read().split(chr(0)):
    print(path, end=chr(0), flush=True)
    try:
        metadata = parquet.read_metadata(path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            list(map(group.column, range(group.num_columns)))
    except Exception:
        pass  # said by who reads it
"""
"""Looks at the metadata of all columns. Where they are damaged, pyarrow (26.0) ends the process without an exception
(`RowGroupMetaData.column`), so this runs in a process of its own."""


def check_parquet(places: Sequence[Path | str]) -> None:
    """Refuse parquet files that stand for more than memory or disk can hold, before they are read.

    Args:
        places: files, or addresses with "://" as fsspec knows them, of which the ends are fetched.

    Raises:
        ValueError: names the file, which is damaged, nests too deep, or decodes to too much.
        OSError: it can't be read.
    """
    for place in places:
        if not _is_address(place):
            check_regular(place)
    with tempfile.TemporaryDirectory(prefix="hfgen-") as folder:
        here = {str(_metadata_of(place, Path(folder, str(i)))): place for i, place in enumerate(places)}
        if here:
            _check_columns(here)
    for place in places:
        _check_sizes(place)


def _is_address(place: Path | str) -> bool:
    return "://" in str(place)


def _opened(place: Path | str) -> Any:
    """Return what pyarrow reads a place from."""
    if not _is_address(place):
        return str(place)
    import fsspec

    return fsspec.open(str(place), "rb").open()


def _metadata_of(place: Path | str, draft: Path) -> Path:
    """Return a file here with the metadata of a place: the file itself, or `draft` with the end of a remote file."""
    if not _is_address(place):
        return Path(place)
    with _opened(place) as file:
        end = min(file.size, LAST_BYTES)
        file.seek(-end, os.SEEK_END)
        length = int.from_bytes(file.read(end)[-8:-4], "little")
        if length + 12 > min(file.size, MOST_METADATA):
            raise ValueError(f"{place} is not read: it claims {length:,} bytes of metadata, of {file.size:,} in all.")
        file.seek(-length - 8, os.SEEK_END)
        with open(draft, "wb") as copy:
            copy.write(b"PAR1" + file.read(length + 8))
    return draft


def _check_columns(places: Mapping[str, Path | str]) -> None:
    """Raise ValueError if pyarrow can't hold the metadata of the columns of a file; files by what to call them."""
    names = "\0".join(places)
    command = [sys.executable, "-X", "faulthandler=0", "-c", COLUMNS]
    done = subprocess.run(command, input=names, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        what = [line.partition("what():")[2].strip() for line in done.stderr.splitlines() if "what():" in line]
        reason = what[0] if what else first_line(done.stderr) or f"status {done.returncode}"
        path = places.get(done.stdout.split("\0")[-2] if "\0" in done.stdout else "", next(iter(places.values())))
        raise ValueError(f"{path} is not read: its metadata are damaged: {escaped(reason)[:300]}.")


def _check_sizes(path: Path | str) -> None:
    """Raise ValueError if a file nests too deep or decodes to too much."""
    import pyarrow
    from pyarrow import parquet

    try:
        source = _opened(path)
        stored = source.size if _is_address(path) else Path(path).stat().st_size
        file = parquet.ParquetFile(source)
        names = [file.schema.column(i).path for i in range(len(file.schema))]
        levels = max((file.schema.column(i).max_definition_level for i in range(len(file.schema))), default=0)
        if levels > 2 * MOST_LEVELS or any(name.count(".") > 2 * MOST_LEVELS for name in names):
            raise ValueError(f"it nests more than {MOST_LEVELS} levels")
        total, most_all = 0, max(USUAL_BYTES, MOST_TIMES * stored)
        for group in range(file.num_row_groups):
            size = sum(_decoded_size(path, file, group, column) for column in range(len(names)))
            if size > memory() // 4:
                raise ValueError(f"its row group {group} decodes to {size:,} bytes, more than a quarter of the memory")
            total += size
            if total > most_all:
                raise ValueError(f"it decodes to more than {most_all:,} bytes, for {stored:,} of its own")
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, IndexError) as error:
        raise ValueError(f"{path} is not read: {escaped(first_line(error)).rstrip('.')[:300]}.") from error


def _decoded_size(path: Path | str, file: Any, group: int, column: int) -> int:
    """Return about how many bytes a column of a row group decodes to; of texts and images at most that many.

    Raises:
        ValueError: a value is too long, or its encoding does not say.
    """
    chunk = file.metadata.row_group(group).column(column)
    count, stored = max(0, chunk.num_values), max(0, chunk.total_uncompressed_size)
    if width := WIDTHS.get(chunk.physical_type, max(0, file.schema.column(column).length)):
        return count * width
    if count * stored <= MOST_CELL or (not chunk.has_dictionary_page and PLAIN.issuperset(chunk.encodings)):
        return min(count * stored, stored + 8 * count)
    if not PLAIN.issuperset(chunk.encodings):
        raise ValueError(f"its column {escaped(chunk.path_in_schema)} is encoded as {', '.join(chunk.encodings)}")
    return stored + _repeated(path, group, chunk, memory() // 4)


def _repeated(path: Path | str, group: int, chunk: Any, most: int) -> int:
    """Return how many bytes the values of a dictionary take where they stand; counting ends above `most`."""
    import pyarrow.compute as compute
    from pyarrow import parquet

    name, total = chunk.path_in_schema, 0
    file = parquet.ParquetFile(_opened(path), read_dictionary=[name], buffer_size=1 << 20)
    for number, batch in enumerate(file.iter_batches(batch_size=64, row_groups=[group], columns=[name])):
        for part in _dictionaries(batch.column(0)):
            lengths = compute.binary_length(part.dictionary)
            longest = compute.max(lengths).as_py() or 0
            if longest > MOST_CELL:
                raise ValueError(f"its column {escaped(name)} holds a value of {longest:,} bytes")
            if number == 0 and longest * chunk.num_values <= most // 4:
                return longest * chunk.num_values  # no need to count
            total += compute.sum(lengths.take(part.indices)).as_py() or 0
        if total > most:
            break
    return total


def _dictionaries(array: Any) -> Iterator[Any]:
    """Yield the arrays of values in dictionaries within nested lists and objects."""
    from pyarrow import types

    if types.is_dictionary(array.type):
        yield array
    elif types.is_struct(array.type):
        for part in array.flatten():
            yield from _dictionaries(part)
    elif types.is_list(array.type) or types.is_large_list(array.type):
        yield from _dictionaries(array.flatten())
