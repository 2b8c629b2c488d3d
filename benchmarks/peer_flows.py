"""Published examples of flow matching on MNIST as peers, at their own settings: minRF and torchcfm.

Their code is not copied: minRF's is loaded from a clone of github.com/cloneofsimo/minRF, torchcfm's from its package
(`pip install torchcfm`, in an environment of its own that has hfgen, too). What their scripts do around it is written
here: Adam at a constant rate, no moving average, batches without the last one that is not full. Images are in memory,
while the scripts decode them one by one; that makes the peers faster.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.utils.pixels import from_levels


@dataclasses.dataclass(frozen=True)
class PublishedFlow:
    """An example of another project.

    Attributes:
        build: no arguments -> the network.
        loss: network, images (B, 1, S, S) in [-1, 1], labels (B,) -> the loss.
        velocity: network, x (B, 1, S, S), t (B,) from data at 0 to noise at 1, labels (B,) -> the velocity in that
            direction.
        batch_size, learning_rate: settings of the example.
        size: side S of the images that the network takes; smaller ones get a border of black pixels.
        num_class_embeds: classes that the network embeds; one more than the data have with a null class.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    velocity: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    batch_size: int
    learning_rate: float
    size: int
    num_class_embeds: int


class VelocityNetwork(nn.Module):
    """The network of a published flow, called as hfgen's denoisers are: time steps from 0 (data) to 1000 (noise)."""

    def __init__(self, flow: PublishedFlow):
        super().__init__()
        self.network, self.velocity = flow.build(), flow.velocity

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Return the velocity at x (B, 1, S, S)."""
        return self.velocity(self.network, x, timestep / 1000, class_labels)


def minrf(folder: str | None) -> PublishedFlow:
    """Return the MNIST example of minRF (rf.py): a DiT, images with a border of 2 pixels, logit-normal times, batches
    of 256, Adam with 5e-4.

    Raises:
        ValueError: the folder is no clone of it.
    """
    files = {name: Path(folder or "", f"{name}.py") for name in ("dit", "rf")}
    if folder is None or not all(file.is_file() for file in files.values()):
        raise ValueError(f"--minrf {folder} holds no dit.py and rf.py: give a clone of github.com/cloneofsimo/minRF.")
    dit, rf = (_module(f"minrf_{name}", file) for name, file in files.items())
    return PublishedFlow(
        build=lambda: dit.DiT_Llama(1, 32, dim=64, n_layers=6, n_heads=4, num_classes=10),
        loss=lambda network, x, labels: rf.RF(network).forward(x, labels)[0],
        velocity=lambda network, x, t, labels: network(x, t, labels),
        batch_size=256,
        learning_rate=5e-4,
        size=32,
        num_class_embeds=11,
    )


def torchcfm() -> PublishedFlow:
    """Return torchcfm's example of conditional MNIST (examples/images/conditional_mnist.ipynb): a U-Net with 32
    channels, uniform times, batches of 128, Adam with 1e-3. Its time runs from noise to data.

    Raises:
        ValueError: torchcfm is not installed.
    """
    try:
        matching = importlib.import_module("torchcfm.conditional_flow_matching")
        unet = importlib.import_module("torchcfm.models.unet")
    except ImportError as error:
        raise ValueError(f"torchcfm can't be used ({error}). Install it beside hfgen: pip install torchcfm") from None
    matcher = matching.ConditionalFlowMatcher(sigma=0.0)

    def loss(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        t, x_t, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x), x)
        return F.mse_loss(network(t, x_t, labels), velocity)

    return PublishedFlow(
        build=lambda: unet.UNetModel(
            dim=(1, 28, 28), num_channels=32, num_res_blocks=1, num_classes=10, class_cond=True
        ),
        loss=loss,
        velocity=lambda network, x, t, labels: -network(1 - t, x, labels),
        batch_size=128,
        learning_rate=1e-3,
        size=28,
        num_class_embeds=10,
    )


def train(flow: PublishedFlow, network: VelocityNetwork, data: Any, on_step: Callable[[int, float], bool]) -> None:
    """Train the network of a published flow in float32, until `on_step` returns True.

    Args:
        flow: the settings.
        network: is trained in place.
        data: `ImageData` in memory, grey and with labels.
        on_step: called with the number of steps and the seconds of training so far. Its time does not count.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=flow.learning_rate)
    batches, steps, seconds = _batches(data, flow.batch_size), 0, 0.0
    border, stop = (flow.size - data.size[0]) // 2, False
    with without_cuda():
        while not stop:
            network.train()
            start = time.perf_counter()
            images, labels = next(batches)
            optimizer.zero_grad()
            loss = flow.loss(network.network, F.pad(images, [border] * 4, value=-1.0), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            steps, seconds = steps + 1, seconds + time.perf_counter() - start
            stop = on_step(steps, seconds)


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """Inside the block, `tensor.cuda()` leaves a tensor where it is on machines without CUDA. (minRF calls it.)"""
    if torch.cuda.is_available():
        yield
        return
    with mock.patch.object(Tensor, "cuda", lambda self, *_, **__: self):
        yield


def _batches(data: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        for rows in torch.randperm(len(data)).split(batch_size):
            if len(rows) == batch_size:
                yield from_levels(data.images[rows]), data.labels[rows]


def _module(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
