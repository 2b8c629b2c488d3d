"""A look at every table before the `datasets` library reads it: one here, downloaded from the Hub, or streamed."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..console.text import escaped
from .border import check_arrow
from .parquet_bounds import check_parquet

FORMATS = ("parquet", "arrow", "csv", "json", "imagefolder", "webdataset")
"""Formats of tables, as the `datasets` library calls its readers, that hfgen lets it read."""


def guard(builder: Any) -> None:
    """Make a builder of the `datasets` library look at each table before it reads it.

    Tables here are looked at when they have been downloaded, streamed ones when the stream comes to them. The first
    table of a stream is looked at earlier, since it names the columns.

    Args:
        builder: a `DatasetBuilder`, changed in place.

    Raises:
        ValueError: its format is none of `FORMATS`.
    """
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"its files are of the format {escaped(reader)}, which is not read; the known ones: {known}.")
    if reader in _CHECKS:
        builder._split_generators = _Splits(builder._split_generators, reader)
        builder._generate_tables = _Tables(builder._generate_tables, reader)


def _arrow(places: Iterable[str]) -> None:
    for place in places:
        if "://" not in place:
            check_arrow(Path(place))  # of a stream, the library itself looks at each batch


_CHECKS = {"parquet": check_parquet, "arrow": _arrow}


def _check(places: Iterable[str], reader: str) -> None:
    """Refuse tables that stand for too much, are damaged, or lie in archives, whose size nobody knows."""
    places = [str(place) for place in places]
    for place in places:
        if "::" in place:
            raise ValueError(f"{place[:200]!r} is a compressed table: nobody knows its size. Unpack it.")
    _CHECKS[reader](places)


class _Splits:
    """`_split_generators` of a builder, whose downloads are looked at."""

    def __init__(self, generators: Any, reader: str):
        self.generators, self.reader = generators, reader

    def __call__(self, manager: Any, *args: Any, **kwargs: Any) -> Any:
        download = manager.download

        def checked(urls: Any) -> Any:
            files = download(urls)
            for places in files.values():
                here = [place for place in places if "://" not in place or "::" in place]
                _check(here or places[:1], self.reader)
            return files

        manager.download = checked
        return self.generators(manager, *args, **kwargs)


class _Tables:
    """`_generate_tables` of a builder, which looks at each table of a stream first."""

    def __init__(self, tables: Any, reader: str):
        self.tables, self.reader = tables, reader

    def __call__(self, files: list[str], *args: Any, **kwargs: Any) -> Iterator[Any]:
        _check([file for file in dict.fromkeys(map(str, files)) if "://" in file], self.reader)
        yield from self.tables(files, *args, **kwargs)
