"""Generators: networks from a latent vector, and a class, to an image. All have the same call."""

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
from .conv_layers import cell_grid
from .gan_layers import GAIN, SLOPE, InvertedBottleneck, init_dcgan_weights, scaled_conv, scaled_linear
from .layers import check_class_labels, pair

OUTPUT_ACTIVATIONS = {"tanh": nn.Tanh, "none": nn.Identity}


@dataclass
class GeneratorOutput(BaseOutput):
    """Output of all generators.

    Args:
        sample (B, out_channels, H, W): images.
    """

    sample: Tensor


class LatentGenerator:
    """A mixin with the call of all generators, for a network with `_generate`."""

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of a generated image."""
        return (self.config.out_channels, *pair(self.config.sample_size))

    def forward(
        self, z: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> GeneratorOutput | tuple[Tensor]:
        """Generate images (B, out_channels, H, W).

        Args:
            z (B, d): latents, d = `config.latent_channels`.
            class_labels (B,): classes; None for a network without classes.
            return_dict: whether to return a GeneratorOutput instead of a tuple.

        Raises:
            ValueError: latents of another shape, or classes that the network needs or does not take.
        """
        if z.ndim != 2 or z.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"latents have shape {tuple(z.shape)}; this generator takes (B, {self.config.latent_channels})."
            )
        check_class_labels(class_labels, self.config.num_class_embeds)
        height, width = pair(self.config.sample_size)
        sample = self._generate(z, class_labels)[..., :height, :width]
        return GeneratorOutput(sample=sample) if return_dict else (sample,)


class LatentWithClass(nn.Module):
    """A latent z (B, d) and a learned vector of its class, concatenated to (B, 2 d) (Mirza & Osindero 2014,
    https://arxiv.org/abs/1411.1784). Without classes it is z itself.

    Attributes:
        width: 2 d, or d without classes.
    """

    def __init__(self, latent_channels: int, num_class_embeds: int | None):
        super().__init__()
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, latent_channels)
        self.width = latent_channels if num_class_embeds is None else 2 * latent_channels

    def forward(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        return z if self.classes is None else torch.cat([z, self.classes(class_labels).to(z.dtype)], 1)


def upsample(x: Tensor, mode: str) -> Tensor:
    """Double both sides by `nearest` or `bilinear` interpolation: (B, C, H, W) -> (B, C, 2 H, 2 W)."""
    return F.interpolate(x, scale_factor=2, mode=mode)


def leaky_clamp(x: Tensor, slope: float = 0.1) -> Tensor:
    """Compute a clamp to [-1, 1] that continues outside as lines of this slope."""
    return torch.lerp(x.clamp(-1, 1), x, slope)


class MLPGeneratorModel(LatentGenerator, ModelMixin, ConfigMixin):
    """A generator of fully connected layers with leaky ReLUs (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661).

    Points of the plane are images (B, 2, 1, 1): use `sample_size=1, out_channels=2, output_activation="none"`.

    Args:
        sample_size: H = W, or (H, W).
        out_channels: channels of images.
        latent_channels: dimension d of the latents (B, d).
        hidden_dims: widths of the hidden layers, from the latent to the image.
        output_activation: `tanh` for images in [-1, 1], or `none`.
        num_class_embeds: number of classes; None: unconditional.

    Raises:
        ValueError: the activation is not known.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        out_channels: int = 1,
        latent_channels: int = 64,
        hidden_dims: tuple[int, ...] = (256, 512),
        output_activation: str = "tanh",
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if output_activation not in OUTPUT_ACTIVATIONS:
            raise ValueError(
                f"output_activation={output_activation!r} is not known. Choose one of: {', '.join(OUTPUT_ACTIVATIONS)}."
            )
        self.latent = LatentWithClass(latent_channels, num_class_embeds)
        layers = []
        for before, after in pairwise((self.latent.width, *hidden_dims)):
            layers += [nn.Linear(before, after), nn.LeakyReLU(SLOPE)]
        last = hidden_dims[-1] if hidden_dims else self.latent.width
        self.layers = nn.Sequential(*layers, nn.Linear(last, out_channels * math.prod(pair(sample_size))))
        self.activation = OUTPUT_ACTIVATIONS[output_activation]()

    def _generate(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        x = self.layers(self.latent(z, class_labels))  # (B, C H W)
        return self.activation(x).unflatten(1, (self.config.out_channels, *pair(self.config.sample_size)))


class DCGANGeneratorModel(LatentGenerator, ModelMixin, ConfigMixin):
    """A generator of transposed convolutions with batch norm and ReLU, and tanh at the end (Radford et al. 2016,
    https://arxiv.org/abs/1511.06434).

    Each convolution doubles the sides. Images may have any size: larger ones are generated and cropped.

    Args:
        sample_size: H = W, or (H, W).
        out_channels: channels of images.
        latent_channels: dimension d of the latents (B, d).
        block_out_channels: widths of the levels, from the image to the latent; each halves the sides once.
        num_class_embeds: number of classes; None: unconditional.
    """

    _skip_layerwise_casting_patterns = ("norm",)

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        out_channels: int = 1,
        latent_channels: int = 64,
        block_out_channels: tuple[int, ...] = (64, 128),
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        self.latent = LatentWithClass(latent_channels, num_class_embeds)
        self.grid = (block_out_channels[-1], *cell_grid(pair(sample_size), 2 ** len(block_out_channels)))
        self.project = nn.Linear(self.latent.width, math.prod(self.grid), bias=False)
        layers = []
        for before, after in pairwise((*reversed(block_out_channels), out_channels)):
            layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        init_dcgan_weights(self)

    def _generate(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        return self.layers(self.project(self.latent(z, class_labels)).unflatten(1, self.grid))


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm with a gain and a shift for each class y, gamma_y (x - mean) / std + beta_y, for x (B, C, H, W)
    (Dumoulin et al. 2017, https://arxiv.org/abs/1610.07629). Without classes it is torch's batch norm."""

    def __init__(self, channels: int, num_class_embeds: int | None):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=num_class_embeds is None)
        self.gain = self.shift = None
        if num_class_embeds is not None:
            self.gain, self.shift = (nn.Embedding(num_class_embeds, channels) for _ in range(2))
            nn.init.ones_(self.gain.weight)
            nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, class_labels: Tensor | None) -> Tensor:
        h = self.norm(x)
        if self.gain is None:
            return h
        gain, shift = (table(class_labels)[:, :, None, None].to(h.dtype) for table in (self.gain, self.shift))
        return torch.addcmul(shift, gain, h)


class UpBlock(nn.Module):
    """Two convolutions, each after a conditional batch norm, and a skip: (B, before, H, W) -> (B, after, 2 H, 2 W)."""

    def __init__(self, before: int, after: int, num_class_embeds: int | None):
        super().__init__()
        self.norm1 = ConditionalBatchNorm2d(before, num_class_embeds)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = ConditionalBatchNorm2d(after, num_class_embeds)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, class_labels: Tensor | None) -> Tensor:
        h = self.conv1(upsample(F.relu(self.norm1(x, class_labels)), "nearest"))
        h = self.conv2(F.relu(self.norm2(h, class_labels)))
        return h + upsample(self.skip(x), "nearest")  # a 1x1 convolution gives the same before upsampling, for less


class ResNetGeneratorModel(LatentGenerator, ModelMixin, ConfigMixin):
    """A generator of residual blocks with class-conditional batch norm, and tanh at the end.

    Miyato et al. 2018 (https://arxiv.org/abs/1802.05957) trained it with a discriminator of spectral norm 1, and it is
    the origin of BigGAN's. Images may have any size: larger ones are generated and cropped.

    Args:
        sample_size: H = W, or (H, W).
        out_channels: channels of images.
        latent_channels: dimension d of the latents (B, d).
        block_out_channels: widths of the levels, from the image to the latent; each but the first halves the sides.
        patch_size: side in pixels of the square that forms one position of the first level.
        num_class_embeds: number of classes; None: unconditional.
    """

    _skip_layerwise_casting_patterns = ("norm",)

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        out_channels: int = 1,
        latent_channels: int = 64,
        block_out_channels: tuple[int, ...] = (64, 128),
        patch_size: int = 2,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        multiple = patch_size * 2 ** (len(block_out_channels) - 1)
        self.grid = (block_out_channels[-1], *cell_grid(pair(sample_size), multiple))
        self.project = nn.Linear(latent_channels, math.prod(self.grid))
        widths = pairwise(reversed(block_out_channels))
        self.blocks = nn.ModuleList(UpBlock(before, after, num_class_embeds) for before, after in widths)
        self.norm_out = ConditionalBatchNorm2d(block_out_channels[0], num_class_embeds)
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels * patch_size**2, 3, padding=1)

    def _generate(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        x = self.project(z).unflatten(1, self.grid)
        for block in self.blocks:
            x = block(x, class_labels)
        x = self.conv_out(F.relu(self.norm_out(x, class_labels)))
        return F.pixel_shuffle(x, self.config.patch_size).tanh()


class ResidualGeneratorModel(LatentGenerator, ModelMixin, ConfigMixin):
    """A small version of R3GAN's generator (Huang et al. 2024, https://arxiv.org/abs/2501.05441): inverted bottlenecks
    without normalisation, with bilinear upsampling between levels.

    The paper's generator starts with learned 4 x 4 maps that are multiplied by linear functions of z. This one starts
    with two fully connected layers, because few blocks have a small receptive field. The output is a leaky clamp (slope
    0.1), not tanh: on mostly black images tanh saturates and its gradient vanishes. Values may therefore lie a little
    outside [-1, 1]. Images may have any size: larger ones are generated and cropped.

    Args:
        sample_size: H = W, or (H, W).
        out_channels: channels of images.
        latent_channels: dimension d of the latents (B, d).
        block_out_channels: widths of the levels, from the image to the latent; each but the first halves the sides.
        layers_per_block: inverted bottlenecks per level.
        expansion: width inside a block, divided by the width of its level.
        group_channels: channels in a group of the block's convolution; divides expansion x width.
        hidden_dim: width between the two fully connected layers.
        patch_size: side in pixels of the square that forms one position of the first level.
        num_class_embeds: number of classes; None: unconditional.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        out_channels: int = 1,
        latent_channels: int = 64,
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: int = 1,
        expansion: int = 2,
        group_channels: int = 16,
        hidden_dim: int = 256,
        patch_size: int = 2,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        levels, widths = len(block_out_channels), tuple(reversed(block_out_channels))
        self.latent = LatentWithClass(latent_channels, num_class_embeds)
        self.grid = (widths[0], *cell_grid(pair(sample_size), patch_size * 2 ** (levels - 1)))
        self.mapping = scaled_linear(self.latent.width, hidden_dim)
        self.project = scaled_linear(hidden_dim, math.prod(self.grid), GAIN)
        self.levels, self.narrow = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            blocks = (
                InvertedBottleneck(width, expansion, group_channels, levels * layers_per_block)
                for _ in range(layers_per_block)
            )
            self.levels.append(nn.Sequential(*blocks))
        for before, after in pairwise(widths):
            self.narrow.append(scaled_conv(before, after, 1, bias=False))
        self.conv_out = scaled_conv(widths[-1], out_channels * patch_size**2, 3, padding=1)

    def _generate(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        h = F.leaky_relu(self.mapping(self.latent(z, class_labels)), SLOPE)  # (B, hidden_dim)
        x = self.levels[0](self.project(h).unflatten(1, self.grid))  # (B, C, h, w)
        for narrow, level in zip(self.narrow, self.levels[1:], strict=True):
            x = level(upsample(narrow(x), "bilinear"))
        return leaky_clamp(F.pixel_shuffle(self.conv_out(x), self.config.patch_size))
