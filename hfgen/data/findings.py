"""What decoding finds that a user should know: animations, enormous images, and grey values that use few of 16 bits."""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from ..console.text import listed
from ..utils.pixels import WHITE

SHOWN = 3
"""Images that a sentence names."""


@dataclasses.dataclass
class Findings:
    """Notes on images, taken while they are decoded. Several threads may add to one object.

    Attributes:
        animations: names of images with several frames, of which the first is read.
        enormous: names of images with more pixels than Pillow thinks safe (`PIL.Image.MAX_IMAGE_PIXELS`).
        largest: largest values of the 16-bit images.
    """

    animations: set[str] = dataclasses.field(default_factory=set)
    enormous: set[str] = dataclasses.field(default_factory=set)
    largest: set[int] = dataclasses.field(default_factory=set)

    def look(self, image: Image.Image, name: str) -> None:
        """Note what is seen in the header of an opened image."""
        if _is_animated(image):
            self.animations.add(name)
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            self.enormous.add(f"{name} has {image.width:,} × {image.height:,} pixels")

    def measure(self, values: np.ndarray[Any, Any]) -> None:
        """Note the largest value of a 16-bit image."""
        self.largest.add(int(values.max()))

    def sentences(self, levels: int | None) -> list[str]:
        """Return what to tell the user. `levels`: the option; None if it was not given."""
        found = []
        if self.animations:
            many = len(self.animations) > 1
            count = f"{len(self.animations):,} animation{'s' * many}"
            frame = "their first frames" if many else "its first frame"
            found.append(f"{count}, read as {frame}: {listed(sorted(self.animations), SHOWN)}.")
        if self.enormous:
            found.append(f"very large: {listed(sorted(self.enormous), SHOWN)}.")
        bits = max(self.largest, default=WHITE).bit_length()
        if levels is None and 0 < bits < 16:
            found.append(
                f"the 16-bit images hold values up to {max(self.largest):,} ({bits} bits), and {WHITE:,} is white, so "
                f"they are dark. --levels {2**bits - 1} makes {2**bits - 1:,} white."
            )
        return found


def _is_animated(image: Image.Image) -> bool:
    """Return whether an image has several frames. The second picture of an MPO is a preview of the first."""
    try:
        return image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # a damaged second frame, which nobody reads
        return False
