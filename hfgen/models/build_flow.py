"""Build a normalizing flow from its architecture, its size, and the shape and classes of the images."""

from collections.abc import Callable
from typing import Literal

from diffusers import ModelMixin

from ..utils.arguments import checked
from .augmented_flow import augmented
from .coupling_flow import CouplingFlowModel
from .layers import pair, patch_side
from .residual_flow import ResidualFlowModel
from .transformer_flow import TransformerFlowModel

COUPLING_SHAPES = {"xs": (4, 32, 1), "s": (8, 64, 2), "m": (16, 128, 2), "l": (32, 256, 2)}
"""Size -> couplings of a level, their width and depth."""

VIT_SHAPES = {"xs": (8, 64, 2), "s": (16, 96, 2), "m": (32, 192, 3), "l": (32, 512, 5)}
"""Size -> couplings, width and depth of their transformers."""

TRANSFORMER_SHAPES = {"xs": (1, 4, 64), "s": (1, 8, 128), "m": (2, 8, 256), "l": (4, 8, 512)}
"""Size -> blocks, layers of each, and width."""

RESIDUAL_SHAPES = {"xs": (6, 32, 1), "s": (10, 64, 2), "m": (16, 128, 2), "l": (32, 256, 3)}
"""Size -> layers, width of their networks, and hidden layers of these."""

EXACT_NUMBERS = 64
"""Numbers of an image for which residual flows are trained with exact determinants, at most."""

HEAD_DIMENSION = 32
"""Width of a head of attention."""

MOST_TOKENS = 64
"""Patches of transformers tile an image into at most as many tokens, if its sides can be divided so."""

SMALLEST_LEVEL = 4
"""Levels of couplings halve the sides while they remain at least this long."""


@checked
def build_flow(
    architecture: Literal["transformer", "glow", "realnvp", "nice", "jet", "residual", "implicit"],
    size: Literal["xs", "s", "m", "l"],
    resolution: int | tuple[int, int],
    channels: int,
    num_classes: int | None = None,
    elementwise: str | None = None,
    components: int | None = None,
    null_class: bool = True,
    gradient_checkpointing: bool = False,
    extra_channels: int = 0,
    dequantise: bool = False,
) -> ModelMixin:
    """Build a normalizing flow of images (B, channels, H, W). It is called as flow(sample, class_labels), and returns a
    `NormalizingFlowOutput`.

    Args:
        architecture: `transformer` is a `TransformerFlowModel` with a `TokenHead` in each block; `residual` and
            `implicit` are a `ResidualFlowModel`; the others are settings of `CouplingFlowModel`, see there.
        size: `xs`, `s`, `m` or `l`.
        resolution: H = W, or (H, W).
        channels: channels of images.
        num_classes: number of classes; None: unconditional.
        elementwise: map of numbers; None: that of the architecture, `additive` for `nice`, `logistic_mixture` for
            `transformer`, else `affine`. Residual and implicit flows have none.
        components: logistic distributions of a mixture, or bins of a spline; at least 2. None: 16 for `transformer`,
            else 8.
        null_class: whether there is one more class embedding, number `num_classes`: the null label of guidance.
        gradient_checkpointing: whether activations are recomputed in the backward pass, to save memory.
        extra_channels: auxiliary channels of noise, see `AugmentedFlowModel`; 0: none.
        dequantise: whether a network learns the noise in the bins of levels, see there.

    Raises:
        ValueError: an unknown choice, or a resolution that the architecture does not take.
    """
    for name, value, choices in (("architecture", architecture, _ARCHITECTURES), ("size", size, TRANSFORMER_SHAPES)):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not known. Choose one of: {', '.join(choices)}.")
    height, width = pair(resolution)
    default, usual, build = _ARCHITECTURES[architecture]
    options = {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels + extra_channels,
        **({} if default is None else {"elementwise": elementwise or default, "components": components or usual}),
        "num_class_embeds": None if num_classes is None else num_classes + null_class,
    }
    if default is None and elementwise is not None:
        raise ValueError(f"{elementwise=}: {architecture} flows have no maps of single numbers. Leave it out.")
    network = build(size, height, width, options)
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if not (extra_channels or dequantise):
        return network
    if gradient_checkpointing:
        raise ValueError("Flows with extra_channels or dequantise have no gradient_checkpointing. Leave one out.")
    return augmented(network, extra_channels, dequantise, COUPLING_SHAPES[size][1])


