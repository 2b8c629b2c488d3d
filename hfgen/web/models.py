"""Pipelines that are served by name: what each can do, and a call that works."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..pipelines.classes import class_numbers
from ..pipelines.images import PIL_MODES
from ..serving.revision import revision_of
from ..utils.arguments import checked
from ..utils.drawing import draws_images
from .pictures import base64_of, png_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of models: they are parts of addresses and labels of metrics."""

ON_IMAGES = ("reconstruct", "interpolate", "bits-per-dim", "anomaly-score")
"""Actions on images: routes where a pipeline has the method of this name, written with `_`."""

METHODS = {"generate": "__call__", **{action: action.replace("-", "_") for action in ON_IMAGES}}
"""Action -> the method of the pipeline."""

FIRST_STEPS = 4
"""Steps of the call that is tried at the start, and shown as an example."""


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A pipeline under a name.

    Attributes:
        name: of the model in addresses.
        pipeline: it is called from several threads.
        revision: see `revision_of`.
        actions: `generate` and names of `ON_IMAGES`, as far as the pipeline can.
        example: arguments of a short draw.
        without: why it has not the other actions, by their names.
    """

    name: str
    pipeline: Any
    revision: str
    actions: tuple[str, ...]
    example: Mapping[str, Any]
    without: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a sample."""
        return tuple(self.pipeline.sample_shape)

    @property
    def shows_images(self) -> bool:
        """Return whether samples are images that a PNG file can hold."""
        return draws_images(self.pipeline)

    @property
    def label_names(self) -> list[str] | None:
        """Return the names of the classes, if they have any."""
        return self.pipeline.config.get("label_names")

    def takes(self, argument: str, action: str) -> bool:
        """Return whether the method of an action has an argument of this name."""
        return argument in inspect.signature(getattr(self.pipeline, METHODS[action])).parameters

    def takes_label(self, action: str) -> bool:
        """Return whether an action on images can be told their class."""
        has = bool(self.pipeline.config.get("num_classes"))
        return has and (self.takes("class_labels", action) or hasattr(self.pipeline, "of_class"))

    def on_images(self, action: str, images: list[Any], label: int | None, **options: Any) -> Any:
        """Return what a method of the pipeline says of images of a class; None: the method is not told any."""
        told = {} if label is None else {"class_labels": label if action == "interpolate" else [label] * len(images)}
        target = self.pipeline
        if told and not self.takes("class_labels", action):
            target, told = self.pipeline.of_class(label), {}
        arguments = images if action == "interpolate" else [images]
        return getattr(target, METHODS[action])(*arguments, **told, **options)

    def labels(self, given: Any) -> Any:
        """Return class labels as numbers: one for one, a list for a list. None: none were given.

        Raises:
            ValueError: the model has no classes, or not these.
        """
        count = self.pipeline.config.get("num_classes")
        if given is None:
            return None
        if count is None:
            raise ValueError("class_labels were given but this model was trained without classes. Leave them out.")
        numbers = class_numbers(given, count, self.label_names)
        return numbers if isinstance(given, list) else numbers[0]

    def example_image(self) -> str:
        """Return the base64 text of a PNG file of the model's size: a ramp from black to white."""
        channels, height, width = self.shape
        ramp = Image.linear_gradient("L").resize((width, height)).convert(PIL_MODES[channels])
        return base64_of(png_of(ramp))


@checked
def model_of(name: str, pipeline: Any) -> ServedModel:
    """Return a pipeline under a name, with all actions that it may have: which of them work shows `hfgen.web.trial`.

    Raises:
        ValueError: the name is none.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a model: give letters, digits, '.', '_' and '-', at most 64.")
    pipeline.set_progress_bar_config(disable=True)
    actions = ("generate", *(action for action in ON_IMAGES if _can(pipeline, action)))
    return ServedModel(name, pipeline, revision_of(pipeline), actions, _example(pipeline))


def _can(pipeline: Any, action: str) -> bool:
    """Return whether a pipeline has an action on images, and its images are ones that files can hold."""
    return hasattr(pipeline, METHODS[action]) and hasattr(pipeline, "sample_shape") and draws_images(pipeline)


def _example(pipeline: Any) -> dict[str, Any]:
    """Return arguments of a short call."""
    parameters, example = inspect.signature(pipeline.__call__).parameters, {}
    if "class_labels" in parameters and pipeline.config.get("num_classes"):
        example["class_labels"] = 0
    if "prompt" in parameters:
        example["prompt"] = "a picture"
    if "num_inference_steps" in parameters and "scheduler" in pipeline.components:
        example["num_inference_steps"] = FIRST_STEPS
    return example
