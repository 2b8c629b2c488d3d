"""Layers for diffusers' U-Nets: attention that is fast in bfloat16 on a CPU, and derivatives in forward mode."""

from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from .layers import ImageGroupNorm, attention


class ImageAttention:
    """An attention processor for the blocks of a U-Net, (B, C, H, W) -> (B, C, H, W), that uses `layers.attention`.

    The last three arguments belong to the protocol of diffusers' processors. Self-attention does not use them.
    """

    def __call__(
        self,
        block: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        x = hidden_states.flatten(2)  # (B, C, H W)
        if block.group_norm is not None:
            x = block.group_norm(x)
        x = x.transpose(1, 2).contiguous()  # (B, H W, C); of others torch's way to multiply depends on requires_grad
        query, key, value = (
            layer(x).unflatten(-1, (block.heads, -1)).transpose(1, 2)  # (B, heads, H W, d)
            for layer in (block.to_q, block.to_k, block.to_v)
        )
        x = attention(query, key, value).transpose(1, 2).flatten(2)  # (B, H W, C)
        x = block.to_out[1](block.to_out[0](x)).transpose(1, 2)  # (B, C, H W)
        return (x.reshape(hidden_states.shape) + hidden_states) / block.rescale_output_factor


class TokenAttention:
    """The same for the transformers of a U-Net with texts: among positions (B, N, C), or from them to a text.

    `attention_mask` (B, 1, L) is what diffusers' U-Nets make of the mask of a text: 0 for tokens, below for padding.
    """

    def __call__(
        self,
        block: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (block.heads, -1)).transpose(1, 2)  # (B, heads, N or L, d)
            for layer, x in ((block.to_q, hidden_states), (block.to_k, text), (block.to_v, text))
        )
        visible = None if attention_mask is None else attention_mask[:, 0] == 0  # (B, L)
        x = attention(query, key, value, visible=visible).transpose(1, 2).flatten(2)  # (B, N, C)
        return block.to_out[1](block.to_out[0](x)) / block.rescale_output_factor


def use_image_layers(network: nn.Module) -> nn.Module:
    """Set `ImageAttention`, `TokenAttention` and `ImageGroupNorm` in a diffusers network, and return the network.

    Attention blocks with another processor than PyTorch's fused attention are left unchanged. The output in float32 is
    the same. With them `torch.func.jvp` computes derivatives of the network.
    """
    for module in network.modules():
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            if module.residual_connection and not module.is_cross_attention and module.spatial_norm is None:
                module.set_processor(ImageAttention())
            if _is_of_tokens(module):
                module.set_processor(TokenAttention())
        if type(module) is nn.GroupNorm:
            module.__class__ = ImageGroupNorm  # the same module: parameters, names and hooks stay
    return network


def _is_of_tokens(block: Any) -> bool:
    """Return whether a block of attention is that of a plain transformer: no norms of its own, and no sum with its
    input."""
    norms = (
        block.spatial_norm,
        block.group_norm,
        block.norm_cross,
        block.norm_q,
        block.norm_k,
        block.added_kv_proj_dim,
    )
    return not block.residual_connection and all(part is None for part in norms)
