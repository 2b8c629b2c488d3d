"""Layers of generators and discriminators: residual blocks without normalisation, and initial weights."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Slope of the leaky ReLUs, max(x, SLOPE x)."""

GAIN = math.sqrt(2 / (1 + SLOPE**2))
"""Factor that restores the root mean square of a symmetric input after a leaky ReLU."""


def scaled_conv(
    before: int,
    after: int,
    kernel_size: int | tuple[int, int],
    gain: float = 1.0,
    padding: int = 0,
    groups: int = 1,
    bias: bool = True,
) -> nn.Conv2d:
    """Make a convolution with initial weights N(0, gain^2 / fan-in) and biases 0 (He et al. 2015,
    https://arxiv.org/abs/1502.01852)."""
    return _init_scaled(nn.Conv2d(before, after, kernel_size, padding=padding, groups=groups, bias=bias), gain)


def scaled_linear(before: int, after: int, gain: float = 1.0) -> nn.Linear:
    """Make a linear layer with initial weights N(0, gain^2 / fan-in) and biases 0."""
    return _init_scaled(nn.Linear(before, after), gain)


def _init_scaled(layer: nn.Module, gain: float) -> nn.Module:
    nn.init.normal_(layer.weight, std=gain * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class InvertedBottleneck(nn.Module):
    """R3GAN's block x + conv_1x1(act(conv_3x3(act(conv_1x1(x))))), (B, C, H, W) (Huang et al. 2024,
    https://arxiv.org/abs/2501.05441, section 3).

    There is no normalisation. Instead, the initial weights of the last convolution are 0, so that the block is the
    identity, and those of the first two have a factor L^(-1/4), where L is the number of residual blocks in the network
    (Fixup, Zhang et al. 2019, https://arxiv.org/abs/1901.09321, for three layers per block).

    Args:
        channels: C.
        expansion: the block has expansion x C channels inside.
        group_channels: channels in a group of the 3 x 3 convolution.
        blocks: L.
        last_gain: gain of the last convolution's initial weights.

    Raises:
        ValueError: `group_channels` does not divide expansion x C.
    """

    def __init__(self, channels: int, expansion: int, group_channels: int, blocks: int, last_gain: float = 0.0):
        super().__init__()
        wide, gain = expansion * channels, GAIN * blocks**-0.25
        if wide % group_channels:
            raise ValueError(
                f"group_channels={group_channels} must divide expansion x width = {expansion} x {channels} = {wide}."
            )
        self.conv1 = scaled_conv(channels, wide, 1, gain)
        self.conv2 = scaled_conv(wide, wide, 3, gain, padding=1, groups=wide // group_channels)
        self.conv3 = scaled_conv(wide, channels, 1, last_gain, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), SLOPE)  # (B, expansion C, H, W)
        h = F.leaky_relu(self.conv2(h), SLOPE)
        return x + self.conv3(h)


class DownsampleBlock(nn.Module):
    """Means of squares of 2 x 2, (B, C, 2 h, 2 w) -> (B, C, h, w), in half the time of average pooling on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=0.5, mode="bilinear")


def init_dcgan_weights(network: nn.Module) -> None:
    """Initialise weights from N(0, 0.02^2), gains of batch norms from N(1, 0.02^2), and biases to 0 (Radford et al.
    2016, https://arxiv.org/abs/1511.06434, section 4)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d):
            nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
