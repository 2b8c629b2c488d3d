"""A memory of items from earlier steps, as the state of an objective."""

import warnings

import torch
from torch import Tensor, nn

from ..utils.arguments import checked


class ReplayBuffer(nn.Module):
    """A ring of the last `capacity` items (experience replay, as in CLC-GAN, Xu et al. 2020,
    https://arxiv.org/abs/1909.13188).

    The effective batch of step n has N = `shards` B items. Item j of its slice s has number n N + s B + j, and its slot
    in the ring is that number modulo the capacity. Step n reads from the last min(n N, capacity - N) items before
    number n N. These are never items of step n, nor items that step n overwrites. The result therefore depends only on
    the step and on `uniform`, not on how the effective batch is cut.

    The ring is in `state_dict`. As `Objective.state` it is saved in checkpoints, so a resumed run reads the same items
    as an uninterrupted one.

    Args:
        capacity: number of items, at least two effective batches.
        item_shape: shape of an item, such as (C, H, W).

    Raises:
        ValueError: the capacity is below 2.
    """

    unaveraged = ("items", "last")
    """Buffers that a moving average of a network leaves unchanged."""

    @checked
    def __init__(self, capacity: int, item_shape: tuple[int, ...]):
        super().__init__()
        if capacity < 2:
            raise ValueError(f"memory_size={capacity} must be at least 2, and at least twice the effective batch.")
        self.register_buffer("items", torch.zeros(capacity, *item_shape, dtype=torch.float32))
        self.register_buffer("last", torch.tensor([-1, 0]))  # the last written step and its N
        self._last: tuple[int, int] | None = None  # a copy on the host; None after loading

    @torch.no_grad()
    def write(self, items: Tensor, number: int, shard: int = 0, shards: int = 1) -> None:
        """Write one slice of a step. Call this for every slice of every step.

        A second call for the same slice replaces the first. If several processes train together, each one holds the
        items of all.

        Args:
            items (B, *item): the slice.
            number: the step.
            shard, shards: number of the slice, and of slices.

        Raises:
            ValueError: the capacity is below two effective batches.
        """
        capacity, effective_batch = len(self.items), shards * len(items)
        if capacity < 2 * effective_batch:
            raise ValueError(
                f"memory_size={capacity} must be at least {2 * effective_batch}, twice the {effective_batch} items of "
                "a step: one batch is read while another is written."
            )
        items, first_shard = _gather(items.detach().to(self.items), shard)
        first = number * effective_batch + first_shard * (effective_batch // shards)
        slots = (first + torch.arange(len(items))) % capacity
        self.items[slots.to(self.items.device)] = items
        if self._last != (number, effective_batch):
            self._last = (number, effective_batch)
            self.last.copy_(torch.tensor(self._last))

    def read(self, number: int, uniform: Tensor) -> Tensor | None:
        """Return items of earlier steps.

        Args:
            number: the present step.
            uniform (B,): float64 numbers in [0, 1), one for each item. Equal numbers select the same item; all stored
                items are equally likely.

        Returns:
            Items (B, *item); None in step 0.

        Raises:
            ValueError: the previous step was not written.
        """
        if number == 0:
            return None
        last_step, effective_batch = self._last or tuple(self.last.tolist())
        if last_step not in (number - 1, number):
            raise ValueError(
                f"step {number} has no items to read: the last written step is {last_step}. Call `write` in every step."
            )
        count = min(number * effective_batch, len(self.items) - effective_batch)
        rows = number * effective_batch - count + (uniform.double() * count).long()
        return self.items[(rows % len(self.items)).to(self.items.device)]

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._last = None


class Remembering(nn.Module):
    """A discriminator with a replay buffer, the former place of the buffer. Use `Adversarial(..., replay=...)` instead.

    Args:
        discriminator: the network. A call of this module is a call of the network.
        capacity, shape: of the `ReplayBuffer`.
    """

    @checked
    def __init__(self, discriminator: nn.Module, capacity: int, shape: tuple[int, ...]):
        super().__init__()
        warnings.warn(
            f"Remembering will be removed: give the {type(discriminator).__name__} itself, with "
            f"Adversarial(..., replay=hfgen.ReplayBuffer({capacity}, {tuple(shape)})).",
            FutureWarning,
            stacklevel=2,
        )
        self.discriminator, self.replay_buffer = discriminator, ReplayBuffer(capacity, shape)

    def forward(self, *args, **kwargs):
        """Call the discriminator."""
        return self.discriminator(*args, **kwargs)


def _gather(items: Tensor, shard: int) -> tuple[Tensor, int]:
    """Gather the present slices of all processes, in order; return them and the number of the first slice."""
    if not _many_processes():
        return items, shard
    return gather_slices(items), shard - torch.distributed.get_rank()


def gather_slices(values: Tensor) -> Tensor:
    """Return the present slices (B, ...) of all processes, in order, as one tensor; of a single process its own."""
    if not _many_processes():
        return values
    slices = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(slices, values.contiguous())
    return torch.cat(slices)


def _many_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
