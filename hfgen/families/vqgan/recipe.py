"""From options to what `train_vqgan` trains: an autoencoder's design with a discriminator's part in it."""

from typing import Any

import torch
from torch import nn

import hfgen

from ...data.images import ImageData
from ...metrics.perceptual import perceptual_distance
from ...models.build_gan import build_gan
from ...objectives.autoencoding import AutoencoderObjective
from ...options import DataArgs, SampleArgs, TrainArgs
from ..vae import recipe as autoencoders
from ..vae.options import HeldOutArgs, PriorArgs
from ..vae.recipe import Design, Row
from .options import CriticArgs, NetworkArgs

CHOSEN = ("discriminator", "adversarial", "r1", "adversarial_weight", "pixels", "perceptual", "feature_matching")
"""Options that a card repeats, besides those of autoencoders."""


def critiqued(inner: AutoencoderObjective, args: CriticArgs) -> hfgen.AutoencoderGAN:
    """An autoencoder's objective with what a discriminator adds to it."""
    weights = args.pixels, args.perceptual, args.feature_matching
    start, penalties = args.discriminator_start, [hfgen.R1(args.r1)] if args.r1 else []
    return hfgen.AutoencoderGAN(
        inner, args.adversarial, args.adversarial_weight, start, *weights, args.adaptive, penalties
    )


ROWS = {
    "vq": Row(
        "VQ-GAN",
        "VQ-GAN",
        lambda seen, shape, args: critiqued(hfgen.VectorQuantized(seen, args.commitment), args),
    ),
    "elbo": Row(
        "VAE-GAN",
        "VAE-GAN",
        lambda seen, shape, args: critiqued(
            hfgen.ELBO(seen, shape, args.beta, args.beta_warmup_steps, args.free_bits, args.prior_samples), args
        ),
    ),
}
"""As `autoencoders.ROWS`."""


def design(
    data_args: DataArgs,
    network_args: NetworkArgs,
    critic_args: CriticArgs,
    prior_args: PriorArgs,
    held_args: HeldOutArgs,
    sample_args: SampleArgs,
    args: TrainArgs,
) -> Design:
    """What the options of a run ask for.

    Raises:
        ValueError: options of no effect, out of range, or that do not go together: before any data are read.
    """
    if critic_args.prior_samples and prior_args.prior == "vamp":
        raise ValueError("--prior_samples are of the standard normal, and --prior vamp trains under another. Drop one.")
    found = autoencoders.design(
        *(data_args, network_args, critic_args, prior_args, held_args, sample_args, args), rows=ROWS
    )
    with torch.device("meta"):
        discriminator(critic_args, data_args.resolution or 32, data_args.channels or 1)
    return found


def discriminator(args: CriticArgs, resolution: Any, channels: int) -> nn.Module:
    """The discriminator of images of this shape. Raises ValueError for images that are too small."""
    norm = {"norm": "none" if args.r1 else "batch", "spectral_norm": args.spectral_norm}
    return build_gan(args.discriminator, args.discriminator_size, resolution, channels, **norm)[1]


def networks(args: CriticArgs, autoencoder: nn.Module, data: ImageData) -> dict[str, nn.Module]:
    """All networks by the names that the objective knows.

    Raises:
        ValueError: images that discriminator or perceptual distance can't take.
    """
    found = {"autoencoder": autoencoder, "discriminator": discriminator(args, data.resolution, data.channels)}
    if args.perceptual:
        try:
            found["perceptual"] = perceptual_distance(args.perceptual_features, data.channels, data.size)
        except ValueError as error:
            advice = (
                "As --perceptual_features a Hub id such as facebook/dinov2-base takes any images; --perceptual 0: none."
            )
            raise ValueError(f"{str(error).split('. ')[0]}. {advice}") from error
    return found
