"""A U-Net over patches: as many parameters as a U-Net over pixels, in a fraction of its time."""

from typing import Any

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .attention import use_image_layers
from .interval import IntervalEmbedding, check_two_times
from .layers import check_class_labels, expand_timestep, pair
from .token_layers import check_text


class PatchUNet2DModel(ModelMixin, ConfigMixin):
    """diffusers' UNet2DModel on p x p patches of pixels, which are stacked as channels. It is called like UNet2DModel.

    The network is pixel_shuffle(unet(pixel_unshuffle(x))), p = `patch_size`. The U-Net works at 1/p of the resolution,
    where convolutions cost 1/p^2 (patches of pixels as channels: Hoogeboom et al. 2023,
    https://arxiv.org/abs/2301.11093, section 3.4). Images may have any size: sides are padded with zeros to a multiple
    of p 2^(levels - 1), and the prediction is cropped. With p = 1 this is UNet2DModel itself.

    Args:
        sample_size: H = W, or (H, W).
        in_channels, out_channels: channels of images and of predictions.
        patch_size: p.
        block_out_channels: widths of the levels.
        layers_per_block: residual blocks per level.
        attention_levels: whether the blocks of each level have attention. The middle block always has.
        attention_head_dim: width of an attention head.
        norm_num_groups: groups of the group norms.
        resnet_time_scale_shift: `default` or `scale_shift`.
        dropout: probability of dropout.
        num_class_embeds: number of classes, including the one that means 'no class' in classifier-free guidance; None:
            unconditional.
        two_times: whether it is a flow map, which takes `r_timestep`, see `IntervalEmbedding`.
        text_channels: width of the hidden states of a text encoder; the U-Net is then diffusers' UNet2DConditionModel,
            whose blocks with attention are transformers that also attend to the text. None: it takes no text.

    Raises:
        ValueError: `attention_levels` has another length than `block_out_channels`.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm",)

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 2,
        block_out_channels: tuple[int, ...] = (128, 256, 256),
        layers_per_block: int = 2,
        attention_levels: tuple[bool, ...] = (False, True, True),
        attention_head_dim: int = 32,
        norm_num_groups: int = 32,
        resnet_time_scale_shift: str = "default",
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        two_times: bool = False,
        text_channels: int | None = None,
    ):
        super().__init__()
        if len(attention_levels) != len(block_out_channels):
            raise ValueError(
                f"attention_levels={attention_levels} must have one value for each of the {len(block_out_channels)} "
                f"levels in block_out_channels={block_out_channels}."
            )
        self.multiple = patch_size * 2 ** (len(block_out_channels) - 1)
        self.unet = unet_of(
            text_channels,
            attention_levels,
            attention_head_dim,
            in_channels=in_channels * patch_size**2,
            out_channels=out_channels * patch_size**2,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            resnet_time_scale_shift=resnet_time_scale_shift,
            dropout=dropout,
            num_class_embeds=None if two_times else num_class_embeds,
            class_embed_type="identity" if two_times else None,  # takes the sum of all that is added to the time's
        )
        self._embed_outside(num_class_embeds if two_times else None, two_times)
        use_image_layers(self.unet)

    def _embed_outside(self, num_class_embeds: int | None, two_times: bool) -> None:
        """Make the embeddings of classes and of intervals that the U-Net itself does not have."""
        channels = self.unet.time_embedding.linear_2.out_features
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, channels)
        self.interval_embedding = IntervalEmbedding(channels) if two_times else None

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images that the network denoises."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        r_timestep: Tensor | float | int | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict (B, out_channels, H, W) for images (B, in_channels, H, W).

        Args:
            sample (B, in_channels, H, W): the images.
            timestep () or (B,): an index, or 1000 t.
            class_labels (B,): classes; None for a network without classes.
            return_dict: whether to return a UNet2DOutput instead of a tuple.
            r_timestep () or (B,): the end of the interval, of a flow map; None: `timestep`, for the velocity.
            encoder_hidden_states (B, L, text_channels): of the texts; None for a network without texts.
            encoder_attention_mask (B, L): 1 for their tokens, 0 for padding; None: there is no padding.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        check_two_times(r_timestep, self.config.two_times)
        check_text(encoder_hidden_states, self.config.text_channels)
        timestep = expand_timestep(timestep, sample)  # (B,)
        condition = class_labels
        if self.interval_embedding is not None:
            condition = self.interval_embedding(timestep, r_timestep)  # (B, D)
            if self.class_embedding is not None:
                condition = self.class_embedding(class_labels) + condition
        height, width = sample.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        x = F.pad(sample, (0, right, 0, below)) if below or right else sample  # (B, C, H', W')
        x = F.pixel_unshuffle(x, self.config.patch_size)  # (B, C p p, H' / p, W' / p)
        text = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        options = {} if encoder_hidden_states is None else text
        (x,) = self.unet(x, timestep, class_labels=condition, return_dict=False, **options)
        x = F.pixel_shuffle(x, self.config.patch_size)[..., :height, :width]  # (B, C, H, W)
        return UNet2DOutput(sample=x) if return_dict else (x,)


def unet_of(
    text_channels: int | None, attention_levels: tuple[bool, ...], head_dim: int, norm_num_groups: int, **shared: Any
) -> UNet2DModel | UNet2DConditionModel:
    """Build a U-Net of diffusers, of the class that takes texts if there are any.

    Args:
        text_channels: width of the hidden states of a text encoder; None: there are no texts.
        attention_levels: whether the blocks of each level have attention. The middle block always has.
        head_dim: width of an attention head.
        norm_num_groups: groups of all group norms.
        shared: options that both classes have.
    """
    kinds = ["" if not attends else "Attn" if text_channels is None else "CrossAttn" for attends in attention_levels]
    blocks = {
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "norm_num_groups": norm_num_groups,
    }
    if text_channels is None:
        # Without its own number of groups the middle attention has no norm under "scale_shift".
        return UNet2DModel(attention_head_dim=head_dim, attn_norm_num_groups=norm_num_groups, **blocks, **shared)
    heads = tuple(width // head_dim for width in shared["block_out_channels"])  # which diffusers calls their width
    return UNet2DConditionModel(attention_head_dim=heads, cross_attention_dim=text_channels, **blocks, **shared)
