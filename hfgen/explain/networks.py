"""A denoiser and an energy for points in the plane."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from ..models.energy import EnergyOutput, energy_and_gradient


class PointDenoiser(ModelMixin, ConfigMixin):
    """Fully connected layers on points as images (B, 2, 1, 1), called as diffusers' UNet2DModel is.

    Args:
        hidden_size: width.
        num_layers: hidden layers.
        num_frequencies: K. Further inputs are sin and cos of pi k / 2 times t and times both coordinates, k = 1 to K:
            with them narrow shapes are learned sooner (Tancik et al. 2020, https://arxiv.org/abs/2006.10739).
        sample_size, in_channels: 1 and 2, which pipelines read.
        two_times: whether it is a flow map, which takes the end of a step, too.
    """

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 128,
        num_layers: int = 3,
        num_frequencies: int = 6,
        sample_size: int = 1,
        in_channels: int = 2,
        two_times: bool = False,
    ):
        super().__init__()
        self.layers = _perceptron(2 + two_times + 6 * num_frequencies, hidden_size, num_layers, 2)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: None = None, r_timestep: Tensor | None = None
    ) -> UNet2DOutput:
        """Return the prediction (B, 2, 1, 1) for points (B, 2, 1, 1) and times 1000 t, () or (B,).

        A flow map takes the length of the step to 1000 r as another input; None: 0.
        """
        t = (timestep.to(sample) / 1000).expand(len(sample))
        frequencies = math.pi / 2 * torch.arange(1, self.config.num_frequencies + 1).to(sample)
        x = sample.flatten(1)  # (B, 2)
        angles = (torch.cat([x, t[:, None]], 1)[..., None] * frequencies).flatten(1)  # (B, 3 frequencies)
        if self.config.two_times:
            length = torch.zeros_like(t) if r_timestep is None else t - r_timestep.to(sample) / 1000
            x = torch.cat([x, length[:, None]], 1)
        x = self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))
        return UNet2DOutput(sample=x[:, :, None, None])


class PointEnergy(ModelMixin, ConfigMixin):
    """The scalar E(x) = |x|^2 / 8 + g(x), g fully connected, of points as images (B, 2, 1, 1), called as `EnergyModel`.

    Args:
        hidden_size: width.
        num_layers: hidden layers.
        num_frequencies: K. Further inputs are sin and cos of pi k / 2 times both coordinates, k = 1 to K.
        sample_size, in_channels: 1 and 2, which pipelines read.
    """

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 128,
        num_layers: int = 3,
        num_frequencies: int = 6,
        sample_size: int = 1,
        in_channels: int = 2,
    ):
        super().__init__()
        self.layers = _perceptron(2 + 4 * num_frequencies, hidden_size, num_layers, 1)

    def forward(self, sample: Tensor, class_labels: None = None, with_gradient: bool = False) -> EnergyOutput:
        """Return the energies (B,) of points (B, 2, 1, 1), and dE/dx (B, 2, 1, 1) on request."""
        if not with_gradient:
            return EnergyOutput(energy=self._energy(sample))
        value, gradient = energy_and_gradient(self._energy, sample)
        return EnergyOutput(energy=value, gradient=gradient)

    def _energy(self, sample: Tensor) -> Tensor:
        x = sample.flatten(1)
        frequencies = math.pi / 2 * torch.arange(1, self.config.num_frequencies + 1).to(x)
        angles = (x[..., None] * frequencies).flatten(1)  # (B, 2 frequencies)
        return x.square().sum(1) / 8 + self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))[:, 0]


def _perceptron(inputs: int, hidden_size: int, num_layers: int, outputs: int) -> nn.Sequential:
    """Return fully connected layers with SiLU between them."""
    widths = [inputs, *[hidden_size] * num_layers]
    layers = [part for i in range(num_layers) for part in (nn.Linear(widths[i], widths[i + 1]), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(hidden_size, outputs))
