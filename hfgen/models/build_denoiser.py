"""Build a denoiser from its architecture, its size, and the shape and classes of the images."""

import math
from collections.abc import Callable
from itertools import islice, product
from typing import Any, Literal, NamedTuple

from diffusers import ModelMixin, UNet2DConditionModel, UNet2DModel

from ..utils.arguments import checked
from .attention import use_image_layers
from .dit import DiTModel
from .flow_map_network import with_two_times
from .layers import pair
from .patch_unet import PatchUNet2DModel, unet_of
from .uvit import UViTModel

MAX_POSITIONS = 256
"""Attention that every network has (a transformer's, the middle block of a U-Net) is over at most 16 x 16 positions."""

ATTENTION_POSITIONS = 100
"""Levels of a U-Net with at most 10 x 10 positions have attention."""

MAX_PADDING = 1.25
"""A patch U-Net gets a further level only if it pads images to at most 5/4 of their area."""

UNET_PARAMETERS = {"xs": 0.75e6, "s": 2.7e6, "m": 10e6, "l": 38e6}
"""Size -> approximate number of parameters of the U-Nets."""

DIT_SHAPES = {"xs": (96, 4, 3), "s": (160, 6, 5), "m": (256, 8, 8), "l": (384, 12, 12)}
"""Size -> width, depth and heads of a `dit`."""

UVIT_SHAPES = {"xs": (96, 5, 3), "s": (160, 7, 5), "m": (256, 11, 8), "l": (384, 17, 12)}
"""The same for a `uvit`, whose blocks have no modulations and are more in number."""


class PatchGrid(NamedTuple):
    """How a network divides an image.

    Args:
        patch_size: side of its patches in pixels.
        positions: number of positions on each of its levels.
    """

    patch_size: int
    positions: list[int]


@checked
def build_denoiser(
    architecture: Literal["unet", "patch_unet", "dit", "uvit"],
    size: Literal["xs", "s", "m", "l"],
    resolution: int | tuple[int, int],
    channels: int,
    num_classes: int | None = None,
    gradient_checkpointing: bool = False,
    null_class: bool = True,
    two_times: bool = False,
    learned_variance: bool = False,
    text_channels: int | None = None,
) -> ModelMixin:
    """Build a network for images (B, channels, H, W), which is called as network(sample, timestep, class_labels).

    The size determines the width, and the resolution the patches and levels. Millions of parameters, for images of 4
    to 256 pixels per side:

        size   unet        patch_unet   dit         uvit
        xs     0.6-1.1     0.7-1.1      0.7-0.9     0.6-0.8
        s      2.1-3.2     2.1-3.0      2.9-3.2     2.3-2.7
        m      8.7-11.7    9.2-10.3     9.7-10.3    9.4-10
        l      35-40       36-40        32-33       32-34

    U-Nets with texts have up to half as many again, and of size `xs` up to twice as many. (At 32 pixels, a `unet` of
    size `l` has the widths of DDPM's U-Net for CIFAR-10, and a `dit` of size `l` is DiT-S.)

    Args:
        architecture: `unet`: halving the sides must lead to at most 16 x 16 positions; `patch_unet`: takes any sides
            and pads them; `dit`, `uvit`: need patches that tile the image into at most 16 x 16 positions.
        size: `xs`, `s`, `m` or `l`.
        resolution: H = W, or (H, W).
        channels: channels of images.
        num_classes: number of classes; None: unconditional.
        gradient_checkpointing: whether activations are recomputed in the backward pass, to save memory.
        null_class: whether there is one more class embedding, number `num_classes`: the null label of classifier-free
            guidance.
        two_times: whether it is a flow map, called with a second time `r_timestep`, see `with_two_times`.
        learned_variance: whether the output has a second half of channels, which state the variance of a reverse step.
        text_channels: width of the hidden states of a text encoder, for a network that is also called with
            `encoder_hidden_states` (B, L, text_channels) and `encoder_attention_mask` (B, L): U-Nets attend to them,
            and to transformers they are further tokens. None: it takes no text.

    Raises:
        ValueError: an unknown choice, or a resolution that the architecture does not take; names two that it takes.
    """
    for name, value, choices in (("architecture", architecture, _ARCHITECTURES), ("size", size, DIT_SHAPES)):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not known. Choose one of: {', '.join(choices)}.")
    divide, build = _ARCHITECTURES[architecture]
    height, width = pair(resolution)
    grid = divide(height, width)
    if grid is None:
        raise ValueError(_size_error(architecture, height, width))
    network = build(
        size,
        grid,
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels * (2 if learned_variance else 1),
        num_class_embeds=None if num_classes is None else num_classes + null_class,
        text_channels=text_channels,
    )
    network = with_two_times(network) if two_times else network
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


# --- grids ------------------------------------------------------------------------------------------------------------


def _unet_grid(height: int, width: int) -> PatchGrid | None:
    """Halve the sides while both are even and at least 8. None if more than `MAX_POSITIONS` remain."""
    positions = [height * width]
    while height % 2 == width % 2 == 0 and min(height, width) >= 8:
        height, width = height // 2, width // 2
        positions.append(height * width)
    return PatchGrid(1, positions) if positions[-1] <= MAX_POSITIONS else None


