"""Options of adversarial training. No torch here: `--help` reads this file."""

import dataclasses
from typing import Any, Literal

from ...options import POSITIVE, AnyOf, DataArgs, Options, SampleArgs, TrainArgs, ValueRule, option, variant
from ...utils.ranges import AT_LEAST_0, COUNT, COUNT_OR_0, LARGEST, SHARE, TWO_OR_MORE, Range
from ..adversarial_options import AdversarialTrainArgs

AUGMENTED = ValueRule("augmentations", "translation", lambda value: value != "none")
SEVERAL = ValueRule("a number above 1", "above 1", lambda value: value > 1)


@dataclasses.dataclass
class GANArgs(Options):
    """Networks"""

    COMMON = ("model", "model_size", "class_conditional")

    model: Literal["dcgan", "residual", "resnet", "mlp"] = option(
        "dcgan", "both networks; residual: a small R3GAN; resnet: with class-conditional batch norm"
    )
    model_size: Literal["xs", "s", "m"] = option("s", "width, depth and latent dimension")
    latent_channels: int | None = option(None, "dimension of a latent vector; default: that of the size", range=COUNT)
    class_conditional: bool = option(False, "give both networks the class")


def gradient_weights(args: Any) -> dict[str, float]:
    """Return the weights of the penalties on the discriminator's gradient: {name of the option: weight}.

    The default weight of R1 is 1, or 0 with another penalty or constraint on the discriminator. If a weight is not 0,
    the discriminator must be built without batch norm.

    Args:
        args: an object with the attributes of `AdversarialArgs`.
    """
    constrained = any((args.gradient_penalty, args.weight_clip, args.spectral_norm, args.control, args.consistency))
    r1 = (0.0 if constrained else 1.0) if args.r1 is None else args.r1
    return {"r1": r1, "r2": args.r2, "gradient_penalty": args.gradient_penalty}


@dataclasses.dataclass
class AdversarialArgs(Options):
    """Objective"""

    COMMON = ("loss", "n_critic", "r1", "r2", "gradient_penalty")

    loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"] = option(
        "non_saturating", "losses of generator and discriminator"
    )
    n_critic: int = option(1, "turns of the discriminator before each turn of the generator", range=COUNT)
    fresh_batches: bool = option(
        True, "give each turn of the discriminator other real images; else a step has one batch", {"n_critic": SEVERAL}
    )
    r1: float | None = option(
        None,
        "weight of R1, half the squared gradient at real images; default: 1, or 0 with another constraint",
        range=AT_LEAST_0,
    )
    r2: float = option(
        0.0,
        "weight of R2, the same at generated images; R3GAN: --loss relativistic, and weight 1 for both",
        range=AT_LEAST_0,
    )
    gradient_penalty: float = option(0.0, "weight of WGAN-GP's penalty; 10 is usual; 0: none", range=AT_LEAST_0)
    penalty_every: int = option(
        4,
        "apply these three every so many steps only, with so many times the weight; WGAN-GP: 1",
        only_with=AnyOf(("r1", "r2", "gradient_penalty"), lambda options: any(gradient_weights(options).values())),
        range=COUNT,
    )
    weight_clip: float = option(0.0, "bound of the discriminator's weights; WGAN: 0.01; 0: none", range=AT_LEAST_0)
    consistency: float = option(
        0.0, "weight of the squared change of scores when real images are shifted; 0: none", range=AT_LEAST_0
    )
    control: float = option(0.0, "weight of CLC-GAN's closed-loop control; 0: none", range=AT_LEAST_0)
    memory_size: int = option(
        1024, "number of generated images that control stores", only_with={"control": POSITIVE}, range=TWO_OR_MORE
    )
    mode_seeking: float = option(
        0.0, "weight of the generator's penalty for equal images from different latents; 0: none", range=AT_LEAST_0
    )
    orthogonal: float = option(
        0.0, "weight of the orthogonality of the generator's matrices; 0.0001 is usual; 0: none", range=AT_LEAST_0
    )
    augment: str = option(
        "none",
        "augmentations of all images, separated by commas: color (brightness, saturation, contrast), translation, "
        "cutout, flip",
    )
    augment_target: float | None = option(
        None,
        "adapt the probability of augmentations so that the mean sign of scores of real images has this value; 0.6 is "
        "usual; default: probability 1",
        {"augment": AUGMENTED},
        range=SHARE,
    )
    augment_speed: int = option(
        500_000,
        "number of images in which that probability can go from 0 to 1",
        {"augment_target": POSITIVE},
        range=COUNT,
    )
    spectral_norm: bool = option(False, "keep the spectral norm of the discriminator's weights at 1")


@dataclasses.dataclass
class HealthArgs(Options):
    """Health of the generator"""

    COMMON = ("health_steps", "on_collapse")

    health_steps: int = option(
        500, "measure recall, coverage and diversity every so many steps; 0: never", resumable=True, range=COUNT_OR_0
    )
    health_samples: int = option(
        1000,
        "number of images drawn for the measurement, and of training images to compare them with",
        only_with={"health_steps": POSITIVE},
        resumable=True,
        range=Range(20, LARGEST, quiet=True, whole=True),
    )
    on_collapse: Literal["stop", "continue", "rollback"] = option(
        "stop",
        "rollback: continue from the last healthy checkpoint with half the learning rate, at most three times",
        only_with={"health_steps": POSITIVE},
        resumable=True,
    )


@dataclasses.dataclass
class GANSampleArgs(SampleArgs):
    """Samples"""

    eval_features: str = variant(
        SampleArgs,
        "eval_features",
        "auto",
        "feature networks of evaluation, separated by commas: digits, digits-texture, mnist, mnist-texture, cifar10, "
        "cifar10-texture, inception, a Hub id; auto: both for the images' shape; health is measured by the first",
        only_with=AnyOf(("eval_steps", "health_steps")),
    )


@dataclasses.dataclass
class GANTrainArgs(AdversarialTrainArgs):
    """Training"""

    learning_rate: float = variant(
        TrainArgs, "learning_rate", 2e-3, "peak learning rate of the players; usual without penalties: 2e-4"
    )
    adam_beta1: float = variant(TrainArgs, "adam_beta1", 0.0, "AdamW beta1; with momentum the players oscillate")


DESCRIPTION = "Train a generator against a discriminator on images."
EXAMPLE = "hfgen train gan --config gan_digits --max_train_steps 500"
GROUPS = (DataArgs, GANArgs, AdversarialArgs, HealthArgs, GANSampleArgs, GANTrainArgs)
