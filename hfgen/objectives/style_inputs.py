"""What a style-based generator is given in training besides latents: noise, and other latents for some layers."""

import torch
from torch import Tensor

from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, COUNT, PROBABILITY, check_range
from .base import Step


class StyleInputs:
    """Noise maps, and style mixing (Karras et al. 2019, https://arxiv.org/abs/1812.04948, section 3.1).

    With probability `mixing` an image has the style of other latents from a random layer on, one of 1 to L - 1. Layers
    that never learn to rely on each other can be edited one by one.

    Args:
        latent_channels: dimension of the latents.
        num_layers: L, the layers of the generator.
        noise_size: N, the number of values of its noise maps.
        mixing: the probability.

    Raises:
        ValueError: a number out of range.
    """

    @checked
    def __init__(self, latent_channels: int, num_layers: int, noise_size: int, mixing: float = 0.9):
        check_range("latent_channels", latent_channels, COUNT)
        check_range("num_layers", num_layers, COUNT)
        check_range("noise_size", noise_size, AT_LEAST_0)
        check_range("mixing", mixing, PROBABILITY)
        self.latent_channels, self.num_layers, self.noise_size = latent_channels, num_layers, noise_size
        self.mixing = mixing

    def __call__(self, items: Tensor, step: Step, stream: str) -> dict[str, Tensor]:
        """Return noise (B, N) and, unless the probability is 0, mixed (B, d) and crossover (B,) for items (B, ...)."""
        inputs = {"noise": step.randn(f"{stream} noise", items.new_empty(len(items), self.noise_size))}
        if self.mixing:
            inputs["mixed"] = step.randn(f"{stream} mixed", items.new_empty(len(items), self.latent_channels))
            chosen, place = step.uniform(f"{stream} crossover", items.new_empty(len(items), 2)).unbind(1)
            crossover = 1 + (place * (self.num_layers - 1)).long()
            inputs["crossover"] = torch.where(chosen < self.mixing, crossover, self.num_layers)
        return inputs
