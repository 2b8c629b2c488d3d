"""The process that serves: a socket, uvicorn, and an end that loses nothing."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from ..console.notes import tell
from ..serving.engine import BatchEngine


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        OSError: the address is not this machine's, or in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OverflowError:
        raise ValueError(f"port={port} must be from 0 to 65535.") from None
    except OSError as error:
        raise OSError(
            f"{host}:{port} can't be served at: {error.strerror or error}. Give another --port or --host."
        ) from None


class Server(uvicorn.Server):
    """uvicorn, ended by a signal in three steps: new requests are refused with 503, what was accepted is answered, the
    socket is closed. A second signal ends it at once.

    Args:
        app: the ASGI application.
        engine: computes for it.
        drain_seconds: seconds for which at least requests are still refused with 503, so that load balancers notice.
        on_start: called when requests are answered.
    """

    def __init__(
        self,
        app: Any,
        engine: BatchEngine,
        drain_seconds: float = 0.0,
        on_start: Callable[[], None] | None = None,
    ):
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off"))
        self.engine, self.drain_seconds, self.on_start, self.signal = engine, drain_seconds, on_start, 0
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets=sockets)
        if self.on_start is not None:
            self.on_start()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin the end, or end at once."""
        if self.signal:
            self.force_exit = self.should_exit = True
            return
        self.signal = sig
        threading.Thread(target=self._end, daemon=True).start()  # a handler may find the engine's lock taken

    def _end(self) -> None:
        start = time.monotonic()
        self.engine.drain()
        tell("the server finishes what it has accepted; a second signal ends it at once.")
        self.engine.wait()
        time.sleep(max(0.0, self.drain_seconds - (time.monotonic() - start)))
        self.should_exit = True  # uvicorn waits until all answers are sent


def serve(server: Server, listener: socket.socket) -> None:
    """Serve at a socket until a signal comes."""
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        if not server.force_exit:
            server.engine.close()
