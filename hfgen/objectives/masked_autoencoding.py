"""Masked autoencoding: what is hidden of an image, from what is visible."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..models.patches import PatchGrid, hidden_patches, patch_moments, visible_patches
from ..utils.arguments import checked
from ..utils.ranges import COUNT, INSIDE_0_1, check_range
from .base import Loss, Objective, Step, at_least_float32, loss_with_logs


class MaskedAutoencoding(Objective):
    """The masked autoencoder (He et al. 2022, https://arxiv.org/abs/2111.06377):

        L = mean over hidden patches i of || f(x_visible)_i - y_i ||^2 / d

    for patches x_i of d numbers, of which round(N r) of N are hidden, new ones for each image of each step. The target
    y_i is x_i itself, or (x_i - m_i) / s_i with the mean and the deviation of its own d
    numbers, see `patch_moments`. Visible
    patches have no loss.

    Args:
        patch_size: side of a patch in pixels, that of the network.
        mask_ratio: r, between 0 and 1.
        normalised_targets: whether targets are normalised patch by patch.

    Raises:
        ValueError: a number out of range.
    """

    players = ("autoencoder",)
    call = ("visible",)

    @checked
    def __init__(self, patch_size: int, mask_ratio: float = 0.75, normalised_targets: bool = False):
        check_range("patch_size", patch_size, COUNT)
        check_range("mask_ratio", mask_ratio, INSIDE_0_1)
        self.patch_size, self.mask_ratio, self.normalised_targets = patch_size, mask_ratio, normalised_targets

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the loss for images "x" (B, C, H, W).

        Raises:
            ValueError: patches do not tile the images, or the ratio hides none or all of them.
        """
        x = batch["x"]
        grid = PatchGrid(tuple(x.shape[2:]), x.shape[1], self.patch_size)
        numbers = step.uniform("mask", torch.empty(len(x), grid.length, device=x.device))
        visible = visible_patches(numbers, self.mask_ratio)  # (B, V)
        predicted = at_least_float32(grid.tokens(networks[player](x, visible=visible).sample))  # (B, N, d)
        error = (predicted - self.targets(grid.tokens(x))).square().mean(2)  # (B, N)
        hidden = hidden_patches(visible, grid.length)
        return loss_with_logs((error * hidden).sum() / hidden.sum(), {})

    def targets(self, patches: Tensor) -> Tensor:
        """Return the targets (B, N, d) of patches (B, N, d).

        Raises:
            ValueError: patches of one number are to be normalised: all targets would be 0.
        """
        patches = at_least_float32(patches)
        if not self.normalised_targets:
            return patches
        if patches.shape[2] == 1:
            raise ValueError("normalised_targets needs patches of several numbers. Give a larger patch_size.")
        mean, deviation = patch_moments(patches)
        return (patches - mean) / deviation
