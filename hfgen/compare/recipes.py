"""The rows of a comparison: families and ablations, each as options of a front door of `hfgen train`."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..registry import FAMILIES

HELD_OUT = "the held-out split"
"""Placeholder in options for the name of the held-out split."""
SMALL_SIDE = 16
"""Images whose shorter side is below this many pixels take a family's first recipe, all others the second."""


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One row of a report.

    Attributes:
        study: "families", or the name of an ablation.
        family: its name in `--families`.
        name: its name for people.
        run: folder of its training; rows that differ in sampling alone share one.
        door: the family of `hfgen train`.
        options: options of that front door, without data, budget and folder.
        setting: in an ablation, the value on its axis.
        steps: sampling steps; None: the pipeline's own.
        first: the training whose pipeline this one begins with; None: it begins from nothing.
        share: of the budget; the first training has the rest.
    """

    study: str
    family: str
    name: str
    run: str
    door: str
    options: Mapping[str, Any]
    setting: float | str | None = None
    steps: int | None = None
    first: "Configuration | None" = None
    share: float = 1.0


_AVERAGE = {"train_batch_size": 64, "lr_warmup_steps": 100, "ema_max_decay": 0.995}
_SHORT = {"learning_rate": 0.002, **_AVERAGE}
_RECONSTRUCTION = {"held_out_split": HELD_OUT, "num_likelihood": 256}
_ELBO = {**_RECONSTRUCTION, "likelihood_samples": 20}
_FAST = {"mixed_precision": "bf16"}
_VAE = {"model_size": "s", "likelihood": "discretized_logistic_mixture", "prior": "mixture", **_SHORT, **_ELBO}
_SMALL, _LARGE = {"model": "mlp", "latent_channels": 8}, {"model": "conv"}
_DENOISER = {"model": "patch_unet", "model_size": "xs", **_SHORT}
_COSINE = {"path": "cosine", "prediction_type": "v_prediction", "scheduler": "dpmsolver++"}
_STRAIGHT = {"path": "straight", "prediction_type": "flow_prediction", "scheduler": "rectified_flow"}
# Samples of several numbers of steps are measured by the comparison itself.
_FLOW_MAP = {"scheduler": "flow_map", "features": "none", "num_samples": 64, **_DENOISER}
_GAN = {"model": "dcgan", "model_size": "xs", **_AVERAGE}
# No perceptual loss: its default features are those that samples are measured with, and would favour the model.
_DISCRIMINATOR = {"perceptual": 0.0, **_AVERAGE}
_FLOW = {"model": "transformer", **_SHORT, **_RECONSTRUCTION}
_XS, _S = {"model_size": "xs"}, {"model_size": "s"}
_ENERGY = {"form": "field", "scheduler": "nesterov", **_DENOISER}
_AR = {"model": "transformer", **_SHORT, **_RECONSTRUCTION}
_VQ = {"objective": "vq", **_DISCRIMINATOR, **_RECONSTRUCTION}
_VAE_GAN = {"objective": "elbo", "model_size": "s", **_DISCRIMINATOR, **_ELBO}


class Recipe(NamedTuple):
    """How a family is trained for a comparison.

    Attributes:
        name: for people.
        door: the family of `hfgen train`.
        small, large: its options for small images, and for larger ones.
        first: the recipe of the training whose pipeline this one begins with; None: it begins from nothing.
        share: of the budget; the first training has the rest.
    """

    name: str
    door: str
    small: Mapping[str, Any]
    large: Mapping[str, Any]
    first: "Recipe | None" = None
    share: float = 1.0


_VQ_VAE = {"model": "vq", "objective": "vq", **_SHORT, **_RECONSTRUCTION}
_STUDENT = {"student": "dcgan", "model_size": "xs", "method": "dmd", "adversarial_weight": 1.0}
_STUDENT |= {"features": "none", "num_samples": 64, **_AVERAGE}

_CODES = Recipe("VQ-GAN", "vqgan", _VQ, _VQ | _FAST)
_TEACHER = Recipe("Rectified flow", "diffusion", _DENOISER | _STRAIGHT, _DENOISER | _STRAIGHT | _FAST)
_PRIOR = ("ar", _AR | _XS, _AR | _S | _FAST)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "vae": Recipe("VAE", "vae", _VAE | _SMALL, _VAE | _LARGE | _FAST),
        "gan": Recipe("GAN", "gan", _GAN, _GAN | _FAST),
        "diffusion": Recipe("Diffusion", "diffusion", _DENOISER | _COSINE, _DENOISER | _COSINE | _FAST),
        "rectified_flow": _TEACHER,
        "flow_map": Recipe("Flow map", "flow_map", _FLOW_MAP, _FLOW_MAP | _FAST),
        "distill": Recipe("One-step student", "distill", _STUDENT, _STUDENT | _FAST, _TEACHER, 0.5),
        "flow": Recipe("Normalizing flow", "flow", _FLOW | _XS, _FLOW | _S | _FAST),
        "ar": Recipe("Autoregressive transformer", "ar", _AR | _XS, _AR | _S | _FAST),
        "energy": Recipe("Equilibrium matching", "energy", _ENERGY, _ENERGY | _FAST),
        "vqvae": Recipe("VQ-VAE and prior", *_PRIOR, Recipe("VQ-VAE", "vae", _VQ_VAE, _VQ_VAE | _FAST), 0.6),
        "vqgan": Recipe("VQ-GAN and prior", *_PRIOR, _CODES, 0.6),
        "vaegan": Recipe("VAE-GAN", "vqgan", _VAE_GAN | _SMALL, _VAE_GAN | _LARGE | _FAST),
    }
)
"""The recipes of families. None is class-conditional, so that all solve the same problem."""


def families(side: int, names: list[str] | None = None) -> list[Configuration]:
    """Return the recipes of families for images whose shorter side is `side` pixels.

    Args:
        side: pixels.
        names: families; None or empty: all.

    Raises:
        ValueError: a family without a recipe, or with a front door that this installation lacks.
    """
    available = [name for name, recipe in RECIPES.items() if FAMILIES.keys() >= _doors(recipe)]
    unknown = [name for name in names or () if name not in available]
    if unknown:
        raise ValueError(
            f"families={','.join(names)!r}: no recipe for {', '.join(unknown)}. There are {', '.join(available)}."
        )
    return [_recipe(name, side) for name in dict.fromkeys(names or available)]


def _doors(recipe: Recipe) -> set[str]:
    """Return the front doors of a recipe's trainings."""
    return {recipe.door} | (set() if recipe.first is None else _doors(recipe.first))


