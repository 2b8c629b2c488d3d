"""Latents of the training images by a trained autoencoder, as a data set that is encoded once."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.block_cache import BlockCache, block_sizes
from ..data.encoded import LatentData
from ..data.images import ImageData
from ..data.tensors import digest_of
from ..distributions.latents import coded, latent_shape_of
from ..distributions.likelihoods import Likelihood
from ..objectives.base import Objective
from ..objectives.encoded import Encoded
from ..options import DataArgs
from ..utils.pixels import from_levels
from ..utils.seeds import generator_of

BLOCK = 1000
"""Images in a file."""

PASS = 250
"""Images that are encoded in one pass."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What makes latents of images.

    Attributes:
        autoencoder: any that `hfgen.distributions.latents.coded` knows.
        images: the data set.
        seed: of the preparation.
        likelihood: prepares the images: grey ones of `bernoulli` become black and white at random, once. None: they
            stay as they are.
        variational: whether q was trained; otherwise a latent is the encoder's mean.
    """

    autoencoder: nn.Module
    images: ImageData
    seed: int
    likelihood: Likelihood | None = None
    variational: bool = True

    @property
    def binary(self) -> bool:
        """Return whether images become black and white."""
        return self.likelihood is not None and self.likelihood.levels == 2

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape (d, h, w) of a latent."""
        return latent_shape_of(self.autoencoder, self.images.item_shape)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the latents depend on."""
        return {
            "weights": digest_of(self.autoencoder.state_dict()),
            "images": self.images.fingerprint,
            "count": len(self.images),
            "preparation": f"binarised with seed {self.seed}" if self.binary else "none",
            "variational": self.variational,
            "block": BLOCK,
        }

    @torch.no_grad()
    def __call__(self, rows: Tensor, block: int = 0) -> dict[str, Tensor]:
        """Return mean "x" and "deviation" (B, d, h, w) of q(z | x) and, if there are classes, "labels" of rows."""
        levels, labels = self.images.pixels(rows)
        images = from_levels(levels)
        if self.binary:
            generator = generator_of("prior", self.seed, block)
            images = self.likelihood.prepare(images, lambda x: torch.rand(x.shape, generator=generator))
        parts = [coded(self.autoencoder, part, self.variational) for part in images.split(PASS)]
        tensors = {"x": torch.cat([q.mean for q in parts]), "deviation": torch.cat([q.deviation for q in parts])}
        return tensors if labels is None else {**tensors, "labels": labels}

    def block(self, number: int) -> dict[str, Tensor]:
        """Return the latents of a block of images."""
        return self(torch.arange(number * BLOCK, min((number + 1) * BLOCK, len(self.images))), number)

    def problem(self, tensors: Mapping[str, Tensor], size: int) -> str | None:
        """Say what is wrong with the tensors of a block, None if nothing is."""
        whole = {name: tuple(tensors[name].shape) for name in ("x", "deviation") if name in tensors}
        alike = whole == dict.fromkeys(("x", "deviation"), (size, *self.shape))
        if not alike or ("labels" in tensors) != (self.images.labels is not None):
            return f"no latents and labels of {size} images of shape {self.shape}"
        sound = all(tensors[name].isfinite().all() for name in whole) and bool((tensors["deviation"] >= 0).all())
        return None if sound else "latents that are not finite"


def latent_data(
    encoder: Encoder, folder: Path, fingerprint: str | None = None, elsewhere: str = "--output_dir"
) -> LatentData:
    """Return the latents of all images as a data set, which holds mean and deviation of q(z | x).

    Args:
        encoder: makes them.
        folder: of the cache.
        fingerprint: a string that identifies images and autoencoder; None: made of their digests.
        elsewhere: see `BlockCache`.
    """
    cache = BlockCache(
        folder=folder,
        name="latents",
        identity=encoder.identity,
        sizes=block_sizes(len(encoder.images), BLOCK),
        compute=encoder.block,
        what="Encoding",
        unit="image",
        source="autoencoder, images or preparation",
        elsewhere=elsewhere,
    )
    return LatentData(
        *(encoder.images, encoder, cache, encoder.problem, None),
        name=f"the latents of {encoder.images.name}",
        unit="images",
        item_shape=encoder.shape,
        fingerprint=fingerprint or " ".join(map(str, encoder.identity.values())),
    )


def refuse_changing_images(args: DataArgs) -> None:
    """Raise ValueError for images that are not the same each time, so that they can't be encoded once."""
    if args.streaming or args.random_flip:
        raise ValueError("Images are encoded once, as they are. Drop --streaming and --random_flip.")


def learnt_items(run: Any, pipeline: Any, objective: Objective) -> tuple[Objective, Any]:
    """Return objective and data for a network that learns what the denoiser of a trained pipeline models: the run's
    images, or with an autoencoder its latents of them.

    Args:
        run: the `Run`; its images are loaded.
        pipeline: the trained pipeline; None: the network models images.
        objective: of what is modelled.

    Raises:
        ValueError: images that are not the same each time, so that they can't be encoded once.
    """
    vae = None if pipeline is None else pipeline.components.get("vae")
    if vae is None:
        return objective, run.data
    refuse_changing_images(run.data_args)
    variational, folder = pipeline.config.variational, run.output / "latents"
    vae.to(run.accelerator.device)
    data = latent_data(Encoder(vae, run.data, run.args.seed, pipeline.likelihood, variational), folder)
    data.extend_fingerprint(pipeline.latent_scale)
    return Encoded(objective, vae, variational), data
