"""Feature networks by name: those in the package, Inception, and vision transformers from the Hub."""

import hashlib
import json
from pathlib import Path

from ..utils.text import first_line
from . import encoders
from .feature_network import FeatureNetwork

WEIGHTS = Path(__file__).with_name("weights")
BUILT_IN = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Domain classifiers inside the package, and the images (C, H, W) that they take."""


def load_features(name: str) -> FeatureNetwork:
    """Load the feature network called `name`.

    - "digits" (1 x 8 x 8), "mnist" (1 x 28 x 28), "cifar10" (3 x 32 x 32): classifiers of their domain inside the
      package, made by `hfgen.commands.train_classifier`. The 64 features are the output of the last hidden
      layer. `about` states the accuracy on held-out images.
    - "inception": the network and resize that FID stands for, through torchmetrics and torch-fidelity.
    - a Hub id or folder: DINOv2, CLIP and other vision transformers, through transformers.

    Raises:
        ValueError: no such network, or a package that it needs is not installed.
    """
    if name in BUILT_IN:
        return _domain_classifier(WEIGHTS / f"{name}.safetensors")
    if name == "inception":
        return encoders.inception()
    if "/" in name or Path(name).is_dir():
        return encoders.transformer(name)
    raise ValueError(f"features={name!r} are not known. Choose {', '.join(BUILT_IN)}, inception, or a Hub id.")


def built_in_features(channels: int, size: tuple[int, int]) -> str:
    """Return the name of the built-in features for images of this shape.

    Raises:
        ValueError: there are none; the message names the alternatives.
    """
    names = {shape: name for name, shape in BUILT_IN.items()}
    if (channels, *size) not in names:
        raise ValueError(
            f"No built-in features suit images of {channels} channel(s) and {size[0]} x {size[1]} pixels. Name some: "
            "--features inception, or a Hub id such as facebook/dinov2-base."
        )
    return names[(channels, *size)]


def choose_features(name: str, channels: int, size: tuple[int, int]) -> FeatureNetwork:
    """Load the feature network called `name`, or for "auto" the built-in one for images of this shape.

    Raises:
        ValueError: as `load_features` and `built_in_features`.
    """
    return load_features(built_in_features(channels, size) if name == "auto" else name)


def _domain_classifier(path: Path) -> FeatureNetwork:
    """Load a domain classifier from its file."""
    from safetensors import SafetensorError, safe_open

    from .classifier import DomainClassifier

    try:
        with safe_open(path, "pt") as file:
            about, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        network = DomainClassifier(**json.loads(about["config"]))
        network.load_state_dict(weights)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
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
        scores=True,
        about={"accuracy": float(about["accuracy"]), "trained_on": about["trained_on"], "recipe": about["recipe"]},
    )


def file_digest(path: Path) -> str:
    """Return 12 hex digits of the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
