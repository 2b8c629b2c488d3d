"""Options of autoencoders with a discriminator, and which belong together. No torch here: `--help` reads this."""

import dataclasses
from typing import Literal

from ...options import TrainArgs, option
from ..vae.options import BELONGS as OF_AUTOENCODERS
from ..vae.options import AutoencoderArgs, CodingArgs


@dataclasses.dataclass
class NetworkArgs(AutoencoderArgs):
    """Network and likelihood"""

    model: Literal["mlp", "conv", "kl", "vq", "vqmodel"] = option(
        "vq", "vq, vqmodel: a grid of codes; mlp, conv: one latent vector an image; kl: a grid of them"
    )
    likelihood: Literal["bernoulli", "gaussian", "gaussian_learned", "discretized_logistic_mixture"] = option(
        "gaussian", "p(x | z), whose mean the discriminator judges"
    )


@dataclasses.dataclass
class CriticArgs(CodingArgs):
    """Objective"""

    objective: Literal["vq", "elbo"] = option(
        "vq", "of the autoencoder, with a discriminator's; vq: VQ-GAN; elbo: VAE-GAN"
    )
    discriminator: Literal["dcgan", "residual", "resnet", "mlp"] = option("dcgan", "its network")
    discriminator_size: Literal["xs", "s", "m"] = option("s", "its width and depth")
    spectral_norm: bool = option(False, "its weights have spectral norm 1")
    adversarial: Literal["hinge", "non_saturating", "minimax", "least_squares", "wasserstein", "relativistic"] = option(
        "hinge", "adversarial loss"
    )
    r1: float = option(
        0.0, "weight of R1, half the discriminator's squared gradient at real images; no batch norm then"
    )
    adversarial_weight: float = option(0.1, "of it for the autoencoder")
    adaptive: bool = option(True, "weigh by gradients in the decoder's last layer; 1 is as strong as all else then")
    discriminator_start: int = option(0, "optimiser step with which discriminator and adversarial loss begin")
    pixels: float = option(1.0, "weight of -log p(x | z) per dimension; 0: off")
    perceptual: float = option(1.0, "weight of the perceptual distance of reconstructions; 0: off")
    perceptual_features: str = option("auto", "by which network: digits, mnist, cifar10, a Hub id; auto: by shape")
    feature_matching: float = option(0.0, "weight of the distance in the discriminator's last hidden map; 0: off")
    prior_samples: bool = option(False, "the discriminator judges samples of the prior, too")


@dataclasses.dataclass
class LearningArgs(TrainArgs):
    """Training"""

    output_dir: str = option("outputs/vqgan", "folder for the pipeline, pictures, logs and checkpoints")
    learning_rate: float = option(5e-4, "peak learning rate of both players")
    adam_beta1: float = option(0.5, "AdamW beta1")


IWAES = ("num_importance_samples", "corruption", "corruption_strength")
"""Options of objectives that have no discriminator here."""

BELONGS = {name: rule for name, rule in OF_AUTOENCODERS.items() if name not in IWAES} | {
    "prior_samples": ("objective", ("elbo",)),
}
"""Options that mean something only with some values of another."""
