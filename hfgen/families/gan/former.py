"""Checkpoints of hfgen 0.1, in which a discriminator carried the memory of closed-loop control."""

from typing import Any

import torch
from torch import nn

from ...objectives.replay_buffer import ReplayBuffer

WRAPPED = "discriminator."
"""Prefix of the discriminator's weights in such a checkpoint."""


def accept_former_checkpoints(discriminator: nn.Module, replay: ReplayBuffer) -> None:
    """Let a discriminator load the weights of such a checkpoint, and give the memory in it to the replay buffer."""

    def convert(state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Rename the weights in a state that is about to be loaded, and take the memory out of it."""
        wrapped = [name for name in state if name.startswith(prefix + WRAPPED)]
        if not wrapped:
            return
        memory, last = (state.pop(prefix + name, None) for name in ("memory", "last"))
        for name in wrapped:
            state[prefix + name.removeprefix(prefix + WRAPPED)] = state.pop(name)
        if not prefix and memory is not None:  # a moving average holds an empty memory
            replay.load_state_dict({"items": memory, "last": last.to(torch.int64)})
            replay.restored = True

    discriminator._register_load_state_dict_pre_hook(convert)
