"""A feature network, images -> vectors that distances compare, and what a set of images looks like to it.

Numbers from two networks can't be compared, so a network carries a name and a revision (the SHA-256 of its weights),
and "FID" means one network and one resize only; everything else is a Frechet distance by its network's name.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.pixels import from_levels

STANDARD_NAMES = {"Frechet distance": "FID", "kernel distance": "KID", "classifier score": "Inception Score"}
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
        scores: whether it has class scores, too.
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
    scores: bool = False
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
                f"{wanted[1]}), or choose features that suit them (auto does)."
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

    def describe(self, images: Tensor, batch_size: int = 250) -> "ImageSet":
        """Everything that measures want to know of images uint8 (N, C, H, W)."""
        parts = [self.both(from_levels(part)) for part in images.split(batch_size)]
        logits, features = zip(*parts, strict=True)
        scored = all(part is not None for part in logits)
        return ImageSet(self.label, images, torch.cat(features), torch.cat(logits) if scored else None)

    def to(self, device: torch.device | str) -> "FeatureNetwork":
        """The same, with the network moved to a device."""
        self.network.to(device)
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of N images as measures see it.

    Attributes:
        network: label of the feature network; two sets are compared only if theirs is the same.
        images: uint8 (N, C, H, W).
        features: float64 (N, d).
        logits: float64 (N, K) class scores, None for a network without classes.
    """

    network: str
    images: Tensor
    features: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def against(self, other: "ImageSet") -> None:
        """Raises ValueError if the features of the other set come from another network."""
        if self.network != other.network:
            raise ValueError(
                f"Features of {self.network} can't be compared with those of {other.network}: a number means something "
                "within one network only. Compute both with the same --features."
            )
