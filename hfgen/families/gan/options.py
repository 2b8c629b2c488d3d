"""Options of adversarial training. No torch here: `--help` reads this file."""

import dataclasses
from typing import Any, Literal

from ...options import POSITIVE, AnyOf, DataArgs, SampleArgs, TrainArgs, option, variant


@dataclasses.dataclass
class GANArgs:
    """Networks"""

    model: Literal["dcgan", "residual", "resnet", "mlp"] = option(
        "dcgan", "generator and discriminator; residual is R3GAN in small, resnet has class-conditional batch norm"
    )
    model_size: Literal["xs", "s", "m"] = option("s", "width, depth and latent dimension")
    latent_channels: int | None = option(None, "dimension of a latent vector; default: that of the size")
    class_conditional: bool = option(False, "tell both networks the class")


def gradient_weights(args: Any) -> dict[str, float]:
    """Return the weights of the penalties on the discriminator's gradient, which no batch norm may be in.

    `args` has the attributes of `AdversarialArgs`. R1 that is not given has weight 1, or 0 if another penalty or
    constraint holds the discriminator.
    """
    held = any((args.gradient_penalty, args.weight_clip, args.spectral_norm, args.control, args.consistency))
    r1 = (0.0 if held else 1.0) if args.r1 is None else args.r1
    return {"r1": r1, "r2": args.r2, "gradient_penalty": args.gradient_penalty}


@dataclasses.dataclass
class AdversarialArgs:
    """Objective"""

    loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"] = option(
        "non_saturating", "what generator and discriminator minimise"
    )
    n_critic: int = option(1, "turns of the discriminator before each of the generator")
    r1: float | None = option(
        None, "weight of R1, half the squared gradient at real images; default: 1, or 0 if others bound D"
    )
    r2: float = option(0.0, "weight of R2, the same at generated images; R3GAN: --loss relativistic, and 1 for both")
    gradient_penalty: float = option(0.0, "weight of WGAN-GP's penalty; 10 is usual; 0: none")
    penalty_every: int = option(
        4,
        "apply these three only every so many steps, with as many times the weight; WGAN-GP: 1",
        only_with=AnyOf(("r1", "r2", "gradient_penalty"), lambda options: any(gradient_weights(options).values())),
    )
    weight_clip: float = option(0.0, "bound of the discriminator's weights; 0.01 is WGAN's; 0: none")
    consistency: float = option(0.0, "weight of the change of scores when real images are shifted; 0: none")
    control: float = option(0.0, "weight of CLC-GAN's closed-loop control; 0: none")
    memory_size: int = option(1024, "generated images that control remembers", only_with={"control": POSITIVE})
    mode_seeking: float = option(0.0, "weight of the generator's penalty for different latents with one image; 0: none")
    augment: str = option("none", "augmentations of all images, by commas: color, translation, cutout")
    spectral_norm: bool = option(False, "keep the spectral norm of the discriminator's weights at 1")


@dataclasses.dataclass
class HealthArgs:
    """Health"""

    health_steps: int = option(
        500, "measure recall, coverage and diversity every so many steps; 0: never", resumable=True
    )
    health_samples: int = option(
        1000,
        "images drawn for it, and training images they are compared with",
        only_with={"health_steps": POSITIVE},
        resumable=True,
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
        "feature network of both: digits, mnist, cifar10, inception, a Hub id",
        only_with=AnyOf(("eval_steps", "health_steps")),
    )


@dataclasses.dataclass
class GANTrainArgs(TrainArgs):
    """Training"""

    learning_rate: float = variant(
        TrainArgs, "learning_rate", 2e-3, "peak learning rate of both players; without penalties 2e-4 is usual"
    )
    adam_beta1: float = variant(TrainArgs, "adam_beta1", 0.0, "AdamW beta1; momentum makes the game turn in circles")


DESCRIPTION = "Train a generator against a discriminator on images."
EXAMPLE = "accelerate launch training/train_gan.py --config training/configs/gan_digits.yaml --max_train_steps 500"
GROUPS = (DataArgs, GANArgs, AdversarialArgs, HealthArgs, GANSampleArgs, GANTrainArgs)
