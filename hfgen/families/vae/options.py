"""Options of autoencoders. No torch here: `--help` reads this file."""

import dataclasses
from typing import Literal

from ...options import POSITIVE, DataArgs, Options, SampleArgs, TrainArgs, option, variant
from ...utils.ranges import ABOVE_0, AT_LEAST_0, COUNT, COUNT_OR_0, TWO_OR_MORE


@dataclasses.dataclass
class AutoencoderArgs(Options):
    """Network and likelihood"""

    COMMON = ("model", "model_size", "latent_channels", "likelihood")

    model: Literal["mlp", "conv", "kl", "vq", "vqmodel"] | None = option(
        None,
        "mlp, conv: one latent vector per image; kl: a grid of them; vq, vqmodel: a grid of codes; default: by the "
        "data, conv for photographs",
    )
    model_size: Literal["s", "m", "l"] = option("s", "width, depth and latent dimension; mlp s on MNIST: 784-400-20")
    latent_channels: int | None = option(
        None, "dimension of a latent vector or code; default: that of the size", range=COUNT
    )
    likelihood: Literal["bernoulli", "gaussian", "gaussian_learned", "discretized_logistic_mixture"] | None = option(
        None,
        "p(x | z); bernoulli: binary pixels, drawn in each step; bits per dimension need one of the others; default: "
        "by the data, discretized_logistic_mixture for photographs",
    )
    likelihood_sigma: float = option(
        0.1,
        "standard deviation of p(x | z), for pixels in [-1, 1]",
        only_with={"likelihood": ("gaussian",)},
        range=ABOVE_0,
    )
    likelihood_components: int = option(
        5,
        "logistic distributions in the mixture",
        only_with={"likelihood": ("discretized_logistic_mixture",)},
        range=COUNT,
    )


@dataclasses.dataclass
class CodingArgs(Options):
    """Objective"""

    COMMON = ("objective", "beta")

    objective: Literal["vq", "elbo"] = option("vq", "vector-quantised or variational autoencoder")
    beta: float = option(1.0, "weight of KL; 0: off", only_with={"objective": ("elbo",)}, range=AT_LEAST_0)
    beta_warmup_steps: int = option(
        0,
        "optimiser steps over which beta grows from 0",
        only_with={"objective": ("elbo",), "beta": POSITIVE},
        range=COUNT_OR_0,
    )
    free_bits: float = option(
        0.0,
        "least KL in nats of each latent dimension in the loss",
        only_with={"objective": ("elbo",), "beta": POSITIVE},
        range=AT_LEAST_0,
    )
    commitment: float = option(
        0.25, "weight of the encoder's distance from its codes", only_with={"objective": ("vq",)}, range=AT_LEAST_0
    )


@dataclasses.dataclass
class BoundArgs(CodingArgs):
    """Objective"""

    objective: Literal["elbo", "iwae", "ae", "dae", "vq"] = variant(
        CodingArgs,
        "objective",
        "elbo",
        "variational, importance-weighted, plain, denoising or vector-quantised autoencoder",
    )
    num_importance_samples: int = option(5, "latents K per image", only_with={"objective": ("iwae",)}, range=COUNT)
    corruption: Literal["gaussian", "masking"] = option(
        "masking", "corruption of the encoder's input", only_with={"objective": ("dae",)}
    )
    corruption_strength: float = option(
        0.3,
        "share of pixels that are masked, or standard deviation of the noise",
        only_with={"objective": ("dae",)},
        range=AT_LEAST_0,
    )


@dataclasses.dataclass
class PriorArgs(Options):
    """Prior"""

    COMMON = ("prior",)

    prior: Literal["mixture", "standard_normal", "vamp"] = option(
        "mixture",
        "prior of samples; mixture: Gaussians fitted to the latents after training under a standard normal",
        only_with={"objective": ("elbo", "iwae")},
    )
    mixture_components: int = option(
        10,
        "Gaussians of the mixture",
        only_with={"prior": ("mixture",), "objective": ("elbo", "iwae", "ae", "dae")},
        resumable=True,
        range=COUNT,
    )
    num_pseudo_inputs: int = option(
        500,
        "inputs whose posteriors are the components of vamp: training images at first, then learned",
        only_with={"prior": ("vamp",)},
        range=COUNT,
    )


@dataclasses.dataclass
class HeldOutArgs(Options):
    """Measurements after training"""

    COMMON = ("held_out_split", "num_likelihood")

    held_out_split: str | None = option(
        None,
        "split to measure, such as test or 'train[1500:]'; default: test, else the training images",
        resumable=True,
        former=("eval_split",),
    )
    num_likelihood: int = option(
        1000, "number of images to measure, at most", resumable=True, range=TWO_OR_MORE, former=("eval_images",)
    )
    likelihood_samples: int = option(
        100,
        "latents per image for the importance-sampled log-likelihood",
        only_with={"objective": ("elbo", "iwae")},
        resumable=True,
        range=COUNT,
    )


@dataclasses.dataclass
class PriorSampleArgs(SampleArgs):
    """Samples"""

    # --eval_steps draws from the prior of the training, which other objectives do not have
    eval_steps: int = variant(SampleArgs, "eval_steps", 0, only_with={"objective": ("elbo", "iwae")})


DESCRIPTION = "Train an autoencoder on images: variational, importance-weighted, plain, denoising or vector-quantised."
EXAMPLE = "hfgen train vae --config vae_digits --max_train_steps 500"
GROUPS = (DataArgs, AutoencoderArgs, BoundArgs, PriorArgs, HeldOutArgs, PriorSampleArgs, TrainArgs)
