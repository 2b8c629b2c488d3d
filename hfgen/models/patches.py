"""Images as tokens: their patches, row by row."""

import torch
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


def sin_cos_positions(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """Compute the fixed position embeddings (height * width, channels), row by row; `channels` is a multiple of 4.

    The first half of the channels encodes the column p and the second half the row p, each as [sin(p w_i), cos(p w_i)]
    with w_i = 10000^(-4i / channels), i < channels / 4 (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, for each
    axis, in the order of the DiT paper's weights).
    """
    steps = torch.arange(channels // 4, device=device, dtype=torch.float32)
    frequencies = 10000.0 ** (-4 / channels * steps)

    def axis(length: int) -> Tensor:
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (length, channels / 2)

    rows = axis(height)[:, None].expand(height, width, channels // 2)
    columns = axis(width)[None].expand(height, width, channels // 2)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


def visible_count(length: int, mask_ratio: float) -> int:
    """Return the number of patches that stay visible of N where round(N mask_ratio) are hidden.

    Raises:
        ValueError: none would be visible, or none hidden.
    """
    hidden = round(length * mask_ratio)
    if not 0 < hidden < length:
        raise ValueError(
            f"mask_ratio={mask_ratio} hides {hidden} of {length} patches. One or more must be hidden and one or more "
            f"visible: give a value from {1 / length:.3g} to {1 - 1 / length:.3g}, or a smaller patch_size."
        )
    return length - hidden


def visible_patches(numbers: Tensor, mask_ratio: float) -> Tensor:
    """Return the numbers of visible patches, int64 (B, V) in ascending order, see `visible_count`.

    Args:
        numbers (B, N): random numbers; patches with the V smallest ones are visible.
        mask_ratio: share of the patches that is hidden.

    Raises:
        ValueError: as `visible_count`.
    """
    count = visible_count(numbers.shape[1], mask_ratio)
    return numbers.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


def hidden_patches(visible: Tensor, length: int) -> Tensor:
    """Return which of N patches are not among the visible ones (B, V): bool (B, N)."""
    everything = torch.ones(len(visible), length, dtype=torch.bool, device=visible.device)
    return everything.scatter(1, visible, False)


def patch_moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, (B, N, 1) each, of the numbers of patches (B, N, D). The deviation is that of all D
    numbers, sqrt(v + 1e-6), which is never 0."""
    variance, mean = torch.var_mean(patches, dim=2, correction=0, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
