"""A training under way: players, plan and log, one step of them, and the checkpoints that it goes on from."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..objectives.base import Objective, Step
from ..options import TrainArgs, as_dict
from ..options import resumable as resumable_options
from ..utils import seeds
from . import checkpoint
from .ema import constrain
from .engine import Engine
from .log import Log
from .plan import Plan
from .players import Player, averages, frozen, in_eval, play, to_use, view_of
from .state import saved_modules


class BatchSource(Protocol):
    """A source of batches: a pure function of the number of the micro-batch, so that a run resumes where it stopped."""

    batches_per_epoch: float | None
    batch_size: int

    def iterate(self, start: int) -> Iterator[dict[str, Tensor]]:
        """Yield micro-batches {"x": (B, *item), ...} of this process, from number `start` on, for ever."""
        ...


class Training:
    """The networks of a training, its plan and its log; what each step changes, and all that a checkpoint holds.

    Args:
        engine: how networks lie on the processes. They are moved and wrapped here.
        plan: the number of steps.
        networks, objective, batches, args, config: as of `train`.

    Attributes:
        players: networks that learn, by name.
        bare: all networks by name, as no engine has wrapped them.
        views: player -> the networks by name as its loss sees them.
        modules: what a checkpoint holds besides networks and optimisers.
        items: number of items in a step, over all processes.
        log: the log.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        networks: Mapping[str, nn.Module],
        objective: Objective,
        batches: BatchSource,
        args: TrainArgs,
        config: Mapping[str, Any] | None,
    ):
        self.engine, self.plan, self.objective, self.batches, self.args = engine, plan, objective, batches, args
        self.accelerator = accelerator = engine.accelerator
        self.players = {name: Player(name, networks[name], args, engine) for name in dict.fromkeys(objective.players)}
        served = {name: _serve(network, accelerator) for name, network in networks.items() if name not in self.players}
        self.bare = {**served, **{name: player.bare for name, player in self.players.items()}}
        self.views = {name: view_of(name, self.players, served, accelerator) for name in self.players}
        own = {name: _serve(module, accelerator) for name, module in objective.state.items()}
        self.modules = saved_modules(averages(self.players), own, served)
        world, fresh = accelerator.num_processes, objective.batches_per_step
        here = {"num_processes": world, "batches_per_step": fresh, "random_streams": seeds.VERSION}
        self.config = {**as_dict(args), **here, **(config or {})}
        self.in_step = args.gradient_accumulation_steps * fresh  # micro-batches of this process
        self.items = batches.batch_size * world * self.in_step
        per_epoch, unit = batches.batches_per_epoch, getattr(batches, "unit", "items")
        rows = args.logging_steps, plan.first, self.items, per_epoch and per_epoch / self.in_step
        self.log = Log(accelerator, Path(args.output_dir), *rows, self.config, unit)

    def stream(self, step: int) -> Iterator[dict[str, Tensor]]:
        """Return the micro-batches from a step on."""
        return iter(self.batches.iterate(step * self.in_step))

    def step(self, stream: Iterator[dict[str, Tensor]], step: int) -> None:
        """Let the players take the turns of a step. Each turn updates a network, its constraint and its average."""
        objective, accelerator, accumulation = self.objective, self.accelerator, self.args.gradient_accumulation_steps
        fresh, count = objective.batches_per_step, accumulation * accelerator.num_processes
        groups = [micro_batches(stream, accumulation, step) for _ in range(fresh)]
        for turn, name in enumerate(objective.turns(step)):
            shards = range(accelerator.process_index, count, accelerator.num_processes)  # of this process, in order
            steps = [Step(step, self.args.seed, turn, shard, count) for shard in shards]
            player = self.players[name]
            with frozen([other for other in self.players.values() if other.name != name]):
                play(player, objective, self.views[name], groups[min(turn, fresh - 1)], steps, self.log)
            with torch.no_grad():
                objective.constrain(name, self.bare)
                player.average()
                if player.ema is not None:
                    objective.project(name, player.ema.module)

    def advance(self, step: int) -> None:
        """End a step: plan again if that is due, set the learning rates of the next step, and log this one."""
        if self.plan.due(step):
            self.log.collect()  # waits for the device
            self.plan.renew(step, self.log.seconds, self.accelerator)
            self.log.reach(self.plan.total)
        for player in self.players.values():
            player.reach(self.plan.position(step))
        self.log.step(step, {name: player.lr for name, player in self.players.items()})

    def used(self, use: Callable[..., Any], *place: int, everywhere: bool = True) -> Any:
        """Return `use(networks, *place)` for the networks to sample from as they are; its time does not count.

        All processes call this, unless each has the networks whole. With everywhere=False the main process alone uses
        them, and the others return None.
        """
        with self.log.paused(), in_eval(self.players):
            present = to_use(self.players, self.engine)
            return use(present, *place) if everywhere or self.accelerator.is_main_process else None

    def write_checkpoint(self, step: int) -> None:
        """Write a checkpoint of everything `resume` restores."""
        state = {"config": self.config, "log": self.log.state(), "plan": self.plan.state()}
        with self.log.paused():
            self.log.last_checkpoint = checkpoint.save(
                self.engine, Path(self.args.output_dir), step, self.modules, state, self.args.checkpoints_total_limit
            )

    def resume(self, resumable: Collection[str] = ()) -> dict[str, Any]:
        """Restore the checkpoint that the options name, print what was restored, and return its state; {} without one.

        Args:
            resumable: names of entries of the configuration that may have changed, besides those of the options.
        """
        args, plan, log, print_once = self.args, self.plan, self.log, self.accelerator.print
        if self.accelerator.is_main_process:
            checkpoint.clear(Path(args.output_dir))
        folder = checkpoint.find(Path(args.output_dir), args.resume_from_checkpoint)
        folder, state, changed = checkpoint.of_all_processes(folder, self.accelerator), {}, []
        if folder is not None:
            others = {*resumable, *resumable_options(args)}
            state, changed = checkpoint.load(self.engine, folder, self.modules, self.config, others)
        plan.start(state.get("plan"), state.get("step", 0), state.get("log", {}).get("seconds", 0.0))
        log.reach(plan.total)
        for player in self.players.values():
            player.begin(args, plan, state.get("step", 0))
        if folder is not None:
            print_once(
                f"Resumed from {folder} at step {state['step']} of {log.total}: {self._restored(state['step'])}."
            )
            if changed:
                print_once(f"Changed since it was saved: {', '.join(changed)}.")
            if state["config"].get("random_streams", 1) != seeds.VERSION:
                print_once(
                    "It was saved by an hfgen that draws other random numbers: noise and the order of the data are not "
                    "those of a run without the stop."
                )
            log.last_checkpoint = folder
        return state

    def _restored(self, step: int) -> str:
        rates = dict.fromkeys(f"{player.lr:.3g}" for player in self.players.values())
        updates = [f"moving averages of {ema.updates} updates" for ema in averages(self.players).values()][:1]
        return ", ".join(["networks", "optimisers", f"LR {'/'.join(rates)}", *updates, self.log.position(step)])

    def finish(self) -> dict[str, nn.Module]:
        """End the training of the networks, and return those to use. All processes call this."""
        for player in self.players.values():
            self.accelerator.unwrap_model(player.network, keep_fp32_wrapper=False)  # without the training's autocast
            player.bare.eval()
        finished = to_use(self.players, self.engine)
        # After the last checkpoint, so that a longer run goes on from the same numbers.
        for name, network in finished.items():
            if self.players[name].ema is None:
                constrain(network)
        return finished


def micro_batches(stream: Iterator[dict[str, Tensor]], count: int, step: int) -> list[dict[str, Tensor]]:
    """Return the next `count` micro-batches. Raises ValueError if the batches end, which they never may."""
    group = list(itertools.islice(stream, count))
    if len(group) < count:
        raise ValueError(
            f"The batches ended in step {step + 1}. `iterate(start)` must yield batches for ever: repeat the data."
        )
    return group


def _serve(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    return network.to(accelerator.device).requires_grad_(False).eval()
