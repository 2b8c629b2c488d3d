"""Make the network of a flow map from that of a rectified flow."""

from collections.abc import Mapping
from typing import Any

from diffusers import ModelMixin, UNet2DModel

from .dit import DiTModel
from .patch_unet import PatchUNet2DModel
from .uvit import UViTModel

CLASSES = ("class_embedding.weight", "unet.class_embedding.weight")
"""Names of the class embedding of a patch U-Net with two times and with one."""


def with_two_times(network: ModelMixin) -> ModelMixin:
    """Return a network with a second time, which computes what the given one computes, whatever the second time is.

    Its weights are copies. A network with two times is returned as it is.

    Args:
        network: a `PatchUNet2DModel`, a `DiTModel`, a `UViTModel`, or a `UNet2DModel` of diffusers with the blocks that
            `build_denoiser` gives it, which becomes a `PatchUNet2DModel` with patches of one pixel.

    Raises:
        ValueError: another network; names it, or the options that no patch U-Net has.
    """
    if getattr(network, "config", {}).get("two_times"):
        return network
    if isinstance(network, UNet2DModel):
        network = _as_patch_unet(network)
    if not isinstance(network, DiTModel | PatchUNet2DModel | UViTModel):
        raise ValueError(
            f"{type(network).__name__} has no second time. Give a PatchUNet2DModel, a DiTModel, a UViTModel or a "
            "UNet2DModel."
        )
    options = {name: value for name, value in network.config.items() if name[0] != "_" and name != "two_times"}
    doubled = type(network)(**options, two_times=True)
    weights = {CLASSES[0] if name == CLASSES[1] else name: value for name, value in network.state_dict().items()}
    new = {name: value for name, value in doubled.state_dict().items() if name.startswith("interval_embedding.")}
    doubled.load_state_dict({**new, **weights})
    return _placed(doubled, network)


def _as_patch_unet(network: UNet2DModel) -> PatchUNet2DModel:
    """Return a patch U-Net with patches of one pixel and the same weights. Raises ValueError if none is the same."""
    config = network.config
    patch = PatchUNet2DModel(
        patch_size=1,
        attention_levels=tuple("Attn" in name for name in config.down_block_types),
        **{name: config[name] for name in _SHARED if config[name] is not None},
    )
    if differing := _differing(patch.unet.config, config):
        raise ValueError(f"This UNet2DModel has {', '.join(differing)}, which no network with two times has.")
    patch.unet.load_state_dict(network.state_dict())
    return _placed(patch, network)


def _placed(made: ModelMixin, network: ModelMixin) -> ModelMixin:
    """Return the network that was made, in the mode, on the device and in the dtype of another."""
    made.train(network.training).to(network.device)
    return made if made.dtype == network.dtype else made.to(dtype=network.dtype)


_SHARED = (
    "sample_size",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "attention_head_dim",
    "norm_num_groups",
    "resnet_time_scale_shift",
    "dropout",
    "num_class_embeds",
)
"""Options that a U-Net and a patch U-Net share."""


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the options of a U-Net that differ, apart from the size of images, as texts."""
    if theirs["attn_norm_num_groups"] is None and theirs["resnet_time_scale_shift"] == "default":
        theirs = {**theirs, "attn_norm_num_groups": theirs["norm_num_groups"]}  # what diffusers makes of it
    names = [name for name in theirs if name[0] != "_" and name != "sample_size"]
    pairs = {name: (_plain(ours.get(name)), _plain(theirs[name])) for name in names}
    return [f"{name}={value}" for name, (own, value) in pairs.items() if own != value]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
