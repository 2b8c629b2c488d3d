"""What stands before all routes: the API key, the limit and the deadline of bodies, and the count of requests."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from .metrics import OTHER, Metrics
from .problems import KINDS, problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = ("/healthz", "/readyz", "/metrics")
"""Addresses that need no key: probes and monitoring ask them."""

BODY_SECONDS = 30.0
"""Seconds until which a body must be there."""


class Gate:
    """An ASGI application around another one.

    Args:
        app: the application.
        metrics: count requests, errors and times.
        actions: model -> actions; requests for others are counted as `other`.
        max_body_bytes: of a request.
        max_requests: that are answered at a time; further ones are refused before their bodies are read.
        api_key: what requests must give; None: nothing.
    """

    def __init__(
        self,
        app: Any,
        metrics: Metrics,
        actions: Mapping[str, tuple[str, ...]],
        max_body_bytes: int,
        max_requests: int,
        api_key: str | None = None,
    ):
        self.app, self.metrics, self.actions = app, metrics, actions
        self.max_body_bytes, self.max_requests, self.api_key = max_body_bytes, max_requests, api_key
        self.open = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, counted = time.monotonic(), 500, scope["path"] in OPEN

        def count() -> None:
            nonlocal counted
            if not counted:
                self._count(scope["path"], status, time.monotonic() - start)
            counted = True

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                count()  # before the client has its answer, and may ask for the metrics
            await send(message)

        self.open += 1
        try:
            await self._pass(scope, receive, send_on)
        finally:
            self.open -= 1
            count()

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request in, or answer that it is not."""
        headers = {key.lower(): value for key, value in scope["headers"]}
        if not self._has_key(scope["path"], headers):
            refusal = problem(
                401, "Give the API key: Authorization: Bearer KEY, or X-API-Key: KEY.", {"WWW-Authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
            return
        if self.open > self.max_requests and scope["path"] not in OPEN:
            await problem(429, f"{self.max_requests} requests are open. Try again later.", {"Retry-After": "1"})(
                scope, receive, send
            )
            return
        try:
            body = await asyncio.wait_for(self._body(headers, receive), BODY_SECONDS)
        except (asyncio.TimeoutError, TimeoutError):
            await problem(408, f"The body was not there after {BODY_SECONDS:g} s.")(scope, receive, send)
            return
        except OverflowError as error:
            await problem(413, str(error), {"Connection": "close"})(scope, receive, send)
            return
        if body is None:  # the client has left
            return
        await self.app(scope, _replay(body, receive), send)

    def _has_key(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a request may come in. All comparisons take the same time, whatever the key is."""
        if self.api_key is None or path in OPEN:
            return True
        word, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if word.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        return hmac.compare_digest(given, self.api_key.encode())

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """Return a body, or None if the client leaves. Raises OverflowError for one above the limit."""
        declared = headers.get(b"content-length", b"0")
        too_large = OverflowError(f"The body is larger than {self.max_body_bytes} bytes. Send less.")
        if declared.isdigit() and len(declared) < 20 and int(declared) > self.max_body_bytes:
            raise too_large
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.max_body_bytes:
                raise too_large
        return b"".join(parts)

    def _count(self, path: str, status: int, seconds: float) -> None:
        """Count a request under its model and action, as far as there are such."""
        parts = path.strip("/").split("/")
        _, model, action = parts if len(parts) == 3 and parts[0] == "models" else (OTHER, OTHER, OTHER)
        known = action in self.actions.get(model, ())
        model, action = (model, action) if known else (OTHER, OTHER)
        self.metrics.requests.labels(model, action, str(status)).inc()
        self.metrics.latency.labels(model, action).observe(seconds)
        if status >= 400:
            self.metrics.errors.labels(KINDS.get(status, "invalid")).inc()


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body at first, and then what comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again
