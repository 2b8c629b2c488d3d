"""What the files of a data set are, without a cache of them: looks at many, and which options do nothing for them."""

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from ..console.text import listed, sentence
from ..options import DataArgs
from ..utils.pictures import open_image
from .findings import SHOWN, Findings, is_deep_grey
from .sources import CorruptImageError, file_bytes

CHUNK = 64
"""Number of rows that a thread reads at once."""


def survey(data: Any) -> Findings:
    """Decode evenly spaced images of an `ImageData` without a cache, and return what was found. Nobody waits for all of
    them here."""
    decoder = dataclasses.replace(data.decoder, findings=Findings())
    picked = range(0, len(data.rows), math.ceil(len(data.rows) / CHUNK))
    for row, cell in zip(picked, data.rows[list(picked)][decoder.column], strict=True):
        with contextlib.suppress(CorruptImageError):  # which is an error when the image is read
            decoder(cell, f"row {row}")
    return decoder.findings


def any_image(data: Any, test: Callable[[Image.Image], bool]) -> bool:
    """Return whether a test holds for any image of an `ImageData` without a cache. Reads the headers of files up to the
    first one."""

    def found(start: int) -> bool:
        for cell in data.rows[start : start + CHUNK][data.decoder.column]:
            with contextlib.suppress(Exception):  # a corrupt image is an error when it is decoded
                if test(open_image(io.BytesIO(file_bytes(cell, data.decoder.border)))):
                    return True
        return False

    starts = range(0, len(data.rows), CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool, contextlib.closing(pool.map(found, starts)) as flags:
        return any(flags)


def idle_options(data: Any, args: DataArgs, findings: Findings, own: bool) -> list[str]:
    """Return what to tell of options that do nothing for some or all of the images.

    Args:
        data: the `ImageData`.
        args: its options.
        findings: of all images, if they are cached; else of some.
        own: whether the options were given for these images.

    Raises:
        ValueError: `levels` does nothing for all of them, and was given for them.
    """
    found = []
    if not args.center_crop and args.resolution is None and own:
        found.append("--no_center_crop does nothing without --resolution: the images keep their size.")
    if args.levels is None or not findings.other:
        return found
    about = f"--levels {args.levels} is for grey images of 16 bits"
    others = listed(sorted(findings.other), SHOWN)
    if data.streaming:
        return [*found, sentence(f"{about}, and the first image is none: {others}")]
    if findings.largest or (not data.in_memory and any_image(data, is_deep_grey)):
        return [*found, sentence(f"{about}; others stay as they are: {others}")]
    if own:
        raise ValueError(f"{about}, and {data.name} has none, but {others}. Leave the option out.")
    return [*found, f"{about}, and these are none; they stay as they are."]
