"""What is evaluated: samples of a pipeline, or the images of a folder."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..console.text import with_article
from ..data.images import ImageData
from ..metrics import neighbours, pixels, sampling
from ..metrics.measures import Comparison, Measurement, mean_measurement
from ..utils import pictures
from ..utils.adapters import adapters_text
from ..utils.drawing import check_draws
from ..utils.pixels import from_levels
from ..utils.seeds import check_seed, generator_of
from .guides import Guides
from .options import PIPELINE_METRICS, EvaluateOptions
from .reference import data_protocol, matching_labels

Check = Callable[[Tensor], None]
"""Called with images (B, C, H, W); raises ValueError if their shape does not fit."""

NO_SAMPLES = "Leave metrics of samples out of --metrics."


@dataclasses.dataclass
class FolderSamples:
    """Rows `rows` (N,) of a split of the images of a folder, in the place of samples."""

    images: ImageData
    rows: Tensor
    split: str = "train"

    def check(self) -> None:
        """Do nothing: any images can be compared."""

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.rows)

    def draw(self, reference_rows: Tensor, rank: int, world: int, check: Check) -> Tensor:
        """Return the images, uint8 (N, C, H, W). The arguments are those of `PipelineSamples.draw`, and not used."""
        return self.images.pixels(self.rows)[0]

    def method(self, metric: str) -> Any:
        """Raise ValueError: a metric of `PIPELINE_METRICS` needs a pipeline."""
        raise ValueError(f"A folder of images has no {PIPELINE_METRICS[metric]}: {metric} needs a pipeline.")

    def classes_asked_for(self, reference_rows: Tensor, known: int) -> dict[str, Tensor]:
        """Raise ValueError: nobody asked for classes."""
        raise ValueError("A folder of images has no classes that were asked for: class_agreement needs a pipeline.")

    def protocol(self) -> dict[str, Any]:
        """Return what identifies the images."""
        return {
            "sampler": "none: a folder of images",
            "judged": self.images.name,
            "their split": self.split,
            "their fingerprint": self.images.fingerprint,
        }


@dataclasses.dataclass
class PipelineSamples:
    """Samples of a pipeline, drawn by `options`. `data` are the real images they are compared with; `guides`, if there
    are any, guide the pipeline."""

    pipeline: Any
    options: EvaluateOptions
    data: ImageData
    guides: Guides | None = None

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.options.num_samples

    def check(self) -> None:
        """Raise ValueError for a pipeline that draws nothing, and for more samples than there are seeds."""
        check_draws(self.pipeline, NO_SAMPLES)
        check_seed(self.options.seed + self.count - 1)

    @property
    def knower(self) -> Any:
        """Return the pipeline whose classes are asked for: the judged one or, if it has none, its classifier."""
        return self.pipeline if self.guides is None else self.guides.knower

    def labels(self, reference_rows: Tensor) -> list[int] | None:
        """Return a class for each sample, in the proportions of the reference images: see `matching_labels`.

        If the data have no labels, the classes are 0, 1, 2, ... in turn. None for a model without classes.

        Raises:
            ValueError: the data have labels, and the model does not know their classes.
        """
        num_classes = self.knower.config.get("num_classes")
        if num_classes is None:
            return None
        if self.data.labels is None:
            return [i % num_classes for i in range(self.count)]
        return matching_labels(self.classes(self.data.labels[reference_rows], self.data), self.count)

    def classes_asked_for(self, reference_rows: Tensor, known: int) -> dict[str, Tensor]:
        """Return the class of each real image (N,), "real", and the one each sample is asked to show (M,), "fake".

        Args:
            reference_rows: rows of the real images (N,).
            known: number of classes that the judge of class_agreement tells apart.

        Raises:
            ValueError: there are no classes to ask for, or the judge knows others.
        """
        count, labels = self.knower.config.get("num_classes"), self.data.labels
        if count is None or labels is None:
            what = "a pipeline that knows classes" if count is None else f"labels of {self.data.name}"
            raise ValueError(f"class_agreement needs {what}. Leave it out of --metrics.")
        if count != known:
            raise ValueError(
                f"class_agreement needs a judge of the pipeline's {count} classes, and the feature network tells "
                f"{known} apart. Name another with --features, or leave class_agreement out."
            )
        real, fake = self.classes(labels[reference_rows], self.data), torch.tensor(self.labels(reference_rows))
        return {"real": real, "fake": fake}

    def classes(self, labels: Tensor, data: ImageData) -> Tensor:
        """Return the model's classes (N,) for labels (N,) of data: those of the same names. For a model without names,
        those of the same numbers.

        Raises:
            ValueError: the model has no class of such a name, or another number of classes and no names.
        """
        count, names = (self.knower.config.get(name) for name in ("num_classes", "label_names"))
        if names is None:
            unknown = [] if data.num_classes == count else data.label_names
            number = {index: index for index in range(count)}
        else:
            number = {index: names.index(name) for index, name in enumerate(data.label_names) if name in names}
            unknown = [data.label_names[i] for i in labels.unique().tolist() if i not in number]
        if unknown:
            known = f"{count} classes without names" if names is None else f"the classes {', '.join(names)}"
            raise ValueError(
                f"{data.name} has images of class {', '.join(unknown[:5])}{', ...' * (len(unknown) > 5)}, and the "
                f"pipeline has {known}. Give data of these classes, or --label_column none to draw all classes in turn."
            )
        return torch.tensor([number[label] for label in labels.tolist()])

    def draw(self, reference_rows: Tensor, rank: int, world: int, check: Check) -> Tensor:
        """Draw the samples: uint8 (N, C, H, W), the same in each of the `world` processes."""
        scale = None if self.options.guidance_scale == 1 else self.options.guidance_scale
        call = self.pipeline.call_with(num_inference_steps=self.options.num_inference_steps, guidance_scale=scale)
        labels, told = self.labels(reference_rows), self.pipeline.config.get("num_classes") is not None

        def arguments(numbers: range) -> dict[str, Any]:
            classes = None if labels is None else [labels[i] for i in numbers]
            return {**call, **({} if self.guides is None else self.guides.arguments(classes))}

        return sampling.draw(
            self.pipeline,
            self.count,
            self.options.seed,
            self.options.batch_size,
            labels if told else None,
            arguments,
            rank=rank,
            world=world,
            check=check,
        )

    def method(self, metric: str) -> Any:
        """Return the pipeline's method that computes a metric of `PIPELINE_METRICS`.

        Raises:
            ValueError: the pipeline has no such method.
        """
        name = PIPELINE_METRICS[metric]
        if not hasattr(self.pipeline, name):
            kind = with_article(type(self.pipeline).__name__)
            raise ValueError(f"{kind[0].upper()}{kind[1:]} has no {name}. Leave {metric} out of --metrics.")
        return getattr(self.pipeline, name)

    def measure(
        self,
        metric: str,
        data: ImageData,
        split: str,
        rows: Tensor,
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[Measurement, dict[str, Any]]:
        """Compute a metric of `PIPELINE_METRICS`, and return it with its protocol.

        Args:
            metric: its name.
            data: the real images.
            split: their split, for the protocol.
            rows: row numbers (N,); the first `num_likelihood` of them are used.
            arguments: arguments of the pipeline's method that differ from its defaults.
        """
        rows = rows[: self.options.num_likelihood]
        levels, labels = data.pixels(rows)
        images, method = from_levels(levels), self.method(metric)
        conditional = self.pipeline.config.get("num_classes") is not None
        labels = None if labels is None or not conditional else self.classes(labels, data)
        defaults = {name: parameter.default for name, parameter in inspect.signature(method).parameters.items()}
        settings = {name: v for name, v in {**defaults, **arguments}.items() if isinstance(v, int | str)}
        call = ", ".join(f"{name}={value}" for name, value in settings.items())
        protocol = {
            **data_protocol(data, split),
            "real images": len(rows),
            "computed by": f"{type(self.pipeline).__name__}.{PIPELINE_METRICS[metric]}({call})",
            "seed": self.options.seed,
        }
        condition = {"class_labels": labels} if conditional and "class_labels" in defaults else {}
        if metric == "reconstruction":
            error = pixels.reconstruction_error(images, method(images, **condition, **arguments).cpu())
            return Measurement("reconstruction error, mse", error["mse"], "lower"), protocol
        generator = generator_of("likelihood", self.options.seed)
        try:
            bits = method(images, generator=generator, **condition, **arguments)
        except ValueError as error:  # the pipeline does not know which option asked
            raise ValueError(f"--metrics {metric}: {error}") from None
        return mean_measurement("bits per dimension", bits, "lower"), protocol

    def protocol(self) -> dict[str, Any]:
        """Return how the samples were drawn: sampler, evaluations, guidance, precision, labels, seed."""
        num_classes, labelled = self.knower.config.get("num_classes"), self.data.labels is not None
        solver = {"solver": self.options.scheduler or "the pipeline's own", "guidance": self.options.guidance_scale}
        if self.guides is not None:
            solver["guidance"] = f"{self.options.guidance_scale:g}; {self.guides}"
        return {
            **sampling.sampler_facts(self.pipeline),
            **(solver if "scheduler" in self.pipeline.components else {}),
            **({} if self.options.lora is None else {"adapters": adapters_text(self.options.lora)}),
            "dtype": self.options.dtype,
            "labels": "none" if num_classes is None else "as in the reference" if labelled else "all classes in turn",
            "seed": self.options.seed,
        }


def nearest_panel(comparison: Comparison, rows: int = 10, columns: int = 6) -> Image.Image:
    """Return a picture of the `rows` samples that are nearest to a training image, by features.

    Each row is a sample and its `columns - 1` nearest training images, nearest first.
    """
    distances, index = neighbours.nearest_neighbours(comparison.fake.features, comparison.train.features, columns - 1)
    tiles = []
    for i in distances[:, 0].argsort()[:rows].tolist():
        tiles += [comparison.fake.images[i], *comparison.train.images[index[i]]]
    return pictures.grid([Image.fromarray(tile.permute(1, 2, 0).squeeze(-1).numpy()) for tile in tiles], columns)
