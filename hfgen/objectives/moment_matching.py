"""Moment matching: a generator that learns by the maximum mean discrepancy of its samples and the data, alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, COUNT, check_range
from .adversarial import mean_distance
from .base import Loss, Objective, Step, at_least_float32, choose, loss_with_logs, sample_of

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Two sets of vectors (N, D), (M, D) -> k of each pair, (N, M)."""

ESTIMATORS = ("unbiased", "biased")
LEAST = 1e-12
"""Below it the square root of MMD^2 has no gradient."""


class GaussianKernel:
    """A sum of Gaussian kernels, k(x, y) = sum_s exp(-|x - y|^2 / (2 s^2)).

    It is characteristic: MMD is 0 for equal distributions alone. A Gaussian sees differences on its own scale s, so
    several are summed (Li et al. 2015, https://arxiv.org/abs/1502.02761).

    Args:
        bandwidths: s, in units of |x - y|.

    Raises:
        ValueError: there are none, or one is not above 0 and finite.
    """

    @checked
    def __init__(self, bandwidths: Sequence[float]):
        if not bandwidths:
            raise ValueError("bandwidths are empty. Give one or more, such as multiples of `median_distance`.")
        for bandwidth in bandwidths:
            check_range("bandwidths", bandwidth, ABOVE_0)
        self.bandwidths = tuple(bandwidths)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return k of each pair, (N, M), for x (N, D) and y (M, D)."""
        centre = y.detach().mean(0)  # distances stay, and the sum below loses fewer digits
        x, y = x - centre, y - centre
        squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        squares = squares.clamp(min=0)
        return sum(torch.exp(squares / (-2 * bandwidth**2)) for bandwidth in self.bandwidths)


@checked
def mmd_squared(x: Tensor, y: Tensor, kernel: Callable, unbiased: bool = True) -> Tensor:
    """Estimate MMD^2 of two distributions from samples x (N, D) and y (M, D):

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y) = |E phi(x) - E phi(y)|^2,    k(x, y) = phi(x) . phi(y)

    (Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html). The unbiased estimate leaves out the pairs of a
    sample with itself: it is 0 on average for equal distributions, and may be negative. The biased one is a squared
    distance of means of phi, never negative, and too large by O(1/N + 1/M).

    Args:
        x, y: the samples.
        kernel: (N, D), (M, D) -> (N, M).
        unbiased: which of both estimates.

    Returns:
        A scalar, with gradient.

    Raises:
        ValueError: no two matrices of one width, or fewer samples than two of each (one, if biased).
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"Samples must be (N, D) and (M, D), not {tuple(x.shape)} and {tuple(y.shape)}.")
    least = 1 + unbiased
    if min(len(x), len(y)) < least:
        raise ValueError(f"MMD of {len(x)} and {len(y)} samples needs {least} or more of each: enlarge the batch.")
    return _mean_within(kernel(x, x), unbiased) + _mean_within(kernel(y, y), unbiased) - 2 * kernel(x, y).mean()


def _mean_within(values: Tensor, unbiased: bool) -> Tensor:
    """Return the mean of k over the pairs (N, N) of one set, without those of a sample with itself if unbiased."""
    if not unbiased:
        return values.mean()
    return (values.sum() - values.diagonal().sum()) / (len(values) * (len(values) - 1))


@checked
def median_distance(items: Tensor) -> float:
    """Compute the median Euclidean distance of two different items of (N, *item), a scale for bandwidths.

    Raises:
        ValueError: fewer than two items, or a median that is 0 or not finite.
    """
    median = torch.pdist(items.flatten(1).double()).median().item() if len(items) > 1 else 0.0
    if not 0 < median < math.inf:
        raise ValueError(f"The median distance of {len(items)} items is {median:g}. Give bandwidths in their own unit.")
    return median


class MomentMatching(Objective):
    """A generative moment matching network (Li, Swersky & Zemel 2015, https://arxiv.org/abs/1502.02761; Dziugaite et
    al. 2015, https://arxiv.org/abs/1505.03906): a generator without an opponent,

        L = MMD^2({G(z_i)}, {x_i}),    z ~ N(0, 1)^d.

    The generator is called as generator(z (B, d)) -> .sample (B, *item). Items may have any shape; the kernel sees them
    as vectors. Latents of an autoencoder are items, too: `Encoded(MomentMatching(...), autoencoder)`.

    MMD is one of the batch that the loss is given, a micro-batch of one process. The unbiased estimate has the same
    mean for each size of it, so micro-batches and processes average unbiased gradients, of more variance than those of
    one large batch. They do not add up to that of the large batch.

    Args:
        latent_channels: d.
        kernel: of items as vectors, such as `GaussianKernel`.
        estimator: `unbiased` or `biased`, see `mmd_squared`.
        root: minimise MMD, as Li et al. do, and not its square: the gradient does not vanish near 0. Biased alone, as
            the other estimate may be negative.

    Raises:
        ValueError: an unknown estimator, a root of the unbiased one, or latents without dimension.
    """

    players = ("generator",)

    @checked
    def __init__(
        self,
        latent_channels: int,
        kernel: Callable,
        estimator: Literal["unbiased", "biased"] = "unbiased",
        root: bool = False,
    ):
        check_range("latent_channels", latent_channels, COUNT)
        choose("estimator", estimator, ESTIMATORS)
        if root and estimator == "unbiased":
            raise ValueError("root=True needs estimator='biased': the unbiased estimate of MMD^2 may be negative.")
        self.latent_channels, self.kernel, self.unbiased, self.root = (
            latent_channels,
            kernel,
            estimator != "biased",
            root,
        )

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the generator's loss on "x" (B, *item), with MMD^2 and the `diversity` of samples in the logs."""
        real = at_least_float32(batch["x"])
        z = step.randn("latent", real.new_empty(len(real), self.latent_channels))
        fake = at_least_float32(sample_of(networks["generator"](z)))
        squared = mmd_squared(fake.flatten(1), real.flatten(1), self.kernel, self.unbiased)
        logs = {"mmd_squared": squared}
        if len(real) > 1:
            logs["diversity"] = mean_distance(fake.detach()) / mean_distance(real).clamp(min=LEAST)
        return loss_with_logs(squared.clamp(min=LEAST).sqrt() if self.root else squared, logs)
