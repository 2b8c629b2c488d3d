"""Texts as a few vectors of real numbers, and back: latents that a denoiser can model beside images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .token_layers import UViTBlock, initialise_linear


@dataclass
class TextAutoencoderOutput(BaseOutput):
    """The output of `TextAutoencoderModel`.

    Args:
        logits (B, L, V): unnormalised log-probabilities of the token at each position.
        latents (B, K, d): of the texts, without noise.
    """

    logits: Tensor
    latents: Tensor | None = None  # accelerate rebuilds outputs from one mapping, so other fields need a default


class TextAutoencoderModel(ModelMixin, ConfigMixin):
    """A transformer from tokens to K latents, and one from these to tokens.

    The encoder reads the tokens beside K learnt ones, whose outputs are the latents; each latent has mean 0 and
    variance 1 over its d numbers. The decoder reads the latents beside L learnt tokens, and predicts the token at all L
    positions at once, padding among them: a latent says the whole text, so nothing is drawn.

    Args:
        vocab_size: V, tokens of the vocabulary.
        max_length: L, tokens of a text with its padding.
        latent_tokens, latent_channels: K and d.
        hidden_size, num_layers, num_attention_heads: of both transformers.

    Raises:
        ValueError: `hidden_size` is not divisible by the heads, or d is less than 2.
    """

    _no_split_modules = ("UViTBlock",)

    @checked
    @register_to_config
    def __init__(
        self,
        vocab_size: int = 2048,
        max_length: int = 77,
        latent_tokens: int = 4,
        latent_channels: int = 16,
        hidden_size: int = 96,
        num_layers: int = 2,
        num_attention_heads: int = 3,
    ):
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(f"{hidden_size=} must be a multiple of num_attention_heads={num_attention_heads}.")
        if latent_channels < 2:
            raise ValueError(f"{latent_channels=} must be at least 2: latents have mean 0 and variance 1.")

        def blocks() -> nn.ModuleList:
            layers = (UViTBlock(hidden_size, num_attention_heads, 4.0, 0.0, skip=False) for _ in range(num_layers))
            return nn.ModuleList(layers)

        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.encoder_positions = nn.Parameter(torch.zeros(1, max_length + latent_tokens, hidden_size))
        self.encoder_blocks = blocks()
        self.encoder_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.to_latents = nn.Linear(hidden_size, latent_channels)
        self.from_latents = nn.Linear(latent_channels, hidden_size)
        self.decoder_positions = nn.Parameter(torch.zeros(1, latent_tokens + max_length, hidden_size))
        self.decoder_blocks = blocks()
        self.decoder_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.output = nn.Linear(hidden_size, vocab_size)
        self._initialise()

    @property
    def latent_shape(self) -> tuple[int, int]:
        """The shape (K, d) of the latents of a text."""
        return (self.config.latent_tokens, self.config.latent_channels)

    def _initialise(self) -> None:
        """Initialise matrices by Xavier, biases to 0, and tokens and positions by N(0, 1 / hidden_size)."""
        initialise_linear(self)
        for weight in (self.embedding.weight, self.encoder_positions, self.decoder_positions):
            nn.init.normal_(weight, std=self.config.hidden_size**-0.5)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the latents (B, K, d) of tokens (B, L); the mask (B, L) is 1 for tokens and 0 for padding."""
        count = self.config.latent_tokens
        tokens = F.pad(self.embedding(input_ids), (0, 0, 0, count))  # (B, L + K, D)
        visible = F.pad(attention_mask.bool(), (0, count), value=True)
        x = tokens + self.encoder_positions
        for block in self.encoder_blocks:
            x = block(x, visible)
        latents = self.to_latents(self.encoder_norm(x[:, -count:]))
        return F.layer_norm(latents, latents.shape[-1:])

    def decode(self, latents: Tensor) -> Tensor:
        """Return the logits (B, L, V) of the tokens that latents (B, K, d) stand for."""
        x = F.pad(self.from_latents(latents), (0, 0, 0, self.config.max_length)) + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x)
        return self.output(self.decoder_norm(x[:, self.config.latent_tokens :]))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> TextAutoencoderOutput | tuple[Tensor, Tensor]:
        """Encode texts and decode them.

        Args:
            input_ids, attention_mask (B, L): tokens, and 1 for those that are no padding.
            noise (B, K, d): added to the latents before they are decoded; None: there is none.
            return_dict: whether to return a `TextAutoencoderOutput` instead of a tuple.
        """
        latents = self.encode(input_ids, attention_mask)
        logits = self.decode(latents if noise is None else latents + noise)
        return TextAutoencoderOutput(logits=logits, latents=latents) if return_dict else (logits, latents)
