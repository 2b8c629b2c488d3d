"""Means over all items of a step, whatever micro-batches and processes see them."""

import torch
from torch import Tensor, nn

from .replay_buffer import gather_slices


class StepMean(nn.Module):
    """The mean of values that the micro-batches of a step add, over all processes. It is state of an objective: a
    resumed run goes on with the same bits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float32))  # of the values, and their number

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Add the values (B,) of a micro-batch."""
        self.sums += torch.stack([values.detach().float().sum(), self.sums.new_tensor(len(values))])

    @torch.no_grad()
    def take(self) -> tuple[Tensor, Tensor]:
        """Return mean () and number () of the values of all processes since the last call; without values both are
        0. Every process must call this."""
        total, count = gather_slices(self.sums[None]).sum(0)
        self.sums.zero_()
        return total / count.clamp(min=1), count
