"""What goes wrong with a request, as an HTTP status, a kind for metrics, and a sentence."""

import math
from asyncio import CancelledError
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ..console.endings import lack_of_memory
from ..pipelines.outputs import NotFiniteError
from ..serving.engine import DeadlineError, EngineClosedError, QueueFullError
from ..serving.filters import FilteredError

MOST_LETTERS = 1000
"""Letters of a sentence, at most: some repeat what was sent."""

KINDS = {
    **{
        400: "invalid",
        401: "unauthorised",
        403: "filtered",
        404: "not_found",
        405: "not_found",
        408: "slow",
        413: "too_large",
    },
    **{422: "invalid", 429: "queue_full", 499: "gone", 500: "internal", 503: "draining", 504: "deadline"},
}
"""HTTP status -> kind of error in the metrics."""


class Problem(BaseModel):
    """Why a request was refused or failed."""

    kind: str = Field(description="kind of error: " + ", ".join(dict.fromkeys(KINDS.values())))
    detail: str = Field(description="the reason, and what to do")


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer about a problem."""
    legible = detail.encode("utf-8", "replace").decode("utf-8")[:MOST_LETTERS]
    content = {"kind": KINDS.get(status, "invalid"), "detail": legible}
    return JSONResponse(content, status, dict(headers or {}))


def problem_of(error: BaseException) -> JSONResponse | None:
    """Return the answer about an exception; None for one that only says that the server is wrong."""
    if isinstance(error, QueueFullError):
        return problem(429, str(error), {"Retry-After": str(max(1, math.ceil(error.retry_after)))})
    if isinstance(error, EngineClosedError):
        return problem(503, str(error), {"Retry-After": "5"})
    if isinstance(error, FilteredError):
        return problem(403, str(error))
    if isinstance(error, DeadlineError):
        return problem(504, str(error))
    if isinstance(error, CancelledError):
        return problem(499, "The client has left.")
    if isinstance(error, NotFiniteError):
        return problem(500, f"The model failed: {error}")
    if (line := lack_of_memory(error)) is not None:
        return problem(500, f"The server is {line}")
    if isinstance(error, ValueError):
        return problem(422, str(error))
    return None


async def on_invalid(_: Request, error: Any) -> JSONResponse:
    """Answer a request that does not fit its schema; the values that were sent are not repeated."""
    assert isinstance(error, RequestValidationError)
    details = [f"{'.'.join(map(str, each['loc'][1:])) or 'body'}: {each['msg']}" for each in error.errors()[:10]]
    return problem(422, "; ".join(details))


async def on_http(_: Request, error: Any) -> JSONResponse:
    """Answer a request for which there is no route or method, or whose body can't be parsed."""
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), error.headers)


async def on_failure(_: Request, error: Exception) -> JSONResponse:
    """Answer after an exception that nobody expected. What it says stays in the server's log."""
    return problem(500, "The server failed at this request. Its log says why.")
