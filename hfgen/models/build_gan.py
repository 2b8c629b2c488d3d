"""From what is known before a run (images, classes, how big) to a generator and a discriminator that fit."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from diffusers import ModelMixin

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
"""Dimension of z; 100 is Goodfellow's and Radford's."""

MLP_SHAPES = {"xs": (128, 256), "s": (256, 512), "m": (256, 512, 1024)}
"""Hidden layers from the latent to the image; the discriminator's go back."""

DCGAN_WIDTHS = {"xs": 32, "s": 64, "m": 128}
"""Width of the level next to the image. Radford's at 64 x 64 pixels is 128."""

RESNET_WIDTHS = {"xs": 16, "s": 32, "m": 64}
"""Width of the level next to the image."""

RESIDUAL_SHAPES = {"xs": (16, 1, 128), "s": (24, 1, 256), "m": (64, 2, 512)}
"""Width of the level next to the image, blocks a level, and width between the fully connected layers."""

MIN_SIDE = 4
"""Sides are halved while so many positions are left."""


class Shape(NamedTuple):
    """What both networks of a pair are told."""

    size: str
    sample_size: int | tuple[int, int]
    channels: int
    latent_channels: int
    num_classes: int | None
    norm: str
    spectral_norm: bool


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
    """A generator of images (B, channels, H, W), and a discriminator of them; [-1, 1] is black to white.

    `residual`, R3GAN in small, is made for penalties on the discriminator's gradient; `dcgan` and `resnet` are the
    classics; `mlp` takes anything, points (B, 2, 1, 1) as well (without tanh: see `MLPGeneratorModel`). In `residual`
    and `resnet` a position of the first level is a square of 2 x 2 pixels, or one pixel of images smaller than 16.

    Args:
        architecture: one of these.
        size: see the tables above.
        resolution: H = W, or (H, W); at least 4, but for `mlp`.
        channels: of images.
        latent_channels: d of the latents (B, d); None: that of the size.
        num_classes: classes that both are told; None: unconditional.
        norm: `batch`: discriminators as their papers have them, which is with batch norm for `dcgan` without spectral
            norm; `none`: never batch norm, as penalties on the gradient of single images' scores need it. Generators
            keep theirs.
        spectral_norm: whether the discriminator's weights have spectral norm 1.

    Raises:
        ValueError: an unknown choice, a number out of range, or images too small for convolutions.
    """
    choices = (("architecture", architecture, _ARCHITECTURES), ("size", size, SIZES), ("norm", norm, ("batch", "none")))
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known. Choose one of: {', '.join(known)}.")
    for name, value in (("channels", channels), ("latent_channels", latent_channels), ("num_classes", num_classes)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    height, width = pair(resolution)
    least = 1 if architecture == "mlp" else MIN_SIDE
    if min(height, width) < least:
        raise ValueError(
            f"architecture={architecture!r} can't make {height} x {width} images: sides have to be at least {least} "
            "(see --resolution)" + ("." if least == 1 else "; mlp makes smaller ones.")
        )
    sample_size = height if height == width else (height, width)
    latent = LATENTS[size] if latent_channels is None else latent_channels
    return _ARCHITECTURES[architecture](Shape(size, sample_size, channels, latent, num_classes, norm, spectral_norm))


def _mlp(shape: Shape) -> tuple[MLPGeneratorModel, MLPDiscriminatorModel]:
    hidden, (generator, discriminator) = MLP_SHAPES[shape.size], _shared(shape)
    return (
        MLPGeneratorModel(**generator, hidden_dims=hidden),
        MLPDiscriminatorModel(**discriminator, hidden_dims=tuple(reversed(hidden))),
    )


def _dcgan(shape: Shape) -> tuple[DCGANGeneratorModel, DCGANDiscriminatorModel]:
    generator, discriminator = _shared(shape)
    # At 8 x 8 pixels one level is a discriminator of a thousand parameters, which has nothing to say.
    widths = _widths(DCGAN_WIDTHS[shape.size], max(2, _halvings(shape.sample_size)))
    norm = "none" if shape.spectral_norm else shape.norm
    return (
        DCGANGeneratorModel(**generator, block_out_channels=widths),
        DCGANDiscriminatorModel(**discriminator, block_out_channels=widths, norm=norm),
    )


def _resnet(shape: Shape) -> tuple[ResNetGeneratorModel, ResNetDiscriminatorModel]:
    generator, discriminator = _shared(shape)
    options = _patched(shape, RESNET_WIDTHS[shape.size])
    return ResNetGeneratorModel(**generator, **options), ResNetDiscriminatorModel(**discriminator, **options)


def _residual(shape: Shape) -> tuple[ResidualGeneratorModel, ResidualDiscriminatorModel]:
    generator, discriminator = _shared(shape)
    wide, layers, hidden = RESIDUAL_SHAPES[shape.size]
    options = {**_patched(shape, wide), "layers_per_block": layers, "hidden_dim": hidden}
    return ResidualGeneratorModel(**generator, **options), ResidualDiscriminatorModel(**discriminator, **options)


def _shared(shape: Shape) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that every generator and every discriminator has."""
    both = {"sample_size": shape.sample_size, "num_class_embeds": shape.num_classes}
    generator = {**both, "out_channels": shape.channels, "latent_channels": shape.latent_channels}
    return generator, {**both, "in_channels": shape.channels, "spectral_norm": shape.spectral_norm}


def _patched(shape: Shape, wide: int) -> dict[str, Any]:
    """Patches, and the widths of as many levels as can be halved."""
    patch = 1 if min(pair(shape.sample_size)) < 16 else 2
    return {"patch_size": patch, "block_out_channels": _widths(wide, 1 + _halvings(shape.sample_size, patch))}


def _widths(wide: int, levels: int) -> tuple[int, ...]:
    return tuple(wide * min(2**level, 4) for level in range(levels))


def _halvings(sample_size: int | tuple[int, int], patch: int = 1) -> int:
    """How often the shorter side, in patches, can be halved before fewer than MIN_SIDE are left."""
    return (-(-min(pair(sample_size)) // patch) // MIN_SIDE).bit_length() - 1


_ARCHITECTURES: dict[str, Callable[[Shape], tuple[ModelMixin, ModelMixin]]] = {
    "residual": _residual,
    "dcgan": _dcgan,
    "resnet": _resnet,
    "mlp": _mlp,
}
