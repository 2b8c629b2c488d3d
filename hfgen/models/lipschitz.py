"""Networks whose slope is bounded: no two outputs differ by more than a share of what the inputs differ by.

The bound is certain. Each linear layer and convolution is divided by an upper bound of its norm, not by an estimate
from below such as power iteration gives. It has no state: it is the same in training, after it and after loading.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import real

SQUARINGS = 6
"""Squarings of a matrix in the bound of its norm, which is then at most rank^(1/128) times the norm."""

FREQUENCIES = 12
"""Frequencies in each direction at which the norm of a convolution is bounded."""


def norm_bound(matrices: Tensor) -> Tensor:
    """Bound the largest singular value of matrices (*, m, n) from above, (*), differentiably (Gram iteration, Delattre
    et al. 2023, https://arxiv.org/abs/2305.16173):

        |A| = |A* A|^(1/2) = ... <= |(A* A)^(2^k / 2)|_F^(1 / 2^k)

    A matrix of zeros has the bound 0, up to the smallest positive number.
    """
    if matrices.shape[-2] < matrices.shape[-1]:
        matrices = matrices.mH
    log_bound, tiny = matrices.real.new_zeros(matrices.shape[:-2]), torch.finfo(matrices.real.dtype).tiny ** 0.5
    for index in range(SQUARINGS + 1):
        size = torch.linalg.vector_norm(matrices, dim=(-2, -1)).clamp(min=tiny)
        log_bound = log_bound + size.log() / 2**index  # the matrix becomes one of Frobenius norm 1
        matrices = matrices / size[..., None, None]
        matrices = matrices.mH @ matrices
    return log_bound.exp()


def convolution_norm_bound(weight: Tensor) -> Tensor:
    """Bound the norm of a convolution with stride 1 and zeros around the image from above, for images of any size.

    Such a convolution is a part of that of the whole plane, whose norm is the largest one of its matrices at all
    frequencies (Sedghi et al. 2019, https://arxiv.org/abs/1805.10408). For a kernel of side s these are trigonometric
    polynomials of degree (s - 1) / 2. Between N frequencies in each direction they exceed the largest one of those by
    a factor of at most 1 / cos(pi (s - 1) / 2 / N) for each of the two directions.

    Args:
        weight (C_out, C_in, s, s): with an odd side s.
    """
    degree = (weight.shape[-1] - 1) // 2
    between = math.cos(math.pi * degree / FREQUENCIES) ** -2
    matrices = torch.fft.fft2(weight, s=(FREQUENCIES, FREQUENCIES)).permute(2, 3, 0, 1)
    half = matrices[: FREQUENCIES // 2 + 1]  # those of the other frequencies are their conjugates
    return norm_bound(half).max() * between


class LipSwish(nn.Module):
    """x sigmoid(b x) / 1.1 with b > 0, whose slope is between -1 and 1 (Chen et al. 2019,
    https://arxiv.org/abs/1906.02735, section 3.3). Unlike that of ReLU, its second derivative is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.raw_slope = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.softplus(real(self.raw_slope)) * x) / 1.1


class ContractiveNetwork(nn.Module):
    """g: (B, C, H, W) -> (B, C, H, W) with |g(x) - g(y)| <= c |x - y|, c < 1.

    It computes in float32 at least, also under autocast: the inverse and the log-determinant of I + g depend on it.

    Args:
        shape: (C, H, W).
        kind: `mlp`, on all numbers of an image, or `conv`, of 3 x 3, 1 x 1 and 3 x 3 convolutions.
        hidden: width.
        depth: hidden layers, at least 1.
        slope: c, below 1.
        num_class_embeds: number of classes; None: none.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        kind: str,
        hidden: int,
        depth: int,
        slope: float,
        num_class_embeds: int | None,
    ):
        super().__init__()
        self.slope, self.flat = slope, kind == "mlp"
        size = math.prod(shape) if self.flat else shape[0]
        widths = [size, *[hidden] * depth, size]
        self.layers = nn.ModuleList(
            nn.Linear(a, b) if self.flat else nn.Conv2d(a, b, 3 if i in (0, depth) else 1, padding="same")
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.activations = nn.ModuleList(LipSwish() for _ in range(depth))
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, hidden)

    def weights(self) -> list[Tensor]:
        """Return the weights of the layers, each with a norm of at most c^(1 / number of layers).

        A weight that is small enough stays as it is.
        """
        most, weights = self.slope ** (1 / len(self.layers)), []
        with torch.autocast(self.layers[0].weight.device.type, enabled=False):
            for layer in self.layers:
                weight = real(layer.weight)
                bound = norm_bound(weight) if self.flat else convolution_norm_bound(weight)
                weights.append(weight * (most / bound.clamp(min=most)))
        return weights

    def forward(self, x: Tensor, labels: Tensor | None = None, weights: list[Tensor] | None = None) -> Tensor:
        """Return g(x) for images x (B, C, H, W) and classes (B,).

        Args:
            x, labels: images and classes.
            weights: those of `weights()`, to compute them once for many calls.
        """
        weights = self.weights() if weights is None else weights
        with torch.autocast(x.device.type, enabled=False):
            h = x.flatten(1) if self.flat else x
            for i, (layer, weight) in enumerate(zip(self.layers, weights, strict=True)):
                bias = real(layer.bias).to(h)
                h = F.linear(h, weight.to(h), bias) if self.flat else F.conv2d(h, weight.to(h), bias, padding="same")
                if i == 0 and self.classes is not None:
                    told = real(self.classes(labels)).to(h)
                    h = h + (told if self.flat else told[:, :, None, None])
                if i < len(self.activations):
                    h = self.activations[i](h)
            return h.view_as(x)
