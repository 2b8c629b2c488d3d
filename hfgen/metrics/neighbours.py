"""Measures of nearest neighbours among features: precision, recall, density, coverage, memorisation, diversity.

No maintained library computes the first four for arbitrary features in float64. Each needs a few lines over one
distance matrix, of which a few rows are in memory at a time. Features are divided by a power of two first, so that
squares of very small ones do not vanish.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..utils.arguments import checked
from .distances import check_features, common_scale

ROWS = 1024
"""Rows of a distance matrix at a time."""


@checked
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


@checked
def nearest_neighbours(a: Tensor, b: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows of b (M, d) for each row of a (N, d).

    Returns:
        Their distances (N, k), ascending, and their indices (N, k).
    """
    index = torch.cat([distances.topk(k, dim=1, largest=False).indices for distances in distance_rows(a, b)])
    parts = zip(a.split(ROWS), index.split(ROWS), strict=True)
    exact = torch.cat([(part[:, None] - b[rows]).norm(dim=2) for part, rows in parts])
    distances, order = exact.sort(dim=1, stable=True)  # the matrix product in cdist leaves 1e-8 between equal rows
    return distances, index.gather(1, order)


@checked
def distances_exact_near(a: Tensor, b: Tensor, *radii: Tensor) -> Iterator[Tensor]:
    """Yield the rows of `distance_rows`; those that rounding might move across one of the radii are computed anew.

    Whether a sample lies on a sphere or inside it is thus no question of rounding, and equal pairs of rows have equal
    distances.

    Args:
        a (N, d), b (M, d): features of a size near 1.
        radii: each (N, 1) or (1, M).
    """
    size = 1 + b.norm(dim=1).max() + a.norm(dim=1).max()
    start = 0
    for distances in distance_rows(a, b):
        rows = slice(start, start + len(distances))
        near = torch.zeros_like(distances, dtype=torch.bool)
        for radius in radii:
            radius = radius if len(radius) == 1 else radius[rows]
            near |= (distances.square() - radius.square()).abs() <= 1e-12 * size.square()
        for pairs in near.nonzero().split(ROWS * 64):
            i, j = pairs.unbind(1)
            distances[i, j] = (a[rows][i] - b[j]).norm(dim=1)
        start += len(distances)
        yield distances


@checked
def prdc(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Compute precision and recall (Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991), density and coverage
    (Naeem et al. 2020, https://arxiv.org/abs/2002.09797) of feature matrices (N, d), (M, d).

    Around each sample there is a ball that reaches to its k-th nearest neighbour within its own set. A sample on the
    sphere itself lies in the ball for precision and recall, and outside of it for density and coverage, each as in its
    authors' code. Copies of one image make the difference.

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
    scale = common_scale(real, fake)
    real, fake = real.double() / scale, fake.double() / scale
    radius_real, radius_fake = (nearest_neighbours(x, x, k + 1)[0][:, -1] for x in (real, fake))  # the first is itself
    radius_real, radius_fake = radius_real[:, None], radius_fake[None]  # (N, 1), (1, M)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    inside_count, recalled, covered, start = 0, 0, 0, 0
    for distances in distances_exact_near(real, fake, radius_real, radius_fake):
        radius = radius_real[start : start + len(distances)]
        start += len(distances)
        precise |= (distances <= radius).any(0)
        recalled += (distances <= radius_fake).any(1).sum().item()
        inside = distances < radius
        inside_count += inside.sum().item()
        covered += inside.any(1).sum().item()
    return {
        "precision": precise.sum().item() / len(fake),
        "recall": recalled / len(real),
        "density": inside_count / (k * len(fake)),
        "coverage": covered / len(real),
    }


@checked
def diversity(features: Tensor) -> float:
    """Compute the mean Euclidean distance between two different rows of features (N, d); 0 if all rows are equal.

    Raises:
        ValueError: fewer than two samples.
    """
    check_features(features, features, 2)
    scale = common_scale(features)
    features = features.double() / scale
    total = sum(distances.sum().item() for distances in distance_rows(features, features))
    return scale * total / (len(features) * (len(features) - 1))


@checked
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
    scale = common_scale(train, fake, held_out)
    train, fake, held_out = (features.double() / scale for features in (train, fake, held_out))
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
