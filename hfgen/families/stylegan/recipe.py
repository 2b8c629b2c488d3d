"""The networks of a style-based generator, and what they add to the recipe of a GAN."""

from typing import Any

from torch import nn

import hfgen

from .options import StyleArgs, StyleGANArgs


class StyleArchitecture:
    """The networks of `build_stylegan`, with noise, style mixing and the path length penalty in training.

    Args:
        network_args, style_args: the options.
    """

    title, name = "StyleGAN", "a StyleGAN"

    def __init__(self, network_args: StyleGANArgs, style_args: StyleArgs):
        self.network_args, self.style_args = network_args, style_args

    def build(self, resolution: Any, channels: int, classes: int | None, norm: str) -> tuple[nn.Module, nn.Module]:
        """Return a generator and a discriminator; neither has a norm."""
        args = self.network_args
        return hfgen.build_stylegan(
            args.model_size, resolution, channels, args.latent_channels, classes, args.patch_size
        )

    def options(self, generator: nn.Module) -> dict[str, Any]:
        """Return the generator's further inputs and its regulariser."""
        args = self.style_args
        sizes = generator.config.latent_channels, generator.num_layers, generator.noise_size
        penalties = [hfgen.PathLength(args.path_length, args.path_length_every)] if args.path_length else []
        return {"inputs": hfgen.StyleInputs(*sizes, args.style_mixing), "regularizers": penalties}
