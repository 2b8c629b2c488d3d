"""Layers for diffusers' U-Nets: attention that is fast in bfloat16 on a CPU, and derivatives in forward mode."""

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
        x = x.transpose(1, 2)  # (B, H W, C)
        query, key, value = (
            layer(x).unflatten(-1, (block.heads, -1)).transpose(1, 2)  # (B, heads, H W, d)
            for layer in (block.to_q, block.to_k, block.to_v)
        )
        x = attention(query, key, value).transpose(1, 2).flatten(2)  # (B, H W, C)
        x = block.to_out[1](block.to_out[0](x)).transpose(1, 2)  # (B, C, H W)
        return (x.reshape(hidden_states.shape) + hidden_states) / block.rescale_output_factor


def use_image_layers(network: nn.Module) -> nn.Module:
    """Set `ImageAttention` and `ImageGroupNorm` in a diffusers network, and return the network.

    Attention blocks with another processor than PyTorch's fused attention are left unchanged. The output in float32 is
    the same. With them `torch.func.jvp` computes derivatives of the network.
    """
    for module in network.modules():
        plain = isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0
        if plain and not module.is_cross_attention and module.spatial_norm is None:
            module.set_processor(ImageAttention())
        if type(module) is nn.GroupNorm:
            module.__class__ = ImageGroupNorm  # the same module: parameters, names and hooks stay
    return network
