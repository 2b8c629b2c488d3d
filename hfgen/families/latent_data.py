"""Latents of the training images by a trained autoencoder, as a data set that is encoded once."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.block_cache import BlockCache, block_sizes
from ..data.encoded import LatentData
from ..data.images import ImageData
from ..data.tensors import digest_of
from ..distributions.latents import coded, latent_shape_of
from ..distributions.likelihoods import Likelihood
from ..utils.pixels import from_levels
from ..utils.seeds import generator_of

BLOCK = 1000
"""Images in a file."""

PASS = 250
"""Images that are encoded in one pass."""


def latent_data(
    autoencoder: nn.Module,
    data: ImageData,
    folder: Path,
    seed: int,
    likelihood: Likelihood | None = None,
    variational: bool = True,
    fingerprint: str | None = None,
    elsewhere: str = "--output_dir",
) -> LatentData:
    """Return the latents of all images as a data set, which holds mean and deviation of q(z | x).

    Args:
        autoencoder: any that `hfgen.distributions.latents.coded` knows.
        data: the images.
        folder: of the cache.
        seed: of the preparation.
        likelihood: prepares the images: grey ones of `bernoulli` become black and white at random, once. None: they
            stay as they are.
        variational: whether q was trained; otherwise a latent is the encoder's mean.
        fingerprint: a string that identifies images and autoencoder; None: made of their digests.
        elsewhere: see `BlockCache`.
    """
    shape, weights = latent_shape_of(autoencoder, data.item_shape), digest_of(autoencoder.state_dict())
    binary = likelihood is not None and likelihood.levels == 2
    identity = {
        "weights": weights,
        "images": data.fingerprint,
        "count": len(data),
        "preparation": f"binarised with seed {seed}" if binary else "none",
        "variational": variational,
        "block": BLOCK,
    }

    @torch.no_grad()
    def encode(rows: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        levels, labels = data.pixels(rows)
        images = from_levels(levels)
        if binary:
            images = likelihood.prepare(images, lambda x: torch.rand(x.shape, generator=generator))
        parts = [coded(autoencoder, part, variational) for part in images.split(PASS)]
        tensors = {"x": torch.cat([q.mean for q in parts]), "deviation": torch.cat([q.deviation for q in parts])}
        return tensors if labels is None else {**tensors, "labels": labels}

    def compute(block: int) -> dict[str, Tensor]:
        rows = torch.arange(block * BLOCK, min((block + 1) * BLOCK, len(data)))
        return encode(rows, generator_of("prior", seed, block))

    def wrong(tensors: dict[str, Tensor], size: int) -> str | None:
        whole = {name: tuple(tensors[name].shape) for name in ("x", "deviation") if name in tensors}
        alike = whole == dict.fromkeys(("x", "deviation"), (size, *shape))
        if not alike or ("labels" in tensors) != (data.labels is not None):
            return f"no latents and labels of {size} images of shape {shape}"
        sound = all(tensors[name].isfinite().all() for name in whole) and bool((tensors["deviation"] >= 0).all())
        return None if sound else "latents that are not finite"

    sizes = block_sizes(len(data), BLOCK)
    source = "autoencoder, images or preparation"
    cache = BlockCache(
        folder, "latents", identity, sizes, compute, "Encoding", "image", source=source, elsewhere=elsewhere
    )
    return LatentData(
        *(data, encode, cache, wrong, None),
        name=f"the latents of {data.name}",
        unit="images",
        item_shape=shape,
        fingerprint=fingerprint or " ".join(map(str, identity.values())),
    )
