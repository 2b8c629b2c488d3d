"""Energies: a number for each item, low where data are, made of a denoiser that is told no time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..utils.arguments import checked
from .attention import use_image_layers
from .dit import DiTModel
from .layers import check_class_labels, pair, real
from .patch_unet import PatchUNet2DModel
from .uvit import UViTModel

ENERGY_NETWORKS = {
    "DiTModel": DiTModel,
    "PatchUNet2DModel": PatchUNet2DModel,
    "UNet2DModel": UNet2DModel,
    "UViTModel": UViTModel,
}
"""Denoisers that an energy may be made of. Their activations are smooth, so that the gradient has no jumps."""

NO_TIME = 0.0
"""What the denoiser is told as its time step, always."""


@dataclass
class EnergyOutput(BaseOutput):
    """An energy and its gradient.

    Args:
        energy (B,): E(x); None for a `field`, which has none.
        gradient (B, *item): dE/dx; None if it was not asked for.
    """

    energy: Tensor | None = None
    gradient: Tensor | None = None


class EnergyModel(ModelMixin, ConfigMixin):
    """An energy E(x), made of a denoiser f that is told no time. It stands for the density exp(-E(x)) / Z, whose score
    is -dE/dx.

    - `dot`: E(x) = <x, f(x)> (Wang & Du 2025, https://arxiv.org/abs/2510.02300);
    - `scalar`: E(x) is the sum of f(x), an energy of each pixel and channel;
    - `field`: f(x) itself stands for dE/dx. It needs no derivative, and is two to three times as fast, but there is
      no energy to read, and the field need not be the gradient of one.

    Args:
        network: class of f: `PatchUNet2DModel`, `DiTModel`, `UViTModel`, or `UNet2DModel` of diffusers.
        network_config: its arguments, without `num_class_embeds`.
        form: `dot`, `scalar` or `field`.
        num_class_embeds: number of classes that f is told, including the one that means 'no class'; None:
            unconditional.

    Raises:
        ValueError: an unknown network or form.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        network: str = "PatchUNet2DModel",
        network_config: dict | None = None,
        form: Literal["dot", "scalar", "field"] = "dot",
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        for name, value, choices in (("network", network, ENERGY_NETWORKS), ("form", form, ENERGY_FORMS)):
            if value not in choices:
                raise ValueError(f"{name}={value!r} is not known. Choose one of: {', '.join(choices)}.")
        options = {**(network_config or {}), "num_class_embeds": num_class_embeds}
        self.denoiser = use_image_layers(ENERGY_NETWORKS[network](**options))

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of images."""
        config = self.denoiser.config
        return (config.in_channels, *pair(config.sample_size))

    @property
    def has_energy(self) -> bool:
        """Whether there is an energy, and not its gradient alone."""
        return ENERGY_FORMS[self.config.form] is not None

    def enable_gradient_checkpointing(self, *args: Callable) -> None:
        """Compute activations of the denoiser again in the backward pass.

        Raises:
            ValueError: the energy is differentiated twice, which recomputation does not allow.
        """
        if self.has_energy:
            raise ValueError(f"An energy of the form {self.config.form!r} is differentiated twice: no checkpointing.")
        self.denoiser.enable_gradient_checkpointing(*args)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        with_gradient: bool = False,
        return_dict: bool = True,
    ) -> EnergyOutput | tuple[Tensor | None, Tensor | None]:
        """Return the energies (B,) of images, and dE/dx (B, C, H, W) on request. Both have a graph of the weights where
        gradients are enabled.

        Args:
            sample (B, C, H, W): the images.
            class_labels (B,): classes; None for a network without classes.
            with_gradient: whether to return dE/dx. A `field` always does.
            return_dict: whether to return an EnergyOutput instead of a tuple.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        combine = ENERGY_FORMS[self.config.form]
        if combine is None:
            energy, gradient = None, real(self._output(sample, class_labels))
        elif with_gradient:
            energy, gradient = energy_and_gradient(lambda x: combine(x, self._output(x, class_labels)), sample)
        else:
            energy, gradient = combine(sample, self._output(sample, class_labels)), None
        return EnergyOutput(energy=energy, gradient=gradient) if return_dict else (energy, gradient)

    def score(self, sample: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the score, -dE/dx, (B, C, H, W); the arguments are those of a call."""
        return -self(sample, class_labels, with_gradient=True).gradient

    def _output(self, sample: Tensor, class_labels: Tensor | None) -> Tensor:
        """Return f(x), (B, C, H, W)."""
        time = torch.full((len(sample),), NO_TIME, device=sample.device)
        return self.denoiser(sample, time, class_labels, return_dict=False)[0]


def energy_and_gradient(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return E(x) (B,) and dE/dx (B, *item) by one backward pass. Where gradients are enabled, both can be
    differentiated again.

    Args:
        energy: x (B, *item) -> E(x) (B,), of each item by itself.
        x: the items.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative
        x = x if again and x.requires_grad else x.detach().requires_grad_()
        value = energy(x)
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=again)
    return (value, gradient) if again else (value.detach(), gradient)


def _dot(x: Tensor, output: Tensor) -> Tensor:
    return (real(x) * real(output)).flatten(1).sum(1)


def _total(x: Tensor, output: Tensor) -> Tensor:
    return real(output).flatten(1).sum(1)


ENERGY_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {"dot": _dot, "scalar": _total, "field": None}
"""Form -> x and f(x) (B, C, H, W) -> E(x) (B,); None: there is no energy."""
