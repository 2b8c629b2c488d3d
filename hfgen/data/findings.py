"""What decoding finds that a user should know: animations, enormous images, and grey values that use few of 16 bits."""

import dataclasses
import re
from typing import Any

import numpy as np
from PIL import Image

from ..console.text import listed, sentence
from ..utils.pixels import WHITE

SHOWN = 3
"""Images that a sentence names."""


@dataclasses.dataclass
class Findings:
    """Notes on images, taken while they are decoded. Several threads may add to one object.

    Attributes:
        animations: names of images with several frames, of which the first is read.
        enormous: names of images with more pixels than Pillow thinks safe (`PIL.Image.MAX_IMAGE_PIXELS`).
        largest: largest values of the grey images of 16 bits.
        brightest: largest values 0..255 of the images in colour of 16 bits, of which Pillow reads the upper 8.
        other: names of the images that are no grey ones of 16 bits, if `look` is asked to note them.
    """

    animations: set[str] = dataclasses.field(default_factory=set)
    enormous: set[str] = dataclasses.field(default_factory=set)
    largest: set[int] = dataclasses.field(default_factory=set)
    brightest: set[int] = dataclasses.field(default_factory=set)
    other: set[str] = dataclasses.field(default_factory=set)

    def look(self, image: Image.Image, name: str, note_other: bool = False) -> None:
        """Note what is seen in the header of an opened image."""
        if note_other and not is_deep_grey(image):
            self.other.add(name)
        if _is_animated(image):
            self.animations.add(name)
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            self.enormous.add(f"{name} has {image.width:,} × {image.height:,} pixels")

    def measure(self, values: np.ndarray[Any, Any]) -> None:
        """Note the largest value of a grey image of 16 bits."""
        self.largest.add(int(values.max()))

    def measure_colour(self, image: Image.Image) -> None:
        """Note the largest value of a loaded image in colour of 16 bits."""
        self.brightest.add(max(high for _, high in image.convert("RGB").getextrema()))

    def sentences(self, levels: int | None) -> list[str]:
        """Return what to tell the user. `levels`: the option; None if it was not given."""
        found = []
        if self.animations:
            many = len(self.animations) > 1
            count = f"{len(self.animations):,} animation{'s' * many}"
            frame = "their first frames" if many else "its first frame"
            found.append(sentence(f"{count}, read as {frame}: {listed(sorted(self.animations), SHOWN)}"))
        if self.enormous:
            found.append(sentence(f"very large: {listed(sorted(self.enormous), SHOWN)}"))
        bits = max(self.largest, default=WHITE).bit_length()
        if levels is None and 0 < bits < 16:
            found.append(
                f"the 16-bit images hold values up to {max(self.largest):,} ({bits} bits), and {WHITE:,} is white, so "
                f"they are dark. --levels {2**bits - 1} makes {2**bits - 1:,} white."
            )
        most = 256 * max(self.brightest, default=255) + 255
        if most.bit_length() < 16:
            found.append(
                f"the images in colour of 16 bits hold values up to {most:,} ({most.bit_length()} bits) at most, and "
                f"{WHITE:,} is white, so they are dark. Scale them beforehand; --levels is for grey ones."
            )
        return found


def is_deep_grey(image: Image.Image) -> bool:
    """Return whether an opened image is a grey one of 16 bits. Its pixels need not be loaded."""
    return image.mode.startswith("I")


def is_deep_colour(image: Image.Image) -> bool:
    """Return whether an opened image, whose pixels are not loaded, is one in colour of 16 bits, which Pillow cuts to
    the upper 8."""
    tiles = getattr(image, "tile", None) or []
    return not is_deep_grey(image) and any(re.search(r";16", str(tile[3])) for tile in tiles)


def _is_animated(image: Image.Image) -> bool:
    """Return whether an image has several frames. The second picture of an MPO is a preview of the first."""
    try:
        return image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # a damaged second frame, which nobody reads
        return False
