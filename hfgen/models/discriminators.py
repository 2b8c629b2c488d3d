"""Discriminators: networks from an image, and its class, to a score. All have the same call, and none has a sigmoid."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..utils.arguments import checked
from .conv_layers import cell_grid, pad_to_multiple
from .gan_layers import GAIN, SLOPE, DownsampleBlock, InvertedBottleneck, init_dcgan_weights, scaled_conv, scaled_linear
from .layers import check_class_labels, pair


@dataclass
class DiscriminatorOutput(BaseOutput):
    """Output of all discriminators.

    Args:
        logits (B,): a score for each image; the higher, the more real.
        features (B, F, h, w): the last hidden map.
    """

    logits: Tensor
    features: Tensor | None = None  # accelerate rebuilds outputs from one mapping, so other fields need a default


class ImageDiscriminator:
    """A mixin with the call of all discriminators, for a network with `_features`, `pool` and `head`."""

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images that the network scores."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    def forward(
        self, x: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> DiscriminatorOutput | tuple[Tensor, Tensor]:
        """Compute scores (B,) and features (B, F, h, w).

        Args:
            x (B, in_channels, H, W): images.
            class_labels (B,): their classes; None for a network without classes.
            return_dict: whether to return a DiscriminatorOutput instead of a tuple.

        Raises:
            ValueError: images of another shape, or classes that the network needs or does not take.
        """
        if tuple(x.shape[1:]) != self.sample_shape:
            shape = ", ".join(map(str, self.sample_shape))
            raise ValueError(f"images have shape {tuple(x.shape)}; this discriminator takes (B, {shape}).")
        check_class_labels(class_labels, self.config.num_class_embeds)
        features = self._features(x)  # (B, F, h, w)
        logits = self.head(self.pool(features).flatten(1), class_labels)
        return DiscriminatorOutput(logits=logits, features=features) if return_dict else (logits, features)


class ProjectionHead(nn.Module):
    """The score (psi + v_y) . h + b of pooled features h (B, F) and a class y; without classes psi . h + b.

    It is the sum of two logits that are linear in h, one for 'real' and one for the class y (Miyato & Koyama 2018,
    https://arxiv.org/abs/1802.05637).
    """

    def __init__(self, width: int, num_class_embeds: int | None):
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)
        for layer in (self.score, *(() if self.classes is None else (self.classes,))):
            nn.init.normal_(layer.weight, std=width**-0.5)
        nn.init.zeros_(self.score.bias)

    def forward(self, h: Tensor, class_labels: Tensor | None) -> Tensor:
        direction = self.score.weight if self.classes is None else self.score.weight + self.classes(class_labels)
        return (direction * h).sum(1) + self.score.bias  # (B,)


class SumPool(nn.Module):
    """Sum over positions: (B, F, h, w) -> (B, F)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3))


def add_spectral_norm(network: nn.Module) -> None:
    """Divide the weight of each layer by its largest singular value (Miyato et al. 2018,
    https://arxiv.org/abs/1802.05957).

    The weight is taken as a matrix with one row for each output. One power iteration in each forward pass of training
    tracks the singular value. For a linear layer it is the Lipschitz constant; for a k x k convolution it is at least
    1/k of the Lipschitz constant.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            parametrizations.spectral_norm(module)


class MLPDiscriminatorModel(ImageDiscriminator, ModelMixin, ConfigMixin):
    """A discriminator of fully connected layers with leaky ReLUs (Goodfellow et al. 2014,
    https://arxiv.org/abs/1406.2661).

    Args:
        sample_size: H = W, or (H, W).
        in_channels: of images.
        hidden_dims: widths of the hidden layers, from the image to the score.
        num_class_embeds: number of classes; None: unconditional.
        spectral_norm: whether weights have spectral norm 1. Without classes the scores are then 1-Lipschitz.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        hidden_dims: tuple[int, ...] = (512, 256),
        num_class_embeds: int | None = None,
        spectral_norm: bool = False,
    ):
        super().__init__()
        pixels = in_channels * math.prod(pair(sample_size))
        layers = []
        for before, after in pairwise((pixels, *hidden_dims)):
            layers += [nn.Linear(before, after), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(nn.Flatten(), *layers)
        self.pool = nn.Identity()
        self.head = ProjectionHead((pixels, *hidden_dims)[-1], num_class_embeds)
        if spectral_norm:
            add_spectral_norm(self)

    def _features(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, :, None, None]


NORMS = ("batch", "none")
"""Choices of normalisation in `DCGANDiscriminatorModel`."""


class DCGANDiscriminatorModel(ImageDiscriminator, ModelMixin, ConfigMixin):
    """A discriminator of convolutions of stride 2 with leaky ReLUs, and with batch norm after all but the first
    (Radford et al. 2016, https://arxiv.org/abs/1511.06434).

    Images may have any size: they are padded with zeros to a multiple of 2^levels.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: of images.
        block_out_channels: widths of the levels, from the image to the score; each halves the sides once.
        norm: `batch` or `none`. With batch norm a score depends on the whole batch, so a penalty on the gradient of
            one image's score has no meaning (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, section 4).
        num_class_embeds: number of classes; None: unconditional.
        spectral_norm: whether weights have spectral norm 1; needs norm `none`, because batch norm rescales them.

    Raises:
        ValueError: the norm is not known, or does not go with `spectral_norm`.
    """

    _skip_layerwise_casting_patterns = ("norm",)

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128),
        norm: str = "batch",
        num_class_embeds: int | None = None,
        spectral_norm: bool = False,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r} is not known. Choose one of: {', '.join(NORMS)}.")
        if spectral_norm and norm == "batch":
            raise ValueError("spectral_norm=True has no effect with norm='batch', which rescales; give norm='none'.")
        self.multiple = 2 ** len(block_out_channels)
        layers = []
        for level, (before, after) in enumerate(pairwise((in_channels, *block_out_channels))):
            has_norm = norm == "batch" and level > 0
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=not has_norm)]
            layers += [nn.BatchNorm2d(after)] * has_norm + [nn.LeakyReLU(SLOPE)]
        self.layers, self.pool = nn.Sequential(*layers), nn.Identity()
        grid = cell_grid(pair(sample_size), self.multiple)
        self.head = ProjectionHead(block_out_channels[-1] * math.prod(grid), num_class_embeds)
        init_dcgan_weights(self)
        if spectral_norm:
            add_spectral_norm(self)

    def _features(self, x: Tensor) -> Tensor:
        return self.layers(pad_to_multiple(x, self.multiple))


