"""What the page of a demo does, without the page: controls of a pipeline, and files of what it draws."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image, ImageOps

from ..disk.files import write_picture
from ..pipelines.classes import names_of_classes
from ..pipelines.images import PIL_MODES
from ..registry import SAMPLERS_BY
from ..serving.engine import BatchEngine
from ..serving.jobs import Alone, Draw
from ..utils.arguments import checked
from ..utils.drawing import check_draws, draws_images
from ..utils.pixels import eight_bits
from ..utils.provenance import call_text, provenance_of, save_image
from ..web.models import ServedModel, model_of
from ..web.pictures import pictures_of

OWN = "the model's own"
"""The choice of a scheduler that changes nothing."""


class Studio:
    """A pipeline behind a page: `with Studio(pipeline, "digits") as studio:`.

    All callers share one queue, as in `hfgen serve`: the same seed gives the same image, whoever else asks. Files are
    PNG with their provenance, in a folder that is removed at the end.

    Args:
        pipeline: draws images.
        name: of the model, for the page and the provenance.
        max_batch: images in one call of the pipeline, and at a time.
        timeout: seconds until an answer.

    Raises:
        ValueError: the pipeline draws nothing, or no images.
    """

    @checked
    def __init__(self, pipeline: Any, name: str, max_batch: int = 16, timeout: float = 600.0):
        check_draws(pipeline, "hfgen demo shows pipelines that do.")
        if not draws_images(pipeline):
            raise ValueError(
                f"{name} draws samples of shape {tuple(pipeline.sample_shape)}, and hfgen demo shows images. Use "
                "hfgen sample."
            )
        self.model: ServedModel = model_of(name, pipeline)
        self.max_batch, self.timeout = max_batch, timeout
        self.engine = BatchEngine(max_batch=max_batch, max_queue=16 * max_batch)
        self._folder = tempfile.TemporaryDirectory(prefix="hfgen-demo-")

    def __enter__(self) -> "Studio":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what was asked for, and remove the files."""
        self.engine.close()
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """Return the folder of the files."""
        return Path(self._folder.name)

    def takes(self, argument: str) -> bool:
        """Return whether the pipeline's call has an argument that is of use."""
        pipeline = self.model.pipeline
        if argument == "class_labels" and not pipeline.config.get("num_classes"):
            return False
        if argument in ("scheduler", "num_inference_steps") and "scheduler" not in pipeline.components:
            return False
        return self.model.takes(argument, "generate")

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes, [] without classes."""
        count = self.model.pipeline.config.get("num_classes") if self.takes("class_labels") else None
        return names_of_classes(count, self.model.label_names)

    @property
    def schedulers(self) -> list[str]:
        """Return the names of the schedulers to choose from, the model's own first; [] without schedulers."""
        return [OWN, *SAMPLERS_BY[self.model.pipeline.samples_by]] if self.takes("scheduler") else []

    @property
    def steps(self) -> int | None:
        """Return the steps of the model's own scheduler; None without one."""
        return provenance_of(self.model.pipeline, self.model.name).steps if self.takes("num_inference_steps") else None

    def can(self, action: str) -> bool:
        """Return whether the pipeline has an action on images, `reconstruct` or `interpolate`."""
        return action in self.model.actions

    @checked
    def draw(self, seed: int = 0, count: int = 1, call: Mapping[str, Any] = MappingProxyType({})) -> list[Path]:
        """Draw images and return their files. Image i has seed + i.

        Args:
            seed, count: of the images.
            call: arguments of the pipeline's call, as `controls` makes them.

        Raises:
            ValueError: the pipeline refuses it.
            QueueFullError, DeadlineError: as `BatchEngine`.
        """
        job = Draw(self.model.pipeline, seed, count, call)
        images = self.engine.submit(job, self.timeout).result()
        base = provenance_of(self.model.pipeline, self.model.name, self.model.revision, seed, call)
        origins = (dataclasses.replace(base, seed=seed + i) for i in range(count))
        return [self._save(image, origin) for image, origin in zip(images, origins, strict=True)]

    @checked
    def reconstruct(self, image: Any, label: int | None = None) -> list[Path]:
        """Return the files of an image as the model takes it, and of its reconstruction.

        Args:
            image: a PIL image of any size: its centre is scaled to the model's.
            label: its class, of a model that is told classes.
        """
        fitted = self.fitted(image)
        result = self._on_images("reconstruct", [fitted], label)
        path = self._new_file("given")
        write_picture(path, fitted)  # of the caller, who did not get it from a model
        return [path, *self._save_all(result, "reconstruct", {"class_labels": label})]

    @checked
    def interpolate(self, first: int, second: int, steps: int = 8, call: Mapping[str, Any] | None = None) -> list[Path]:
        """Draw images of two seeds, and return the files of the images on the way between them."""
        call = {} if call is None else call
        ends = [
            self.engine.submit(Draw(self.model.pipeline, seed, 1, call), self.timeout).result()[0]
            for seed in (first, second)
        ]
        result = self._on_images("interpolate", ends, call.get("class_labels"), steps=steps)
        return self._save_all(result, "interpolate", {**call, "seeds": [first, second]})

    def fitted(self, image: Image.Image) -> Image.Image:
        """Return an image upright, cut at its centre and scaled to the size of the model's images, in their mode."""
        channels, height, width = self.model.shape
        upright = eight_bits(ImageOps.exif_transpose(image)).convert(PIL_MODES[channels])
        return ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)

    def controls(
        self,
        label: str | None = None,
        prompt: str | None = None,
        scheduler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of a call for the values of the controls of a page, without those that it has not."""
        call = {
            "class_labels": self.model.labels(label) if label and self.takes("class_labels") else None,
            "prompt": prompt or None,
            "scheduler": None if scheduler == OWN else scheduler,
            "num_inference_steps": None if steps is None else int(steps),
            "guidance_scale": None if guidance in (None, 1) else float(guidance),
        }
        return {name: value for name, value in call.items() if value is not None and self.takes(name)}

    def _on_images(self, action: str, images: Sequence[Any], label: int | None, **options: Any) -> Any:
        told = label if self.model.takes_label(action) else None
        job = Alone(lambda: self.model.on_images(action, list(images), told, **options), 1)
        return self.engine.submit(job, self.timeout).result()

    def _save_all(self, samples: Any, action: str, call: Mapping[str, Any]) -> list[Path]:
        """Write samples of any leading dimensions (..., C, H, W) in [-1, 1], and return their files."""
        origin = provenance_of(self.model.pipeline, self.model.name, self.model.revision, action=action)
        origin = dataclasses.replace(origin, call=call_text(call))
        return [self._save(image, origin) for image in pictures_of(self.model.pipeline, samples.flatten(0, -4))]

    def _save(self, image: Image.Image, origin: Any) -> Path:
        """Write an image with its provenance, and return its file."""
        path = self._new_file(f"{self.model.name}-{origin.action if origin.seed is None else origin.seed}")
        save_image(path, image, origin)
        return path

    def _new_file(self, stem: str) -> Path:
        """Return a file of its own for an image, whose name begins with `stem`: several callers may write at once."""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=f"{stem}-", suffix=".png", delete=False) as file:
            return Path(file.name)
