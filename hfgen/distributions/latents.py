"""Latents of any autoencoder as items: what an encoder says of them, and the scale on which they are modelled.

Diffusion models of latents (Rombach et al. 2022, https://arxiv.org/abs/2112.10752) need latents of about unit size.
Here the scale is measured: each channel c of z ~ q(z | x), over images and positions, has a mean m_c and a deviation
s_c, and what is modelled is (z_c - m_c) / s_c, of mean 0 and deviation 1. Both are entries of the autoencoder's own
configuration, under diffusers' names `latents_mean` and `latents_std`, with the number of images that they were
measured on. A class of networks that takes no such arguments has them with an underscore before the name, so that
diffusers loads it without a warning.
"""

import dataclasses
import inspect
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from .likelihoods import upcast

LEAST_DEVIATION = 1e-6
"""Least deviation of a channel that is not taken for constant."""

NEUTRAL_FACTOR = 1.0
"""The `scaling_factor` that leaves latents as they are."""


class Coded(NamedTuple):
    """Moments of q(z | x).

    Args:
        mean, deviation (B, d, h, w): deviations are 0 where an encoder says no distribution.
    """

    mean: Tensor
    deviation: Tensor


@checked
@dataclasses.dataclass(frozen=True)
class LatentScale:
    """The scale of latents.

    Args:
        mean, deviation: m_c and s_c of each channel.
        images: number of images that they were measured on; None: the configuration does not say it.

    Raises:
        ValueError: numbers that are not finite, deviations that are not above 0, or not one of each for a channel.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    images: int | None = None

    def __post_init__(self):
        sound = all(math.isfinite(value) for value in (*self.mean, *self.deviation))
        if not sound or len(self.mean) != len(self.deviation) or not all(value > 0 for value in self.deviation):
            raise ValueError(
                f"latents_mean={list(self.mean)} and latents_std={list(self.deviation)} must be finite numbers, one of "
                "each for a channel, and deviations above 0. Measure them again."
            )

    def normalise(self, latents: Tensor) -> Tensor:
        """Return (z - m) / s for latents z (B, d, ...)."""
        mean, deviation = self._like(latents)
        return (latents - mean) / deviation

    def restore(self, items: Tensor) -> Tensor:
        """Return s x + m, the latents of normalised ones x (B, d, ...)."""
        mean, deviation = self._like(items)
        return items * deviation + mean

    def log_volume(self, shape: tuple[int, ...]) -> float:
        """Return log |dz / dx| for latents of shape (d, ...): log p(z) = log p(x) - it, in nats."""
        return sum(map(math.log, self.deviation)) * math.prod(shape[1:])

    def _like(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        if latents.shape[1] not in (len(self.mean), 1) and len(self.mean) > 1:
            raise ValueError(
                f"latents have {latents.shape[1]} channels, and the configuration of the autoencoder states the scale "
                f"of {len(self.mean)}. Measure it again."
            )
        shape = (1, -1, *[1] * (latents.ndim - 2))
        return tuple(
            torch.tensor(values, dtype=torch.float64).to(latents).view(shape) for values in (self.mean, self.deviation)
        )


def coded(autoencoder: nn.Module, images: Tensor, variational: bool = True) -> Coded:
    """Return what an encoder says of images (B, C, H, W), in float32 on the CPU.

    Args:
        autoencoder: called as diffusers' AutoencoderKL, or as its VQModel, whose latents are not quantised yet.
        images: in [-1, 1].
        variational: whether q was trained; otherwise deviations are 0.

    Raises:
        ValueError: the network's output holds no latents.
    """
    place = next(autoencoder.parameters())
    output = autoencoder.encode(images.to(place))
    q = getattr(output, "latent_dist", None)
    found = next((getattr(output, name) for name in ("latents", "latent") if hasattr(output, name)), None)
    if q is None and found is None:
        raise ValueError(f"{type(autoencoder).__name__}.encode returns no latents: no latent_dist, latents or latent.")
    mean = found if q is None else q.mean
    deviation = q.std if q is not None and variational else torch.zeros_like(mean)
    return Coded(upcast(mean).cpu(), upcast(deviation).cpu())


@torch.no_grad()
def latent_shape_of(autoencoder: nn.Module, image_shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the shape (d, h, w) of the latents, by encoding zeros.

    Args:
        autoencoder: see `coded`.
        image_shape: (C, H, W) of the images; None: that of the configuration.

    Raises:
        ValueError: the configuration does not say the shape of images.
    """
    zeros = torch.zeros(1, *(image_shape or image_shape_of(autoencoder)))
    return tuple(coded(autoencoder, zeros).mean.shape[1:])


