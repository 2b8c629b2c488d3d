"""The recipe of a model with two clocks: its network, and refusals of options."""

from typing import Any

import torch

import hfgen

from ...data.captions import check_captions
from ...models.build_denoiser import UVIT_SHAPES
from ...models.layers import pair, patch_side
from ...options import CaptionDataArgs
from ..diffusion.recipe import objective
from ..prompts import prompts_in
from ..text_to_image.encoder import check_vocabulary
from .options import LatentTextArgs, TwoClockArgs, TwoClockNoiseArgs

FEW_PATCHES, MANY_PATCHES, SMALL = 64, 256, 64
"""Patches of an image at most: of one whose sides are at most `SMALL` pixels, and of a larger one."""


def check(
    data_args: CaptionDataArgs, network_args: TwoClockArgs, text_args: LatentTextArgs, noise_args: TwoClockNoiseArgs
) -> None:
    """Refuse options that do not go together, before any data are read.

    Raises:
        ValueError: captions of a stream, a vocabulary that is too small, a prediction that can't be learnt on the path,
            no prompts in their file, or patches that do not tile the images.
    """
    check_captions(data_args)
    check_vocabulary(text_args.vocab_size)
    objective(noise_args)
    prompts_in(text_args.prompts)
    if data_args.resolution is not None:
        with torch.device("meta"):
            build(network_args, data_args.resolution, 3, text_args)


def build(args: TwoClockArgs, resolution: Any, channels: int, text_args: LatentTextArgs, saves: bool = False) -> Any:
    """Return the network for images of this shape; `saves`: it computes activations again in the backward pass."""
    height, width = pair(resolution)
    most = FEW_PATCHES if max(height, width) <= SMALL else MANY_PATCHES
    hidden_size, num_layers, num_attention_heads = UVIT_SHAPES[args.model_size]
    network = hfgen.UniDiffuserModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        text_tokens=text_args.latent_tokens,
        text_channels=text_args.latent_channels,
        patch_size=patch_side(height, width, most) if args.patch_size is None else args.patch_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_attention_heads=num_attention_heads,
    )
    if saves:
        network.enable_gradient_checkpointing()
    return network
