"""What lies between and behind the images of a generator."""

from typing import Any

import torch
from torch import Tensor

from .inputs import check_images, check_latents, classes_of, size_of
from .latents import LatentMixin
from .projection import AT_ONCE, projected


class GeneratingMixin(LatentMixin):
    """For a pipeline with a `generator`, perhaps a `discriminator`, and the options `num_classes` and `label_names`."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(d, 1, 1)."""
        return (self.generator.config.latent_channels, 1, 1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.generator.config.out_channels, *size_of(self.generator.config))

    @torch.no_grad()
    def decode(self, latents: Tensor, class_labels: Any = None) -> Tensor:
        """G(z), (B, C, H, W), for latents (B, d, 1, 1) and a class or one an image; see also `of_class`. Images are as
        generated: without tanh in the generator values may lie outside [-1, 1].

        Raises:
            ValueError: labels or latents that do not fit the model, or no labels where it needs them.
        """
        check_latents(latents, self.latent_shape)
        labels = self._needed(class_labels, len(latents))
        rows = torch.arange(len(latents))
        return self._by_batch(rows, lambda i: self._generated(latents.flatten(1)[i], labels[i.cpu()]))

    def encode(self, images: Tensor, class_labels: Any = None) -> Tensor:
        """`project` with its defaults."""
        return self.project(images, class_labels)

    def reconstruct(self, images: Tensor, class_labels: Any = None) -> Tensor:
        """decode(project(images)): (B, C, H, W); arguments and errors: as `project`'s."""
        return self.decode(self.project(images, class_labels), class_labels)

    @torch.no_grad()
    def project(self, images: Tensor, class_labels: Any = None, steps: int = 300, learning_rate: float = 0.1) -> Tensor:
        """Latents (B, d, 1, 1) whose images are near the given ones, as near as a search gets: `projection.projected`,
        with the discriminator's features where it is loaded. The same for an image alone and in any batch, but for
        rounding.

        Args:
            images: (B, C, H, W) in [-1, 1].
            class_labels: their class or classes, by number or name, where the model has classes.
            steps, learning_rate: of the search.

        Raises:
            ValueError: images of another shape, labels that do not fit the model, or fewer steps than one.
        """
        check_images(images, self.image_shape)
        labels = self._needed(class_labels, len(images))
        if steps < 1 or learning_rate <= 0:
            raise ValueError(f"{steps=} must be at least 1, and {learning_rate=} positive.")
        features, device = None if self.discriminator is None else self._features, self._execution_device
        given, found = (features, self.latent_shape[0], steps, learning_rate), []
        with self.progress_bar(total=steps * -(-len(images) // AT_ONCE)) as bar:
            for x, y in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
                found.append(projected(x.to(device).float(), y.to(device), self._generated, *given, bar.update))
        self.maybe_free_model_hooks()
        return torch.cat(found)[:, :, None, None]

    def of_class(self, label: int | str) -> "OfClass":
        """Encoding, decoding, interpolation, traversal and attributes among images of one class. Raises ValueError for
        a class that there isn't."""
        return OfClass(self, label)

    def _labels(self, class_labels: Any, batch_size: int | None) -> tuple[int, Tensor | None]:
        return classes_of(class_labels, batch_size, self.config.num_classes, self.config.label_names)

    def _needed(self, class_labels: Any, count: int) -> Tensor:
        """A label an image (B,), zeros where there are no classes."""
        _, labels = self._labels(class_labels, count)
        if labels is None and self.config.num_classes is not None:
            raise ValueError("This model needs to know classes: give class_labels, or use of_class(label).")
        return torch.zeros(count, dtype=torch.long) if labels is None else labels

    def _generated(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images in float32 for latents (B, d) and labels (B,), which a model without classes is not shown."""
        classes = None if self.config.num_classes is None else labels.to(z.device)
        return self.generator(z.to(self.generator.dtype), classes).sample.float()

    def _features(self, x: Tensor, labels: Tensor) -> Tensor:
        """What the discriminator makes of images before it judges them, (B, F) in float32."""
        classes = None if self.config.num_classes is None else labels.to(x.device)
        return self.discriminator(x.to(self.discriminator.dtype), classes).features.float().flatten(1)


class OfClass(LatentMixin):
    """The images of one class of a class-conditional pipeline; for errors see its methods."""

    def __init__(self, pipeline: GeneratingMixin, label: int | str):
        pipeline._labels(label, 1)
        self.pipeline, self.label = pipeline, label
        self.latent_shape, self.image_shape = pipeline.latent_shape, pipeline.image_shape

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, d, 1, 1) of images (B, C, H, W) in [-1, 1]: `project`."""
        return self.pipeline.encode(images, self.label)

    def decode(self, latents: Tensor) -> Tensor:
        """The images (B, C, H, W) of latents (B, d, 1, 1)."""
        return self.pipeline.decode(latents, self.label)
