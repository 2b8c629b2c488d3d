"""U-ViT, a transformer with long skips (Bao et al. 2022, https://arxiv.org/abs/2209.12152)."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .interval import IntervalEmbedding, check_two_times
from .layers import check_class_labels, expand_timestep, pair
from .patches import PatchGrid
from .token_layers import (
    TextEmbedding,
    UViTBlock,
    check_text,
    check_width,
    initialise_matrices,
    through_long_skips,
    visible_tokens,
)


class UViTModel(ModelMixin, ConfigMixin):
    """Bao et al.'s U-ViT, called like diffusers' UNet2DModel: everything is a token.

    The M tokens are the time, the class if there are classes, the text if there are texts, and the N patches of the
    image. All of them have learnt positions, but for the text, whose encoder knows them. The output of block i is
    joined to the input of block i from the end: a long skip. A convolution of 3 x 3 smoothes the prediction. As
    `DiTModel` does, a new network predicts 0.

    Args:
        sample_size: H = W, or (H, W); multiples of `patch_size`.
        in_channels, out_channels: channels of images and of predictions.
        patch_size: side of a patch in pixels.
        hidden_size: width D of the tokens.
        num_layers: number of blocks. Of an even number, the two in the middle have one long skip between them.
        num_attention_heads: heads of each attention.
        mlp_ratio: width of the MLPs, divided by `hidden_size`.
        dropout: probability of dropout.
        num_class_embeds: number of classes, including the one that means 'no class' in classifier-free guidance; None:
            unconditional.
        two_times: whether it is a flow map, which takes `r_timestep`, see `IntervalEmbedding`.
        long_skips: whether there are long skips; without them it is a plain vision transformer.
        text_channels: width of the hidden states of a text encoder; None: it takes no text.

    Raises:
        ValueError: patches do not tile the image, or `hidden_size` is not divisible.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("UViTBlock",)
    _repeated_blocks = ("UViTBlock",)
    _skip_layerwise_casting_patterns = ("embedding", "norm", "output", "positions")

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 2,
        hidden_size: int = 512,
        num_layers: int = 13,
        num_attention_heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        two_times: bool = False,
        long_skips: bool = True,
        text_channels: int | None = None,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        grid = PatchGrid(sample_size, in_channels, patch_size)
        check_width(hidden_size, num_attention_heads)
        self.patch_embedding = nn.Linear(grid.size, hidden_size)
        self.time_proj = Timesteps(hidden_size, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(hidden_size, hidden_size)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, hidden_size)
        self.text_embedding = None if text_channels is None else TextEmbedding(text_channels, hidden_size)
        self.interval_embedding = IntervalEmbedding(hidden_size) if two_times else None
        self.own_tokens = 1 + (num_class_embeds is not None)  # before the text
        self.positions = nn.Parameter(torch.zeros(1, self.own_tokens + grid.length, hidden_size))
        self.num_skips = num_layers // 2 if long_skips else 0
        self.blocks = nn.ModuleList(
            UViTBlock(hidden_size, num_attention_heads, mlp_ratio, dropout, number >= num_layers - self.num_skips)
            for number in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.output = nn.Linear(hidden_size, out_channels * patch_size**2)
        self.output_conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self._initialise()

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images that the network denoises."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    def _initialise(self) -> None:
        """Initialise as `DiTModel` does: matrices by Xavier, embeddings and positions by N(0, 0.02^2), the output to 0,
        and the convolution to the identity.

        The paper has a normal distribution of std 0.02 throughout, with which narrow networks learn late.
        """
        initialise_matrices(self)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.zeros_(self.output.weight)
        nn.init.dirac_(self.output_conv.weight)
        nn.init.zeros_(self.output_conv.bias)
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
        """Predict (B, out_channels, H, W) for images (B, in_channels, H, W) of the network's own size.

        Args:
            sample (B, in_channels, H, W): the images.
            timestep () or (B,): an index, or 1000 t.
            class_labels (B,): classes; None for a network without classes.
            return_dict: whether to return a UNet2DOutput instead of a tuple.
            r_timestep () or (B,): the end of the interval, of a flow map; None: `timestep`, for the velocity.
            encoder_hidden_states (B, L, text_channels): of the texts; None for a network without texts.
            encoder_attention_mask (B, L): 1 for their tokens, 0 for padding; None: there is no padding.

        Raises:
            ValueError: images of another size, or conditions that the network does not take or that it lacks.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        check_two_times(r_timestep, self.config.two_times)
        check_text(encoder_hidden_states, self.config.text_channels)
        if tuple(sample.shape[1:]) != self.sample_shape:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}; this network has learnt positions for images of "
                f"{self.sample_shape} alone."
            )
        grid = PatchGrid(self.config.sample_size, self.config.in_channels, self.config.patch_size)
        tokens = self._own_tokens(expand_timestep(timestep, sample), class_labels, r_timestep, sample.dtype)
        tokens += [self.patch_embedding(grid.tokens(sample))]  # (B, N, D)
        x = torch.cat(tokens, dim=1) + self.positions
        if encoder_hidden_states is not None:
            first, last = x.split((self.own_tokens, grid.length), dim=1)
            x = torch.cat([first, self.text_embedding(encoder_hidden_states), last], dim=1)  # (B, M, D)
        visible = visible_tokens(encoder_attention_mask, self.own_tokens, encoder_hidden_states, grid.length)
        x = through_long_skips(self, x, visible)[:, -grid.length :]  # (B, N, D)
        x = self.output_conv(grid.image(self.output(self.output_norm(x))))  # (B, C, H, W)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _own_tokens(
        self, timestep: Tensor, class_labels: Tensor | None, r_timestep: Tensor | float | None, dtype: torch.dtype
    ) -> list[Tensor]:
        """Return the tokens of time and class, (B, 1, D) each."""
        time = self.time_embedding(self.time_proj(timestep).to(dtype))  # (B, D)
        if self.interval_embedding is not None:
            time = time + self.interval_embedding(timestep, r_timestep)
        classes = [] if self.class_embedding is None else [self.class_embedding(class_labels)]
        return [token.unsqueeze(1) for token in (time, *classes)]
