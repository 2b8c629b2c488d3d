"""What `hfgen evaluate` judges: images drawn from a pipeline, or given in a folder."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.images import ImageData
from ..metrics import neighbours, pixels, sampling
from ..metrics.measures import Comparison, Figure, of_values
from ..utils import pictures
from ..utils.pixels import from_levels

Check = Callable[[Tensor], None]
"""Refuses images of the wrong shape."""


@dataclasses.dataclass
class FolderSamples:
    """Rows `chosen` (N,) of a folder of images."""

    images: ImageData
    chosen: Tensor

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.chosen)

    def draw(self, rows: Tensor, rank: int, world: int, check: Check) -> Tensor:
        """The images: uint8 (N, C, H, W)."""
        return self.images.pixels(self.chosen)[0]

    def method(self, name: str) -> Any:
        """Raises ValueError: images can do nothing."""
        raise ValueError(f"A folder of images has no {name}; that needs a pipeline.")

    def protocol(self) -> dict[str, Any]:
        """What is known of the images."""
        return {
            "sampler": "none: a folder of images",
            "judged": self.images.name,
            "their fingerprint": self.images.fingerprint,
        }


@dataclasses.dataclass
class PipelineSamples:
    """Samples of a pipeline. Classes follow the reference: image i has the label of reference image i."""

    pipeline: Any
    options: Any
    data: ImageData

    @property
    def count(self) -> int:
        """How many are drawn."""
        return self.options.num_samples

    def labels(self, rows: Tensor) -> list[int] | None:
        """A label an image; None for a model without classes."""
        classes = self.pipeline.config.get("num_classes")
        if classes is None:
            return None
        if self.data.labels is None or self.data.num_classes != classes:
            return [i % classes for i in range(self.count)]
        return [int(self.data.labels[rows[i % len(rows)]]) for i in range(self.count)]

    def draw(self, rows: Tensor, rank: int, world: int, check: Check) -> Tensor:
        """The samples: uint8 (N, C, H, W), the same in every process."""
        scale = None if self.options.guidance_scale == 1 else self.options.guidance_scale
        call = self.pipeline.call_with(num_inference_steps=self.options.steps, guidance_scale=scale)
        given = (self.count, self.options.seed, self.options.batch_size, self.labels(rows), call)
        return sampling.draw(self.pipeline, *given, rank=rank, world=world, check=check)

    def method(self, name: str) -> Any:
        """The pipeline's method; ValueError where it has none."""
        if not hasattr(self.pipeline, name):
            raise ValueError(f"A {type(self.pipeline).__name__} has no {name}. Leave the metric that needs it out.")
        return getattr(self.pipeline, name)

    def figure(
        self,
        metric: str,
        method: str,
        data: ImageData,
        split: str,
        rows: Tensor,
        changed: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[Figure, dict[str, Any]]:
        """A metric that a method of the pipeline itself computes, over the first real images; and its protocol.
        `changed`: arguments of the method that are not to be its defaults."""
        rows, (height, width) = rows[: self.options.num_likelihood], data.size
        levels, labels = data.pixels(rows)
        images, call = from_levels(levels), self.method(method)
        defaults = {name: each.default for name, each in inspect.signature(call).parameters.items()} | changed
        stated = ", ".join(f"{name}={value}" for name, value in defaults.items() if isinstance(value, int | str))
        protocol = {
            "data": data.name,
            "split": split,
            "data fingerprint": data.fingerprint,
            "size": f"{data.channels} x {height} x {width}",
            "real images": len(rows),
            "computed by": f"{type(self.pipeline).__name__}.{method}({stated})",
            "seed": self.options.seed,
        }
        given = {} if self.pipeline.config.get("num_classes") is None else {"class_labels": labels}
        if metric == "reconstruction":
            error = pixels.reconstruction_error(images, call(images, **given, **changed).cpu())
            return Figure("reconstruction error, mse", error["mse"], "lower"), protocol
        values = call(images, generator=torch.Generator().manual_seed(self.options.seed), **given, **changed)
        return of_values("bits per dimension", values, "lower"), protocol

    def protocol(self) -> dict[str, Any]:
        """How the samples were drawn."""
        classes = self.pipeline.config.get("num_classes")
        solver = {"solver": self.options.scheduler or "the pipeline's own", "guidance": self.options.guidance_scale}
        return {
            **sampling.sampler_of(self.pipeline),
            **(solver if "scheduler" in self.pipeline.components else {}),
            "dtype": self.options.dtype,
            "labels": "none" if classes is None else "as in the reference",
            "seed": self.options.seed,
        }


def panel(comparison: Comparison, rows: int = 10, columns: int = 6) -> Image.Image:
    """The generated images that are nearest to a training image, a row each, with their nearest training images to the
    right, nearest first."""
    distances, index = neighbours.nearest(comparison.fake.features, comparison.train.features, columns - 1)
    tiles = []
    for i in distances[:, 0].argsort()[:rows].tolist():
        tiles += [comparison.fake.images[i], *comparison.train.images[index[i]]]
    return pictures.grid([Image.fromarray(tile.permute(1, 2, 0).squeeze(-1).numpy()) for tile in tiles], columns)
