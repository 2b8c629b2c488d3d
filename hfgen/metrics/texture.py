"""A small convolutional denoiser of one domain. Statistics of its first layers over an image serve as features."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, silu


class TextureNetwork(nn.Module):
    """Images (B, C, S, S) in [-1, 1] -> features (B, num_features) of their texture.

    Four 3 × 3 convolutions, the third with stride 2, were trained as the first half of a `Denoiser`. They see windows
    of 3, 5, 7 and 11 pixels. To tell noise from image, such a network has to know how edges, strokes and grounds of its
    domain look, and it knows no classes. The mean and the standard deviation of each channel over all positions
    describe the texture wherever it is. A linear map makes features of these statistics: their leading principal
    components, with mean 0 and variance 1 over the training images. So a component that varies little among real images
    counts as much as one that varies much, and a soft stroke, which no real image has, is far away.

    Args:
        in_channels: C.
        image_size: S, even.
        widths: channels of the four convolutions.
        num_features: number of principal components.

    Raises:
        ValueError: an odd `image_size`, not four widths, or more components than statistics.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        widths: tuple[int, int, int, int] = (24, 32, 48, 48),
        num_features: int = 64,
    ):
        super().__init__()
        if image_size % 2 or len(widths) != 4 or num_features > 2 * sum(widths):
            raise ValueError(
                f"image_size={image_size} must be even, widths={widths} four numbers, and num_features={num_features} "
                f"at most {2 * sum(widths)}, twice their sum."
            )
        self.in_channels, self.image_size, self.num_features = in_channels, image_size, num_features
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, width, 3, stride=2 if layer == 2 else 1, padding=1, padding_mode="replicate")
            for layer, (channels, width) in enumerate(zip((in_channels, *widths[:3]), widths, strict=True))
        )
        self.components = nn.Linear(2 * sum(widths), num_features)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute the output of each layer: (B, width, S, S) of two layers, (B, width, S / 2, S / 2) of the others."""
        maps = [images]
        for layer in self.layers:
            maps.append(silu(layer(maps[-1])))
        return maps[1:]

    def statistics(self, images: Tensor) -> Tensor:
        """Compute means and standard deviations of all channels over the positions of images (B, C, S, S): (B, n)."""
        parts = [each for m in self.maps(images) for each in (m.mean((2, 3)), m.std((2, 3), unbiased=False))]
        return torch.cat(parts, 1)

    @torch.no_grad()
    def fit_components(self, statistics: Tensor) -> None:
        """Set the linear map to the leading whitened principal components of statistics (N, n), N > n.

        Each statistic is divided by its standard deviation first, so that no layer dominates by its scale.

        Raises:
            ValueError: too few independent statistics for `num_features` components.
        """
        values = statistics.double()
        mean, deviation = values.mean(0), values.std(0).clamp_min(1e-6)
        scaled = (values - mean) / deviation
        variances, directions = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
        variances, directions = variances.flip(0)[: self.num_features], directions.flip(1)[:, : self.num_features]
        if not variances[-1] > 1e-6 * variances[0]:
            raise ValueError(
                f"The statistics of {len(values):,} images have fewer than {self.num_features} independent components. "
                "Take more images or fewer features."
            )
        weight = (directions / deviation[:, None] / variances.sqrt()).T
        self.components.weight.copy_(weight)
        self.components.bias.copy_(-weight @ mean)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of images (B, C, S, S)."""
        return self.components(self.statistics(images))


class Denoiser(nn.Module):
    """Noisy images (B, C, S, S) -> the noise in them; it is not told how much there is.

    The layers of a `TextureNetwork` are the first half. The second half exists in training alone.

    Args:
        texture: the first half.
    """

    def __init__(self, texture: TextureNetwork):
        super().__init__()
        first, second, third, fourth = (layer.out_channels for layer in texture.layers)
        self.texture = texture
        self.deep = nn.Conv2d(fourth, third, 3, padding=1)
        self.up = nn.Conv2d(third, 4 * second, 1)
        self.wide = nn.Conv2d(2 * second, first, 3, padding=1)
        self.out = nn.Conv2d(first, texture.in_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Estimate the noise (B, C, S, S), of deviation 1, in images = clean images + noise level · noise."""
        _, shallow, _, deep = self.texture.maps(images)
        raised = pixel_shuffle(silu(self.up(silu(self.deep(deep)))), 2)
        return self.out(silu(self.wide(torch.cat([raised, shallow], 1))))