def _transformer(size: str, height: int, width: int, options: dict) -> TransformerFlowModel:
    blocks, layers, hidden = TRANSFORMER_SHAPES[size]
    patch = patch_side(height, width, MOST_TOKENS)
    numbers = options["in_channels"] * patch**2
    return TransformerFlowModel(
        **options,
        patch_size=patch,
        num_blocks=blocks,
        layers_per_block=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // HEAD_DIMENSION,
        head_size=max(2 * hidden, numbers) if numbers > 1 else 0,
    )


def _coupling(size: str, height: int, width: int, options: dict, **settings: object) -> CouplingFlowModel:
    layers, hidden, depth = COUPLING_SHAPES[size]
    levels = 1
    while not any(side % 2 ** (levels + 1) or side >> levels + 1 < SMALLEST_LEVEL for side in (height, width)):
        levels += 1
    shape = {"num_levels": levels, "layers_per_level": layers, "hidden_channels": hidden, "network_depth": depth}
    return CouplingFlowModel(**options, **{**shape, **settings})


def _glow(size: str, height: int, width: int, options: dict) -> CouplingFlowModel:
    return _coupling(size, height, width, options, mixing="convolution", actnorm=True)


def _realnvp(size: str, height: int, width: int, options: dict) -> CouplingFlowModel:
    return _coupling(size, height, width, options, masks="both", actnorm=True)


def _nice(size: str, height: int, width: int, options: dict) -> CouplingFlowModel:
    settings = {"num_levels": 1, "diagonal_scale": True, "network": "mlp", "network_depth": 3}
    return _coupling(size, height, width, options, **settings, hidden_channels=8 * COUPLING_SHAPES[size][1])


def _jet(size: str, height: int, width: int, options: dict) -> CouplingFlowModel:
    layers, hidden, depth = VIT_SHAPES[size]
    patch = patch_side(height, width, MOST_TOKENS, 2 if options["in_channels"] == 1 else 1)
    return CouplingFlowModel(
        **options,
        num_levels=1,
        layers_per_level=layers,
        squeeze=patch,
        mixing="permutation",
        network="vit",
        hidden_channels=hidden,
        network_depth=depth,
    )


def _residual(size: str, height: int, width: int, options: dict, kind: str = "residual") -> ResidualFlowModel:
    layers, hidden, depth = RESIDUAL_SHAPES[size]
    return ResidualFlowModel(
        **options,
        num_layers=layers,
        kind=kind,
        squeeze=1 if height % 2 or width % 2 else 2,
        hidden_channels=hidden,
        network_depth=depth,
        log_det="exact" if options["in_channels"] * height * width <= EXACT_NUMBERS else "estimate",
    )


def _implicit(size: str, height: int, width: int, options: dict) -> ResidualFlowModel:
    return _residual(size, height, width, options, "implicit")


_ARCHITECTURES: dict[str, tuple[str | None, int | None, Callable[[str, int, int, dict], ModelMixin]]] = {
    "transformer": ("logistic_mixture", 16, _transformer),
    "glow": ("affine", 8, _glow),
    "realnvp": ("affine", 8, _realnvp),
    "nice": ("additive", 8, _nice),
    "jet": ("affine", 8, _jet),
    "residual": (None, None, _residual),
    "implicit": (None, None, _implicit),
}
"""Architecture -> its elementwise map and number of components, if it has any, and the function that builds it."""
