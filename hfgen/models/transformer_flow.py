"""The transformer flow: causal transformers over patches, in alternating directions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..utils.arguments import checked
from .coupling_flow import NormalizingFlowOutput
from .elementwise import ElementwiseMap, build_elementwise
from .flow_layers import MapParameters, clear, initialise_layers
from .layers import check_class_labels, guided_outputs, pair, real
from .patches import PatchGrid
from .token_transformer import KeyValueCache, TokenHead, TokenTransformer

TOLERANCE = 1e-5
"""Largest change of a number at which the iterations of an inverse end."""


class Guidance(NamedTuple):
    """Guidance of an inverse: the parameters are h(null) + scale (h(class) - h(null)).

    Args:
        null: labels (B,) that mean 'no class'.
        scale: 1 is no guidance.
    """

    null: Tensor
    scale: float


class CausalFlowBlock(nn.Module):
    """An elementwise map of each token, whose parameters a causal transformer computes from the tokens before it:

        y_n = f(x_n; h_n(x_0, ..., x_{n-1})),    log|det| = sum log f'

    With a `TokenHead` the parameters of a number depend on earlier numbers of its token, too.

    Args:
        length: number N of tokens.
        size: numbers D in a token.
        elementwise: f.
        transformer: over tokens of its width.
        width: of the transformer.
        head_size: width of the head; 0: none.
        num_class_embeds: number of classes; None: none.

    Attributes:
        reversed_positions: whether its tokens are the patches of an image from the last to the first.
    """

    reversed_positions = False

    def __init__(
        self,
        length: int,
        size: int,
        elementwise: ElementwiseMap,
        transformer: TokenTransformer,
        width: int,
        head_size: int,
        num_class_embeds: int | None,
    ):
        super().__init__()
        self.elementwise, self.transformer = elementwise, transformer
        self.input, self.output = nn.Linear(size, width), nn.Linear(width, size * elementwise.size)
        self.head = TokenHead(size, width, head_size, elementwise.size) if head_size else None
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.start = nn.Parameter(torch.zeros(width))
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)
        self.maps = MapParameters(elementwise, size)
        clear(self.output)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return y (B, N, D) and log|det dy/dx| (B,) for tokens x (B, N, D) and classes (B,)."""
        y, log_slopes = self.elementwise.forward(x, self._params(x, self._contexts(x[:, :-1], labels)))
        return y, log_slopes.flatten(1).sum(1)

    def initialise(self, x: Tensor) -> None:
        """Fit the maps of a new block to tokens x (B, N, D), whatever their positions, see `MapParameters`."""
        self.maps.fit(self.elementwise, x.flatten(0, 1), self.output)

    def inverse(
        self, y: Tensor, labels: Tensor | None, guidance: Guidance | None, ends: Sequence[int], most: int
    ) -> Tensor:
        """Return x (B, N, D) for y (B, N, D), segment by segment, with the keys and values of earlier tokens kept.

        Within a segment all tokens are computed together from those of the last iteration (Jacobi), until they change
        by at most `TOLERANCE`. After as many iterations as the segment has tokens they are exact, whatever they began
        with: token n is right after n + 1 iterations.

        Args:
            y: the latents.
            labels: classes (B,).
            guidance: by these classes, if any.
            ends: position after the last token of each segment.
            most: iterations of a segment, at most.
        """
        labels, copies = (labels, 1) if guidance is None else (torch.cat([labels, guidance.null]), 2)
        cache = self.transformer.cache(copies * len(y), y.shape[1], self.input.weight)
        x, start = y.clone(), 0
        for end in ends:
            for _ in range(min(end - start, most)):
                earlier = x[:, max(0, start - 1) : end - 1].repeat(copies, 1, 1)
                new = self._solved(y[:, start:end], self._contexts(earlier, labels, start, cache), guidance)
                settled = end - start > 1 and bool((new - x[:, start:end]).abs().max() <= TOLERANCE)
                x[:, start:end] = new
                if settled:
                    break
            start = end
        return x

    def _contexts(
        self, earlier: Tensor, labels: Tensor | None, start: int = 0, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Return the transformer's outputs (B, n, width) for n tokens from position `start` on.

        `earlier` holds the token before each of them, (B, n, D), for start 0 without the first, (B, n - 1, D); the
        cache holds the tokens before these.
        """
        tokens = self.input(earlier.to(self.input.weight.dtype))
        if start == 0:
            tokens = torch.cat([self.start.expand(len(tokens), 1, -1).to(tokens.dtype), tokens], 1)
        tokens = tokens + self.positions[start : start + tokens.shape[1]]
        if self.classes is not None:
            tokens = tokens + self.classes(labels)[:, None]
        return self.transformer(tokens, start, cache)

    def _params(self, x: Tensor, contexts: Tensor) -> Tensor:
        """Return the parameters (B, n, D, P) of tokens x (B, n, D)."""
        output = real(self.output(contexts))
        if self.head is not None:
            output = output + real(self.head(x, self.head.context(contexts))).flatten(2)
        return self.maps(output).to(x)

    def _solved(self, y: Tensor, contexts: Tensor, guidance: Guidance | None) -> Tensor:
        """Return the tokens x (B, n, D) of y, number after number if there is a head."""

        def guided_params(params: Tensor) -> Tensor:
            return (params if guidance is None else guided_outputs(params, guidance.scale)).to(y)

        if self.head is None:
            return self.elementwise.inverse(y, guided_params(self._params(y, contexts)))
        outer = real(self.output(contexts))
        x, copies, context = torch.zeros_like(y), len(contexts) // len(y), self.head.context(contexts)
        for j in range(y.shape[2]):
            numbers = slice(j * self.elementwise.size, (j + 1) * self.elementwise.size)
            output = outer[..., numbers] + real(self.head(x.repeat(copies, 1, 1), context, j)).flatten(2)
            params = guided_params(self.maps(output, slice(j, j + 1)))
            x[..., j : j + 1] = self.elementwise.inverse(y[..., j : j + 1], params)
        return x


class TransformerFlowModel(ModelMixin, ConfigMixin):
    """An invertible network z = f(x) of causal transformers over the patches of an image (TarFlow, Zhai et al. 2024,
    https://arxiv.org/abs/2412.06329), with log|det dz/dx|.

    The patches are tokens, row by row in the first block, and in the opposite order in each next one, see
    `CausalFlowBlock`. The elementwise maps are bounded, unlike the paper's. One block with
    elementwise="logistic_mixture" is an autoregressive model of patches. In one block without a head, the pixels of a
    patch are independent given the patches before.

    Args:
        sample_size: H = W, or (H, W); multiples of `patch_size`.
        in_channels: channels of images.
        patch_size: side of a patch in pixels.
        num_blocks: number of blocks.
        layers_per_block: layers of each transformer.
        hidden_size: width of its tokens.
        num_attention_heads: heads of its attention.
        elementwise: map of the numbers of a token: `affine`, `logistic_mixture`, `spline` or `additive`.
        components: logistic distributions of a mixture, or bins of a spline; at least 2.
        head_size: width of a `TokenHead` in each block, which lets the numbers of a token depend on each other; 0:
            none, as in the paper.
        num_class_embeds: number of classes, including the one that means 'no class', the last one; None: unconditional.

    Raises:
        ValueError: patches do not tile the image, heads do not divide the width, or an unknown map.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("CausalFlowBlock",)

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        patch_size: int = 2,
        num_blocks: int = 4,
        layers_per_block: int = 4,
        hidden_size: int = 128,
        num_attention_heads: int = 4,
        elementwise: str = "affine",
        components: int = 8,
        head_size: int = 0,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if min(num_blocks, layers_per_block) < 1:
            raise ValueError(f"{num_blocks=} and {layers_per_block=} must be at least 1.")
        self.gradient_checkpointing = False
        self.patches = PatchGrid(sample_size, in_channels, patch_size)
        self.blocks = nn.ModuleList(
            CausalFlowBlock(
                *(self.patches.length, self.patches.size, build_elementwise(elementwise, components)),
                TokenTransformer(layers_per_block, hidden_size, num_attention_heads),
                *(hidden_size, head_size, num_class_embeds),
            )
            for _ in range(num_blocks)
        )
        for index, block in enumerate(self.blocks):
            block.reversed_positions = index % 2 == 1

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
        tokens = self.patches.tokens(real(sample))
        log_det = tokens.new_zeros(len(tokens))
        for index, block in enumerate(self.blocks):
            tokens = tokens.flip(1) if index else tokens  # the opposite order of the block before
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens, change = self._gradient_checkpointing_func(block, tokens, class_labels)
            else:
                tokens, change = block(tokens, class_labels)
            log_det = log_det + change
        z = self.patches.image(tokens if len(self.blocks) % 2 else tokens.flip(1))
        return NormalizingFlowOutput(latents=z, log_det=log_det) if return_dict else (z, log_det)

    @torch.no_grad()
    def initialise(self, sample: Tensor, class_labels: Tensor | None = None) -> None:
        """Fit the maps of new blocks to images (B, C, H, W), block after block, see `CausalFlowBlock.initialise`.

        To have the same network in all processes, give each of them the same images, before the network is wrapped.

        Args:
            sample, class_labels: as those of a call.
        """
        initialise_layers(list(self.blocks), lambda: self(sample, class_labels))

    def inverse(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        num_segments: int | None = None,
        num_iterations: int | None = None,
    ) -> Tensor:
        """Return the images (B, C, H, W) of latents (B, C, H, W).

        By default tokens are computed one after the other, which is exact. With segments, the tokens of each are
        computed together in iterations (Gauss-Seidel-Jacobi, Liu et al. 2025, https://arxiv.org/abs/2505.12849), see
        `CausalFlowBlock.inverse`.

        Args:
            latents, class_labels: z, and classes (B,).
            guidance_scale: 1 is no guidance; above 1 sharpens towards the class. It needs the class that means 'no
                class', the network's last one.
            num_segments: into which the tokens are divided; None: one for each token.
            num_iterations: of a segment, at most; None: as many as make it exact.

        Raises:
            ValueError: classes that do not fit, guidance without classes, or numbers out of range.
        """
        check_class_labels(class_labels, self.config.num_class_embeds, guidance_scale)
        y = self.patches.tokens(real(latents))
        length = y.shape[1]
        segments, most = (length if value is None else value for value in (num_segments, num_iterations))
        if not 1 <= segments <= length:
            raise ValueError(f"{num_segments=} must be from 1 to {length}, the number of tokens.")
        if most < 1:
            raise ValueError(f"{num_iterations=} must be at least 1.")
        guidance = None
        if guidance_scale != 1.0:
            guidance = Guidance(torch.full_like(class_labels, self.config.num_class_embeds - 1), guidance_scale)
        ends = [length * (index + 1) // segments for index in range(segments)]
        y = y if len(self.blocks) % 2 else y.flip(1)
        for index in reversed(range(len(self.blocks))):
            y = self.blocks[index].inverse(y, class_labels, guidance, ends, most)
            y = y.flip(1) if index else y
        return self.patches.image(y)
