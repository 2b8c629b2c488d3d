"""Measures of nearest neighbours among features: precision, recall, density, coverage, memorisation, diversity.

No maintained library computes the first four for arbitrary features in float64. Each needs a few lines over one
distance matrix, of which a few rows are in memory at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .distances import check_features

ROWS = 1024
"""Rows of a distance matrix at a time."""


def distance_rows(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yield the Euclidean distances (n, M) of successive rows of a (N, d) to all rows of b (M, d), `ROWS` at a time.

    The distance of equal rows is exactly 0.
    """
    centre = b.mean(0)  # near the origin, differences of squares cancel less
    b = b - centre
    for part in a.split(ROWS):
        part = part - centre
        distances = torch.cdist(part, b)
        # The matrix product in cdist leaves up to 1e-7 of the norm between equal rows: more than a radius of 0.
        rows, columns = (distances <= 1e-6 * part.norm(dim=1, keepdim=True)).nonzero(as_tuple=True)
        count = max(1, (1 << 23) // b.shape[1])  # pairs at a time, 64 MiB each
        for i, j in zip(rows.split(count), columns.split(count), strict=True):
            distances[i, j] = (part[i] - b[j]).norm(dim=1)
        yield distances


def nearest_neighbours(a: Tensor, b: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows of b (M, d) for each row of a (N, d).

    Returns:
        Their distances (N, k), ascending, and their indices (N, k).
    """
    index = torch.cat([distances.topk(k, dim=1, largest=False).indices for distances in distance_rows(a, b)])
    exact = [(part[:, None] - b[rows]).norm(dim=2) for part, rows in zip(a.split(ROWS), index.split(ROWS), strict=True)]
    return torch.cat(exact), index  # recomputed: the matrix product in cdist leaves 1e-8 between equal rows


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Compute precision and recall (Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991), density and coverage
    (Naeem et al. 2020, https://arxiv.org/abs/2002.09797) of feature matrices (N, d), (M, d).

    Around each sample there is a ball that reaches to its k-th nearest neighbour within its own set.

    Returns:
        - precision: share of generated samples in the ball of at least one real sample;
        - recall: share of real samples in the ball of at least one generated sample;
        - density: mean number of real balls that contain a generated sample, divided by k; 1 for equal distributions;
        - coverage: share of real samples with a generated sample in their ball; about 1 - 2^-k for equal distributions.

    Raises:
        ValueError: k or fewer samples; k below 1; features that are not finite, or of two widths.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1.")
    check_features(real, fake, k + 1)
    radius_real, radius_fake = (nearest_neighbours(x, x, k + 1)[0][:, -1] for x in (real, fake))  # the first is itself
    precise, inside_count, recalled, covered = 0, 0, 0, 0
    for distances in distance_rows(fake, real):
        inside = distances <= radius_real
        precise += inside.any(1).sum().item()
        inside_count += inside.sum().item()
    for distances, radius in zip(distance_rows(real, fake), radius_real.split(ROWS), strict=True):
        recalled += (distances <= radius_fake).any(1).sum().item()
        covered += (distances.amin(1) <= radius).sum().item()
    return {
        "precision": precise / len(fake),
        "recall": recalled / len(real),
        "density": inside_count / (k * len(fake)),
        "coverage": covered / len(real),
    }


def diversity(features: Tensor) -> float:
    """Compute the mean Euclidean distance between two different rows of features (N, d); 0 if all rows are equal.

    Raises:
        ValueError: fewer than two samples.
    """
    check_features(features, features, 2)
    total = sum(distances.sum().item() for distances in distance_rows(features, features))
    return total / (len(features) * (len(features) - 1))


def memorisation(fake: Tensor, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """Measure whether generated samples are nearer to the training set than unseen real samples are.

    With d(x) the distance of x to its nearest neighbour in the training set (features (T, d)):

    Returns:
        - ratio: median d of generated samples / median d of held-out ones; 1 for a perfect model, 0 for copies;
        - nearer: probability that d of a generated sample is below d of a held-out one, where ties count half: the
          Mann-Whitney statistic; 1/2 for a perfect model, 1 for copies (Meehan et al. 2020,
          https://arxiv.org/abs/2004.05675).

    Samples of poor quality are far from everything and raise `ratio`: read both beside precision.

    Raises:
        ValueError: half of the held-out samples are training samples; too few samples; features that are not finite,
            or of two widths.
    """
    check_features(train, fake)
    check_features(train, held_out)
    fake_distance, held_out_distance = (nearest_neighbours(x, train)[0][:, 0] for x in (fake, held_out))
    if not held_out_distance.median() > 0:
        raise ValueError("Half of the held-out images or more are training images. Name another --held_out_split.")
    ascending = held_out_distance.sort().values
    below, up_to = (torch.searchsorted(ascending, fake_distance, right=right) for right in (False, True))
    above = len(ascending) - (below + up_to).double() / 2
    return {
        "ratio": (fake_distance.median() / held_out_distance.median()).item(),
        "nearer": (above.mean() / len(ascending)).item(),
    }
