"""Distances between two sets of features in float64: the Frechet distance, and torchmetrics' kernel distance and
classifier score of any features.

torchmetrics is imported when one of its measures is computed.
"""

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..console.progress import ProgressBar
from ..utils.arguments import checked
from ..utils.seeds import generator_of, seed_of
from .feature_network import FeatureNetwork

LARGEST_IN_KERNEL = 1e50
"""Largest feature for which (x·y / d + 1)^3, summed over pairs, is certain to be finite."""


def _alone() -> bool:
    """Tell torchmetrics that this process has all features, and the others compute nothing meanwhile."""
    return False


class _Identity(nn.Module):
    """The network argument of torchmetrics, for features that are computed already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


@checked
def check_features(real: Tensor, fake: Tensor, least: int = 2) -> None:
    """Refuse feature matrices that a measure cannot compare.

    Raises:
        ValueError: not two finite matrices (N, d) of one width d with at least `least` rows each, or values whose
            squared distances overflow in float64.
    """
    for name, features in (("real", real), ("generated", fake)):
        if features.dim() != 2 or not features.shape[1]:
            raise ValueError(f"The {name} features must be a matrix (N, d), not {tuple(features.shape)}.")
        if len(features) < least:
            raise ValueError(f"{len(features)} {name} samples are too few for this measure; it needs {least} or more.")
        if bad := int((~features.isfinite()).any(1).sum()):
            raise ValueError(
                f"{bad} of {len(features)} rows of the {name} features are not finite (NaN or infinite). Check the "
                f"{name} images and the feature network."
            )
        largest, bound = features.double().abs().max().item(), math.sqrt(sys.float_info.max / features.shape[1]) / 4
        if largest > bound:
            raise ValueError(
                f"The {name} features reach {largest:.3g}, and squared distances of values above {bound:.3g} overflow. "
                "Rescale both sets of features."
            )
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"Features of {real.shape[1]} and {fake.shape[1]} dimensions are not of one network.")


@checked
def common_scale(*features: Tensor) -> float:
    """Return a power of two by which these feature matrices are divided, exactly, so that the largest value is near 1.

    Squares and products of very small or large features then neither vanish nor overflow. 1 if all values are 0.
    """
    largest = max(values.double().abs().max().item() for values in features)
    return math.ldexp(1.0, max(math.frexp(largest)[1], -1021)) if largest else 1.0


@checked
def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Compute the Frechet distance of the Gaussians with the moments of two feature matrices (N, d), (M, d):

        ||m_1 - m_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)),   S with the divisor N - 1.

    It is 0 for equal sets. Its bias falls as 1/N, so only values of one sample count are comparable (Heusel et al.
    2017, https://arxiv.org/abs/1706.08500; on the bias: Chong and Forsyth 2020, https://arxiv.org/abs/1911.07023).

    With S = R^T R, the trace of (S_1 S_2)^(1/2) is the sum of the singular values of R_1 R_2^T. The factor R is that of
    a QR decomposition of the centred features. No square root of a matrix is needed, so singular covariances, such as
    those of features on a line, are no special case.

    Raises:
        ValueError: d or fewer samples (a covariance would be singular for any features); features that are not finite,
            too large, or of two widths.
    """
    check_features(real, fake, real.shape[-1] + 1)
    if torch.equal(real, fake):
        return 0.0  # the singular values below leave up to 1e-8
    scale = common_scale(real, fake)
    means, factors = zip(*(_moments(features.double() / scale) for features in (real, fake)), strict=True)
    cross = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    value = (means[0] - means[1]).square().sum() + sum(factor.square().sum() for factor in factors) - 2 * cross
    return max(0.0, value.item()) * scale**2  # rounding may leave -1e-13


@checked
def geometric_mean(values: Sequence[float]) -> float:
    """Compute the geometric mean of Frechet distances by several networks, which is the number to rank by.

    Features of a network multiplied by c multiply its distances by c², and all means by one number: no network counts
    more because of its scale. The mean rises with each distance. Divided by that of the floors (distances of real
    images to real ones) it is the mean ratio to the floor, on a logarithmic scale; the order is the same.

    Raises:
        ValueError: no values, or one that is below 0 or not finite.
    """
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"A geometric mean is of finite numbers of 0 or more, not of {list(values)}.")
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if all(values) else 0.0


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) of features (N, d), and R (d, d) with the covariance R^T R."""
    mean = features.mean(0)
    return mean, torch.linalg.qr((features - mean) / math.sqrt(len(features) - 1), mode="r").R


@checked
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
        ValueError: fewer samples than `subset_size`, a size below 2 or no subset; features that are not finite, of two
            widths, or so large that their kernel overflows.
    """
    if subset_size < 2 or subsets < 1:
        raise ValueError(f"subset_size={subset_size} must be at least 2, and subsets={subsets} at least 1.")
    check_features(real, fake, subset_size)
    largest = max(features.double().abs().max().item() for features in (real, fake))
    if largest > LARGEST_IN_KERNEL:
        raise ValueError(
            f"Features reach {largest:.3g}; the third power of their products overflows above "
            f"{LARGEST_IN_KERNEL:.0g}. Rescale both sets of features."
        )
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():  # torchmetrics warns that it keeps all features in memory
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(
            _Identity(real.shape[1]), subsets=subsets, subset_size=subset_size, distributed_available_fn=_alone
        )
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator
        torch.manual_seed(seed_of("kernel subsets", seed))
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


@checked
def classifier_score(logits: Tensor, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Compute exp E KL(p(y | x) || p(y)) of class scores (N, K): mean and standard deviation over splits.

    It lies between 1 and K. It is high if each sample clearly belongs to one class and all classes occur. With the
    standard Inception network it is the Inception Score (Salimans et al. 2016, https://arxiv.org/abs/1606.03498).

    Args:
        logits: the class scores.
        splits: number of parts; the score is computed within each.
        seed: seed of the order in which samples are split.

    Raises:
        ValueError: fewer than two samples per part, no part, or scores that are not finite.
    """
    if splits < 1:
        raise ValueError(f"splits={splits} must be at least 1.")
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


@checked
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
    resamples = ProgressBar(resamples, total=repeats, desc="Bootstrap", unit="sample")
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
