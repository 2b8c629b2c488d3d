"""Markov chains that go on from step to step of a training, as the state of an objective."""

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import COUNT, check_range
from .base import Step
from .replay_buffer import gather_slices


class PersistentChains(nn.Module):
    """States of `count` Markov chains (Tieleman 2008, https://doi.org/10.1145/1390156.1390290). A step takes the chains
    of N of them at random, as many as its effective batch has items, goes on with them, and writes them back.

    Which chains a step takes depends on the step alone, and no two slices of a step take the same one. The result
    therefore does not depend on how the effective batch is cut. The chains are in `state_dict`: as `Objective.state`
    they are saved in checkpoints, and a resumed run goes on from the same states.

    Args:
        count: number of chains, at least the effective batch.
        item_shape: shape of a state, such as (C, H, W).

    Raises:
        ValueError: the number is no whole number from 1.
    """

    unaveraged = ("items", "labels", "ages")
    """Buffers that a moving average of a network leaves unchanged."""

    @checked
    def __init__(self, count: int, item_shape: tuple[int, ...]):
        super().__init__()
        check_range("count", count, COUNT)
        self.register_buffer("items", torch.zeros(count, *item_shape, dtype=torch.float32))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.long))
        self.register_buffer("ages", torch.zeros(count, dtype=torch.long))

    def slots(self, step: Step, count: int) -> Tensor:
        """Return the numbers of the chains that this slice of a step takes, int64 (count,) on the CPU.

        Raises:
            ValueError: there are fewer chains than items in the effective batch.
        """
        whole = count * step.shards
        if whole > len(self.items):
            raise ValueError(f"{len(self.items)} chains are fewer than the {whole} items of a step. Raise num_chains.")
        return step.cut(torch.randperm(len(self.items), generator=step.generator("chains"))[:whole])

    def read(self, slots: Tensor, fresh: Tensor, labels: Tensor, restart: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states (B, *item) and labels (B,) of chains.

        Args:
            slots (B,): their numbers.
            fresh (B, *item): states that chains begin with.
            labels (B,): classes that chains begin with; they keep them.
            restart (B,): bool, whether a chain begins anew. One that has not begun does so anyway.
        """
        slots = slots.to(self.items.device)
        new = restart.to(slots.device) | (self.ages[slots] == 0)
        rows = new.reshape(-1, *[1] * (fresh.ndim - 1))
        return torch.where(rows, fresh, self.items[slots].to(fresh)), torch.where(new, labels, self.labels[slots])

    @torch.no_grad()
    def write(self, slots: Tensor, items: Tensor, labels: Tensor) -> None:
        """Write the states (B, *item) and labels (B,) of chains back. If several processes train together, each one
        holds the chains of all."""
        device = self.items.device
        parts = (slots.to(device), items.detach().to(self.items), labels.to(device))
        slots, items, labels = (gather_slices(part) for part in parts)
        self.items[slots], self.labels[slots] = items, labels
        self.ages[slots] += 1
