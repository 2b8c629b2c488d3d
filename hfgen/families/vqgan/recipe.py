"""The recipe of VQ-GAN and VAE-GAN: that of an autoencoder, with a discriminator and a perceptual distance."""

from typing import Any

import torch
from torch import nn

import hfgen

from ...data.images import ImageData
from ...metrics.perceptual import perceptual_distance
from ...models.build_gan import build_gan
from ...objectives.autoencoding import AutoencoderObjective
from ...options import DataArgs, TrainArgs
from ..vae.options import PriorArgs
from ..vae.recipe import AutoencoderRecipe, ObjectiveEntry, make_recipe
from .options import CriticArgs, NetworkArgs

CARD_OPTIONS = ("discriminator", "adversarial", "r1", "adversarial_weight", "pixels", "perceptual", "feature_matching")
"""Options that a card repeats, besides those of autoencoders."""


def with_critic(inner: AutoencoderObjective, args: CriticArgs) -> hfgen.AutoencoderGAN:
    """Return an autoencoder's objective with the terms of a discriminator."""
    weights = args.pixels, args.perceptual, args.feature_matching
    start, penalties = args.discriminator_start, [hfgen.R1(args.r1)] if args.r1 else []
    return hfgen.AutoencoderGAN(
        inner, args.adversarial, args.adversarial_weight, start, *weights, args.adaptive, penalties
    )


OBJECTIVES = {
    "vq": ObjectiveEntry(
        "VQ-GAN",
        "VQ-GAN",
        lambda likelihood, shape, args: hfgen.VectorQuantized(likelihood, args.commitment),
    ),
    "elbo": ObjectiveEntry(
        "VAE-GAN",
        "VAE-GAN",
        lambda likelihood, shape, args: hfgen.ELBO(
            likelihood, shape, args.beta, args.beta_warmup_steps, args.free_bits, args.prior_samples
        ),
    ),
}
"""The autoencoder's own objective, to which `with_critic` adds a discriminator, by the value of `--objective`."""


def make_inner_recipe(
    data_args: DataArgs, network_args: NetworkArgs, critic_args: CriticArgs, prior_args: PriorArgs, args: TrainArgs
) -> AutoencoderRecipe:
    """Return the recipe of the autoencoder itself, after checking what its critics need.

    Raises:
        ValueError: options out of range, or that do not go together: before any data are read.
    """
    if critic_args.prior_samples and prior_args.prior == "vamp":
        raise ValueError("--prior_samples are of the standard normal, and --prior vamp trains under another. Drop one.")
    recipe = make_recipe(data_args, network_args, critic_args, prior_args, args, OBJECTIVES)
    with torch.device("meta"):
        build_discriminator(critic_args, data_args.resolution or 32, data_args.channels or 1)
        shape = data_args.resolution or 32, data_args.channels or 1
        with_critic(recipe.objective(recipe.autoencoder(*shape)), critic_args)
    return recipe


def build_discriminator(args: CriticArgs, resolution: Any, channels: int) -> nn.Module:
    """Return the discriminator of images of this shape. Raises ValueError for images that are too small."""
    norm = {"norm": "none" if args.r1 else "batch", "spectral_norm": args.spectral_norm}
    return build_gan(args.discriminator, args.discriminator_size, resolution, channels, **norm)[1]


def critics(args: CriticArgs, data: ImageData) -> dict[str, nn.Module]:
    """Return the discriminator, and the perceptual distance if its weight is not 0, by the names of the objective.

    Raises:
        ValueError: images that discriminator or perceptual distance can't take.
    """
    networks = {"discriminator": build_discriminator(args, data.resolution, data.channels)}
    if args.perceptual:
        try:
            networks["perceptual"] = perceptual_distance(args.perceptual_features, data.channels, data.size)
        except ValueError as error:
            advice = (
                "As --perceptual_features a Hub id such as facebook/dinov2-base takes any images; --perceptual 0: none."
            )
            raise ValueError(f"{str(error).split('. ')[0]}. {advice}") from error
    return networks
