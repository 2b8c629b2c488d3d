"""A convolutional autoencoder with discrete latents, whose codebook follows the encoder by moving averages."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from .conv_layers import ConvDecoder, ConvEncoder, padded
from .layers import pair


class Quantized(NamedTuple):
    """Latents and the codes nearest to them.

    Args:
        quantized: the codes in place of the latents, (B, d, h, w); its gradient is the latents' (straight through).
        indices: which codes, int64 (B, h, w).
        perplexity: (), how many codes the batch used, were all used alike: exp(-sum_i p_i log p_i).
        commit_loss: (), mean squared distance of the latents from their codes, with gradient to the latents alone.
    """

    quantized: Tensor
    indices: Tensor
    perplexity: Tensor
    commit_loss: Tensor


@dataclass
class VQAutoencoderOutput(BaseOutput):
    """What `VQAutoencoderModel` returns.

    Args:
        sample: parameters of p(x | codes), (B, out_channels, H, W).
        commit_loss, perplexity: (), as in `Quantized`.
        latents: of the encoder, (B, d, h, w).
        quantized: their codes, (B, d, h, w).
        indices: int64 (B, h, w).
    """

    sample: Tensor
    commit_loss: Tensor | None = None  # accelerate makes outputs anew from one mapping: others need a default
    perplexity: Tensor | None = None
    latents: Tensor | None = None
    quantized: Tensor | None = None
    indices: Tensor | None = None


class Codebook(nn.Module):
    """K codes e_i, each the moving average of the vectors z that are nearest to it (van den Oord et al. 2017,
    https://arxiv.org/abs/1711.00937, appendix A.1): with n_i vectors of a batch, whose sum is m_i,

        N_i <- decay N_i + (1 - decay) n_i,    M_i <- decay M_i + (1 - decay) m_i,    e_i = M_i / N_i.

    Statistics are those of all processes together. A code whose N_i is at most `revival` times the mean of N is dead:
    it starts again at a vector of the batch, with the mean of N to its credit. Which vector is a function of the code's
    number and of that of the update (multiplicative hashing), so that a resumed run revives as the uninterrupted one.
    All codes that the first batch does not use are dead then: the codebook begins as vectors of it.
    """

    def __init__(self, count: int, dimension: int, decay: float, revival: float):
        super().__init__()
        self.decay, self.revival = decay, revival
        self.register_buffer("codes", torch.randn(count, dimension))  # e (K, d)
        self.register_buffer("usage", torch.zeros(count))  # N (K,)
        self.register_buffer("sums", torch.zeros(count, dimension))  # M (K, d)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def nearest(self, z: Tensor) -> Tensor:
        """The index of the code nearest to each vector: (n,) for (n, d)."""
        codes = self.codes if self.codes.dtype == torch.float64 else self.codes.float()
        with torch.autocast(z.device.type, enabled=False):
            return torch.addmm(codes.square().sum(1), z.to(codes), codes.T, alpha=-2).argmin(1)

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor) -> None:
        """Move the codes towards the vectors (n, d) that are nearest to them, and revive dead ones."""
        count, dimension = self.codes.shape
        statistics = z.new_zeros(count, 2 * dimension + 1)  # n_i, m_i and a vector to revive at
        statistics[:, : dimension + 1].index_add_(0, indices, F.pad(z, (1, 0), value=1.0))
        statistics[:, dimension + 1 :] = self._spread(z)
        if _world() > 1:
            torch.distributed.all_reduce(statistics)
        counts, sums, fresh = statistics.split((1, dimension, dimension), 1)
        self.usage.lerp_(counts.squeeze(1), 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        mean = self.usage.mean()
        dead = (self.usage <= self.revival * mean).unsqueeze(1)  # (K, 1)
        self.usage.copy_(torch.where(dead.squeeze(1), mean, self.usage))
        self.sums.copy_(torch.where(dead, mean * fresh, self.sums))
        self.codes.copy_(self.sums / self.usage.unsqueeze(1))
        self.updates += 1

    def _spread(self, z: Tensor) -> Tensor:
        """A vector of all processes' (n, d) for each code, (K, d): this process's share, zeros for the others'."""
        count, (here, _), rank = len(self.codes), z.shape, _rank()
        number = torch.arange(count, device=z.device) + count * self.updates
        chosen = number * 2654435769 % 2**32 * (here * _world()) // 2**32  # 2^32 / golden ratio: evenly spread
        local = chosen - rank * here
        mine = ((local >= 0) & (local < here)).unsqueeze(1)
        return torch.where(mine, z[local.clamp(0, here - 1)], 0.0)


def _world() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def _rank() -> int:
    return torch.distributed.get_rank() if _world() > 1 else 0


class VQAutoencoderModel(ModelMixin, ConfigMixin):
    """VQ-VAE (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937), called as diffusers' VQModel.

    Each of `block_out_channels` halves the sides once; images of any size are taken, padded with zeros to a multiple of
    2^levels, and cut back. While training, forward moves the codebook (see `Codebook`), as BatchNorm its statistics.

    Args:
        sample_size: H = W, or (H, W).
        in_channels, out_channels: of images, and of the parameters of p(x | codes).
        block_out_channels: widths of the levels, from the image to the latents.
        layers_per_block: residual blocks a level.
        latent_channels: dimension d of a code.
        num_vq_embeddings: number of codes K.
        ema_decay: of the codebook's moving averages.
        revival: a code is dead at this share of the mean use or less.
    """

    _skip_layerwise_casting_patterns = ("codebook",)

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: tuple[int, ...] = (32, 64),
        layers_per_block: int = 1,
        latent_channels: int = 32,
        num_vq_embeddings: int = 256,
        ema_decay: float = 0.99,
        revival: float = 0.1,
    ):
        super().__init__()
        if not (0 <= ema_decay < 1 and 0 <= revival < 1 and num_vq_embeddings >= 1):
            raise ValueError(f"{ema_decay=}, {revival=} must be in [0, 1), and {num_vq_embeddings=} at least 1.")
        self.multiple = 2 ** len(block_out_channels)
        self.encoder = ConvEncoder(in_channels, block_out_channels, layers_per_block)
        self.to_latents = nn.Conv2d(block_out_channels[-1], latent_channels, 1)
        self.codebook = Codebook(num_vq_embeddings, latent_channels, ema_decay, revival)
        self.from_latents = nn.Conv2d(latent_channels, block_out_channels[-1], 3, padding=1)
        self.decoder = ConvDecoder(out_channels, block_out_channels, layers_per_block)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images that the network encodes."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """Latents (B, d, h, w), not quantised, for images (B, in_channels, H, W)."""
        latents = self.to_latents(self.encoder(padded(x, self.multiple)))
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    def quantize(self, h: Tensor) -> Quantized:
        """The codes nearest to latents (B, d, h, w)."""
        z = h.to(self.codebook.codes.dtype)
        flat = z.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, d)
        indices = self.codebook.nearest(flat).unflatten(0, (len(h), *h.shape[2:]))  # (B, h, w)
        codes = self._codes(indices)
        each = z.new_full((indices.numel(),), 1 / indices.numel())
        share = each.new_zeros(len(self.codebook.codes)).index_add_(0, indices.flatten(), each)  # p (K,)
        perplexity = torch.special.entr(share).sum().exp()
        return Quantized(z + (codes - z).detach(), indices, perplexity, F.mse_loss(z, codes))

    @apply_forward_hook
    def decode(
        self, h: Tensor, force_not_quantize: bool = False, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """The parameters of p(x | codes), (B, out_channels, H, W), for latents (B, d, h, w), which are quantised first
        unless `force_not_quantize`."""
        sample = self._decoded(h if force_not_quantize else self.quantize(h).quantized)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """The parameters of p(x | codes), (B, out_channels, H, W), for indices of codes (B, h, w)."""
        return self.decode(self._codes(indices), force_not_quantize=True).sample

    def forward(self, sample: Tensor, return_dict: bool = True) -> VQAutoencoderOutput | tuple[Tensor, ...]:
        """Encode, quantise and decode images (B, in_channels, H, W); while training, move the codebook."""
        latents = self.encode(sample).latents
        coded = self.quantize(latents)
        output = VQAutoencoderOutput(
            sample=self._decoded(coded.quantized),
            commit_loss=coded.commit_loss,
            perplexity=coded.perplexity,
            latents=latents,
            quantized=coded.quantized,
            indices=coded.indices,
        )
        if self.training:
            flat = latents.detach().permute(0, 2, 3, 1).flatten(0, 2).to(self.codebook.codes.dtype)
            self.codebook.update(flat, coded.indices.flatten())
        return output if return_dict else output.to_tuple()

    def _codes(self, indices: Tensor) -> Tensor:
        """The codes (B, d, h, w) of indices (B, h, w)."""
        return F.embedding(indices, self.codebook.codes).permute(0, 3, 1, 2)

    def _decoded(self, z: Tensor) -> Tensor:
        height, width = pair(self.config.sample_size)
        return self.decoder(F.silu(self.from_latents(z.to(self.from_latents.weight.dtype))))[..., :height, :width]
