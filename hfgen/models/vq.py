"""A convolutional autoencoder with discrete latents. Its codebook follows the encoder by moving averages."""

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

from ..utils.arguments import checked
from .conv_layers import ConvDecoder, ConvEncoder, pad_to_multiple
from .layers import pair, real


class QuantizerOutput(NamedTuple):
    """The codes nearest to latents.

    Args:
        quantized (B, d, h, w): the codes; the gradient passes straight through to the latents.
        indices (B, h, w): indices of the codes, int64.
        perplexity (): exp(-sum_i p_i log p_i), the effective number of codes in use in the batch.
        commit_loss (): mean squared distance of the latents from their codes; only the latents get its gradient.
    """

    quantized: Tensor
    indices: Tensor
    perplexity: Tensor
    commit_loss: Tensor


@dataclass
class VQAutoencoderOutput(BaseOutput):
    """Output of `VQAutoencoderModel`.

    Args:
        sample (B, out_channels, H, W): parameters of p(x | codes).
        commit_loss, perplexity (): as in `QuantizerOutput`.
        latents (B, d, h, w): the encoder's output.
        quantized (B, d, h, w): the codes nearest to it.
        indices (B, h, w): their indices, int64.
    """

    sample: Tensor
    commit_loss: Tensor | None = None  # accelerate rebuilds outputs from one mapping, so other fields need a default
    perplexity: Tensor | None = None
    latents: Tensor | None = None
    quantized: Tensor | None = None
    indices: Tensor | None = None


