"""Images as tokens: their patches, row by row."""

import torch.nn.functional as F
from torch import Tensor

from .layers import pair


class PatchGrid:
    """The patches of images (B, C, H, W) as tokens (B, N, D), row by row.

    Attributes:
        rows, columns: patches of an image; N is their product.
        length: N.
        size: D = C p^2, the numbers of a patch.
        side: p.

    Args:
        sample_size: H = W, or (H, W).
        channels: C.
        patch_size: p.

    Raises:
        ValueError: patches do not tile the image, or have no pixels.
    """

    def __init__(self, sample_size: int | tuple[int, int], channels: int, patch_size: int):
        height, width = pair(sample_size)
        check_tiling(height, width, patch_size)
        self.rows, self.columns, self.side = height // patch_size, width // patch_size, patch_size
        self.length, self.size = self.rows * self.columns, channels * patch_size**2

    def tokens(self, x: Tensor) -> Tensor:
        """Return the patches (B, N, D) of images."""
        return F.pixel_unshuffle(x, self.side).flatten(2).transpose(1, 2)

    def image(self, tokens: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of patches."""
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (self.rows, self.columns)), self.side)

    def tokens_above(self, row: int) -> int:
        """Return the number of patches above a row of pixels.

        Raises:
            ValueError: the row is not the first one of patches.
        """
        if row % self.side:
            raise ValueError(f"{row} rows are no whole number of patches of {self.side} x {self.side} pixels.")
        return row // self.side * self.columns


def check_tiling(height: int, width: int, patch_size: int) -> None:
    """Refuse images that square patches do not tile.

    Raises:
        ValueError: patches without pixels; or names two sizes near by that they tile.
    """
    if patch_size < 1:
        raise ValueError(f"{patch_size=} must be at least 1.")
    if height % patch_size or width % patch_size:
        below, above = ([max(1, n // patch_size + k) * patch_size for n in (height, width)] for k in (0, 1))
        raise ValueError(
            f"Images of {height} x {width} are not tiled by patch_size={patch_size}. "
            f"{below[0]} x {below[1]} and {above[0]} x {above[1]} are, or choose a patch_size that divides both sides."
        )
