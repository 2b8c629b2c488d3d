"""The one training loop. It knows no family: an objective names the players, their order and their losses."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from accelerate import Accelerator
from torch import nn

from ..objectives.base import Objective
from ..options import TrainArgs, check_ranges
from ..utils.devices import keep_freed_memory
from ..utils.processes import leave_group_at_exit
from ..utils.ranges import LARGEST
from .engine import Engine, Replicated
from .plan import Plan
from .signals import StopSignals
from .training import BatchSource, Training


def _sharded(accelerator: Accelerator) -> Engine:
    from .sharded import Sharded  # which imports much of torch.distributed

    return Sharded(accelerator)


ENGINES: dict[str, Callable[[Accelerator], Engine]] = {"none": Replicated, "fsdp2": _sharded}
"""Engines by the values of `--sharding`."""


@dataclasses.dataclass
class Result:
    """The outcome of a training.

    Attributes:
        networks: the networks to use; under EMA the averaged ones. With `sharding` the main process has them, whole.
        step: number of optimiser steps so far.
        finished: whether all steps were made, and no signal came meanwhile.
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
    steps = max(1, math.ceil(args.num_epochs * batches.batches_per_epoch / in_step))
    if steps > LARGEST:
        raise ValueError(f"--num_epochs {args.num_epochs} makes {steps} steps; give at most {LARGEST} of them.")
    return steps


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
    engine = _engine(args, accelerator)
    plan = _plan(engine, networks, objective, batches, args, rehearse is not None)
    training = Training(engine, plan, networks, objective, batches, args, config)
    log, state = training.log, training.resume(resumable)
    if rehearse is not None:
        plan.rehearse = lambda: training.used(rehearse)
    if begin is not None and accelerator.is_main_process:
        begin()
    step = log.start(state)
    stream, stop = training.stream(step), StopSignals()
    with stop, log:
        while step < plan.total and not stop.requested(accelerator):
            training.step(stream, step)
            step += 1
            training.advance(step)
            shows = preview is not None and _due(args.sample_steps, step, plan.total)
            if shows and training.used(preview, step, everywhere=False):
                stop.request()
            if _due(args.checkpointing_steps, step, plan.total):
                training.write_checkpoint(step)
        if log.last_checkpoint is None or log.last_checkpoint.name != f"checkpoint-{step}":
            training.write_checkpoint(step)
    stopped = step < plan.total or stop.requested(accelerator)  # a signal in the last step stops what follows it
    if stopped:
        accelerator.print(f"Stopped at step {step}; the same command goes on from {log.last_checkpoint}.")
    finished = training.finish()
    rest = log.seconds, log.items_per_second, log.latest, step * training.items
    return Result(finished, step, not stopped, *rest, plan=plan.facts(), signal=stop.received)


def _engine(args: TrainArgs, accelerator: Accelerator) -> Engine:
    """Return the engine of a training, in a process that is ready for it."""
    engine = ENGINES[args.sharding](accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    leave_group_at_exit()
    accelerator.free_memory()  # forget the networks of an earlier training, which checkpoints would hold as well
    accelerator.gradient_accumulation_steps = args.gradient_accumulation_steps
    return engine


def _plan(
    engine: Engine,
    networks: Mapping[str, nn.Module],
    objective: Objective,
    batches: BatchSource,
    args: TrainArgs,
    rehearses: bool,
) -> Plan:
    """Return the plan of a training; ValueError for one that can't be, before any network is moved."""
    total = steps_in(args, batches, objective.batches_per_step)
    check_rates(args, objective.players)
    plan = Plan(total, args.max_train_seconds)
    engine.check(args, objective, networks)
    if rehearses and plan.seconds is not None and not engine.whole_everywhere:
        raise ValueError(
            f"--max_train_seconds={plan.seconds} rehearses what follows the training on one process, where --sharding "
            f"{args.sharding} leaves no whole network. Give --max_train_steps."
        )
    return plan


def _due(every: int, step: int, total: int) -> bool:
    return bool(every) and step % every == 0 and step < total
