"""The recipe of VQ-GAN and VAE-GAN: an autoencoder with a discriminator and a perceptual distance."""

from typing import Any

import torch
from torch import nn

import hfgen

from ...data.images import ImageData
from ...metrics.perceptual import perceptual_distance
from ...models.build_gan import build_gan
from ...objectives.autoencoding import AutoencoderObjective
from ...options import DataArgs, TrainArgs
from ...trainer.loop import check_rates
from ..vae.options import PriorArgs
from ..vae.recipe import AutoencoderRecipe, ObjectiveEntry, make_recipe
from .options import CriticArgs, VQGANNetworkArgs

CARD_OPTIONS = ("discriminator", "adversarial", "r1", "adversarial_weight", "pixels", "perceptual", "feature_matching")
"""Options that a card lists besides those of autoencoders."""


def with_critic(inner: AutoencoderObjective, args: CriticArgs) -> hfgen.AutoencoderGAN:
    """Return the objective of an autoencoder with a discriminator, from the autoencoder's own objective."""
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
"""Value of `--objective` -> entry of the autoencoder's own objective. `with_critic` adds the discriminator."""


def make_inner_recipe(
    data_args: DataArgs, network_args: VQGANNetworkArgs, critic_args: CriticArgs, prior_args: PriorArgs, args: TrainArgs
) -> AutoencoderRecipe:
    """Return the recipe of the autoencoder itself, after a check of all options.

    Raises:
        ValueError: options out of range, or that do not go together. No data are read before.
    """
    if critic_args.prior_samples and prior_args.prior == "vamp":
        raise ValueError("--prior_samples draws from the standard normal, and --prior vamp is another prior. Drop one.")
    recipe = make_recipe(data_args, network_args, critic_args, prior_args, args, OBJECTIVES)
    with torch.device("meta"):
        build_discriminator(critic_args, data_args.resolution or 32, data_args.channels or 1)
        shape = data_args.resolution or 32, data_args.channels or 1
        check_rates(args, with_critic(recipe.objective(recipe.autoencoder(*shape)), critic_args).players)
    return recipe


def build_discriminator(args: CriticArgs, resolution: Any, channels: int) -> nn.Module:
    """Return the discriminator for images of this shape. Raises ValueError if they are too small."""
    norm = {"norm": "none" if args.r1 else "batch", "spectral_norm": args.spectral_norm}
    return build_gan(args.discriminator, args.discriminator_size, resolution, channels, **norm)[1]


def critics(args: CriticArgs, data: ImageData) -> dict[str, nn.Module]:
    """Return the discriminator and, if its weight is not 0, the perceptual distance, by their names in the objective.

    Raises:
        ValueError: images of a shape that the discriminator or the perceptual distance does not take.
    """
    networks = {"discriminator": build_discriminator(args, data.resolution, data.channels)}
    if args.perceptual:
        try:
            networks["perceptual"] = perceptual_distance(args.perceptual_features, data.channels, data.size)
        except ValueError as error:
            advice = (
                "Give --perceptual_features a Hub id such as facebook/dinov2-base, which takes images of any shape, or "
                "--perceptual 0."
            )
            raise ValueError(f"{str(error).split('. ')[0]}. {advice}") from error
    return networks
