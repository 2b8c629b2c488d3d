"""The players of a training: networks that learn, with their optimisers, LR schedules and moving averages."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from ..objectives.base import Objective, Step, require_loss
from ..options import TrainArgs
from ..utils.seeds import seed_device
from .ema import EMA, constrain
from .engine import Engine
from .log import Log
from .optimizers import OPTIMIZERS
from .plan import Plan
from .state import refuse_extra_state


class Player:
    """A network that learns, with its optimiser, LR schedule and moving average."""

    def __init__(self, name: str, network: nn.Module, args: TrainArgs, engine: Engine):
        network = extract_model_from_parallel(network, keep_fp32_wrapper=False, keep_torch_compile=True)
        refuse_extra_state(name, network)
        if args.channels_last:
            network.to(memory_format=torch.channels_last)
        self.name, self.bare, self.engine = name, network, engine
        self.ema = EMA(network, args.ema_max_decay, args.ema_inv_gamma, args.ema_power) if args.use_ema else None
        self.peak = args.learning_rates.get(name, args.learning_rate)
        self.network, self.optimizer = engine.prepare(
            name, network, self.ema, lambda placed: OPTIMIZERS[args.optimizer].make(placed, self.peak)
        )
        self.trained = [p for p in network.parameters() if p.requires_grad]
        self.max_grad_norm = args.max_grad_norm

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

    def update(self) -> Tensor:
        """Clip the gradient and step; return its norm before clipping."""
        self.engine.accelerator.unscale_gradients(self.optimizer)
        norm = self.engine.clip(self.trained, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def average(self) -> None:
        """Update the moving average, if there is one, with the present weights."""
        if self.ema is not None:
            self.ema.update(self.bare)


def play(
    player: Player,
    objective: Objective,
    view: Mapping[str, nn.Module],
    group: list[dict[str, Tensor]],
    steps: list[Step],
    log: Log,
) -> None:
    """Take a player's turn: accumulate its gradients over the micro-batches of a step, share them, and update it."""
    accelerator = player.engine.accelerator
    for batch, here in zip(group, steps, strict=True):
        seed_device(here.seed_of("network", here.shard), accelerator.device)  # dropout, the same after a resume
        accelerator.sync_gradients = last = here is steps[-1]
        with player.engine.accumulation(player.network, last):
            with accelerator.autocast():
                loss = require_loss(objective.loss(player.name, view, batch, here), objective)
            accelerator.backward(loss.value)
        log.add(player.name, loss.logs)
    log.add(player.name, {"grad_norm": player.update()})


def view_of(
    turn: str, players: Mapping[str, Player], served: Mapping[str, nn.Module], accelerator: Accelerator
) -> dict[str, nn.Module]:
    """Return the networks for a loss. The player of this turn alone is wrapped, so that its gradients are shared."""
    bare = {name: accelerator.unwrap_model(player.network) for name, player in players.items()}
    return {**served, **bare, turn: players[turn].network}


def to_use(players: Mapping[str, Player], engine: Engine) -> dict[str, nn.Module]:
    """Return the networks to sample from: the moving averages if there are any. All processes call this."""
    networks = engine.whole({name: p.bare if p.ema is None else p.ema.module for name, p in players.items()})
    for name, network in networks.items():
        if players[name].ema is not None and players[name].ema.constrained:
            constrain(network)
    return networks


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
