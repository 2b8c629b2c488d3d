"""Muon: gradient descent whose steps are orthogonal matrices, for the hidden layers of a network."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.adamw import adamw

from .shards import full, part_of

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the odd polynomial that is iterated: it takes singular values in (0, 1] to about [0.7, 1.2] in five steps."""

SMALLEST = 16
"""Matrices of fewer rows or columns are left to AdamW."""


class Layout(NamedTuple):
    """How the weight of a layer is read as matrices, one for each group of a convolution.

    Attributes:
        groups: G.
        transposed: whether the weight is (in, out / G, *kernel), not (out, in / G, *kernel).
    """

    groups: int = 1
    transposed: bool = False

    def matrices(self, weight: Tensor) -> Tensor:
        """Return a weight as (G, out / G, in / G * kernel)."""
        parts = weight.unflatten(0, (self.groups, -1))
        return (parts.transpose(1, 2) if self.transposed else parts).flatten(2)

    def weight(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """Return matrices as a weight of this shape: the inverse of `matrices`."""
        rows, columns, kernel = shape[0] // self.groups, shape[1], shape[2:]
        if not self.transposed:
            return matrices.reshape(shape)
        return matrices.reshape(self.groups, columns, rows, *kernel).transpose(1, 2).reshape(shape)


def hidden_matrices(network: nn.Module) -> dict[nn.Parameter, Layout]:
    """Find the weights that Muon trains, with their layouts.

    These are the weights of linear layers and convolutions that learn and have at least 16 rows and columns, except the
    first and the last of these layers in the order in which the network holds them: they read and write data, and no
    basis of theirs is as good as another. Embeddings, norms and parameters of other modules are not among them.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | _ConvNd)]
    found = {weight: _layout(layer) for layer in layers[1:-1] for weight in _weights(layer)}
    ends = {weight for layer in (*layers[:1], *layers[-1:]) for weight in _weights(layer)}
    sizes = {p: layout.matrices(torch.empty(p.shape, device="meta")).shape for p, layout in found.items()}
    return {p: found[p] for p, (_, *sides) in sizes.items() if p not in ends and min(sides) >= SMALLEST}


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return about U V^T for matrices U S V^T (N, rows, columns), by Newton-Schulz iteration.

    The singular values of the result are between 0.6 and 1.2, if those of a matrix are at least 1e-3 of its norm;
    smaller ones are raised by a factor of at most 490. Zero stays zero. The scale of a matrix is of no influence,
    however small. The iteration is in bfloat16, on a CPU in float32, where products of small matrices are faster.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x, dtype = matrices.mT if tall else matrices, torch.float32 if matrices.device.type == "cpu" else torch.bfloat16
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1)).to(dtype)  # all zeros alone are below 1
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for the hidden matrices of a network W,

        M <- mu M + (1 - mu) G,    W <- (1 - lr' w) W - lr' sqrt(max(1, rows / columns)) O((1 - mu) G + mu M)

    with the gradient G, its moving average M, O of `orthogonal`, and lr' = `ratio` * lr. All other parameters have
    AdamW. `torch.optim.Muon` is the same without AdamW and takes matrices alone. A convolution is a matrix
    (out, in * kernel), one for each of its groups. Where a weight is split over processes, each process gathers the
    gradient of the step, and updates its part.

    Args:
        network: holds the parameters; those that learn are trained.
        lr: learning rate of AdamW.

    Its parameter groups have the entries `ratio` (5), `momentum` mu (0.95) and `matrix_decay` w (0.01), and AdamW's
    `betas` (0.9, 0.99), `eps` (1e-8) and `weight_decay` (0).

    Raises:
        ValueError: the network has no hidden matrix, see `hidden_matrices`.
    """

    def __init__(self, network: nn.Module, lr: float):
        self._layouts = hidden_matrices(network)
        others = [p for p in network.parameters() if p.requires_grad and p not in self._layouts]
        if not self._layouts:
            raise ValueError(
                f"--optimizer muon trains the hidden matrices of a network, of at least {SMALLEST} x {SMALLEST}, and "
                f"{type(network).__name__} has none. Use --optimizer adamw."
            )
        defaults = {"lr": lr, "ratio": 5.0, "momentum": 0.95, "matrix_decay": 0.01}
        # `fused` keeps the step counts on the device of their parameters when a state is loaded.
        defaults |= {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "fused": True}
        super().__init__([{"params": list(self._layouts)}, {"params": others}], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient."""
        matrices, others = self.param_groups
        for p in matrices["params"]:
            if p.grad is not None:
                self._update(p, matrices)
        _adamw([p for p in others["params"] if p.grad is not None], self.state, others)

    def _update(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        """Update a matrix."""
        state, mu = self.state[p], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        momentum = state["momentum_buffer"].lerp_(p.grad, 1 - mu)
        direction = self._layouts[p].matrices(full(p.grad.lerp(momentum, mu)))
        rows, columns = direction.shape[-2:]
        direction = self._layouts[p].weight(orthogonal(direction), p.shape).to(p.dtype)
        rate = group["ratio"] * group["lr"]
        p.mul_(1 - rate * group["matrix_decay"])
        p.add_(part_of(direction, p), alpha=-rate * math.sqrt(max(1, rows / columns)))


def _adamw(parameters: list[nn.Parameter], states: dict[nn.Parameter, Any], group: dict[str, Any]) -> None:
    """Update parameters by torch's fused AdamW."""
    for p in parameters:
        if not states[p]:
            states[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            states[p] |= {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
    kept = [[states[p][key] for p in parameters] for key in ("exp_avg", "exp_avg_sq", "step")]
    beta1, beta2 = group["betas"]
    options = {"beta1": beta1, "beta2": beta2, **{key: group[key] for key in ("lr", "eps", "weight_decay", "fused")}}
    gradients = [p.grad for p in parameters]
    adamw(parameters, gradients, *kept[:2], [], kept[2], amsgrad=False, maximize=False, **options)


def _layout(layer: nn.Module) -> Layout:
    return Layout(getattr(layer, "groups", 1), getattr(layer, "transposed", False))


def _weights(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameter of the weight's shape that learns, if there is one, also under a norm of torch."""
    shape = (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else _shape(layer)
    norms = getattr(layer, "parametrizations", {})
    held = [*layer._parameters.values(), *(norms["weight"]._parameters.values() if "weight" in norms else ())]
    yield from (p for p in held if p is not None and p.requires_grad and tuple(p.shape) == shape)


def _shape(layer: _ConvNd) -> tuple[int, ...]:
    outer, inner = layer.out_channels, layer.in_channels
    outer, inner = (inner, outer) if layer.transposed else (outer, inner)
    return outer, inner // layer.groups, *layer.kernel_size
