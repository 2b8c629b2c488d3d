"""Networks that learn, their optimisers and averages as one table of tensors, of which each process writes its part.

The files are torch's distributed checkpoints in the format safetensors (no pickle). They say which part of which tensor
they hold, so any number of processes reads them again, each one the parts that it needs. The library is imported where
it is used: whole networks never need it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FOLDER = "shards"
"""Folder of a checkpoint with these files."""

Learners = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]
"""By name: a network that learns, bare, and its optimiser."""


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, in the same memory; all of it unless it is sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded. All processes call this in the same order."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(whole: Tensor, like: Tensor | None) -> Tensor:
    """Return a whole tensor split as `like` is; as it is where that has another shape or is not split."""
    if not hasattr(like, "to_local") or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


def found(folder: Path) -> bool:
    """Return whether a checkpoint was written by `save`."""
    return (folder / FOLDER).is_dir()


def save(folder: Path, learners: Learners, averages: Mapping[str, Any]) -> None:
    """Write the table of all tensors. All processes call this; of what is not sharded, process 0's is saved.

    torch's `get_optimizer_state_dict` is not used: it makes a step with an optimiser that has made none yet.

    Raises:
        RuntimeError: a file can't be written; all processes raise it.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    table = {**_networks(learners), **_averages(averages)}
    for name, (network, optimizer) in learners.items():
        names = {p: key for key, p in network.named_parameters()}
        for p, values in optimizer.state.items():
            table |= {f"{_prefix(name, names[p])}{key}": value for key, value in values.items()}
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)  # where processes share no disk, each has its own
    writer = checkpoint.HuggingFaceStorageWriter(str(folder / FOLDER), save_distributed=True)
    try:
        checkpoint.save(table, storage_writer=writer, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
    except CheckpointException as error:
        raise RuntimeError(_reason(error)) from None


def load(folder: Path, learners: Learners, averages: Mapping[str, Any]) -> None:
    """Restore what `save` wrote, on any number of processes. All of them call this.

    Raises:
        RuntimeError: the tensors are those of other networks, averages or optimisers.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    reader = checkpoint.HuggingFaceStorageReader(str(folder / FOLDER))
    saved = reader.read_metadata().state_dict_metadata
    averaged = _averages(averages)
    table = {**_networks(learners), **averaged}
    states = {name: _optimizer_table(name, *learner, saved) for name, learner in learners.items()}
    for state in states.values():
        table |= {f"{prefix}{key}": value for prefix, values in state for key, value in values.items()}
    if missing := sorted(saved.keys() ^ table.keys()):
        where = "this run" if missing[0] in saved else "the checkpoint"
        raise RuntimeError(f"{missing[0]} is not in {where}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process: as intended
        try:
            checkpoint.load(table, storage_reader=reader)
        except CheckpointException as error:
            raise RuntimeError(_reason(error)) from None
    for stem, average in averages.items():
        length = len(stem) + 1
        average.load_state_dict({k[length:]: v for k, v in averaged.items() if k.startswith(f"{stem}/")})
    for name, (_, optimizer) in learners.items():
        state = {index: values for index, (_, values) in enumerate(states[name]) if values}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _optimizer_table(
    name: str, network: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]
) -> list[tuple[str, dict[str, Tensor]]]:
    """Return for each parameter of an optimiser the prefix of its entries, and room for those that were saved."""
    names, rooms = {p: key for key, p in network.named_parameters()}, []
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        prefix = _prefix(name, names[p])
        keys = [key.removeprefix(prefix) for key in saved if key.startswith(prefix)]
        sizes = {key: saved[f"{prefix}{key}"] for key in keys}
        rooms.append((prefix, {key: _room(p, key, entry) for key, entry in sizes.items()}))
    return rooms


def _room(p: Tensor, key: str, entry: Any) -> Tensor:
    """Return an empty tensor for an entry of an optimiser: sharded as its parameter, but for a number."""
    if key == "step" or entry.size != p.shape:
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    return torch.empty_like(p.detach(), dtype=entry.properties.dtype)


def _networks(learners: Learners) -> dict[str, Tensor]:
    return {f"{name}/{key}": value for name, (net, _) in learners.items() for key, value in net.state_dict().items()}


def _averages(averages: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"{stem}/{key}": value for stem, ema in averages.items() for key, value in ema.state_dict().items()}


def _prefix(name: str, parameter: str) -> str:
    return f"optimizer_{name}/{parameter}/"


def _reason(error: Any) -> str:
    """Return the first failure of a process in a line."""
    rank, (failure, _) = min(error.failures.items())
    return f"process {rank}: {type(failure).__name__}: {failure}".splitlines()[0]
