"""A causal transformer over the pixels, the patches or the codes of an image: exact probabilities, drawn token by
token."""

from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..utils.arguments import checked
from .conditionals import AutoregressiveOutput, Categorical, guided_labels, pad_rows, require_finite_params, symbols_of
from .layers import check_class_labels, guided_outputs, pair, real
from .patches import PatchGrid
from .token_transformer import ROWS, KeyValueCache, TokenHead, TokenTransformer

MOST_SYMBOLS = 1024
"""A patch is one symbol if its pixels have at most so many combinations of values; otherwise its numbers are predicted
one after the other."""


class Drawn(NamedTuple):
    """What `AutoregressiveTransformerModel.draw` returns.

    Args:
        symbols (B, C, H, W): numbers of the levels or codes, int64.
        params (B, N, S, P): the guided parameters that each number was drawn with; None unless they were asked for.
    """

    symbols: Tensor
    params: Tensor | None


class AutoregressiveTransformerModel(ModelMixin, ConfigMixin):
    """A decoder-only transformer over tokens of an image, row by row (Image GPT, Chen et al. 2020,
    https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf; of codes: LlamaGen, Sun et al. 2024,
    https://arxiv.org/abs/2406.06525):

        log P(x) = sum_n log P(x_n | x_0, ..., x_(n-1))

    A token is a patch of D = C p^2 pixels. If the patch has at most `MOST_SYMBOLS` values, the token is one symbol.
    Otherwise a `TokenHead` predicts its numbers one after the other. The input at a position is the sum of the
    embeddings of the token before and of its neighbours in the row above: to the left, above, and to the right. The
    class is the embedding of the first position.

    Args:
        sample_size: H = W, or (H, W); multiples of `patch_size`.
        in_channels: channels C.
        levels: number of values of a pixel or code.
        patch_size: side p of a patch in pixels.
        num_layers: blocks of the transformer.
        hidden_size: width of a token.
        num_attention_heads: heads of its attention.
        head_size: width of the `TokenHead`, if a token has several numbers.
        num_class_embeds: number of classes, including the one that means 'no class', the last one; None: unconditional.

    Raises:
        ValueError: patches do not tile the image, heads do not divide the width, or a number is out of range.
    """

    _supports_gradient_checkpointing = True

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        levels: int = 2,
        patch_size: int = 2,
        num_layers: int = 4,
        hidden_size: int = 128,
        num_attention_heads: int = 4,
        head_size: int = 256,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if levels < 2 or num_layers < 1:
            raise ValueError(f"{levels=} must be at least 2, and {num_layers=} at least 1.")
        self.patches = PatchGrid(sample_size, in_channels, patch_size)
        pixels = self.patches.size
        joint = levels**pixels <= MOST_SYMBOLS
        self.numbers, values = (1, levels**pixels) if joint else (pixels, levels)  # S and V
        self.conditional = Categorical(values, values)
        self.embedding = nn.EmbeddingBag(len(_NEIGHBOURS) * self.numbers * values + 1, hidden_size, mode="sum")
        self.positions = nn.Parameter(0.02 * torch.randn(self.patches.length, hidden_size))
        self.prefix = nn.Embedding(num_class_embeds or 1, hidden_size)
        self.transformer = TokenTransformer(num_layers, hidden_size, num_attention_heads)
        self.output = nn.Linear(hidden_size, self.numbers * values)
        self.head = None if joint else TokenHead(pixels, hidden_size, max(head_size, pixels - 1), values)
        self.gradient_checkpointing = False
        for table in (self.embedding, self.prefix):
            nn.init.normal_(table.weight, std=0.02)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image, or of a grid of codes."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    @property
    def noise_shape(self) -> tuple[int, int]:
        """The shape (N, S) of the uniform numbers that `draw` makes one image of."""
        return (self.patches.length, self.numbers)

    def forward(
        self, sample: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> AutoregressiveOutput | tuple[Tensor, Tensor]:
        """Return log-probabilities (B,) and log-odds (B, N, S, V).

        Args:
            sample (B, C, H, W): images in [-1, 1], of which each pixel is rounded to the nearest of the levels; or the
                numbers of levels or codes, int64.
            class_labels (B,): classes; None for a network without classes.
            return_dict: whether to return an AutoregressiveOutput instead of a tuple.

        Raises:
            ValueError: classes that the network needs or does not take.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        tokens = self._tokens(symbols_of(sample, self.config.levels))
        params = self._params(tokens, self._contexts(tokens, class_labels))
        log_prob = self.conditional.log_prob(params, tokens).flatten(1).sum(1)
        return AutoregressiveOutput(log_prob, params) if return_dict else (log_prob, params)

    def tokens_above(self, row: int) -> int:
        """Return the number of tokens above a row of pixels, see `PatchGrid.tokens_above`."""
        return self.patches.tokens_above(row)

    @torch.no_grad()
    def draw(
        self,
        uniform: Tensor,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        known: Tensor | None = None,
        num_known: int = 0,
        use_cache: bool = True,
        return_params: bool = False,
    ) -> Drawn:
        """Draw images, one token after the other: each number is the quantile of a uniform one.

        An image is the same, bit for bit, alone and in any batch, with and without the cache.

        Args:
            uniform (B, N, S): numbers in [0, 1).
            class_labels (B,): classes.
            guidance_scale: 1 is no guidance; above 1 sharpens towards the class. It needs the class that means 'no
                class', the network's last one.
            temperature: divides the log-odds; 0: the most likely symbols.
            known (B, C, H, W): images, as those of `forward`, whose first tokens are kept.
            num_known: how many.
            use_cache: whether to keep keys and values of earlier tokens; otherwise all are computed again each time.
            return_params: whether to return the parameters of each number.

        Raises:
            ValueError: classes that do not fit, guidance without classes, or parameters that are not finite.
        """
        check_class_labels(class_labels, self.config.num_class_embeds, guidance_scale)
        count, u = len(uniform), pad_rows(uniform, ROWS)
        labels, copies = guided_labels(class_labels, guidance_scale, self.config.num_class_embeds, ROWS)
        tokens = torch.zeros(u.shape, dtype=torch.long, device=u.device)
        if num_known:
            tokens[:, :num_known] = self._tokens(symbols_of(pad_rows(known, ROWS), self.config.levels))[:, :num_known]
        cache = self.transformer.cache(copies * len(u), u.shape[1], self.output.weight) if use_cache else None
        params, done, finite = [], 0, torch.ones((), dtype=torch.bool, device=u.device)
        for n in range(num_known, u.shape[1]):
            context = self._contexts(tokens.repeat(copies, 1, 1), labels, done, n + 1 if use_cache else None, cache)
            context, done = context[:, n - done : n - done + 1], n + 1 if use_cache else 0
            for j in range(self.numbers):
                odds = self._number_params(tokens[:, n : n + 1].repeat(copies, 1, 1), context, j)  # (B, 1, 1, V)
                odds = odds if copies == 1 else guided_outputs(odds, guidance_scale)
                finite = finite & odds.isfinite().all()
                tokens[:, n, j] = self.conditional.draw(odds[:, 0, 0], u[:, n, j], temperature)
                params += [odds] if return_params else []
        require_finite_params(finite)
        drawn = torch.cat(params, 1).unflatten(1, (-1, self.numbers))[:count, :, :, 0] if params else None
        return Drawn(self._image(tokens[:count]), drawn)

    def _contexts(
        self,
        tokens: Tensor,
        labels: Tensor | None,
        start: int = 0,
        end: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the transformer's outputs (B, n, width) at positions from `start` to before `end`, which depend on the
        tokens (B, N, S) before them; the cache holds the positions before `start`."""
        x = self._neighbours(tokens, start, end) + self.positions[start:end]
        if start == 0:
            first = self.prefix(torch.zeros_like(tokens[:, 0, 0]) if labels is None else labels)
            x = torch.cat([x[:, :1] + first[:, None], x[:, 1:]], 1)
        again = torch.is_grad_enabled() and self.gradient_checkpointing
        return self.transformer(x, start, cache, self._gradient_checkpointing_func if again else None)

    def _neighbours(self, tokens: Tensor, start: int, end: int | None) -> Tensor:
        """Return the sums of the embeddings of the neighbours before positions, (B, n, width)."""
        columns = self.patches.columns
        place = torch.arange(self.patches.length, device=tokens.device)[start:end]
        indices, outside = [], self.embedding.num_embeddings - 1
        for k, (up, right) in enumerate(_NEIGHBOURS):
            found = place - up * columns + right
            inside = (found >= 0) & ((up == 0) | ((place % columns + right >= 0) & (place % columns + right < columns)))
            shifts = torch.arange(self.numbers, device=tokens.device) + k * self.numbers
            symbols = tokens[:, torch.where(inside, found, 0)] + shifts * self.conditional.count  # (B, n, S)
            indices.append(torch.where(inside[:, None], symbols, outside))
        bags = torch.cat(indices, 2)  # (B, n, 4 S)
        return self.embedding(bags.flatten(0, 1)).unflatten(0, bags.shape[:2])

    def _params(self, tokens: Tensor, contexts: Tensor) -> Tensor:
        """Return the log-odds (B, n, S, V) of tokens (B, n, S)."""
        outer = real(self.output(contexts)).unflatten(2, (self.numbers, -1))
        return outer if self.head is None else outer + real(self.head(self._inner(tokens), self.head.context(contexts)))

    def _number_params(self, tokens: Tensor, contexts: Tensor, number: int) -> Tensor:
        """Return the log-odds (B, n, 1, V) of one number of tokens (B, n, S), of which those before it are known."""
        outer = real(self.output(contexts)).unflatten(2, (self.numbers, -1))[:, :, number : number + 1]
        if self.head is None:
            return outer
        return outer + real(self.head(self._inner(tokens), self.head.context(contexts), number))

    def _inner(self, tokens: Tensor) -> Tensor:
        """Return tokens as numbers in [-1, 1], for the head."""
        return 2 * real(tokens.to(self.output.weight.dtype)) / (self.conditional.count - 1) - 1

    def _tokens(self, symbols: Tensor) -> Tensor:
        """Return the tokens (B, N, S) of images of symbols (B, C, H, W)."""
        patches = self.patches.tokens(symbols)  # (B, N, D)
        if patches.shape[2] == self.numbers:
            return patches
        return (patches * self._powers(patches)).sum(2, keepdim=True)

    def _image(self, tokens: Tensor) -> Tensor:
        """Return the images of symbols (B, C, H, W) of tokens (B, N, S)."""
        if self.numbers == 1:
            tokens = tokens // self._powers(tokens) % self.config.levels
        return self.patches.image(tokens)

    def _powers(self, like: Tensor) -> Tensor:
        """Return 1, L, L^2, ...: what the pixels of a patch of L levels count in its symbol."""
        return self.config.levels ** torch.arange(self.patches.size, device=like.device)


_NEIGHBOURS = ((0, -1), (1, -1), (1, 0), (1, 1))
"""Rows up and columns to the right of the tokens whose embeddings are the input at a position. The first is the token
before, which at the start of a row is the last one of the row above."""
