"""Layers of style-based generators and their discriminators: equalised rates, modulated convolutions, FIR filters.

After Karras et al. 2018 (https://arxiv.org/abs/1710.10196), 2019 (https://arxiv.org/abs/1812.04948) and 2020
(https://arxiv.org/abs/1912.04958), written from the papers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gan_layers import GAIN, SLOPE
from .layers import real

LEAST_NORM = 1e-8
"""Added to squared norms before they divide."""


def activation(x: Tensor) -> Tensor:
    """Compute GAIN leaky_relu(x), which keeps the mean square of a symmetric input."""
    return F.leaky_relu(x, SLOPE) * GAIN


def normalise(x: Tensor) -> Tensor:
    """Divide each row (B, d) by its root mean square."""
    return x * (x.square().mean(1, keepdim=True) + LEAST_NORM).rsqrt()


def fir_halve(x: Tensor) -> Tensor:
    """Halve both sides with the filter (1, 3, 3, 1) / 8 along each: (B, C, 2 h, 2 w) -> (B, C, h, w).

    It is PyTorch's bilinear interpolation with antialiasing, which leaves out taps beyond the border and scales the
    others up. Its counterpart with the same filter is `upsample(x, "bilinear")`, which repeats the border.
    """
    return F.interpolate(real(x), scale_factor=0.5, mode="bilinear", antialias=True).to(x.dtype)


class EqualisedWeight(nn.Module):
    """A weight that is stored as N(0, 1) / rate and used as rate / sqrt(fan-in) times that (He et al. 2015,
    https://arxiv.org/abs/1502.01852, at each use rather than once).

    Adam's steps do not depend on the size of gradients. So all layers learn at one speed relative to their weights,
    `rate` times that of the learning rate.

    Args:
        shape: (outputs, inputs, ...).
        rate: the speed.
        bias: initial bias of all outputs; None: there is none.
    """

    def __init__(self, shape: tuple[int, ...], rate: float = 1.0, bias: float | None = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / rate)
        self.bias = None if bias is None else nn.Parameter(torch.full(shape[:1], bias / rate))
        self.rate, self.scale = rate, rate / math.sqrt(math.prod(shape[1:]))

    def used(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias as the layer uses them."""
        return self.weight * self.scale, None if self.bias is None else self.bias * self.rate


class EqualisedLinear(EqualisedWeight):
    """A linear layer (B, inputs) -> (B, outputs) with an equalised rate."""

    def __init__(self, before: int, after: int, rate: float = 1.0, bias: float = 0.0):
        super().__init__((after, before), rate, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.used())


class EqualisedConv2d(EqualisedWeight):
    """A convolution of odd kernel size with an equalised rate, (B, inputs, H, W) -> (B, outputs, H, W)."""

    def __init__(self, before: int, after: int, kernel_size: int, bias: bool = True):
        super().__init__((after, before, kernel_size, kernel_size), bias=0.0 if bias else None)
        self.padding = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, *self.used(), padding=self.padding)


def demodulation(weight: Tensor, scales: Tensor) -> Tensor:
    """Compute 1 / |s w_j|, the factor of each output map that gives modulated weights unit norm: (B, outputs).

    Args:
        weight (outputs, inputs, k, k): w.
        scales (B, inputs): s.
    """
    squares = scales.square() @ weight.square().sum((2, 3)).T  # (B, outputs)
    return (squares + LEAST_NORM).rsqrt()


class ModulatedConv2d(EqualisedWeight):
    """A convolution whose weights s_i w_ji an image's style scales for each input map i, and divides by their norm for
    each output map j (weight demodulation, Karras et al. 2020, section 2.2).

    Scaling the weights by s and 1 / norm is scaling input and output maps, so one convolution serves the whole batch.

    Args:
        before, after: input and output maps.
        kernel_size: odd.
        style_dim: width of a style.
        demodulate: whether the norms are divided by.
    """

    def __init__(self, before: int, after: int, kernel_size: int, style_dim: int, demodulate: bool = True):
        super().__init__((after, before, kernel_size, kernel_size), bias=None)
        self.affine = EqualisedLinear(style_dim, before, bias=1.0)
        self.padding, self.demodulate = kernel_size // 2, demodulate

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scales, (weight, _) = self.affine(style), self.used()
        h = F.conv2d(x * scales[:, :, None, None].to(x.dtype), weight, padding=self.padding)
        if not self.demodulate:
            return h
        return h * demodulation(weight, scales)[:, :, None, None].to(h.dtype)


class StyleLayer(nn.Module):
    """A modulated 3 x 3 convolution, a noise map of a learned strength, a bias and a leaky ReLU:
    (B, before, H, W) -> (B, after, H, W)."""

    def __init__(self, before: int, after: int, style_dim: int):
        super().__init__()
        self.conv = ModulatedConv2d(before, after, 3, style_dim)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(after))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        h = self.conv(x, style)
        if noise is not None:
            h = h + (self.noise_strength * noise).to(h.dtype)
        return activation(h + self.bias[:, None, None].to(h.dtype))


class ToImage(nn.Module):
    """A modulated 1 x 1 convolution to an image, without demodulation: (B, before, h, w) -> (B, C, p h, p w), where a
    position is a square of p x p pixels."""

    def __init__(self, before: int, channels: int, patch_size: int, style_dim: int):
        super().__init__()
        self.conv = ModulatedConv2d(before, channels * patch_size**2, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.patch_size = patch_size

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        image = F.pixel_shuffle(self.conv(x, style), self.patch_size)
        return image + self.bias[:, None, None].to(image.dtype)


class DownsampleResidual(nn.Module):
    """A residual block (B, before, 2 h, 2 w) -> (B, after, h, w): two convolutions with leaky ReLUs and a halving
    between them, and a skip; their sum is divided by sqrt(2)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv1 = EqualisedConv2d(before, before, 3)
        self.conv2 = EqualisedConv2d(before, after, 3)
        self.skip = EqualisedConv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = activation(self.conv2(fir_halve(activation(self.conv1(x)))))
        return (h + self.skip(fir_halve(x))) * math.sqrt(0.5)


class MinibatchDeviation(nn.Module):
    """A further map with the deviation of features within a group of images, averaged over features and positions:
    (B, F, h, w) -> (B, F + 1, h, w) (Karras et al. 2018, section 3).

    A group has as many images as divide the batch, at most `group_size`. In a batch of one the map is 0.
    """

    def __init__(self, group_size: int):
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        size = next(size for size in range(min(self.group_size, batch), 0, -1) if batch % size == 0)
        groups = real(x).unflatten(0, (size, batch // size))  # (size, groups, F, h, w)
        deviation = (groups.var(0, unbiased=False) + LEAST_NORM).sqrt().mean((1, 2, 3))  # (groups,)
        maps = deviation.repeat(size).view(batch, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return torch.cat([x, maps.to(x.dtype)], 1)


class EqualisedProjectionHead(nn.Module):
    """The score psi . h + b + e_y . h / sqrt(F) of features h (B, F) and a class y, without classes psi . h + b, as
    `ProjectionHead` with equalised rates."""

    def __init__(self, width: int, num_class_embeds: int | None):
        super().__init__()
        self.score = EqualisedLinear(width, 1)
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)

    def forward(self, h: Tensor, class_labels: Tensor | None) -> Tensor:
        score = self.score(h)[:, 0]
        if self.classes is None:
            return score
        return score + (self.classes(class_labels) * h).sum(1) / math.sqrt(h.shape[1])
