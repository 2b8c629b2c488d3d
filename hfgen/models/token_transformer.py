"""The transformer over tokens that flows and autoregressive models share: causal or not, with a cache of keys and
values for drawing one token after the other."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import attention

ROWS = 16
"""Matrix products of at least so many rows compute a row with the same bits however many rows there are, on the CPUs
that this was tried on. With fewer they take other instructions: on some below 4 rows, on others below 16, by width."""

QUERIES = 4
"""The same of the queries of one head in attention, whose fused kernels have blocks of their own."""


class KeyValueCache:
    """Keys and values of all layers for up to N tokens of each sample.

    Tokens may be written again: what a later call writes to a position replaces what was there. Attention reads all N
    positions, and a mask hides those to come: the shape of each step is the same, and so are the bits of a token,
    however many tokens are computed together.

    Args:
        num_layers: of the transformer.
        shape: (B, heads, N, d).
        like: a tensor of the dtype and device of the tokens.
    """

    def __init__(self, num_layers: int, shape: tuple[int, int, int, int], like: Tensor):
        self.keys, self.values = (like.new_zeros(num_layers, *shape) for _ in range(2))

    def write(self, layer: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, heads, n, d) of the tokens from `start` on; return those of all N positions."""
        end = start + key.shape[-2]
        self.keys[layer, :, :, start:end], self.values[layer, :, :, start:end] = key, value
        return self.keys[layer], self.values[layer]


class TokenBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), (B, N, D) -> (B, N, D)."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float, causal: bool):
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.attention_norm, self.mlp_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU("tanh"), nn.Linear(hidden, channels))

    def forward(self, x: Tensor, layer: int = 0, start: int = 0, cache: KeyValueCache | None = None) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, heads, N, d) each
        if cache is None:
            values = attention(query, key, value, self.causal)
        else:
            more = query[:, :, -1:].expand(-1, -1, max(0, QUERIES - query.shape[2]), -1)
            rows = torch.cat([query, more], 2)
            values = attention(rows, *cache.write(layer, start, key, value), self.causal, start)[:, :, : query.shape[2]]
        x = x + self.out(values.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class TokenTransformer(nn.Module):
    """A transformer over tokens (B, N, D), with a normalised output (Radford et al. 2019,
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf).

    Without gradients, a causal one computes a token with the same bits with and without a cache, if there are at least
    `ROWS` tokens in each call, those of all samples together.

    Args:
        num_layers: number of blocks.
        channels: D.
        num_heads: heads of each attention.
        mlp_ratio: width of the MLPs, divided by D.
        causal: whether a token sees only itself and earlier ones.

    Raises:
        ValueError: the heads do not divide D.
    """

    pads_positions = True

    def __init__(self, num_layers: int, channels: int, num_heads: int, mlp_ratio: float = 4.0, causal: bool = True):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"hidden_size={channels} must be a multiple of num_attention_heads={num_heads}.")
        self.head_shape, self.causal = (num_heads, channels // num_heads), causal
        self.blocks = nn.ModuleList(TokenBlock(channels, num_heads, mlp_ratio, causal) for _ in range(num_layers))
        self.norm = nn.LayerNorm(channels)
        for block in self.blocks:
            for layer in (block.out, block.mlp[2]):  # the sum of all branches has the variance of one
                nn.init.normal_(layer.weight, std=(2 * num_layers * layer.in_features) ** -0.5)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        start: int = 0,
        cache: KeyValueCache | None = None,
        recompute: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Return (B, n, D) for tokens (B, n, D).

        Args:
            x: the tokens; with a cache those from position `start` on.
            start: their first position.
            cache: holds the earlier tokens, and gets these.
            recompute: called as recompute(block, x) where activations are computed again in the backward pass, without
                a cache; None: they are kept.
        """
        length = x.shape[1]
        if self.causal and cache is None and not torch.is_grad_enabled():
            x = F.pad(x, (0, 0, 0, -length % ROWS))
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, start, cache) if recompute is None else recompute(block, x)
        return self.norm(x)[:, :length]

    def cache(self, batch_size: int, length: int, like: Tensor) -> KeyValueCache:
        """Return an empty cache for this many samples of `length` tokens, of the dtype and device of `like`."""
        heads, size = self.head_shape
        return KeyValueCache(len(self.blocks), (batch_size, heads, length + -length % ROWS, size), like)


class TokenHead(nn.Module):
    """A masked perceptron that adds to the parameters of a token's D numbers what they depend on in the token itself:
    those of number j see the numbers before j alone (MADE, Germain et al. 2015, https://arxiv.org/abs/1502.03509). At
    first it adds 0.

    Args:
        size: D, at least 2.
        width: of the transformer's output, which it sees too.
        hidden: its own width, at least D - 1.
        params: number of parameters P of each number.
    """

    def __init__(self, size: int, width: int, hidden: int, params: int):
        super().__init__()
        if size < 2 or hidden < size - 1:
            raise ValueError(
                f"head_size={hidden} must be at least {size - 1}, for tokens of {size} numbers, at least 2."
            )
        self.size, self.params = size, params
        self.input, self.context = nn.Linear(size, hidden), nn.Linear(width, hidden, bias=False)
        self.output = nn.Linear(hidden, size * params, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, x: Tensor, context: Tensor, number: int | None = None) -> Tensor:
        """Return what is added to the parameters, (B, n, D, P), for tokens x (B, n, D).

        Args:
            x: the tokens.
            context: the transformer's outputs (B, n, width) after the layer `context`, (B, n, hidden).
            number: of each token, alone: (B, n, 1, P).
        """
        device, dtype = x.device, self.input.weight.dtype
        seen = torch.arange(len(self.input.weight), device=device) % (self.size - 1)  # unit k sees numbers up to this
        numbers = torch.arange(self.size, device=device)
        first = self.input.weight * (numbers <= seen[:, None])
        hidden = F.silu(F.linear(x.to(dtype), first, self.input.bias) + context)
        rows = slice(None) if number is None else slice(number, number + 1)
        last = self.output.weight.unflatten(0, (self.size, -1))[rows] * (seen < numbers[rows, None])[:, None]
        return F.linear(hidden, last.flatten(0, 1)).unflatten(2, (-1, self.params))
