"""Images as requests carry them: base64 of a file in, PNG out."""

import base64
import binascii
import io
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..utils.provenance import Provenance

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""File formats that are read. All are still images here: a file of several is refused."""


def image_of(text: str, shape: tuple[int, ...], name: str) -> Image.Image:
    """Return the image in the base64 text of an image file.

    The size is read from the file's header and checked before a pixel is decoded, so that no small file grows large.

    Args:
        text: standard base64.
        shape: (C, H, W) of the model's images.
        name: what messages call it.

    Raises:
        ValueError: no base64, no file of `FORMATS`, several images in it, another size than the model's, or a damaged
            file.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} is no base64 text of an image file.") from None
    height, width = shape[-2:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's readers raise many kinds for files that are none
        bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        what = "has too many pixels" if bomb else f"is no image file of the formats {', '.join(FORMATS)}"
        raise ValueError(f"{name} {what}.") from None
    if image.size not in ((width, height), (height, width)):  # the latter: on its side, by its EXIF data
        raise ValueError(
            f"{name} is {image.width} x {image.height} pixels, and this model's images are {width} x {height} (width x "
            "height): crop and resize it first."
        )
    if getattr(image, "is_animated", False):  # not `n_frames`, which reads the whole file of a GIF
        raise ValueError(f"{name} has several pictures. Send one of them.")
    try:
        image.load()
    except Exception:
        raise ValueError(f"{name} is damaged: its pixels can't be read.") from None
    return image


def png_of(image: Image.Image, provenance: Provenance | None = None) -> bytes:
    """Return an image as a PNG file, with its provenance."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({} if provenance is None else provenance.options("PNG")))
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    """Return bytes as a base64 text."""
    return base64.b64encode(data).decode("ascii")


def zip_of(files: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a zip file of files (name, content), the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def pictures_of(pipeline: Any, samples: Any) -> list[Image.Image]:
    """Return samples (B, C, H, W) in [-1, 1] of a pipeline as PIL images."""
    return pipeline.to_images(samples.clamp(-1, 1), "pil")
