"""Feature networks, which turn images into vectors that distances compare, and the vectors of a set of images.

Numbers from two networks are not comparable. Each network therefore has a name and a revision (the SHA-256 of its
weights), and both are part of a metric's name. "FID" means one network with one resize; with any other network the
metric is called "Frechet distance (<network>)".
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..console.progress import ProgressBar
from ..utils.pixels import from_levels
from .names import STANDARD_NAMES


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network that turns images into feature vectors, and the facts that identify it.

    Attributes:
        name: the network's name in the name of every metric.
        revision: 12 hex digits of the SHA-256 of its weights.
        network: images (B, C, H, W) in [-1, 1] -> features (B, num_features), or (logits, features).
        num_features: d.
        in_channels, image_size: channels and side of the images that it takes; None: any.
        resize: description of the resize that the network applies.
        scores: whether the network also returns class scores.
        standard: whether this is the Inception network and resize that the name FID stands for.
        about: further facts: training data, accuracy on held-out images.
    """

    name: str
    revision: str
    network: nn.Module
    num_features: int
    in_channels: int | None
    image_size: int | None
    resize: str = "none"
    scores: bool = False
    standard: bool = False
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name and revision. Two numbers are comparable only if their labels are equal."""
        return f"{self.name}, {self.revision}"

    def metric_name(self, kind: str = "Frechet distance") -> str:
        """Return the name of a metric of this `kind` with these features: "FID" for the standard network alone."""
        return STANDARD_NAMES.get(kind, kind) if self.standard else f"{kind} ({self.label})"

    def check(self, images: Tensor) -> None:
        """Refuse images that the network does not take.

        Raises:
            ValueError: not finite floating-point images (B, C, H, W) of the right size; the message names the fix.
        """
        if not images.isfinite().all():
            raise ValueError(f"{int((~images.isfinite()).sum())} values of the images are NaN or infinite.")
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(
                f"Images must be (B, C, H, W), float in [-1, 1], not {images.dtype} {tuple(images.shape)}."
            )
        channels, height, width = images.shape[1:]
        shape = (self.in_channels or channels, self.image_size or height, self.image_size or width)
        if (channels, height, width) != shape:
            raise ValueError(
                f"{self.name} takes images of {shape[0]} channel(s) and {shape[1]} x {shape[2]} pixels, not "
                f"{channels} channel(s) and {height} x {width}. Load the data with --channels {shape[0]} --resolution "
                f"{shape[1]}, or choose features for these images (--features auto does)."
            )

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute the features of images (B, C, H, W) in [-1, 1]: float64 (B, d) on the CPU."""
        return self.logits_and_features(images)[1]

    @torch.inference_mode()
    def logits_and_features(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Compute class scores (B, K), None for a network without classes, and features (B, d): float64 on the CPU.

        Raises:
            ValueError: as `check`, or the network computed numbers that are not finite.
        """
        self.check(images)
        device = next(self.network.parameters()).device
        out = self.network(images.to(device, torch.float32))
        logits, features = out if isinstance(out, tuple) else (None, out)
        for values in (features,) if logits is None else (features, logits):
            if not values.isfinite().all():
                raise ValueError(f"The features of {self.name} are not finite. {_reason(self.network)}")
        return None if logits is None else logits.cpu().double(), features.cpu().double()

    def extract(self, batches: Iterable[Tensor]) -> Tensor:
        """Compute the features of all images of the batches, in order: float64 (N, d)."""
        return torch.cat([self(images) for images in batches])

    def describe(self, images: Tensor, batch_size: int = 250) -> "ImageSet":
        """Compute the `ImageSet` of images uint8 (N, C, H, W), `batch_size` images at a time."""
        batches = ProgressBar(images.split(batch_size), desc=f"Features of {self.name}", unit="batch")
        parts = [self.logits_and_features(from_levels(part)) for part in batches]
        logits, features = zip(*parts, strict=True)
        scored = all(part is not None for part in logits)
        return ImageSet(self.label, images, torch.cat(features), torch.cat(logits) if scored else None)

    def count_classes(self, images: Tensor) -> int:
        """Return the number of classes K that the network tells apart, 0 for one without classes.

        Args:
            images: uint8 (N, C, H, W), of which the first is used.
        """
        logits, _ = self.logits_and_features(from_levels(images[:1]))
        return 0 if logits is None else logits.shape[1]

    def to(self, device: torch.device | str) -> "FeatureNetwork":
        """Move the network to a device and return self."""
        self.network.to(device)
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of N images with everything that measures need.

    Attributes:
        network: label of the feature network. Only sets with equal labels are compared.
        images: uint8 (N, C, H, W).
        features: float64 (N, d).
        logits: float64 (N, K) class scores; None for a network without classes.
        labels: int64 (N,) class of each image, or the one that was asked for; None where no measure needs them.
    """

    network: str
    images: Tensor
    features: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def check_comparable(self, other: "ImageSet") -> None:
        """Refuse to compare with another set.

        Raises:
            ValueError: its features come from another network.
        """
        if self.network != other.network:
            raise ValueError(
                f"Features of {self.network} can't be compared with those of {other.network}: numbers of two networks "
                "have no common scale. Compute both with the same --features."
            )


def network_facts(networks: Sequence[FeatureNetwork]) -> dict[str, str]:
    """Return the entries of a metric's protocol that identify its feature networks, usually one."""
    resizes = dict.fromkeys(network.resize for network in networks)
    return {
        "features": "; ".join(network.name for network in networks),
        "revision": "; ".join(network.revision for network in networks),
        "resize": "; ".join(resizes if len(resizes) == 1 else (network.resize for network in networks)),
    }


def _reason(network: nn.Module) -> str:
    sound = all(value.isfinite().all() for value in network.state_dict().values() if value.is_floating_point())
    return "Its weights are: the images are out of range." if sound else "Its weights are not: load sound ones."
