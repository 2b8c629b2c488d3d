"""Autoencoders with one Gaussian latent vector per image, called like diffusers' AutoencoderKL.

Latents are (B, d, 1, 1), so code for the latents (B, d, h, w) of AutoencoderKL takes them, too. The decoder's output is
the parameters of p(x | z); their number of channels is `Likelihood.channels` of `hfgen.distributions.likelihoods`.
"""

import math
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from ..utils.arguments import checked
from .conv_layers import ConvDecoder, ConvEncoder, cell_grid, pad_to_multiple
from .layers import pair

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "softplus": nn.Softplus}


class VectorAutoencoder:
    """A mixin with the calls of AutoencoderKL, for a network with `_moments` and `_decode`."""

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images that the network encodes."""
        return (self.config.in_channels, *pair(self.config.sample_size))

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode images (B, in_channels, H, W) as q(z | x), diagonal Gaussians over (B, d, 1, 1).

        Raises:
            ValueError: images of another shape.
        """
        if tuple(x.shape[1:]) != self.sample_shape:
            shape = ", ".join(map(str, self.sample_shape))
            raise ValueError(f"images have shape {tuple(x.shape)}; this network takes (B, {shape}).")
        posterior = DiagonalGaussianDistribution(self._moments(x)[:, :, None, None])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode latents (B, d, 1, 1) to the parameters of p(x | z), (B, out_channels, H, W)."""
        sample = self._decode(z.flatten(1))
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode images (B, in_channels, H, W): (B, out_channels, H, W).

        Args:
            sample (B, in_channels, H, W): the images.
            sample_posterior: whether to decode a sample of q(z | x) instead of its mean.
            return_dict: whether to return a DecoderOutput instead of a tuple.
            generator: generator of the sample.
        """
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict)


class MLPAutoencoderModel(VectorAutoencoder, ModelMixin, ConfigMixin):
    """An autoencoder of fully connected layers (Kingma & Welling 2014, https://arxiv.org/abs/1312.6114, appendix C).

    The encoder's widths are D-h_1-...-h_n-2d for D pixels and d latent dimensions, and the decoder's are
    d-h_n-...-h_1-D. With the defaults, on 28 x 28 pixels, they are 784-400-40 and 20-400-784.

    Args:
        sample_size: H = W, or (H, W).
        in_channels, out_channels: channels of images, and of the parameters of p(x | z).
        hidden_dims: widths of the hidden layers, from the image to the latent.
        latent_channels: dimension of z.
        activation: `relu`, `silu`, `tanh` or `softplus`.

    Raises:
        ValueError: the activation is not known.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        out_channels: int = 1,
        hidden_dims: tuple[int, ...] = (400,),
        latent_channels: int = 20,
        activation: str = "relu",
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not known. Choose one of: {', '.join(ACTIVATIONS)}.")
        pixels = math.prod(pair(sample_size))
        self.encoder = _linear_stack((in_channels * pixels, *hidden_dims, 2 * latent_channels), activation)
        self.decoder = _linear_stack((latent_channels, *reversed(hidden_dims), out_channels * pixels), activation)

    def _moments(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(1))

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).unflatten(1, (self.config.out_channels, *pair(self.config.sample_size)))


def _linear_stack(widths: tuple[int, ...], activation: str) -> nn.Sequential:
    layers = [nn.Linear(widths[0], widths[1])]
    for before, after in pairwise(widths[1:]):
        layers += [ACTIVATIONS[activation](), nn.Linear(before, after)]
    return nn.Sequential(*layers)


class ConvAutoencoderModel(VectorAutoencoder, ModelMixin, ConfigMixin):
    """A convolutional autoencoder with residual blocks and one latent vector.

    Images may have any size: they are padded with zeros to a multiple of 2^levels, and the output is cropped.

    Args:
        sample_size: H = W, or (H, W).
        in_channels, out_channels: channels of images, and of the parameters of p(x | z).
        block_out_channels: widths of the levels, from the image to the latent; each level halves the sides once.
        layers_per_block: residual blocks per level.
        latent_channels: dimension of z.
    """

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
    ):
        super().__init__()
        self.multiple = 2 ** len(block_out_channels)
        self.grid = (block_out_channels[-1], *cell_grid(pair(sample_size), self.multiple))
        self.encoder = ConvEncoder(in_channels, block_out_channels, layers_per_block)
        self.to_moments = nn.Linear(math.prod(self.grid), 2 * latent_channels)
        self.from_latent = nn.Linear(latent_channels, math.prod(self.grid))
        self.decoder = ConvDecoder(out_channels, block_out_channels, layers_per_block)

    def _moments(self, x: Tensor) -> Tensor:
        return self.to_moments(self.encoder(pad_to_multiple(x, self.multiple)).flatten(1))  # (B, 2 d)

    def _decode(self, z: Tensor) -> Tensor:
        height, width = pair(self.config.sample_size)
        return self.decoder(self.from_latent(z).unflatten(1, self.grid))[..., :height, :width]
