"""The parts of a checkpoint besides networks and optimisers: averages, an objective's state, buffers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..console.text import with_article

SERVED = "served_"
"""Prefix of the files that hold the buffers of networks that do not learn."""


class ServedBuffers:
    """The persistent buffers of a network that does not learn, as something to save and restore.

    Such a network's parameters never change, so a run that resumes loads them from where they came. Its buffers may
    change: a counter, a running mean, a queue.
    """

    def __init__(self, network: nn.Module):
        self.network = network

    def state_dict(self) -> dict[str, Tensor]:
        """Return the buffers by name."""
        parameters = {name for name, _ in self.network.named_parameters(remove_duplicate=False)}
        return {name: value for name, value in self.network.state_dict().items() if name not in parameters}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the buffers. Raises RuntimeError if the names or shapes differ."""
        present = self.state_dict()
        if present.keys() != state.keys():
            raise RuntimeError(f"the buffers are {sorted(present)}, and {sorted(state)} were saved")
        for name, value in state.items():
            present[name].copy_(value)


def refuse_extra_state(name: str, network: nn.Module) -> None:
    """Raise ValueError for a network with state that is no tensor (`get_extra_state`): checkpoints can't hold it."""
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} has {key!r}, {with_article(type(value).__name__)}, in its state. Checkpoints hold tensors "
                "alone: register it as a buffer."
            )


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, contiguous, and a copy of each that shares memory with an earlier one: tied weights."""
    places, result = set(), {}
    for name, value in tensors.items():
        place = (value.device, value.data_ptr()) if value.numel() else None
        result[name] = value.clone() if place in places else value.contiguous()
        places |= {place} - {None}
    return result


def saved_modules(averages: Mapping[str, Any], state: Mapping[str, Any], served: Mapping[str, nn.Module]) -> dict:
    """Return what a checkpoint saves by the stem of its file.

    Args:
        averages: the moving average of each player, if kept.
        state: the objective's state.
        served: networks that do not learn. Those without buffers are left out.
    """
    buffers = {f"{SERVED}{name}": ServedBuffers(network) for name, network in served.items()}
    return {
        **{f"ema_{name}": average for name, average in averages.items()},
        **{f"state_{name}": module for name, module in state.items()},
        **{stem: module for stem, module in buffers.items() if module.state_dict()},
    }
