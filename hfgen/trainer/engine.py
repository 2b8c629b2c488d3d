"""Engines: how networks that learn, their optimisers and averages lie on the processes of a training.

The loop asks an engine wherever that makes a difference, and knows nothing else of it: `Replicated` keeps all of them
whole on every process, `hfgen.trainer.sharded.Sharded` splits them.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..objectives.base import Objective
from ..options import TrainArgs
from . import shards
from .ema import EMA
from .state import SERVED, unshared

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class Engine(ABC):
    """Base of all engines. All processes call each method, in the same order.

    Args:
        accelerator: of accelerate.

    Attributes:
        learners: what `prepare` has placed, by name: networks, bare, with their optimisers.
        whole_everywhere: whether every process has the networks whole, so that one may use them by itself.

    Raises:
        ValueError: there is no such training on these processes.
    """

    whole_everywhere: bool = True

    def __init__(self, accelerator: Accelerator):
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"accelerate's configuration asks for {accelerator.distributed_type.value}, which knows no moving "
                "averages and one network a training. Configure plain processes (MULTI_GPU); give --sharding fsdp2."
            )
        self.accelerator = accelerator
        self.learners: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}

    @abstractmethod
    def check(self, args: TrainArgs, objective: Objective, networks: Mapping[str, nn.Module]) -> None:
        """Raise ValueError for a training that this engine can't do, before any network is moved."""

    @abstractmethod
    def prepare(self, name: str, network: nn.Module, average: EMA | None, make: MakeOptimizer) -> tuple[nn.Module, Any]:
        """Place a network that learns, and its average if there is one.

        Args:
            name: of the network.
            network: bare.
            average: its moving average.
            make: network -> the optimiser of its parameters that learn.

        Returns:
            The network as a loss calls it in its own turn, and the optimiser that the turn ends with.
        """

    @abstractmethod
    def accumulation(self, network: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Return a context for a micro-batch of a network's turn; in the `last` one, gradients are averaged over all
        processes."""

    @abstractmethod
    def clip(self, parameters: Collection[nn.Parameter], largest: float | None) -> Tensor:
        """Clip the norm of a player's gradient at the end of its turn; return the norm before: ()."""

    @abstractmethod
    def whole(self, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Return networks that learn, or their averages, to use outside the training: at least on the main process."""

    @abstractmethod
    def save(self, folder: Path, modules: Mapping[str, Any]) -> None:
        """Write what learns, its averages and the other `modules` (see `saved_modules`) into a folder."""

    @abstractmethod
    def load(self, folder: Path, modules: Mapping[str, Any]) -> list[str]:
        """Restore what an engine has written; return a line for each part that the folder lacks by its age."""


class Replicated(Engine):
    """Networks, optimisers and averages lie whole on every process; gradients are averaged by DDP."""

    def check(self, args: TrainArgs, objective: Objective, networks: Mapping[str, nn.Module]) -> None:
        """Refuse nothing."""

    def prepare(self, name: str, network: nn.Module, average: EMA | None, make: MakeOptimizer) -> tuple[nn.Module, Any]:
        """Move network and average to the device, and let accelerate wrap the network."""
        network.to(self.accelerator.device).train()
        if average is not None:
            average.to(self.accelerator.device)
        optimizer = make(network)
        wrapped, prepared = self.accelerator.prepare(network, optimizer)
        self.learners[name] = network, prepared.optimizer
        return wrapped, prepared

    def accumulation(self, network: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Return DDP's own context."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(network)

    def clip(self, parameters: Collection[nn.Parameter], largest: float | None) -> Tensor:
        """Clip by torch's function."""
        return torch.nn.utils.clip_grad_norm_(parameters, math.inf if largest is None else largest).detach()

    def whole(self, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Return the networks themselves, on every process."""
        return dict(networks)

    def save(self, folder: Path, modules: Mapping[str, Any]) -> None:
        """Let accelerate save what it has prepared; the main process writes the modules."""
        self.accelerator.save_state(str(folder))
        save_modules(self.accelerator, folder, modules)

    def load(self, folder: Path, modules: Mapping[str, Any]) -> list[str]:
        """Restore a checkpoint, also that of a sharded training."""
        if shards.found(folder):
            averages, others = split_averages(modules)
            shards.load(folder, self.learners, averages)
            return load_modules(folder, others)
        notes = []
        with self._scaler_in(folder, notes):
            self.accelerator.load_state(str(folder))
        return [*notes, *load_modules(folder, modules)]

    @contextlib.contextmanager
    def _scaler_in(self, folder: Path, notes: list[str]) -> Iterator[None]:
        """Skip restoring the loss scaler inside the block if the checkpoint has none: fp16 begins with this run."""
        scaler = self.accelerator.scaler
        if scaler is not None and not (folder / "scaler.pt").is_file():
            self.accelerator.scaler = None
            notes.append("loss scaler: not in the checkpoint, so a new one")
        try:
            yield
        finally:
            self.accelerator.scaler = scaler


def split_averages(modules: Mapping[str, Any]) -> tuple[dict[str, EMA], dict[str, Any]]:
    """Return the moving averages among the modules of a checkpoint, and the others."""
    averages = {stem: module for stem, module in modules.items() if isinstance(module, EMA)}
    return averages, {stem: module for stem, module in modules.items() if stem not in averages}


def save_modules(accelerator: Accelerator, folder: Path, modules: Mapping[str, Any]) -> None:
    """Write each module as a safetensors file of its name, by the main process."""
    for stem, module in modules.items() if accelerator.is_main_process else ():
        save_file(unshared(module.state_dict()), folder / f"{stem}.safetensors")


def load_modules(folder: Path, modules: Mapping[str, Any]) -> list[str]:
    """Restore what `save_modules` wrote; return a line for each file that an older checkpoint lacks."""
    notes = []
    for stem, module in modules.items():
        file = folder / f"{stem}.safetensors"
        if stem.startswith(SERVED) and not file.is_file():  # saved by hfgen 0.1, which did not keep them
            notes.append(f"buffers of {stem.removeprefix(SERVED)}: not in the checkpoint, left as loaded")
            continue
        if not file.is_file() and getattr(module, "restored", False):  # an older layout held it elsewhere
            continue
        module.load_state_dict(load_file(file))
    return notes
