"""Latents of the training images by a trained autoencoder, as a data set."""

from typing import Any

import torch
from torch import Tensor

from ...console.progress import ProgressBar, quiet
from ...data.batches import Batch
from ...data.images import ImageData
from ...data.tensors import TensorData, digest_of
from ...utils.pixels import from_levels
from ...utils.seeds import generator_of

BLOCK = 256
"""Images that are encoded in one pass."""


class LatentData(TensorData):
    """Latents z ~ q(z | x) of images, drawn anew for each batch.

    Args:
        mean, deviation (N, d, h, w): of q for each image; a deviation of 0 for an autoencoder without q.
        name: for messages and cards.
        fingerprint: a string that identifies images and autoencoder; default: a digest of every bit. The last bits of
            latents depend on the machine and its threads, and a training may go on with others.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, name: str, fingerprint: str | None = None):
        super().__init__({"x": mean, "deviation": deviation}, name, "latents", fingerprint=fingerprint)

    def finish(self, batch: Batch, position: int, seed: int) -> Batch:
        """Return the batch with "x" as draws from q."""
        noise = torch.randn(batch["x"].shape, generator=generator_of("latents", seed, position))
        return {"x": batch["x"] + batch["deviation"] * noise}


@torch.no_grad()
def extract(pipeline: Any, data: ImageData, seed: int) -> LatentData:
    """Encode all images with the autoencoder of a `VAEPipeline`.

    Grey images of a `bernoulli` likelihood become black and white at random, once.
    """
    generator, parts = generator_of("prior", seed), []
    with ProgressBar(total=len(data), desc="Encoding", unit="image") as bar, quiet(pipeline):
        for rows in torch.arange(len(data)).split(BLOCK):
            images = from_levels(data.pixels(rows)[0])
            images = pipeline.likelihood.prepare(images, lambda x: torch.rand(x.shape, generator=generator))
            q = pipeline.autoencoder.encode(images.to(pipeline.autoencoder.device)).latent_dist
            deviation = q.std if pipeline.config.variational else torch.zeros_like(q.std)
            parts.append(torch.stack([q.mean, deviation]).float().cpu())
            bar.update(len(rows))
    weights = digest_of(pipeline.autoencoder.state_dict())
    return LatentData(*torch.cat(parts, 1), f"the latents of {data.name}", f"{data.fingerprint} {weights} {seed}")
