"""A memory of items from earlier steps: the state of objectives that look back."""

import warnings

import torch
from torch import Tensor, nn


class ReplayBuffer(nn.Module):
    """A ring of the last `capacity` items that were written (experience replay, as in CLC-GAN, Xu et al. 2020,
    https://arxiv.org/abs/1909.13188).

    Item j of slice s of step n's effective batch of N = `shards` B items has number n N + s B + j and lies in the slot
    of that number modulo the capacity. In step n, items are read from the last min(n N, capacity - N) before n N: none
    of the present step, and none whose slot the present step takes. What is read therefore depends on the step and on
    the given numbers alone, however the effective batch is cut. The ring is in `state_dict`: as `Objective.state` it is
    saved in checkpoints, and a resumed run reads what the uninterrupted one would have read.

    Args:
        capacity: number of items, at least two effective batches.
        item_shape: shape of an item, such as (C, H, W).

    Raises:
        ValueError: the capacity is less than 2.
    """

    unaveraged = ("items", "last")
    """Buffers that a moving average of a network leaves unchanged."""

    def __init__(self, capacity: int, item_shape: tuple[int, ...]):
        super().__init__()
        if capacity < 2:
            raise ValueError(f"memory_size={capacity} must be at least 2, and at least twice the effective batch.")
        self.register_buffer("items", torch.zeros(capacity, *item_shape, dtype=torch.float32))
        self.register_buffer("last", torch.tensor([-1, 0]))  # the last step that was written, and its N
        self._last: tuple[int, int] | None = None  # the same on the host, if known there

    @torch.no_grad()
    def write(self, items: Tensor, number: int, shard: int = 0, shards: int = 1) -> None:
        """Write slice `shard` of `shards`, (B, *item), of step `number`; call it for every slice of every step.

        A second call in the same step replaces the first. If several processes train together, each one holds the
        items of all.

        Raises:
            ValueError: the capacity is less than two effective batches.
        """
        capacity, whole = len(self.items), shards * len(items)
        if capacity < 2 * whole:
            raise ValueError(
                f"memory_size={capacity} must be at least {2 * whole}, twice the {whole} images of a step: one batch "
                "to read from while another is written."
            )
        items, first = _gathered(items.detach().to(self.items), shard)
        slots = (number * whole + first * (whole // shards) + torch.arange(len(items))) % capacity
        self.items[slots.to(self.items.device)] = items
        if self._last != (number, whole):
            self._last = (number, whole)
            self.last.copy_(torch.tensor(self._last))

    def read(self, number: int, uniform: Tensor) -> Tensor | None:
        """Return an item of an earlier step for each number in `uniform`.

        Args:
            number: the present step.
            uniform (B,): float64 numbers in [0, 1). Equal numbers give equal items; all stored items are equally
                likely.

        Returns:
            (B, *item), or None in step 0, before which there is no item.

        Raises:
            ValueError: the step before was not written.
        """
        if number == 0:
            return None
        before, whole = self._last or tuple(self.last.tolist())
        if before not in (number - 1, number):
            raise ValueError(
                f"step {number} has nothing to read: the last step that was written is {before}. Call `write` in every "
                "step."
            )
        count = min(number * whole, len(self.items) - whole)
        rows = number * whole - count + (uniform.double() * count).long()
        return self.items[(rows % len(self.items)).to(self.items.device)]

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._last = None


class Remembering(nn.Module):
    """The former home of a replay buffer: a discriminator that carries it. Use `Adversarial(..., replay=...)` instead.

    Args:
        discriminator: the network, called as it is.
        capacity, shape: of the `ReplayBuffer`.
    """

    def __init__(self, discriminator: nn.Module, capacity: int, shape: tuple[int, ...]):
        super().__init__()
        warnings.warn(
            "Remembering will be removed: give the bare discriminator, and Adversarial(..., "
            "replay=hfgen.ReplayBuffer(capacity, shape)).",
            FutureWarning,
            stacklevel=2,
        )
        self.discriminator, self.replay_buffer = discriminator, ReplayBuffer(capacity, shape)

    def forward(self, *args, **kwargs):
        """Call the discriminator."""
        return self.discriminator(*args, **kwargs)


def _gathered(items: Tensor, shard: int) -> tuple[Tensor, int]:
    """Return the slices that all processes hold at this moment, in order, and the number of the first."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items, shard
    parts = [torch.empty_like(items) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, items.contiguous())
    return torch.cat(parts), shard - torch.distributed.get_rank()
