"""The one training loop. It knows no family: an objective names the players, their order and their losses."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from ..objectives.base import Objective, Step, require_loss
from ..options import TrainArgs, as_dict, check_ranges
from ..options import resumable as resumable_options
from ..utils import seeds
from ..utils.devices import keep_freed_memory
from ..utils.seeds import seed_device
from . import checkpoint
from .ema import EMA, constrain
from .log import Log
from .optimizers import OPTIMIZERS
from .plan import Plan
from .signals import StopSignals
from .state import refuse_extra_state, saved_modules


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
        networks: the networks to use; under EMA the averaged ones.
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


class Player:
    """A network that learns, with its optimiser, LR schedule and moving average."""

    def __init__(self, name: str, network: nn.Module, args: TrainArgs, accelerator: Accelerator):
        network = extract_model_from_parallel(network, keep_fp32_wrapper=False, keep_torch_compile=True)
        refuse_extra_state(name, network)
        if args.channels_last:
            network.to(memory_format=torch.channels_last)
        self.name, self.bare = name, network.to(accelerator.device).train()
        self.ema = EMA(network, args.ema_max_decay, args.ema_inv_gamma, args.ema_power) if args.use_ema else None
        self.peak = args.learning_rates.get(name, args.learning_rate)
        trained = (p for p in network.parameters() if p.requires_grad)
        optimizer = OPTIMIZERS[args.optimizer].make(trained, self.peak)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.trained = [p for p in self.bare.parameters() if p.requires_grad]
        self.max_grad_norm = args.max_grad_norm if args.max_grad_norm is not None else math.inf

    def begin(self, args: TrainArgs, plan: Plan, step: int) -> None:
        """Set the optimiser's options and the LR of `step` from this run's options, whatever was restored."""
        for group in self.optimizer.param_groups:
            group.update(OPTIMIZERS[args.optimizer].settings(args))
        counts = {"num_warmup_steps": args.lr_warmup_steps, "num_training_steps": plan.first}
        schedule = get_scheduler(args.lr_scheduler, self.optimizer.optimizer, **counts)
        # Computed from the step number: torch counts `scheduler.step()` calls, and a player may skip a step.
        self._rate = lambda position: self.peak * schedule.lr_lambdas[0](position)
        self.reach(plan.position(step))

    def reach(self, position: float) -> None:
        """Set the LR of this position in the schedule."""
        self.lr = self._rate(position)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def update(self, accelerator: Accelerator) -> Tensor:
        """Clip the gradient and step; return its norm before clipping."""
        accelerator.unscale_gradients(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.detach()

    def average(self) -> None:
        """Update the moving average, if there is one, with the present weights."""
        if self.ema is not None:
            self.ema.update(self.bare)


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
    accelerator.free_memory()  # forget the networks of an earlier training, which checkpoints would hold as well
    world, accumulation, output = accelerator.num_processes, args.gradient_accumulation_steps, Path(args.output_dir)
    accelerator.gradient_accumulation_steps = accumulation
    total, fresh = steps_in(args, batches, objective.batches_per_step), objective.batches_per_step
    check_rates(args, objective.players)
    plan = Plan(total, args.max_train_seconds)
    players = {name: Player(name, networks[name], args, accelerator) for name in dict.fromkeys(objective.players)}
    served = {name: _serve(network, accelerator) for name, network in networks.items() if name not in players}
    bare = {**served, **{name: player.bare for name, player in players.items()}}
    views = {name: _view(name, players, served, accelerator) for name in players}
    per_epoch = batches.batches_per_epoch and batches.batches_per_epoch / (accumulation * fresh)
    items, unit = batches.batch_size * world * accumulation * fresh, getattr(batches, "unit", "items")
    here = {"num_processes": world, "batches_per_step": fresh, "random_streams": seeds.VERSION}
    config = {**as_dict(args), **here, **(config or {})}
    log = Log(accelerator, output, args.logging_steps, total, items, per_epoch, config, unit)
    own = {name: _serve(module, accelerator) for name, module in objective.state.items()}
    modules = saved_modules(averages(players), own, served)
    state = resume(accelerator, args, players, modules, log, plan, config, resumable)
    if rehearse is not None:
        plan.rehearse = lambda: rehearsal(rehearse, players, log)
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
                    play(players[name], objective, views[name], groups[min(turn, fresh - 1)], steps, accelerator, log)
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
            if _due(args.sample_steps, step, plan.total) and preview is not None and accelerator.is_main_process:
                with log.paused(), in_eval(players):
                    if preview(to_use(players), step):
                        stop.request()
            if _due(args.checkpointing_steps, step, plan.total):
                save(accelerator, args, modules, log, plan, step, config)
        if log.last_checkpoint is None or log.last_checkpoint.name != f"checkpoint-{step}":
            save(accelerator, args, modules, log, plan, step, config)
    if step < plan.total:
        accelerator.print(f"Stopped at step {step}; the same command goes on from {log.last_checkpoint}.")
    for player in players.values():
        accelerator.unwrap_model(player.network, keep_fp32_wrapper=False)  # without the autocast of the training
        player.bare.eval()
        if player.ema is None:  # after the checkpoint, so that a longer run goes on from the same numbers
            constrain(player.bare)
    rest = log.seconds, log.items_per_second, log.latest, step * items
    return Result(to_use(players), step, step >= plan.total, *rest, plan=plan.facts(), signal=stop.received)


def renew(plan: Plan, step: int, log: Log, accelerator: Accelerator) -> None:
    """Plan the number of steps again, from the time that the steps so far took."""
    log.collect()  # waits for the device
    plan.renew(step, log.seconds, accelerator)
    log.reach(plan.total)


def rehearsal(rehearse: Callable[[dict[str, nn.Module]], float], players: Mapping[str, Player], log: Log) -> float:
    """Return the seconds of what follows the steps, with the networks as they are; they do not count."""
    with log.paused(), in_eval(players):
        return rehearse(to_use(players))


def micro_batches(stream: Iterator[dict[str, Tensor]], count: int, step: int) -> list[dict[str, Tensor]]:
    """Return the next `count` micro-batches. Raises ValueError if the batches end, which they never may."""
    group = list(itertools.islice(stream, count))
    if len(group) < count:
        raise ValueError(
            f"The batches ended in step {step + 1}. `iterate(start)` must yield batches for ever: repeat the data."
        )
    return group


def play(
    player: Player,
    objective: Objective,
    view: Mapping[str, nn.Module],
    group: list[dict[str, Tensor]],
    steps: list[Step],
    accelerator: Accelerator,
    log: Log,
) -> None:
    """Take a player's turn: accumulate its gradients over the micro-batches of a step, share them, and update it."""
    for batch, here in zip(group, steps, strict=True):
        seed_device(here.seed_of("network", here.shard), accelerator.device)  # dropout, the same after a resume
        accelerator.sync_gradients = last = here is steps[-1]
        with contextlib.nullcontext() if last else accelerator.no_sync(player.network):
            with accelerator.autocast():
                loss = require_loss(objective.loss(player.name, view, batch, here), objective)
            accelerator.backward(loss.value)
        log.add(player.name, loss.logs)
    log.add(player.name, {"grad_norm": player.update(accelerator)})


