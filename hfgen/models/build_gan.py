"""Build a generator and a discriminator from architecture, size, and the shape and classes of the images."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from diffusers import ModelMixin

from ..utils.arguments import checked
from .discriminators import (
    DCGANDiscriminatorModel,
    MLPDiscriminatorModel,
    ResidualDiscriminatorModel,
    ResNetDiscriminatorModel,
)
from .generators import DCGANGeneratorModel, MLPGeneratorModel, ResidualGeneratorModel, ResNetGeneratorModel
from .layers import pair

SIZES = ("xs", "s", "m")

LATENTS = {"xs": 32, "s": 64, "m": 100}
"""Size -> dimension of z; 100 is that of Goodfellow et al. and Radford et al."""

MLP_SHAPES = {"xs": (128, 256), "s": (256, 512), "m": (256, 512, 1024)}
"""Size -> hidden layers of the generator; the discriminator has them in reverse order."""

DCGAN_WIDTHS = {"xs": 32, "s": 64, "m": 128}
"""Size -> width of the level next to the image. Radford et al. have 128 at 64 x 64 pixels."""

RESNET_WIDTHS = {"xs": 16, "s": 32, "m": 64}
"""Size -> width of the level next to the image."""

RESIDUAL_SHAPES = {"xs": (16, 1, 128), "s": (24, 1, 256), "m": (64, 2, 512)}
"""Size -> width of the level next to the image, blocks per level, and width between the fully connected layers."""

MIN_SIDE = 4
"""Sides are halved while the shorter one keeps this many positions."""


class GANOptions(NamedTuple):
    """Options of both networks of a pair."""

    size: str
    sample_size: int | tuple[int, int]
    channels: int
    latent_channels: int
    num_classes: int | None
    norm: str
    spectral_norm: bool


@checked
def build_gan(
    architecture: Literal["residual", "dcgan", "resnet", "mlp"],
    size: Literal["xs", "s", "m"],
    resolution: int | tuple[int, int],
    channels: int,
    latent_channels: int | None = None,
    num_classes: int | None = None,
    norm: Literal["batch", "none"] = "batch",
    spectral_norm: bool = False,
) -> tuple[ModelMixin, ModelMixin]:
    """Build a generator and a discriminator of images (B, channels, H, W), where [-1, 1] is black to white.

    `residual`, a small R3GAN, is made for penalties on the discriminator's gradient. `dcgan` and `resnet` are the
    classic pairs. `mlp` takes images of any size, and points (B, 2, 1, 1) as well (without tanh: see
    `MLPGeneratorModel`). In `residual` and `resnet` a position of the first level is a square of 2 x 2 pixels, or one
    pixel if a side of the image is shorter than 16.

    Args:
        architecture: `residual`, `dcgan`, `resnet` or `mlp`.
        size: `xs`, `s` or `m`, see the tables above.
        resolution: H = W, or (H, W); at least 4, except for `mlp`.
        channels: channels of images.
        latent_channels: dimension d of the latents (B, d); None: that of the size.
        num_classes: number of classes of both networks; None: unconditional.
        norm: norm of the discriminator. `batch`: as in the papers, which is batch norm for `dcgan` without spectral
            norm, and none otherwise; `none`: never batch norm, for penalties on the gradient of each image's score.
        spectral_norm: whether the discriminator's weights have spectral norm 1.

    Raises:
        ValueError: an unknown choice, a number out of range, or images that are too small for convolutions.
    """
    names = (("architecture", architecture, _ARCHITECTURES), ("size", size, SIZES), ("norm", norm, ("batch", "none")))
    for name, value, choices in names:
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not known. Choose one of: {', '.join(choices)}.")
    for name, value in (("channels", channels), ("latent_channels", latent_channels), ("num_classes", num_classes)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    height, width = pair(resolution)
    least = 1 if architecture == "mlp" else MIN_SIDE
    if min(height, width) < least:
        raise ValueError(
            f"architecture={architecture!r} can't make {height} x {width} images: sides must be at least {least} "
            "(see --resolution)" + ("." if least == 1 else "; mlp makes smaller ones.")
        )
    sample_size = height if height == width else (height, width)
    latent = LATENTS[size] if latent_channels is None else latent_channels
    options = GANOptions(size, sample_size, channels, latent, num_classes, norm, spectral_norm)
    return _ARCHITECTURES[architecture](options)


def _mlp(options: GANOptions) -> tuple[MLPGeneratorModel, MLPDiscriminatorModel]:
    hidden, (generator, discriminator) = MLP_SHAPES[options.size], _common_options(options)
    return (
        MLPGeneratorModel(**generator, hidden_dims=hidden),
        MLPDiscriminatorModel(**discriminator, hidden_dims=tuple(reversed(hidden))),
    )


def _dcgan(options: GANOptions) -> tuple[DCGANGeneratorModel, DCGANDiscriminatorModel]:
    generator, discriminator = _common_options(options)
    # With one level, at 8 x 8 pixels, the discriminator has a thousand parameters, which are too few.
    widths = _widths(DCGAN_WIDTHS[options.size], max(2, _num_halvings(options.sample_size)))
    norm = "none" if options.spectral_norm else options.norm
    return (
        DCGANGeneratorModel(**generator, block_out_channels=widths),
        DCGANDiscriminatorModel(**discriminator, block_out_channels=widths, norm=norm),
    )


def _resnet(options: GANOptions) -> tuple[ResNetGeneratorModel, ResNetDiscriminatorModel]:
    generator, discriminator = _common_options(options)
    levels = _patch_options(options, RESNET_WIDTHS[options.size])
    return ResNetGeneratorModel(**generator, **levels), ResNetDiscriminatorModel(**discriminator, **levels)


def _residual(options: GANOptions) -> tuple[ResidualGeneratorModel, ResidualDiscriminatorModel]:
    generator, discriminator = _common_options(options)
    wide, layers, hidden = RESIDUAL_SHAPES[options.size]
    levels = {**_patch_options(options, wide), "layers_per_block": layers, "hidden_dim": hidden}
    return ResidualGeneratorModel(**generator, **levels), ResidualDiscriminatorModel(**discriminator, **levels)


def _common_options(options: GANOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that every generator has, and those that every discriminator has."""
    both = {"sample_size": options.sample_size, "num_class_embeds": options.num_classes}
    generator = {**both, "out_channels": options.channels, "latent_channels": options.latent_channels}
    return generator, {**both, "in_channels": options.channels, "spectral_norm": options.spectral_norm}


def _patch_options(options: GANOptions, wide: int) -> dict[str, Any]:
    """Return the patch size and the widths of the levels: one level, and one more for each time sides can be halved."""
    patch = 1 if min(pair(options.sample_size)) < 16 else 2
    return {"patch_size": patch, "block_out_channels": _widths(wide, 1 + _num_halvings(options.sample_size, patch))}


def _widths(wide: int, levels: int) -> tuple[int, ...]:
    return tuple(wide * min(2**level, 4) for level in range(levels))


def _num_halvings(sample_size: int | tuple[int, int], patch: int = 1) -> int:
    """Return how often the shorter side, in patches, can be halved before fewer than `MIN_SIDE` remain."""
    return (-(-min(pair(sample_size)) // patch) // MIN_SIDE).bit_length() - 1


_ARCHITECTURES: dict[str, Callable[[GANOptions], tuple[ModelMixin, ModelMixin]]] = {
    "residual": _residual,
    "dcgan": _dcgan,
    "resnet": _resnet,
    "mlp": _mlp,
}
