"""Representation alignment: a hidden layer of a denoiser learns to know what a frozen network sees."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, check_range
from .base import Loss, Objective, Step
from .wrapped import Wrapped


class Alignment(Wrapped):
    """The loss of another objective, and the mean distance of directions between a hidden layer of the denoiser, seen
    through a perceptron, and features of the clean image (REPA, Yu et al. 2024, https://arxiv.org/abs/2410.06940):

        L = L_inner + weight E (1/N) sum_n [1 - cos(h(x_t)_n, e(x_0)_n)]

    over the N patches of the image. The denoiser is an `AlignedDenoiser`, whose grid is that of the features.

    Args:
        inner: the other objective, of images "x" (B, C, H, W) and of one network.
        autoencoder: frozen; gives e: a `MaskedAutoencoderModel`, or a network with `encode(x)` -> (B, N, D) and `grid`.
        weight: as above; the paper's is 0.5.

    Raises:
        ValueError: `weight` is not above 0, the objective has several players, or the network has no grid.
    """

    call = None

    @checked
    def __init__(self, inner: Objective, autoencoder: nn.Module, weight: float = 0.5):
        check_range("weight", weight, ABOVE_0)
        if len(inner.players) != 1:
            raise ValueError(f"{type(inner).__name__} has the players {', '.join(inner.players)}; one is aligned.")
        if not hasattr(autoencoder, "grid") or not hasattr(autoencoder, "encode"):
            raise ValueError(f"{type(autoencoder).__name__} has no encode and no grid. Give a MaskedAutoencoderModel.")
        super().__init__(inner)
        self.autoencoder, self.weight = autoencoder.eval().requires_grad_(False), weight

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return L, with the distance of directions as "alignment" in the logs: from 0 to 2."""
        seen = _Seen(networks[player])
        inner = self.inner.loss(player, {**networks, player: seen}, batch, step)
        distance = 1 - F.cosine_similarity(seen.features.float(), self._targets(batch["x"]).float(), dim=1).mean()
        value = inner.value + self.weight * distance
        return Loss(value, {**inner.logs, "alignment": distance.detach()})

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        """Return e(x_0) as maps (B, D, rows, columns)."""
        self.autoencoder.to(images.device)
        grid = self.autoencoder.grid
        return self.autoencoder.encode(images).mT.unflatten(2, (grid.rows, grid.columns))


class _Seen:
    """A network that keeps the features of its last call."""

    def __init__(self, network: nn.Module):
        self.network, self.features = network, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.network(*args, **kwargs)
        self.features = output.features
        return output
