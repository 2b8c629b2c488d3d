"""An autoencoder and its prior as one module. Its forward pass computes all that training and bounds need."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from .layers import pair


class AutoencoderWithPriorOutput(NamedTuple):
    """Output of `AutoencoderWithPrior` for B images with K latents each.

    Args:
        mean, log_variance (B, d, h, w): moments of q(z | x).
        latents (B, K, d, h, w): z_k.
        decoded (B, K, out_channels, H, W): parameters of p(x | z_k).
        log_prior (B, K): log p(z_k) in nats; None for the standard normal, for which there are closed forms.
        other_decoded (N, out_channels, H, W): parameters of p(x | z) for the other latents; None if there were none.
    """

    mean: Tensor
    log_variance: Tensor
    latents: Tensor
    decoded: Tensor
    log_prior: Tensor | None
    other_decoded: Tensor | None = None


class AutoencoderWithPrior(nn.Module):
    """Encoding, reparameterisation, decoding and the prior in one forward pass.

    Under DistributedDataParallel only the forward pass of the whole module synchronises gradients.

    Args:
        autoencoder: a network called like diffusers' AutoencoderKL.
        prior: a module called as prior(z, encode), see `hfgen.models.priors`; None: the standard normal.
    """

    @checked
    def __init__(self, autoencoder: nn.Module, prior: nn.Module | None = None):
        super().__init__()
        self.autoencoder, self.prior = autoencoder, prior

    def forward(
        self, x: Tensor, noise: Tensor | None = None, other_latents: Tensor | None = None
    ) -> AutoencoderWithPriorOutput:
        """Compute z_k = mean + std noise_k (Kingma & Welling 2014, https://arxiv.org/abs/1312.6114) and its output.

        Args:
            x (B, in_channels, H, W): images.
            noise (B, K, d, h, w): standard normal noise; None: K = 1 and z_1 is the mean.
            other_latents (N, d, h, w): further latents to decode, such as samples of the prior.
        """
        posterior = self.autoencoder.encode(x).latent_dist
        latents = posterior.mean.unsqueeze(1)
        if noise is not None:
            latents = latents + posterior.std.unsqueeze(1) * noise  # (B, K, d, h, w)
        rows = latents.flatten(0, 1)  # (B K, d, h, w)
        inputs, other_decoded = rows if other_latents is None else torch.cat([rows, other_latents]), None
        decoded = self.autoencoder.decode(inputs).sample
        if other_latents is not None:
            decoded, other_decoded = decoded.split((len(rows), len(other_latents)))
        decoded = decoded.unflatten(0, latents.shape[:2])
        log_prior = None if self.prior is None else self.prior(rows, self.autoencoder.encode).view(latents.shape[:2])
        return AutoencoderWithPriorOutput(posterior.mean, posterior.logvar, latents, decoded, log_prior, other_decoded)

    @property
    def decoder(self) -> nn.Module:
        """The autoencoder's decoder. Networks without this wrapper have the same attribute."""
        return self.autoencoder.decoder

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (d, h, w) of a latent."""
        return latent_shape(self.autoencoder)


@torch.no_grad()
def latent_shape(autoencoder: nn.Module) -> tuple[int, int, int]:
    """Return the shape (d, h, w) of the latents of a network called like AutoencoderKL, by encoding zeros.

    The shape of its items is its `sample_shape`, or (in_channels, H, W) of its configuration.
    """
    shape = getattr(autoencoder, "sample_shape", None)
    if shape is None:
        shape = (autoencoder.config.in_channels, *pair(autoencoder.config.sample_size))
    zeros = torch.zeros(1, *shape, device=autoencoder.device)
    return tuple(autoencoder.encode(zeros.to(autoencoder.dtype)).latent_dist.mean.shape[1:])
