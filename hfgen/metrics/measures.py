"""The measures of `hfgen evaluate`, by name. Each is a function from two sets of images to measurements."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..utils.pixels import from_levels
from . import distances, modes, neighbours, pixels
from .feature_network import FeatureNetwork, ImageSet
from .names import JOINT, NO_FEATURES


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A number with its name and its error.

    Attributes:
        metric: the name; it includes the feature network if one was used.
        value: the number.
        better: direction of improvement: "lower", "higher", or a target such as "1".
        interval: 95 % interval; None if none was estimated.
        deviation: standard deviation over subsets, for a measure that is a mean over subsets.
    """

    metric: str
    value: float
    better: str
    interval: tuple[float, float] | None = None
    deviation: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The input of all measures.

    Attributes:
        network: the feature network of all sets.
        real, fake: the reference images, and the generated ones to judge.
        train, held_out: for memorisation: the training images, and real images that were not used in training.
        neighbours: k of precision, recall, density and coverage.
        subset_size: subset size of the kernel distance.
        repeats: repeats of the bootstrap; 0: no intervals.
        seed: seed of subsets and bootstrap.

    Raises:
        ValueError: sets with features of different networks.
    """

    network: FeatureNetwork
    real: ImageSet
    fake: ImageSet
    train: ImageSet | None = None
    held_out: ImageSet | None = None
    neighbours: int = 5
    subset_size: int = 1000
    repeats: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for other in (self.real, self.train, self.held_out):
            if other is not None:
                self.fake.check_comparable(other)

    def distance_interval(
        self, value: float, measure: Callable[[Tensor], float], features: Tensor | None = None
    ) -> tuple[float, float] | None:
        """Estimate the normal 95 % interval of a distance, which is never below 0, by the bootstrap over the generated
        images; their features are given if `measure` takes others than those of this network."""
        if not self.repeats:
            return None
        features = self.fake.features if features is None else features
        error = distances.bootstrap(measure, features, self.repeats, self.seed)
        return (max(0.0, value - 1.96 * error), value + 1.96 * error)

    def metric_name(self, kind: str) -> str:
        """Return the name of a metric of this kind with this feature network."""
        return self.network.metric_name(kind)


def measure_frechet(c: Comparison) -> list[Measurement]:
    """Measure the Frechet distance of the features."""

    def distance(features: Tensor) -> float:
        return distances.frechet_distance(c.real.features, features)

    value = distance(c.fake.features)
    interval = c.distance_interval(value, distance)
    return [Measurement(c.metric_name("Frechet distance"), value, "lower", interval)]


def measure_kernel(c: Comparison) -> list[Measurement]:
    """Measure the kernel distance of the features."""
    value, deviation = distances.kernel_distance(
        c.real.features, c.fake.features, subset_size=c.subset_size, seed=c.seed
    )
    return [Measurement(c.metric_name("kernel distance"), value, "lower", deviation=deviation)]


def measure_score(c: Comparison) -> list[Measurement]:
    """Measure the Inception Score, or the same score of another classifier."""
    value, deviation = distances.classifier_score(c.fake.logits, seed=c.seed)
    return [Measurement(c.metric_name("classifier score"), value, "higher", deviation=deviation)]


def measure_prdc(c: Comparison) -> list[Measurement]:
    """Measure precision, recall, density and coverage of the features."""
    values = neighbours.prdc(c.real.features, c.fake.features, c.neighbours)
    return [Measurement(c.metric_name(f"{key}, k = {c.neighbours}"), value, "higher") for key, value in values.items()]


def measure_diversity(c: Comparison) -> list[Measurement]:
    """Measure the mean distance between two generated images, divided by that between two real ones."""
    real = neighbours.diversity(c.real.features)
    if not real > 0:
        raise ValueError("All real images have the same features, so there is no diversity to compare with.")
    value = neighbours.diversity(c.fake.features) / real
    return [Measurement(c.metric_name("diversity against real images"), value, "1")]


def measure_classes(c: Comparison) -> list[Measurement]:
    """Measure how many classes the generated images cover, and how far their shares are from the real ones."""
    coverage = modes.class_coverage(c.real.logits, c.fake.logits)
    return [
        Measurement(c.metric_name(f"classes covered of {coverage['classes']}"), coverage["covered"], "higher"),
        Measurement(c.metric_name("reverse KL of class shares"), coverage["reverse_kl"], "lower"),
    ]


def measure_agreement(c: Comparison) -> list[Measurement]:
    """Measure the share of generated images whose requested class the network recognises, and that of real images."""
    values = []
    for kind, images in (("class agreement", c.fake), ("class agreement of real images", c.real)):
        recognised = (images.logits.argmax(1) == images.labels).double()
        value = mean_measurement(c.metric_name(kind), recognised, "higher")
        if value.interval is not None:
            low, high = value.interval  # a share is from 0 to 1
            value = dataclasses.replace(value, interval=(max(0.0, low), min(1.0, high)))
        values.append(value)
    return values


def measure_memorisation(c: Comparison) -> list[Measurement]:
    """Measure the distance of generated images to the training images, against that of held-out images."""
    values = neighbours.memorisation(c.fake.features, c.train.features, c.held_out.features)
    ratio = c.metric_name("distance to training images against held-out ones")
    nearer = c.metric_name("nearer to training images than held-out ones")
    return [Measurement(ratio, values["ratio"], "1"), Measurement(nearer, values["nearer"], "0.5")]


def measure_spectrum(c: Comparison) -> list[Measurement]:
    """Measure the difference of the radial power spectra. No features are used."""
    real, fake = (from_levels(images.images) for images in (c.real, c.fake))
    return [Measurement("spectrum distance, dB", pixels.spectrum_distance(real, fake), "lower")]


MEASURES: dict[str, Callable[[Comparison], list[Measurement]]] = {
    "frechet": measure_frechet,
    "kernel_distance": measure_kernel,
    "classifier_score": measure_score,
    "precision_recall": measure_prdc,
    "diversity": measure_diversity,
    "class_coverage": measure_classes,
    "class_agreement": measure_agreement,
    "memorisation": measure_memorisation,
    "spectrum": measure_spectrum,
}
"""The values of `--metrics` that need images alone."""


FEATURELESS, CLASSES = ("spectrum",), ("classifier_score", "class_coverage", "class_agreement")
"""Measures that use no features, and those that use class scores."""


def measure_all(names: Sequence[str], comparisons: Sequence[Comparison]) -> list[tuple[Measurement, list[Comparison]]]:
    """Measure the same images by several feature networks.

    Each network computes the measures that it can: those of `CLASSES` need class scores, and those of `FEATURELESS`
    are computed once. With several networks, the geometric mean of the Frechet distances follows.

    Args:
        names: keys of `MEASURES`.
        comparisons: of the same images, one for each network.

    Returns:
        Each measurement with the comparisons that it is of.
    """
    rows = []
    for name in names:
        suited = [c for c in comparisons if c.network.scores or name not in CLASSES]
        for c in suited[:1] if name in FEATURELESS else suited:
            rows += [(measurement, [c]) for measurement in MEASURES[name](c)]
        if name == "frechet" and len(comparisons) > 1:
            rows.append((measure_joint(comparisons), list(comparisons)))
    return rows


def measure_joint(comparisons: Sequence[Comparison]) -> Measurement:
    """Measure the geometric mean of the Frechet distances of the same images by several networks.

    The bootstrap repeats images, so the networks see the same ones in each sample of it.
    """
    first, widths = comparisons[0], [c.fake.features.shape[1] for c in comparisons]

    def mean(features: Tensor) -> float:
        parts = zip(comparisons, features.split(widths, 1), strict=True)
        return distances.geometric_mean([distances.frechet_distance(c.real.features, part) for c, part in parts])

    features = torch.cat([c.fake.features for c in comparisons], 1)
    value = mean(features)
    interval = first.distance_interval(value, mean, features)
    return Measurement(joint_name([c.network for c in comparisons]), value, "lower", interval)


def joint_name(networks: Sequence[FeatureNetwork]) -> str:
    """Return the name of the geometric mean of the Frechet distances by these networks."""
    return f"{JOINT} ({'; '.join(network.label for network in networks)})"


def check_networks(names: list[str], networks: Sequence[FeatureNetwork], *counts: int) -> None:
    """Refuse measures that could not be computed with these networks, before anything is generated.

    Args:
        names: keys of `MEASURES`.
        networks: the feature networks.
        counts: the other arguments of `check_counts`.

    Raises:
        ValueError: as `check_counts`; a measure of classes needs one network that has some.
    """
    needy = [name for name in names if name not in FEATURELESS]
    if needy and any(network.name == NO_FEATURES for network in networks):
        what = f"{', '.join(needy)} compare features"
        raise ValueError(f"--features {NO_FEATURES}: {what}. Name some, or leave these metrics out.")
    able = any(network.scores for network in networks)
    for network in networks:
        check_counts([n for n in names if network.scores or not (able and n in CLASSES)], network, *counts)


def check_counts(names: list[str], network: FeatureNetwork, real: int, fake: int, k: int, subset_size: int) -> None:
    """Refuse measures that could not be computed, before anything is generated.

    Raises:
        ValueError: too few images for a measure, or a network without classes for one that needs them.
    """
    least = {"frechet": network.num_features + 1, "kernel_distance": subset_size, "classifier_score": 20}
    least |= {"precision_recall": k + 1, "diversity": 2}
    for name in names:
        if min(real, fake) < least.get(name, 1):
            raise ValueError(
                f"{name} with features of {network.name} needs {least[name]} images or more of each kind, but there "
                f"are {real} real and {fake} generated ones. Raise --num_samples, or leave {name} out."
            )
    for name in CLASSES:
        if name in names and not network.scores:
            raise ValueError(f"{network.name} has no classes, which {name} needs. Leave {name} out.")


def mean_measurement(metric: str, values: Tensor, better: str) -> Measurement:
    """Return the mean of values (N,), one per image, with its normal 95 % interval.

    Raises:
        ValueError: no values, not one number per image, or a value that is not finite.
    """
    if values.dim() != 1 or not len(values):
        raise ValueError(f"{metric}: values must be (N,), one per image, not {tuple(values.shape)}.")
    if bad := int((~values.isfinite()).sum()):
        raise ValueError(f"{metric}: {bad} of {len(values)} values are not finite, so they have no mean.")
    mean = values.double().mean().item()
    if len(values) == 1:
        return Measurement(metric, mean, better)
    error = values.double().std().item() / math.sqrt(len(values))
    return Measurement(metric, mean, better, (mean - 1.96 * error, mean + 1.96 * error))
