"""The base class of all objectives, and the source of their randomness."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..utils.seeds import generator_of, seed_of


class Loss(NamedTuple):
    """A player's loss.

    Attributes:
        value: the scalar to minimise, with gradient.
        logs: scalars for the log by name, detached.
    """

    value: Tensor
    logs: dict[str, Tensor]


def loss_with_logs(value: Tensor, logs: Mapping[str, Tensor]) -> Loss:
    """Return a `Loss` whose logs hold the value as "loss" and other scalars, all detached."""
    return Loss(value, {name: log.detach() for name, log in {"loss": value, **logs}.items()})


def choose(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known. Choose one of: {', '.join(choices)}.")


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if it has less precision: losses take differences of outputs, scores and gradients."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sample_of(output: object) -> Tensor:
    """Return the tensor in a network's output, which is called `sample` there or is the output itself."""
    return getattr(output, "sample", output)


def require_loss(value: object, objective: object) -> Loss:
    """Return what an objective's `loss` returned. Raises TypeError if it is no `Loss`."""
    if not isinstance(value, Loss):
        name = f"{type(objective).__name__}.loss"
        raise TypeError(f"{name} returned {type(value).__name__}. Return hfgen.Loss(value, logs).")
    return value


@dataclasses.dataclass(frozen=True)
class Step:
    """The place in the training, and the source of all randomness of an objective.

    Each draw comes from a new generator, seeded by (seed, number, turn, stream). No generator lives on between steps,
    so a resumed run draws the same numbers as an uninterrupted one. Each draw is made for the whole effective batch of
    `shards` slices, and then cut. One process with a batch of 8, two processes with 4, and two accumulated
    micro-batches of 4 therefore see the same noise on the same items.

    Attributes:
        number: the optimiser step, from 0 on.
        seed: of the run.
        turn: position of the player's turn in the step.
        shard: the slice of the effective batch that this micro-batch is.
        shards: number of slices.
    """

    number: int
    seed: int = 0
    turn: int = 0
    shard: int = 0
    shards: int = 1

    def seed_of(self, *stream: int | str) -> int:
        """Return a 63-bit seed for a named stream of this step and turn."""
        return seed_of("training", self.seed, self.number, self.turn, *stream)

    def generator(self, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a new generator for a named stream of this step and turn, the same on every process."""
        return generator_of("training", self.seed, self.number, self.turn, stream, device=device)

    def cut(self, whole: Tensor) -> Tensor:
        """Return this shard's slice (B, ...) of a draw (shards * B, ...) for the whole effective batch."""
        return whole.chunk(self.shards)[self.shard]

    def randn(self, stream: str, like: Tensor) -> Tensor:
        """Draw standard normal noise of the shape, device and dtype of `like` (B, ...)."""
        return self._draw(torch.randn, stream, like)

    def uniform(self, stream: str, like: Tensor) -> Tensor:
        """Draw uniform numbers in [0, 1) of the shape, device and dtype of `like` (B, ...)."""
        return self._draw(torch.rand, stream, like)

    def rand(self, stream: str, count: int) -> Tensor:
        """Draw `count` uniform float64 numbers in [0, 1) on the CPU."""
        whole = torch.rand(self.shards * count, generator=self.generator(stream), dtype=torch.float64)
        return self.cut(whole)

    def _draw(self, draw: Callable[..., Tensor], stream: str, like: Tensor) -> Tensor:
        shape, generator = (self.shards * len(like), *like.shape[1:]), self.generator(stream, like.device)
        return self.cut(draw(shape, generator=generator, device=like.device, dtype=like.dtype))


class Objective(ABC):
    """Base of all objectives: a loss for each network that learns.

    An objective owns no trainable parameter and knows no class of networks.

    Attributes:
        players: names of the networks that learn, in turn order. A critic with five turns is named five times. Every
            other network of the run (a teacher, a frozen autoencoder) is frozen. In a player's turn the other players
            are frozen, too.
        needs: names of the networks that its losses evaluate and that do not learn: a teacher, a perceptual network.
        call: names of the arguments that its losses call the players with besides items and condition, as hfgen's
            networks name them: ("timestep",). A network of hfgen or diffusers that takes others is refused. None: not
            said, not checked.
        state: modules whose buffers and parameters are part of the training, by name: a replay buffer, a queue, a
            teacher that averages the student. The trainer moves them to its device, saves them in each checkpoint and
            restores them bit for bit. No optimiser trains them and no moving average includes them. `loss` and
            `constrain` update them.
        batches_per_step: number of effective batches in an optimiser step. Turn k of a step sees batch k, and all
            later turns see the last one. With 1, all turns of a step have the same items.
        differentiates_twice: whether a loss holds gradients of networks (`torch.autograd.grad`), as penalties do.
            `--sharding` then keeps networks whole within a turn.
    """

    players: tuple[str, ...]
    needs: tuple[str, ...] = ()
    call: tuple[str, ...] | None = None
    batches_per_step: int = 1
    differentiates_twice: bool = False
    state: Mapping[str, nn.Module] = MappingProxyType({})

    @abstractmethod
    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the player's loss on a batch.

        Args:
            player: the network whose turn it is.
            networks: all networks of the run by name.
            batch: "x" (B, *item), the items to model; "labels" int64 (B,) if the data have classes; and any other
                tensor (B, ...) of the data set, such as "noise" or "mask".
            step: the place in the training, the source of all randomness.
        """

    def turns(self, number: int) -> tuple[str, ...]:
        """Return the players that move in optimiser step `number`, in order; by default all `players`.

        Without a turn, a player's weights, moving average and optimiser do not change. Only its LR schedule goes on.
        """
        return self.players

    def project(self, player: str, network: nn.Module) -> None:  # noqa: B027
        """Project a player's weights onto its constraint set; by default there is no constraint.

        The trainer calls this without gradients, after each update of the player and for its moving average, so that a
        saved network obeys the same constraints.
        """

    def constrain(self, player: str, networks: Mapping[str, nn.Module]) -> None:
        """Change weights or `state` after an update of a player; by default `project` its weights.

        The trainer calls this without gradients and with the bare networks. The moving average of a teacher belongs
        here.
        """
        self.project(player, networks[player])
