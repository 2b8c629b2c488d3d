"""Evaluations of a network of two times in a loss, and its derivative along a trajectory."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..paths import StraightPath, broadcast
from .base import at_least_float32, sample_of

_TIMESTEP = StraightPath().timestep
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Draws:
    """The state of torch's random numbers before an evaluation, so that later ones have the same dropout.

    A difference between two evaluations with other masks is mostly that of the masks.

    Args:
        device: of the networks.
    """

    def __init__(self, device: torch.device):
        self.devices = [device] if device.type == "cuda" else []
        self.state = torch.get_rng_state()
        self.others = [torch.cuda.get_rng_state(each) for each in self.devices]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside the block random numbers are drawn again; behind it they go on as if there were no block."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.state)
            for device, state in zip(self.devices, self.others, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def has_dropout(network: nn.Module) -> bool:
    """Return whether a network draws dropout."""
    drawing = [module for module in network.modules() if isinstance(module, _DROPOUT) and module.training]
    return any(module.p > 0 for module in drawing)


def output_of(network: nn.Module, x: Tensor, t: Tensor, r: Tensor | None, kwargs: Mapping[str, Tensor]) -> Tensor:
    """Evaluate a network at x (B, *item) and times (B,).

    Args:
        network: called as network(x, timestep, **kwargs), and with `r_timestep` if r is given.
        x: the items.
        t, r: times of the straight path; r = None: a network of one time, or r = t.
        kwargs: further arguments.

    Returns:
        (B, *item), at least float32.
    """
    ends = {} if r is None else {"r_timestep": _steps(r, x)}
    return at_least_float32(sample_of(network(x, _steps(t, x), **ends, **kwargs)))


def forward_mode(
    network: nn.Module,
    x: Tensor,
    direction: Tensor,
    t: Tensor,
    r: Tensor,
    kwargs: Mapping[str, Tensor],
    draws: Draws,
) -> Tensor:
    """Compute du/dt = d_x u direction + d_t u of u(x, t, r) by forward-mode differentiation, (B, *item).

    There is no gradient here, so the module itself is called: gradients that processes share are those of the other
    evaluation, of the wrapped module. Autocast has no forward mode, so this is in float32.

    Args:
        network, x, t, r, kwargs: see `output_of`.
        direction: dx/dt (B, *item).
        draws: of the evaluation of u.
    """
    call, steps, ends = _bare_call(network), _steps(t, x), _steps(r, x)
    scale = float(_TIMESTEP(torch.ones(())))

    def u(x: Tensor, timestep: Tensor) -> Tensor:
        return sample_of(call(x, timestep, r_timestep=ends, **kwargs))

    tangents = direction.to(x.dtype), torch.full_like(steps, scale)
    with draws.again(), torch.autocast(x.device.type, enabled=False):
        return torch.func.jvp(u, (x, steps), tangents)[1]


def difference(
    network: nn.Module,
    u: Tensor,
    x: Tensor,
    direction: Tensor,
    t: Tensor,
    r: Tensor,
    s: Tensor,
    kwargs: Mapping[str, Tensor],
    draws: Draws,
) -> Tensor:
    """Compute (u(x_t, t, r) - u(x_s, s, r)) / (t - s) with x_s = x_t - (t - s) direction, (B, *item); 0 where t = s.

    Args:
        network, x, direction, t, r, kwargs, draws: see `forward_mode`.
        u: u(x_t, t, r) (B, *item).
        s: times (B,) between r and t.
    """
    length = broadcast(t - s, x)
    with draws.again():
        earlier = output_of(network, x - length * direction, s, r, kwargs)
    return torch.where(length > 0, (u - earlier) / length.clamp(min=1e-12), 0.0)


def _steps(t: Tensor, x: Tensor) -> Tensor:
    """Return time steps of times (B,), on the device of x, in float32 at least."""
    return _TIMESTEP(t).to(x.device, torch.promote_types(x.dtype, torch.float32))


def _bare_call(network: nn.Module) -> Any:
    """Return the call of a module itself: without DDP, compilation, hooks, or the autocast that accelerate adds."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    network = getattr(network, "_orig_mod", network)
    return lambda *args, **kwargs: type(network).forward(network, *args, **kwargs)
