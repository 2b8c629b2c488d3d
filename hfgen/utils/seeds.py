"""Seeds from names. All randomness is a pure function of the seed and of the place where it is used.

Each use of random numbers has a stream: a name in `STREAMS`. The seeds of different streams differ whatever the users'
seeds are, so nothing is measured on the noise that it was trained on.

One use has no stream: sample i of a pipeline is drawn with seed + i, so that anyone can draw it again with
`torch.Generator().manual_seed(seed + i)`. These seeds are below `LIMIT`, and no seed of a stream is. On a CPU PyTorch's
generator uses the lower 32 bits of a seed and no others. The law therefore holds for those bits, too.
"""

import hashlib
import json
from collections.abc import Iterable

import torch

from .ranges import SEED

LIMIT = SEED.high + 1
"""Seeds of samples are below this number. The lower 32 bits of the seeds of streams are not."""

STREAMS = {
    "training": "what objectives draw in a step: noise, times, dropout, dropped labels, augmentations",
    "initialisation": "weights of new networks",
    "order": "the order of the data",
    "workers": "what processes that read data are seeded with",
    "flip": "mirrored images",
    "kept labels": "images whose class labels are kept when the others are hidden",
    "items": "data sets without end",
    "pairs": "noise of reflow's couplings",
    "prior samples": "noise of the samples by which a model keeps what it knows",
    "calibration": "noise of reverse variances that are measured",
    "few steps": "samples that reflow, flow maps and distillation measure before and after",
    "validation": "samples that choose the best checkpoint",
    "health": "samples that monitors of a training measure",
    "film": "latents of a film",
    "mixing": "latents and noise of pictures of style mixing",
    "held out": "images held out for a threshold",
    "prior": "latents that a prior is fitted to, and black and white pixels of images whose latents are learnt",
    "latents": "latents that a model of them learns",
    "latent scale": "black and white pixels of the images on which mean and deviation of latents are measured",
    "text autoencoder": "weights, captions and noise of a text autoencoder",
    "mixture": "the start of a mixture's fit",
    "initial images": "noise in the images that initialise a flow",
    "dequantisation": "noise in the bins of held-out images' levels",
    "likelihood": "latents, traces and black and white pixels of likelihoods of held-out images",
    "anomaly score": "latents of an anomaly's score",
    "candidates": "latents from which an inversion starts",
    "mean style": "latents whose mean style truncation goes to",
    "reference": "which real images are compared with",
    "kernel subsets": "subsets of a kernel distance",
    "splits": "parts of a classifier score",
    "bootstrap": "resamples of an interval",
    "timing": "samples that are timed and discarded",
    "attack": "where attacks on a detector begin",
    "copies": "noise of the copies of an image whose mean score is taken",
    "arrivals": "times of simulated requests",
    "classifier": "order and displacement of the images that a feature network learns",
    "texture": "order and noise of the images that a texture network learns",
    "explanation": "points of `hfgen explain`",
    "benchmark": "data, judges and peers of benchmarks",
}
"""Name of a random stream -> what it draws."""

VERSION = 2
"""Number of this scheme of seeds. A training that goes on from a checkpoint of another one draws other numbers."""


def seed_of(stream: str, *place: int | str) -> int:
    """Return the seed of a place in a stream: 63 bits, of which the lower 32 are at least `LIMIT`.

    Args:
        stream: its name, a key of `STREAMS`.
        place: the user's seed, then numbers and names such as a step or an index. Every part counts, 1 and "1" differ.

    Returns:
        The same number in all processes and on all machines.

    Raises:
        ValueError: an unknown stream.
    """
    if stream not in STREAMS:
        raise ValueError(f"There is no random stream {stream!r}. Add it to hfgen.utils.seeds.STREAMS.")
    key = json.dumps([stream, *(part if isinstance(part, str) else int(part) for part in place)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1 | LIMIT


def generator_of(stream: str, *place: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator with the seed of a place in a stream, see `seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(stream, *place))


def sample_generators(seed: int, numbers: Iterable[int]) -> list[torch.Generator]:
    """Return a generator for each of the samples with these numbers: sample i has seed + i.

    Raises:
        ValueError: a seed out of range, see `check_seed`.
    """
    return [torch.Generator().manual_seed(check_seed(seed + i)) for i in numbers]


def check_seed(seed: int) -> int:
    """Return the seed of a sample.

    Raises:
        ValueError: it is below 0, or `LIMIT` or more. Other seeds could give the same numbers.
    """
    if not SEED.holds(seed):
        raise ValueError(
            f"seed {seed} of a sample is not between 0 and {LIMIT - 1}. Give a smaller seed, at least 0, or "
            "fewer samples."
        )
    return seed


def seed_initialisation(seed: int) -> None:
    """Seed PyTorch's global generators, from which new networks draw their weights."""
    torch.manual_seed(seed_of("initialisation", seed))


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of this device; `torch.manual_seed` seeds all devices and is slower."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
