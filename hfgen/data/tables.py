"""Which tables make a folder a data set of the `datasets` library, instead of images."""

import fnmatch
from collections.abc import Iterable
from pathlib import Path

from ..disk.reading import read_text
from ..disk.yaml_files import parse_yaml
from .border import CARD_BYTES, CARD_VALUES, CARDS, front_matter, places_in
from .image_folder import ARCHIVES, LEFT_BY_PROGRAMS, SPLITS, is_image, visit

TABLES = ("*.parquet", "*.arrow", "metadata.csv", "metadata.jsonl")
"""Names of tables."""

SPLIT_FOLDERS = frozenset(name for names in SPLITS.values() for name in names)


def deciding_tables(folder: Path) -> list[Path]:
    """Return the tables that a folder is read by; none if it is read as images.

    They are tables at its top, or those that a card at its top names. If all folders at its top are splits, tables at
    the top of these count as well. Tables deeper down are read if there are no images beside them anywhere: a stray one
    in a folder of images decides nothing.

    Raises:
        ValueError: links that can't be followed.
        OSError: a folder can't be read.
    """
    if found := _tables(folder) or _cards(folder):
        return found
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in LEFT_BY_PROGRAMS]
    if all(path.name.lower() in SPLIT_FOLDERS for path in below):
        found = [table for path in below for table in _tables(path)]
    return found or _without_images(folder)


def is_table(name: str) -> bool:
    """Return whether a file has the name of a table."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in TABLES)


def _tables(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if is_table(path.name) and path.exists() and not path.is_dir()]


def _cards(folder: Path) -> list[Path]:
    """Return the cards at the top that name tables."""
    cards = [folder / name for name in CARDS if (folder / name).is_file()]
    return [path for path in cards if _names_tables(path)]


def _names_tables(card: Path) -> bool:
    """Return whether a card names tables; False for one that can't be read, which only a folder of tables refuses."""
    try:
        front = front_matter(read_text(card, CARD_BYTES), card.name)
        return front is not None and any(places_in(parse_yaml(front, str(card), CARD_VALUES)))
    except (ValueError, OSError):
        return False


def _without_images(folder: Path) -> list[Path]:
    """Return all tables below a folder; none if an image or an archive is there, too."""
    found: list[Path] = []
    for here, names in visit(folder):
        if any(is_image(name) or name.lower().endswith(ARCHIVES) for name in names):
            return []
        found += [Path(here, name) for name in names if is_table(name)]
    return found


def stray_tables(names: Iterable[str]) -> list[str]:
    """Return those of these paths whose files have names of tables."""
    return [name for name in names if is_table(Path(name).name)]
