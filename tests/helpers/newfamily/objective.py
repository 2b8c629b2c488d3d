"""The objective: any other objective, with items of earlier steps in each batch."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hfgen.objectives.base import Loss, Objective, Step
from hfgen.objectives.replay_buffer import ReplayBuffer


class Rehearsal(Objective):
    """Replace a share of each batch by items of earlier steps (rehearsal: Robins 1995,
    https://doi.org/10.1080/09540099550039318).

    The items are read from replay buffers, one for each tensor of the batch that belongs together, and the batch is
    then written to them. The buffers are the objective's state: checkpoints hold them.

    Args:
        inner: an objective with one player.
        capacity: items to remember, at least two effective batches.
        shapes: shape of an item of each tensor to replay, by its name in the batch.
        share: probability in [0, 1] that an item is replaced.

    Raises:
        ValueError: the capacity or the share is out of range.
    """

    def __init__(self, inner: Objective, capacity: int, shapes: Mapping[str, tuple[int, ...]], share: float = 0.25):
        if not 0 <= share <= 1:
            raise ValueError(f"replay_share={share} is a probability; give a number in [0, 1], such as 0.25.")
        self.inner, self.players, self.share = inner, inner.players, share
        self.state = {name: ReplayBuffer(capacity, shape) for name, shape in shapes.items()} if share else {}

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the inner objective's loss on the mixed batch, and the share of replayed items in the logs."""
        uniform, replayed = step.rand("replayed item", len(batch["x"])), step.rand("replayed", len(batch["x"]))
        rows = (replayed < self.share) & (step.number > 0)  # (B,)
        mixed = dict(batch)
        for name, buffer in self.state.items():
            earlier = buffer.read(step.number, uniform)
            if earlier is not None:
                mask = rows.view(-1, *[1] * (earlier.ndim - 1)).to(earlier.device)
                mixed[name] = torch.where(mask, earlier.to(batch[name].dtype), batch[name])
            buffer.write(batch[name], step.number, step.shard, step.shards)
        value, logs = self.inner.loss(player, networks, mixed, step)
        return Loss(value, {**logs, "replayed": rows.float().mean().to(value.device)})
