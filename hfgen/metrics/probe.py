"""Linear probes: how well a linear classifier tells classes by representations that it does not change."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, check_range
from .pixels import refuse_not_finite

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths C of the regularisation, among which a probe chooses."""

FOLD = 5
"""Each fifth training item is held out to choose the strength."""

ITERATIONS = 500
"""Most iterations of a fit."""


class ProbeResult(NamedTuple):
    """What a linear probe finds.

    Attributes:
        accuracy: share of the test items whose class it names.
        right (M,): bool, whether it names the class of each.
        strength: the C that it chose.
    """

    accuracy: float
    right: Tensor
    strength: float


@checked
def linear_probe(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    strengths: Sequence[float] = STRENGTHS,
) -> ProbeResult:
    """Fit a linear classifier to representations, and measure it on others.

    It is multinomial logistic regression, p(y | z) = softmax(W z + b), with the loss

        -sum_n log p(y_n | z_n) + ||W||^2 / (2 C)

    on features of mean 0 and deviation 1 over the training items; of two classes, W is one vector and the model that of
    log p(1 | z) / p(0 | z). C is chosen on each fifth training item, after a fit to the others, and all are then fitted
    anew. The loss is convex, and scikit-learn's L-BFGS follows it to its minimum: no learning rate, order or seed
    changes the result.

    Args:
        features (N, ...): of the training items; dimensions after the first are flattened.
        labels (N,): their classes, whole numbers.
        test_features (M, ...), test_labels (M,): of the items to measure.
        strengths: what C is chosen from; of one, nothing is held out.

    Raises:
        ValueError: sizes that do not fit, values that are not finite, fewer than two classes, or no strength above 0.
    """
    _check(features, labels, "training")
    _check(test_features, test_labels, "test")
    if features.shape[1:] != test_features.shape[1:]:
        shapes = tuple(features.shape[1:]), tuple(test_features.shape[1:])
        raise ValueError(f"Features of training items {shapes[0]} and of test items {shapes[1]} have other shapes.")
    for strength in strengths:
        check_range("strengths", strength, ABOVE_0)
    if not strengths or len(labels.unique()) < 2:
        raise ValueError(f"{len(strengths)} strengths, {len(labels.unique())} classes: give one and two at least.")
    z, test_z = (x.flatten(1).double().cpu() for x in (features, test_features))
    deviation, mean = torch.std_mean(z, dim=0, correction=0)
    scale = torch.where(deviation > 1e-9 * (1 + mean.abs()), deviation, 1.0)  # what is constant tells nothing
    z, test_z, y, test_y = (z - mean) / scale, (test_z - mean) / scale, labels.cpu(), test_labels.cpu()
    chosen = strengths[0] if len(strengths) == 1 else _strength(z, y, strengths)
    right = _right(z, y, test_z, test_y, chosen)
    return ProbeResult(float(right.double().mean()), right, float(chosen))


def _strength(z: Tensor, y: Tensor, strengths: Sequence[float]) -> float:
    """Return the strength with the best accuracy on each fifth item, of equal ones the smallest: the most regular."""
    held_out = torch.arange(len(z)) % FOLD == FOLD - 1
    parts = z[~held_out], y[~held_out], z[held_out], y[held_out]
    if not held_out.any() or len(parts[1].unique()) < 2:
        raise ValueError(f"{len(z)} training items are too few to choose a strength. Give one strength, or more items.")
    found = {strength: float(_right(*parts, strength).double().mean()) for strength in sorted(strengths)}
    return max(found, key=found.get)


def _right(z: Tensor, y: Tensor, test_z: Tensor, test_y: Tensor, strength: float) -> Tensor:
    """Return whether a classifier fitted to z (N, D) and y (N,) names the classes of test items, bool (M,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of features that separate the classes, W has no end
        fit = LogisticRegression(C=strength, max_iter=ITERATIONS).fit(z.numpy(), y.numpy())
    return torch.from_numpy(fit.predict(test_z.numpy()) == test_y.numpy())


def _check(features: Tensor, labels: Tensor, kind: str) -> None:
    """Raise ValueError for features and labels of other numbers, of no items, or not finite."""
    if features.ndim < 2 or labels.ndim != 1 or len(features) != len(labels) or labels.is_floating_point():
        raise ValueError(
            f"{kind} features {tuple(features.shape)} and labels {tuple(labels.shape)}, {labels.dtype}: give (N, ...) "
            "numbers and (N,) whole numbers."
        )
    refuse_not_finite(f"{kind} features", features)
