"""Sources of images: a Hub data set, a folder, parquet files or a built-in data set, as rows of encoded images.

`open_rows` opens the rows, and a `Decoder` turns an encoded image into pixels. Columns are found in `columns.py`.
"""

import contextlib
import dataclasses
import glob
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps

from ..console.notes import legible_logs, tell
from ..console.text import escaped, first_line, listed, sentence
from ..options import CaptionDataArgs, DataArgs
from ..utils.pictures import open_image
from ..utils.pixels import WHITE, from_16_bits, grey_values
from .archives import readable
from .border import (
    Border,
    OutsideError,
    border_of_hub,
    check_card,
    check_files,
    check_folder,
    check_saved,
    fetched_cards,
    read_file,
)
from .built_in import BUILT_IN
from .findings import Findings, is_deep_colour
from .image_folder import ARCHIVES, list_folder
from .splits import named_parts, refuse_configuration, take_part
from .table_guard import guard
from .tables import deciding_tables, stray_tables

FORMS = (
    "a Hub id ('ylecun/mnist'), a folder or an archive of images, a folder of parquet files or of save_to_disk, a "
    f".parquet file, or a built-in name: {', '.join(map(repr, BUILT_IN))}"
)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""Names of data sets on the Hub."""


class CorruptImageError(ValueError):
    """An image can't be decoded."""


class LevelError(ValueError):
    """A 16-bit image has a value above the one that is to be white."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A function from an encoded image to a uint8 array (C, H, W) with values 0..255, upright as its EXIF data say.

    A grey 16-bit value v becomes 255 v / levels, rounded.

    Attributes:
        column: column of the images, for messages.
        resolution: H = W, reached with an antialiased Lanczos filter; None: images are not resized.
        center_crop: whether to crop the centre square before resizing, instead of squeezing the whole image.
        channels: C; None: 1 for a grey image (a palette counts as colour), else 3.
        background: colour (R, G, B) behind transparent pixels, unless `channels` is 4.
        levels: value of a 16-bit image that is white; None: 65,535.
        findings: notes of what it meets.
        shape: shape (C, H, W) of the first image. Other images need the same H and W, and at most C channels.
        first: name of the first image, for messages.
        border: of the data set that images may be files of; None: the caller made the table.
    """

    column: str
    resolution: int | None = None
    center_crop: bool = True
    channels: int | None = None
    background: tuple[int, int, int] = (255, 255, 255)
    levels: int | None = None
    findings: Findings = dataclasses.field(default_factory=Findings, compare=False)
    shape: tuple[int, int, int] | None = None
    first: str = ""
    border: Border | None = None

    def __call__(self, cell: Any, row: str) -> np.ndarray:
        """Decode the image of a cell.

        Args:
            cell: bytes, or a dictionary with "bytes" and "path".
            row: name of the row, for messages.

        Raises:
            CorruptImageError: the image is damaged or has an unsupported mode; names row, and file or column.
            ValueError: the shape does not fit that of the first image, values exceed `levels`, or the cell names a file
                outside of the data set.
            MemoryError: the memory is too small for it, with its name.
        """
        try:
            image = open_image(io.BytesIO(file_bytes(cell, self.border)))
            self.findings.look(image, self.location(cell, row), self.levels is not None)
            deep_colour = is_deep_colour(image)
            ImageOps.exif_transpose(image, in_place=True)  # loads the pixels
            if deep_colour:
                self.findings.measure_colour(image)
            pixels = np.asarray(self.resize(self.convert(image)))
        except OutsideError as error:  # no --skip_corrupt helps
            raise ValueError(f"{row}: {error}") from None
        except LevelError as error:
            raise ValueError(f"{self.location(cell, row)} {error}") from None
        except MemoryError as error:  # the image may be whole
            raise MemoryError(f"{self.location(cell, row)} does not fit into memory while it is decoded") from error
        except Exception as error:  # PIL raises errors of many types for damaged files
            raise CorruptImageError(
                f"{self.location(cell, row)} can't be decoded: {error}\n"
                "Repair or remove the image, or leave out all such images with --skip_corrupt."
            ) from error
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if self.shape and pixels.shape[1:] != self.shape[1:]:
            size, first = (f"{width} × {height} pixels" for _, height, width in (pixels.shape, self.shape))
            raise ValueError(
                f"Images differ in size: {self.location(cell, row)} is {size}, {self.first} is {first}. "
                "Give --resolution to make all images one size."
            )
        if self.shape and len(pixels) > self.shape[0]:
            raise ValueError(
                f"{self.location(cell, row)} is in colour, but {self.first} is grey, and the later images of a stream "
                "are not known. Give --channels 3, or --channels 1 to make all images grey."
            )
        return pixels

    def location(self, cell: Any, row: str) -> str:
        """Return the name of an image for messages: its row, and its file or column."""
        path = cell.get("path") if isinstance(cell, dict) else None
        return f"{row} ({f'file {escaped(readable(path))}' if path else f'column {escaped(self.column)}'})"

    def is_grey(self, image: Image.Image) -> bool:
        """Return whether an opened image is grey after flattening. Its pixels need not be loaded."""
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        return grey and (not image.has_transparency_data or len(set(self.background)) == 1)

    def convert(self, image: Image.Image) -> Image.Image:
        """Convert an image to mode L, RGB or RGBA. Raises ValueError for an unsupported mode."""
        channels = self.channels or (1 if self.is_grey(image) else 3)
        if image.mode == "F":
            raise ValueError("mode F (floating point) is not supported")
        if image.mode.startswith("I"):
            values = grey_values(image)
            if values.max() > (self.levels or WHITE):
                raise LevelError(f"holds the value {values.max():,}, above --levels {self.levels}. Give a larger one.")
            self.findings.measure(values)
            image = Image.fromarray(from_16_bits(values, self.levels or WHITE).astype(np.uint8))
        if channels == 4:
            return image.convert("RGBA")
        if image.has_transparency_data:
            image = flatten(image, self.background)
        return image.convert("L" if channels == 1 else "RGB")

    def resize(self, image: Image.Image) -> Image.Image:
        """Crop the centre square if `center_crop`, and resize to `resolution`."""
        if self.resolution is None:
            return image
        if self.center_crop and image.width != image.height:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        return image.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)


