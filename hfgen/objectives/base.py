"""What every objective is, and where its randomness comes from."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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
    """What is minimised, and by whom. A value: it owns no trainable parameter and knows no network class.

    `players` names the networks that learn, in turn order (a critic that moves five times is named five times).
    Whatever else is in `networks` (a teacher, a frozen autoencoder) only serves, and in a player's turn the other
    players are frozen.
    """

    players: tuple[str, ...]

    @abstractmethod
    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """The player's loss on a batch {"images": (B, C, H, W) in [-1, 1], "labels": (B,), ...}."""

    def turns(self, number: int) -> tuple[str, ...]:
        """Who moves in optimiser step `number`, in order; by default all `players`. Whoever does not is left as it is:
        neither updated nor averaged, its optimiser untouched. Only its LR schedule goes on."""
        return self.players

    def constrain(self, player: str, networks: Mapping[str, nn.Module]) -> None:  # noqa: B027
        """Called after each update of a player, without gradients and with the networks themselves: the place to put
        weights back into a set that they must not leave. By default there is none."""
