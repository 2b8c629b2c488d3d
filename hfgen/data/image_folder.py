"""A folder or an archive of images, read by one rule, which `FolderListing` states.

datasets' own reader of folders is not used: it leaves images out by the names of their files and folders, by brackets
in the path and by text files beside them, without a word.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..console.text import escaped, listed
from ..disk.saves import is_unfinished
from ..utils.devices import memory
from .archives import DAMAGE, location_of, members
from .captions import LINES, SIDE, captions_beside

SUFFIXES = frozenset(
    f".{name}"
    for names in ("png jpg jpeg jpe jfif webp gif", "bmp dib tif tiff ppm pgm pbm pnm")
    for name in names.split()
)
"""Endings of names of image files, in lower case."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Endings of names of archives, in lower case."""

LEFT_BY_PROGRAMS = frozenset({"__MACOSX", ".git", ".ipynb_checkpoints", ".cache"})
"""Folders that programs leave, which hold no images of the data set."""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Split -> names of its folder, in lower case."""

LABEL = ".cls"
"""Ending of the file with an image's class, in shards of WebDataset."""

LARGEST = 1 << 30
"""Bytes of a file in an archive, at most: beyond any image that Pillow opens."""

VISITS = 100
"""Times that links may lead to one folder."""

SHOWN = 3
"""Skipped files that a summary names."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the data set.

    Attributes:
        place: its path below the folder. What an archive holds lies where the archive lies.
        path: where it lies; the archive's for a member.
        content: the bytes of a label in an archive, or of an image that has no location there.
        location: of an image in an archive, see `hfgen.data.archives`.
        readable: False for a link to nothing, a pipe, a device, and what a later file of an archive replaces: they are
            skipped whatever their names.
    """

    place: PurePosixPath
    path: Path
    content: bytes | None = None
    location: str | None = None
    readable: bool = True

    @property
    def name(self) -> Path:
        """The path of the file, or that of a member below its archive, for messages."""
        return self.path if self.content is None and self.location is None else self.path / self.place.name


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The images of one split.

    Attributes:
        files: the images, sorted by their places.
        labels: class of each image; None without classes.
        captions: text of each image; None without captions.
        names: names of the classes.
        skipped: places of all files of the folder that are no images.
        splits: splits of the folder; empty if it has none.
        texts: number of the skipped files that could be captions, as they lie beside images.
    """

    files: Sequence[File]
    labels: Sequence[int] | None
    captions: Sequence[str] | None
    names: Sequence[str]
    skipped: Sequence[PurePosixPath]
    splits: Sequence[str]
    texts: int = 0

    @property
    def summary(self) -> str:
        """What was taken, such as "2,013 images, 3 classes, 4 files skipped: notes.txt, ..."."""
        words = [_count(len(self.files), "image"), _count(len(self.names), "class") if self.names else "no classes"]
        if self.splits:
            words.insert(0, f"splits {', '.join(map(escaped, self.splits))}")
        if self.skipped:
            words.append(f"{_count(len(self.skipped), 'file')} skipped: {listed(self.skipped, SHOWN)}")
        return ", ".join(words)

    def rows(self, caption: str = "caption") -> Any:
        """Return the images as a datasets.Dataset with the columns image, label if they have classes, and caption if
        they have captions."""
        import datasets

        cells = [{"bytes": file.content, "path": file.location or str(file.name)} for file in self.files]
        columns: dict[str, list] = {"image": cells}
        features: dict[str, Any] = {"image": datasets.Image()}
        if self.labels is not None:
            columns["label"], features["label"] = list(self.labels), datasets.ClassLabel(names=list(self.names))
        if self.captions is not None:
            columns[caption], features[caption] = list(self.captions), datasets.Value("string")
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@dataclasses.dataclass(frozen=True)
class FolderListing:
    """The files of a folder or an archive, listed once for all splits.

    Every file with the ending of an image counts, at any depth, through links, and in archives. If the folders at the
    top are `train` and `val` or `test` alone, or a split is asked for that is the name of a folder there, they are
    splits; else all images are the split `train`. Classes are the first level of folders that has several, if every
    image lies in one. They are numbered by their sorted names, alike in all splits. In shards of WebDataset, the class
    of 0001.jpg is the number in 0001.cls.

    Attributes:
        folder: the folder, or the archive.
        images: its images, sorted by their places; at least one.
        others: all other files.
        captions: whether captions are wanted of the images, see `hfgen.data.captions.captions_beside`.
    """

    folder: Path
    images: Sequence[File]
    others: Sequence[File]
    captions: bool = False

    def has_folder(self, name: str) -> bool:
        """Return whether images lie in a folder of this name at the top."""
        return any(len(file.place.parts) > 1 and file.place.parts[0] == name for file in self.images)

    def split(self, name: str, key: str | None = None) -> ImageFiles:
        """Return the images of a split, with captions that lines of JSON may have under a key.

        Raises:
            ValueError: there is no such split; lists those that are. Or captions are wanted, and some can't be read.
        """
        splits = _splits(self.images, name)
        name = next((split for split, folders in splits.items() if name in folders), name)  # val of validation
        if name not in (splits or ("train",)):
            raise ValueError(f"{self.folder} has no split '{name}', only {', '.join(splits) or 'train'}.")
        classes = _numbers_beside(self.images, self.others) or _folders(self.images, depth=int(bool(splits)))
        names = sorted(set(classes.values()), key=lambda name: (len(name), name) if name.isdecimal() else (0, name))
        index = {name: number for number, name in enumerate(names)}
        taken = [file for file in self.images if not splits or file.place.parts[0] in splits[name]]
        labels = [index[classes[file]] for file in taken] if classes else None
        captions = captions_beside(taken, self.others, key) if self.captions else None
        skipped = [file.place for file in self.others if not _is_used(file, bool(classes), captions is not None)]
        beside = {file.place.with_suffix(SIDE) for file in taken}
        texts = len(beside.intersection(skipped))
        return ImageFiles(taken, labels, captions, names, skipped, list(splits), texts)


def list_folder(folder: Path, captions: bool = False) -> FolderListing:
    """List the files of a folder or an archive, with captions beside the images if they are wanted.

    Raises:
        ValueError: there are no images, or names or archives that can't be read.
        OSError: a file can't be read.
    """
    images, others = [], []
    for file in sorted(_walk(folder, captions), key=lambda file: file.place.parts):
        (images if file.readable and is_image(file.place.name) else others).append(file)
    _refuse_names(images)
    if not images:
        raise ValueError(
            f"{folder} holds no images ({_count(len(others), 'other file')}). A folder needs image files, archives of "
            "them, or parquet files."
        )
    return FolderListing(folder, images, others, captions)


def is_image(name: str) -> bool:
    """Return whether a file has the name of an image, that is no unfinished one of hfgen."""
    suffix = PurePosixPath(name).suffix.lower()
    hidden = name.startswith("._")  # macOS adds such a file to each
    return suffix in SUFFIXES and not hidden and not is_unfinished(name)


def _splits(images: Iterable[File], asked: str) -> dict[str, set[str]]:
    """Return split -> its folders at the top; {} if the folders there are no splits."""
    tops = {file.place.parts[0] if len(file.place.parts) > 1 else "" for file in images}
    known = {split: {top for top in tops if top.lower() in names} for split, names in SPLITS.items()}
    found = {split: folders for split, folders in known.items() if folders}
    if set().union(*known.values()) == tops and len(found) > 1 and "train" in found:
        return found
    return {asked: {asked}} | {top: {top} for top in sorted(tops - {asked, ""})} if asked in tops - {"train"} else {}


def _folders(images: Sequence[File], depth: int) -> dict[File, str]:
    """Return the class of each image by the first level of folders, from `depth` on, that has several.

    {} if an image lies outside of them.
    """
    while all(len(file.place.parts) > depth + 1 for file in images):
        if len({file.place.parts[depth] for file in images}) > 1:
            return {file: file.place.parts[depth] for file in images}
        depth += 1
    return {}


def _numbers_beside(images: Sequence[File], others: Sequence[File]) -> dict[File, str]:
    """Return the class of each image by the file .cls beside it in its archive; {} if one has none."""
    numbers = {(file.path, file.place): file.content for file in others if file.content is not None}
    found = {file: numbers.get((file.path, file.place.with_suffix(LABEL))) for file in images}
    return {} if None in found.values() else {file: _label(file, text) for file, text in found.items()}


def _label(file: File, text: bytes) -> str:
    try:
        name = text.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name.with_suffix(LABEL)} holds no class as text: {error}") from None
    if not name:
        raise ValueError(
            f"{file.name.with_suffix(LABEL)} holds no class: it is empty. Write one, or remove all {LABEL}."
        )
    return name


def _refuse_names(images: Iterable[File]) -> None:
    """Raise ValueError for a name that a table of rows can't hold."""
    for file in images:
        try:
            (file.location or str(file.name)).encode()
        except UnicodeEncodeError:
            raise ValueError(f"The name {os.fsencode(file.name)!r} is not UTF-8. Rename the file or folder.") from None


