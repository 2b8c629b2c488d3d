"""A small convolutional classifier of one domain, whose last hidden layer serves as features."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class ClassifierOutput(NamedTuple):
    """logits (B, num_classes) and features (B, num_features)."""

    logits: Tensor
    features: Tensor


class DomainClassifier(nn.Module):
    """Images (B, C, S, S) in [-1, 1] -> `ClassifierOutput`.

    Two 3 × 3 convolutions a stage, the side halved between stages, then all that is left is projected to
    `num_features`. The features are standardised by batch normalisation without scale or shift (mean 0, variance 1 over
    the training images), so that distances between them mean the same for every domain; the classes are read off them
    linearly after a ReLU. Position is kept rather than averaged away: a displaced stroke changes the features.

    Args:
        in_channels: C.
        image_size: S; divisible by patch · 2^(stages - 1).
        num_classes: classes.
        widths: channels of each stage.
        patch: pixels of patch × patch are stacked as channels first; 1: as they are.
        num_features: width of the last hidden layer.

    Raises:
        ValueError: `image_size` can't be halved that often.
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
        halved = patch * 2 ** (len(widths) - 1)
        if image_size % halved:
            raise ValueError(f"image_size={image_size} must be divisible by {halved} (patch={patch}, widths={widths}).")
        self.in_channels, self.image_size, self.num_classes = in_channels, image_size, num_classes
        self.num_features = num_features
        layers, channels = [nn.PixelUnshuffle(patch)], in_channels * patch**2
        for stage, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.project = nn.Linear(channels * (image_size // halved) ** 2, num_features, bias=False)
        self.standardise = nn.BatchNorm1d(num_features, affine=False)
        self.classify = nn.Linear(num_features, num_classes)

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Class scores and features of images (B, C, S, S)."""
        features = self.standardise(self.project(self.trunk(images)))
        return ClassifierOutput(self.classify(torch.relu(features)), features)
