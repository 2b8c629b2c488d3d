"""Distances between two sets of features: torchmetrics' Frechet and kernel distance of any features, in float64.

torchmetrics is imported when a distance is computed.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.seeds import generator_of, seed_of
from .feature_network import FeatureNetwork


class _Identity(nn.Module):
    """The network argument of torchmetrics, for features that are computed already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def check_features(real: Tensor, fake: Tensor, least: int = 2) -> None:
    """Refuse feature matrices that a measure cannot compare.

    Raises:
        ValueError: not two finite matrices (N, d) of one width d with at least `least` rows each.
    """
    for name, features in (("real", real), ("generated", fake)):
        if features.dim() != 2 or not features.isfinite().all():
            raise ValueError(f"The {name} features must be a finite matrix (N, d), not {tuple(features.shape)}.")
        if len(features) < least:
            raise ValueError(f"{len(features)} {name} samples are too few for this measure; it needs {least} or more.")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"Features of {real.shape[1]} and {fake.shape[1]} dimensions are not of one network.")


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Compute the Frechet distance of the Gaussians with the moments of two feature matrices (N, d), (M, d):

        ||m_1 - m_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)),   S with the divisor N - 1.

    It is 0 for equal sets. Its bias falls as 1/N, so only values of one sample count are comparable (Heusel et al.
    2017, https://arxiv.org/abs/1706.08500; on the bias: Chong and Forsyth 2020, https://arxiv.org/abs/1911.07023).

    Raises:
        ValueError: d or fewer samples (a covariance would be singular); features that are not finite, or of two widths.
    """
    check_features(real, fake, real.shape[-1] + 1)
    if torch.equal(real, fake):
        return 0.0  # the eigenvalues below leave up to 1e-8
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Identity(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return max(0.0, metric.compute().item())  # rounding may leave -1e-13


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Compute the kernel distance (KID) of feature matrices (N, d), (M, d): mean and standard deviation over subsets.

    It is the unbiased squared maximum mean discrepancy with the kernel (x·y / d + 1)^3. The Frechet distance is biased;
    this one is not: it is 0 on average for equal distributions, and may be negative (Binkowski et al. 2018,
    https://arxiv.org/abs/1801.01401).

    Args:
        real, fake: the features.
        subsets: number of random subsets.
        subset_size: samples of each set in a subset.
        seed: seed of the subsets.

    Raises:
        ValueError: fewer samples than `subset_size`; features that are not finite, or of two widths.
    """
    check_features(real, fake, subset_size)
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():  # torchmetrics warns that it keeps all features in memory
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(_Identity(real.shape[1]), subsets=subsets, subset_size=subset_size)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator
        torch.manual_seed(seed_of("kernel subsets", seed))
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


def classifier_score(logits: Tensor, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Compute exp E KL(p(y | x) || p(y)) of class scores (N, K): mean and standard deviation over splits.

    It lies between 1 and K. It is high if each sample clearly belongs to one class and all classes occur. With the
    standard Inception network it is the Inception Score (Salimans et al. 2016, https://arxiv.org/abs/1606.03498).

    Args:
        logits: the class scores.
        splits: number of parts; the score is computed within each.
        seed: seed of the order in which samples are split.

    Raises:
        ValueError: fewer than two samples per part, or scores that are not finite.
    """
    check_features(logits, logits, 2 * splits)
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():  # as above
        warnings.simplefilter("ignore", UserWarning)
        metric = InceptionScore(_Identity(logits.shape[1]), splits=splits)
        metric.update(logits.double())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("splits", seed))
            mean, deviation = metric.compute()  # with one part it warns about the deviation, which is not used then
    return mean.item(), deviation.item() if splits > 1 else 0.0


def bootstrap(measure: Callable[[Tensor], float], samples: Tensor, repeats: int = 50, seed: int = 0) -> float:
    """Estimate the standard error of `measure` of samples (N, d) (Efron 1979, https://doi.org/10.1214/aos/1176344552).

    It is the standard deviation of the measure over `repeats` sets of N samples that are drawn with replacement. Only
    the spread is used: repeated samples bias a distance itself upwards.

    Raises:
        ValueError: fewer than two repeats.
    """
    if repeats < 2:
        raise ValueError(f"repeats={repeats} must be at least 2.")
    generator = generator_of("bootstrap", seed)
    resamples = (torch.randint(len(samples), (len(samples),), generator=generator) for _ in range(repeats))
    return torch.tensor([measure(samples[rows]) for rows in resamples], dtype=torch.float64).std().item()


class Distances:
    """Frechet and kernel distance over batches of images, with one feature network.

    All features are kept (8·d bytes per image), so that all measures and their intervals use the same ones.

    Args:
        network: a network that `load_features` returned.
    """

    def __init__(self, network: FeatureNetwork):
        self.network = network
        self._real: list[Tensor] = []
        self._fake: list[Tensor] = []

    def update(self, images: Tensor, real: bool) -> None:
        """Add images (B, C, H, W) in [-1, 1] to the real or to the generated ones.

        Raises:
            ValueError: the network does not take such images.
        """
        (self._real if real else self._fake).append(self.network(images))

    @property
    def real(self) -> Tensor:
        """Features (N, d) of the real images so far."""
        return torch.cat([torch.empty(0, self.network.num_features, dtype=torch.float64), *self._real])

    @property
    def fake(self) -> Tensor:
        """Features (M, d) of the generated images so far."""
        return torch.cat([torch.empty(0, self.network.num_features, dtype=torch.float64), *self._fake])

    def compute(self, **kernel_options: Any) -> dict[str, float]:
        """Compute both distances, by their names with this network.

        Args:
            kernel_options: options of `kernel_distance`.
        """
        kernel, _ = kernel_distance(self.real, self.fake, **kernel_options)
        return {
            self.network.metric_name("Frechet distance"): frechet_distance(self.real, self.fake),
            self.network.metric_name("kernel distance"): kernel,
        }
