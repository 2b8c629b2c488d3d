"""What a training costs: measured from a few steps beforehand, and described afterwards."""

import dataclasses
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..options import TrainArgs
from ..trainer.loop import steps_in, train
from ..trainer.optimizers import OPTIMIZERS


def estimate(
    networks: Mapping[str, nn.Module], objective: Any, batches: Any, args: TrainArgs, accelerator: Accelerator
) -> None:
    """Print parameters, memory and time of the training that the options describe, from four discarded steps."""
    total = steps_in(args, batches, objective.batches_per_step)
    with tempfile.TemporaryDirectory() as folder:
        short = {"max_train_steps": 4, "max_train_seconds": None, "logging_steps": 2, "sample_steps": 0}
        few = dataclasses.replace(args, output_dir=folder, **short)
        result = train(networks, objective, batches, few, accelerator)
    unit = getattr(batches, "unit", "items")
    items = total * result.items_seen // result.step
    players = [networks[name] for name in dict.fromkeys(objective.players)]
    weights = sum(p.numel() * p.element_size() for network in players for p in network.parameters())
    moments = sum(map(OPTIMIZERS[args.optimizer].moments, players))
    held = (2 + args.use_ema) * weights + moments  # weights, gradients and average
    share = 1 if args.sharding == "none" else 1 / accelerator.num_processes
    lines = {
        **{f"{name} parameters": f"{parameters(network):,}" for name, network in networks.items()},
        "optimiser steps": f"{total:,} ({items:,} {unit})",
        "speed": f"{result.items_per_second:.0f} {unit}/s (after warm-up, {hardware()})",
        "time": f"{items / result.items_per_second / 60:.1f} minutes, samples and checkpoints not counted",
        "memory, weights and optimiser": f"{share * held / 2**20:.0f} MiB",
        "memory, peak of the process": f"{peak_memory() / 2**20:.0f} MiB",
    }
    for name, value in lines.items():
        accelerator.print(f"{name + ':':32} {value}")


def seconds_of(action: Callable[[], Any]) -> float:
    """Return the seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def parameters(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in network.parameters())


def peak_memory() -> int:
    """Return the most bytes that this process has held: on the GPU if there is one, else in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def hardware() -> str:
    """Return a description of the device."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"
