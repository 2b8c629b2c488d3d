"""Captions of images: texts of a column, of files beside the images, or of lines of JSON beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ..console.text import escaped
from ..disk.reading import read_text
from ..options import CaptionDataArgs
from .columns import is_class_label, list_columns, named_or_guessed

CAPTION_NAMES = ("caption", "captions", "text", "prompt", "description", "sentence", "txt")
"""Names that decide between several columns of texts, best first; the same for keys of lines of JSON."""

SIDE = ".txt"
"""Ending of the file with an image's caption: that of 0001.png is 0001.txt."""

LINES = (".jsonl", ".ndjson")
"""Endings of files with a line of JSON for each image, which names it and has its caption."""

CLASS_COLUMN = "label"
"""Column of the classes of a folder, whose names may be captions."""

FILE_NAME = "file_name"
"""Key of an image's file in a line of JSON, as it is in the folders of the `datasets` library."""

MOST_BYTES = 1 << 30
"""Most bytes of a file of captions."""


def check_captions(args: CaptionDataArgs) -> None:
    """Raise ValueError for captions of a stream: all of them must be known before the training begins."""
    if args.streaming:
        raise ValueError("--streaming can't be used with captions, all of which are read beforehand. Leave it out.")


def read_captions(rows: Any, args: CaptionDataArgs) -> tuple[Tensor, list[str]]:
    """Return the number of each row's caption, int64 (N,), and the captions: distinct ones, in order of appearance.

    Raises:
        ValueError: no column or several may hold captions, or rows have none; lists columns or names a row. Or the rows
            are a stream.
    """
    check_captions(args)
    column = named_or_guessed(rows.features, args, "caption_column", [_is_text, is_class_label], CAPTION_NAMES)
    if column is None:
        raise ValueError(
            f"'{args.dataset}' has no captions: no column of texts, and, of a folder of images, neither files *{SIDE} "
            f"nor lines of JSON (*{LINES[0]}) beside them. Add them, or give --caption_column. "
            f"{list_columns(rows.features)}"
        )
    names, values = getattr(rows.features[column], "names", None), rows[column][:]
    texts = [names[value] if names and value is not None and value >= 0 else value for value in values]
    missing = [row for row, text in enumerate(texts) if not isinstance(text, str)]
    if missing:
        raise ValueError(
            f"{len(missing)} rows have no caption in column '{column}' (row {missing[0]} is the first). Give each "
            "image a text; an empty one is a text, too."
        )
    number = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return torch.tensor([number[text] for text in texts]), list(number)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def captions_beside(images: Sequence[Any], others: Sequence[Any], key: str | None) -> list[str] | None:
    """Return the captions of images by the files beside them; None if there are no such files, or texts where the names
    of classes are asked for.

    Args:
        images, others: files of a folder or an archive, see `hfgen.data.image_folder.File`.
        key: of the caption in lines of JSON; None: the first of `CAPTION_NAMES` that a line has.

    Raises:
        ValueError: captions are in files and in lines of JSON, or some images have none, or they can't be read.
    """
    sides = {_home(file): file for file in others if file.place.suffix.lower() == SIDE}
    texts = {image: sides[_home(image)] for image in images if _home(image) in sides}
    lines = [file for file in others if file.place.suffix.lower() in LINES]
    if texts and lines:
        first = next(iter(texts.values()))
        raise ValueError(f"Captions are both in {first.name} and in {lines[0].name}. Remove one kind of files.")
    if not texts and not lines:
        return None
    if texts and key == CLASS_COLUMN:
        return None
    if texts and key not in (None, CAPTION_NAMES[0]):
        first = next(iter(texts.values()))
        raise ValueError(f"--caption_column {key} does nothing with captions in files, as {first.name}. Leave it out.")
    found = {image: _text_of(file).strip() for image, file in texts.items()} if texts else _of_lines(images, lines, key)
    if missing := [image for image in images if image not in found]:
        where = f"{missing[0].place.with_suffix(SIDE)}" if texts else f"a line for it in {lines[0].place}"
        raise ValueError(
            f"{len(missing)} of {len(images)} images have no caption: {missing[0].place} is the first. Add {where}, or "
            "remove the image."
        )
    return [found[image] for image in images]


def _home(file: Any) -> tuple[str | None, PurePosixPath]:
    """Return the archive of a file, and its place without the ending: what an image and its caption share."""
    inside = file.content is not None or file.location is not None
    return (str(file.path) if inside else None, file.place.with_suffix(""))


def _text_of(file: Any) -> str:
    """Return the text of a file of captions."""
    try:
        if file.content is not None:
            return file.content.decode("utf-8-sig")
        return read_text(file.path, MOST_BYTES).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} holds no text in UTF-8: {error}.") from None


def _of_lines(images: Sequence[Any], lines: Sequence[Any], key: str | None) -> dict[Any, str]:
    """Return the captions of images that lines of JSON name, below the folder that the lines lie in."""
    by_place = {str(image.place): image for image in images}
    found: dict[Any, str] = {}
    for file in lines:
        for number, line in enumerate(_text_of(file).splitlines(), 1):
            if line.strip():
                name, caption = _pair(line, f"{file.name}, line {number}", key)
                image = by_place.get(str(file.place.parent / name))
                if image is not None and found.setdefault(image, caption) != caption:
                    raise ValueError(f"{file.name}, line {number}: {name} has another caption in an earlier line.")
    return found


def _pair(line: str, where: str, key: str | None) -> tuple[str, str]:
    """Return the name of the file and the caption of a line of JSON."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}.") from None
    entry = entry if isinstance(entry, Mapping) else {}
    keys = [name for name in ((key,) if key else CAPTION_NAMES) if isinstance(entry.get(name), str)]
    if not isinstance(entry.get(FILE_NAME), str) or not keys:
        asked, has = repr(key) if key else " or ".join(map(repr, CAPTION_NAMES[:3])), ", ".join(map(str, entry))
        raise ValueError(
            f"{where} has {escaped(has) or 'no keys'}; it needs {FILE_NAME!r}, and a text as {asked}; see "
            "--caption_column."
        )
    return entry[FILE_NAME], entry[keys[0]]
