"""The likelihood corner: autoencoders, bounds on log p(x), and vector quantisation.

Losses are in nats per dimension, so that gradients are of one size for images of any; logs are in nats per image.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..distributions.bounds import kl_to_standard_normal, log_mean_exp, log_ratio, log_weights
from ..distributions.likelihoods import Likelihood
from .base import Loss, Objective, Step


class Rebuilt(NamedTuple):
    """A batch through an autoencoder.

    Args:
        loss: the objective's own; its value is fit + rest.
        params: of p(x | z) for each image, (B, channels, H, W).
        fit: -log p(x | z) / dimensions, ().
        rest: KL or commitment, ().
        drawn: parameters of p(x | z) for samples of the prior, (B, channels, H, W); None where none are asked for.
    """

    loss: Loss
    params: Tensor
    fit: Tensor
    rest: Tensor
    drawn: Tensor | None = None


class AutoencoderObjective(Objective):
    """An objective with one reconstruction an image, which `AutoencoderGAN` may judge as well.

    Attributes:
        likelihood: p(x | z).
    """

    players = ("autoencoder",)
    likelihood: Likelihood

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Of what is made of images (B, C, H, W)."""
        return self.rebuilt(networks[player], batch["x"], step).loss

    @abstractmethod
    def rebuilt(self, autoencoder: nn.Module, images: Tensor, step: Step) -> Rebuilt:
        """What the autoencoder makes of images (B, C, H, W) in [-1, 1], in one forward."""


