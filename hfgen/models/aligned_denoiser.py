"""A denoiser whose hidden layer is compared with features of a frozen network, as one module."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..utils.arguments import checked
from .hidden_layers import hidden_output, middle_layer, outputs_of


@dataclasses.dataclass
class AlignedOutput(BaseOutput):
    """The output of `AlignedDenoiser`.

    Args:
        sample (B, C, H, W): the prediction.
        features (B, D, rows, columns): the projected hidden layer.
    """

    sample: Tensor
    features: Tensor | None = None  # accelerate rebuilds outputs from one mapping, so other fields need a default


class AlignedDenoiser(nn.Module):
    """A denoiser, and a perceptron of three layers that maps one of its hidden layers to D features at each position
    of a grid: the projection of representation alignment (Yu et al. 2024, https://arxiv.org/abs/2410.06940).

    The perceptron serves the training alone; a pipeline is made of `denoiser`. A hidden layer with another grid is
    interpolated before.

    Args:
        denoiser: any network with a middle, see `middle_layer`, or with the named layer.
        features: D.
        grid: rows and columns.
        example: keyword arguments of a call of the denoiser for one sample, its `sample` and `timestep` among them.
        layer: name of a module of the denoiser, whose output is (B, C, h, w) or tokens (B, N, C), the last of which are
            those of the image; None: the middle.
        hidden_size: width of the perceptron.

    Raises:
        ValueError: the denoiser has no such layer, or one with another output.
    """

    @checked
    def __init__(
        self,
        denoiser: nn.Module,
        features: int,
        grid: tuple[int, int],
        example: Mapping[str, Any],
        layer: str | None = None,
        hidden_size: int = 256,
    ):
        super().__init__()
        self.denoiser, self.layer, self.grid = denoiser, layer or middle_layer(denoiser), grid
        was_training = denoiser.training
        with torch.no_grad(), outputs_of(denoiser.eval(), self.layer) as outputs:
            denoiser(**example)
        denoiser.train(was_training)
        hidden = hidden_output(outputs[-1] if outputs else None, self.layer)
        self.projector = nn.Sequential(
            *(nn.Linear(hidden.shape[1 if hidden.ndim == 4 else 2], hidden_size), nn.SiLU()),
            *(nn.Linear(hidden_size, hidden_size), nn.SiLU()),
            nn.Linear(hidden_size, features),
        )

    def forward(self, sample: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> AlignedOutput:
        """Return the denoiser's prediction for samples (B, C, H, W), with the projected features."""
        with outputs_of(self.denoiser, self.layer) as outputs:
            output = self.denoiser(sample, timestep, *args, **kwargs)
        hidden = hidden_output(outputs[0], self.layer)
        maps = hidden if hidden.ndim == 4 else image_tokens(hidden, sample.shape[-2:])
        if maps.shape[-2:] != self.grid:
            smooth = F.interpolate(maps.float(), self.grid, mode="bilinear", antialias=True)  # which bfloat16 lacks
            maps = smooth.to(maps.dtype)
        features = self.projector(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return AlignedOutput(sample=output.sample, features=features)


def image_tokens(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the tokens of an image of size (H, W) as maps (B, C, h, w): the last of (B, N, C), as many as squares tile
    it in, and no more than a token for each pixel."""
    height, width = size
    common = math.gcd(height, width)
    grids = [(height // side, width // side) for side in range(1, common + 1) if common % side == 0]
    rows, columns = next(grid for grid in grids if math.prod(grid) <= tokens.shape[1])
    return tokens[:, -rows * columns :].mT.unflatten(2, (rows, columns))
