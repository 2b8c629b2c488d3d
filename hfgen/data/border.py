"""The border of a data set: which files and addresses its tables and its card may name.

A table of images may hold paths in the place of images, and the card of a data set (README.md) the places of its
tables. Both come with the data. They are followed within the data set, and nowhere else.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..console.text import first_line
from ..disk.reading import check_regular, read_bytes, read_object, read_text
from ..disk.yaml_files import parse_yaml
from .archives import is_location, read_location

CARDS = ("README.md", ".huggingface.yaml")
"""Files in which the `datasets` library looks for the places of tables."""

PLACES = ("data_files", "data_dir")
"""Entries of a card that are such places."""

CARD_BYTES, CARD_VALUES = 4 << 20, 200_000
"""Most bytes and values of a card: that of a data set in hundreds of languages is long."""

PACKED = ("zip", "tar", "gzip", "bz2", "xz", "lzma", "zstd")
"""Protocols of fsspec for a file in an archive: zip://a.png::images.zip."""

LARGEST_IMAGE = 1 << 30
"""Bytes of an image file, at most."""


class OutsideError(ValueError):
    """A table names a file or an address outside of its data set."""


@dataclasses.dataclass(frozen=True)
class Border:
    """The files and addresses of a data set.

    Attributes:
        name: of the data set, for messages.
        roots: folders whose files belong to it; relative paths begin at the first one.
        addresses: patterns of the beginnings of addresses that belong to it.
    """

    name: str
    roots: tuple[str, ...]
    addresses: tuple[str, ...] = ()

    def place(self, named: str) -> str:
        """Return the path or address that a cell means.

        Raises:
            OutsideError: it lies outside of the data set.
        """
        *packed, last = named.split("::")
        inner = all(part.partition("://")[0] in PACKED and "://" in part for part in packed)
        if "://" in last:
            inside = self.holds_address(last)
        else:
            last = os.path.realpath(os.path.join(self.roots[0], last))
            inside = any(
                PurePosixPath(Path(last).as_posix()).is_relative_to(Path(root).as_posix()) for root in self.roots
            )
        if not (inner and inside and "\x00" not in named):
            raise OutsideError(
                f"A table of {self.name!r} names {named[:200]!r}, which lies outside of the data set. Images are read "
                "from the table itself, or from files of the data set by relative paths."
            )
        return "::".join([*packed, last])

    def holds_address(self, address: str) -> bool:
        """Return whether an address belongs to the data set."""
        parts = re.split(r"[/\\\\]|%2f|%5c", address, flags=re.IGNORECASE)
        return any(re.match(pattern, address) for pattern in self.addresses) and ".." not in parts


def border_of_hub(name: str, cache: str | None) -> Border:
    """Return the border of a data set on the Hub: its files there, and their copies in the caches.

    Args:
        name: of the data set; one without an owner stands for that of any owner.
        cache: folder of the `datasets` library; None: its own.
    """
    import datasets
    from huggingface_hub import constants

    downloads = Path(cache or datasets.config.HF_DATASETS_CACHE, "downloads")
    owner = "" if "/" in name else r"(?:[\w.-]+/)?"
    copies = [downloads, Path(datasets.config.DOWNLOADED_DATASETS_PATH)]
    hub = Path(constants.HF_HUB_CACHE)
    copies += [hub / f"datasets--{name.replace('/', '--')}", *(hub.glob(f"datasets--*--{name}") if owner else [])]
    own = owner + re.escape(name)
    addresses = (rf"hf://datasets/{own}[@/]", rf"{re.escape(constants.ENDPOINT)}/datasets/{own}/resolve/")
    return Border(name, tuple(os.path.realpath(path) for path in copies), addresses)


def read_file(named: str, border: Border | None) -> bytes:
    """Return the contents of the file that a cell of a table names.

    Args:
        named: path or address.
        border: of the data set; None: the caller made the table, and any path is read.

    Raises:
        ValueError: the place lies outside of the data set, or is no regular file, or the file is too large.
        OSError: it can't be read.
    """
    if border is None and is_location(named):  # of a member of an archive, which hfgen itself has listed
        return read_location(named)
    place = named if border is None else border.place(named)
    if "://" not in place:
        return read_bytes(place, LARGEST_IMAGE)
    import fsspec

    with fsspec.open(place, "rb") as file:
        return file.read(LARGEST_IMAGE)