def file_bytes(cell: Any, border: Border | None = None) -> bytes:
    """Return the file that a cell of an image column holds, or whose path it holds.

    Raises:
        ValueError: the cell is empty, or names a file outside of the data set.
        OSError: the file can't be read.
    """
    if isinstance(cell, bytes):
        return cell
    if not cell or (cell.get("bytes") is None and cell.get("path") is None):
        raise ValueError("the cell is empty")
    return read_file(cell["path"], border) if cell.get("bytes") is None else cell["bytes"]


def flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Return a transparent image on an opaque background (R, G, B), in mode RGBA with alpha 255."""
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))


def parse_colour(name: str) -> tuple[int, int, int]:
    """Return (R, G, B), 0..255, for the name of a colour or #rrggbb.

    Raises:
        ValueError: the string is no opaque colour.
    """
    with contextlib.suppress(ValueError):
        colour = ImageColor.getrgb(name)
        if len(colour) == 3:
            return colour
    raise ValueError(f"--background {name} is not an opaque colour: give a name ('white') or '#rrggbb'.")


def open_rows(args: DataArgs) -> Any:
    """Open the split as a datasets.Dataset, or as an IterableDataset if `args.streaming`.

    Raises:
        ValueError: there is no such data set, configuration or split; lists those that exist, or the forms of a name.
    """
    return open_data(args)[0]


def open_data(args: DataArgs) -> tuple[Any, Border | None]:
    """Return what `open_rows` does, and the border of the data set; None where hfgen itself has listed the images."""
    form = _form_of(args)  # which may walk through a large folder
    border = _border_of(form, args)
    with legible_logs():
        return _OPEN[form](args, border), border


def _border_of(form: str, args: DataArgs) -> Border | None:
    path = Path(args.dataset).expanduser()
    if form in ("built-in", "images"):
        return None
    if form == "hub":
        return border_of_hub(args.dataset, args.cache_dir)
    home = os.path.realpath(path if form != "parquet" else path.resolve().parent)
    return Border(args.dataset, (home,))


def _form_of(args: DataArgs) -> str:
    """Return which form of data set the options name, a key of `_OPEN`. Raises ValueError if it has none of them."""
    path = Path(args.dataset).expanduser()
    if path.is_dir():
        if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
            return "saved"
        return "tables" if deciding_tables(path) else "images"
    if path.name.lower().endswith(ARCHIVES) and (path.is_file() or not path.exists()):
        return "images"
    if args.dataset in BUILT_IN:
        return "built-in"
    if path.is_file() and path.suffix == ".parquet":
        return "parquet"
    if not path.exists() and HUB_NAME.fullmatch(args.dataset):
        return "hub"
    problem = "has no known format" if path.exists() else "does not exist"
    raise ValueError(f"--dataset {args.dataset} {problem}. A data set can be {FORMS}.")


def _open_saved(args: DataArgs, _: Border | None) -> Any:
    """Open a folder that `save_to_disk` wrote."""
    import datasets

    path = _folder(args)
    check_saved(path)
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # of many types
        raise ValueError(f"{path} can't be read as a folder of save_to_disk: {first_line(error)}") from error
    parts = dict(saved) if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    return take_part(parts, args, f"--dataset {args.dataset}")


def _open_tables(args: DataArgs, border: Border) -> Any:
    """Open a folder of tables."""
    path = _folder(args).resolve()
    check_folder(path)
    tables = [table.relative_to(path).as_posix() for table in deciding_tables(path)]
    tell(sentence(f"{escaped(args.dataset)}: read by its tables: {listed(tables, 3)}"))
    return _load(args, border, path=str(path), name=args.dataset_config_name)


def _open_parquet(args: DataArgs, border: Border) -> Any:
    """Open one file of parquet."""
    refuse_configuration(args)
    return _load(args, border, path="parquet", data_files=glob.escape(str(Path(args.dataset).expanduser().resolve())))


def _open_hub(args: DataArgs, border: Border) -> Any:
    """Open a data set of the Hub."""
    for name, text in fetched_cards(args.dataset):
        check_card(text, name)
    return _load(args, border, path=args.dataset, name=args.dataset_config_name)


def _open_built_in(args: DataArgs, _: Border | None) -> Any:
    """Open a built-in data set."""
    return take_part(BUILT_IN[args.dataset](), args, f"'{args.dataset}'")


def _open_images(args: DataArgs, _: Border | None) -> Any:
    """Open a folder or an archive of images."""
    path = _folder(args)
    captioned = isinstance(args, CaptionDataArgs)
    listing = list_folder(path, captioned)
    spec = args.dataset_split
    names = {spec: ""} if listing.has_folder(spec) else dict.fromkeys(name for name, _ in named_parts(spec))
    key = args.caption_column if captioned else None
    found = {name: listing.split(name, key) for name in names}
    for name, images in found.items():
        part = f", {escaped(name)}" if images.splits else ""
        tell(sentence(f"{escaped(args.dataset)}{part}: {images.summary}"))
        if images.texts:
            tell(
                f"{images.texts:,} texts beside images are captions to families that read them, such as text_to_image."
            )
    if stray := stray_tables(str(file.place) for file in listing.others):
        tell(sentence(f"{escaped(args.dataset)}: tables below a folder of images are not read: {listed(stray, 3)}"))
    return take_part(
        {name: images.rows(key or "caption") for name, images in found.items()}, args, f"--dataset {args.dataset}"
    )


_OPEN = {
    "saved": _open_saved,
    "tables": _open_tables,
    "images": _open_images,
    "built-in": _open_built_in,
    "parquet": _open_parquet,
    "hub": _open_hub,
}
"""Form of a data set -> what opens it."""


def _folder(args: DataArgs) -> Path:
    """Return the folder or archive, and say so if it has the name of a built-in data set."""
    path = Path(args.dataset).expanduser()
    if args.dataset in BUILT_IN:
        tell(f"{path.resolve()} is used, a folder here, and not the built-in {args.dataset}.")
    return path


def _load(args: DataArgs, border: Border, **source: Any) -> Any:
    """Open a data set through the `datasets` library."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(**source, cache_dir=args.cache_dir)
        check_files(builder.config.data_files, border)
        guard(builder)
        if args.streaming:
            rows = builder.as_streaming_dataset(split=args.dataset_split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=args.dataset_split)
        return rows if rows.features is not None else rows._resolve_features()  # some streams do not declare theirs
    except Exception as error:  # of many types; for an unknown split or configuration it lists those that exist
        raise ValueError(
            f"Can't load split '{args.dataset_split}' of --dataset {args.dataset}: {error}\n"
            f"A data set can be {FORMS}. Select a part of it with --dataset_split and --dataset_config_name."
        ) from error


def select_columns(rows: Any, image: str, label: str | None) -> Any:
    """Return the rows with the columns of images and labels alone. Images stay encoded."""
    import datasets

    rows = rows.select_columns([image, label] if label else [image])
    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    return rows
