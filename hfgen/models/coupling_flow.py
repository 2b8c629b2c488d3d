"""Coupling flows of images: NICE, RealNVP, Glow and Jet are settings of one network."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .elementwise import AffineMap, ElementwiseMap, build_elementwise
from .flow_layers import (
    CONDITIONERS,
    ActNorm,
    ChannelHalves,
    ChannelPermutation,
    Checkerboard,
    ConvConditioner,
    Coupling,
    DiagonalScale,
    InvertibleConvolution,
    initialise_layers,
)
from .layers import check_class_labels, pair, real

MIXINGS = {"none": None, "permutation": ChannelPermutation, "convolution": InvertibleConvolution}
"""Name of what mixes channels between couplings -> layer."""

MASKS = ("channel", "checkerboard", "both")


@dataclass
class NormalizingFlowOutput(BaseOutput):
    """Output of a normalizing flow.

    Args:
        latents (B, C, H, W): z = f(x), in float32 at least.
        log_det (B,): log|det dz/dx| of each image, in float32 at least.
    """

    latents: Tensor
    log_det: Tensor | None = None  # accelerate rebuilds outputs from one mapping, so other fields need a default


class CouplingFlowModel(ModelMixin, ConfigMixin):
    """An invertible network z = f(x) of layers whose Jacobian is triangular, with log|det dz/dx|.

    Each level has layers of couplings, and divides the image into patches of `squeeze` x `squeeze` pixels, which become
    channels. At the end of a level, half of the channels are latents, and the others go on to the next level; the last
    level makes latents of all. Latents have the shape of the image: those of a level return to its pixels. All latents
    are meant to be standard normal.

        NICE (https://arxiv.org/abs/1410.8516): elementwise="additive", diagonal_scale=True, num_levels=1
        RealNVP (https://arxiv.org/abs/1605.08803): elementwise="affine", masks="both"
        Glow (https://arxiv.org/abs/1807.03039): elementwise="affine", mixing="convolution", actnorm=True
        Jet (https://arxiv.org/abs/2412.15129): network="vit", squeeze=4, num_levels=1, mixing="permutation"

    Before training, `initialise` sets actnorms and the first maps by data.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: channels of images. A vector of D numbers is an image (D, 1, 1).
        num_levels: number of levels.
        layers_per_level: couplings of a level; with masks="both" half of them are checkerboards.
        squeeze: side of the patches; 1: none.
        masks: `channel`: couplings divide the channels after the squeeze; `checkerboard`: they divide pixels before it;
            `both`: the latter, then the former.
        elementwise: map of the changed numbers: `additive`, `affine`, `logistic_mixture` or `spline`.
        components: logistic distributions of a mixture, or bins of a spline; at least 2.
        mixing: of channels before each coupling of channels: `none`, `permutation` (fixed) or `convolution` (1 x 1).
        actnorm: whether each coupling begins with an actnorm.
        split_prior: `conditional`: latents that leave at a level are normal with a mean and a scale that a convolution
            computes from what goes on (as in Glow); `standard`: they are what the couplings made.
        diagonal_scale: whether each latent is scaled by a number of its own at the end.
        network: of couplings: `conv`, `vit` or `mlp`.
        hidden_channels: width of these networks.
        network_depth: number of their residual blocks, transformer blocks or hidden layers.
        num_class_embeds: number of classes that the networks are told, including the one that means 'no class'; None:
            unconditional.

    Raises:
        ValueError: an unknown choice, or a size that levels can't divide.
    """

    _supports_gradient_checkpointing = True

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        num_levels: int = 2,
        layers_per_level: int = 8,
        squeeze: int = 2,
        masks: str = "channel",
        elementwise: str = "affine",
        components: int = 8,
        mixing: str = "none",
        actnorm: bool = False,
        split_prior: str = "conditional",
        diagonal_scale: bool = False,
        network: str = "conv",
        hidden_channels: int = 64,
        network_depth: int = 2,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        choices = {"masks": MASKS, "mixing": MIXINGS, "network": CONDITIONERS}
        choices |= {"split_prior": ("conditional", "standard")}
        for name, known in choices.items():
            if self.config[name] not in known:
                raise ValueError(f"{name}={self.config[name]!r} is not known. Choose one of: {', '.join(known)}.")
        if min(num_levels, layers_per_level, squeeze, hidden_channels) < 1 or network_depth < 1:
            raise ValueError("num_levels, layers_per_level, squeeze, hidden_channels and network_depth are at least 1.")
        self.gradient_checkpointing = False
        shape, layers, self._levels = self.sample_shape, [], []
        for index in range(num_levels):
            level = FlowLevel(squeezed_shape(shape, squeeze), squeeze, index < num_levels - 1)
            layers.append(nn.ModuleList(self._layers(shape, level, build_elementwise(elementwise, components))))
            self._levels.append(level)
            shape = level.out_shape
        self.levels = nn.ModuleList(layers)
        self.scale = DiagonalScale(self.sample_shape) if diagonal_scale else None

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of images and of latents."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    def forward(
        self, sample: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> NormalizingFlowOutput | tuple[Tensor, Tensor]:
        """Return latents and log-determinants.

        Args:
            sample (B, C, H, W): images.
            class_labels (B,): classes; None for a network without classes.
            return_dict: whether to return a NormalizingFlowOutput instead of a tuple.

        Raises:
            ValueError: classes that the network needs or does not take.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        x, latents = real(sample), []
        log_det = x.new_zeros(len(x))
        for level, layers in zip(self._levels, self.levels, strict=True):
            for layer in layers:
                x, change = self._call(layer, x, class_labels)
                log_det = log_det + change
            x, out = level.divide(x)
            latents.append(out)
        z = x
        for level, out in zip(reversed(self._levels), reversed(latents), strict=True):
            z = level.join(z, out)
        if self.scale is not None:
            z, change = self.scale(z)
            log_det = log_det + change
        return NormalizingFlowOutput(latents=z, log_det=log_det) if return_dict else (z, log_det)

    def inverse(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        num_segments: int | None = None,
        num_iterations: int | None = None,
    ) -> Tensor:
        """Return the images (B, C, H, W) of latents (B, C, H, W), in one pass.

        Args:
            latents, class_labels: z, and classes (B,).
            guidance_scale, num_segments, num_iterations: those of `TransformerFlowModel`; here there is neither
                guidance nor iteration.

        Raises:
            ValueError: classes that do not fit, guidance, or iterations.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        refuse_iterations("coupling flow", guidance_scale, num_segments, num_iterations)
        z = real(latents) if self.scale is None else self.scale.inverse(real(latents))
        outs = []
        for level in self._levels:
            z, out = level.divide(z, squeezed=False)
            outs.append(out)
        x = z
        for layers, out in zip(reversed(self.levels), reversed(outs), strict=True):
            x = torch.cat([x, out], 1)
            for layer in reversed(layers):
                x = layer.inverse(x, class_labels)
        return x

    @torch.no_grad()
    def initialise(self, sample: Tensor, class_labels: Tensor | None = None) -> None:
        """Set the actnorms and fit the maps of couplings by images (B, C, H, W), layer by layer, if the network is new.

        To have the same network in all processes, give each of them the same images, before the network is wrapped.

        Args:
            sample, class_labels: as those of a call.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, ActNorm | Coupling)]
        initialise_layers(layers, lambda: self(sample, class_labels))

    def _call(self, layer: nn.Module, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(layer, x, labels)
        return layer(x, labels)

    def _layers(self, shape: tuple[int, int, int], level: "FlowLevel", elementwise: ElementwiseMap) -> list[nn.Module]:
        """Return the layers of a level for images of this shape."""
        config, layers = self.config, []
        count = {"channel": 0, "checkerboard": config.layers_per_level}.get(config.masks, config.layers_per_level // 2)
        conditioner = CONDITIONERS[config.network]
        sizes = config.hidden_channels, config.network_depth, config.num_class_embeds
        for index in range(config.layers_per_level):
            board = index < count
            if index == count:
                layers.append(Squeeze(config.squeeze))
            here = shape if board else level.shape
            partition = (Checkerboard if board else ChannelHalves)(here, index % 2 == 1)
            layers += [ActNorm(here[0])] if config.actnorm else []
            mixing = None if board else MIXINGS[config.mixing]
            layers += [mixing(here[0])] if mixing is not None else []
            network = conditioner(partition.kept, partition.changed[0] * elementwise.size, *sizes)
            layers.append(Coupling(partition, elementwise, network))
        if count == config.layers_per_level:
            layers.append(Squeeze(config.squeeze))
        if level.divides and config.split_prior == "conditional":
            partition, affine = ChannelHalves(level.shape, False), AffineMap()
            network = ConvConditioner(partition.kept, 2 * partition.changed[0], 0, 0, config.num_class_embeds)
            layers.append(Coupling(partition, affine, network))
        return layers


class Squeeze(nn.Module):
    """Turn the pixels of each patch into channels, (B, C, H, W) -> (B, C s s, H / s, W / s); log|det| is 0."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, self.side), x.new_zeros(len(x))

    def inverse(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.pixel_shuffle(y, self.side)


class FlowLevel:
    """How the latents of a level leave it.

    Args:
        shape: (C, H, W) after the level's squeeze.
        squeeze: side of the patches.
        divides: whether half of the channels leave; the last level keeps them all.
    """

    def __init__(self, shape: tuple[int, int, int], squeeze: int, divides: bool):
        if divides and shape[0] < 2:
            raise ValueError(f"Images of shape {shape} have no channels to divide at a level: use fewer num_levels.")
        self.shape, self.squeeze, self.divides = shape, squeeze, divides
        self.kept = shape[0] - shape[0] // 2 if divides else shape[0]
        self.out_shape = (self.kept, *shape[1:])

    def divide(self, x: Tensor, squeezed: bool = True) -> tuple[Tensor, Tensor]:
        """Return the channels that go on, and those that leave, of x after the level's squeeze, or before it."""
        x = x if squeezed else F.pixel_unshuffle(x, self.squeeze)
        return x[:, : self.kept], x[:, self.kept :]

    def join(self, kept: Tensor, out: Tensor) -> Tensor:
        """Return the latents of a level as pixels: the inverse of `divide`."""
        return F.pixel_shuffle(torch.cat([kept, out], 1), self.squeeze)


def refuse_iterations(kind: str, guidance_scale: float, num_segments: int | None, num_iterations: int | None) -> None:
    """Raise ValueError for guidance or segments, which transformer flows alone have."""
    given = {"guidance_scale": guidance_scale, "num_segments": num_segments, "num_iterations": num_iterations}
    if given := {name: value for name, value in given.items() if value not in (None, 1)}:
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{words}: a {kind} is inverted in one pass, without guidance. Leave it out.")


def squeezed_shape(shape: tuple[int, int, int], side: int) -> tuple[int, int, int]:
    """Return the shape of images (C, H, W) after `Squeeze`. Raises ValueError for patches that do not tile them."""
    channels, height, width = shape
    if height % side or width % side:
        raise ValueError(
            f"A level gets images of {height} x {width}, which patches with squeeze={side} do not tile: use fewer "
            "num_levels, another squeeze, or another resolution."
        )
    return channels * side**2, height // side, width // side
