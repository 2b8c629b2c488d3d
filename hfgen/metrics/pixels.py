"""Measures of pixels: the error of reconstructions, and the power spectrum."""

import math

import torch
from torch import Tensor

from ..utils.arguments import checked

QUANTISATION = (2 / 255) ** 2 / 12
"""Variance of rounding to 8 bits, in units of [-1, 1]. Power below it carries no information."""


@checked
def refuse_not_finite(name: str, values: Tensor) -> None:
    """Raise ValueError for an empty tensor, or one with NaN or infinite values."""
    if not values.numel() or not values.isfinite().all():
        bad = int((~values.isfinite()).sum())
        raise ValueError(
            f"{name} {tuple(values.shape)}: {bad} of {values.numel()} values are not finite, or there are none."
        )


@checked
def reconstruction_error(images: Tensor, reconstructions: Tensor) -> dict[str, float]:
    """Compute the mean error per dimension of two batches (B, ...) in [-1, 1], of items of any shape.

    Returns:
        `mse` and `mae`, the mean squared and absolute error, and `psnr`, the peak signal-to-noise ratio
        10 log10(2^2 / mse) in dB, infinite for equal batches.

    Raises:
        ValueError: the batches have different shapes, are empty, or hold values that are not finite.
    """
    if images.shape != reconstructions.shape:
        raise ValueError(f"Images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)} differ.")
    refuse_not_finite("Images", images)
    refuse_not_finite("Reconstructions", reconstructions)
    error = images.double() - reconstructions.double()
    squared = error.square().mean().item()
    return {
        "mse": squared,
        "mae": error.abs().mean().item(),
        "psnr": 10 * math.log10(4 / squared) if squared else math.inf,
    }


@checked
def radial_spectrum(images: Tensor, batch_size: int = 1000) -> Tensor:
    """Compute the power at each spatial frequency: |FFT|^2 / (H W) of images (N, C, H, W).

    Entry r is the mean over images, channels and all frequencies of length r ± 1/2 cycles per image: float64
    (min(H, W) // 2 + 1,). With this scaling, white noise of variance v has power v at every frequency.

    Raises:
        ValueError: not a batch of images, none, or values that are not finite.
    """
    if images.dim() != 4:
        raise ValueError(f"A spectrum is of images (N, C, H, W), not {tuple(images.shape)}.")
    refuse_not_finite("Images", images)
    height, width = images.shape[-2:]
    rows, cols = (torch.fft.fftfreq(side, 1 / side, dtype=torch.float64) for side in (height, width))
    radius = torch.hypot(rows[:, None], cols[None]).round().long()
    power = torch.zeros(height, width, dtype=torch.float64)
    for part in images.split(batch_size):
        power += torch.fft.fft2(part.double(), norm="ortho").abs().square().mean(1).sum(0)
    count = min(height, width) // 2 + 1
    sums = torch.zeros(int(radius.max()) + 1, dtype=torch.float64)
    sums.index_add_(0, radius.flatten(), power.flatten() / len(images))
    return sums[:count] / torch.bincount(radius.flatten())[:count]


@checked
def spectrum_distance(real: Tensor, fake: Tensor) -> float:
    """Compute the mean absolute difference in dB of the radial spectra of two sets of images (N, C, H, W) in [-1, 1].

    The mean is over frequencies from one cycle per image to the highest. The power of 8-bit rounding is added to both
    spectra, so that power below it does not count (Durall et al. 2020, https://arxiv.org/abs/2003.01826, on why
    generators miss high frequencies).

    Raises:
        ValueError: the sets have images of different shapes.
    """
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"Images of shapes {tuple(real.shape[1:])} and {tuple(fake.shape[1:])} have no common spectrum."
        )
    first, second = (radial_spectrum(images)[1:] + QUANTISATION for images in (real, fake))
    return (10 * torch.log10(first / second)).abs().mean().item()
