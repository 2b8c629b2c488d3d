"""The likelihood corner: autoencoders, bounds on log p(x), and vector quantisation.

Items x may have any shape (B, C, ...) with channels first, such as images (B, C, H, W) in [-1, 1]. Losses are in nats
per dimension, so the size of gradients does not depend on that of items. Logs are in nats per item.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..distributions.bounds import kl_to_standard_normal, log_mean_exp, log_ratio, log_weights
from ..distributions.likelihoods import Likelihood
from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, COUNT, COUNT_OR_0, PROBABILITY, check_range
from .base import Loss, Objective, Step, choose, loss_with_logs


class AutoencoderTerms(NamedTuple):
    """The terms of an autoencoder's loss on a batch, and the decoder's output.

    Args:
        reconstruction_loss: -log p(x | z) / dimensions, ().
        regulariser: the other terms of the loss, such as KL or commitment, ().
        logs: scalars for the log by name.
        params (B, channels, ...): parameters of p(x | z) for each item.
        sample_params (B, channels, ...): the same for samples of the prior; None if the objective decodes none.
    """

    reconstruction_loss: Tensor
    regulariser: Tensor
    logs: dict[str, Tensor]
    params: Tensor
    sample_params: Tensor | None = None


class AutoencoderObjective(Objective):
    """Base of objectives with one reconstruction per item. `AutoencoderGAN` can add a discriminator to them.

    Attributes:
        likelihood: p(x | z).
    """

    players = ("autoencoder",)
    likelihood: Likelihood

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the sum of the terms for "x" (B, C, ...)."""
        terms = self.terms(networks[player], batch["x"], step)
        return loss_with_logs(terms.reconstruction_loss + terms.regulariser, terms.logs)

    @abstractmethod
    def terms(self, autoencoder: nn.Module, items: Tensor, step: Step) -> AutoencoderTerms:
        """Compute the terms of the loss for items (B, C, ...) in [-1, 1], in one forward pass of the autoencoder."""


class ELBO(AutoencoderObjective):
    """The variational autoencoder (Kingma & Welling 2014, https://arxiv.org/abs/1312.6114):

        L = -( E_q(z|x) log p(x | z) - beta KL(q(z | x) || p(z)) ) / dimensions

    with one sample of z per item. For the standard normal prior KL is exact. For another prior it is estimated by
    log q(z | x) - log p(z) at that sample. beta is that of beta-VAE (Higgins et al. 2017,
    https://openreview.net/forum?id=Sy2fzU9gl).

    Args:
        likelihood: p(x | z).
        latent_shape: shape of a latent, such as (d, h, w): `AutoencoderWithPrior.latent_shape`.
        beta: weight of KL.
        warmup_steps: number of optimiser steps over which beta grows linearly from 0 (Bowman et al. 2016,
            https://arxiv.org/abs/1511.06349).
        free_bits: lower bound in nats of the KL of each latent dimension, averaged over the micro-batch (Kingma et al.
            2016, https://arxiv.org/abs/1606.04934, appendix C.8); for the standard normal prior only.
        prior_samples: whether `terms` also decodes one sample of the prior per item; for the standard normal prior
            only.

    Raises:
        ValueError: a number out of range.
    """

    @checked
    def __init__(
        self,
        likelihood: Likelihood,
        latent_shape: tuple[int, ...],
        beta: float = 1.0,
        warmup_steps: int = 0,
        free_bits: float = 0.0,
        prior_samples: bool = False,
    ):
        check_range("beta", beta, AT_LEAST_0)
        check_range("warmup_steps", warmup_steps, COUNT_OR_0)
        check_range("free_bits", free_bits, AT_LEAST_0)
        self.likelihood, self.latent_shape = likelihood, tuple(latent_shape)
        self.beta, self.warmup_steps, self.free_bits, self.prior_samples = beta, warmup_steps, free_bits, prior_samples

    def terms(self, autoencoder: nn.Module, items: Tensor, step: Step) -> AutoencoderTerms:
        """Compute the terms for a network that is called like `AutoencoderWithPrior`.

        Raises:
            ValueError: an option is for the standard normal prior, and the network has another.
        """
        x = _prepare(self.likelihood, items, step)
        prior_samples = step.randn("prior", x.new_empty(len(x), *self.latent_shape)) if self.prior_samples else None
        output = autoencoder(x, _noise(x, 1, self.latent_shape, step), prior_samples)
        if self.prior_samples and output.log_prior is not None:
            raise ValueError("prior_samples=True is for the standard normal prior; set prior_samples=False.")
        params = output.decoded.squeeze(1)
        reconstruction = self.likelihood.log_prob(params, x).mean()
        kl, bounded_kl = self._kl(output)
        dimensions = x[0].numel()
        logs = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        regulariser = self.beta_at(step.number) * bounded_kl / dimensions
        return AutoencoderTerms(-reconstruction / dimensions, regulariser, logs, params, output.other_decoded)

    def beta_at(self, number: int) -> float:
        """Return the weight of KL in optimiser step `number`."""
        return self.beta * min(1.0, number / self.warmup_steps) if self.warmup_steps else self.beta

    def _kl(self, output: Any) -> tuple[Tensor, Tensor]:
        """Compute the mean KL per item, and the same with the lower bound `free_bits`: (), ().

        `output` is that of `AutoencoderWithPrior`.
        """
        if output.log_prior is not None:
            if self.free_bits:
                raise ValueError(f"free_bits={self.free_bits} is for the standard normal prior; set free_bits=0.")
            kl = -log_ratio(output.latents, output.mean, output.log_variance, output.log_prior).mean()
            return kl, kl
        kls = kl_to_standard_normal(output.mean, output.log_variance)  # (B, *latent_shape)
        kl = kls.sum() / len(kls)
        return kl, kls.mean(0).clamp(min=self.free_bits).sum() if self.free_bits else kl


