"""Options of autoencoders, and which of them mean something together. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import option


@dataclasses.dataclass
class AutoencoderArgs:
    """Network and likelihood"""

    model: Literal["mlp", "conv", "kl", "vq", "vqmodel"] = option(
        "mlp", "mlp, conv: one latent vector an image; kl: a grid of them; vq, vqmodel: a grid of codes"
    )
    model_size: Literal["s", "m", "l"] = option("s", "width, depth and latent dimension; mlp s on MNIST is 784-400-20")
    latent_channels: int | None = option(None, "dimension of a latent vector or code; default: that of the size")
    likelihood: Literal["bernoulli", "gaussian", "gaussian_learned", "discretized_logistic_mixture"] = option(
        "bernoulli", "p(x | z); bernoulli: pixels made binary, anew each time; bits per dimension need another"
    )
    likelihood_sigma: float = option(0.1, "of gaussian, for pixels in [-1, 1]")
    likelihood_components: int = option(5, "of discretized_logistic_mixture")


@dataclasses.dataclass
class CodingArgs:
    """Objective"""

    objective: Literal["vq", "elbo"] = option("vq", "vector-quantised or variational autoencoder")
    beta: float = option(1.0, "weight of KL; 0: off")
    beta_warmup_steps: int = option(0, "optimiser steps over which beta grows from 0")
    free_bits: float = option(0.0, "nats of KL that each latent dimension has for nothing")
    commitment: float = option(0.25, "of vq: weight of the encoder's distance from its codes")


@dataclasses.dataclass
class BoundArgs(CodingArgs):
    """Objective"""

    objective: Literal["elbo", "iwae", "ae", "dae", "vq"] = option(
        "elbo", "variational, importance-weighted, plain, denoising or vector-quantised autoencoder"
    )
    num_importance_samples: int = option(5, "K of iwae")
    corruption: Literal["gaussian", "masking"] = option("masking", "what the encoder of dae sees of an image")
    corruption_strength: float = option(0.3, "share of pixels that are masked, or deviation of the noise")


@dataclasses.dataclass
class PriorArgs:
    """Prior"""

    prior: Literal["mixture", "standard_normal", "vamp"] = option(
        "mixture", "of samples; mixture: Gaussians fitted to the latents after training under the standard normal"
    )
    mixture_components: int = option(10, "Gaussians of the mixture")
    num_pseudo_inputs: int = option(500, "training images at first, then learned: their posteriors make up vamp")


@dataclasses.dataclass
class HeldOutArgs:
    """Figures after training"""

    eval_split: str | None = option(
        None, "split to measure, e.g. test, or 'train[1500:]'; default: test, or the training images without one"
    )
    eval_images: int = option(1000, "images of it, at most")
    likelihood_samples: int = option(100, "latents an image for the importance-sampled log-likelihood")


BELONGS = {
    "beta": ("objective", ("elbo",)),
    "beta_warmup_steps": ("objective", ("elbo",)),
    "free_bits": ("objective", ("elbo",)),
    "num_importance_samples": ("objective", ("iwae",)),
    "corruption": ("objective", ("dae",)),
    "corruption_strength": ("objective", ("dae",)),
    "commitment": ("objective", ("vq",)),
    "prior": ("objective", ("elbo", "iwae")),
    "likelihood_samples": ("objective", ("elbo", "iwae")),
    "eval_steps": ("objective", ("elbo", "iwae")),
    "mixture_components": ("prior", ("mixture",)),
    "num_pseudo_inputs": ("prior", ("vamp",)),
    "likelihood_sigma": ("likelihood", ("gaussian",)),
    "likelihood_components": ("likelihood", ("discretized_logistic_mixture",)),
}
"""Options that mean something only with some values of another. (eval_steps measures samples of the prior that a model
is trained under, and only these two objectives have one.)"""
