"""Feature networks: images -> vectors that distances compare, and the name that goes with every such number.

Numbers from two networks can't be compared, so a network carries a name and a revision (the SHA-256 of its weights),
and "FID" means one network and one resize only; everything else is a Frechet distance by its network's name.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("weights")
BUILT_IN = ("digits", "mnist")
"""Domain classifiers inside the package."""
STANDARD_NAMES = {"Frechet distance": "FID", "kernel distance": "KID"}
"""What measures are called with the standard Inception network, and with no other."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network that turns images into feature vectors, with what identifies it.

    Attributes:
        name: what the network is called beside every number.
        revision: 12 hex digits of the SHA-256 of its weights.
        network: images (B, C, H, W) in [-1, 1] -> features (B, num_features), or (logits, features).
        num_features: d.
        in_channels, image_size: the images it takes; None: any.
        resize: what happens to images before, in words.
        standard: whether this is the Inception network and resize that the name FID stands for.
        about: what else is known: training data, accuracy held out.
    """

    name: str
    revision: str
    network: nn.Module
    num_features: int
    in_channels: int | None
    image_size: int | None
    resize: str = "none"
    standard: bool = False
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name and revision: what two numbers must share to be compared."""
        return f"{self.name}, {self.revision}"

    def metric_name(self, kind: str = "Frechet distance") -> str:
        """What a number of this `kind` with these features is called: "FID" for the standard network alone."""
        return STANDARD_NAMES.get(kind, kind) if self.standard else f"{kind} ({self.label})"

    def check(self, images: Tensor) -> None:
        """Raises ValueError, with the fix, for images that are not floating-point (B, C, H, W) of the right size."""
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(
                f"Images must be (B, C, H, W), float in [-1, 1], not {images.dtype} {tuple(images.shape)}."
            )
        channels, height, width = images.shape[1:]
        wanted = (self.in_channels or channels, self.image_size or height, self.image_size or width)
        if (channels, height, width) != wanted:
            raise ValueError(
                f"{self.name} takes images of {wanted[0]} channel(s) and {wanted[1]} x {wanted[2]} pixels, not "
                f"{channels} channel(s) and {height} x {width}. Load them so (--channels {wanted[0]} --resolution "
                f"{wanted[1]}), or choose other features: {', '.join(BUILT_IN)}."
            )

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features float64 (B, d) on the CPU of images (B, C, H, W) in [-1, 1]."""
        return self.both(images)[1]

    @torch.inference_mode()
    def both(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Class scores (B, K), None for a network without classes, and features (B, d): float64 on the CPU."""
        self.check(images)
        device = next(self.network.parameters()).device
        out = self.network(images.to(device, torch.float32))
        logits, features = out if isinstance(out, tuple) else (None, out)
        return None if logits is None else logits.cpu().double(), features.cpu().double()

    def of(self, batches: Iterable[Tensor]) -> Tensor:
        """Features float64 (N, d) of all images of the batches, in order."""
        return torch.cat([self(images) for images in batches])

    def to(self, device: torch.device | str) -> "FeatureNetwork":
        """The same, with the network moved to a device."""
        self.network.to(device)
        return self


def load_features(name: str) -> FeatureNetwork:
    """The feature network called `name`: "digits" (1 x 8 x 8), "mnist" (1 x 28 x 28) or "cifar10" (3 x 32 x 32).

    These are classifiers of their domain (`hfgen.metrics.classifier`, trained by `hfgen.training.classifier`), whose 64
    features are the last hidden layer. `about` states their accuracy on images held out.

    Raises:
        ValueError: no such network.
    """
    if name not in BUILT_IN:
        raise ValueError(f"features={name!r} are not known. Choose one of: {', '.join(BUILT_IN)}.")
    return _domain(WEIGHTS / f"{name}.safetensors")


def _domain(path: Path) -> FeatureNetwork:
    """A domain classifier from its file."""
    from safetensors import safe_open

    from .classifier import DomainClassifier

    with safe_open(path, "pt") as file:
        about, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = json.loads(about["config"])
    network = DomainClassifier(**config)
    network.load_state_dict(weights)
    return FeatureNetwork(
        name=about["name"],
        revision=revision_of(path),
        network=network.requires_grad_(False).eval(),
        num_features=network.num_features,
        in_channels=network.in_channels,
        image_size=network.image_size,
        about={"accuracy": float(about["accuracy"]), "trained_on": about["trained_on"], "recipe": about["recipe"]},
    )


def revision_of(path: Path) -> str:
    """12 hex digits of the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
