"""Styles, a row for each layer of a generator: mixing, edits layer by layer, directions."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hfgen.utils.arguments import checked

from .inputs import check_count, check_latents, check_number
from .latents import LatentMixin

GROUPS = ("coarse", "middle", "fine")
"""Names of the thirds of the layers."""

Layers = Literal["all", "coarse", "middle", "fine"] | Sequence[int]


class StyleMixin(LatentMixin):
    """For a pipeline whose latents are styles (L, style_dim), one row for each layer of its `generator`, which has
    `num_layers` and `modulations`; with `mean_style`."""

    @property
    def layer_groups(self) -> dict[str, list[int]]:
        """Return the layers of each of GROUPS: thirds of the L layers, whose sizes differ by one at most."""
        ends = [round(self.generator.num_layers * third / 3) for third in range(4)]
        return {name: list(range(ends[i], ends[i + 1])) for i, name in enumerate(GROUPS)}

    @checked
    def mix(self, first: Tensor, second: Tensor, layers: Layers = "fine") -> Tensor:
        """Return styles `first` (B, L, style_dim) with those of `second` in some layers.

        Args:
            first, second: styles.
            layers: numbers of layers, or the name of a group of `layer_groups`.

        Raises:
            ValueError: styles of another shape, or layers that the generator does not have.
        """
        check_latents(first, self.latent_shape, "first")
        check_latents(second, self.latent_shape, "second")
        mixed = first.clone()
        rows = self._rows(layers)
        mixed[:, rows] = second[:, rows].to(mixed)
        return mixed

    @checked
    def mixing_grid(
        self, first: Tensor, second: Tensor, layers: Layers = "fine", noise: Tensor | None = None
    ) -> Tensor:
        """Return images of every pair of styles: those of a row, with some layers of a column's, (R, K, C, H, W).

        Args:
            first, second: styles (R, L, style_dim) and (K, L, style_dim).
            layers: see `mix`.
            noise: values (1, N) of the noise maps, the same for all; None: no noise.

        Raises:
            ValueError: as `mix` and `decode`.
        """
        check_latents(first, self.latent_shape, "first")
        check_latents(second, self.latent_shape, "second")
        pairs = self.mix(
            first.repeat_interleave(len(second), 0), second.to(first.device).repeat(len(first), 1, 1), layers
        )
        return self.decode(pairs, noise).unflatten(0, (len(first), len(second)))

    @checked
    @torch.no_grad()
    def directions(self, layers: Layers = "all", count: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the directions of styles that change the modulation of some layers most, in closed form.

        With A the rows of all affine maps from styles to scales of these layers, they are the eigenvectors of A^T A of
        the largest eigenvalues: n maximises |A n| among vectors of length 1 orthogonal to those before it (SeFa, Shen &
        Zhou 2021, https://arxiv.org/abs/2007.06600).

        Args:
            layers: see `mix`.
            count: number of directions; None: all, style_dim.

        Returns:
            The directions (count, style_dim), orthonormal, the one of the largest eigenvalue first, each with its
            largest number positive; and the eigenvalues (count,).

        Raises:
            ValueError: a count out of range, or layers that the generator does not have.
        """
        size = self.generator.config.style_dim
        if count is not None:
            check_count("count", count)
            if count > size:
                raise ValueError(f"{count=} must be at most style_dim, {size}.")
        convolutions = self.generator.modulations()
        weights = [conv.affine.used()[0] for row in self._rows(layers) for conv in convolutions[row]]
        matrix = torch.cat(weights).to("cpu", torch.float64)  # (rows, style_dim)
        values, vectors = torch.linalg.eigh(matrix.T @ matrix)
        vectors = vectors.T.flip(0)  # (style_dim, style_dim), the largest first
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        return (vectors * largest.sign())[:count].float(), values.flip(0)[:count].float()

    @checked
    def edits(
        self, styles: Tensor, direction: Tensor, layers: Layers = "all", steps: int = 7, reach: float = 3.0
    ) -> Tensor:
        """Return images of styles that move along a direction in some layers: (B, steps, C, H, W).

        Args:
            styles: (B, L, style_dim).
            direction: (style_dim,), for example of `directions`.
            layers: see `mix`.
            steps: number of images, from -reach to reach times the direction.
            reach: the largest factor.

        Raises:
            ValueError: styles, a direction or layers that do not fit the model, or no steps.
        """
        check_latents(styles, self.latent_shape, "styles")
        check_latents(direction[None], self.latent_shape[1:], "direction")
        check_count("steps", steps)
        check_number("reach", reach)
        moved = styles[:, None].repeat(1, steps, 1, 1)  # (B, steps, L, style_dim)
        factors = torch.linspace(-reach, reach, steps).to(moved)[:, None, None]
        rows = self._rows(layers)
        moved[:, :, rows] += factors * direction.to(moved)
        return self.decode(moved.flatten(0, 1)).unflatten(0, (len(styles), steps))

    @checked
    def traversal(
        self, image: Any = None, dims: Sequence[int] | None = None, steps: int = 9, reach: float = 3.0
    ) -> Tensor:
        """Return images that show the effect of the directions of all layers: (rows, steps, C, H, W).

        Args:
            image: an image whose styles are changed, see `image_batch`; None: the mean style.
            dims: numbers of `directions`, a row each; None: the first ten, or all if there are fewer.
            steps: images in a row.
            reach: the largest factor of the directions.

        Raises:
            ValueError: an image that does not fit the model, a direction that does not exist, or no steps.
        """
        directions, _ = self.directions()
        dims = range(min(10, len(directions))) if dims is None else dims
        if not len(dims) or not all(0 <= dim < len(directions) for dim in dims):
            raise ValueError(f"dims={list(dims)} must be whole numbers from 0 to {len(directions) - 1}.")
        if image is None:
            styles = self.mean_style()[None]
        else:
            batch = [image] if getattr(image, "ndim", 4) == len(self.sample_shape) else image
            styles = self._encode(self._batch(batch, "image"))
        if len(styles) != 1:
            raise ValueError(f"There must be one image, not {len(styles)}.")
        return torch.cat([self.edits(styles, directions[dim], "all", steps, reach) for dim in dims])

    def _rows(self, layers: Any) -> list[int]:
        """Return the numbers of layers. Raises ValueError for others than the generator has."""
        count = self.generator.num_layers
        if isinstance(layers, str):
            return {**self.layer_groups, "all": list(range(count))}[layers]
        if not len(layers) or not all(0 <= layer < count for layer in layers):
            raise ValueError(f"layers={list(layers)} must be numbers from 0 to {count - 1}.")
        return list(layers)
