"""Build an autoencoder from its architecture, its size, and the shape of the images."""

import math
from collections.abc import Callable
from typing import Literal

from diffusers import AutoencoderKL, ModelMixin, VQModel

from ..utils.arguments import checked
from .autoencoder import ConvAutoencoderModel, MLPAutoencoderModel
from .layers import pair
from .vq import VQAutoencoderModel

SIZES = ("s", "m", "l")

MLP_SHAPES = {"s": ((400,), 20), "m": ((512, 256), 32), "l": ((1024, 512, 256), 64)}
"""Size -> hidden layers, and the dimension of z. On 28 x 28 pixels `s` has the widths 784-400-20."""

CONV_SHAPES = {"s": (32, 1, 32), "m": (64, 1, 64), "l": (96, 2, 128)}
"""Size -> width of the first level, residual blocks per level, and the dimension of z."""

SPATIAL_SHAPES = {"s": (32, 1, 4), "m": (64, 1, 4), "l": (128, 2, 4)}
"""Size -> width of the first level, layers per block, and channels of a latent, of diffusers' networks."""

CODEBOOKS = {"s": (256, 32), "m": (512, 64), "l": (1024, 64)}
"""Size -> number of codes, and their dimension."""


@checked
def build_autoencoder(
    architecture: Literal["mlp", "conv", "kl", "vq", "vqmodel"],
    size: Literal["s", "m", "l"],
    resolution: int | tuple[int, int],
    channels: int,
    out_channels: int,
    latent_channels: int | None = None,
) -> ModelMixin:
    """Build an autoencoder for images (B, channels, H, W).

    `mlp` and `conv` have one latent vector for each image. `kl`, diffusers' AutoencoderKL, has a grid of latent
    vectors. `vq` has a grid of codes that follow the encoder by moving averages, and `vqmodel`, diffusers' VQModel, a
    grid of codes that are trained. A grid is a quarter as high and wide as the image.

    Args:
        architecture: `mlp`, `conv`, `kl`, `vq` or `vqmodel`.
        size: `s`, `m` or `l`, see the tables above.
        resolution: H = W, or (H, W); `kl` and `vqmodel` need multiples of 4.
        channels: channels of images.
        out_channels: channels of the parameters of p(x | z), `Likelihood.channels(channels)`.
        latent_channels: dimension d of the latents (B, d, h, w), or of the codes; None: that of the size.

    Raises:
        ValueError: an unknown architecture or size, or a resolution that the architecture does not take.
    """
    for name, value, choices in (("architecture", architecture, _ARCHITECTURES), ("size", size, SIZES)):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not known. Choose one of: {', '.join(choices)}.")
    if latent_channels is not None and latent_channels < 1:
        raise ValueError(f"{latent_channels=} must be at least 1.")
    height, width = pair(resolution)
    side = height if height == width else (height, width)
    shared = {"sample_size": side, "in_channels": channels, "out_channels": out_channels}
    return _ARCHITECTURES[architecture](size, shared, latent_channels)


def _mlp(size: str, shared: dict, latent_channels: int | None) -> MLPAutoencoderModel:
    hidden, latent = MLP_SHAPES[size]
    return MLPAutoencoderModel(**shared, hidden_dims=hidden, latent_channels=latent_channels or latent)


def _conv(size: str, shared: dict, latent_channels: int | None) -> ConvAutoencoderModel:
    wide, layers, latent = CONV_SHAPES[size]
    levels = max(1, round(math.log2(min(pair(shared["sample_size"])) / 6)))  # 4 to 8 positions per side remain
    widths = tuple(wide * min(2**level, 4) for level in range(levels))
    return ConvAutoencoderModel(
        **shared, block_out_channels=widths, layers_per_block=layers, latent_channels=latent_channels or latent
    )


def _vq(size: str, shared: dict, latent_channels: int | None) -> VQAutoencoderModel:
    (wide, layers, _), (count, dimension) = CONV_SHAPES[size], CODEBOOKS[size]
    return VQAutoencoderModel(
        **shared,
        block_out_channels=(wide, 2 * wide),
        layers_per_block=layers,
        latent_channels=latent_channels or dimension,
        num_vq_embeddings=count,
    )


def _kl(size: str, shared: dict, latent_channels: int | None) -> AutoencoderKL:
    return AutoencoderKL(**_grid_options("kl", size, shared, latent_channels), scaling_factor=1.0)


def _vqmodel(size: str, shared: dict, latent_channels: int | None) -> VQModel:
    return VQModel(**_grid_options("vqmodel", size, shared, latent_channels), num_vq_embeddings=CODEBOOKS[size][0])


def _grid_options(architecture: str, size: str, shared: dict, latent_channels: int | None) -> dict:
    """Return the options of diffusers' networks with a grid of latents, which halve the sides twice."""
    height, width = pair(shared["sample_size"])
    if height % 4 or width % 4:
        larger = f"{-(-height // 4) * 4} x {-(-width // 4) * 4}"
        raise ValueError(
            f"architecture={architecture!r} can't halve {height} x {width} images twice. It can for {larger} (see "
            "--resolution); mlp, conv and vq take any size."
        )
    wide, layers, latent = SPATIAL_SHAPES[size]
    return {
        **shared,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (wide, 2 * wide, 2 * wide),
        "layers_per_block": layers,
        "latent_channels": latent_channels or latent,
        "norm_num_groups": 16,
    }


_ARCHITECTURES: dict[str, Callable[[str, dict, int | None], ModelMixin]] = {
    "mlp": _mlp,
    "conv": _conv,
    "kl": _kl,
    "vq": _vq,
    "vqmodel": _vqmodel,
}
