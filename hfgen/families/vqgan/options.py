"""Options of autoencoders with a discriminator. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import POSITIVE, DataArgs, TrainArgs, option, variant
from ...utils.ranges import AT_LEAST_0, COUNT_OR_0
from ..adversarial_options import AdversarialTrainArgs
from ..vae.options import AutoencoderArgs, CodingArgs, HeldOutArgs, PriorArgs, PriorSampleArgs


@dataclasses.dataclass
class VQGANNetworkArgs(AutoencoderArgs):
    """Network and likelihood"""

    COMMON = ("model", "model_size", "likelihood")

    model: Literal["mlp", "conv", "kl", "vq", "vqmodel"] = variant(
        AutoencoderArgs,
        "model",
        "vq",
        "vq, vqmodel: a grid of codes; mlp, conv: one latent vector per image; kl: a grid of them",
    )
    likelihood: Literal["bernoulli", "gaussian", "gaussian_learned", "discretized_logistic_mixture"] = variant(
        AutoencoderArgs, "likelihood", "gaussian", "p(x | z); the discriminator sees its mean"
    )


@dataclasses.dataclass
class CriticArgs(CodingArgs):
    """Objective"""

    COMMON = (
        *("objective", "discriminator", "discriminator_size", "adversarial", "adversarial_weight"),
        "perceptual",
    )

    objective: Literal["vq", "elbo"] = variant(
        CodingArgs, "objective", "vq", "objective of the autoencoder; with the discriminator vq is VQ-GAN, elbo VAE-GAN"
    )
    discriminator: Literal["dcgan", "residual", "resnet", "mlp"] = option("dcgan", "network of the discriminator")
    discriminator_size: Literal["xs", "s", "m"] = option("s", "width and depth of the discriminator")
    spectral_norm: bool = option(False, "keep the spectral norm of the discriminator's weights at 1")
    adversarial: Literal["hinge", "non_saturating", "minimax", "least_squares", "wasserstein", "relativistic"] = option(
        "hinge", "adversarial loss"
    )
    r1: float = option(
        0.0,
        "weight of R1, half the discriminator's squared gradient at real images; above 0: no batch norm",
        range=AT_LEAST_0,
    )
    adversarial_weight: float = option(0.1, "weight of the adversarial loss for the autoencoder", range=AT_LEAST_0)
    adaptive: bool = option(
        True, "scale it by gradients in the decoder's last layer: weight 1 is as strong as all other terms"
    )
    discriminator_start: int = option(
        0, "optimiser step at which discriminator and adversarial loss start", range=COUNT_OR_0
    )
    pixels: float = option(1.0, "weight of -log p(x | z) per dimension; 0: off", range=AT_LEAST_0)
    perceptual: float = option(1.0, "weight of the perceptual distance of reconstructions; 0: off", range=AT_LEAST_0)
    perceptual_features: str = option(
        "auto",
        "network of the perceptual distance: digits, mnist, cifar10, one of these with -texture, a Hub id; auto: the "
        "classifier for the images' shape",
        path=True,
        only_with={"perceptual": POSITIVE},
    )
    feature_matching: float = option(
        0.0, "weight of the distance in the discriminator's last hidden map; 0: off", range=AT_LEAST_0
    )
    prior_samples: bool = option(
        False, "give the discriminator samples of the prior, too", only_with={"objective": ("elbo",)}
    )


@dataclasses.dataclass
class VQGANTrainArgs(AdversarialTrainArgs):
    """Training"""

    output_dir: str = variant(
        TrainArgs, "output_dir", "outputs/vqgan", "folder for the pipeline, pictures, logs and checkpoints"
    )
    learning_rate: float = variant(TrainArgs, "learning_rate", 5e-4, "peak learning rate of the players")
    adam_beta1: float = variant(TrainArgs, "adam_beta1", 0.5)


DESCRIPTION = "Train an autoencoder on images together with a discriminator of its reconstructions: VQ-GAN or VAE-GAN."
EXAMPLE = "hfgen train vqgan --config mnist_vqgan --max_train_steps 500"
GROUPS = (DataArgs, VQGANNetworkArgs, CriticArgs, PriorArgs, HeldOutArgs, PriorSampleArgs, VQGANTrainArgs)