def _recipe(family: str, side: int) -> Configuration:
    """Return a family's recipe for images whose shorter side is `side` pixels."""
    return _configuration(RECIPES[family], family, family, side)


def _configuration(recipe: Recipe, family: str, run: str, side: int) -> Configuration:
    options = recipe.large if side >= SMALL_SIDE else recipe.small
    first = None if recipe.first is None else _configuration(recipe.first, family, f"{run}-first", side)
    return Configuration("families", family, recipe.name, run, recipe.door, options, first=first, share=recipe.share)


def _variant(study: str, base: Configuration, label: str, setting: float | str, **options: Any) -> Configuration:
    """Return `base` with some options replaced; it is trained in a folder of its own."""
    run = f"{study}-{base.family}-{label}".replace(" ", "_")
    merged = {**base.options, **options}
    return dataclasses.replace(
        base, study=study, name=f"{base.name}, {label}", run=run, options=merged, setting=setting
    )


def _kl(side: int) -> list[Configuration]:
    base, labels = _recipe("vae", side), {0.0: "KL off", 0.1: "beta 0.1", 0.5: "beta 0.5", 1.0: "KL on", 4.0: "beta 4"}
    return [_variant("kl", base, label, beta, beta=beta, prior="standard_normal") for beta, label in labels.items()]


def _latent_size(side: int) -> list[Configuration]:
    base = _recipe("vae", side)
    sizes = (2, 4, 8, 16) if side < SMALL_SIDE else (2, 8, 20, 64)
    return [_variant("latent_size", base, f"{size} latents", size, latent_channels=size) for size in sizes]


def _prior(side: int) -> list[Configuration]:
    base, labels = _recipe("vae", side), {"standard_normal": "standard normal prior", "vamp": "VampPrior"}
    mixture = dataclasses.replace(base, study="prior", name=f"{base.name}, fitted prior", setting="mixture")
    return [mixture, *(_variant("prior", base, label, prior, prior=prior) for prior, label in labels.items())]


def _steps(side: int) -> list[Configuration]:
    bases = [_recipe(family, side) for family in ("diffusion", "rectified_flow")]
    return [
        dataclasses.replace(base, study="steps", name=f"{base.name}, {n} step{'s' * (n > 1)}", setting=n, steps=n)
        for base in bases
        for n in (1, 2, 3, 5, 10, 20, 50)
    ]


def _path(side: int) -> list[Configuration]:
    base = _recipe("diffusion", side)
    labels = {"vp": "linear beta", "cosine": "cosine", "straight": "straight"}
    return [_variant("path", base, f"{label} path", label, path=path) for path, label in labels.items()]


def _prediction(side: int) -> list[Configuration]:
    base = _recipe("diffusion", side)
    kinds = ("sample", "epsilon", "v_prediction", "flow_prediction")
    return [_variant("prediction", base, kind, kind, prediction_type=kind) for kind in kinds]


ABLATIONS = MappingProxyType(
    {
        "kl": ("Weight of the KL term", "beta", _kl),
        "latent_size": ("Size of the latent", "dimensions of the latent", _latent_size),
        "prior": ("Prior of the latents", "prior", _prior),
        "steps": ("Number of steps", "steps", _steps),
        "path": ("Noise path", "path", _path),
        "prediction": ("What the network predicts", "prediction", _prediction),
    }
)
"""Name in `--ablation` -> title, label of the axis, and a function: shorter side in pixels -> configurations."""


def ablation(name: str, side: int) -> list[Configuration]:
    """Return the configurations of an ablation. They differ from a family's recipe in one option.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ABLATIONS:
        raise ValueError(f"ablation={name!r} is not known. Choose from {', '.join(ABLATIONS)}.")
    _, _, build = ABLATIONS[name]
    return build(side)