class Codebook(nn.Module):
    """K codes e_i, each the moving average of the vectors z that are nearest to it (van den Oord et al. 2017,
    https://arxiv.org/abs/1711.00937, appendix A.1). With n_i vectors of a batch nearest to e_i, whose sum is m_i,

        N_i <- decay N_i + (1 - decay) n_i,    M_i <- decay M_i + (1 - decay) m_i,    e_i = M_i / N_i.

    The statistics are summed over all processes. A code whose N_i is at most `revival` times the mean of N is dead. It
    is reset to a vector of the batch, and its N_i to the mean of N. The vector is chosen by a hash of the code's number
    and the update's number, so that a resumed run resets the same codes to the same vectors as an uninterrupted one.
    After the first batch all codes that it does not use are dead, so the codebook starts as vectors of that batch.

    Args:
        count: K.
        dimension: d.
        decay: of the moving averages.
        revival: a code is dead at this share of the mean use or less.
    """

    unaveraged = ("codes",)
    """A moving average of a network takes its codes from the averages of N and M: a code that is reset has another
    meaning from then on, and the N before was small."""

    def __init__(self, count: int, dimension: int, decay: float, revival: float):
        super().__init__()
        self.decay, self.revival = decay, revival
        self.register_buffer("codes", torch.randn(count, dimension))  # e (K, d)
        self.register_buffer("usage", torch.zeros(count))  # N (K,)
        self.register_buffer("sums", torch.zeros(count, dimension))  # M (K, d)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def nearest(self, z: Tensor) -> Tensor:
        """Find the index of the code nearest to each vector: (n,) for (n, d)."""
        codes = real(self.codes)
        with torch.autocast(z.device.type, enabled=False):
            return torch.addmm(codes.square().sum(1), z.to(codes), codes.T, alpha=-2).argmin(1)

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor) -> None:
        """Update the moving averages, and reset dead codes.

        Args:
            z (n, d): the vectors of this process.
            indices (n,): the nearest code of each.
        """
        count, dimension = self.codes.shape
        statistics = z.new_zeros(count, 2 * dimension + 1)  # n_i, m_i and a vector to reset to
        statistics[:, : dimension + 1].index_add_(0, indices, F.pad(z, (1, 0), value=1.0))
        statistics[:, dimension + 1 :] = self._reset_vectors(z)
        if _world_size() > 1:
            torch.distributed.all_reduce(statistics)
        counts, sums, fresh = statistics.split((1, dimension, dimension), 1)
        self.usage.lerp_(counts.squeeze(1), 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        mean = self.usage.mean()
        dead = (self.usage <= self.revival * mean).unsqueeze(1)  # (K, 1)
        self.usage.copy_(torch.where(dead.squeeze(1), mean, self.usage))
        self.sums.copy_(torch.where(dead, mean * fresh, self.sums))
        self.recompute_buffers()
        self.updates += 1

    def recompute_buffers(self) -> None:
        """Compute the codes from their statistics, e_i = M_i / N_i, where there are any."""
        usage = self.usage.unsqueeze(1)
        self.codes.copy_(torch.where(usage > 0, self.sums / usage, self.codes))

    def _reset_vectors(self, z: Tensor) -> Tensor:
        """Choose a vector for each code, (K, d), among the vectors (n, d) of all processes.

        Rows whose vector belongs to another process are 0 here.
        """
        count, (num_local, _), rank = len(self.codes), z.shape, _rank()
        number = torch.arange(count, device=z.device) + count * self.updates
        index = number * 2654435769 % 2**32 * (num_local * _world_size()) // 2**32  # 2^32 / golden ratio: even spread
        local = index - rank * num_local
        mask = ((local >= 0) & (local < num_local)).unsqueeze(1)
        return torch.where(mask, z[local.clamp(0, num_local - 1)], 0.0)


def _world_size() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def _rank() -> int:
    return torch.distributed.get_rank() if _world_size() > 1 else 0


class VQAutoencoderModel(ModelMixin, ConfigMixin):
    """VQ-VAE (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937), called like diffusers' VQModel.

    Images may have any size: they are padded with zeros to a multiple of 2^levels, and the output is cropped. In
    training mode, the forward pass updates the codebook (see `Codebook`), as BatchNorm updates its statistics.

    Args:
        sample_size: H = W, or (H, W).
        in_channels, out_channels: channels of images, and of the parameters of p(x | codes).
        block_out_channels: widths of the levels, from the image to the latents; each level halves the sides once.
        layers_per_block: residual blocks per level.
        latent_channels: dimension d of a code.
        num_vq_embeddings: number of codes K.
        ema_decay: decay of the codebook's moving averages.
        revival: a code is dead at this share of the mean use or less.

    Raises:
        ValueError: a number out of range.
    """

    _skip_layerwise_casting_patterns = ("codebook",)

    @checked
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
        """Encode images (B, in_channels, H, W) to latents (B, d, h, w), which are not quantised yet."""
        latents = self.to_latents(self.encoder(pad_to_multiple(x, self.multiple)))
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    def quantize(self, h: Tensor) -> QuantizerOutput:
        """Find the codes nearest to latents (B, d, h, w)."""
        z = h.to(self.codebook.codes.dtype)
        flat = z.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, d)
        indices = self.codebook.nearest(flat).unflatten(0, (len(h), *h.shape[2:]))  # (B, h, w)
        codes = self._look_up(indices)
        weights = z.new_full((indices.numel(),), 1 / indices.numel())
        share = weights.new_zeros(len(self.codebook.codes)).index_add_(0, indices.flatten(), weights)  # p (K,)
        perplexity = torch.special.entr(share).sum().exp()
        return QuantizerOutput(z + (codes - z).detach(), indices, perplexity, F.mse_loss(z, codes))

    @apply_forward_hook
    def decode(
        self, h: Tensor, force_not_quantize: bool = False, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode latents (B, d, h, w) to the parameters of p(x | codes), (B, out_channels, H, W).

        Args:
            h (B, d, h, w): the latents.
            force_not_quantize: whether the latents are codes already; otherwise they are quantised first.
            return_dict: whether to return a DecoderOutput instead of a tuple.
        """
        sample = self._decode(h if force_not_quantize else self.quantize(h).quantized)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Decode indices of codes (B, h, w) to the parameters of p(x | codes), (B, out_channels, H, W)."""
        return self.decode(self._look_up(indices), force_not_quantize=True).sample

    def forward(self, sample: Tensor, return_dict: bool = True) -> VQAutoencoderOutput | tuple[Tensor, ...]:
        """Encode, quantise and decode images (B, in_channels, H, W). In training mode, update the codebook."""
        latents = self.encode(sample).latents
        codes = self.quantize(latents)
        output = VQAutoencoderOutput(
            sample=self._decode(codes.quantized),
            commit_loss=codes.commit_loss,
            perplexity=codes.perplexity,
            latents=latents,
            quantized=codes.quantized,
            indices=codes.indices,
        )
        if self.training:
            flat = latents.detach().permute(0, 2, 3, 1).flatten(0, 2).to(self.codebook.codes.dtype)
            self.codebook.update(flat, codes.indices.flatten())
        return output if return_dict else output.to_tuple()

    def _look_up(self, indices: Tensor) -> Tensor:
        """Look up the codes (B, d, h, w) of indices (B, h, w)."""
        return F.embedding(indices, self.codebook.codes).permute(0, 3, 1, 2)

    def _decode(self, z: Tensor) -> Tensor:
        height, width = pair(self.config.sample_size)
        return self.decoder(F.silu(self.from_latents(z.to(self.from_latents.weight.dtype))))[..., :height, :width]
