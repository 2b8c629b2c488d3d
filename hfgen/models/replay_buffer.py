"""A discriminator that remembers images, for objectives that look back."""

import torch
from torch import Tensor, nn


class Remembering(nn.Module):
    """Called as the discriminator inside it, with a ring of the last `capacity` images it was told to remember (an
    experience replay, as in CLC-GAN, Xu et al. 2020, https://arxiv.org/abs/1909.13188).

    Image j of slice s of step n's effective batch of N = `shards` B is number n N + s B + j, and lies in the slot of
    that number modulo the capacity. In step n images are recalled from the last min(n N, capacity - N) before n N:
    none of the present step, and none whose slot the present step takes. So what is recalled depends on the step and on
    the given draws alone, however the effective batch is cut. The ring is in `state_dict`: a resumed run recalls what
    the uninterrupted one would have.

    Args:
        discriminator: the network.
        capacity: how many images are kept, at least two effective batches.
        shape: (C, H, W) of an image.
    """

    unaveraged = ("memory", "last")
    """Buffers of which there is no moving average."""

    def __init__(self, discriminator: nn.Module, capacity: int, shape: tuple[int, int, int]):
        super().__init__()
        if capacity < 2:
            raise ValueError(f"memory_size={capacity} must be at least 2, and at least twice the effective batch.")
        self.discriminator = discriminator
        self.register_buffer("memory", torch.zeros(capacity, *shape, dtype=torch.float32))
        self.register_buffer("last", torch.tensor([-1, 0]))  # the last step that was remembered, and its N
        self._last: tuple[int, int] | None = None  # the same on the host, where it is known

    def forward(self, x: Tensor, class_labels: Tensor | None = None, return_dict: bool = True):
        """What the discriminator returns."""
        return self.discriminator(x, class_labels, return_dict)

    @torch.no_grad()
    def remember(self, images: Tensor, number: int, shard: int = 0, shards: int = 1) -> None:
        """Keep slice `shard` of `shards`, (B, C, H, W), of step `number`; to be called for every slice of every step.
        Repeated in the same step, it replaces. Where processes train together, each keeps what all of them see.

        Raises:
            ValueError: the capacity is less than two effective batches.
        """
        capacity, whole = len(self.memory), shards * len(images)
        if capacity < 2 * whole:
            raise ValueError(
                f"memory_size={capacity} must be at least {2 * whole}, twice the {whole} images of a step: one batch "
                "to recall from while another is written."
            )
        images, first = _gathered(images.detach().to(self.memory), shard)
        slots = (number * whole + first * (whole // shards) + torch.arange(len(images))) % capacity
        self.memory[slots.to(self.memory.device)] = images
        if self._last != (number, whole):
            self._last = (number, whole)
            self.last.copy_(torch.tensor(self._last))

    def recall(self, number: int, uniform: Tensor) -> Tensor | None:
        """An image of an earlier step for each of the float64 numbers in [0, 1) that are given (B,): (B, C, H, W), all
        that are kept equally likely. None in step 0, before which there is nothing.

        Raises:
            ValueError: the step before was not remembered.
        """
        if number == 0:
            return None
        before, whole = self._last or tuple(self.last.tolist())
        if before not in (number - 1, number):
            raise ValueError(
                f"step {number} can't recall: the last that was remembered is {before}. Call `remember` in every step."
            )
        kept = min(number * whole, len(self.memory) - whole)
        chosen = number * whole - kept + (uniform.double() * kept).long()
        return self.memory[(chosen % len(self.memory)).to(self.memory.device)]

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._last = None


def _gathered(images: Tensor, shard: int) -> tuple[Tensor, int]:
    """The slices that all processes have at this moment, in order, and the number of the first."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return images, shard
    parts = [torch.empty_like(images) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, images.contiguous())
    return torch.cat(parts), shard - torch.distributed.get_rank()
