"""Build a masked autoencoder from its size and the shape of the images."""

from typing import Literal

from ..utils.arguments import checked
from .layers import pair, patch_side
from .masked_autoencoder import MaskedAutoencoderModel

SHAPES = {
    "xs": (96, 4, 3, 64, 1, 2),
    "s": (160, 6, 5, 96, 2, 3),
    "m": (256, 8, 8, 128, 2, 4),
    "l": (384, 12, 6, 192, 4, 6),
}
"""Size -> width, depth and heads of the encoder, and of the decoder. The encoder of `l` is ViT-S."""

FEW_PATCHES, MANY_PATCHES, SMALL = 64, 256, 64
"""Patches of an image at most: of one whose sides are at most `SMALL` pixels, and of a larger one."""


@checked
def build_masked_autoencoder(
    size: Literal["xs", "s", "m", "l"],
    resolution: int | tuple[int, int],
    channels: int,
    patch_size: int | None = None,
    gradient_checkpointing: bool = False,
) -> MaskedAutoencoderModel:
    """Build a masked autoencoder for images (B, channels, H, W).

    Args:
        size: `xs`, `s`, `m` or `l`: 0.5, 2.2, 6.9 or 23 million parameters.
        resolution: H = W, or (H, W).
        channels: channels of images.
        patch_size: side of a patch in pixels; None: the smallest from 2 on that tiles the image into at most 64
            patches, or 256 where a side is longer than 64 pixels.
        gradient_checkpointing: whether activations are recomputed in the backward pass, to save memory.

    Raises:
        ValueError: an unknown size, or patches that do not tile the image.
    """
    if size not in SHAPES:
        raise ValueError(f"{size=} is not known. Choose one of: {', '.join(SHAPES)}.")
    height, width = pair(resolution)
    most = FEW_PATCHES if max(height, width) <= SMALL else MANY_PATCHES
    hidden, layers, heads, decoder_hidden, decoder_layers, decoder_heads = SHAPES[size]
    network = MaskedAutoencoderModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        patch_size=patch_side(height, width, most, 2) if patch_size is None else patch_size,
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        decoder_hidden_size=decoder_hidden,
        decoder_num_layers=decoder_layers,
        decoder_num_attention_heads=decoder_heads,
    )
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network
