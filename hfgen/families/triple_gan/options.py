"""Options of Triple-GAN. No torch here: `--help` reads this file."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ...data.label_options import PartialLabelDataArgs
from ...options import NEVER, POSITIVE, Options, TrainArgs, option, variant
from ...utils.ranges import ABOVE_0, AT_LEAST_0, BELOW_1, COUNT, COUNT_OR_0, INSIDE_0_1
from ..adversarial_options import AdversarialTrainArgs
from ..gan.options import AdversarialArgs, GANArgs, GANSampleArgs, HealthArgs
from ..vae.options import HeldOutArgs


@dataclasses.dataclass
class TripleNetworkArgs(Options):
    """Networks"""

    COMMON = ("model", "model_size", "classifier_size")

    model: Literal["dcgan", "residual", "resnet", "mlp"] = variant(
        GANArgs, "model", "dcgan", "generator and discriminator, which are told the class; residual: a small R3GAN"
    )
    model_size: Literal["xs", "s", "m"] = variant(GANArgs, "model_size", "s", "width, depth and latent dimension")
    latent_channels: int | None = option(None, "dimension of a latent vector; default: that of the size", range=COUNT)
    classifier_size: Literal["xs", "s", "m"] = option("xs", "about 0.1, 0.5 or 2 million parameters of the classifier")


@dataclasses.dataclass
class TripleArgs(Options):
    """Objective"""

    COMMON = ("alpha", "pseudo_pairs", "pseudo_weight", "augment")

    alpha: float = option(0.5, "share of the classifier among the pairs that are not true", range=INSIDE_0_1)
    loss: Literal["non_saturating", "minimax"] = option("non_saturating", "loss of the generator")
    estimator: Literal["sampled", "exact"] = option(
        "sampled", "mean over the classifier's labels: from one of them, or over all, a pass of the discriminator each"
    )
    pseudo_pairs: float = option(
        0.5, "share of the classifier's pairs among those that the discriminator takes for true ones", range=BELOW_1
    )
    pseudo_weight: float = option(
        0.1, "weight of the classifier's cross-entropy on generated images; 0: none", range=AT_LEAST_0
    )
    pseudo_after: int = option(500, "step from which that term counts", {"pseudo_weight": POSITIVE}, range=COUNT_OR_0)
    entropy: float = option(
        0.0, "weight of the mean entropy of the classifier's labels of all images; 0: none", range=AT_LEAST_0
    )
    r1: float = option(1.0, "weight of R1, half the squared gradient of the scores at true pairs", range=AT_LEAST_0)
    penalty_every: int = option(
        4, "apply it every so many steps only, with so many times the weight", {"r1": POSITIVE}, range=COUNT
    )
    augment: str = variant(
        AdversarialArgs, "augment", "translation", "augmentations of all images, separated by commas; or none"
    )


@dataclasses.dataclass
class AccuracyArgs(HeldOutArgs):
    """Measurements after training"""

    COMMON = ("held_out_split", "num_likelihood")

    num_likelihood: int = variant(
        HeldOutArgs, "num_likelihood", 10000, "number of images to classify, at most; the classifier's accuracy"
    )
    likelihood_samples: int = variant(
        HeldOutArgs, "likelihood_samples", 100, "none: a generator has no likelihood", only_with=NEVER
    )


@dataclasses.dataclass
class TripleTrainArgs(AdversarialTrainArgs):
    """Training"""

    learning_rate: float = variant(TrainArgs, "learning_rate", 2e-3, "peak learning rate of the players")
    classifier_learning_rate: float | None = option(
        None, "peak learning rate of the classifier; default: learning_rate", resumable=True, range=ABOVE_0
    )
    adam_beta1: float = variant(TrainArgs, "adam_beta1", 0.0, "AdamW beta1; with momentum the players oscillate")

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Return the peak learning rates of players that have their own."""
        own = {} if self.classifier_learning_rate is None else {"classifier": self.classifier_learning_rate}
        return {**super().learning_rates, **own}

    def slower(self, factor: float) -> "TripleTrainArgs":
        """Return the options with the learning rates of all players divided by `factor`."""
        own = self.classifier_learning_rate
        rates = {} if own is None else {"classifier_learning_rate": own / factor}
        return dataclasses.replace(super().slower(factor), **rates)


DESCRIPTION = "Train a classifier and a conditional generator against one discriminator, from few labels."
EXAMPLE = "hfgen train triple_gan --config triple_gan_digits --max_train_steps 500"
GROUPS = (
    PartialLabelDataArgs,
    TripleNetworkArgs,
    TripleArgs,
    HealthArgs,
    AccuracyArgs,
    GANSampleArgs,
    TripleTrainArgs,
)
