"""Build autoregressive models: one from its architecture, its size, and the shape and classes of the images."""

from typing import Literal

from diffusers import ModelMixin

from ..utils.arguments import checked
from .autoregressive_transformer import AutoregressiveTransformerModel
from .continuous_transformer import ContinuousTransformerModel
from .layers import pair, patch_side
from .masked_autoregressive import MaskedAutoregressiveModel

TRANSFORMERS = {"xs": (2, 64), "s": (3, 96), "m": (6, 192), "l": (12, 384)}
"""Size -> layers and width of a transformer."""

PERCEPTRONS = {"xs": (1, 100), "s": (1, 500), "m": (2, 500), "l": (2, 1000)}
"""Size -> hidden layers of MADE, and width of the hidden layers of MADE and NADE."""

HEAD_DIMENSION = 32
"""Width of a head of attention."""

MOST_TOKENS = 256
"""Patches tile an image into at most as many tokens, if its sides can be divided so."""

MOST_CONTINUOUS_TOKENS = 64
"""The same for continuous tokens, each of which takes several steps."""


@checked
def build_autoregressive(
    architecture: Literal["transformer", "fvsbn", "made", "nade"],
    size: Literal["xs", "s", "m", "l"],
    resolution: int | tuple[int, int],
    channels: int = 1,
    levels: int | None = 256,
    num_classes: int | None = None,
    null_class: bool = True,
    patch_size: int | None = None,
    num_orders: int = 1,
    components: int = 10,
) -> ModelMixin:
    """Build an autoregressive model of images (B, channels, H, W), or of grids of codes. It is called as
    model(sample, class_labels), and returns an `AutoregressiveOutput`.

    Args:
        architecture: `transformer` is an `AutoregressiveTransformerModel`; the others are settings of
            `MaskedAutoregressiveModel`.
        size: `xs`, `s`, `m` or `l`.
        resolution: H = W, or (H, W).
        channels: channels of images; 1 for codes.
        levels: number of values of a pixel or code: 2, 256, or any other; None: real numbers, which a transformer does
            not take.
        num_classes: number of classes; None: unconditional.
        null_class: whether there is one more class embedding, number `num_classes`: the null label of guidance.
        patch_size: side of a transformer's patches; None: the smallest with which there are at most `MOST_TOKENS`.
        num_orders: orders of `made`.
        components: normal distributions in the mixtures of real numbers.

    Raises:
        ValueError: an unknown choice, or settings that do not go together.
    """
    if size not in TRANSFORMERS:
        raise ValueError(f"{size=} is not known. Choose one of: {', '.join(TRANSFORMERS)}.")
    height, width = pair(resolution)
    embeds = None if num_classes is None else num_classes + null_class
    if architecture != "transformer":
        if patch_size is not None:
            raise ValueError(f"{patch_size=} is a setting of transformers, and architecture={architecture!r}.")
        layers, hidden = PERCEPTRONS[size]
        return MaskedAutoregressiveModel(
            architecture,
            (channels, height, width),
            levels,
            hidden,
            layers if architecture == "made" else 1,
            num_orders,
            components if levels is None else 1,
            embeds,
        )
    if levels is None or num_orders != 1:
        raise ValueError(f"{levels=} and {num_orders=}: a transformer has levels, and one order. Choose made or nade.")
    layers, hidden = TRANSFORMERS[size]
    return AutoregressiveTransformerModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        levels=levels,
        patch_size=patch_side(height, width, MOST_TOKENS) if patch_size is None else patch_size,
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // HEAD_DIMENSION,
        head_size=2 * hidden,
        num_class_embeds=embeds,
    )


@checked
def build_continuous(
    size: Literal["xs", "s", "m", "l"],
    resolution: int | tuple[int, int],
    channels: int = 1,
    num_classes: int | None = None,
    null_class: bool = True,
    patch_size: int | None = None,
    random_order: bool = False,
) -> ModelMixin:
    """Build a `ContinuousTransformerModel` of images (B, channels, H, W), or of latents.

    Args:
        size: `xs`, `s`, `m` or `l`.
        resolution, channels, num_classes, null_class: as those of `build_autoregressive`.
        patch_size: side of a patch; None: the smallest with which there are at most `MOST_CONTINUOUS_TOKENS`.
        random_order: whether patches are in any order.

    Raises:
        ValueError: an unknown size, or patches that do not tile the images.
    """
    if size not in TRANSFORMERS:
        raise ValueError(f"{size=} is not known. Choose one of: {', '.join(TRANSFORMERS)}.")
    height, width = pair(resolution)
    layers, hidden = TRANSFORMERS[size]
    return ContinuousTransformerModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        patch_size=patch_side(height, width, MOST_CONTINUOUS_TOKENS) if patch_size is None else patch_size,
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // HEAD_DIMENSION,
        head_size=hidden,
        random_order=random_order,
        num_class_embeds=None if num_classes is None else num_classes + null_class,
    )
