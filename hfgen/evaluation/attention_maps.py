"""Where a network looks: the weights of its attention, caught while it runs."""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax)


@dataclasses.dataclass(frozen=True)
class AttentionMap:
    """One attention of one evaluation of a network.

    Attributes:
        layer: the module's name.
        call: which of the module's evaluations, from 0.
        weights: (B, heads, N, M) float32 on the CPU: how much each of M positions counts for each of N; rows sum to 1.
        positions: (h, w) with h w = N = M, row by row; None where they are not all the positions of one image.
    """

    layer: str
    call: int
    weights: Tensor
    positions: tuple[int, int] | None

    def received(self) -> Tensor:
        """How much each position is looked at, averaged over those that look: (B, heads, M), each row sums to 1."""
        return self.weights.mean(-2)

    def seen_from(self, row: int, column: int) -> Tensor:
        """How much the position at (row, column) looks at each: (B, heads, M)."""
        return self.weights[..., row * self.positions[1] + column, :]

    def breadth(self, *cell: int) -> Tensor:
        """To how many positions one looks: exp(entropy of its row), from 1 to M, (B, heads). Of the position (row,
        column), or without one averaged over all."""
        rows = self.seen_from(*cell).unsqueeze(-2) if cell else self.weights
        return torch.special.entr(rows).sum(-1).exp().mean(-1)


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
    """The weights in PyTorch's `scaled_dot_product_attention`, whose arguments these are:

        softmax(q k^T scale + mask),    scale = 1 / sqrt(d) by default (Vaswani et al. 2017,
        https://arxiv.org/abs/1706.03762),

    for q (..., N, d) and k (..., M, d): (..., N, M) float32. Dropout, which is drawn after them, is left out.
    """
    query, key = query.detach().float(), key.detach().float()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if hidden else scores + attn_mask
    return scores.softmax(-1)


@contextlib.contextmanager
def capture(
    network: nn.Module,
    image_size: tuple[int, int] | None = None,
    keep: Callable[[str, int], bool] = lambda layer, call: True,
) -> Iterator[list[AttentionMap]]:
    """Inside, every attention that `network` computes is added to the list that this gives.

    The network computes just what it would: its calls of `scaled_dot_product_attention`, whatever module or processor
    makes them, go through unchanged, and queries and keys are looked at beside; where attention is written out
    (diffusers' `AttnProcessor`), its softmax is what is kept. Attention within compiled code is not seen.

    Args:
        network: any module: `DiTModel`, `PatchUNet2DModel`, diffusers' and transformers' networks.
        image_size: (H, W) of the images: of N positions in a sequence it is then known how they lie, if they tile H x W
            as squares do. An attention over (B, C, h, w) says so itself.
        keep: of a layer and the number of its evaluation, whether to keep it.
    """
    found: list[AttentionMap] = []
    running, handles = _Running(image_size, keep, found), []
    for name, module in network.named_modules():
        enter, leave = running.enter(name), running.leave
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with running:
            yield found
    finally:
        for handle in handles:
            handle.remove()


class _Running(TorchFunctionMode):
    """Knows which module is running, and sees what it calls."""

    def __init__(self, image_size: tuple[int, int] | None, keep: Callable[[str, int], bool], found: list[AttentionMap]):
        super().__init__()
        self.image_size, self.keep, self.found = image_size, keep, found
        self.stack: list[tuple[str, nn.Module, tuple[int, int] | None]] = []
        self.calls: Counter[str] = Counter()

    def enter(self, name: str) -> Callable[..., None]:
        """A hook for before a module runs: notes its name, and the (h, w) of images that it is given."""

        def hook(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            size = tuple(given[0].shape[-2:]) if given and given[0].ndim == 4 else None
            self.stack.append((name, module, size))

        return hook

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        """A hook for after a module ran."""
        self.stack.pop()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.stack and func is F.scaled_dot_product_attention:
            self._note(lambda: attention_weights(*args, **kwargs))
        elif self.stack and func in SOFTMAX and "atten" in type(self.stack[-1][1]).__name__.lower():
            self._note(lambda: _by_head(result.detach().float(), self.stack[-1][1]))
        return result

    def _note(self, weights: Callable[[], Tensor]) -> None:
        name, _, size = self.stack[-1]
        call, self.calls[name] = self.calls[name], self.calls[name] + 1
        if not self.keep(name, call):
            return
        found = weights().cpu()
        queries, keys = found.shape[-2:]
        positions = size or (self.image_size and _grid(keys, *self.image_size))
        whole = positions is not None and queries == keys == math.prod(positions)
        self.found.append(AttentionMap(name, call, found, tuple(positions) if whole else None))


def _by_head(weights: Tensor, module: nn.Module) -> Tensor:
    """(B heads, N, M) of diffusers' written-out processors as (B, heads, N, M)."""
    return weights.unflatten(0, (-1, module.heads)) if weights.ndim == 3 else weights


def _grid(count: int, height: int, width: int) -> tuple[int, int] | None:
    """(h, w) of `count` equal squares that tile an image of this size; None if none do."""
    rows = round(math.sqrt(count * height / width))
    fits = rows > 0 and count % rows == 0 and rows * width == count // rows * height
    return (rows, count // rows) if fits else None


def spread(heat: Tensor, positions: tuple[int, int], covered: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Numbers of positions (h w,), each over its share of a picture: (H, W) of `size`.

    Args:
        heat: one number a position, row by row.
        positions: (h, w).
        covered: height and width that the positions divide evenly, in pixels of the picture: its own, or more where
            the network padded it below and to the right.
        size: (H, W).
    """
    rows, columns = (
        (torch.arange(length, dtype=torch.float64) * count / whole).long()
        for length, count, whole in zip(size, positions, covered, strict=True)
    )
    return heat.reshape(positions)[rows][:, columns]
