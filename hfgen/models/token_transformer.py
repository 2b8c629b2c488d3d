"""The transformer over tokens that flows and autoregressive models share: causal or not, with a cache of keys and
values for drawing one token after the other."""

from torch import Tensor, nn

from .layers import attention


class KeyValueCache:
    """Keys and values of all layers for up to N tokens of each sample.

    Tokens may be written again: what a later call writes to a position replaces what was there.

    Args:
        num_layers: of the transformer.
        shape: (B, heads, N, d).
        like: a tensor of the dtype and device of the tokens.
    """

    def __init__(self, num_layers: int, shape: tuple[int, int, int, int], like: Tensor):
        self.keys, self.values = (like.new_zeros(num_layers, *shape) for _ in range(2))

    def write(self, layer: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, heads, n, d) of the tokens from `start` on; return those of all tokens so far,
        (B, heads, start + n, d) each."""
        end = start + key.shape[-2]
        self.keys[layer, :, :, start:end], self.values[layer, :, :, start:end] = key, value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


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
        if cache is not None:
            key, value = cache.write(layer, start, key, value)
        x = x + self.out(attention(query, key, value, self.causal).transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class TokenTransformer(nn.Module):
    """A transformer over tokens (B, N, D), with a normalised output (Radford et al. 2019,
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf).

    Args:
        num_layers: number of blocks.
        channels: D.
        num_heads: heads of each attention.
        mlp_ratio: width of the MLPs, divided by D.
        causal: whether a token sees only itself and earlier ones.

    Raises:
        ValueError: the heads do not divide D.
    """

    def __init__(self, num_layers: int, channels: int, num_heads: int, mlp_ratio: float = 4.0, causal: bool = True):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"hidden_size={channels} must be a multiple of num_attention_heads={num_heads}.")
        self.head_shape = (num_heads, channels // num_heads)
        self.blocks = nn.ModuleList(TokenBlock(channels, num_heads, mlp_ratio, causal) for _ in range(num_layers))
        self.norm = nn.LayerNorm(channels)
        for block in self.blocks:
            for layer in (block.out, block.mlp[2]):  # the sum of all branches has the variance of one
                nn.init.normal_(layer.weight, std=(2 * num_layers * layer.in_features) ** -0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, start: int = 0, cache: KeyValueCache | None = None) -> Tensor:
        """Return (B, n, D) for tokens (B, n, D).

        Args:
            x: the tokens; with a cache those from position `start` on.
            start: their first position.
            cache: holds the earlier tokens, and gets these.
        """
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, start, cache)
        return self.norm(x)

    def cache(self, batch_size: int, length: int, like: Tensor) -> KeyValueCache:
        """Return an empty cache for this many samples of `length` tokens, of the dtype and device of `like`."""
        heads, size = self.head_shape
        return KeyValueCache(len(self.blocks), (batch_size, heads, length, size), like)
