"""The `train_unconditional` loop of diffusers as users run it, for comparison.

With DEFAULTS it does the same as `examples/unconditional_image_generation/train_unconditional.py` of diffusers 0.42:
DDPM's linear path, epsilon prediction, uniform times, AdamW (betas .95 and .999, decay 1e-6, learning rate 1e-4, cosine
after 500 steps of warm-up), gradients clipped at 1, `EMAModel`, a loss that is fetched at every step, and images that
are decoded one by one in a `DataLoader` without workers. The script can't start without torchvision, so its transforms
(resize, crop, flip, to tensor, normalise) are written here with PIL and NumPy. Argument parsing, trackers, checkpoints
and sampling are left out; they are not part of the measured time.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader


def small_unet() -> UNet2DModel:
    """Build the network of the speed comparisons: 2.7 M parameters, 3 x 32 x 32 images, always the same weights."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def loader_of(
    dataset: Any, column: str, resolution: int, channels: int, batch_size: int, workers: int = 0
) -> DataLoader:
    """Return shuffled batches {"input": (B, C, H, W) in [-1, 1]} of a `datasets.Dataset`, decoded as in the script."""
    mode = {1: "L", 3: "RGB"}[channels]

    def transform(examples: dict[str, list[Image.Image]]) -> dict[str, list[Tensor]]:
        processed = []
        for image in examples[column]:
            image = image.convert(mode).resize((resolution, resolution), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, dtype=np.float32).reshape(resolution, resolution, channels) / 255
            processed.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous().sub_(0.5).div_(0.5))
        return {"input": processed}

    return DataLoader(dataset.with_transform(transform), batch_size=batch_size, shuffle=True, num_workers=workers)


@dataclasses.dataclass(frozen=True)
class PeerSettings:
    """Options of the script, with its defaults. `schedule` is "script" (500 steps of warm-up, cosine over 100 passes
    over the data) or "run" (see `share_of_peak`); `network` is a name in `benchmarks/race_sides.py`."""

    learning_rate: float = 1e-4
    batch_size: int = 16
    schedule: str = "script"
    network: str = "attention"
    ema_max_decay: float = 0.9999


DEFAULTS = PeerSettings()


def train(
    network: nn.Module,
    loader: DataLoader,
    steps: int | None,
    mixed_precision: str = "no",
    settings: PeerSettings = DEFAULTS,
    seconds: float | None = None,
    on_step: Callable[[int, float, EMAModel], bool] | None = None,
) -> list[float]:
    """Train for `steps` steps, or until `on_step` returns True.

    Args:
        network: the network to train.
        loader: the batches, see `loader_of`.
        steps: number of steps; None: until `on_step` returns True.
        mixed_precision: `no` or `bf16`.
        settings: options of the script.
        seconds: time of the whole run, for a schedule that ends with it.
        on_step: called with the number of steps so far, the seconds of training so far and the `EMAModel`. Its time
            does not count.

    Returns:
        The seconds of each step.
    """
    AcceleratorState._reset_state()  # an earlier loop of this process may have used another precision
    accelerator = Accelerator(mixed_precision=mixed_precision)
    dtype = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    average = EMAModel(
        network.parameters(), decay=settings.ema_max_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    times_of_steps: list[float] = []
    if settings.schedule == "script":
        lr = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=len(loader) * 100)
    else:
        lr = LambdaLR(optimizer, lambda step: share_of_peak(step, sum(times_of_steps) / seconds))
    network, optimizer, loader, lr = accelerator.prepare(network, optimizer, loader, lr)
    network.train()
    batches = _forever(loader)
    while steps is None or len(times_of_steps) < steps:
        start = time.perf_counter()
        images = next(batches)["input"].to(dtype)
        noise = torch.randn(images.shape, dtype=dtype)
        times = torch.randint(0, 1000, (len(images),)).long()
        noisy = scheduler.add_noise(images, noise, times)
        with accelerator.accumulate(network):
            output = network(noisy, times).sample
            loss = F.mse_loss(output.float(), noise.float())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            lr.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.step(network.parameters())
        loss.detach().item()
        times_of_steps.append(time.perf_counter() - start)
        if on_step is not None and on_step(len(times_of_steps), sum(times_of_steps), average):
            break
    return times_of_steps


def share_of_peak(step: int, time_spent: float) -> float:
    """Return the learning rate as a share of its peak: 200 steps of warm-up, and a cosine that ends with the time.

    `time_spent` is the share of the time that has passed.
    """
    return min(1, step / 200) * 0.5 * (1 + math.cos(math.pi * min(1, time_spent)))


def _forever(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader
