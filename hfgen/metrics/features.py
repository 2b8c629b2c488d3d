"""Feature networks by name: those in the package, Inception, and vision transformers from the Hub."""

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ..console.text import first_line
from ..utils.arguments import checked
from . import encoders
from .feature_network import FeatureNetwork
from .names import NO_FEATURES

WEIGHTS = Path(__file__).with_name("weights")
BUILT_IN = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Domains that the package has feature networks of, and the images (C, H, W) that these take."""

KINDS = ("", "-texture")
"""Endings of the names of a domain's networks: its classifier, which sees shapes, and one that sees texture."""


@checked
def load_features(name: str) -> FeatureNetwork:
    """Load the feature network called `name`.

    - "digits" (1 x 8 x 8), "mnist" (1 x 28 x 28), "cifar10" (3 x 32 x 32): classifiers of their domain inside the
      package, made by `hfgen.commands.train_classifier`. The 64 features are the output of the last hidden
      layer. `about` states the accuracy on held-out images.
    - "digits-texture", "mnist-texture", "cifar10-texture": first layers of denoisers of these domains, made by
      `hfgen.commands.train_texture`. The 64 features are statistics of texture, see
      `hfgen.metrics.texture.TextureNetwork`. `about` states the error of the noise in held-out images.
    - "inception": the network and resize that FID stands for, through torchmetrics and torch-fidelity.
    - a Hub id or folder: DINOv2, CLIP and other vision transformers, through transformers.

    Raises:
        ValueError: no such network, or a package that it needs is not installed.
    """
    names = [domain + kind for domain in BUILT_IN for kind in KINDS]
    if name in names:
        return _domain_network(WEIGHTS / f"{name}.safetensors")
    if name == "inception":
        return encoders.inception()
    if "/" in name or Path(name).is_dir():
        return encoders.transformer(name)
    raise ValueError(f"features={name!r} are not known. Choose {', '.join(names)}, inception, or a Hub id.")


@checked
def built_in_features(channels: int, size: tuple[int, int]) -> tuple[str, str]:
    """Return the names of the built-in networks for images of this shape: a classifier, and one that sees texture.

    Raises:
        ValueError: there are none; the message names the alternatives.
    """
    domains = {shape: name for name, shape in BUILT_IN.items()}
    if (channels, *size) not in domains:
        raise ValueError(
            f"No built-in features suit images of {channels} channel(s) and {size[0]} x {size[1]} pixels. Name some: "
            "--features inception, or a Hub id such as facebook/dinov2-base."
        )
    return tuple(domains[(channels, *size)] + kind for kind in KINDS)


@checked
def choose_features(names: str, channels: int, size: tuple[int, int]) -> list[FeatureNetwork]:
    """Load the feature networks called `names`, separated by commas; for "auto" both built-in ones for this shape, and
    for "none" one without features, for measures that compare pixels.

    Raises:
        ValueError: a name is empty or given twice, or as `load_features` and `built_in_features`.
    """
    if names == "auto":
        return [load_features(name) for name in built_in_features(channels, size)]
    if names == NO_FEATURES:
        return [FeatureNetwork(names, names, _NoFeatures(), 0, None, None)]
    parts = [names] if Path(names).is_dir() else [os.path.expanduser(name.strip()) for name in names.split(",")]
    if not all(parts) or len(set(parts)) < len(parts):
        raise ValueError(f"features={names!r}: give each network once, separated by commas.")
    return [load_features(name) for name in parts]


class _NoFeatures(nn.Module):
    """images (B, C, H, W) -> features (B, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(0))  # which says on which device it is

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :0]


def _domain_network(path: Path) -> FeatureNetwork:
    """Load a feature network of a domain from its file, which names the class of its network."""
    from safetensors import SafetensorError, safe_open

    from .classifier import DomainClassifier
    from .texture import TextureNetwork

    try:
        with safe_open(path, "pt") as file:
            about, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        scores = about.get("network", "DomainClassifier") == "DomainClassifier"  # files of classifiers name none
        network = (DomainClassifier if scores else TextureNetwork)(**json.loads(about["config"]))
        network.load_state_dict(weights)
        score = "accuracy" if scores else "denoising_error"
        facts = {score: float(about[score]), "trained_on": about["trained_on"], "recipe": about["recipe"]}
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds no feature network: it was cut off, or is another file ({first_line(error)})."
        ) from None
    return FeatureNetwork(
        name=about["name"],
        revision=file_digest(path),
        network=network.requires_grad_(False).eval(),
        num_features=network.num_features,
        in_channels=network.in_channels,
        image_size=network.image_size,
        scores=scores,
        about=facts,
    )


def file_digest(path: Path) -> str:
    """Return 12 hex digits of the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
