"""The one training loop. It knows no family: an objective names the players, their order and their losses."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..objectives.base import Objective, Step
from ..options import TrainArgs, as_dict, check_ranges
from ..options import resumable as resumable_options
from ..utils import seeds
from ..utils.devices import keep_freed_memory
from . import checkpoint
from .ema import constrain
from .engine import Engine, Replicated
from .log import Log
from .plan import Plan
from .players import Player, averages, frozen, in_eval, play, to_use, view_of
from .signals import StopSignals
from .state import saved_modules


def _sharded(accelerator: Accelerator) -> Engine:
    from .sharded import Sharded  # which imports much of torch.distributed

    return Sharded(accelerator)


ENGINES: dict[str, Callable[[Accelerator], Engine]] = {"none": Replicated, "fsdp2": _sharded}
"""Engines by the values of `--sharding`."""


class BatchSource(Protocol):
    """A source of batches: a pure function of the number of the micro-batch, so that a run resumes where it stopped."""

    batches_per_epoch: float | None
    batch_size: int

    def iterate(self, start: int) -> Iterator[dict[str, Tensor]]:
        """Yield micro-batches {"x": (B, *item), ...} of this process, from number `start` on, for ever."""
        ...


@dataclasses.dataclass
class Result:
    """The outcome of a training.

    Attributes:
        networks: the networks to use; under EMA the averaged ones. With `sharding` the main process has them, whole.
        step: number of optimiser steps so far.
        finished: whether all steps were made.
        seconds: spent in training steps.
        items_per_second: of the last logged steps.
        logs: the last row of metrics.jsonl.
        items_seen: number of items in the batches of all steps so far, over all processes.
        pipeline: made of the networks, if the run has a pipeline.
        plan: the time and the plans of a training with `max_train_seconds`, see `Plan.rows`; None without.
        signal: the number of the signal that stopped it, None if there was none.
    """

    networks: dict[str, nn.Module]
    step: int
    finished: bool
    seconds: float
    items_per_second: float
    logs: dict[str, float]
    items_seen: int = 0
    pipeline: Any = None
    plan: dict[str, Any] | None = None
    signal: int | None = None


def check_rates(args: TrainArgs, players: Collection[str]) -> None:
    """Raise ValueError for a learning rate of a player that does not learn."""
    for name, rate in args.learning_rates.items():
        if name not in players:
            raise ValueError(f"{name}_learning_rate={rate} does nothing: {', '.join(players)} learn. Leave it out.")


def steps_in(args: TrainArgs, batches: BatchSource, batches_per_step: int = 1) -> int:
    """Return the number of optimiser steps that the options define, for an objective with so many batches a step.

    Raises:
        ValueError: a number is out of range, or epochs are given for a data set of unknown length.
    """
    check_ranges(args)  # which may have changed since they were made
    if args.max_train_steps is not None:
        return args.max_train_steps
    if batches.batches_per_epoch is None:
        raise ValueError("A streamed data set has no known length; give --max_train_steps instead of --num_epochs.")
    in_step = args.gradient_accumulation_steps * batches_per_step
    return max(1, math.ceil(args.num_epochs * batches.batches_per_epoch / in_step))


def train(
    networks: Mapping[str, nn.Module],
    objective: Objective,
    batches: BatchSource,
    args: TrainArgs,
    accelerator: Accelerator,
    preview: Callable[[dict[str, nn.Module], int], bool | None] | None = None,
    config: Mapping[str, Any] | None = None,
    begin: Callable[[], None] | None = None,
    resumable: Collection[str] = (),
    rehearse: Callable[[dict[str, nn.Module]], float] | None = None,
) -> Result:
    """Train the objective's players on the batches; all other networks are frozen and only serve.

    In each optimiser step the players take the turns that the objective gives them. In its turn, a player sees all
    accumulated micro-batches of an effective batch while the other networks are frozen, and is updated before the next
    turn. Four micro-batches of two are therefore one batch of eight for each player. All turns of a step have the same
    batch, unless `objective.batches_per_step` is above 1. The same call again continues from the newest checkpoint in
    `args.output_dir`.

    Args:
        networks: by name; those named in `objective.players` learn.
        objective: the losses, see `Objective`. Its `state` is saved and restored.
        batches: the data, see `hfgen.data.batches.BatchSource`.
        args: the options.
        accelerator: of accelerate.
        preview: called as `preview(networks, step)` every `args.sample_steps` steps, on the main process, with the
            networks to sample from. If it returns True, training stops on every process, as after a signal.
        config: further entries that define the run, for checkpoints and trackers. A checkpoint with other entries is
            refused.
        begin: called on the main process after all checks, before anything is written.
        resumable: names of entries of `config` that a resumed run may change.
        rehearse: does what follows the steps and counts as training, with the networks to use; returns its seconds.
            Called once or twice under `max_train_seconds`, so that it fits in.

    Returns:
        The result; `finished` is False if a signal or `preview` stopped the training.

    Raises:
        DivergenceError: a loss or gradient is not finite; names step, quantity and last checkpoint.
        CheckpointError: the checkpoint to resume from is missing, damaged or of another run; or one can't be written.
        ValueError: options out of range.
    """
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("--mixed_precision fp16 needs a GPU. On a CPU use bf16 or no.")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    engine = ENGINES[args.sharding](accelerator)
    accelerator.free_memory()  # forget the networks of an earlier training, which checkpoints would hold as well
    world, accumulation, output = accelerator.num_processes, args.gradient_accumulation_steps, Path(args.output_dir)
    accelerator.gradient_accumulation_steps = accumulation
    total, fresh = steps_in(args, batches, objective.batches_per_step), objective.batches_per_step
    check_rates(args, objective.players)
    plan = Plan(total, args.max_train_seconds)
    engine.check(args, objective, networks)
    if rehearse is not None and plan.seconds is not None and not engine.whole_everywhere:
        raise ValueError(
            f"--max_train_seconds={plan.seconds} rehearses what follows the training on one process, where --sharding "
            f"{args.sharding} leaves no whole network. Give --max_train_steps."
        )
    players = {name: Player(name, networks[name], args, engine) for name in dict.fromkeys(objective.players)}
    served = {name: _serve(network, accelerator) for name, network in networks.items() if name not in players}
    bare = {**served, **{name: player.bare for name, player in players.items()}}
    views = {name: view_of(name, players, served, accelerator) for name in players}
    per_epoch = batches.batches_per_epoch and batches.batches_per_epoch / (accumulation * fresh)
    items, unit = batches.batch_size * world * accumulation * fresh, getattr(batches, "unit", "items")
    here = {"num_processes": world, "batches_per_step": fresh, "random_streams": seeds.VERSION}
    config = {**as_dict(args), **here, **(config or {})}
    log = Log(accelerator, output, args.logging_steps, total, items, per_epoch, config, unit)
    own = {name: _serve(module, accelerator) for name, module in objective.state.items()}
    modules = saved_modules(averages(players), own, served)
    state = resume(engine, args, players, modules, log, plan, config, resumable)
    if rehearse is not None:
        plan.rehearse = lambda: rehearsal(rehearse, players, engine, log)
    if begin is not None and accelerator.is_main_process:
        begin()
    step = log.start(state)
    stream, stop = iter(batches.iterate(step * accumulation * fresh)), StopSignals()

    with stop, log:
        while step < plan.total and not stop.requested(accelerator):
            groups = [micro_batches(stream, accumulation, step) for _ in range(fresh)]
            for turn, name in enumerate(objective.turns(step)):
                shards = range(accelerator.process_index, accumulation * world, world)  # of this process, in order
                steps = [Step(step, args.seed, turn, shard, accumulation * world) for shard in shards]
                with frozen([other for other in players.values() if other.name != name]):
                    play(players[name], objective, views[name], groups[min(turn, fresh - 1)], steps, log)
                with torch.no_grad():
                    objective.constrain(name, bare)
                    players[name].average()
                    if players[name].ema is not None:
                        objective.project(name, players[name].ema.module)
            step += 1
            if plan.due(step):
                renew(plan, step, log, accelerator)
            for player in players.values():
                player.reach(plan.position(step))
            log.step(step, {name: player.lr for name, player in players.items()})
            if _due(args.sample_steps, step, plan.total) and preview is not None:
                with log.paused(), in_eval(players):
                    present = to_use(players, engine)
                    if accelerator.is_main_process and preview(present, step):
                        stop.request()
            if _due(args.checkpointing_steps, step, plan.total):
                save(engine, args, modules, log, plan, step, config)
        if log.last_checkpoint is None or log.last_checkpoint.name != f"checkpoint-{step}":
            save(engine, args, modules, log, plan, step, config)
    if step < plan.total:
        accelerator.print(f"Stopped at step {step}; the same command goes on from {log.last_checkpoint}.")
    for player in players.values():
        accelerator.unwrap_model(player.network, keep_fp32_wrapper=False)  # without the autocast of the training
        player.bare.eval()
    finished = to_use(players, engine)
    for name, network in finished.items():
        if players[name].ema is None:  # after the checkpoint, so that a longer run goes on from the same numbers
            constrain(network)
    rest = log.seconds, log.items_per_second, log.latest, step * items
    return Result(finished, step, step >= plan.total, *rest, plan=plan.facts(), signal=stop.received)


def renew(plan: Plan, step: int, log: Log, accelerator: Accelerator) -> None:
    """Plan the number of steps again, from the time that the steps so far took."""
    log.collect()  # waits for the device
    plan.renew(step, log.seconds, accelerator)
    log.reach(plan.total)


def rehearsal(
    rehearse: Callable[[dict[str, nn.Module]], float], players: Mapping[str, Player], engine: Engine, log: Log
) -> float:
    """Return the seconds of what follows the steps, with the networks as they are; they do not count."""
    with log.paused(), in_eval(players):
        return rehearse(to_use(players, engine))


def micro_batches(stream: Iterator[dict[str, Tensor]], count: int, step: int) -> list[dict[str, Tensor]]:
    """Return the next `count` micro-batches. Raises ValueError if the batches end, which they never may."""
    group = list(itertools.islice(stream, count))
    if len(group) < count:
        raise ValueError(
            f"The batches ended in step {step + 1}. `iterate(start)` must yield batches for ever: repeat the data."
        )
    return group


def _due(every: int, step: int, total: int) -> bool:
    return bool(every) and step % every == 0 and step < total


def _serve(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    return network.to(accelerator.device).requires_grad_(False).eval()


def save(
    engine: Engine,
    args: TrainArgs,
    modules: Mapping[str, Any],
    log: Log,
    plan: Plan,
    step: int,
    config: Mapping[str, Any],
) -> None:
    """Write a checkpoint of everything `resume` restores."""
    state = {"config": config, "log": log.state(), "plan": plan.state()}
    with log.paused():
        log.last_checkpoint = checkpoint.save(
            engine, Path(args.output_dir), step, modules, state, args.checkpoints_total_limit
        )


def resume(
    engine: Engine,
    args: TrainArgs,
    players: Mapping[str, Player],
    modules: Mapping[str, Any],
    log: Log,
    plan: Plan,
    config: Mapping[str, Any],
    resumable: Collection[str] = (),
) -> dict[str, Any]:
    """Restore the checkpoint that the options name, print what was restored, and return its state; {} without one."""
    folder = checkpoint.find(Path(args.output_dir), args.resume_from_checkpoint)
    folder, state = checkpoint.of_all_processes(folder, engine.accelerator), {}
    if folder is not None:
        state, changed = checkpoint.load(engine, folder, modules, config, {*resumable, *resumable_options(args)})
    plan.start(state.get("plan"), state.get("step", 0), state.get("log", {}).get("seconds", 0.0))
    log.reach(plan.total)
    for player in players.values():
        player.begin(args, plan, state.get("step", 0))
    if folder is not None:
        rates = dict.fromkeys(f"{player.lr:.3g}" for player in players.values())
        updates = [f"moving averages of {ema.updates} updates" for ema in averages(players).values()][:1]
        parts = ", ".join(["networks", "optimisers", f"LR {'/'.join(rates)}", *updates, log.position(state["step"])])
        engine.accelerator.print(f"Resumed from {folder} at step {state['step']} of {log.total}: {parts}.")
        if changed:
            engine.accelerator.print(f"Changed since it was saved: {', '.join(changed)}.")
        if state["config"].get("random_streams", 1) != seeds.VERSION:
            engine.accelerator.print(
                "It was saved by an hfgen that draws other random numbers: noise and the order of the data are not "
                "those of a run without the stop."
            )
        log.last_checkpoint = folder
    return state
