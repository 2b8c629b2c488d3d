"""Replicas of a server on a cluster of Ray. One address, and a queue with batches in each replica.

Ray Serve starts the replicas, gives each request to one that has room, and replaces a replica that ends. hfgen has no
cluster of its own (https://docs.ray.io/en/latest/serve/).
"""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from ..console.endings import handle_signals
from ..console.notes import tell
from .server import bound

NAME = "hfgen"
"""Name of the application on Ray."""

GRACE = 30
"""Seconds after `--timeout` for which a replica that ends may answer what it has."""


class Replicas(BaseModel):
    """How many replicas there are, and what each may have.

    Attributes:
        replicas: number of them. With `most`, the least number.
        most: replicas, at most, that Ray starts while requests wait; None: always `replicas`.
        cpus, gpus: that a replica needs.
        ongoing: requests that a replica has at a time, the others wait before them. At least two batches, or a replica
            has nothing to do while its answers are sent.
        queued: requests that wait before the replicas; further ones get 503.
        grace: seconds for which a replica that ends may answer what it has: more than hfgen's own `--timeout`.
    """

    replicas: int = 2
    most: int | None = None
    cpus: float = 1
    gpus: float = 0
    ongoing: int = 32
    queued: int = 256
    grace: float = 60 + GRACE


class Arguments(Replicas):
    """What `serve run` and a `RayService` are given as name=value.

    Attributes:
        words: of `hfgen serve`.
    """

    words: str


def deployed(build: Callable[[], Any], replicas: Replicas) -> Any:
    """Return the application of Ray whose replicas each serve what `build()` returns there: an ASGI application."""
    from ray import serve

    number: dict[str, Any] = {"num_replicas": replicas.replicas}
    if replicas.most is not None:
        number = {"autoscaling_config": {"min_replicas": replicas.replicas, "max_replicas": replicas.most}}

    def built() -> Any:  # Ray takes a plain function
        return build()

    deployment = serve.deployment(
        serve.ingress(built)(type("Replica", (), {})),
        name=NAME,
        **number,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=replicas.ongoing,
        max_queued_requests=replicas.queued,
        graceful_shutdown_timeout_s=replicas.grace,
    )
    return deployment.bind()


def serve_replicas(
    build: Callable[[], Any], replicas: Replicas, host: str, port: int, address: str | None, models: dict[str, str]
) -> None:
    """Start replicas, serve until a signal comes, and end when what was accepted is answered.

    Args:
        build: makes the ASGI application, in each replica.
        replicas: what a replica needs, and their number.
        host: where the cluster answers.
        port: likewise.
        address: of a cluster of Ray; None: a new one on this machine, which ends with the server.
        models: source of each model by its name, to be said.

    Raises:
        ValueError: the replicas do not start; says why.
        OSError: the address is in use, or the cluster can't be reached.
    """
    with _cluster(replicas, host, port, address) as serve:
        serve.run(deployed(build, replicas), name=NAME, route_prefix="/")
        ended = threading.Event()
        handle_signals(lambda *_: os._exit(1) if ended.is_set() else ended.set())
        for name, source in models.items():
            print(f"{name}: {source}")
        most = f" to {replicas.most}" if replicas.most else ""
        shown = f"[{host}]" if ":" in host else host
        print(f"{replicas.replicas}{most} replicas on Ray, each with {_needs(replicas)}")
        print(f"Serving at http://{shown}:{port} (documentation: /docs)", flush=True)
        ended.wait()
        tell("the replicas finish what they have accepted; a second signal ends them at once.")


@contextlib.contextmanager
def _cluster(replicas: Replicas, host: str, port: int, address: str | None) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine, and yield Ray Serve. At the end, what was started is gone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        bound(host, port).close()  # in use: said before a cluster is started
    import ray
    from ray import serve

    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        if address is None:
            gpus = None if replicas.gpus else 0  # None: Ray counts those of the machine
            ray.init(include_dashboard=False, num_gpus=gpus, num_cpus=_cores(replicas), **quiet)
        else:
            ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise OSError(f"--ray_address {address}: no cluster answers there ({error}).") from None
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
        yield serve
        serve.shutdown() if address is None else serve.delete(NAME)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise ValueError(f"The replicas do not start: {_cause(serve, error)}") from None
    finally:
        ray.shutdown()


def _cores(replicas: Replicas) -> int:
    """Return the cores that a cluster of this machine says to have: enough for the replicas, which may share some."""
    return max(int(replicas.cpus * (replicas.most or replicas.replicas)) + 1, os.cpu_count() or 1)


def _needs(replicas: Replicas) -> str:
    """Return what a replica needs, for people."""
    gpus = f" and {replicas.gpus:g} GPUs" if replicas.gpus else ""
    return f"{replicas.cpus:g} cores{gpus}"


def _cause(serve: Any, error: BaseException) -> str:
    """Return why replicas do not start: the error in a replica, if Ray tells it, or the last line of Ray's own."""
    told = ""
    with contextlib.suppress(Exception):  # Ray itself may be what does not start
        application = serve.status().applications[NAME]
        told = "\n".join([application.message, *(each.message for each in application.deployments.values())])
    if causes := re.findall(r"^(?:[\w.]*Error|Exception): (.+)$", told, re.MULTILINE):
        return causes[-1]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
