"""The application: a route for each action of each model, all through one queue."""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from hfgen import __version__

from ..serving.cache import ByteCache
from ..serving.engine import BatchEngine, EngineClosedError, Job
from ..serving.filters import FilteredError, Flag, judged
from ..serving.jobs import Draw
from .actions import MEDIA, Answer, alone, drawn
from .gate import Gate
from .metrics import Metrics
from .models import ServedModel
from .problems import Problem, on_failure, on_http, on_invalid, problem, problem_of
from .schemas import ANSWERS, Limits, ModelEntry, Pictures, Samples, request_schema

PROBLEMS = {
    401: "no key",
    403: "a filter refuses what was drawn",
    404: "no such model or action",
    413: "too large",
    422: "a value that does not fit",
}
PROBLEMS |= {429: "the queue is full: see Retry-After", 503: "the server is shutting down", 504: "not in time"}
"""Statuses of refusals, for the OpenAPI description."""


@dataclasses.dataclass
class Service:
    """What the routes share.

    Attributes:
        engine: computes.
        models: by name.
        metrics, cache, limits: of the server.
        filters: `OutputFilter`s by the name of the model whose samples they judge.
    """

    engine: BatchEngine
    models: Mapping[str, ServedModel]
    metrics: Metrics
    cache: ByteCache
    limits: Limits
    filters: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

    async def compute(self, request: Request, job: Job, timeout: float | None) -> Any:
        """Return the result of a job. If the client leaves, the job is cancelled.

        Raises:
            QueueFullError, EngineClosedError, DeadlineError: as `BatchEngine.submit`.
            CancelledError: the client has left.
        """
        future = asyncio.wrap_future(self.engine.submit(job, self.limits.timeout if timeout is None else timeout))
        leaving = asyncio.ensure_future(_leaves(request))
        try:
            await asyncio.wait({future, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                future.cancel()
            return await future
        finally:
            leaving.cancel()

    async def draw(self, request: Request, model: ServedModel, body: BaseModel) -> Answer:
        """Return samples, from the cache if the same were asked for before."""
        if self.engine.closing:  # also for what the cache holds: another server is to be asked
            raise EngineClosedError
        job, render = drawn(model, body)
        asked = json.dumps([model.revision, model.name, job.seed, job.size, job.shared, job.each, render.format])
        key = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()
        found, flags = self.cache.get(key), []
        self.metrics.cache.labels("miss" if found is None else "hit").inc()
        if found is None:
            samples = await self.compute(request, job, body.timeout)
            if self.filters.get(model.name):
                flags = await asyncio.to_thread(self.judge, model, job, samples)
            found = await asyncio.to_thread(render, samples, flags)
            if not flags:  # the cache holds bytes alone, and a flag is a header
                self.cache.put(key, found)
        self.metrics.images.labels(model.name).inc(job.size)
        headers = {"X-Model-Revision": model.revision, "X-Seed": str(job.seed)}
        if flags:
            headers["X-Flags"] = ", ".join(f"{job.seed + flag.number} {flag.filter}" for flag in flags)
        return Answer(found, render.media, headers)

    def judge(self, model: ServedModel, job: Draw, samples: Sequence[Any]) -> list[Flag]:
        """Return what the filters of a model found in samples, and count it.

        Raises:
            FilteredError: one of them refuses a sample.
        """
        count = self.metrics.filtered.labels
        names = [f"seed {job.seed + i}" for i in range(job.size)]
        try:
            flags = judged(self.filters.get(model.name, ()), samples, names)
        except FilteredError as error:
            for name in error.filters:
                count(model.name, name, "refused").inc()
            raise
        for flag in flags:
            count(model.name, flag.filter, "flagged").inc()
        return flags

    async def on_images(self, request: Request, model: ServedModel, action: str, body: BaseModel) -> Answer:
        """Return the answer of an action on images."""
        job, render = await asyncio.to_thread(alone, model, action, body)
        result = await self.compute(request, job, body.timeout)
        content = await asyncio.to_thread(render, result)
        return Answer(content, render.media, {"X-Model-Revision": model.revision})


async def _leaves(request: Request) -> None:
    """Return when the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def build_app(service: Service, max_body_bytes: int, api_key: str | None = None) -> Any:
    """Return the ASGI application of a service.

    Args:
        service: what it serves.
        max_body_bytes: of a request.
        api_key: what requests must give; None: nothing.
    """
    description = "Samples and measurements of generative models. `GET /models` lists the models and what each can do."
    app = FastAPI(title="hfgen", version=__version__, description=description)
    for kind, handler in ((RequestValidationError, on_invalid), (HTTPException, on_http), (Exception, on_failure)):
        app.add_exception_handler(kind, handler)
    add_probes(app, service)
    for model in service.models.values():
        for action in model.actions:
            add_action(app, service, model, action)

    @app.api_route("/models/{model}/{action}", methods=["GET", "POST"], include_in_schema=False)
    async def unknown(model: str, action: str) -> Response:
        """Say which models and actions there are."""
        if model not in service.models:
            return problem(404, f"There is no model {model!r}. There are: {', '.join(service.models)}.")
        known, without = service.models[model].actions, service.models[model].without
        if action in known:
            return problem(405, f"Ask for {action} with POST.", {"Allow": "POST"})
        why = f": {without[action]}" if action in without else "."
        return problem(404, f"Model {model!r} has no action {action!r}{why} It has: {', '.join(known)}.")

    actions = {name: model.actions for name, model in service.models.items()}
    most = 2 * service.engine.max_queue + 64  # a request that can be answered has a place in the queue or is computed
    return Gate(app, service.metrics, actions, max_body_bytes, most, api_key)


def add_action(app: FastAPI, service: Service, model: ServedModel, action: str) -> None:
    """Add the route of an action of a model."""
    generates = action == "generate"
    schema: Any = request_schema(model, action, service.limits)

    async def answer(request: Request, body: schema) -> Response:
        try:
            work: Awaitable[Answer] = (
                service.draw(request, model, body) if generates else service.on_images(request, model, action, body)
            )
            return (await work).response()
        except (Exception, asyncio.CancelledError) as error:
            if (refusal := problem_of(error)) is None:
                raise
            return refusal

    binary = {"schema": {"type": "string", "format": "binary"}}
    pictures = ANSWERS[action] in (Samples, Pictures) and model.shows_images
    files = {"content": {MEDIA["png"]: binary, MEDIA["zip"]: binary}} if pictures else {}
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "the answer", "model": ANSWERS[action], **files},
        **{status: {"model": Problem, "description": text} for status, text in PROBLEMS.items()},
    }
    path = f"/models/{model.name}/{action}"
    options: dict[str, Any] = {
        "methods": ["POST"],
        "responses": responses,
        "tags": [model.name],
        "response_model": None,
    }
    app.add_api_route(path, answer, name=f"{action} of {model.name}", response_class=Response, **options)


def add_probes(app: FastAPI, service: Service) -> None:
    """Add the routes that say what the server is and how it does."""

    @app.get("/healthz", tags=["server"])
    async def healthz() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["server"], responses={503: {"model": Problem}})
    async def readyz() -> Any:
        """Say whether requests are accepted."""
        if service.engine.closing:
            return problem(503, "The server is shutting down.", {"Retry-After": "5"})
        return {"status": "ready"}

    text = {200: {"description": "the metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", tags=["server"], response_class=Response, responses=text)
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/models", tags=["server"], response_model=list[ModelEntry])
    async def models() -> Any:
        """List the models, what each can do, and a call that works."""
        return JSONResponse([entry_of(model).model_dump() for model in service.models.values()])


def entry_of(model: ServedModel) -> ModelEntry:
    """Return what the list of models says about one."""
    return ModelEntry(
        name=model.name,
        revision=model.revision,
        pipeline=type(model.pipeline).__name__,
        sample_shape=list(model.shape),
        actions=list(model.actions),
        label_names=model.label_names,
        example=dict(model.example),
    )
