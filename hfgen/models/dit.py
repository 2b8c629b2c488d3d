"""The diffusion transformer (Peebles & Xie 2023, https://arxiv.org/abs/2212.09748)."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .interval import IntervalEmbedding, check_two_times
from .layers import check_class_labels, expand_timestep, pair
from .patches import check_tiling, sin_cos_positions
from .token_layers import SelfAttention, TextEmbedding, check_text, initialise_matrices, visible_tokens

TIME_CHANNELS = 256


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Compute x (1 + scale) + shift for tokens (B, N, D), with one shift and scale (B, D) per image."""
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """Attention and MLP, each with a shift, a scale and a gate computed from the condition (adaLN-Zero):

        x <- x + g_1 attention(modulate(norm(x), b_1, s_1))
        x <- x + g_2 MLP(modulate(norm(x), b_2, s_2)),    (b_1, s_1, g_1, b_2, s_2, g_2) = W silu(c) + w

    The model initialises W and w to 0: the gates are 0, and the block is the identity.
    """

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float, dropout: float):
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.attention = SelfAttention(channels, num_heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU("tanh"), nn.Linear(hidden, channels), nn.Dropout(dropout)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))

    def forward(self, x: Tensor, condition: Tensor, visible: Tensor | None = None) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)  # (B, D) each
        x = x + gate_1[:, None] * self.attention(modulate(self.norm(x), shift_1, scale_1), visible)  # (B, N, D)
        return x + gate_2[:, None] * self.mlp(modulate(self.norm(x), shift_2, scale_2))  # (B, N, D)


class DiTModel(ModelMixin, ConfigMixin):
    """Peebles & Xie's adaLN-Zero transformer over the patches of an image, called like diffusers' UNet2DModel.

    The condition is the sum of the embeddings of time and class. As in the paper, position embeddings are fixed, and
    queries and keys are not normalised. The initial prediction is 0: the last layer and the gates of the blocks are
    initialised to 0. Position embeddings are computed from the size of the input, so the network also takes images of
    another size that patches tile.

    Args:
        sample_size: H = W, or (H, W); multiples of `patch_size`.
        in_channels, out_channels: channels of images and of predictions.
        patch_size: side of a patch in pixels.
        hidden_size: width D of the tokens.
        num_layers: number of blocks.
        num_attention_heads: heads of each attention.
        mlp_ratio: width of the MLPs, divided by `hidden_size`.
        dropout: probability of dropout.
        num_class_embeds: number of classes, including the one that means 'no class' in classifier-free guidance; None:
            unconditional.
        two_times: whether it is a flow map, which takes `r_timestep`, see `IntervalEmbedding`.
        text_channels: width of the hidden states of a text encoder, which become further tokens; None: it takes no
            text.

    Raises:
        ValueError: patches do not tile the image, or `hidden_size` is not divisible.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("DiTBlock",)
    _repeated_blocks = ("DiTBlock",)
    _skip_layerwise_casting_patterns = ("embedding", "norm", "output")

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 2,
        hidden_size: int = 384,
        num_layers: int = 12,
        num_attention_heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        two_times: bool = False,
        text_channels: int | None = None,
    ):
        super().__init__()
        check_tiling(*pair(sample_size), patch_size)
        if hidden_size % 4 or hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size={hidden_size} must be a multiple of 4 (positions) and of "
                f"num_attention_heads={num_attention_heads}, such as {4 * num_attention_heads} and its multiples."
            )
        self.gradient_checkpointing = False
        self.patch_embedding = nn.Linear(in_channels * patch_size**2, hidden_size)
        self.time_proj = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(TIME_CHANNELS, hidden_size)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, hidden_size)
        self.interval_embedding = IntervalEmbedding(hidden_size) if two_times else None
        self.text_embedding = None if text_channels is None else TextEmbedding(text_channels, hidden_size)
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_attention_heads, mlp_ratio, dropout) for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.output_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))
        self.output = nn.Linear(hidden_size, out_channels * patch_size**2)
        self._initialise()

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images that the network denoises."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    def _initialise(self) -> None:
        """Initialise matrices by Xavier, embeddings of time and class by N(0, 0.02^2), modulations and output to 0."""
        zero = [*(block.modulation[1] for block in self.blocks), self.output_modulation[1], self.output]
        initialise_matrices(self)
        for module in zero:
            nn.init.zeros_(module.weight)
        if self.interval_embedding is not None:
            self.interval_embedding.reset()

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
        height, width = sample.shape[-2:]
        patch = self.config.patch_size
        check_tiling(height, width, patch)

        condition = self._condition(expand_timestep(timestep, sample), class_labels, r_timestep, sample.dtype)  # (B, D)
        x = F.pixel_unshuffle(sample, patch)  # (B, C p p, H / p, W / p)
        x = self.patch_embedding(x.flatten(2).transpose(1, 2))  # (B, N, D)
        positions = sin_cos_positions(height // patch, width // patch, x.shape[-1], x.device)  # (N, D)
        x = x + positions.to(x.dtype)
        length = x.shape[1]
        visible = visible_tokens(encoder_attention_mask, 0, encoder_hidden_states, length)
        if encoder_hidden_states is not None:
            x = torch.cat([self.text_embedding(encoder_hidden_states), x], dim=1)  # (B, L + N, D)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, condition, visible)
            else:
                x = block(x, condition, visible)  # (B, L + N, D)

        shift, scale = self.output_modulation(condition).chunk(2, dim=-1)  # (B, D) each
        x = self.output(modulate(self.output_norm(x[:, -length:]), shift, scale))  # (B, N, C p p)
        x = x.transpose(1, 2).unflatten(2, (height // patch, width // patch))  # (B, C p p, H / p, W / p)
        x = F.pixel_shuffle(x, patch)  # (B, C, H, W)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _condition(
        self, timestep: Tensor, class_labels: Tensor | None, r_timestep: Tensor | float | None, dtype: torch.dtype
    ) -> Tensor:
        """Return the sum of the embeddings of time, class and interval, (B, D)."""
        condition = self.time_embedding(self.time_proj(timestep).to(dtype))  # (B, 256) -> (B, D)
        if self.class_embedding is not None:
            condition = condition + self.class_embedding(class_labels)
        if self.interval_embedding is not None:
            condition = condition + self.interval_embedding(timestep, r_timestep)
        return condition
