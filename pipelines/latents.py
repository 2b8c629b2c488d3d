"""What can be done among the latents of a model: there and back, between two images, along a direction."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

BATCH = 256
"""Images, codes or latents that a network sees at a time."""

MOST_ROWS = 10
"""Rows of a traversal, unless its dimensions are named."""


class RoundTripMixin:
    """For a pipeline with `encode` and `decode`."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """decode(encode(images)): (B, C, H, W) in [-1, 1] for images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: images of another shape.
        """
        return self.decode(self.encode(images))

    def _by_batch(self, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        parts = [function(part.to(self._execution_device)) for part in rows.split(BATCH)]
        self.maybe_free_model_hooks()
        return torch.cat(parts)


class LatentMixin(RoundTripMixin):
    """For a pipeline with `image_shape` (C, H, W), `latent_shape` (d, h, w), and `encode` and `decode` between them."""

    def interpolate(
        self, first: Tensor, second: Tensor, steps: int = 9, kind: Literal["linear", "spherical"] = "linear"
    ) -> Tensor:
        """From images (B, C, H, W) to others through the latent space: (steps, B, C, H, W), both ends included, as the
        decoder sees them. `kind`: see `interpolated`.

        Raises:
            ValueError: images of another shape, fewer than two steps, or an unknown kind.
        """
        _check_ends(first, second, steps)
        return self.between(self.encode(first), self.encode(second), steps, kind)

    def between(
        self, first: Tensor, second: Tensor, steps: int = 9, kind: Literal["linear", "spherical"] = "linear"
    ) -> Tensor:
        """The same from latents (B, d, h, w) to others: (steps, B, C, H, W).

        Raises:
            ValueError: latents of another shape, fewer than two steps, or an unknown kind.
        """
        _check_ends(first, second, steps)
        path = interpolated(first, second, steps, kind)
        return self.decode(path.flatten(0, 1)).unflatten(0, path.shape[:2])

    def attribute_direction(self, having: Tensor, lacking: Tensor) -> Tensor:
        """The way (d, h, w) from images without an attribute to those with it: mean latent of `having` (N, C, H, W)
        less that of `lacking` (M, C, H, W) (Larsen et al. 2016, https://arxiv.org/abs/1512.09300, section 4.2).

        Raises:
            ValueError: images of another shape.
        """
        return self.encode(having).mean(0) - self.encode(lacking).mean(0)

    def change(self, images: Tensor, direction: Tensor, strength: float = 1.0) -> Tensor:
        """decode(encode(images) + strength direction), (B, C, H, W) in [-1, 1]: with a direction (d, h, w) from
        `attribute_direction`, images get the attribute, or lose it at negative strength.

        Raises:
            ValueError: images or direction of another shape.
        """
        if tuple(direction.shape) != self.latent_shape:
            raise ValueError(f"direction has shape {tuple(direction.shape)}; this model needs {self.latent_shape}.")
        latents = self.encode(images)
        return self.decode(latents + strength * direction.to(latents))

    def traversal(
        self, image: Tensor | None = None, dims: Sequence[int] | None = None, steps: int = 9, reach: float = 3.0
    ) -> Tensor:
        """What each latent dimension does by itself: (rows, steps, C, H, W), with z as that of the image and the row's
        dimension set to steps values from -reach to reach.

        Args:
            image: (C, H, W) or (1, C, H, W) in [-1, 1]; None: z = 0, the middle of the standard normal.
            dims: dimensions of the flattened latent, a row each; None: the first ten, or all if there are fewer.
            steps: values of each.
            reach: the largest, in units of z.

        Raises:
            ValueError: an image of another shape, a dimension that there isn't, or no steps.
        """
        start = torch.zeros(1, *self.latent_shape) if image is None else self.encode(image.view(-1, *self.image_shape))
        size = start[0].numel()
        dims = range(min(size, MOST_ROWS)) if dims is None else dims
        if len(start) != 1 or steps < 1 or not len(dims) or not all(0 <= dim < size for dim in dims):
            raise ValueError(
                f"{steps=} must be at least 1, there must be one image, and dims={list(dims)} must be from 0 to "
                f"{size - 1}."
            )
        z = start.flatten(1).repeat(len(dims), steps, 1)  # (rows, steps, D)
        for row, dim in enumerate(dims):
            z[row, :, dim] = torch.linspace(-reach, reach, steps)
        return self.decode(z.view(-1, *self.latent_shape)).unflatten(0, (len(dims), steps))


def interpolated(first: Tensor, second: Tensor, steps: int, kind: str) -> Tensor:
    """Latents on the way from `first` (B, d, h, w) to `second`, both included: (steps, B, d, h, w).

    `linear`: (1 - t) a + t b. `spherical`: the direction turns evenly and the norm goes linearly from |a| to |b|, so
    that between equal norms it stays, as it nearly does from sample to sample of a normal distribution in many
    dimensions (White 2016, https://arxiv.org/abs/1609.04468). Ends on one line are joined by it.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in ("linear", "spherical"):
        raise ValueError(f"{kind=} is not known. Choose linear or spherical.")
    a, b = (end.flatten(1).double() for end in (first, second))  # (B, D)
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device).view(-1, 1, 1)  # (steps, 1, 1)
    path = torch.lerp(a, b, t)
    if kind == "spherical":
        norm_a, norm_b = (end.norm(dim=1, keepdim=True) for end in (a, b))  # (B, 1)
        unit_a, unit_b = (end / norm.clamp(min=1e-12) for end, norm in ((a, norm_a), (b, norm_b)))
        angle = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()
        sine = angle.sin()
        turned = (((1 - t) * angle).sin() * unit_a + (t * angle).sin() * unit_b) / sine
        path = torch.where(sine > 1e-6, torch.lerp(norm_a, norm_b, t) * turned, path)
    return path.to(first.dtype).unflatten(2, first.shape[1:])


def _check_ends(first: Tensor, second: Tensor, steps: int) -> None:
    if steps < 2 or first.shape != second.shape:
        raise ValueError(
            f"{steps=} must be at least 2, and both ends of one shape, not {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
