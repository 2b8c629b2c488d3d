"""Build a style-based generator and its discriminator from size, and the shape and classes of the images."""

from typing import Literal

from ..utils.arguments import checked
from .layers import pair
from .stylegan import StyleDiscriminatorModel, StyleGeneratorModel

SHAPES = {"xs": (32, 32, 2, 16, 64), "s": (64, 64, 4, 32, 128), "m": (128, 128, 8, 64, 256)}
"""Size -> dimension of z, width of w, mapping layers, width of the level next to the image, and of the widest one."""

LEAST_SIDE = 8
"""The smallest side of images."""

FIRST_SIDE = 4
"""Sides are halved while the shorter one keeps this many positions."""


@checked
def build_stylegan(
    size: Literal["xs", "s", "m"],
    resolution: int | tuple[int, int],
    channels: int,
    latent_channels: int | None = None,
    num_classes: int | None = None,
    patch_size: int | None = None,
) -> tuple[StyleGeneratorModel, StyleDiscriminatorModel]:
    """Build a StyleGAN of images (B, channels, H, W), where [-1, 1] is black to white.

    The first level has 4 to 7 positions along the shorter side, and each further level twice as many.

    Args:
        size: `xs`, `s` or `m`, see `SHAPES`.
        resolution: H = W, or (H, W); at least 8.
        channels: channels of images.
        latent_channels: dimension d of the latents (B, d); None: that of the size.
        num_classes: number of classes of both networks; None: unconditional.
        patch_size: side in pixels of the square that forms a position; None: 2 for sides from 16 on, else 1.

    Raises:
        ValueError: an unknown size, a number out of range, or images that are too small.
    """
    if size not in SHAPES:
        raise ValueError(f"{size=} is not known. Choose one of: {', '.join(SHAPES)}.")
    numbers = {"channels": channels, "latent_channels": latent_channels, "num_classes": num_classes}
    for name, value in {**numbers, "patch_size": patch_size}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    height, width = pair(resolution)
    if (least := min(height, width)) < LEAST_SIDE:
        raise ValueError(
            f"A StyleGAN can't make {height} x {width} images: sides must be at least {LEAST_SIDE} (see --resolution)."
        )
    patch = (1 if least < 2 * LEAST_SIDE else 2) if patch_size is None else patch_size
    if least < FIRST_SIDE * patch:
        raise ValueError(f"patch_size={patch} leaves fewer than {FIRST_SIDE} positions of {least} pixels. Give less.")
    latent, style_dim, layers, narrow, wide = SHAPES[size]
    levels = (least // patch // FIRST_SIDE).bit_length()
    shared = {
        "sample_size": height if height == width else (height, width),
        "block_out_channels": tuple(min(narrow * 2**level, wide) for level in range(levels)),
        "patch_size": patch,
        "num_class_embeds": num_classes,
    }
    generator = StyleGeneratorModel(
        out_channels=channels,
        latent_channels=latent if latent_channels is None else latent_channels,
        style_dim=style_dim,
        mapping_layers=layers,
        **shared,
    )
    return generator, StyleDiscriminatorModel(in_channels=channels, **shared)
