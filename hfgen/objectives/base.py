"""The base class of all objectives, and the source of their randomness."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..utils.seeds import seed_of


class Loss(NamedTuple):
    """What a player minimises (a scalar with gradient) and what is worth logging (detached scalars)."""

    value: Tensor
    logs: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Step:
    """Where training stands: optimiser step `number`, which of its turns, and which slice of the effective batch.

    All randomness of an objective is drawn here, from a generator seeded by (seed, number, turn, stream). Nothing is
    left over between steps, so a resumed run draws what the uninterrupted one would have. Each draw is made for the
    whole effective batch of `shards` slices and cut, so one process with a batch of 8, two with 4, and two accumulated
    micro-steps of 4 all see the same noise on the same images.
    """

    number: int
    seed: int = 0
    turn: int = 0
    shard: int = 0
    shards: int = 1

    def seed_of(self, *stream: object) -> int:
        """A 63-bit seed for a named stream of this step and turn."""
        return seed_of(self.seed, self.number, self.turn, *stream)

    def generator(self, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator for a named stream of this step, the same on every process."""
        return torch.Generator(device).manual_seed(self.seed_of(stream))

    def cut(self, whole: Tensor) -> Tensor:
        """This shard's slice of a draw (shards * B, ...) made for the whole effective batch: (B, ...)."""
        return whole.chunk(self.shards)[self.shard]

    def randn(self, stream: str, like: Tensor) -> Tensor:
        """Standard normal noise of the shape, device and dtype of `like` (B, ...)."""
        return self._drawn(torch.randn, stream, like)

    def uniform(self, stream: str, like: Tensor) -> Tensor:
        """Numbers in [0, 1) of the shape, device and dtype of `like` (B, ...)."""
        return self._drawn(torch.rand, stream, like)

    def rand(self, stream: str, count: int) -> Tensor:
        """`count` float64 numbers in [0, 1) on the CPU."""
        whole = torch.rand(self.shards * count, generator=self.generator(stream), dtype=torch.float64)
        return self.cut(whole)

    def _drawn(self, draw: Callable[..., Tensor], stream: str, like: Tensor) -> Tensor:
        shape, generator = (self.shards * len(like), *like.shape[1:]), self.generator(stream, like.device)
        return self.cut(draw(shape, generator=generator, device=like.device, dtype=like.dtype))


class Objective(ABC):
    """A loss for each network that learns. It owns no trainable parameter and knows no network class.

    Attributes:
        players: names of the networks that learn, in turn order. A critic that moves five times is named five times.
            Every other network of the run (a teacher, a frozen autoencoder) only serves. In a player's turn the other
            players are frozen.
        state: modules whose buffers and parameters are part of the training, by name: a replay buffer, a queue, a
            teacher that averages the student. The trainer moves them to its device, saves them in each checkpoint and
            restores them bit for bit. No optimiser trains them and no moving average includes them. `loss` and
            `constrain` update them.
    """

    players: tuple[str, ...]
    state: Mapping[str, nn.Module] = MappingProxyType({})

    @abstractmethod
    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the player's loss on a batch.

        Args:
            player: the network whose turn it is.
            networks: all networks of the run by name.
            batch: "x" (B, *item), the items to model; "labels" int64 (B,) where the data have classes; whatever else
                the data set holds, such as "noise" or "mask", (B, ...) each.
            step: the place in the training, the source of all randomness.
        """

    def turns(self, number: int) -> tuple[str, ...]:
        """Return the players that move in optimiser step `number`, in order; by default all `players`.

        A player without a turn stays as it is: neither its weights nor its average nor its optimiser change. Only its
        LR schedule goes on.
        """
        return self.players

    def constrain(self, player: str, networks: Mapping[str, nn.Module]) -> None:  # noqa: B027
        """Change weights or `state` after an update of a player; by default nothing.

        The trainer calls this without gradients and with the bare networks. Here a critic's weights return to a set
        that they must not leave, and a teacher follows its student.
        """
