"""A distance between two images as a feature network perceives them. It has a gradient, so networks can train on it."""

import torch
from torch import Tensor, nn

from ..utils.arguments import checked
from .classifier import DomainClassifier
from .feature_network import FeatureNetwork
from .features import built_in_features, load_features
from .texture import TextureNetwork

NORM_FLOOR = 1e-2
"""Added to squared norms, so that positions without activity do not count."""

_ALTERNATIVES = "digits, mnist, cifar10, one of these with -texture, or a Hub id such as facebook/dinov2-base"


class PerceptualDistance(nn.Module):
    """Distance between the hidden maps of two images,

        d(x, y) = 1/L sum_l mean_positions | f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)| |^2.

    f_l is the l-th hidden map of a feature network, and norms are over channels (LPIPS, Zhang et al. 2018,
    https://arxiv.org/abs/1801.03924, without its learned weights of channels). A domain classifier has one map at the
    end of each stage, a texture network one at each layer. Any other network has one map, its features.

    Args:
        features: the feature network; its weights are frozen.

    Raises:
        ValueError: the standard Inception network, which rounds images to 8 bits and so has no gradient.
    """

    def __init__(self, features: FeatureNetwork):
        super().__init__()
        if features.standard:
            raise ValueError(f"{features.name} rounds images to 8 bits and has no gradient. Use {_ALTERNATIVES}.")
        self.network, self.label = features.network.requires_grad_(False).eval(), features.label

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute d in float32, (B,), for images (B, C, H, W) in [-1, 1]. Only y gets a gradient."""
        with torch.no_grad():
            targets = self.maps(x)
        layers = [(a - b).square().sum(1).flatten(1).mean(1) for a, b in zip(targets, self.maps(y), strict=True)]
        return torch.stack(layers).mean(0)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute the normalised hidden maps, each (B, F, h, w) in float32."""
        if isinstance(self.network, DomainClassifier):
            maps, x = [], images.float()
            for layer in self.network.trunk:
                if isinstance(layer, nn.MaxPool2d | nn.Flatten):
                    maps.append(x)
                x = layer(x)
        elif isinstance(self.network, TextureNetwork):
            maps = self.network.maps(images.float())
        else:
            maps = [self.network(images.float())[:, :, None, None]]
        return [x * (x.square().sum(1, keepdim=True) + NORM_FLOOR).rsqrt() for x in map(Tensor.float, maps)]


@checked
def perceptual_distance(name: str, channels: int, size: tuple[int, int]) -> PerceptualDistance:
    """Build the distance of the feature network called `name`, or for "auto" of the built-in classifier of this shape.

    Raises:
        ValueError: there is no such network, it takes other images, or it has no gradient.
    """
    features = load_features(built_in_features(channels, size)[0] if name == "auto" else name)
    features.check(torch.zeros(1, channels, *size))
    return PerceptualDistance(features)
