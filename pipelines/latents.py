"""Latents, for every pipeline that has them: there and back, between two images, along a direction."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from hfgen.distributions.latents import LatentScale, image_shape_of, scale_of
from hfgen.distributions.likelihoods import Likelihood, build_likelihood, upcast
from hfgen.utils.arguments import checked

from .images import image_batch
from .inputs import check_count, check_latents, check_number, check_numbers, labels_of, sample_shape_of
from .outputs import require_finite

BATCH = 256
"""Images, codes or latents in one pass of a network."""

MOST_ROWS = 10
"""Rows of a traversal, unless its dimensions are named."""


class RoundTripMixin:
    """For a pipeline with `encode` and `decode`.

    Attributes:
        largest_pixel: the largest absolute value of images that are given as floats.
    """

    largest_pixel = 1.0

    @checked
    def reconstruct(self, images: Any) -> Tensor:
        """Return decode(encode(images)): (B, C, H, W) in [-1, 1] for images, see `image_batch`.

        Raises:
            ValueError: images that do not fit the model.
        """
        return self.decode(self.encode(images))

    def _batch(self, images: Any, name: str = "images") -> Tensor:
        """Return `image_batch` of images, which messages call by the name of the caller's argument."""
        return image_batch(images, self.sample_shape, name, self.largest_pixel)

    def _by_batch(self, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        parts = [function(part.to(self._execution_device)) for part in self.progress_bar(rows.split(BATCH))]
        self.maybe_free_model_hooks()
        return torch.cat(parts)


class LatentMixin(RoundTripMixin):
    """For a pipeline with `sample_shape` (C, H, W), `latent_shape` (d, h, w), `encode` and `decode` between them, and
    `_encode`: `encode` without the checks, for batches (B, C, H, W)."""

    @checked
    def interpolate(
        self, first: Any, second: Any, steps: int = 9, kind: Literal["linear", "spherical"] = "linear"
    ) -> Tensor:
        """Return decoded images on the way between two batches through the latent space: (steps, B, C, H, W).

        Both ends are included, as the decoder sees them.

        Args:
            first, second: images, see `image_batch`.
            steps: at least 2.
            kind: see `interpolate_latents`.

        Raises:
            ValueError: images that do not fit the model, fewer than two steps, or an unknown kind.
        """
        first, second = self._batch(first, "first"), self._batch(second, "second")
        check_ends(first, second, steps)
        return self.between(self._encode(first), self._encode(second), steps, kind)

    @checked
    def between(
        self, first: Tensor, second: Tensor, steps: int = 9, kind: Literal["linear", "spherical"] = "linear"
    ) -> Tensor:
        """Return what `interpolate` does, between latents (B, d, h, w): (steps, B, C, H, W).

        Raises:
            ValueError: latents of another shape or not finite, fewer than two steps, or an unknown kind.
        """
        check_latents(first, self.latent_shape, "first")
        check_latents(second, self.latent_shape, "second")
        check_ends(first, second, steps)
        path = interpolate_latents(first, second, steps, kind)
        return self.decode(path.flatten(0, 1)).unflatten(0, path.shape[:2])

    @checked
    def attribute_direction(self, having: Any, lacking: Any) -> Tensor:
        """Return the direction (d, h, w) from images without an attribute to images with it: the mean latent of
        `having` minus that of `lacking` (Larsen et al. 2016, https://arxiv.org/abs/1512.09300, section 4.2).

        Args:
            having, lacking: N and M images, see `image_batch`.

        Raises:
            ValueError: images that do not fit the model.
        """
        having, lacking = self._batch(having, "having"), self._batch(lacking, "lacking")
        return self._encode(having).mean(0) - self._encode(lacking).mean(0)

    @checked
    def change(self, images: Any, direction: Tensor, strength: float = 1.0) -> Tensor:
        """Return decode(encode(images) + strength direction), (B, C, H, W) in [-1, 1].

        Args:
            images: see `image_batch`.
            direction: (d, h, w), for example from `attribute_direction`.
            strength: images get the attribute, or lose it at negative strength.

        Raises:
            ValueError: images or a direction that do not fit the model.
        """
        check_numbers(direction, "direction")
        check_number("strength", strength)
        if tuple(direction.shape) != self.latent_shape:
            raise ValueError(f"direction has shape {tuple(direction.shape)}; this model needs {self.latent_shape}.")
        latents = self.encode(images)
        return self.decode(latents + strength * direction.to(latents))

    @checked
    def traversal(
        self, image: Any = None, dims: Sequence[int] | None = None, steps: int = 9, reach: float = 3.0
    ) -> Tensor:
        """Return images that show the effect of each latent dimension: (rows, steps, C, H, W).

        A row is the image's latent with one dimension set to `steps` values from -reach to reach.

        Args:
            image: a PIL image, a tensor or array of one image, or a batch of one, see `image_batch`; None: z = 0, the
                middle of the standard normal.
            dims: dimensions of the flattened latent, a row each; None: the first ten, or all if there are fewer.
            steps: values of each.
            reach: the largest value, in units of z.

        Raises:
            ValueError: an image that does not fit the model, a dimension that does not exist, or no steps.
        """
        batch = [image] if getattr(image, "ndim", 4) == len(self.sample_shape) else image
        start = torch.zeros(1, *self.latent_shape)
        if image is not None:
            start = self._encode(self._batch(batch, "image"))
        size = start[0].numel()
        dims = range(min(size, MOST_ROWS)) if dims is None else dims
        check_count("steps", steps)
        check_number("reach", reach)
        if len(start) != 1 or not len(dims) or not all(isinstance(dim, Integral) and 0 <= dim < size for dim in dims):
            raise ValueError(
                f"There must be one image, and dims={list(dims)} must be whole numbers from 0 to {size - 1}."
            )
        z = start.flatten(1).repeat(len(dims), steps, 1)  # (rows, steps, D)
        for row, dim in enumerate(dims):
            z[row, :, dim] = torch.linspace(-reach, reach, steps)
        return self.decode(z.view(-1, *self.latent_shape)).unflatten(0, (len(dims), steps))


class ClassLatentMixin(LatentMixin):
    """For a pipeline with `num_classes` and `label_names` in its configuration, whose `encode`, `_encode` and `decode`
    take class labels, too."""

    @checked
    def reconstruct(self, images: Any, class_labels: Any = None) -> Tensor:
        """Return decode(encode(images)): (B, C, H, W); arguments and errors are those of `encode`."""
        return self.decode(self.encode(images, class_labels), class_labels)

    @checked
    def of_class(self, label: int | str) -> "OfClass":
        """Return encoding, decoding, interpolation, traversal and attributes within one class.

        Raises:
            ValueError: the model does not have the class.
        """
        return OfClass(self, label)


class OfClass(LatentMixin):
    """The images of one class of a class-conditional pipeline; errors are those of its methods."""

    def __init__(self, pipeline: Any, label: int | str):
        self.pipeline, self.label, self.largest_pixel = pipeline, label, pipeline.largest_pixel
        self._numbers = labels_of(label, 1, pipeline.config.num_classes, pipeline.config.label_names)[1]  # (1,)
        self.latent_shape, self.sample_shape = pipeline.latent_shape, pipeline.sample_shape

    def encode(self, images: Any) -> Tensor:
        """Return the latents of images, see `image_batch`, as the pipeline's `encode` under this class."""
        return self._encode(self._batch(images))

    def _encode(self, x: Tensor) -> Tensor:
        return self.pipeline._encode(x, self._numbers)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of latents, as the pipeline's `decode` under this class."""
        return self.pipeline.decode(latents, self._numbers)


class DecoderMixin(RoundTripMixin):
    """For a pipeline with an `autoencoder`, the options of its p(x | z), and `encode` and `decode`: latents may be
    continuous or codes."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of an image."""
        return sample_shape_of(self.autoencoder)

    @property
    def likelihood(self) -> Likelihood:
        """Return p(x | z)."""
        config = self.config
        return build_likelihood(config.likelihood, config.likelihood_sigma, config.likelihood_components)

    @torch.no_grad()
    def _encoded(self, x: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return encode(x), a batch at a time, for images x (B, C, H, W) in the network's dtype; refuse what is not
        finite."""
        x = x.to(self.autoencoder.dtype)
        return require_finite(self._by_batch(x, encode), "latents", self.components, x)

    @torch.no_grad()
    def _decoded(self, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean of p(x | z), (B, C, H, W) in [-1, 1], a batch at a time; decode(z) gives its parameters.

        Raises:
            NotFiniteError: they are not finite.
            ValueError: the images have another shape than the configuration says.
        """

        def mean(part: Tensor) -> Tensor:
            return self.likelihood.mean(require_finite(decode(part), "decoder's outputs", self.components, part))

        images = require_finite(self._by_batch(latents, mean), "images", self.components, latents)
        if tuple(images.shape[1:]) != tuple(self.sample_shape):
            raise ValueError(
                f"The autoencoder makes images of shape {tuple(images.shape[1:])}, and its configuration says "
                f"{tuple(self.sample_shape)}: correct sample_size or the shape of the latents."
            )
        return images


class NormalisedLatentsMixin:
    """For a pipeline whose network models normalised latents of a `vae`, with `sample_size` and the options of its
    p(x | z) in its configuration; a `likelihood` of None is a decoder whose output is the image."""

    @property
    def latent_scale(self) -> LatentScale:
        """Return mean and deviation of each channel of the autoencoder's latents."""
        return scale_of(self.vae, "vae")

    @property
    def likelihood(self) -> Likelihood:
        """Return p(x | z), whose mean is the image."""
        config = self.config
        return build_likelihood(config.likelihood or "gaussian", config.likelihood_sigma, config.likelihood_components)

    def _check_scale(self, vae: Any, network: str, channels: int) -> None:
        """Refuse an autoencoder without a scale, or with one of other channels than those of a network.

        Args:
            vae: the autoencoder.
            network: names what models the latents.
            channels: of its items.
        """
        if len(scale_of(vae, "vae").mean) != channels:
            raise ValueError(
                f"The {network} is one of latents with {channels} channels, and those of vae have "
                f"{len(scale_of(vae, 'vae').mean)}. Give the autoencoder that it was trained with."
            )

    def _image_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of an image."""
        if (size := self.config.sample_size) is not None:
            return (self.vae.config.in_channels, *size)
        return image_shape_of(self.vae)


class AutoencoderMixin(DecoderMixin, LatentMixin):
    """For a pipeline with an `autoencoder` called as diffusers' AutoencoderKL, and `latent_shape`."""

    @checked
    def encode(self, images: Any) -> Tensor:
        """Return the mean of q(z | x), (B, d, h, w), for images, see `image_batch`.

        Raises:
            ValueError: images that do not fit the model.
        """
        return self._encode(self._batch(images))

    def _encode(self, x: Tensor) -> Tensor:
        return self._encoded(x, lambda part: upcast(self.autoencoder.encode(part).latent_dist.mean))

    @checked
    def decode(self, latents: Tensor) -> Tensor:
        """Return the mean of p(x | z), (B, C, H, W) in [-1, 1], for latents (B, d, h, w).

        Raises:
            ValueError: latents of another shape or not finite.
        """
        check_latents(latents, self.latent_shape)
        return self._decoded(latents.to(self.autoencoder.dtype), lambda z: self.autoencoder.decode(z).sample)


def interpolate_latents(first: Tensor, second: Tensor, steps: int, kind: str) -> Tensor:
    """Return latents on the way between two batches, both included: (steps, B, d, h, w).

    `linear`: (1 - t) a + t b. `spherical`: the direction turns at constant speed and the norm goes linearly from |a| to
    |b|. Between equal norms the norm therefore stays, as samples of a normal distribution in many dimensions nearly
    have one norm (White 2016, https://arxiv.org/abs/1609.04468). Ends on one line through 0 are joined by that line.

    Args:
        first, second: a and b, (B, d, h, w).
        steps: number of latents on the way.
        kind: `linear` or `spherical`.

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
        direction = (((1 - t) * angle).sin() * unit_a + (t * angle).sin() * unit_b) / sine
        path = torch.where(sine > 1e-6, torch.lerp(norm_a, norm_b, t) * direction, path)
    return path.to(first.dtype).unflatten(2, first.shape[1:])


def check_ends(first: Tensor, second: Tensor, steps: int) -> None:
    """Raise ValueError for fewer than two steps, or for ends of different shapes."""
    check_count("steps", steps, 2)
    if first.shape != second.shape:
        raise ValueError(f"Give both ends of one shape, not {tuple(first.shape)} and {tuple(second.shape)}.")
