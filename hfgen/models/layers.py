"""What the networks share. Imports torch alone: a network can be shipped as one file with this one in front of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_MATMUL_KEYS = 1024


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in each head, for q (B, heads, N, d) and k, v (B, heads, M, d): (B, heads, N, d).

    PyTorch's fused attention, but for bfloat16 on a CPU, where its backward takes up to eight times as long as that of
    the two matrix products written out. Those hold all N x M weights, so long sequences stay with the fused one.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= MAX_MATMUL_KEYS:
        return matmul_attention(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def matmul_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same, written out."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, N, M)
    return scores.softmax(-1) @ value


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a size that is given as one side of a square or as both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def batch_of_times(timestep: Tensor | float | int, sample: Tensor) -> Tensor:
    """A time for each image, (B,), from a number, or a tensor () or (1,) or (B,); whole or not.

    diffusers' U-Nets cut the fraction off a time that is a Python float; a tensor keeps it.
    """
    return torch.as_tensor(timestep, device=sample.device).expand(len(sample))


def check_class_labels(class_labels: Tensor | None, num_class_embeds: int | None) -> None:
    """Refuse labels that the network has no embedding for, and missing ones that it needs."""
    if class_labels is None and num_class_embeds is not None:
        raise ValueError(
            f"class_labels should be given: the network has num_class_embeds={num_class_embeds}. "
            f"Pass a label for each image; where the last one means 'no class', that is {num_class_embeds - 1}."
        )
    if class_labels is not None and num_class_embeds is None:
        raise ValueError(
            "class_labels were given to a network without classes. Leave them out, or set num_class_embeds."
        )
