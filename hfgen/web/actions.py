"""From a request to a job, and from its result to bytes."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel

from ..serving.filters import Flag
from ..serving.jobs import Alone, Draw
from ..utils.provenance import Provenance, call_text, provenance_of
from ..utils.seeds import sample_generators
from .models import ServedModel
from .pictures import base64_of, image_of, pictures_of, png_of, zip_of
from .schemas import finite

MEDIA = {"png": "image/png", "zip": "application/zip", "json": "application/json"}
"""Format -> its media type."""

OF_REQUESTS = ("seed", "num_samples", "format", "timeout")
"""Fields of a draw that are no arguments of the pipeline's call."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """Bytes, their media type, and headers."""

    content: bytes
    media: str
    headers: Mapping[str, str]

    def response(self) -> Response:
        """Return the HTTP response."""
        return Response(self.content, media_type=self.media, headers=dict(self.headers))


@dataclasses.dataclass(frozen=True)
class Render:
    """From a result to the bytes of an answer in a format."""

    format: str
    make: Callable[..., bytes]

    @property
    def media(self) -> str:
        """Return the media type."""
        return MEDIA[self.format]

    def __call__(self, result: Any, flags: Sequence[Flag] = ()) -> bytes:
        """Return the bytes. Flags are for samples."""
        return self.make(result, flags) if flags else self.make(result)


def drawn(model: ServedModel, body: Any) -> tuple[Draw, Render]:
    """Return the job of a draw, and what makes its answer.

    Raises:
        ValueError: values that do not fit the model or each other.
    """
    call = {name: value for name, value in body.model_dump(exclude=set(OF_REQUESTS)).items() if value is not None}
    if "class_labels" in call:
        call["class_labels"] = model.labels(call["class_labels"])
    job = Draw(model.pipeline, body.seed, body.num_samples, call)
    form = format_of(body, job.size) if model.shows_images else "json"
    said = {"model": model.name, "revision": model.revision}

    def make(samples: list[Any], flags: Sequence[Flag] = ()) -> bytes:
        seeds = range(job.seed, job.seed + job.size)
        if not model.shows_images:
            parts = [{"png": None, "values": sample.tolist()} for sample in samples]
            return _json({**said, "samples": [{"seed": s, **part} for s, part in zip(seeds, parts, strict=True)]})
        pngs = [png_of(sample, origin) for sample, origin in zip(samples, origins_of(model, job), strict=True)]
        if form != "json":
            return files_of([(f"{seed}.png", png) for seed, png in zip(seeds, pngs, strict=True)], form)
        parts = [{"png": base64_of(png), "values": None} for png in pngs]
        for flag in flags:
            parts[flag.number].setdefault("flags", []).append(f"{flag.filter}: {flag.reason}")
        return _json({**said, "samples": [{"seed": s, **part} for s, part in zip(seeds, parts, strict=True)]})

    return job, Render(form, make)


def origins_of(model: ServedModel, job: Draw) -> list[Provenance]:
    """Return the provenance of each sample of a draw."""
    base = provenance_of(model.pipeline, model.name, model.revision, job.seed, job.shared)
    calls = ({**job.shared, **{name: values[i] for name, values in job.each.items()}} for i in range(job.size))
    return [dataclasses.replace(base, seed=job.seed + i, call=call_text(call)) for i, call in enumerate(calls)]


def format_of(body: BaseModel, count: int) -> str:
    """Return the format of an answer with images. Raises ValueError for several images in one PNG file."""
    form = getattr(body, "format", None) or ("png" if count == 1 else "zip")
    if form == "png" and count > 1:
        raise ValueError(f"format: {count} images do not go into one PNG file. Ask for zip or json.")
    return form


def files_of(files: list[tuple[str, bytes]], form: str) -> bytes:
    """Return one file as it is, or a zip file of several."""
    return files[0][1] if form == "png" else zip_of(files)


def alone(model: ServedModel, action: str, body: Any) -> tuple[Alone, Render]:
    """Return the job of an action on images, and what makes its answer.

    Raises:
        ValueError: images or values that do not fit the model.
    """
    names = ("first", "second") if action == "interpolate" else ()
    given = body.images if not names else [getattr(body, name) for name in names]
    titles = names or [f"images[{i}]" for i in range(len(given))]
    images = [image_of(text, model.shape, title) for text, title in zip(given, titles, strict=True)]
    options = {name: getattr(body, name, None) for name in ("num_inference_steps", "steps")}
    options = {name: value for name, value in options.items() if value is not None}
    options["label"] = model.labels(getattr(body, "class_labels", None))
    if model.takes("generator", action):
        options["generator"] = sample_generators(body.seed, range(len(images)))
    return JOBS[action](model, action, images, options, body)


def _pictures(model: ServedModel, action: str, images: list, options: dict, body: Any) -> tuple[Alone, Render]:
    """Return the job and the answer of `reconstruct` or `interpolate`."""
    count = options.get("steps", len(images))
    form = format_of(body, count)
    said = {"class_labels": options["label"], "num_inference_steps": options.get("num_inference_steps")}

    def make(result: Any) -> bytes:
        pictures = pictures_of(model.pipeline, result.flatten(0, -4))
        seed = body.seed if "generator" in options else None
        origin = provenance_of(model.pipeline, model.name, model.revision, seed, said, action)
        files = [(f"{i:03d}.png", png_of(picture, origin)) for i, picture in enumerate(pictures)]
        if form == "json":
            texts = [base64_of(data) for _, data in files]
            return _json({"model": model.name, "revision": model.revision, "images": texts})
        return files_of(files, form)

    return Alone(lambda: model.on_images(action, images, **options), count), Render(form, make)


def _bits(model: ServedModel, action: str, images: list, options: dict, _: Any) -> tuple[Alone, Render]:
    """Return the job and the answer of `bits-per-dim`."""

    def make(bits: Any) -> bytes:
        return _json({"model": model.name, "revision": model.revision, "bits_per_dim": finite(bits.tolist())})

    return Alone(lambda: model.on_images(action, images, **options), len(images)), Render("json", make)


def _scores(model: ServedModel, action: str, images: list, options: dict, _: Any) -> tuple[Alone, Render]:
    """Return the job and the answer of `anomaly-score`. A detector also decides."""
    decides = model.takes("false_alarm_rate", "generate")

    def score() -> dict[str, Any]:
        if not decides:
            return {"scores": finite(model.on_images(action, images, **options).tolist())}
        judged = model.pipeline(images)
        p_values, decisions = judged.p_values.tolist(), judged.decisions.tolist()
        return {"scores": finite(judged.scores.tolist()), "p_values": p_values, "decisions": decisions}

    def make(values: dict[str, Any]) -> bytes:
        return _json({"model": model.name, "revision": model.revision, **values})

    return Alone(score, len(images)), Render("json", make)


JOBS = {"reconstruct": _pictures, "interpolate": _pictures, "bits-per-dim": _bits, "anomaly-score": _scores}
"""Action on images -> what makes its job."""


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, allow_nan=False).encode()
