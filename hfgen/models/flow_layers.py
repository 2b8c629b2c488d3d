"""Invertible layers of normalizing flows of images, and the networks inside them.

A layer is called as layer(x, labels) for x (B, C, H, W) and returns y, of the same shape, and log|det dy/dx| (B,) of
each image. `layer.inverse(y, labels)` returns x. Both compute in float32 at least, also under autocast and with weights
of lower precision; only the networks of couplings use these.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv_layers import ResidualBlock
from .elementwise import ElementwiseMap
from .layers import real
from .token_transformer import TokenTransformer

LARGEST_INPUT = 1000.0
"""Networks of couplings see larger numbers as this one, so that latents far from those of the data do not overflow."""

Layer = tuple[Tensor, Tensor]
"""What a layer returns."""


# --- linear layers ----------------------------------------------------------------------------------------------------


class ActNorm(nn.Module):
    """y = exp(s) (x + b) with one s and b for each channel (Kingma & Dhariwal 2018, https://arxiv.org/abs/1807.03039).

    `initialise` sets s and b by data, once: a buffer, which is saved, says that it was done.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.bias, self.log_scale = (nn.Parameter(torch.zeros(channels, 1, 1)) for _ in range(2))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Make each channel of y have mean 0 and variance 1 over the images x (B, C, H, W), if it is the first time."""
        if self.initialised:
            return
        variance, mean = torch.var_mean(real(x), (0, 2, 3), keepdim=True, correction=0)  # (1, C, 1, 1) each
        self.bias.copy_(-mean[0])
        self.log_scale.copy_(-0.5 * (variance[0] + 1e-6).log())
        self.initialised.fill_(True)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Layer:
        log_det = real(self.log_scale).sum() * (x.shape[2] * x.shape[3])
        return (x + real(self.bias)) * real(self.log_scale).exp(), log_det.expand(len(x))

    def inverse(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        return y * (-real(self.log_scale)).exp() - real(self.bias)


class DiagonalScale(nn.Module):
    """y = exp(s) x with one s for each number of an image (NICE, Dinh et al. 2015, https://arxiv.org/abs/1410.8516)."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Layer:
        log_scale = real(self.log_scale)
        return x * log_scale.exp(), log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        return y * (-real(self.log_scale)).exp()


class ChannelPermutation(nn.Module):
    """A fixed random order of the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Layer:
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        return y[:, self.order.argsort()]


class InvertibleConvolution(nn.Module):
    """y = W x at each position, W = P L (U + diag(sign exp(s))), with P a fixed permutation, L unit lower and U
    strictly upper triangular: log|det| = H W sum s (Kingma & Dhariwal 2018, https://arxiv.org/abs/1807.03039,
    section 3.2).

    W begins as a random rotation.
    """

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.argmax(1))  # row i of P L is row permutation[i] of L
        self.register_buffer("sign", diagonal.sign())
        self.lower, self.upper = (nn.Parameter(part.contiguous().clone()) for part in (lower, upper))
        self.log_scale = nn.Parameter(diagonal.abs().log())

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Return L and U with its diagonal, (C, C) each."""
        unit = torch.eye(len(self.sign), device=self.sign.device, dtype=real(self.lower).dtype)
        upper = real(self.upper).triu(1) + (real(self.sign) * real(self.log_scale).exp()).diag()
        return real(self.lower).tril(-1) + unit, upper

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Layer:
        with torch.autocast(x.device.type, enabled=False):
            lower, upper = self._factors()
            weight = (lower @ upper)[self.permutation].to(x)
            y = (weight @ x.flatten(2)).view_as(x)
        log_det = real(self.log_scale).sum() * (x.shape[2] * x.shape[3])
        return y, log_det.expand(len(x))

    def inverse(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            lower, upper = (factor.to(y) for factor in self._factors())
            rows = y.transpose(0, 1).flatten(1)[self.permutation.argsort()]  # (C, B H W)
            rows = torch.linalg.solve_triangular(lower, rows, upper=False, unitriangular=True)
            rows = torch.linalg.solve_triangular(upper, rows, upper=True)
            return rows.view(y.shape[1], len(y), *y.shape[2:]).transpose(0, 1)


# --- partitions -------------------------------------------------------------------------------------------------------


class ChannelHalves:
    """A partition of images (C, H, W) into their first and their last channels.

    Args:
        shape: (C, H, W) with at least two channels.
        flip: whether the first channels are changed and the last ones kept, rather than the other way.
    """

    def __init__(self, shape: tuple[int, int, int], flip: bool):
        channels, *sides = shape
        if channels < 2:
            raise ValueError(f"{channels} channel can't be divided: use squeeze=2, or checkerboard masks.")
        self.flip, self.first = flip, channels - channels // 2
        sizes = (self.first, channels // 2)
        self.kept, self.changed = ((size, *sides) for size in (reversed(sizes) if flip else sizes))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part that is kept, and the part that is changed."""
        first, last = x[:, : self.first], x[:, self.first :]
        return (last, first) if self.flip else (first, last)

    def whole(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Return the images of both parts."""
        return torch.cat([changed, kept] if self.flip else [kept, changed], 1)


class Checkerboard:
    """A partition of images (C, H, W) into the white and the black squares of a board, (C, H, W / 2) each.

    Args:
        shape: (C, H, W) with an even W.
        flip: whether the white squares are changed.
    """

    def __init__(self, shape: tuple[int, int, int], flip: bool):
        channels, height, width = shape
        if width % 2:
            raise ValueError(f"Images {width} pixels wide have no checkerboard: the width must be even.")
        self.flip = flip
        self.kept = self.changed = (channels, height, width // 2)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part that is kept, and the part that is changed."""
        left, right = x.unflatten(3, (-1, 2)).unbind(-1)  # of each pair of pixels in a row
        odd = self._odd(x)
        return torch.where(odd, right, left), torch.where(odd, left, right)

    def whole(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Return the images of both parts."""
        odd = self._odd(kept)
        pairs = torch.where(odd, changed, kept), torch.where(odd, kept, changed)
        return torch.stack(pairs, -1).flatten(3)

    def _odd(self, x: Tensor) -> Tensor:
        """Return whether the right one of two pixels is kept, (H, 1): in every other row."""
        return (torch.arange(x.shape[2], device=x.device)[:, None] + self.flip) % 2 == 1


# --- networks of couplings --------------------------------------------------------------------------------------------


class ConvConditioner(nn.Module):
    """A residual network of 3 x 3 convolutions, (B, C, H, W) -> (B, out_channels, H, W), with an embedding of each
    position and class. With `depth` 0 it is one convolution.

    Args:
        in_shape: (C, H, W).
        out_channels: channels of the output.
        hidden: channels inside.
        depth: residual blocks.
        num_class_embeds: number of classes; None: none.
    """

    def __init__(self, in_shape: tuple[int, int, int], out_channels: int, hidden: int, depth: int, num_class_embeds):
        super().__init__()
        channels, *sides = in_shape
        self.input = nn.Conv2d(channels, hidden, 3, padding=1) if depth else None
        width = hidden if depth else channels
        self.positions = nn.Parameter(torch.zeros(width, *sides))
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)
        self.blocks = nn.Sequential(*(ResidualBlock(hidden) for _ in range(depth)))
        self.output = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = (x if self.input is None else self.input(x)) + self.positions
        if self.classes is not None:
            x = x + self.classes(labels)[:, :, None, None]
        return self.output(F.silu(self.blocks(x)) if len(self.blocks) else x)


class MLPConditioner(nn.Module):
    """A multilayer perceptron on all numbers of an image, (B, C, H, W) -> (B, out_channels, H, W). Arguments are those
    of `ConvConditioner`; `depth` is the number of hidden layers."""

    def __init__(self, in_shape: tuple[int, int, int], out_channels: int, hidden: int, depth: int, num_class_embeds):
        super().__init__()
        channels, height, width = in_shape
        size, self.out_shape = channels * height * width, (out_channels, height, width)
        self.layers = nn.ModuleList(nn.Linear(hidden if i else size, hidden) for i in range(depth))
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, hidden)
        self.output = nn.Linear(hidden, out_channels * height * width)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = x.flatten(1)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = F.silu(x if i or self.classes is None else x + self.classes(labels))
        return self.output(x).unflatten(1, self.out_shape)


class ViTConditioner(nn.Module):
    """A transformer whose tokens are the positions of an image (Kolesnikov et al. 2024,
    https://arxiv.org/abs/2412.15129). Arguments are those of `ConvConditioner`; `depth` is the number of blocks."""

    def __init__(self, in_shape: tuple[int, int, int], out_channels: int, hidden: int, depth: int, num_class_embeds):
        super().__init__()
        channels, height, width = in_shape
        self.input = nn.Linear(channels, hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(height * width, hidden))
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, hidden)
        self.transformer = TokenTransformer(depth, hidden, max(1, hidden // 32), causal=False)
        self.output = nn.Linear(hidden, out_channels)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        tokens = self.input(x.flatten(2).transpose(1, 2)) + self.positions  # (B, H W, hidden)
        if self.classes is not None:
            tokens = tokens + self.classes(labels)[:, None]
        return self.output(self.transformer(tokens)).transpose(1, 2).unflatten(2, x.shape[2:])


CONDITIONERS: dict[str, Callable[..., nn.Module]] = {
    "conv": ConvConditioner,
    "mlp": MLPConditioner,
    "vit": ViTConditioner,
}
"""Name of a coupling's network -> class."""


class MapParameters(nn.Module):
    """The parameters h of elementwise maps from the outputs of a network, (*, N P) -> (*, N, P) for N maps:

        h = offset + unit * output

    At first the network's output is 0, and the parameters are the offsets. `fit` sets offsets and units by data before
    training: a step of the optimiser then changes the place of a narrow component by little, and that of a wide one by
    much. Both are saved.

    Args:
        elementwise: the maps.
        count: N.
    """

    def __init__(self, elementwise: ElementwiseMap, count: int):
        super().__init__()
        self.size = elementwise.size
        self.register_buffer("offset", elementwise.initial().repeat(count, 1))
        self.register_buffer("unit", torch.ones(count, elementwise.size))

    @torch.no_grad()
    def fit(self, elementwise: ElementwiseMap, x: Tensor, output: nn.Linear | nn.Conv2d) -> None:
        """Fit the maps to numbers x (B, N), if the network with this last layer is new: the layer's weights are 0."""
        if not output.weight.any():
            for buffer, value in zip((self.offset, self.unit), elementwise.fitted(real(x)), strict=True):
                buffer.copy_(value)

    def forward(self, output: Tensor, maps: slice = slice(None)) -> Tensor:
        """Return the parameters of some of the maps, by default of all, from their outputs (*, N P)."""
        return real(self.offset)[maps] + real(self.unit)[maps] * real(output).unflatten(-1, (-1, self.size))


class Coupling(nn.Module):
    """A part of each image is kept; a network computes from it the parameters of the elementwise map of the rest:

        y_1 = x_1,    y_2 = f(x_2; h(x_1)),    log|det| = sum log f'

    (Dinh et al. 2015, https://arxiv.org/abs/1410.8516). At first the parameters do not depend on x_1, and are
    `ElementwiseMap.initial`.

    Args:
        partition: of the images.
        elementwise: f.
        conditioner: h: kept (B, C_1, H, W), labels -> (B, C_2 P, H, W). Its last layer is called `output`.
    """

    def __init__(self, partition: ChannelHalves | Checkerboard, elementwise: ElementwiseMap, conditioner: nn.Module):
        super().__init__()
        self.partition, self.elementwise, self.conditioner = partition, elementwise, conditioner
        self.maps = MapParameters(elementwise, partition.changed[0])
        clear(conditioner.output)

    def initialise(self, x: Tensor) -> None:
        """Fit the maps of a new layer to images x (B, C, H, W), see `MapParameters`."""
        changed = self.partition.parts(x)[1].movedim(1, -1).flatten(0, 2)  # (B H W, C_2)
        self.maps.fit(self.elementwise, changed, self.conditioner.output)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Layer:
        kept, changed = self.partition.parts(x)
        y, log_slopes = self.elementwise.forward(changed, self._params(kept, labels))
        return self.partition.whole(kept, y), log_slopes.flatten(1).sum(1)

    def inverse(self, y: Tensor, labels: Tensor | None = None) -> Tensor:
        kept, changed = self.partition.parts(y)
        return self.partition.whole(kept, self.elementwise.inverse(changed, self._params(kept, labels)))

    def _params(self, kept: Tensor, labels: Tensor | None) -> Tensor:
        """Return the parameters of the maps, (B, C_2, H, W, P)."""
        kept = kept.clamp(-LARGEST_INPUT, LARGEST_INPUT)
        output = self.conditioner(kept.to(self.conditioner.output.weight.dtype), labels)
        return self.maps(output.movedim(1, -1)).movedim(-2, 1).to(kept)


def clear(output: nn.Linear | nn.Conv2d) -> None:
    """Let the last layer of a network compute 0, whatever goes in."""
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)


def initialise_layers(layers: Sequence[nn.Module], call: Callable[[], object]) -> None:
    """Let each layer initialise itself by what comes in, `layer.initialise(x)`, during a call of the network."""
    hooks = [layer.register_forward_pre_hook(lambda layer, args: layer.initialise(args[0])) for layer in layers]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