def _due(every: int, step: int, total: int) -> bool:
    return bool(every) and step % every == 0 and step < total


def _serve(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    return network.to(accelerator.device).requires_grad_(False).eval()


def _view(
    turn: str, players: Mapping[str, Player], served: Mapping[str, nn.Module], accelerator: Accelerator
) -> dict[str, nn.Module]:
    """Return the networks for a loss. Only the player of this turn is wrapped for DDP: its gradients are shared."""
    bare = {name: accelerator.unwrap_model(player.network) for name, player in players.items()}
    return {**served, **bare, turn: players[turn].network}


def to_use(players: Mapping[str, Player]) -> dict[str, nn.Module]:
    """Return the networks to sample from: the moving averages if there are any."""
    for player in players.values():
        if player.ema is not None:
            player.ema.constrain()
    return {name: player.bare if player.ema is None else player.ema.module for name, player in players.items()}


def save(
    accelerator: Accelerator,
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
            accelerator, Path(args.output_dir), step, modules, state, args.checkpoints_total_limit
        )


def resume(
    accelerator: Accelerator,
    args: TrainArgs,
    players: Mapping[str, Player],
    modules: Mapping[str, Any],
    log: Log,
    plan: Plan,
    config: Mapping[str, Any],
    resumable: Collection[str] = (),
) -> dict[str, Any]:
    """Restore the checkpoint that the options name, print what was restored, and return its state; {} without one."""
    folder, state = checkpoint.find(Path(args.output_dir), args.resume_from_checkpoint), {}
    if folder is not None:
        state, changed = checkpoint.load(accelerator, folder, modules, config, {*resumable, *resumable_options(args)})
    plan.start(state.get("plan"), state.get("step", 0), state.get("log", {}).get("seconds", 0.0))
    log.reach(plan.total)
    for player in players.values():
        player.begin(args, plan, state.get("step", 0))
    if folder is not None:
        rates = dict.fromkeys(f"{player.lr:.3g}" for player in players.values())
        updates = [f"moving averages of {ema.updates} updates" for ema in averages(players).values()][:1]
        parts = ", ".join(["networks", "optimisers", f"LR {'/'.join(rates)}", *updates, log.position(state["step"])])
        accelerator.print(f"Resumed from {folder} at step {state['step']} of {log.total}: {parts}.")
        if changed:
            accelerator.print(f"Changed since it was saved: {', '.join(changed)}.")
        if state["config"].get("random_streams", 1) != seeds.VERSION:
            accelerator.print(
                "It was saved by an hfgen that draws other random numbers: noise and the order of the data are not "
                "those of a run without the stop."
            )
        log.last_checkpoint = folder
    return state


def averages(players: Mapping[str, Player]) -> dict[str, EMA]:
    """Return the moving averages by player; none without EMA."""
    return {name: player.ema for name, player in players.items() if player.ema is not None}


@contextlib.contextmanager
def frozen(players: list[Player]) -> Iterator[None]:
    """Disable gradients of these players' parameters inside the block, and restore them afterwards."""
    parameters = [p for player in players for p in player.trained]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@contextlib.contextmanager
def in_eval(players: Mapping[str, Player]) -> Iterator[None]:
    """Inside the block, networks are in evaluation mode and no gradients are recorded."""
    for player in players.values():
        player.bare.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for player in players.values():
            player.bare.train()