def check_card(text: str, name: str) -> None:
    """Refuse a card, or the YAML file in its place, whose tables lie outside of the data set.

    Args:
        text: its contents.
        name: of the file, for messages.

    Raises:
        ValueError: names the file and the place; or the YAML is damaged.
    """
    if (front := front_matter(text, name)) is None:
        return
    for key, place in places_in(parse_yaml(front, name, CARD_VALUES)):
        parts = PurePosixPath(place.replace("\\", "/")).parts
        if "://" in place or "::" in place or ".." in parts or place.startswith(("/", "\\", "~")) or place[1:2] == ":":
            raise ValueError(f"{name} has {key}: {place[:200]!r}, which lies outside of the data set. Take it out.")


def front_matter(text: str, name: str) -> str | None:
    """Return the YAML of a card, which a file of Markdown begins with; None if it has none."""
    if not name.endswith(".md"):
        return text
    text = text.lstrip("\ufeff")
    return text[4:].partition("\n---")[0] if text.startswith("---\n") else None


def places_in(values: Any) -> Iterator[tuple[str, str]]:
    """Yield the places of tables that the values of a card name, with the key."""
    yield from _places(values.get("configs") if isinstance(values, dict) else None)


def _places(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts under PLACES in nested lists and objects, with the key."""
    if isinstance(values, str) and key:
        yield key, values
    elif isinstance(values, list):
        for value in values:
            yield from _places(value, key)
    elif isinstance(values, dict):
        for name, value in values.items():
            yield from _places(value, name if name in PLACES else "path" if key and name == "path" else "")


def check_folder(folder: Path) -> None:
    """Refuse a folder of tables whose card leads outside, or that holds tables or cards that are no regular files.

    Raises:
        ValueError: names the file.
        OSError: a file can't be read.
    """
    for name in (name for name in CARDS if (folder / name).exists()):
        text = read_text(folder / name, CARD_BYTES)
        check_card(text, str(folder / name))
    for here, _, names in os.walk(folder):
        for path in (Path(here, name) for name in names):
            if path.exists():
                check_regular(path)
            if path.suffix == ".arrow":
                check_arrow(path)


def check_saved(folder: Path) -> None:
    """Refuse a folder of `save_to_disk` whose lists name files elsewhere.

    Raises:
        ValueError: names the list and the place, or a file that is damaged.
        OSError: a file can't be read.
    """
    parts = [folder]
    if (folder / "dataset_dict.json").exists():
        splits = read_object(folder / "dataset_dict.json").get("splits")
        _check_names(folder / "dataset_dict.json", splits)
        parts = [folder / name for name in splits]
    for part in parts:
        files = read_object(part / "state.json").get("_data_files")
        if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
            raise ValueError(f"{part / 'state.json'} is damaged: it lists no _data_files.")
        names = [file.get("filename") for file in files]
        _check_names(part / "state.json", names)
        read_object(part / "dataset_info.json")
        for name in names:
            check_arrow(part / name)


def check_arrow(path: Path) -> None:
    """Refuse a damaged file of Arrow: its offsets are used as they are later on, and may lead out of the memory.

    Raises:
        ValueError: the file is damaged, or no regular file.
        OSError: it can't be read.
    """
    import pyarrow

    check_regular(path)
    try:
        with pyarrow.memory_map(str(path)) as file:
            try:
                batches = iter(pyarrow.ipc.open_stream(file))
            except pyarrow.ArrowInvalid:
                opened = pyarrow.ipc.open_file(file)
                batches = map(opened.get_batch, range(opened.num_record_batches))
            for batch in batches:
                batch.validate(full=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error


def _check_names(path: Path, names: Any) -> None:
    """Raise ValueError unless this is a list of names of files beside the list."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is damaged: it lists no names of files.")
    for name in names:
        if PurePosixPath(name.replace("\\", "/")).name != name or name in ("", ".", "..") or "\x00" in name:
            raise ValueError(f"{path} names {name[:200]!r}; only files beside it are read.")


def check_files(data_files: Any, border: Border) -> None:
    """Refuse tables that the `datasets` library found outside of a data set, wherever its card sent it.

    Args:
        data_files: split -> paths or addresses.
        border: of the data set.

    Raises:
        ValueError: names the place.
    """
    for place in (str(place) for places in (data_files or {}).values() for place in places):
        if "://" in place:
            inside = border.holds_address(place)
        else:
            inside = os.path.abspath(place).startswith(tuple(root + os.sep for root in border.roots))
        if not inside:
            raise ValueError(f"{border.name!r} takes a table from {place[:200]!r}, outside of the data set.")


def fetched_cards(name: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of the cards of a data set on the Hub, as far as they can be fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for file in CARDS:
        try:
            path = hf_hub_download(name, file, repo_type="dataset")
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
            continue  # there is none; what else is wrong, the loading itself says
        yield f"{name}/{file}", read_text(path, CARD_BYTES)
