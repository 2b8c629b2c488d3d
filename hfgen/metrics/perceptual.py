"""How different two images look to a feature network: a distance with a gradient, to train by."""

import torch
from torch import Tensor, nn

from .classifier import DomainClassifier
from .feature_network import FeatureNetwork
from .features import choose_features

QUIET = 1e-2
"""Added to squared norms: positions where nothing is active don't count."""

_OTHERS = "digits, mnist, cifar10, or a Hub id such as facebook/dinov2-base"


class PerceptualDistance(nn.Module):
    """Distances between what a network sees in two images,

        d(x, y) = 1/L sum_l mean_positions | f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)| |^2,

    f_l its hidden maps, with norms over channels (LPIPS, Zhang et al. 2018, https://arxiv.org/abs/1801.03924, without
    its learned weights of channels). The maps are those at the end of each stage of a domain classifier; of other
    networks there is one, the features.

    Raises:
        ValueError: the standard Inception network, which rounds images to 8 bits and so has no gradient.
    """

    def __init__(self, features: FeatureNetwork):
        super().__init__()
        if features.standard:
            raise ValueError(f"{features.name} rounds images to 8 bits and has no gradient. Use {_OTHERS}.")
        self.network, self.label = features.network.requires_grad_(False).eval(), features.label

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """d (B,), in float32, of images (B, C, H, W) in [-1, 1]; the gradient is y's alone."""
        with torch.no_grad():
            wanted = self.maps(x)
        each = [(a - b).square().sum(1).flatten(1).mean(1) for a, b in zip(wanted, self.maps(y), strict=True)]
        return torch.stack(each).mean(0)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The hidden maps (B, F, h, w), normed, in float32."""
        if isinstance(self.network, DomainClassifier):
            found, x = [], images.float()
            for layer in self.network.trunk:
                if isinstance(layer, nn.MaxPool2d | nn.Flatten):
                    found.append(x)
                x = layer(x)
        else:
            found = [self.network(images.float())[:, :, None, None]]
        return [x * (x.square().sum(1, keepdim=True) + QUIET).rsqrt() for x in map(Tensor.float, found)]


def perceptual_distance(name: str, channels: int, size: tuple[int, int]) -> PerceptualDistance:
    """By the feature network called `name`, for "auto" the built-in one that suits images of this shape.

    Raises:
        ValueError: there is none, it takes other images, or has no gradient.
    """
    features = choose_features(name, channels, size)
    features.check(torch.zeros(1, channels, *size))
    return PerceptualDistance(features)
