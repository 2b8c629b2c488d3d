"""The measures that `hfgen evaluate` knows, by name: one function each, from two sets of images to figures."""

import dataclasses
import math
from collections.abc import Callable

from torch import Tensor

from ..utils.pixels import from_levels
from . import distances, modes, neighbours, pixels
from .feature_network import FeatureNetwork, ImageSet


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number and what is known of its error.

    Attributes:
        metric: the name, with the feature network in it where there is one.
        value: the number.
        better: what to hope for: "lower", "higher" or a target such as "1".
        interval: 95 % interval; None where none was estimated.
        deviation: standard deviation over subsets, where the measure is a mean over subsets.
    """

    metric: str
    value: float
    better: str
    interval: tuple[float, float] | None = None
    deviation: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What measures work on.

    Attributes:
        network: the feature network of all sets.
        real, fake: the reference, and the images to judge.
        train, held_out: for memorisation: what the model was trained on, and real images it has not seen.
        neighbours: k of precision, recall, density and coverage.
        subset_size: of the kernel distance.
        repeats: of the bootstrap, 0: no intervals.
        seed: of subsets and bootstrap.
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
                self.fake.against(other)

    def interval(self, value: float, measure: Callable[[Tensor], float]) -> tuple[float, float] | None:
        """Normal 95 % interval of a value, from the bootstrap over the images to judge."""
        if not self.repeats:
            return None
        error = distances.bootstrap(measure, self.fake.features, self.repeats, self.seed)
        return (value - 1.96 * error, value + 1.96 * error)

    def named(self, kind: str) -> str:
        """The name of a number of this kind."""
        return self.network.metric_name(kind)


def frechet(c: Comparison) -> list[Figure]:
    """Frechet distance of the features."""

    def measure(features: Tensor) -> float:
        return distances.frechet_distance(c.real.features, features)

    value = measure(c.fake.features)
    interval = c.interval(value, measure)
    if interval is not None:
        interval = (max(0.0, interval[0]), interval[1])  # a distance is never below 0
    return [Figure(c.named("Frechet distance"), value, "lower", interval)]


def kernel(c: Comparison) -> list[Figure]:
    """Kernel distance of the features."""
    value, deviation = distances.kernel_distance(
        c.real.features, c.fake.features, subset_size=c.subset_size, seed=c.seed
    )
    return [Figure(c.named("kernel distance"), value, "lower", deviation=deviation)]


def score(c: Comparison) -> list[Figure]:
    """Inception Score, or what it is with another classifier."""
    value, deviation = distances.classifier_score(c.fake.logits, seed=c.seed)
    return [Figure(c.named("classifier score"), value, "higher", deviation=deviation)]


def manifold(c: Comparison) -> list[Figure]:
    """Precision, recall, density and coverage of the features."""
    found = neighbours.prdc(c.real.features, c.fake.features, c.neighbours)
    return [Figure(c.named(f"{name}, k = {c.neighbours}"), value, "higher") for name, value in found.items()]


def diverse(c: Comparison) -> list[Figure]:
    """Mean distance between two generated images, over that between two real ones."""
    value = neighbours.diversity(c.fake.features) / neighbours.diversity(c.real.features)
    return [Figure(c.named("diversity against real images"), value, "1")]


def classes(c: Comparison) -> list[Figure]:
    """Classes that generated images cover, and how far their shares are from the real ones."""
    found = modes.of_classes(c.real.logits, c.fake.logits)
    return [
        Figure(c.named(f"classes covered of {found['classes']}"), found["covered"], "higher"),
        Figure(c.named("reverse KL of class shares"), found["reverse_kl"], "lower"),
    ]


def memory(c: Comparison) -> list[Figure]:
    """Distance to the training images against that of images held out."""
    found = neighbours.memorisation(c.fake.features, c.train.features, c.held_out.features)
    return [
        Figure(c.named("distance to training images against held-out ones"), found["ratio"], "1"),
        Figure(c.named("nearer to training images than held-out ones"), found["nearer"], "0.5"),
    ]


def spectrum(c: Comparison) -> list[Figure]:
    """Difference of the radial power spectra; no features."""
    real, fake = (from_levels(each.images) for each in (c.real, c.fake))
    return [Figure("spectrum distance, dB", pixels.spectrum_distance(real, fake), "lower")]


MEASURES: dict[str, Callable[[Comparison], list[Figure]]] = {
    "frechet": frechet,
    "kid": kernel,
    "is": score,
    "prdc": manifold,
    "diversity": diverse,
    "modes": classes,
    "memorisation": memory,
    "spectrum": spectrum,
}
"""What `--metrics` may name, of images alone."""


def check_counts(names: list[str], network: FeatureNetwork, real: int, fake: int, k: int, subset_size: int) -> None:
    """Refuse what could not be measured, before anything is generated.

    Raises:
        ValueError: too few images for a measure, or a network without classes for one that needs them.
    """
    least = {"frechet": network.num_features + 1, "kid": subset_size, "is": 20, "prdc": k + 1, "diversity": 2}
    for name in names:
        if min(real, fake) < least.get(name, 1):
            raise ValueError(
                f"{name} with features of {network.name} needs {least[name]} images or more, of both kinds; there are "
                f"{real} real and {fake} generated ones. Raise --num_samples, or leave {name} out."
            )
    for name in ("is", "modes"):
        if name in names and not network.scores:
            raise ValueError(f"{network.name} has no classes, which {name} needs. Leave {name} out.")


def of_values(metric: str, values: Tensor, better: str) -> Figure:
    """The mean of values (N,) of single images, with its normal 95 % interval."""
    mean, error = values.double().mean().item(), values.double().std().item() / math.sqrt(len(values))
    return Figure(metric, mean, better, (mean - 1.96 * error, mean + 1.96 * error) if len(values) > 1 else None)