def image_shape_of(autoencoder: nn.Module) -> tuple[int, int, int]:
    """Return (C, H, W) of the images of an autoencoder. Raises ValueError if its configuration does not say it."""
    if (shape := getattr(autoencoder, "sample_shape", None)) is not None:
        return tuple(shape)
    config = autoencoder.config
    if config.get("in_channels") is None or config.get("sample_size") is None:
        raise ValueError(
            f"The configuration of the autoencoder ({type(autoencoder).__name__}) says no in_channels and sample_size. "
            "State the size of its images there."
        )
    size = config["sample_size"]
    return (config["in_channels"], *(size if isinstance(size, list | tuple) else (size, size)))


@checked
def measured_scale(blocks: Iterable[Coded]) -> LatentScale:
    """Return the scale of latents z ~ q(z | x), over all images and positions, from the moments of q:

        m = E mu,    s^2 = E (mu^2 + sigma^2) - m^2.

    Raises:
        ValueError: there are none, or a channel is constant.
    """
    count, places, first, second = 0, 0, 0.0, 0.0
    for mean, deviation in blocks:
        mu, sigma = (value.double().transpose(0, 1).flatten(1) for value in (mean, deviation))  # (d, B h w)
        count, places = count + len(mean), places + mu.shape[1]
        first, second = first + mu.sum(1), second + (mu.square() + sigma.square()).sum(1)
    if not count:
        raise ValueError("There are no latents to measure.")
    mean = first / places
    deviation = (second / places - mean.square()).clamp(min=0).sqrt()
    if (least := float(deviation.min())) < LEAST_DEVIATION:
        channel = int(deviation.argmin())
        raise ValueError(
            f"Channel {channel} of the latents is constant (deviation {least:.1g}): the autoencoder does not use it. "
            "Train one with fewer latent channels."
        )
    return LatentScale(tuple(mean.tolist()), tuple(deviation.tolist()), count)


@checked
def state_scale(autoencoder: Any, scale: LatentScale) -> None:
    """State the scale in the configuration of an autoencoder, which is saved with it. A `scaling_factor` becomes 1:
    diffusers multiplies by it what `latents_mean` and `latents_std` have normalised."""
    values = {"latents_mean": list(scale.mean), "latents_std": list(scale.deviation), "latents_images": scale.images}
    if "scaling_factor" in _constructor_arguments(autoencoder):
        values["scaling_factor"] = NEUTRAL_FACTOR
    values = {_entry_of_scale(autoencoder, name): value for name, value in values.items()}
    left = [name for name in autoencoder.config.get("_use_default_values", ()) if name not in values]
    autoencoder.register_to_config(**values, _use_default_values=left)


@checked
def stated_scale(autoencoder: Any) -> LatentScale | None:
    """Return the scale that the configuration of an autoencoder states; None if it states none, or has none.

    Besides what `state_scale` writes, diffusers' `scaling_factor` and `shift_factor` are such statements. A factor of
    1, and one that is the default of the class, are none: saving writes them for every autoencoder.

    Raises:
        ValueError: what it states is no scale.
    """
    if (config := getattr(autoencoder, "config", None)) is None:
        return None
    mean, deviation, images = (
        config.get(_entry_of_scale(autoencoder, f"latents_{name}")) for name in ("mean", "std", "images")
    )
    factor, shift = config.get("scaling_factor"), config.get("shift_factor")
    if mean is not None and deviation is not None:
        factor = NEUTRAL_FACTOR if factor is None or _is_default_factor(autoencoder, factor) else float(factor)
        return LatentScale(tuple(map(float, mean)), tuple(float(value) / factor for value in deviation), images)
    if factor is None or (shift is None and (factor == NEUTRAL_FACTOR or _is_default_factor(autoencoder, factor))):
        return None
    if not float(factor) > 0:
        raise ValueError(f"scaling_factor={factor!r} of the autoencoder's configuration must be above 0.")
    count = config.get("latent_channels") or 1
    return LatentScale((float(shift or 0.0),) * count, (1 / float(factor),) * count)


def scale_of(autoencoder: Any, name: str = "The autoencoder") -> LatentScale:
    """Return the scale that the configuration of an autoencoder states.

    Raises:
        ValueError: it states none; says how it is measured.
    """
    if (scale := stated_scale(autoencoder)) is None:
        raise ValueError(
            f"{name} ({type(autoencoder).__name__}) states no statistics of its latents (latents_mean, latents_std), "
            "which a model of latents needs. Measure them on the training images: hfgen train latent "
            "--measure_latents."
        )
    return scale


def _entry_of_scale(autoencoder: Any, name: str) -> str:
    """Return the name of an entry: with an underscore where the class takes no such argument."""
    return name if name in _constructor_arguments(autoencoder) else f"_{name}"


def _constructor_arguments(autoencoder: Any) -> Any:
    return inspect.signature(type(autoencoder).__init__).parameters


def _is_default_factor(autoencoder: Any, factor: Any) -> bool:
    argument = _constructor_arguments(autoencoder).get("scaling_factor")
    return argument is not None and argument.default == factor
