"""UniDiffuser on a U-Net: convolutions draw the image, and a small transformer reads both and draws the text."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from ..utils.arguments import checked
from .conv_layers import ConvEncoder, cell_grid, pad_to_multiple
from .layers import pair
from .patch_unet import PatchUNet2DModel
from .token_layers import UViTBlock, check_width, initialise_linear
from .unidiffuser import TwoClocks, UniDiffuserModelOutput

CELL = 4
"""Side in pixels of the cells of an image that the transformer sees as tokens."""


class UniDiffuserUNetModel(TwoClocks, ModelMixin, ConfigMixin):
    """A network with two clocks, as `UniDiffuserModel`, whose image is predicted by a `PatchUNet2DModel`.

    A transformer has as tokens the two times, the K latents of the text, and the cells of the image, which convolutions
    read. It predicts the text, and its tokens of times and text are what the U-Net attends to. A U-Net learns images
    sooner than a transformer does, where there are few of them or little time.

    Args:
        sample_size: H = W, or (H, W).
        in_channels: channels of images.
        text_tokens, text_channels: K and d of the latents of a text.
        patch_size, block_out_channels, layers_per_block, attention_levels, attention_head_dim, norm_num_groups,
        dropout: of the U-Net, see `PatchUNet2DModel`.
        hidden_size: width D of the tokens.
        num_layers: blocks of the transformer.
        num_attention_heads: heads of each of its attentions.
        mlp_ratio: width of its MLPs, divided by `hidden_size`.

    Raises:
        ValueError: `hidden_size` is not divisible, or as `PatchUNet2DModel`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("UViTBlock",)
    _skip_layerwise_casting_patterns = ("embedding", "norm", "output", "positions")

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        text_tokens: int = 4,
        text_channels: int = 16,
        patch_size: int = 2,
        block_out_channels: tuple[int, ...] = (128, 256, 256),
        layers_per_block: int = 2,
        attention_levels: tuple[bool, ...] = (False, True, True),
        attention_head_dim: int = 32,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_attention_heads: int = 8,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        check_width(hidden_size, num_attention_heads)
        self.image_network = PatchUNet2DModel(
            *(sample_size, in_channels, in_channels, patch_size, block_out_channels, layers_per_block),
            *(attention_levels, attention_head_dim, norm_num_groups),
            dropout=dropout,
            text_channels=hidden_size,
        )
        rows, columns = cell_grid(pair(sample_size), CELL)
        self.image_encoder = ConvEncoder(in_channels, (hidden_size // 2, hidden_size), 1)
        self.text_embedding = nn.Linear(text_channels, hidden_size)
        self.time_proj = Timesteps(hidden_size, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(hidden_size, hidden_size)
        self.text_time_embedding = TimestepEmbedding(hidden_size, hidden_size)
        self.positions = nn.Parameter(torch.zeros(1, 2 + text_tokens + rows * columns, hidden_size))
        self.blocks = nn.ModuleList(
            UViTBlock(hidden_size, num_attention_heads, mlp_ratio, dropout, skip=False) for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.text_output = nn.Linear(hidden_size, text_channels)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise the transformer's matrices by Xavier, positions by N(0, 0.02^2), and the predicted text to 0."""
        for part in (self.blocks, self.text_embedding, self.time_embedding, self.text_time_embedding):
            initialise_linear(part)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.zeros_(self.text_output.weight)
        nn.init.zeros_(self.text_output.bias)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        text: Tensor,
        text_timestep: Tensor | float | int,
        return_dict: bool = True,
    ) -> UniDiffuserModelOutput | tuple[Tensor, Tensor]:
        """Predict for images (B, C, H, W) and latents of texts (B, K, d), each at its own time, as `UniDiffuserModel`.

        Raises:
            ValueError: images or latents of another shape.
        """
        self.check(sample, text)
        times = self.times(sample, timestep, text_timestep)
        cells = self.image_encoder(pad_to_multiple(sample, CELL)).flatten(2).mT  # (B, N, D)
        x = torch.cat([*times, self.text_embedding(text), cells], dim=1) + self.positions  # (B, 2 + K + N, D)
        for block in self.blocks:
            saves = torch.is_grad_enabled() and self.gradient_checkpointing
            x = self._gradient_checkpointing_func(block, x) if saves else block(x)
        states = self.output_norm(x)[:, : 2 + self.config.text_tokens]
        made = self.image_network(sample, timestep, encoder_hidden_states=states).sample  # (B, C, H, W)
        said = self.text_output(states[:, 2:])  # (B, K, d)
        return UniDiffuserModelOutput(sample=made, text=said) if return_dict else (made, said)
