"""Sequences of tones: a problem with a known answer."""

import math

import torch

from hfgen.data.tensors import TensorData

NUM_CHANNELS = 2
"""Tones of a sequence, and tokens of a prompt."""


def tones(count: int, length: int, num_frequencies: int, noise_level: float = 0.0, seed: int = 0) -> TensorData:
    """Return sequences x[t, d] = sin(2 pi (k_d + 1) t / T + phase_d) plus noise, with their prompts.

    Args:
        count: number of sequences.
        length: T.
        num_frequencies: tokens k_d are drawn uniformly from 0 to `num_frequencies` - 1, phases from 0 to 2 pi.
        noise_level: standard deviation of the noise.
        seed: of all draws.

    Returns:
        A data set with "x" (T, D) and "prompt" int64 (D,).

    Raises:
        ValueError: there are no sequences, or a frequency is not below half the length.
    """
    if count < 1 or not 0 < num_frequencies < length / 2:
        raise ValueError(f"num_sequences={count} must be at least 1, and {num_frequencies=} below half of {length=}.")
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(num_frequencies, (count, NUM_CHANNELS), generator=generator)
    phase = 2 * math.pi * torch.rand(count, 1, NUM_CHANNELS, generator=generator)
    time = 2 * math.pi * torch.arange(length).view(1, -1, 1) / length
    x = torch.sin((prompt + 1).unsqueeze(1) * time + phase)  # (count, T, D)
    x = x + noise_level * torch.randn(x.shape, generator=generator)
    return TensorData({"x": x, "prompt": prompt}, name="tones", unit="sequences")
