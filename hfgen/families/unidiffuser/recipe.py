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
from ..text_to_image.encoder import SHAPES, check_vocabulary
from .options import LatentTextArgs, TwoClockArgs, TwoClockNoiseArgs

FEW_PATCHES, MANY_PATCHES, SMALL = 64, 256, 64
"""Patches of an image at most: of one whose sides are at most `SMALL` pixels, and of a larger one."""


UNET_OPTIONS = ("patch_size", "block_out_channels", "layers_per_block", "attention_levels")
UNET_OPTIONS += ("attention_head_dim", "norm_num_groups")
"""Options of the U-Net, which are those of a denoiser of this size."""


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
    shape = {
        **{"sample_size": height if height == width else (height, width), "in_channels": channels},
        **{"text_tokens": text_args.latent_tokens, "text_channels": text_args.latent_channels},
    }
    network = _ARCHITECTURES[args.model](args, height, width, shape)
    if saves:
        network.enable_gradient_checkpointing()
    return network


def _transformer(args: TwoClockArgs, height: int, width: int, shape: dict[str, Any]) -> Any:
    """Return one transformer for image and text."""
    most = FEW_PATCHES if max(height, width) <= SMALL else MANY_PATCHES
    patch_size = patch_side(height, width, most) if args.patch_size is None else args.patch_size
    hidden_size, num_layers, num_attention_heads = UVIT_SHAPES[args.model_size]
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_attention_heads": num_attention_heads}
    return hfgen.UniDiffuserModel(patch_size=patch_size, **sizes, **shape)


def _unet(args: TwoClockArgs, height: int, width: int, shape: dict[str, Any]) -> Any:
    """Return a U-Net of the sizes that denoisers have, with a transformer for the text."""
    hidden_size, num_layers = SHAPES[args.model_size]
    with torch.device("meta"):
        alike = hfgen.build_denoiser(
            "patch_unet", args.model_size, (height, width), shape["in_channels"], text_channels=hidden_size
        )
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_attention_heads": hidden_size // 32}
    return hfgen.UniDiffuserUNetModel(**{name: alike.config[name] for name in UNET_OPTIONS}, **sizes, **shape)


_ARCHITECTURES = {"patch_unet": _unet, "uvit": _transformer}
"""What builds the network of each `--model`."""
