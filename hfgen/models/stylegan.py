"""A style-based generator with skip connections, and its residual discriminator (Karras et al. 2020,
https://arxiv.org/abs/1912.04958)."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .conv_layers import cell_grid, pad_to_multiple
from .discriminators import ImageDiscriminator
from .generators import upsample
from .layers import check_class_labels, pair, real
from .style_layers import (
    DownsampleResidual,
    EqualisedConv2d,
    EqualisedLinear,
    EqualisedProjectionHead,
    MinibatchDeviation,
    ModulatedConv2d,
    StyleLayer,
    ToImage,
    activation,
    normalise,
)

MAPPING_RATE = 0.01
"""Learning rate of the mapping network, divided by that of the other layers."""


@dataclass
class StyleGeneratorOutput(BaseOutput):
    """Output of `StyleGeneratorModel`.

    Args:
        sample (B, out_channels, H, W): images; None of a call without synthesis.
        styles (B, L, style_dim): the style of each layer that they were made with.
    """

    sample: Tensor | None
    styles: Tensor | None = None  # accelerate rebuilds outputs from one mapping, so other fields need a default


class MappingNetwork(nn.Module):
    """From latents z (B, d), and classes, to styles w (B, style_dim): fully connected layers with leaky ReLUs after z,
    and the class's learned vector beside it, have been brought to length sqrt(d)."""

    def __init__(self, latent_channels: int, style_dim: int, layers: int, num_class_embeds: int | None):
        super().__init__()
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, latent_channels)
        width = latent_channels * (1 if num_class_embeds is None else 2)
        widths = pairwise((width, *[style_dim] * layers))
        self.layers = nn.ModuleList(EqualisedLinear(*pair_, rate=MAPPING_RATE) for pair_ in widths)

    def forward(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        h = normalise(z)
        if self.classes is not None:
            h = torch.cat([h, normalise(self.classes(class_labels).to(z.dtype))], 1)
        for layer in self.layers:
            h = activation(layer(h))
        return h


class StyleGeneratorModel(ModelMixin, ConfigMixin):
    """A generator of images by styles (Karras et al. 2019, https://arxiv.org/abs/1812.04948; 2020,
    https://arxiv.org/abs/1912.04958).

    A mapping network turns z into a style w. It scales the maps of each modulated convolution, which begin as one
    learned constant. Each level has its own image, and the images are summed while they are doubled with the FIR filter
    (1, 3, 3, 1) / 4 along both sides (skip generator). Noise maps add what is random at each position. Images have no
    activation at the end, so values may lie a little outside [-1, 1]. They may have any size: larger ones are generated
    and cropped.

    Styles have a row for each of L = 2 levels layers, from coarse to fine: the first convolution, the image of the
    first level, then two convolutions a level. The image of a level shares the row of the next level's first
    convolution.

    Args:
        sample_size: H = W, or (H, W).
        out_channels: channels of images.
        latent_channels: dimension d of the latents (B, d).
        style_dim: width of a style w.
        mapping_layers: layers of the mapping network.
        block_out_channels: widths of the levels, from the image to the constant; each but the first halves the sides.
        patch_size: side in pixels of the square that forms one position.
        num_class_embeds: number of classes; None: unconditional.

    Raises:
        ValueError: there is no mapping layer or no level.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        out_channels: int = 1,
        latent_channels: int = 64,
        style_dim: int = 64,
        mapping_layers: int = 4,
        block_out_channels: tuple[int, ...] = (32, 64, 128),
        patch_size: int = 1,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if mapping_layers < 1 or not block_out_channels:
            raise ValueError(f"{mapping_layers=} and block_out_channels={block_out_channels} must be at least one.")
        widths = tuple(reversed(block_out_channels))
        grid = cell_grid(pair(sample_size), patch_size * 2 ** (len(widths) - 1))
        self.mapping = MappingNetwork(latent_channels, style_dim, mapping_layers, num_class_embeds)
        self.constant = nn.Parameter(torch.randn(1, widths[0], *grid))
        self.layers = nn.ModuleList([StyleLayer(widths[0], widths[0], style_dim)])
        for before, after in pairwise(widths):
            self.layers += [StyleLayer(before, after, style_dim), StyleLayer(after, after, style_dim)]
        self.to_image = nn.ModuleList(ToImage(width, out_channels, patch_size, style_dim) for width in widths)
        self.noise_shapes = [tuple(side * 2 ** ((i + 1) // 2) for side in grid) for i in range(len(self.layers))]

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of a generated image."""
        return (self.config.out_channels, *pair(self.config.sample_size))

    @property
    def num_layers(self) -> int:
        """L, the number of rows of the styles of an image."""
        return 2 * len(self.to_image)

    @property
    def noise_size(self) -> int:
        """N, the number of values of all noise maps of an image."""
        return sum(map(math.prod, self.noise_shapes))

    def forward(
        self,
        z: Tensor | None = None,
        class_labels: Tensor | None = None,
        mixed: Tensor | None = None,
        crossover: Tensor | None = None,
        styles: Tensor | None = None,
        noise: Tensor | None = None,
        synthesis: bool = True,
        return_dict: bool = True,
    ) -> StyleGeneratorOutput | tuple[Tensor | None, Tensor]:
        """Generate images (B, out_channels, H, W), of latents or of styles.

        Args:
            z (B, d): latents.
            class_labels (B,): classes; None for a network without classes, and for styles.
            mixed (B, d): other latents, whose style the layers from `crossover` on have instead.
            crossover (B,): the first layer with the other style, 0 to L; L: none.
            styles (B, L, style_dim): in place of all of these.
            noise (B, N): standard normal values of the noise maps, one after the other; None: no noise.
            synthesis: whether to make images; otherwise only their styles are returned.
            return_dict: whether to return a StyleGeneratorOutput instead of a tuple.

        Raises:
            ValueError: latents and styles, or neither; tensors of another shape; or classes that the network needs or
                does not take.
        """
        if (z is None) == (styles is None) or (mixed is None) != (crossover is None):
            raise ValueError("Give latents z or styles, not both; and mixed together with crossover.")
        if styles is None:
            styles = self._styles(z, class_labels, mixed, crossover)
        elif class_labels is not None or mixed is not None:
            raise ValueError("styles say all: leave out class_labels and mixed.")
        shape = (len(styles), self.num_layers, self.config.style_dim)
        if tuple(styles.shape) != shape:
            raise ValueError(f"styles have shape {tuple(styles.shape)}; this generator takes (B, {shape[1:]}).")
        if noise is not None and tuple(noise.shape) != (len(styles), self.noise_size):
            raise ValueError(f"noise has shape {tuple(noise.shape)}; give {(len(styles), self.noise_size)}.")
        styles = real(styles)  # mixed precision would give a copy of others, from which no image is made
        sample = self._synthesis(styles.to(self.dtype), noise) if synthesis else None
        return StyleGeneratorOutput(sample, styles) if return_dict else (sample, styles)

    def _styles(self, z: Tensor, class_labels: Tensor | None, mixed: Tensor | None, crossover: Tensor | None) -> Tensor:
        """Return the styles of latents, (B, L, style_dim)."""
        for latents in (z,) if mixed is None else (z, mixed):
            if latents.ndim != 2 or latents.shape[1] != self.config.latent_channels:
                raise ValueError(
                    f"latents have shape {tuple(latents.shape)}; this generator takes (B, "
                    f"{self.config.latent_channels})."
                )
        check_class_labels(class_labels, self.config.num_class_embeds)
        styles = self.mapping(z, class_labels)[:, None].expand(-1, self.num_layers, -1)
        if mixed is None:
            return styles
        other = self.mapping(mixed, class_labels)[:, None]
        below = torch.arange(self.num_layers, device=z.device) < crossover[:, None]  # (B, L)
        return torch.where(below[:, :, None], styles, other)

    def _synthesis(self, styles: Tensor, noise: Tensor | None) -> Tensor:
        """Return images of styles (B, L, style_dim)."""
        w = styles.unbind(1)
        sizes = [math.prod(shape) for shape in self.noise_shapes]
        parts = [None] * len(sizes) if noise is None else noise.split(sizes, 1)
        maps = [
            None if part is None else part.unflatten(1, (1, *shape))
            for part, shape in zip(parts, self.noise_shapes, strict=True)
        ]
        x = self.constant.expand(len(styles), -1, -1, -1)
        x = self.layers[0](x, w[0], maps[0])  # (B, C, h, w)
        image = self.to_image[0](x, w[1])
        for level in range(1, len(self.to_image)):
            i = 2 * level
            x = self.layers[i - 1](upsample(x, "bilinear"), w[i - 1], maps[i - 1])
            x = self.layers[i](x, w[i], maps[i])
            image = upsample(image, "bilinear") + self.to_image[level](x, w[i + 1])
        height, width = pair(self.config.sample_size)
        return image[..., :height, :width]

    def modulations(self) -> list[list[ModulatedConv2d]]:
        """Return the modulated convolutions that read each of the L rows of styles."""
        rows: list[list[ModulatedConv2d]] = [[] for _ in range(self.num_layers)]
        for i, layer in enumerate(self.layers):
            rows[i].append(layer.conv)
        for level, to_image in enumerate(self.to_image):
            rows[2 * level + 1].append(to_image.conv)
        return rows


class StyleDiscriminatorModel(ImageDiscriminator, ModelMixin, ConfigMixin):
    """A residual discriminator with the deviation within the minibatch as a further map (Karras et al. 2020,
    https://arxiv.org/abs/1912.04958).

    A score therefore depends a little on the other images of its batch. Features, which come before that map, do not.
    Images may have any size: they are padded with zeros.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: of images.
        block_out_channels: widths of the levels, from the image to the score; each but the first halves the sides.
        patch_size: side in pixels of the square that forms one position of the first level.
        group_size: most images whose deviation is taken.
        num_class_embeds: number of classes; None: unconditional.

    Raises:
        ValueError: a group without images, or no level.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (32, 64, 128),
        patch_size: int = 1,
        group_size: int = 4,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if group_size < 1 or not block_out_channels:
            raise ValueError(f"{group_size=} and block_out_channels={block_out_channels} must be at least one.")
        self.multiple, last = patch_size * 2 ** (len(block_out_channels) - 1), block_out_channels[-1]
        self.conv_in = EqualisedConv2d(in_channels * patch_size**2, block_out_channels[0], 1)
        self.blocks = nn.Sequential(*(DownsampleResidual(*widths) for widths in pairwise(block_out_channels)))
        positions = math.prod(cell_grid(pair(sample_size), self.multiple))
        self.pool = nn.Sequential(
            MinibatchDeviation(group_size),
            EqualisedConv2d(last + 1, last, 3),
            Activation(),
            nn.Flatten(),
            EqualisedLinear(last * positions, last),
            Activation(),
        )
        self.head = EqualisedProjectionHead(last, num_class_embeds)

    def _features(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.config.patch_size)
        return self.blocks(activation(self.conv_in(x)))


class Activation(nn.Module):
    """`activation` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return activation(x)
