"""Attention maps: the attention weights of any network, recorded while it runs."""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax)


@dataclasses.dataclass(frozen=True)
class AttentionMap:
    """The weights of one attention layer in one evaluation of the network.

    Attributes:
        layer: name of the module.
        call: number of the module's evaluation, from 0.
        weights: (B, heads, N, M) float32 on the CPU: the weight of key m for query n; each row of M sums to 1.
        grid: (h, w) if the N = M = h w positions are those of one image, row by row; else None.
    """

    layer: str
    call: int
    weights: Tensor
    grid: tuple[int, int] | None

    def query_mean(self) -> Tensor:
        """Return the weight of each key, averaged over all queries: (B, heads, M); each row sums to 1."""
        return self.weights.mean(-2)

    def from_query(self, row: int, column: int) -> Tensor:
        """Return the weights of the query at (row, column) of the grid: (B, heads, M)."""
        return self.weights[..., row * self.grid[1] + column, :]

    def perplexity(self, *cell: int) -> Tensor:
        """Return exp(entropy) of a query's weights, from 1 to M: the number of keys that it attends to, (B, heads).

        Args:
            cell: row and column of the query; without them the result is the mean over all queries.
        """
        rows = self.from_query(*cell).unsqueeze(-2) if cell else self.weights
        return torch.special.entr(rows).sum(-1).exp().mean(-1)


class Trace(NamedTuple):
    """Attention maps of a call of a pipeline.

    Attributes:
        image: the final image (C, H, W) in [-1, 1].
        inputs: (title, input of the network (C, H, W)) of each step that is shown.
        maps: the map of each layer and step that is shown.
    """

    image: Tensor
    inputs: list[tuple[str, Tensor]]
    maps: list[AttentionMap]


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights that PyTorch's `scaled_dot_product_attention` computes from the same arguments:

        softmax(q k^T scale + mask),    scale = 1 / sqrt(d) by default (Vaswani et al. 2017,
        https://arxiv.org/abs/1706.03762),

    for q (..., N, d) and k (..., M, d): (..., N, M) float32. `value` is not used, and dropout is not applied.
    """
    query, key = query.detach().float(), key.detach().float()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if boolean else scores + attn_mask
    return scores.softmax(-1)


@contextlib.contextmanager
def capture(
    network: nn.Module,
    image_size: tuple[int, int] | None = None,
    select: Callable[[str, int], bool] = lambda layer, call: True,
) -> Iterator[list[AttentionMap]]:
    """Record every attention that `network` computes inside the context, in the list that it yields.

    The network's outputs and gradients keep their bits. Calls of `scaled_dot_product_attention`, in any module or
    processor, pass through unchanged; the weights are computed beside them from the same queries and keys. If attention
    is written out (diffusers' `AttnProcessor`), the result of its softmax is recorded. Attention in compiled code is
    not recorded.

    Args:
        network: any module: `DiTModel`, `PatchUNet2DModel`, networks of diffusers and transformers.
        image_size: (H, W) of the images. It gives the grid of a sequence of N positions, if squares tile the image in
            N equal parts. The grid of an attention on (B, C, h, w) is (h, w). Positions that a module sees from the
            last to the first, as its attribute `reversed_positions` says, are put in order. What a module adds behind
            its input (B, n, D), as its attribute `pads_positions` says, is left out.
        select: (layer, number of its evaluation) -> whether to record it.
    """
    maps: list[AttentionMap] = []
    backward = [(name, part) for name, part in network.named_modules() if getattr(part, "reversed_positions", False)]
    reversed_layers = {layer for name, part in backward for layer, _ in part.named_modules(prefix=name)}
    recorder, handles = _Recorder(image_size, select, maps, reversed_layers), []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(recorder.enter(name), with_kwargs=True))
        handles.append(module.register_forward_hook(recorder.leave(), always_call=True))
    try:
        with recorder:
            yield maps
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchFunctionMode):
    """Intercepts torch functions, and knows by hooks which module calls them."""

    def __init__(
        self,
        image_size: tuple[int, int] | None,
        select: Callable[[str, int], bool],
        maps: list[AttentionMap],
        reversed_layers: Collection[str],
    ):
        super().__init__()
        self.image_size, self.select, self.maps, self.reversed_layers = image_size, select, maps, reversed_layers
        self.stack: list[tuple[str, nn.Module, tuple[int, int] | None]] = []
        self.lengths: list[int] = []  # of the inputs of the modules of the stack that pad them
        self.calls: Counter[str] = Counter()

    def enter(self, name: str) -> Callable[..., None]:
        """Return a forward pre-hook that pushes the module's name, and (h, w) of its input (B, C, h, w), if it is."""

        def hook(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            size = tuple(tensors[0].shape[-2:]) if tensors and tensors[0].ndim == 4 else None
            self.stack.append((name, module, size))
            if getattr(module, "pads_positions", False):
                self.lengths.append(tensors[0].shape[1])

        return hook

    def leave(self) -> Callable[..., None]:
        """Return a forward hook that pops the module. It is a function, so that it stays this recorder's in a copy of
        the network, which a pipeline may make to compute in another precision."""

        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            self.stack.pop()
            if getattr(module, "pads_positions", False):
                self.lengths.pop()

        return hook

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.stack and func is F.scaled_dot_product_attention:
            self._record(lambda: attention_weights(*args, **kwargs))
        elif self.stack and func in SOFTMAX and "atten" in type(self.stack[-1][1]).__name__.lower():
            self._record(lambda: _split_heads(result.detach().float(), self.stack[-1][1]))
        return result

    def _record(self, compute: Callable[[], Tensor]) -> None:
        name, _, size = self.stack[-1]
        call, self.calls[name] = self.calls[name], self.calls[name] + 1
        if not self.select(name, call):
            return
        weights = compute().cpu()
        queries, keys = weights.shape[-2:]
        if self.lengths and queries > self.lengths[-1]:
            queries, keys = self.lengths[-1], self.lengths[-1] if queries == keys else keys
            weights = weights[..., :queries, :keys]
        grid = size or (self.image_size and _grid(keys, *self.image_size))
        whole = grid is not None and queries == keys == math.prod(grid)
        if whole and name in self.reversed_layers:
            weights = weights.flip(-2, -1)
        self.maps.append(AttentionMap(name, call, weights, tuple(grid) if whole else None))


def _split_heads(weights: Tensor, module: nn.Module) -> Tensor:
    """Return (B, heads, N, M) for the (B heads, N, M) of diffusers' written-out processors."""
    return weights.unflatten(0, (-1, module.heads)) if weights.ndim == 3 else weights


def _grid(count: int, height: int, width: int) -> tuple[int, int] | None:
    """Return (h, w) of `count` > 1 equal squares that tile an image of this size; None if no squares do."""
    if count == 1:  # the first step of a sequence whose keys are kept, and not an image of one position
        return None
    rows = round(math.sqrt(count * height / width))
    fits = rows > 0 and count % rows == 0 and rows * width == count // rows * height
    return (rows, count // rows) if fits else None


def enlarge(heat: Tensor, grid: tuple[int, int], extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Return a heat map (H, W) of a picture from one number for each cell of a grid; each pixel takes its cell's.

    Args:
        heat: (h w,), row by row.
        grid: (h, w).
        extent: height and width that the grid covers, in pixels of the picture: the picture's own, or more if the
            network pads images below and on the right.
        size: (H, W).
    """
    rows, columns = (
        (torch.arange(length, dtype=torch.float64) * count / whole).long()
        for length, count, whole in zip(size, grid, extent, strict=True)
    )
    return heat.reshape(grid)[rows][:, columns]
