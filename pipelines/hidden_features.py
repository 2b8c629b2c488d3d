"""Representations of images in a hidden layer of a denoiser."""

from typing import Any

import torch
from torch import Tensor

from hfgen.models.hidden_layers import hidden_output, middle_layer, outputs_of
from hfgen.paths import path_from_config
from hfgen.schedulers.configuration import network_facts
from hfgen.utils.arguments import checked
from hfgen.utils.ranges import PROBABILITY, check_range
from hfgen.utils.seeds import sample_generators

from .images import image_batch
from .inputs import noise_of
from .outputs import require_finite


@checked
@torch.no_grad()
def hidden_features(
    pipeline: Any, images: Any, layer: str | None = None, time: float = 0.1, seed: int = 0, batch_size: int = 256
) -> Tensor:
    """Return the representations (B, D) of images in a hidden layer of a denoiser (Baranchuk et al. 2022,
    https://arxiv.org/abs/2112.03126): the mean over positions of its output for x_t = alpha_t x_0 + sigma_t eps,
    without a condition.

    Args:
        pipeline: a `DenoisingPipeline` or `LatentPipeline`; one with classes must know the null label.
        images: see `image_batch`.
        layer: name of a module of the denoiser, whose output is (B, C, h, w) or tokens (B, N, C); None: the middle, see
            `middle_layer`.
        time: t on the path, from 0, data, to 1, noise; a path of time steps has the nearest later one.
        seed: of the noise; image i has that of seed + i.
        batch_size: images in one pass.

    Raises:
        ValueError: a pipeline without a denoiser, images that do not fit, an unknown layer or one whose output has
            another form, or a time out of range.
    """
    check_range("time", time, PROBABILITY)
    network = getattr(pipeline, "denoiser", None)
    if network is None or not hasattr(pipeline, "to_items"):
        raise ValueError(f"{type(pipeline).__name__} has no denoiser. Call its encode(images).")
    x = image_batch(images, pipeline.sample_shape)
    path = path_from_config(network_facts(pipeline.scheduler.config))
    t = path.snap(torch.tensor(time, dtype=torch.float64))
    kwargs, parts = pipeline._kwargs(1, None, 1.0)[1], []
    for start in range(0, len(x), batch_size):
        items = pipeline.to_items(x[start : start + batch_size].to(pipeline.device))
        generators = sample_generators(seed, range(start, start + len(items)))
        noise = noise_of(tuple(items.shape), None, generators, items.device).to(items)
        x_t = path.mix(items, noise, t) * float(path.input_scale(t))
        told = {name: value.expand(len(items), *value.shape[1:]) for name, value in kwargs.items()}
        with outputs_of(network, layer or middle_layer(network)) as outputs:
            network(x_t.to(network.dtype), path.timestep(t).to(x_t.device), **told)
        parts.append(_mean(outputs[-1], layer))
    return require_finite(torch.cat(parts), "hidden features", pipeline.components)


def _mean(output: Any, layer: str | None) -> Tensor:
    """Return the mean over positions of maps (B, C, h, w) or tokens (B, N, C): (B, C) float32 on the CPU."""
    output = hidden_output(output, layer)
    return (output.mean((2, 3)) if output.ndim == 4 else output.mean(1)).float().cpu()
