"""UniDiffuser, one transformer of images and texts with two clocks (Bao et al. 2023, https://arxiv.org/abs/2303.06555)."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .layers import expand_timestep, pair
from .patches import PatchGrid
from .token_layers import UViTBlock, check_width, initialise_linear, through_long_skips


@dataclass
class UniDiffuserModelOutput(BaseOutput):
    """The output of `UniDiffuserModel`.

    Args:
        sample (B, C, H, W): the prediction for the image.
        text (B, K, d): the prediction for the latents of the text.
    """

    sample: Tensor
    text: Tensor | None = None  # accelerate rebuilds outputs from one mapping, so other fields need a default


class TwoClocks:
    """What networks with two clocks share: the shapes of both kinds, and tokens of both times."""

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    @property
    def text_shape(self) -> tuple[int, int]:
        """The shape (K, d) of the latents of a text."""
        return (self.config.text_tokens, self.config.text_channels)

    def check(self, sample: Tensor, text: Tensor) -> None:
        """Raise ValueError for images, or latents of texts, of another shape than the network takes."""
        for name, value, shape in (("sample", sample, self.sample_shape), ("text", text, self.text_shape)):
            if tuple(value.shape[1:]) != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; this network takes {('B', *shape)}.")

    def times(
        self, sample: Tensor, timestep: Tensor | float | int, text_timestep: Tensor | float | int
    ) -> list[Tensor]:
        """Return the tokens (B, 1, D) of both times."""
        return [
            embedding(self.time_proj(expand_timestep(step, sample)).to(sample.dtype)).unsqueeze(1)
            for embedding, step in ((self.time_embedding, timestep), (self.text_time_embedding, text_timestep))
        ]


class UniDiffuserModel(TwoClocks, ModelMixin, ConfigMixin):
    """A U-ViT whose tokens are two times, the K latents of a text, and the N patches of an image.

    Image and text have a time each, so that one network has the marginals, both conditionals and the joint
    distribution: see `UniDiffuserPipeline`. A new network predicts 0.

    Args:
        sample_size: H = W, or (H, W); multiples of `patch_size`.
        in_channels: channels of images.
        text_tokens, text_channels: K and d of the latents of a text.
        patch_size: side of a patch in pixels.
        hidden_size: width D of the tokens.
        num_layers: number of blocks.
        num_attention_heads: heads of each attention.
        mlp_ratio: width of the MLPs, divided by `hidden_size`.
        dropout: probability of dropout.

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
        text_tokens: int = 4,
        text_channels: int = 16,
        patch_size: int = 2,
        hidden_size: int = 512,
        num_layers: int = 13,
        num_attention_heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        check_width(hidden_size, num_attention_heads)
        grid = PatchGrid(sample_size, in_channels, patch_size)
        self.patch_embedding = nn.Linear(grid.size, hidden_size)
        self.text_embedding = nn.Linear(text_channels, hidden_size)
        self.time_proj = Timesteps(hidden_size, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(hidden_size, hidden_size)
        self.text_time_embedding = TimestepEmbedding(hidden_size, hidden_size)
        self.positions = nn.Parameter(torch.zeros(1, 2 + text_tokens + grid.length, hidden_size))
        self.num_skips = num_layers // 2
        self.blocks = nn.ModuleList(
            UViTBlock(hidden_size, num_attention_heads, mlp_ratio, dropout, number >= num_layers - self.num_skips)
            for number in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.output = nn.Linear(hidden_size, grid.size)
        self.output_conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.text_output = nn.Linear(hidden_size, text_channels)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as `UViTModel` does."""
        initialise_linear(self)
        for embedding in (self.time_embedding, self.text_time_embedding):
            nn.init.normal_(embedding.linear_1.weight, std=0.02)
            nn.init.normal_(embedding.linear_2.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.text_output.weight)
        nn.init.dirac_(self.output_conv.weight)
        nn.init.zeros_(self.output_conv.bias)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        text: Tensor,
        text_timestep: Tensor | float | int,
        return_dict: bool = True,
    ) -> UniDiffuserModelOutput | tuple[Tensor, Tensor]:
        """Predict for images (B, C, H, W) and latents of texts (B, K, d), each at its own time.

        Args:
            sample (B, C, H, W): the images.
            timestep () or (B,): their time step, an index or 1000 t.
            text (B, K, d): the latents.
            text_timestep () or (B,): their time step.
            return_dict: whether to return a `UniDiffuserModelOutput` instead of a tuple.

        Raises:
            ValueError: images or latents of another shape.
        """
        self.check(sample, text)
        grid = PatchGrid(self.config.sample_size, self.config.in_channels, self.config.patch_size)
        times = self.times(sample, timestep, text_timestep)
        tokens = [*times, self.text_embedding(text), self.patch_embedding(grid.tokens(sample))]
        x = torch.cat(tokens, dim=1) + self.positions  # (B, 2 + K + N, D)
        x = self.output_norm(through_long_skips(self, x))
        made = self.output_conv(grid.image(self.output(x[:, -grid.length :])))  # (B, C, H, W)
        said = self.text_output(x[:, 2 : 2 + self.config.text_tokens])  # (B, K, d)
        return UniDiffuserModelOutput(sample=made, text=said) if return_dict else (made, said)
