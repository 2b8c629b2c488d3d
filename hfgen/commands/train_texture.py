"""Train a denoiser whose first layers see texture, and save it for `hfgen.metrics.features.load_features`."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Literal

from ..console.endings import one_line
from ..disk.files import check_writable
from ..options import Options, option, parse, parser
from ..utils.ranges import ABOVE_0, AT_LEAST_0, COUNT, COUNTS, SEED
from .feature_training import autocast, optimise, save, split

EXAMPLE = (
    "python -m hfgen.commands.train_texture --dataset ylecun/mnist --name mnist-texture "
    "--output mnist-texture.safetensors"
)
NOISE_LEVELS = (0.05, 1.0)
"""Least and greatest standard deviation of the noise in images of [-1, 1]; its logarithm is uniform."""


@dataclasses.dataclass
class TextureArgs(Options):
    """Texture network"""

    dataset: str = option(
        "digits", "data set with splits train and test, see `hfgen data`; of digits, a fifth is held out", path=True
    )
    name: str = option("digits-texture", "name of the features in reports")
    output: str = option("digits-texture.safetensors", "file to write", path=True)
    widths: str = option("24,32,48,48", "channels of the four convolutions", range=COUNTS)
    max_train_steps: int = option(2000, "steps of training", range=COUNT)
    train_batch_size: int = option(64, "images per step", range=COUNT)
    learning_rate: float = option(3e-3, "peak learning rate of a one-cycle LR schedule", range=ABOVE_0)
    adam_weight_decay: float = option(1e-2, "decoupled weight decay of AdamW", range=AT_LEAST_0)
    mixed_precision: Literal["no", "bf16"] = option("bf16", "autocast")
    seed: int = option(0, "seed of initialisation, order and noise", range=SEED)


def noisy(images: Any, generator: Any) -> tuple[Any, Any]:
    """Return images (B, C, S, S) with noise of random levels, and the noise of deviation 1."""
    import torch

    low, high = NOISE_LEVELS
    levels = low * (high / low) ** torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    return images + levels * noise, noise


def fit(denoiser: Any, images: Any, args: TextureArgs) -> None:
    """Train the denoiser in place on uint8 images (N, C, S, S)."""
    import torch
    from torch.nn.functional import mse_loss

    from ..utils.pixels import from_levels
    from ..utils.seeds import generator_of

    generator = generator_of("texture", args.seed)

    def losses() -> Iterator[Any]:
        for _ in range(args.max_train_steps):
            rows = torch.randint(len(images), (args.train_batch_size,), generator=generator)
            batch, noise = noisy(from_levels(images[rows]), generator)
            with autocast(args):
                estimate = denoiser(batch.contiguous(memory_format=torch.channels_last))
            yield mse_loss(estimate.float(), noise)

    optimise(denoiser, losses(), args.max_train_steps, args)


def denoising_error(denoiser: Any, images: Any) -> float:
    """Measure the mean squared error of the estimated noise in uint8 images (N, C, S, S); of the estimate 0 it is 1."""
    import torch

    from ..utils.pixels import from_levels
    from ..utils.seeds import generator_of

    generator, errors = generator_of("texture", "held out"), []
    with torch.inference_mode():
        for part in images.split(500):
            batch, noise = noisy(from_levels(part), generator)
            errors.append((denoiser(batch) - noise).square().mean((1, 2, 3)))
    return torch.cat(errors).mean().item()


def fit_components(texture: Any, images: Any) -> None:
    """Fit the principal components of the network to uint8 images (N, C, S, S), after rounding its layers to half."""
    import torch

    from ..utils.pixels import from_levels

    with torch.inference_mode():
        for value in texture.layers.parameters():
            value.copy_(value.half())
        statistics = torch.cat([texture.statistics(from_levels(part)) for part in images.split(500)])
    texture.fit_components(statistics)


def main(argv: list[str] | None = None) -> None:
    """Train a denoiser, test it on held-out images, and save its first half with a description of the training."""
    command = parser("python -m hfgen.commands.train_texture", __doc__, EXAMPLE, TextureArgs)
    (args,) = parse(command, argv, TextureArgs)
    check_writable(args.output)
    from ..metrics.texture import Denoiser, TextureNetwork
    from ..utils.seeds import seed_initialisation

    seed_initialisation(args.seed)
    (images, _), (held_out, _) = split(args.dataset)
    shape = {"in_channels": images.shape[1], "image_size": images.shape[-1]}
    config = {**shape, "widths": list(COUNTS.parse(args.widths))}
    start = time.process_time()
    denoiser = Denoiser(TextureNetwork(**config))
    fit(denoiser, images, args)
    fit_components(denoiser.texture, images)
    error = denoising_error(denoiser, held_out)
    seconds = time.process_time() - start
    print(f"{seconds:.0f} s of CPU; error of the noise in {len(held_out):,} held-out images: {error:.4f}")
    weights = {
        key: value.half() if key.startswith("layers") else value for key, value in denoiser.texture.state_dict().items()
    }
    facts = {"denoising_error": f"{error:.4f}", "network": "TextureNetwork"}
    save(args, weights, config, facts, "error", (len(images), len(held_out)))


if __name__ == "__main__":
    with one_line():
        main()
