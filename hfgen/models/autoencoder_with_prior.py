"""An autoencoder and its prior as one module, whose one forward is all that training and bounds need."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import pair


class AutoencoderWithPriorOutput(NamedTuple):
    """What an autoencoder makes of B images with K latents each.

    Args:
        mean, log_variance: of q(z | x), (B, d, h, w).
        latents: (B, K, d, h, w).
        decoded: parameters of p(x | z_k), (B, K, out_channels, H, W).
        log_prior: log p(z_k) in nats, (B, K); None: of the standard normal, for which there are closed forms.
        drawn: parameters of p(x | z) for other latents that were given, (N, out_channels, H, W); None without.
    """

    mean: Tensor
    log_variance: Tensor
    latents: Tensor
    decoded: Tensor
    log_prior: Tensor | None
    drawn: Tensor | None = None


class AutoencoderWithPrior(nn.Module):
    """Encode, reparameterise, decode, and ask the prior, in one forward: under DistributedDataParallel only the forward
    of the whole synchronises gradients.

    Args:
        autoencoder: a network called as diffusers' AutoencoderKL.
        prior: called as prior(z, encode), see `hfgen.models.priors`; None: the standard normal.
    """

    def __init__(self, autoencoder: nn.Module, prior: nn.Module | None = None):
        super().__init__()
        self.autoencoder, self.prior = autoencoder, prior

    def forward(
        self, x: Tensor, noise: Tensor | None = None, others: Tensor | None = None
    ) -> AutoencoderWithPriorOutput:
        """z_k = mean + std noise_k (Kingma & Welling 2014, https://arxiv.org/abs/1312.6114) and what follows from it.

        Args:
            x: images (B, in_channels, H, W).
            noise: standard normal, (B, K, d, h, w); None: one latent, the mean.
            others: latents (N, d, h, w) to decode besides, such as the prior's.
        """
        posterior = self.autoencoder.encode(x).latent_dist
        latents = posterior.mean.unsqueeze(1)
        if noise is not None:
            latents = latents + posterior.std.unsqueeze(1) * noise  # (B, K, d, h, w)
        each = latents.flatten(0, 1)  # (B K, d, h, w)
        decoded, drawn = self.autoencoder.decode(each if others is None else torch.cat([each, others])).sample, None
        if others is not None:
            decoded, drawn = decoded.split((len(each), len(others)))
        decoded = decoded.unflatten(0, latents.shape[:2])
        log_prior = None if self.prior is None else self.prior(each, self.autoencoder.encode).view(latents.shape[:2])
        return AutoencoderWithPriorOutput(posterior.mean, posterior.logvar, latents, decoded, log_prior, drawn)

    @property
    def decoder(self) -> nn.Module:
        """The autoencoder's, as networks without a wrapper have it."""
        return self.autoencoder.decoder

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(d, h, w)."""
        return latent_shape(self.autoencoder)


@torch.no_grad()
def latent_shape(autoencoder: nn.Module) -> tuple[int, int, int]:
    """(d, h, w) of the latents of a network called as AutoencoderKL, from encoding an image of zeros."""
    config = autoencoder.config
    zeros = torch.zeros(1, config.in_channels, *pair(config.sample_size), device=autoencoder.device)
    return tuple(autoencoder.encode(zeros.to(autoencoder.dtype)).latent_dist.mean.shape[1:])