class IWAE(Objective):
    """The importance weighted autoencoder (Burda et al. 2016, https://arxiv.org/abs/1509.00519):

        L = -E log( 1/K sum_k p(x, z_k) / q(z_k | x) ) / dimensions,    z_k ~ q(z | x),

    The bound on log p(x) is tighter with every sample. K = 1 is the ELBO with KL estimated at the sample.

    Args:
        likelihood: p(x | z).
        latent_shape: shape of a latent, such as (d, h, w): `AutoencoderWithPrior.latent_shape`.
        num_samples: K. The decoder decodes K times the batch.

    Raises:
        ValueError: a number out of range.
    """

    players = ("autoencoder",)

    @checked
    def __init__(self, likelihood: Likelihood, latent_shape: tuple[int, ...], num_samples: int):
        check_range("num_samples", num_samples, COUNT)
        self.likelihood, self.latent_shape, self.num_samples = likelihood, tuple(latent_shape), num_samples

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the loss on "x" (B, C, ...) of a network that is called like `AutoencoderWithPrior`."""
        x = _prepare(self.likelihood, batch["x"], step)
        output = networks[player](x, _noise(x, self.num_samples, self.latent_shape, step))
        moments = output.mean, output.log_variance
        weights = log_weights(self.likelihood, x, output.decoded, output.latents, *moments, output.log_prior)  # (B, K)
        bound = log_mean_exp(weights).mean()
        return loss_with_logs(-bound / x[0].numel(), {"bound": bound, "elbo": weights.mean()})


class Reconstruction(AutoencoderObjective):
    """The autoencoder, L = -log p(x | z) / dimensions, where z is the encoder's mean for x.

    If the encoder sees a corrupted x, this is the denoising autoencoder (Vincent et al. 2008,
    https://doi.org/10.1145/1390156.1390294).

    Args:
        likelihood: p(x | z).
        corruption: the encoder's input. `none`: x; `gaussian`: x + strength noise; `masking`: each position, such as a
            pixel, is -1 (black) in all its channels with probability `strength`.
        strength: of the corruption, at least 0, and at most 1 for `masking`.

    Raises:
        ValueError: an unknown corruption or a number out of range.
    """

    @checked
    def __init__(
        self,
        likelihood: Likelihood,
        corruption: Literal["none", "gaussian", "masking"] = "none",
        strength: float = 0.3,
    ):
        choose("corruption", corruption, _CORRUPTIONS)
        check_range(f"{corruption=} and strength", strength, PROBABILITY if corruption == "masking" else AT_LEAST_0)
        self.likelihood, self.corruption, self.strength = likelihood, corruption, strength

    def terms(self, autoencoder: nn.Module, items: Tensor, step: Step) -> AutoencoderTerms:
        """Compute the terms for a network that is called like `AutoencoderWithPrior`.

        Raises:
            ValueError: masking of items that have channels but no positions.
        """
        x = _prepare(self.likelihood, items, step)
        params = autoencoder(_CORRUPTIONS[self.corruption](x, self.strength, step)).decoded.squeeze(1)
        reconstruction = self.likelihood.log_prob(params, x).mean()
        loss = -reconstruction / x[0].numel()
        return AutoencoderTerms(loss, torch.zeros_like(loss), {"reconstruction": reconstruction}, params)


class VectorQuantized(AutoencoderObjective):
    """The vector-quantised autoencoder (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937):

        L = -log p(x | e(x)) / dimensions + commitment commit_loss

    where e(x) are the codes nearest to the encoder's output h. The network returns commit_loss = mean (h - sg[e])^2.
    The codebook learns by moving averages (`VQAutoencoderModel`) or through commit_loss (diffusers' VQModel, which adds
    1/4 mean (sg[h] - e)^2).

    Args:
        likelihood: p(x | z).
        commitment: weight of commit_loss.

    Raises:
        ValueError: a number out of range.
    """

    @checked
    def __init__(self, likelihood: Likelihood, commitment: float = 0.25):
        check_range("commitment", commitment, AT_LEAST_0)
        self.likelihood, self.commitment = likelihood, commitment

    def terms(self, autoencoder: nn.Module, items: Tensor, step: Step) -> AutoencoderTerms:
        """Compute the terms for a network that is called like diffusers' VQModel."""
        x = _prepare(self.likelihood, items, step)
        output = autoencoder(x)
        reconstruction, commit = self.likelihood.log_prob(output.sample, x).mean(), output.commit_loss.float()
        logs = {"reconstruction": reconstruction, "commitment": commit}
        if (perplexity := getattr(output, "perplexity", None)) is not None:
            logs["perplexity"] = perplexity
        return AutoencoderTerms(-reconstruction / x[0].numel(), self.commitment * commit, logs, output.sample)


def _prepare(likelihood: Likelihood, items: Tensor, step: Step) -> Tensor:
    """Return the items (B, C, ...) that the likelihood models, such as binary ones."""
    return likelihood.prepare(items, lambda like: step.uniform("binarize", like))


def _noise(x: Tensor, count: int, latent_shape: tuple[int, ...], step: Step) -> Tensor:
    """Draw standard normal noise for K = `count` latents per item: (B, K, *latent_shape)."""
    return step.randn("latent", x.new_empty(len(x), count, *latent_shape))


def _mask_positions(x: Tensor, strength: float, step: Step) -> Tensor:
    """Set each position of x (B, C, ...) to -1 in all channels with probability `strength`."""
    if x.ndim < 3:
        raise ValueError(
            f"corruption='masking' needs items with positions, (B, C, ...); x has shape {tuple(x.shape)}. Set "
            "corruption='gaussian'."
        )
    return torch.where(step.uniform("corruption", x[:, :1]) < strength, -1.0, x)


_CORRUPTIONS = {
    "none": lambda x, strength, step: x,
    "gaussian": lambda x, strength, step: x + strength * step.randn("corruption", x),
    "masking": _mask_positions,
}