class DownBlock(nn.Module):
    """Two convolutions, each after a ReLU, and a skip: (B, before, H, W) -> (B, after, H / 2, W / 2).

    Without `down` the sides stay H and W.
    """

    def __init__(self, before: int, after: int, down: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after or down else nn.Identity()
        self.pool = DownsampleBlock() if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        return self.pool(h) + self.skip(self.pool(x))


class ResNetDiscriminatorModel(ImageDiscriminator, ModelMixin, ConfigMixin):
    """A discriminator of residual blocks, a sum over positions, and a projection for classes (Miyato & Koyama 2018,
    https://arxiv.org/abs/1802.05637). Images may have any size: they are padded with zeros.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: of images.
        block_out_channels: widths of the levels, from the image to the score; each but the first halves the sides.
        patch_size: side in pixels of the square that forms one position of the first level.
        num_class_embeds: number of classes; None: unconditional.
        spectral_norm: whether weights have spectral norm 1.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128),
        patch_size: int = 2,
        num_class_embeds: int | None = None,
        spectral_norm: bool = False,
    ):
        super().__init__()
        self.multiple = patch_size * 2 ** (len(block_out_channels) - 1)
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, block_out_channels[0], 3, padding=1)
        blocks = [DownBlock(before, after, down=True) for before, after in pairwise(block_out_channels)]
        blocks.append(DownBlock(block_out_channels[-1], block_out_channels[-1], down=False))
        self.blocks, self.pool = nn.Sequential(*blocks), SumPool()
        self.head = ProjectionHead(block_out_channels[-1], num_class_embeds)
        if spectral_norm:
            add_spectral_norm(self)

    def _features(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.config.patch_size)
        return F.relu(self.blocks(self.conv_in(x)))


class ResidualDiscriminatorModel(ImageDiscriminator, ModelMixin, ConfigMixin):
    """A small version of R3GAN's discriminator (Huang et al. 2024, https://arxiv.org/abs/2501.05441).

    It mirrors the generator: inverted bottlenecks without normalisation, 2 x 2 means between levels, and two fully
    connected layers. Images may have any size: they are padded with zeros.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: of images.
        block_out_channels: widths of the levels, from the image to the score; each but the first halves the sides.
        layers_per_block: inverted bottlenecks per level.
        expansion: width inside a block, divided by the width of its level.
        group_channels: channels in a group of the block's convolution; divides expansion x width.
        hidden_dim: width between the two fully connected layers.
        patch_size: side in pixels of the square that forms one position of the first level.
        num_class_embeds: number of classes; None: unconditional.
        spectral_norm: whether weights have spectral norm 1. The initial blocks are then not the identity.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: int = 1,
        expansion: int = 2,
        group_channels: int = 16,
        hidden_dim: int = 256,
        patch_size: int = 2,
        num_class_embeds: int | None = None,
        spectral_norm: bool = False,
    ):
        super().__init__()
        levels = len(block_out_channels)
        self.multiple = patch_size * 2 ** (levels - 1)
        last_gain = GAIN if spectral_norm else 0.0  # a matrix of zeros has no singular value to divide by
        layers = [scaled_conv(in_channels * patch_size**2, block_out_channels[0], 3, padding=1)]
        for level, width in enumerate(block_out_channels):
            if level:
                layers += [DownsampleBlock(), scaled_conv(block_out_channels[level - 1], width, 1, bias=False)]
            layers += [
                InvertedBottleneck(width, expansion, group_channels, levels * layers_per_block, last_gain)
                for _ in range(layers_per_block)
            ]
        self.layers = nn.Sequential(*layers)
        values = block_out_channels[-1] * math.prod(cell_grid(pair(sample_size), self.multiple))
        self.pool = nn.Sequential(nn.Flatten(), scaled_linear(values, hidden_dim), nn.LeakyReLU(SLOPE))
        self.head = ProjectionHead(hidden_dim, num_class_embeds)
        if spectral_norm:
            add_spectral_norm(self)

    def _features(self, x: Tensor) -> Tensor:
        return self.layers(F.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.config.patch_size))