class ELBO(AutoencoderObjective):
    """The variational autoencoder (Kingma & Welling 2014, https://arxiv.org/abs/1312.6114):

        L = -( E_q(z|x) log p(x | z) - beta KL(q(z | x) || p(z)) ) / dimensions

    with one sample of z an image. Against the standard normal KL is exact, against another prior it is log q(z | x) -
    log p(z) at that sample. beta is that of beta-VAE (Higgins et al. 2017, https://openreview.net/forum?id=Sy2fzU9gl).

    Args:
        likelihood: p(x | z).
        latent_shape: (d, h, w), `AutoencoderWithPrior.latent_shape`.
        beta: weight of KL.
        warmup_steps: beta grows from 0 linearly over so many optimiser steps (Bowman et al. 2016,
            https://arxiv.org/abs/1511.06349).
        free_bits: KL of each latent dimension, averaged over the micro-batch, counts for at least so many nats (Kingma
            et al. 2016, https://arxiv.org/abs/1606.04934, appendix C.8); for the standard normal prior only.
        draws: `rebuilt` decodes as many samples of the prior, too, which must be the standard normal.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        latent_shape: tuple[int, int, int],
        beta: float = 1.0,
        warmup_steps: int = 0,
        free_bits: float = 0.0,
        draws: bool = False,
    ):
        if not (beta >= 0 and warmup_steps >= 0 and free_bits >= 0):
            raise ValueError(f"{beta=}, {warmup_steps=} and {free_bits=} must not be negative.")
        self.likelihood, self.latent_shape = likelihood, tuple(latent_shape)
        self.beta, self.warmup_steps, self.free_bits, self.draws = beta, warmup_steps, free_bits, draws

    def rebuilt(self, autoencoder: nn.Module, images: Tensor, step: Step) -> Rebuilt:
        """For a network called as `AutoencoderWithPrior`."""
        x = _prepared(self.likelihood, images, step)
        others = step.randn("prior", x.new_empty(len(x), *self.latent_shape)) if self.draws else None
        coded = autoencoder(x, _noise(x, 1, self.latent_shape, step), others)
        if self.draws and coded.log_prior is not None:
            raise ValueError("draws=True is for the standard normal prior; set draws=False.")
        params = coded.decoded.squeeze(1)
        reconstruction = self.likelihood.log_prob(params, x).mean()
        kl, charged = self._kl(coded)
        fit, rest = -reconstruction / x[0].numel(), self.beta_at(step.number) * charged / x[0].numel()
        logs = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        return Rebuilt(_noted(fit + rest, logs), params, fit, rest, coded.other_decoded)

    def beta_at(self, number: int) -> float:
        """The weight of KL in optimiser step `number`."""
        return self.beta * min(1.0, number / self.warmup_steps) if self.warmup_steps else self.beta

    def _kl(self, coded: Any) -> tuple[Tensor, Tensor]:
        """KL averaged over images, and what of it is charged, () each, of what `AutoencoderWithPrior` returned."""
        if coded.log_prior is not None:
            if self.free_bits:
                raise ValueError(f"free_bits={self.free_bits} is for the standard normal prior; set free_bits=0.")
            kl = -log_ratio(coded.latents, coded.mean, coded.log_variance, coded.log_prior).mean()
            return kl, kl
        each = kl_to_standard_normal(coded.mean, coded.log_variance)  # (B, d, h, w)
        kl = each.sum() / len(each)
        return kl, each.mean(0).clamp(min=self.free_bits).sum() if self.free_bits else kl


class IWAE(Objective):
    """The importance weighted autoencoder (Burda et al. 2016, https://arxiv.org/abs/1509.00519):

        L = -E log( 1/K sum_k p(x, z_k) / q(z_k | x) ) / dimensions,    z_k ~ q(z | x),

    tighter with every sample; K = 1 is the ELBO with KL estimated at the sample.

    Args:
        likelihood: p(x | z).
        latent_shape: (d, h, w), `AutoencoderWithPrior.latent_shape`.
        num_samples: K; the decoder sees K times the batch.

    Raises:
        ValueError: a number out of range.
    """

    players = ("autoencoder",)

    def __init__(self, likelihood: Likelihood, latent_shape: tuple[int, int, int], num_samples: int):
        if num_samples < 1:
            raise ValueError(f"{num_samples=} must be at least 1.")
        self.likelihood, self.latent_shape, self.num_samples = likelihood, tuple(latent_shape), num_samples

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """For images (B, C, H, W) and a network called as `AutoencoderWithPrior`."""
        x = _prepared(self.likelihood, batch["x"], step)
        coded = networks[player](x, _noise(x, self.num_samples, self.latent_shape, step))
        moments = coded.mean, coded.log_variance
        weights = log_weights(self.likelihood, x, coded.decoded, coded.latents, *moments, coded.log_prior)  # (B, K)
        bound = log_mean_exp(weights).mean()
        return _noted(-bound / x[0].numel(), {"bound": bound, "elbo": weights.mean()})


class Reconstruction(AutoencoderObjective):
    """The autoencoder, L = -log p(x | z) / dimensions with z the encoder's mean for x; or of x corrupted, the denoising
    autoencoder (Vincent et al. 2008, https://doi.org/10.1145/1390156.1390294).

    Args:
        likelihood: p(x | z).
        corruption: what the encoder sees of x: `none`, all; `gaussian`, x + strength noise; `masking`, each position
            black (-1) with probability `strength`, in all its channels.
        strength: of the corruption; in [0, 1] for `masking`.

    Raises:
        ValueError: an unknown corruption or a number out of range.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        corruption: Literal["none", "gaussian", "masking"] = "none",
        strength: float = 0.3,
    ):
        if corruption not in _CORRUPTIONS:
            raise ValueError(f"{corruption=} is not known. Choose one of: {', '.join(_CORRUPTIONS)}.")
        if strength < 0 or (corruption == "masking" and strength > 1):
            raise ValueError(f"{strength=} must not be negative, nor above 1 for corruption='masking'.")
        self.likelihood, self.corruption, self.strength = likelihood, corruption, strength

    def rebuilt(self, autoencoder: nn.Module, images: Tensor, step: Step) -> Rebuilt:
        """For a network called as `AutoencoderWithPrior`."""
        x = _prepared(self.likelihood, images, step)
        params = autoencoder(_CORRUPTIONS[self.corruption](x, self.strength, step)).decoded.squeeze(1)
        reconstruction = self.likelihood.log_prob(params, x).mean()
        fit = -reconstruction / x[0].numel()
        return Rebuilt(_noted(fit, {"reconstruction": reconstruction}), params, fit, torch.zeros_like(fit))


class VectorQuantized(AutoencoderObjective):
    """The vector-quantised autoencoder (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937):

        L = -log p(x | e(x)) / dimensions + commitment commit_loss

    with e(x) the codes nearest to the encoder's output h and commit_loss = mean (h - sg[e])^2, as the network reports
    it. The codebook learns by itself (`VQAutoencoderModel`, moving averages) or through commit_loss (diffusers'
    VQModel, which adds 1/4 mean (sg[h] - e)^2).

    Args:
        likelihood: p(x | z).
        commitment: weight of commit_loss.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, likelihood: Likelihood, commitment: float = 0.25):
        if commitment < 0:
            raise ValueError(f"{commitment=} must not be negative.")
        self.likelihood, self.commitment = likelihood, commitment

    def rebuilt(self, autoencoder: nn.Module, images: Tensor, step: Step) -> Rebuilt:
        """For a network called as diffusers' VQModel."""
        x = _prepared(self.likelihood, images, step)
        output = autoencoder(x)
        reconstruction, commit = self.likelihood.log_prob(output.sample, x).mean(), output.commit_loss.float()
        fit, rest = -reconstruction / x[0].numel(), self.commitment * commit
        logs = {"reconstruction": reconstruction, "commitment": commit}
        if (perplexity := getattr(output, "perplexity", None)) is not None:
            logs["perplexity"] = perplexity
        return Rebuilt(_noted(fit + rest, logs), output.sample, fit, rest)


def _noted(value: Tensor, logs: Mapping[str, Tensor]) -> Loss:
    """A loss with itself and others in its logs."""
    return Loss(value, {name: log.detach() for name, log in {"loss": value, **logs}.items()})


def _prepared(likelihood: Likelihood, images: Tensor, step: Step) -> Tensor:
    return likelihood.prepare(images, lambda like: step.uniform("binarize", like))


def _noise(x: Tensor, count: int, latent_shape: tuple[int, int, int], step: Step) -> Tensor:
    """Standard normal noise (B, K, d, h, w)."""
    return step.randn("latent", x.new_empty(len(x), count, *latent_shape))


def _masked(x: Tensor, strength: float, step: Step) -> Tensor:
    return torch.where(step.uniform("corruption", x[:, :1]) < strength, -1.0, x)


_CORRUPTIONS = {
    "none": lambda x, strength, step: x,
    "gaussian": lambda x, strength, step: x + strength * step.randn("corruption", x),
    "masking": _masked,
}
