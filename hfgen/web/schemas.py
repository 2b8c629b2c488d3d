"""What requests and answers hold. A request for a model has the fields that its pipeline takes, and no others."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..registry import SAMPLERS_BY
from ..utils.ranges import SEED
from .models import ServedModel

CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
MOST_LETTERS = 2000
"""Letters of a prompt."""

Label = int | Annotated[str, Field(max_length=100)]
Text = Annotated[str, Field(max_length=MOST_LETTERS)]


class Limits(BaseModel):
    """What one request may ask for.

    Attributes:
        max_batch: samples or images.
        max_steps: steps of a scheduler.
        timeout: seconds until the answer.
    """

    max_batch: int
    max_steps: int
    timeout: float


class Base(BaseModel):
    """Base of requests: unknown fields and values of other types are refused."""

    model_config = CONFIG


class Drawn(BaseModel):
    """A sample: of an image `png`, the base64 text of a PNG file; of another item `values`, nested lists. `flags` say
    what filters found."""

    seed: int
    png: str | None = None
    values: list[Any] | None = None
    flags: list[str] | None = None


class Samples(BaseModel):
    """Samples of a model, each with the seed that draws it again."""

    model: str
    revision: str
    samples: list[Drawn]


class Pictures(BaseModel):
    """Images, base64 texts of PNG files."""

    model: str
    revision: str
    images: list[str]


class BitsPerDim(BaseModel):
    """Bits per dimension of each image: the lower, the more likely it is to the model."""

    model: str
    revision: str
    bits_per_dim: list[float | None]


class AnomalyScores(BaseModel):
    """The score of each image: the higher, the less normal. A detector also says the share of normal images with such a
    score or a higher one, and its decision."""

    model: str
    revision: str
    scores: list[float | None]
    p_values: list[float] | None = None
    decisions: list[bool] | None = None


class ModelEntry(BaseModel):
    """A model that is served."""

    name: str
    revision: str
    pipeline: str
    sample_shape: list[int]
    actions: list[str]
    label_names: list[str] | None
    example: dict[str, Any]


ANSWERS = {
    "generate": Samples,
    "reconstruct": Pictures,
    "interpolate": Pictures,
    "bits-per-dim": BitsPerDim,
    "anomaly-score": AnomalyScores,
}
"""Action -> what its answer in JSON holds."""


def _number(kind: type, description: str, **bounds: Any) -> tuple[Any, Any]:
    return kind | None, Field(None, description=description, **bounds)


def call_fields(model: ServedModel, limits: Limits) -> dict[str, tuple[Any, Any]]:
    """Return the fields of a draw that are arguments of the pipeline's call."""
    names = tuple(SAMPLERS_BY[model.pipeline.samples_by])
    fields: dict[str, tuple[Any, Any]] = {
        "class_labels": (
            Label | Annotated[list[Label], Field(max_length=limits.max_batch)] | None,
            Field(None, description="class by number or name, or one for each sample"),
        ),
        "prompt": (
            Text | Annotated[list[Text], Field(max_length=limits.max_batch)] | None,
            Field(None, description="text that samples show, or one for each sample"),
        ),
        "negative_prompt": (Text | None, Field(None, description="text that guidance leads away from")),
        "num_inference_steps": _number(int, "steps; default: the model's own", ge=1, le=limits.max_steps),
        "scheduler": (Literal[names] | None, Field(None, description="of this call; default: the model's own")),
        "guidance_scale": _number(float, "1 is no guidance", ge=0, le=1000),
        "guidance_method": (Literal["cfg", "apg"] | None, Field(None, description="form of the guidance")),
        "guidance_rescale": _number(float, "share that is scaled to the unguided spread", ge=0, le=1),
        "temperature": _number(float, "below 1 samples are more typical", ge=0, le=1000),
        "truncation": _number(float, "the lower, the more typical: bound of latents or share of styles", gt=0, le=1000),
        "num_segments": _number(int, "parts that are computed by iterations", ge=1, le=limits.max_steps),
    }
    takes = {name: field for name, field in fields.items() if model.takes(name, "generate")}
    if "scheduler" not in model.pipeline.components:
        takes.pop("scheduler", None)
    if not model.pipeline.config.get("num_classes"):
        takes.pop("class_labels", None)
    return takes


def _timeout(limits: Limits) -> tuple[Any, Any]:
    text = "seconds after which the answer is no longer wanted"
    return _number(float, text, gt=0, le=limits.timeout)


def generate_schema(model: ServedModel, limits: Limits) -> type[BaseModel]:
    """Return the schema of requests for samples of a model."""
    formats = ("png", "zip", "json") if model.shows_images else ("json",)
    plain = "png for one sample, zip for several" if model.shows_images else "json"
    fields = {
        "seed": (int, Field(0, ge=SEED.low, le=SEED.high, description="sample i is drawn with seed + i")),
        "num_samples": (int, Field(1, ge=1, le=limits.max_batch, description="number of samples")),
        **call_fields(model, limits),
        "format": (Literal[formats] | None, Field(None, description=f"of the answer; default: {plain}")),
        "timeout": _timeout(limits),
    }
    return _schema("Generate", model, fields, [{"seed": 7, **model.example}])


def images_schema(model: ServedModel, action: str, limits: Limits) -> type[BaseModel]:
    """Return the schema of requests for an action on images."""
    image = model.example_image()
    base64_text = "base64 text of an image file of the model's size"
    several = {
        "images": (list[str], Field(min_length=1, max_length=limits.max_batch, description=f"each a {base64_text}"))
    }
    two = {name: (str, Field(description=base64_text)) for name in ("first", "second")}
    steps = {"steps": (int, Field(min(8, limits.max_batch), ge=2, le=max(2, limits.max_batch), description="images"))}
    fields = {**two, **steps} if action == "interpolate" else several
    example: dict[str, Any] = (
        {"first": image, "second": image, "steps": 2} if action == "interpolate" else {"images": [image]}
    )
    if model.takes_label(action):
        fields["class_labels"] = (Label | None, Field(None, description="class of all images, by number or name"))
        example["class_labels"] = 0
    if model.takes("num_inference_steps", action):
        fields["num_inference_steps"] = _number(int, "steps; default: the method's own", ge=1, le=limits.max_steps)
        example["num_inference_steps"] = 8
    if model.takes("generator", action):
        fields["seed"] = (int, Field(0, ge=SEED.low, le=SEED.high, description="of what is drawn to measure"))
    if ANSWERS[action] is Pictures:
        fields["format"] = (
            Literal["png", "zip", "json"] | None,
            Field(None, description="default: png for one, else zip"),
        )
    return _schema(action.title().replace("-", ""), model, {**fields, "timeout": _timeout(limits)}, [example])


def request_schema(model: ServedModel, action: str, limits: Limits) -> type[BaseModel]:
    """Return the schema of requests for an action of a model; its configuration holds an example."""
    return generate_schema(model, limits) if action == "generate" else images_schema(model, action, limits)


def _schema(kind: str, model: ServedModel, fields: dict[str, Any], examples: list[dict[str, Any]]) -> type[BaseModel]:
    """Return a request's schema, named after the action and the model, with examples."""
    base = type("Request", (Base,), {"model_config": ConfigDict(**CONFIG, json_schema_extra={"examples": examples})})
    name = f"{kind}_{model.name}".replace("-", "_").replace(".", "_")
    return create_model(name, __base__=base, **fields)


def finite(values: list[float]) -> list[float | None]:
    """Return numbers as JSON can hold them: None for those that are not finite."""
    return [value if math.isfinite(value) else None for value in values]
