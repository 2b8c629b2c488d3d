"""Objectives of latents: any objective behind a frozen autoencoder."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..distributions.latents import coded, scale_of
from ..utils.arguments import checked
from .base import Loss, Objective, Step
from .wrapped import Wrapped


class Encoded(Wrapped):
    """The loss of another objective on normalised latents of images, of mean 0 and deviation 1 in each channel:

        z ~ q(z | x),    L = inner((z - m) / s).

    `Encoded(Denoising(...), autoencoder)` is latent diffusion (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).
    m and s are those of the autoencoder's configuration, see `hfgen.distributions.latents`. Players, turns, condition
    and state are those of the inner objective.

    Items of a batch are images (B, C, H, W), which are encoded here, or latents (B, d, h, w) that were encoded before:
    those of a data set that says so with an entry "encoded".

    Args:
        inner: the objective of latents.
        autoencoder: frozen; called as diffusers' `AutoencoderKL`, or its `VQModel`, whose latents are not quantised.
        variational: whether z is drawn from q(z | x); otherwise it is its mean.

    Raises:
        ValueError: the autoencoder states no scale of its latents; says how it is measured.
    """

    call = None

    @checked
    def __init__(self, inner: Objective, autoencoder: nn.Module, variational: bool = True):
        scale_of(autoencoder)  # refuses one without
        super().__init__(inner)
        self.autoencoder, self.variational = autoencoder.eval().requires_grad_(False), variational

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the inner loss for "x" (B, C, H, W) or, with "encoded", (B, d, h, w)."""
        items = {name: value for name, value in batch.items() if name not in ("x", "encoded")}
        latents = batch["x"] if "encoded" in batch else self._drawn(batch["x"], step)
        scale = scale_of(self.autoencoder)  # read each time: the configuration is the one place that says it
        return self.inner.loss(player, networks, {**items, "x": scale.normalise(latents)}, step)

    @torch.no_grad()
    def _drawn(self, images: Tensor, step: Step) -> Tensor:
        """Return z ~ q(z | x) for images (B, C, H, W)."""
        self.autoencoder.to(images.device)
        mean, deviation = (value.to(images.device) for value in coded(self.autoencoder, images, self.variational))
        return mean + deviation * step.randn("encoding", mean)
