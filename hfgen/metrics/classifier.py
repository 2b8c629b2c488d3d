"""A small convolutional classifier of one domain. Its last hidden layer serves as features."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class ClassifierOutput(NamedTuple):
    """Class scores `logits` (B, num_classes) and `features` (B, num_features)."""

    logits: Tensor
    features: Tensor


class DomainClassifier(nn.Module):
    """Images (B, C, S, S) in [-1, 1] -> `ClassifierOutput`.

    Each stage has two 3 × 3 convolutions, and the side is halved between stages. A linear layer projects the last map
    to `num_features`. Batch normalisation without scale and shift standardises these features (mean 0 and variance 1
    over the training images), so that distances between them mean the same for every domain. The class scores are a
    linear function of the features after a ReLU. The last map is projected, not averaged over positions: a displaced
    stroke changes the features.

    Args:
        in_channels: C.
        image_size: S; divisible by patch · 2^(stages - 1).
        num_classes: number of classes.
        widths: channels of each stage.
        patch: side of the squares of pixels that are stacked as channels first; 1: none are.
        num_features: width of the last hidden layer.

    Raises:
        ValueError: `image_size` is not divisible by that number.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int,
        widths: tuple[int, ...] = (16, 32, 64),
        patch: int = 1,
        num_features: int = 64,
    ):
        super().__init__()
        divisor = patch * 2 ** (len(widths) - 1)
        if image_size % divisor:
            raise ValueError(
                f"image_size={image_size} must be divisible by {divisor} (patch={patch}, widths={widths})."
            )
        self.in_channels, self.image_size, self.num_classes = in_channels, image_size, num_classes
        self.num_features = num_features
        layers, channels = [nn.PixelUnshuffle(patch)], in_channels * patch**2
        for stage, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.project = nn.Linear(channels * (image_size // divisor) ** 2, num_features, bias=False)
        self.standardise = nn.BatchNorm1d(num_features, affine=False)
        self.classify = nn.Linear(num_features, num_classes)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Compute class scores and features of images (B, C, S, S)."""
        features = self.standardise(self.project(self.trunk(images)))
        return ClassifierOutput(self.classify(torch.relu(features)), features)
