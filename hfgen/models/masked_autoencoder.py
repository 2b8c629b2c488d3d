"""The masked autoencoder (He et al. 2022, https://arxiv.org/abs/2111.06377)."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .layers import pair
from .patches import PatchGrid, sin_cos_positions
from .token_layers import UViTBlock, initialise_linear


@dataclass
class MaskedAutoencoderOutput(BaseOutput):
    """The output of `MaskedAutoencoderModel`.

    Args:
        sample (B, C, H, W): the prediction of all patches, those that were visible among them.
    """

    sample: Tensor


class MaskedAutoencoderModel(ModelMixin, ConfigMixin):
    """A vision transformer that sees some patches of an image, and a smaller one that predicts all of them.

    The encoder gets the V visible patches as tokens and nothing of the others, so that its cost falls with V. The
    decoder gets its V outputs and the same learnt token in place of each hidden patch, in the order of the N patches.
    Both add fixed positions, see `sin_cos_positions`. There is no class token: a representation is the mean over
    tokens.

    Args:
        sample_size: H = W, or (H, W); multiples of `patch_size`.
        in_channels: channels of images.
        patch_size: side of a patch in pixels.
        hidden_size: width D of the encoder.
        num_layers: blocks of the encoder.
        num_attention_heads: heads of each of its attentions.
        decoder_hidden_size, decoder_num_layers, decoder_num_attention_heads: the same of the decoder.
        mlp_ratio: width of the MLPs, divided by that of the tokens.

    Raises:
        ValueError: patches do not tile the image, or a width is not divisible.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("UViTBlock",)
    _repeated_blocks = ("UViTBlock",)
    _skip_layerwise_casting_patterns = ("embedding", "norm", "output")

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        patch_size: int = 4,
        hidden_size: int = 192,
        num_layers: int = 6,
        num_attention_heads: int = 6,
        decoder_hidden_size: int = 96,
        decoder_num_layers: int = 2,
        decoder_num_attention_heads: int = 3,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        grid = PatchGrid(sample_size, in_channels, patch_size)
        _check_width("hidden_size", hidden_size, num_attention_heads)
        _check_width("decoder_hidden_size", decoder_hidden_size, decoder_num_attention_heads)
        self.patch_embedding = nn.Linear(grid.size, hidden_size)
        self.blocks = nn.ModuleList(
            UViTBlock(hidden_size, num_attention_heads, mlp_ratio, 0.0, skip=False) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.decoder_embedding = nn.Linear(hidden_size, decoder_hidden_size)
        self.mask_embedding = nn.Parameter(torch.zeros(1, 1, decoder_hidden_size))
        self.decoder_blocks = nn.ModuleList(
            UViTBlock(decoder_hidden_size, decoder_num_attention_heads, mlp_ratio, 0.0, skip=False)
            for _ in range(decoder_num_layers)
        )
        self.decoder_norm = nn.LayerNorm(decoder_hidden_size, eps=1e-6)
        self.output = nn.Linear(decoder_hidden_size, grid.size)
        self._initialise()

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    @property
    def grid(self) -> PatchGrid:
        """The patches of an image."""
        return PatchGrid(self.config.sample_size, self.config.in_channels, self.config.patch_size)

    def _initialise(self) -> None:
        """Initialise matrices by Xavier, biases to 0, and the token of hidden patches by N(0, 0.02^2)."""
        initialise_linear(self)
        nn.init.normal_(self.mask_embedding, std=0.02)

    def encode(self, sample: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return the encoder's tokens (B, V, D) of images (B, C, H, W), which depend on their visible patches alone.

        Args:
            sample: the images.
            visible (B, V): the numbers of the visible patches, int64; None: all N are.

        Raises:
            ValueError: images of another size.
        """
        if tuple(sample.shape[1:]) != self.sample_shape:
            raise ValueError(f"sample has shape {tuple(sample.shape)}; this network takes {self.sample_shape}.")
        patches = self.grid.tokens(sample)  # (B, N, C p^2)
        if visible is not None:
            patches = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[-1]))  # (B, V, C p^2)
        positions = self._positions(self.config.hidden_size, sample)
        x = self.patch_embedding(patches) + (positions if visible is None else positions[visible])
        return self.norm(self._through(self.blocks, x))

    def decode(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return the predicted images (B, C, H, W) of the encoder's tokens (B, V, D) and the numbers of their
        patches (B, V); None: they are of all patches."""
        x = self.decoder_embedding(tokens)  # (B, V, d)
        if visible is not None:
            known = visible[..., None].expand_as(x)
            missing = self.mask_embedding.to(x).expand(len(x), self.grid.length, -1)
            x = missing.scatter(1, known, x)  # (B, N, d)
        x = x + self._positions(self.config.decoder_hidden_size, x)
        x = self.decoder_norm(self._through(self.decoder_blocks, x))
        return self.grid.image(self.output(x))

    def forward(
        self, sample: Tensor, visible: Tensor | None = None, return_dict: bool = True
    ) -> MaskedAutoencoderOutput | tuple[Tensor]:
        """Predict images (B, C, H, W) from some of their patches.

        Args:
            sample (B, C, H, W): the images.
            visible (B, V): the numbers of the visible patches, int64, see `visible_patches`; None: all are.
            return_dict: whether to return a `MaskedAutoencoderOutput` instead of a tuple.

        Raises:
            ValueError: images of another size.
        """
        prediction = self.decode(self.encode(sample, visible), visible)
        return MaskedAutoencoderOutput(sample=prediction) if return_dict else (prediction,)

    def _positions(self, channels: int, like: Tensor) -> Tensor:
        """Return the positions (N, channels) in the dtype and on the device of a tensor."""
        return sin_cos_positions(self.grid.rows, self.grid.columns, channels, like.device).to(like.dtype)

    def _through(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        """Apply blocks to tokens (B, M, D)."""
        for block in blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x)
            else:
                x = block(x)
        return x


def _check_width(name: str, width: int, heads: int) -> None:
    """Raise ValueError for a width that is no multiple of 4 and of the number of heads."""
    if width % 4 or width % heads:
        raise ValueError(
            f"{name}={width} must be a multiple of 4 (positions) and of its {heads} attention heads, such as "
            f"{4 * heads} and its multiples."
        )
