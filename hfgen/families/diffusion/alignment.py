"""Representation alignment of a training: the frozen network that is named, and the denoiser with its projection."""

from typing import Any

import torch
from torch import nn

import hfgen

from ..trained_data import check_shape
from ..trained_pipeline import load_trained
from .options import AlignmentArgs


def aligned(run: Any, args: AlignmentArgs, denoiser: nn.Module, objective: Any) -> tuple[nn.Module, Any]:
    """Return network and objective of a training with `--align_with`; without it what is given.

    Args:
        run: the `Run`, whose data are loaded.
        args: the options.
        denoiser, objective: of the training.

    Raises:
        ValueError: another pipeline than a masked autoencoder, one of images of another shape, or an unknown layer.
    """
    if args.align_with is None:
        return denoiser, objective
    pipeline = load_trained(args.align_with, run.output, hfgen.MAEPipeline, "to align with", "align_with")
    check_shape(run.data, pipeline.sample_shape)
    network, shape = pipeline.autoencoder, run.data.item_shape
    example = {"sample": torch.zeros(1, *shape), "timestep": torch.zeros(1)}
    if objective.condition is not None:
        example["class_labels"] = torch.zeros(1, dtype=torch.long)
    grid = network.grid.rows, network.grid.columns
    features = network.config.hidden_size
    try:
        wrapped = hfgen.AlignedDenoiser(denoiser, features, grid, example, args.align_layer)
    except ValueError as error:
        raise ValueError(f"--align_layer {args.align_layer}: {error}") from None
    return wrapped, hfgen.Alignment(objective, network, args.align_weight)