def _raise(error: OSError) -> None:
    raise error


def visit(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with the names of its files, through links. A link that leads back up is not followed.

    Raises:
        ValueError: links lead to one folder over and over.
        OSError: a folder can't be read.
    """
    above: dict[str, frozenset[str]] = {}  # folder -> real paths of it and of all folders on the way
    real: dict[str, str] = {}
    visits: collections.Counter[str] = collections.Counter()
    for here, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        parent, name = os.path.split(here)
        plain = parent in real and not os.path.islink(here)
        real[here] = place = os.path.join(real[parent], name) if plain else os.path.realpath(here)
        if place in above.get(parent, ()):
            folders.clear()
            continue
        visits[place] += 1
        if visits[place] > VISITS:
            raise ValueError(f"Links in {root} lead to {place} more than {VISITS:,} times, as {here}. Remove some.")
        above[here] = above.get(parent, frozenset()) | {place}
        folders[:] = [name for name in folders if name not in LEFT_BY_PROGRAMS and not is_unfinished(name)]
        yield here, names


def _walk(root: Path, captions: bool) -> Iterator[File]:
    """Yield all files below a folder, through links and archives."""
    if root.is_file():
        yield from _members(root, PurePosixPath(), captions)
        return
    for here, names in visit(root):
        for name in names:
            path = Path(here, name)
            place = PurePosixPath(path.relative_to(root).as_posix())
            if not path.is_file():
                yield File(place, path, readable=False)
            elif name.lower().endswith(ARCHIVES):
                yield from _members(path, place.parent, captions)
            else:
                yield File(place, path)


def _members(archive: Path, place: PurePosixPath, captions: bool) -> Iterator[File]:
    """Yield the files of an archive: images with their locations, or with their contents where they have none, labels
    and wanted captions with their contents. Nothing else is read.

    Of several files with one name the last one counts, as after unpacking; the others are skipped.
    """
    last: dict[PurePosixPath, File] = {}
    try:
        for file in _all_members(archive, place, captions):
            if file.place in last:
                yield dataclasses.replace(last[file.place], content=None, location=None, readable=False)
            last[file.place] = file
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{archive} can't be read as an archive: {error}") from error
    except DAMAGE as error:
        raise ValueError(f"{archive} can't be read as an archive: {error}") from error
    yield from last.values()


def _all_members(archive: Path, place: PurePosixPath, captions: bool) -> Iterator[File]:
    left = memory() // 4  # contents are held here and as rows
    for name, found, read in members(archive):
        if not _counts(name):
            continue
        inner = place / _below(name)
        if is_image(inner.name) and found is not None:
            _refuse_size(archive, name, found.size, LARGEST)
            yield File(inner, archive, location=location_of(archive, inner.name, found))
            continue
        wanted = _is_read(inner, captions)
        content = read(min(left, LARGEST) + 1) if wanted else None
        _refuse_size(archive, name, len(content or b""), min(left, LARGEST))
        left -= len(content or b"")
        yield File(inner, archive, content, readable=content is not None or not wanted)


def _refuse_size(archive: Path, name: str, size: int, most: int) -> None:
    """Raise ValueError for a file in an archive of more than `most` bytes."""
    if size > most:
        limit = f"{LARGEST:,} bytes" if most == LARGEST else "what a quarter of the memory holds with the others"
        raise ValueError(f"{archive}: {name} has more than {limit}. Unpack the archive, or remove the file.")


def _is_read(place: PurePosixPath, captions: bool) -> bool:
    return is_image(place.name) or place.suffix == LABEL or (captions and place.suffix.lower() in (SIDE, *LINES))


def _is_used(file: File, classes: bool, captions: bool) -> bool:
    """Return whether a file that is no image is read: for its class, or for captions."""
    if file.place.suffix.lower() in (SIDE, *LINES):
        return captions
    return classes and file.content is not None


def _counts(name: str) -> bool:
    return not LEFT_BY_PROGRAMS.intersection(PurePosixPath(name).parts)


def _below(name: str) -> PurePosixPath:
    """Return the name of a member without parts that lead out of the archive."""
    return PurePosixPath(*[part for part in PurePosixPath(name).parts if part not in ("/", "..")])


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"