def _patch_unet_grid(height: int, width: int) -> PatchGrid | None:
    """Divide into patches of 2 (1 below 16 pixels, 4 above 64). Halve while 4 per side remain and padding is small."""
    patch = 1 if min(height, width) < 16 else 2 if max(height, width) <= 64 else 4

    def deepest(levels: int) -> tuple[int, int, float]:
        """Return rows and columns of the last level, and the area after padding, divided by that of the image."""
        cell = patch * 2 ** (levels - 1)
        rows, columns = -(-height // cell), -(-width // cell)
        return rows, columns, rows * columns * cell**2 / (height * width)

    levels = 1
    while min(deepest(levels + 1)[:2]) >= 4 and deepest(levels + 1)[2] <= MAX_PADDING:
        levels += 1
    rows, columns, _ = deepest(levels)
    positions = [rows * columns * 4**level for level in reversed(range(levels))]
    return PatchGrid(patch, positions) if positions[-1] <= MAX_POSITIONS else None


def _dit_grid(height: int, width: int) -> PatchGrid | None:
    """Find the smallest patches that tile the image into at most `MAX_POSITIONS`, but into 4 per side at least."""
    common = math.gcd(height, width)
    for patch in (p for p in range(1, common + 1) if common % p == 0):
        positions = height * width // patch**2
        if positions <= MAX_POSITIONS and (patch == 1 or min(height, width) // patch >= 4):
            return PatchGrid(patch, [positions])
    return None


def _size_error(architecture: str, height: int, width: int) -> str:
    """Return the message that this size does not fit, with the two nearest sizes that do."""
    reach = range(-max(height, width) // 8 - 2, max(height, width) // 8 + 3)
    near = ((height + i, width + j) for i, j in sorted(product(reach, reach), key=lambda ij: abs(ij[0]) + abs(ij[1])))
    squares = ((h, w) for h, w in near if min(h, w) > 0 and (h == w or height != width))
    divide, _ = _ARCHITECTURES[architecture]
    alternatives = islice((f"{h} x {w}" for h, w in squares if divide(h, w)), 2)
    others = [name for name, (divides, _) in _ARCHITECTURES.items() if divides(height, width)]
    return (
        f"architecture={architecture!r} can't divide {height} x {width} images down to {MAX_POSITIONS} positions. "
        f"It can for {' or '.join(alternatives) or 'no size near'} (see --resolution)"
        + (f"; at {height} x {width}, {' and '.join(others)} can." if others else ".")
    )


# --- networks on a grid -----------------------------------------------------------------------------------------------


def _channels(parameters: float, squares: int) -> int:
    """Return the multiple of 16 nearest to the c with squares c^2 = parameters."""
    return max(1, round((parameters / squares) ** 0.5 / 16)) * 16


def _unet(size: str, grid: PatchGrid, text_channels: int | None, **shared: Any) -> UNet2DModel | UNet2DConditionModel:
    """Build a U-Net of widths c/2, c, c, ... as in DDPM (Ho et al. 2020, https://arxiv.org/abs/2006.11239)."""
    levels = len(grid.positions)
    wide = _channels(UNET_PARAMETERS[size], max(260, 160 * levels - 40))
    widths = (wide,) if levels == 1 else (wide // 2, *[wide] * (levels - 1))
    options = _unet_options(grid, widths)
    options["head_dim"] = options.pop("attention_head_dim")
    return use_image_layers(unet_of(text_channels, norm_num_groups=math.gcd(widths[0], 32), **options, **shared))


def _patch_unet(size: str, grid: PatchGrid, **shared: Any) -> PatchUNet2DModel:
    """Build a patch U-Net of widths c/2 to c in equal steps with one block a level.

    Most of its parameters are on levels of few positions, after the Efficient U-Net of Saharia et al. 2022,
    https://arxiv.org/abs/2205.11487, and Hoogeboom et al. 2023, https://arxiv.org/abs/2301.11093, who found that only
    these levels need to be large. There are 8 groups because many small groups are slow to normalise on a CPU.
    """
    last = len(grid.positions) - 1
    wide = _channels(UNET_PARAMETERS[size], max(190, 70 * last + 90))
    widths = (*(max(32, int(wide * (1 + level / last) / 32) * 16) for level in range(last)), wide)
    return PatchUNet2DModel(
        patch_size=grid.patch_size,
        layers_per_block=1,
        norm_num_groups=8,
        **_unet_options(grid, widths),
        **shared,
    )


def _unet_options(grid: PatchGrid, widths: tuple[int, ...]) -> dict[str, Any]:
    """Return the options that both kinds of U-Net have."""
    attention_levels = tuple(number <= ATTENTION_POSITIONS for number in grid.positions)
    attention_widths = [widths[-1], *(w for w, attends in zip(widths, attention_levels, strict=True) if attends)]
    return {
        "block_out_channels": widths,
        "attention_levels": attention_levels,
        "attention_head_dim": math.gcd(32, *attention_widths),  # at most 32, and a divisor of each width
        "resnet_time_scale_shift": "scale_shift",  # Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233, section 3
    }


def _dit(size: str, grid: PatchGrid, **shared: Any) -> DiTModel:
    hidden_size, num_layers, num_attention_heads = DIT_SHAPES[size]
    return DiTModel(
        patch_size=grid.patch_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_attention_heads=num_attention_heads,
        **shared,
    )


def _uvit(size: str, grid: PatchGrid, **shared: Any) -> UViTModel:
    hidden_size, num_layers, num_attention_heads = UVIT_SHAPES[size]
    return UViTModel(
        patch_size=grid.patch_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_attention_heads=num_attention_heads,
        **shared,
    )


_ARCHITECTURES: dict[str, tuple[Callable[[int, int], PatchGrid | None], Callable[..., ModelMixin]]] = {
    "unet": (_unet_grid, _unet),
    "patch_unet": (_patch_unet_grid, _patch_unet),
    "dit": (_dit_grid, _dit),
    "uvit": (_dit_grid, _uvit),
}
