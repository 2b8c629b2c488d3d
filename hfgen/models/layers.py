"""Functions that all networks share. This file imports torch alone, and is part of the file that ships a network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

MAX_MATMUL_KEYS = 1024
"""Longest sequence of keys for which attention by matrix products is used."""


def real(x: Tensor) -> Tensor:
    """Return x in float32 if its precision is lower."""
    return x if x.dtype == torch.float64 else x.float()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool = False,
    start: int | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v in each head, for q (B, heads, N, d) and k, v (B, heads, M, d).

    This is PyTorch's fused attention, except for bfloat16 on a CPU: there its backward pass takes up to eight times as
    long as that of two matrix products. The matrix products hold all N x M weights in memory, so long sequences use
    the fused attention even there. Derivatives in forward mode (`torch.func.jvp`), which the fused attention does not
    have, are always those of matrix products.

    Args:
        query, key, value: q, k and v.
        causal: whether a query sees the keys up to its own position alone.
        start: position of the first query among the M keys; None: the N queries are the last of them.
        visible (B, M): True for keys that queries see; None: they see all.
    """
    masked = causal and (query.shape[-2] > 1 or start is not None)
    mask = causal_mask(query.shape[-2], key.shape[-2], query.device, start) if masked else None
    if visible is not None:
        mask = visible[:, None, None] if mask is None else mask & visible[:, None, None]  # (B, 1, 1, M), (B, 1, N, M)
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= MAX_MATMUL_KEYS
    if slow or any(map(has_tangent, (query, key, value))):
        return matmul_attention(query, key, value, mask)
    if masked and visible is None and start is None and query.shape[-2] == key.shape[-2]:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention by two matrix products; `mask`, (N, M) or (B, 1, 1 or N, M), is True where a query sees a
    key."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, N, M)
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


def causal_mask(queries: int, keys: int, device: torch.device | str, start: int | None = None) -> Tensor:
    """Return a bool mask (queries, keys) that lets positions from `start` on, by default the last ones, see those up to
    their own."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries if start is None else start)


def guided_outputs(outputs: Tensor, scale: float) -> Tensor:
    """Return h(null) + scale (h(class) - h(null)), (B, ...), of outputs (2 B, ...): those of the classes, then those of
    the null class (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598)."""
    given, free = outputs.chunk(2)
    return free + scale * (given - free)


class ImageGroupNorm(nn.GroupNorm):
    """PyTorch's group norm, which in forward mode (`torch.func.jvp`) also takes images that are not contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if has_tangent(x) else x)


def has_tangent(x: Tensor) -> bool:
    """Return whether a derivative in forward mode is computed along with x."""
    return forward_ad.unpack_dual(x).tangent is not None


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) for a size that is the side of a square or both sides."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def patch_side(height: int, width: int, most: int, smallest: int = 1) -> int:
    """Return the smallest side, from `smallest` on, of patches that tile an image into at most `most` tokens.

    If no patch tiles it into so few, the largest one that tiles it is returned; 1 always does.
    """
    sides = [side for side in range(smallest, min(height, width)) if height % side == width % side == 0] or [1]
    few = [side for side in sides if height * width <= most * side**2]
    return few[0] if few else sides[-1]


def expand_timestep(timestep: Tensor | float | int, sample: Tensor) -> Tensor:
    """Expand a time step, a number or a tensor (), (1,) or (B,), to one for each item of the sample, (B,).

    Fractions are kept. (diffusers' U-Nets drop the fraction of a Python float, but not of a tensor.)
    """
    return torch.as_tensor(timestep, device=sample.device).expand(len(sample))


def check_class_labels(class_labels: Tensor | None, num_class_embeds: int | None, guidance_scale: float = 1.0) -> None:
    """Refuse labels that a network does not take, and a call without labels that it needs.

    Args:
        class_labels: the labels (B,), or None.
        num_class_embeds: the network's number of class embeddings; None: it has none.
        guidance_scale: of the call; 1: none.

    Raises:
        ValueError: one is None and the other is not, or guidance without labels.
    """
    if class_labels is None and num_class_embeds is not None:
        raise ValueError(
            f"class_labels are needed: the network has num_class_embeds={num_class_embeds}. Pass a label for each "
            f"item. If the last one means 'no class', that is {num_class_embeds - 1}."
        )
    if class_labels is not None and num_class_embeds is None:
        raise ValueError(
            "class_labels were passed to a network without classes. Leave them out, or set num_class_embeds."
        )
    if guidance_scale != 1.0 and class_labels is None:
        raise ValueError(f"{guidance_scale=} needs class_labels. Use guidance_scale=1.")
