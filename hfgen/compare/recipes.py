"""What is compared: families and ablations as configurations of the ordinary front doors."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..registry import FAMILIES

HELD_OUT = "the held-out split"
"""Stands in options for that split, whatever it is called."""
SMALL = 16
"""Images of a shorter side below this get the first recipe of a family, all others the second."""


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One row of a report.

    Attributes:
        study: "families", or the name of an ablation.
        family: what `--families` calls it.
        name: in words.
        run: folder of its training; rows that only draw differently share one.
        door: the family of `hfgen train`.
        options: of that front door, beside data, budget and folder.
        setting: in an ablation, the value on its axis.
        steps: steps to draw with; None: the pipeline's own.
    """

    study: str
    family: str
    name: str
    run: str
    door: str
    options: Mapping[str, Any]
    setting: float | str | None = None
    steps: int | None = None


_AVERAGE = {"train_batch_size": 64, "lr_warmup_steps": 100, "ema_max_decay": 0.995}
_SHORT = {"learning_rate": 0.002, **_AVERAGE}
_SHOWN = {"eval_split": HELD_OUT, "eval_images": 256}
_BOUND = {**_SHOWN, "likelihood_samples": 20}
_FAST = {"mixed_precision": "bf16"}
_VAE = {"model_size": "s", "likelihood": "discretized_logistic_mixture", "prior": "mixture", **_SHORT, **_BOUND}
_SMALL, _LARGE = {"model": "mlp", "latent_channels": 8}, {"model": "conv"}
_NOISE = {"model": "patch_unet", "model_size": "xs", **_SHORT}
_COSINE = {"path": "cosine", "prediction_type": "v_prediction", "scheduler": "dpmsolver++"}
_STRAIGHT = {"path": "straight", "prediction_type": "flow_prediction", "scheduler": "rectified_flow"}
_GAN = {"model": "dcgan", "model_size": "xs", **_AVERAGE}
# By default a perceptual loss sees the features that samples are measured with, and would be graded by itself.
_CRITIC = {"perceptual": 0.0, **_AVERAGE}
_VQ = {"objective": "vq", **_CRITIC, **_SHOWN}
_VAE_GAN = {"objective": "elbo", "model_size": "s", **_CRITIC, **_BOUND}

RECIPES: Mapping[str, tuple[str, str, Mapping[str, Any], Mapping[str, Any]]] = MappingProxyType(
    {
        "vae": ("VAE", "vae", _VAE | _SMALL, _VAE | _LARGE | _FAST),
        "gan": ("GAN", "gan", _GAN, _GAN | _FAST),
        "diffusion": ("Diffusion", "diffusion", _NOISE | _COSINE, _NOISE | _COSINE | _FAST),
        "rectified_flow": ("Rectified flow", "diffusion", _NOISE | _STRAIGHT, _NOISE | _STRAIGHT | _FAST),
        "vqgan": ("VQ-GAN", "vqgan", _VQ, _VQ | _FAST),
        "vaegan": ("VAE-GAN", "vqgan", _VAE_GAN | _SMALL, _VAE_GAN | _LARGE | _FAST),
    }
)
"""Family -> its name in words, its front door, and options for small images and for larger ones. No recipe tells its
networks the classes, so that all answer the same question."""


def families(side: int, names: list[str] | None = None) -> list[Configuration]:
    """The recipes of these families, by default of all that can be trained, for images of this shorter side.

    Raises:
        ValueError: a family without a recipe, or whose front door is not there.
    """
    there = [name for name, (_, door, *_) in RECIPES.items() if door in FAMILIES]
    unknown = [name for name in names or () if name not in there]
    if unknown:
        raise ValueError(
            f"families={','.join(names)!r}: no recipe for {', '.join(unknown)}. There are {', '.join(there)}."
        )
    return [_recipe(name, side) for name in dict.fromkeys(names or there)]


def _recipe(family: str, side: int) -> Configuration:
    name, door, *options = RECIPES[family]
    return Configuration("families", family, name, family, door, options[side >= SMALL])


def _changed(study: str, base: Configuration, word: str, setting: float | str, **options: Any) -> Configuration:
    """The recipe with some options changed, a training of its own."""
    run = f"{study}-{base.family}-{word}".replace(" ", "_")
    merged = {**base.options, **options}
    return dataclasses.replace(base, study=study, name=f"{base.name}, {word}", run=run, options=merged, setting=setting)


def _kl(side: int) -> list[Configuration]:
    base, words = _recipe("vae", side), {0.0: "KL off", 0.1: "beta 0.1", 0.5: "beta 0.5", 1.0: "KL on", 4.0: "beta 4"}
    return [_changed("kl", base, word, beta, beta=beta, prior="standard_normal") for beta, word in words.items()]


def _latent_size(side: int) -> list[Configuration]:
    base = _recipe("vae", side)
    sizes = (2, 4, 8, 16) if side < SMALL else (2, 8, 20, 64)
    return [_changed("latent_size", base, f"{size} latents", size, latent_channels=size) for size in sizes]


def _prior(side: int) -> list[Configuration]:
    base, words = _recipe("vae", side), {"standard_normal": "standard normal prior", "vamp": "VampPrior"}
    fitted = dataclasses.replace(base, study="prior", name=f"{base.name}, fitted prior", setting="mixture")
    return [fitted, *(_changed("prior", base, word, prior, prior=prior) for prior, word in words.items())]


def _steps(side: int) -> list[Configuration]:
    bases = [_recipe(family, side) for family in ("diffusion", "rectified_flow")]
    return [
        dataclasses.replace(base, study="steps", name=f"{base.name}, {n} step{'s' * (n > 1)}", setting=n, steps=n)
        for base in bases
        for n in (1, 2, 3, 5, 10, 20, 50)
    ]


def _path(side: int) -> list[Configuration]:
    base = _recipe("diffusion", side)
    words = {"vp": "linear beta", "cosine": "cosine", "straight": "straight"}
    return [_changed("path", base, f"{word} path", word, path=path) for path, word in words.items()]


def _prediction(side: int) -> list[Configuration]:
    base = _recipe("diffusion", side)
    kinds = ("sample", "epsilon", "v_prediction", "flow_prediction")
    return [_changed("prediction", base, kind, kind, prediction_type=kind) for kind in kinds]


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
"""What `--ablation` may name: title, name of the axis, and the configurations for images of a shorter side."""


def ablation(name: str, side: int) -> list[Configuration]:
    """The configurations of an ablation; each changes one thing of a family's recipe, and keeps the rest.

    Raises:
        ValueError: no such ablation.
    """
    if name not in ABLATIONS:
        raise ValueError(f"ablation={name!r} is not known. Choose {', '.join(ABLATIONS)}.")
    return ABLATIONS[name][2](side)
