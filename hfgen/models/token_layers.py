"""What transformers over the tokens of an image share: attention among them, and the tokens of a text beside them."""

import torch
from torch import Tensor, nn

from .layers import attention


class SelfAttention(nn.Module):
    """Multi-head self-attention among the tokens of an image, (B, N, D) -> (B, N, D)."""

    def __init__(self, channels: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attend to the tokens that `visible` (B, N) marks with True; None: to all."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, D) -> (B, N, 3, heads, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, heads, N, d) each
        mixed = attention(query, key, value, visible=visible).transpose(1, 2).flatten(2)  # (B, N, D)
        return self.dropout(self.out(mixed))


class UViTBlock(nn.Module):
    """Attention and MLP, each after a layer norm, with a long skip s from the first half of the network or without:

    x <- W [x, s] + w
    x <- x + attention(norm(x))
    x <- x + MLP(norm(x))
    """

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float, dropout: float, skip: bool):
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.skip = nn.Linear(2 * channels, channels) if skip else None
        self.attention_norm = nn.LayerNorm(channels, eps=1e-6)
        self.attention = SelfAttention(channels, num_heads, dropout)
        self.mlp_norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, visible: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if self.skip is not None:
            x = self.skip(torch.cat([x, skip], dim=-1))  # (B, M, 2 D) -> (B, M, D)
        x = x + self.attention(self.attention_norm(x), visible)
        return x + self.mlp(self.mlp_norm(x))


def through_long_skips(network: nn.Module, x: Tensor, visible: Tensor | None = None) -> Tensor:
    """Apply the blocks of a U-ViT to tokens (B, M, D).

    Args:
        network: with `blocks`, each a `UViTBlock`, of which the last `num_skips` get the outputs of the first ones.
        x: the tokens.
        visible (B, M): as that of `SelfAttention`.
    """
    skips: list[Tensor] = []
    for number, block in enumerate(network.blocks):
        skip = skips.pop() if block.skip is not None else None
        if torch.is_grad_enabled() and network.gradient_checkpointing:
            x = network._gradient_checkpointing_func(block, x, visible, skip)
        else:
            x = block(x, visible, skip)
        if number < network.num_skips:
            skips.append(x)
    return x


class TextEmbedding(nn.Module):
    """The hidden states of a text encoder as tokens, (B, L, text_channels) -> (B, L, D).

    They are normalised first: encoders differ in the size of their states by factors of hundreds.
    """

    def __init__(self, text_channels: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(text_channels, eps=1e-6)
        self.linear = nn.Linear(text_channels, channels)

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(self.norm(states))


def check_width(hidden_size: int, num_attention_heads: int) -> None:
    """Raise ValueError for tokens whose width the heads do not divide, or that have no place for sines and cosines of
    a time."""
    if hidden_size % 2 or hidden_size % num_attention_heads:
        raise ValueError(
            f"hidden_size={hidden_size} must be a multiple of 2 (time) and of "
            f"num_attention_heads={num_attention_heads}, such as {2 * num_attention_heads} and its multiples."
        )


def check_text(states: Tensor | None, text_channels: int | None) -> None:
    """Refuse a text that a network does not take, and a call without the text that it needs.

    Args:
        states (B, L, D): the hidden states, or None.
        text_channels: D that the network takes; None: it takes no text.

    Raises:
        ValueError: one is None and the other is not, or D is another.
    """
    if states is None and text_channels is not None:
        raise ValueError(
            f"encoder_hidden_states are needed: the network has text_channels={text_channels}. Pass those of the "
            "empty text where there is none."
        )
    if states is not None and text_channels is None:
        raise ValueError(
            "encoder_hidden_states were passed to a network that takes no text. Leave them out, or set text_channels."
        )
    if states is not None and (states.ndim != 3 or states.shape[-1] != text_channels):
        raise ValueError(
            f"encoder_hidden_states have shape {tuple(states.shape)}; this network needs (B, L, {text_channels})."
        )


def visible_tokens(mask: Tensor | None, before: int, states: Tensor | None, after: int) -> Tensor | None:
    """Return which tokens are attended to, bool (B, before + L + after), where a text is between others; None: all.

    Args:
        mask (B, L): 1 for tokens of the text, 0 for padding; None: there is no padding.
        before, after: number of tokens before the text and after it, which are all attended to.
        states (B, L, D): of the text; None: there is none.
    """
    if states is None or mask is None:
        return None
    ends = [torch.ones(len(mask), count, dtype=torch.bool, device=mask.device) for count in (before, after)]
    return torch.cat([ends[0], mask.bool(), ends[1]], dim=1)


def initialise_linear(network: nn.Module) -> None:
    """Initialise matrices by Xavier, and biases to 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def initialise_matrices(network: nn.Module) -> None:
    """Initialise matrices of a transformer by Xavier, biases to 0, and its embeddings of time and class by
    N(0, 0.02^2)."""
    initialise_linear(network)
    for module in (network.time_embedding.linear_1, network.time_embedding.linear_2, network.class_embedding):
        if module is not None:
            nn.init.normal_(module.weight, std=0.02)
