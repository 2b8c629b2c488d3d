"""Measures of nearest neighbours among features: precision, recall, density, coverage, memorisation, diversity.

No kept library has the first four for arbitrary features in float64, and each is a few lines over one distance matrix,
which is never held whole.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .distances import check_features

ROWS = 1024
"""Rows of a distance matrix at a time."""


def rows_of(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Euclidean distances (n, M) of a few rows of a (N, d) at a time to all of b (M, d)."""
    centre = b.mean(0)  # near the origin, differences of squares cancel less
    for part in a.split(ROWS):
        yield torch.cdist(part - centre, b - centre)


def nearest(a: Tensor, b: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Distances (N, k), ascending, and indices (N, k) of the k nearest rows of b (M, d) to each row of a (N, d)."""
    index = torch.cat([distances.topk(k, dim=1, largest=False).indices for distances in rows_of(a, b)])
    exact = [(part[:, None] - b[rows]).norm(dim=2) for part, rows in zip(a.split(ROWS), index.split(ROWS), strict=True)]
    return torch.cat(exact), index  # the matrix product behind cdist leaves 1e-8 between equal rows


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991), density and coverage (Naeem et
    al. 2020, https://arxiv.org/abs/2002.09797) of feature matrices (N, d), (M, d).

    With balls around each sample that reach to its k-th nearest neighbour within its own set:

    - precision: share of generated samples in any ball of a real one;
    - recall: share of real samples in any ball of a generated one;
    - density: number of real balls that a generated sample is in, over k, on average; 1 for equal distributions;
    - coverage: share of real samples with a generated one in their ball; 1 - 2^-k or so for equal distributions.

    Raises:
        ValueError: k or fewer samples; k below 1; features not finite or of two widths.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1.")
    check_features(real, fake, k + 1)
    radius_real, radius_fake = (nearest(x, x, k + 1)[0][:, -1] for x in (real, fake))  # the nearest is itself
    precise, dense, recalled, covered = 0, 0, 0, 0
    for distances in rows_of(fake, real):
        inside = distances <= radius_real
        precise += inside.any(1).sum().item()
        dense += inside.sum().item()
    for distances, radius in zip(rows_of(real, fake), radius_real.split(ROWS), strict=True):
        recalled += (distances <= radius_fake).any(1).sum().item()
        covered += (distances.amin(1) <= radius).sum().item()
    return {
        "precision": precise / len(fake),
        "recall": recalled / len(real),
        "density": dense / (k * len(fake)),
        "coverage": covered / len(real),
    }


def diversity(features: Tensor) -> float:
    """Mean Euclidean distance between two different rows of features (N, d); 0 if all are the same.

    Raises:
        ValueError: fewer than two samples.
    """
    check_features(features, features, 2)
    total = sum(distances.sum().item() for distances in rows_of(features, features))
    return total / (len(features) * (len(features) - 1))


def memorisation(fake: Tensor, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """Are generated samples nearer to the training set than unseen real ones are? With d the distance to the nearest
    of the training set (features (T, d)):

    - ratio: median d over generated samples / median d over held-out ones; 1 for a perfect model, 0 for copies;
    - nearer: probability that d of a generated sample is below d of a held-out one, ties counting half: the
      Mann-Whitney statistic; 1/2 for a perfect model, 1 for copies (Meehan et al. 2020,
      https://arxiv.org/abs/2004.05675).

    Samples of poor quality are far from everything and raise `ratio`: read both beside precision.

    Raises:
        ValueError: half of the held-out samples are training samples; too few samples; features not finite or of two
            widths.
    """
    check_features(train, fake)
    check_features(train, held_out)
    of_fake, of_held = (nearest(x, train)[0][:, 0] for x in (fake, held_out))
    if not of_held.median() > 0:
        raise ValueError("Half of the held-out images or more are training images. Name another --held_out_split.")
    order = of_held.sort().values
    below, upto = (torch.searchsorted(order, of_fake, right=right) for right in (False, True))
    above = len(order) - (below + upto).double() / 2
    return {
        "ratio": (of_fake.median() / of_held.median()).item(),
        "nearer": (above.mean() / len(order)).item(),
    }
