"""Glow of normflows as a peer, as its examples build and train it, and as somebody tunes it who knows the loop.

normflows (`pip install normflows`, in an environment of its own that has hfgen, too) is not copied: its classes are
called. What its example of Glow (examples/glow.ipynb) does around them is written here: Adamax with a rate of 0.001 and
a weight decay of 1e-5, batches of 128, uniform noise in the bins. The tuned side has Adam, gradients clipped at 1, a
rate that falls to 0 with the time, and a moving average of the weights.
"""

import dataclasses
import importlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.data.batches import Batches
from hfgen.distributions.densities import dequantised
from hfgen.trainer.ema import EMA


@dataclasses.dataclass(frozen=True)
class GlowSettings:
    """What the peer trains.

    Attributes:
        levels, blocks, hidden: levels, blocks of each, and channels inside (examples/glow.ipynb: 3, 16, 256, for images
            of 32 x 32 on a GPU).
        batch: images a step.
        rate: learning rate, the peak of a tuned one.
        tuned: whether it is the tuned side.
        precision: `no` or `bf16`.
    """

    levels: int = 2
    blocks: int = 8
    hidden: int = 64
    batch: int = 128
    rate: float = 1e-3
    tuned: bool = False
    precision: str = "no"


class PeerGlow(nn.Module):
    """Glow of normflows: `log_prob` of images (B, C, H, W), in nats, and `sample`.

    Raises:
        ValueError: normflows is not installed.
    """

    def __init__(self, settings: GlowSettings, shape: tuple[int, int, int]):
        super().__init__()
        try:
            nf = importlib.import_module("normflows")
        except ImportError as error:
            raise ValueError(
                f"normflows can't be used ({error}). Install it beside hfgen: pip install normflows"
            ) from None
        bases, flows, merges, levels = [], [], [], settings.levels
        channels, height, width = shape
        for i in range(levels):
            inside = channels * 2 ** (levels + 1 - i)
            blocks = [nf.flows.GlowBlock(inside, settings.hidden) for _ in range(settings.blocks)]
            flows.append([*blocks, nf.flows.Squeeze()])
            if i:
                merges.append(nf.flows.Merge())
            kept = inside // 2 if i else inside
            side = 2 ** (levels - i)
            bases.append(nf.distributions.DiagGaussian((kept, height // side, width // side)))
        self.flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) (B,)."""
        return self.flow.log_prob(x.clone(), None)  # its layers write into their inputs

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Draw images (count, C, H, W)."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.flow.sample(count)[0]


def train(settings: GlowSettings, data: Any, seconds: float, seed: int = 0, on_step: Callable | None = None) -> tuple:
    """Train for so many seconds.

    Args:
        settings: the side.
        data: `ImageData` in memory.
        seconds: time of training, in this thread.
        seed: of weights, order and noise.
        on_step: called with the loss of each step, for tests.

    Returns:
        The network, tuned with averaged weights; the seconds; the number of images.
    """
    torch.manual_seed(seed)
    network = PeerGlow(settings, (data.channels, *data.size))
    rows = Batches(data, settings.batch, seed)
    first = next(iter(rows.iterate(0)))["x"]
    network.log_prob(dequantised(first, torch.rand_like(first)))  # sets the actnorms
    parameters = list(network.parameters())
    if settings.tuned:
        optimizer, average = torch.optim.Adam(parameters, lr=settings.rate), EMA(network, 0.998)
    else:
        optimizer, average = torch.optim.Adamax(parameters, lr=settings.rate, weight_decay=1e-5), None
    stream, began, steps = iter(rows.iterate(0)), time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        if settings.tuned:
            share = min(1, (steps + 1) / 100) * (1 + math.cos(math.pi * spent / seconds)) / 2
            optimizer.param_groups[0]["lr"] = settings.rate * share
        x = next(stream)["x"]
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = -network.log_prob(dequantised(x, torch.rand_like(x))).mean() / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        if settings.tuned:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if average is not None:
            average.update(network)
        steps += 1
        if on_step is not None:
            on_step(loss.item())
    return network if average is None else average.module, spent, steps * settings.batch
