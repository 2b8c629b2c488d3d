"""The engine that splits networks, optimisers and averages over all processes: FSDP2 of torch.

torch's own functions are called, and not accelerate's plugin: it is ignored on CPUs, knows one network a training, and
no moving averages.
"""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from ..console.text import with_article
from ..objectives.base import Objective
from ..options import TrainArgs
from . import shards
from .ema import EMA, detach_computed
from .engine import Engine, MakeOptimizer, load_modules, save_modules, split_averages


class Sharded(Engine):
    """Each process holds an equal part of every parameter, of its moments and of its average (Zhao et al. 2023,
    https://arxiv.org/abs/2304.11277; `torch.distributed.fsdp.fully_shard`).

    The parts of a network that are gathered together are the entries of its outermost module lists, such as the blocks
    of a U-Net or transformer, and the rest. They are whole while they compute, forward and backward. Where an objective
    differentiates twice, all networks of a turn stay whole until its end.
    """

    whole_everywhere = False

    def __init__(self, accelerator: Accelerator):
        super().__init__(accelerator)
        if accelerator.num_processes == 1:
            raise ValueError(
                "--sharding fsdp2 splits networks over processes, and there is one. Start several: --num_processes 2, "
                "or torchrun --nproc-per-node 2."
            )
        if accelerator.mixed_precision == "fp16":
            raise ValueError("--sharding fsdp2 has no loss scale for --mixed_precision fp16. Use bf16 or no.")
        self._templates: dict[str, nn.Module] = {}
        self._mesh, self._until_end = None, False

    def check(self, args: TrainArgs, objective: Objective, networks: Mapping[str, nn.Module]) -> None:
        """Refuse what FSDP2 can't shard, and objectives that change networks otherwise than by `project`."""
        if type(objective).constrain is not Objective.constrain:
            raise ValueError(
                f"{type(objective).__name__} changes networks in its method constrain, and --sharding fsdp2 has parts "
                "of them. Override project instead, or leave out --sharding."
            )
        for name in dict.fromkeys(objective.players):
            others = {id(p): other for other in networks if other != name for p in networks[other].parameters()}
            shared = [others[id(p)] for p in networks[name].parameters() if id(p) in others]
            if problem := f"it shares parameters with {shared[0]}" if shared else unshardable(networks[name]):
                raise ValueError(f"--sharding fsdp2 can't split {name}: {problem}. Leave out --sharding.")
        self._until_end = objective.differentiates_twice
        self._mesh = init_device_mesh(self.accelerator.device.type, (self.accelerator.num_processes,))

    def prepare(self, name: str, network: nn.Module, average: EMA | None, make: MakeOptimizer) -> tuple[nn.Module, Any]:
        """Split network and average; a process moves its parts alone to its device."""
        detach_computed(network)
        self._templates[name] = copy.deepcopy(network).to("meta").eval()
        network.train()
        self.accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)  # autocast, no DDP
        self._split(network)
        if average is not None:
            self._split(average.module)
            average.to(self.accelerator.device)
        optimizer = make(network)
        prepared = self.accelerator.prepare_optimizer(optimizer)
        self.learners[name] = network, optimizer
        return network, prepared

    @contextlib.contextmanager
    def accumulation(self, network: nn.Module, last: bool) -> Iterator[None]:
        """Let gradients add up on each process until the last micro-batch."""
        network.set_requires_gradient_sync(last)
        yield

    def clip(self, parameters: Collection[nn.Parameter], largest: float | None) -> Tensor:
        """Split whatever is whole, and clip by the norm over all processes."""
        for network, _ in self.learners.values():
            for part in network.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if largest is None else largest)
        return shards.full(norm).detach()

    def whole(self, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Return whole copies in evaluation mode on the main process; none on others."""
        copies = {name: self._whole(name, network) for name, network in networks.items()}
        return {name: network for name, network in copies.items() if network is not None}

    def save(self, folder: Path, modules: Mapping[str, Any]) -> None:
        """Write the part of each process; the main one writes the modules that are not split."""
        averages, others = split_averages(modules)
        shards.save(folder, self.learners, averages)
        save_modules(self.accelerator, folder, others)

    def load(self, folder: Path, modules: Mapping[str, Any]) -> list[str]:
        """Restore a checkpoint, also that of whole networks."""
        averages, others = split_averages(modules)
        if shards.found(folder):
            shards.load(folder, self.learners, averages)
        else:
            self._load_whole(folder, averages)
        return load_modules(folder, others)

    def _load_whole(self, folder: Path, averages: Mapping[str, EMA]) -> None:
        """Restore what accelerate has saved of whole networks and optimisers, and whole averages."""
        for number, (network, optimizer) in enumerate(self.learners.values()):
            ending = f"_{number}" if number else ""
            restore(network, load_file(folder / f"model{ending}.safetensors"))
            saved = torch.load(folder / f"optimizer{ending}.bin", weights_only=True)["state"]
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                at: {key: shards.part_of(v, trained[at]) for key, v in values.items()} for at, values in saved.items()
            }
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        for stem, average in averages.items():
            restore(average, load_file(folder / f"{stem}.safetensors"))

    def _split(self, network: nn.Module) -> None:
        """Split a network in place, part by part."""
        for part in (*units(network), network):
            part.register_forward_hook(own_output)
            fully_shard(part, mesh=self._mesh, reshard_after_forward=not self._until_end)
        network.set_reshard_after_backward(not self._until_end)

    def _whole(self, name: str, network: nn.Module) -> nn.Module | None:
        """Gather the parts of a network tensor by tensor; the main process keeps them."""
        main = self.accelerator.is_main_process
        result = copy.deepcopy(self._templates[name]) if main else None
        for place, module in network.named_modules():
            for kind in ("_parameters", "_buffers"):
                for key, value in getattr(module, kind).items():
                    if value is None:
                        continue
                    tensor = shards.full(value.detach())
                    if main:
                        own = getattr(result.get_submodule(place), kind)
                        own[key] = nn.Parameter(tensor) if kind == "_parameters" else tensor.clone()
        return result


def restore(module: Any, whole: Mapping[str, Tensor]) -> None:
    """Set the state of a split module from whole tensors by name, which all processes have."""
    places = module.state_dict()
    module.load_state_dict({name: shards.part_of(value, places.get(name)) for name, value in whole.items()})


def own_output(network: nn.Module, _: Any, output: Any) -> Any:
    """Return a network's output with a copy of each tensor that is a view, on which FSDP2's hooks would get lost.

    Raises:
        TypeError: an output in which FSDP2 finds no tensors, so that it would not gather parameters again.
    """
    if not isinstance(output, Tensor | tuple | list | dict) and not dataclasses.is_dataclass(output):
        raise TypeError(
            f"{type(network).__name__} returns {with_article(type(output).__name__)}, in which --sharding fsdp2 finds "
            "no tensors. Return a tensor, a dictionary, a tuple or a dataclass, such as diffusers' BaseOutput."
        )
    return tree_map_only(Tensor, lambda tensor: tensor if tensor._base is None else tensor.clone(), output)


def units(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the entries with parameters of the outermost module lists of a network, which are called as a whole."""
    for child in network.children():
        if not isinstance(network, nn.ModuleList) or isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from units(child)
        elif next(child.parameters(), None) is not None:
            yield child


def unshardable(network: nn.Module) -> str | None:
    """Return why FSDP2 can't split a network, in a few words; None if it can."""
    tensors = dict(network.named_parameters(remove_duplicate=False))
    if any(isinstance(p, DTensor) for p in tensors.values()):
        return "an earlier training has split it already; make it anew"
    if len(set(map(id, tensors.values()))) < len(tensors):
        return "some of its parameters are one tensor by two names"
    if scalars := [name for name, p in tensors.items() if p.ndim == 0]:
        return f"{scalars[0]} is a number, shape (); make its shape (1,)"
    if len(kinds := {p.dtype for p in tensors.values()}) > 1:
        return f"its parameters are of several types, {', '.join(sorted(map(str, kinds)))}"
    if bent := [name for name, p in tensors.items() if not p.is_contiguous()]:
        return f"{bent[0]} is not contiguous in memory"
    return None
