"""Build an energy from the architecture and size of its denoiser, and the shape and classes of the images."""

from typing import Literal

from ..utils.arguments import checked
from .build_denoiser import build_denoiser
from .energy import EnergyModel


@checked
def build_energy(
    architecture: Literal["unet", "patch_unet", "dit", "uvit"],
    size: Literal["xs", "s", "m", "l"],
    resolution: int | tuple[int, int],
    channels: int,
    form: Literal["dot", "scalar", "field"] = "dot",
    num_classes: int | None = None,
    gradient_checkpointing: bool = False,
    null_class: bool = True,
) -> EnergyModel:
    """Build an energy of images (B, channels, H, W).

    Args:
        architecture, size, resolution, channels, num_classes, null_class: of the denoiser, see `build_denoiser`.
        form: how the energy is made of it, see `EnergyModel`.
        gradient_checkpointing: whether activations are recomputed in the backward pass; for a `field` alone.

    Raises:
        ValueError: an unknown choice, or a resolution that the architecture does not take.
    """
    denoiser = build_denoiser(architecture, size, resolution, channels, num_classes, null_class=null_class)
    options = {name: value for name, value in denoiser.config.items() if name[0] != "_" and name != "num_class_embeds"}
    energy = EnergyModel(type(denoiser).__name__, options, form, denoiser.config.num_class_embeds)
    energy.denoiser.load_state_dict(denoiser.state_dict())  # its initialisation, under the same random numbers
    if gradient_checkpointing:
        energy.enable_gradient_checkpointing()
    return energy
