"""Exponential moving averages of whole networks, buffers included."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.optim.swa_utils import AveragedModel

from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, BELOW_1, check_range
from .shards import local


class EMA(AveragedModel):
    """A copy of a network whose parameters and float buffers follow

        w_ema <- decay_n w_ema + (1 - decay_n) w,    decay_n = min(max_decay, 1 - (1 + n / inv_gamma)^-power)

    after the n-th update. Running statistics, such as those of BatchNorm, are such buffers. The averaged network itself
    is `.module`. Buffers without a meaningful average are treated otherwise:

    - counters, masks and other buffers that are no real numbers, and buffers with infinite values, are copied;
    - those that a module lists in its class attribute `unaveraged` (records such as a replay memory) stay unchanged;
    - so do the vectors of torch's spectral norms, and what a module computes in its method `recompute_buffers`:
      `constrain` computes both anew from the averages.

    Where the network is split over processes, each one averages its parts.

    The warm-up is that of diffusers' `EMAModel` and Karras' k-diffusion: early weights are forgotten quickly. The copy
    and its saved state are those of torch's `AveragedModel`, whose own update takes as long as a step of a small
    network. diffusers' `EMAModel` skips buffers, so BatchNorm would be saved with its initial values.

    Args:
        network: the network to copy.
        max_decay: largest decay, in [0, 1).
        inv_gamma, power: of the warm-up, both positive.

    Raises:
        ValueError: a number is out of range.
    """

    @checked
    def __init__(self, network: nn.Module, max_decay: float = 0.999, inv_gamma: float = 1.0, power: float = 0.75):
        for name, value, allowed in (
            ("ema_max_decay", max_decay, BELOW_1),
            ("ema_inv_gamma", inv_gamma, ABOVE_0),
            ("ema_power", power, ABOVE_0),
        ):
            check_range(name, value, allowed)
        detach_computed(network)
        super().__init__(network, use_buffers=True)
        self.max_decay, self.inv_gamma, self.power = max_decay, inv_gamma, power
        self.requires_grad_(False).eval()
        self.n_averaged.fill_(1)  # the copy made above is the first average
        self.updates = 0
        modules = list(network.named_modules())
        self._records = {f"{at}.{name}".lstrip(".") for at, part in modules for name in getattr(part, "unaveraged", ())}
        vectors = [f"{at}.{name}".lstrip(".") for at, part in modules for name in _singular_vectors(part)]
        self._records |= set(vectors)
        self._copied = {name for name, buffer in network.named_buffers() if not _has_average(buffer)}
        self.constrained = bool(vectors) or any(hasattr(part, "recompute_buffers") for _, part in modules)

    def decay(self, updates: int) -> float:
        """Return the decay of update number `updates`, counted from 1."""
        return min(self.max_decay, 1 - (1 + updates / self.inv_gamma) ** -self.power)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average with the network's present weights."""
        self.updates += 1
        for combine, tensors in ((self._average, self._averaged), (torch._foreach_copy_, self._copies)):
            if averaged := tensors(self.module):
                combine(averaged, tensors(network))

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the average back to the constraints of the network, see `constrain`."""
        if self.constrained:
            constrain(self.module)

    def _average(self, averaged: list[Tensor], current: list[Tensor]) -> None:
        torch._foreach_lerp_(averaged, current, 1 - self.decay(self.updates))

    def _averaged(self, network: nn.Module) -> list[Tensor]:
        """Return parameters and buffers that are averaged, always in the same order, as real numbers."""
        skipped = self._records | self._copied
        buffers = [buffer for name, buffer in network.named_buffers() if name not in skipped]
        tensors = [local(value) for value in (*network.parameters(), *buffers)]
        return [torch.view_as_real(value) if value.is_complex() else value for value in tensors]

    def _copies(self, network: nn.Module) -> list[Tensor]:
        """Return the buffers that are copied, in the same order."""
        return [buffer for name, buffer in network.named_buffers() if name in self._copied - self._records]

    def state_dict(self, *args, **kwargs) -> dict:
        return {**super().state_dict(*args, **kwargs), "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict, *args, **kwargs) -> None:
        state = dict(state)
        self.updates = int(state.pop("updates"))
        super().load_state_dict(state, *args, **kwargs)


@torch.no_grad()
def constrain(network: nn.Module) -> None:
    """Bring buffers that follow from a network's weights and other buffers up to date with them.

    Spectral norms of torch become those of the present weights: power iteration lags one step behind, and the average
    of its vectors is the singular vector of nothing. Then modules with a method `recompute_buffers` are asked to.
    """
    for part in network.modules():
        for weight, u, v in _spectral_norms(part):
            left, _, right = torch.linalg.svd(weight.float(), full_matrices=False)
            u.copy_(left[:, 0])
            v.copy_(right[0])
        if hasattr(part, "recompute_buffers"):
            part.recompute_buffers()


def _has_average(buffer: Tensor) -> bool:
    """Return whether a buffer holds finite real or complex numbers; a mean with infinity is NaN."""
    return (buffer.is_floating_point() or buffer.is_complex()) and bool(buffer.isfinite().all())


def detach_computed(network: nn.Module) -> None:
    """Detach tensors that modules computed in an earlier pass and hold as attributes: only leaves can be copied.

    torch's older spectral and weight norms hold their weights like that.
    """
    for part in network.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(part)[name] = value.detach()


def _singular_vectors(part: nn.Module) -> list[str]:
    """Return the names of the buffers of a module that hold singular vectors of one of torch's spectral norms."""
    if isinstance(part, _SpectralNorm):
        return [name for name in ("_u", "_v") if hasattr(part, name)]
    hooks = [hook for hook in part._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)]
    return [f"{hook.name}_{side}" for hook in hooks for side in "uv"]


def _spectral_norms(part: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each weight of a module with a spectral norm, as a matrix, and its singular vectors u and v."""
    for parametrizations in getattr(part, "parametrizations", {}).values():
        names = [""] if parametrizations.is_tensor else range(parametrizations.ntensors)
        value = [getattr(parametrizations, f"original{name}") for name in names]
        for norm in parametrizations:  # each is a function of what the one before returns
            if isinstance(norm, _SpectralNorm) and hasattr(norm, "_u"):
                yield norm._reshape_weight_to_matrix(*value), norm._u, norm._v
            value = [norm(*value)]
    for hook in part._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            matrix = hook.reshape_weight_to_matrix(getattr(part, f"{hook.name}_orig"))
            yield matrix, getattr(part, f"{hook.name}_u"), getattr(part, f"{hook.name}_v")
