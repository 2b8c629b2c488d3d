"""`hfgen serve`: trained pipelines over HTTP, with one queue for all callers."""

import dataclasses
import functools
import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Literal

from ..console.endings import status_of
from ..console.notes import tell
from ..console.text import shell_text
from ..evaluation.filter_options import FilterOptions
from ..options import Options, argument, option, parse, parser, refuse_idle
from ..utils.devices import place
from ..utils.ranges import ABOVE_0, AT_LEAST_0, COUNT, Range

EXAMPLE = "hfgen serve digits=outputs/quickstart --port 8000 --max_batch 32"
NEEDS = ("fastapi", "uvicorn", "prometheus_client")
"""Packages of the extra `serve`."""

API_KEY = "HFGEN_API_KEY"
"""Environment variable with the key that requests must give."""

PORT = Range(0, 65535, whole=True)
"""Ports; 0 is any that is free."""


@dataclasses.dataclass
class ServeOptions(Options):
    """Serving"""

    pipelines: list[str] = argument(  # noqa: RUF009 - it returns a field; Ruff sees a list
        "folders of trained pipelines, or their repositories on the Hub, each perhaps after a name: digits=outputs/a",
        path=False,
    )
    host: str = option("localhost", "address to serve at; 0.0.0.0: every one of this machine")
    port: int = option(8000, "port to serve at; 0: any that is free", range=PORT)
    max_batch: int = option(16, "samples in one call of a pipeline, and in one request", range=COUNT)
    max_wait: float | None = option(
        None,
        "seconds that a request waits for others to share its call; default: 0.005, and after a call up to a quarter "
        "of its time for callers who come back",
        range=AT_LEAST_0,
    )
    max_queue: int = option(256, "samples that wait; further requests get 429 with a time to retry", range=COUNT)
    workers: int = option(1, "calls at a time; 1 is best for one device", range=COUNT)
    timeout: float = option(60.0, "seconds until an answer, at most; a later one is 504", range=ABOVE_0)
    max_steps: int = option(1000, "steps of a scheduler in one request", range=COUNT)
    max_body_mb: float = option(8.0, "megabytes of one request", range=ABOVE_0)
    cache_mb: float = option(
        64.0, "megabytes of answers that are kept for the same requests; 0: none", range=AT_LEAST_0
    )
    drain_seconds: float = option(
        0.0, "seconds for which the server refuses requests, at least, before it ends", range=AT_LEAST_0
    )
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "precision of the networks")
    compile: bool = option(False, "compile the networks at the start, for minutes, and draw faster from then on")
    int8: bool = option(False, "8-bit weights of linear layers (torchao): less memory, for transformers alone")


ON_RAY = {"ray": (True,)}


@dataclasses.dataclass
class RayOptions(Options):
    """Replicas on Ray"""

    ray: bool = option(False, "serve by replicas on Ray, each of which has its own queue and batches")
    replicas: int = option(2, "number of replicas", only_with=ON_RAY, range=COUNT)
    max_replicas: int | None = option(
        None, "replicas that Ray starts, at most, while requests wait; default: no more", only_with=ON_RAY, range=COUNT
    )
    replica_cpus: float = option(1.0, "cores that a replica needs", only_with=ON_RAY, range=AT_LEAST_0)
    replica_gpus: float = option(0.0, "GPUs that a replica needs, or a part of one", only_with=ON_RAY, range=AT_LEAST_0)
    ray_address: str | None = option(
        None, "address of a cluster, ray://HOST:10001 or auto; default: a new one on this machine", only_with=ON_RAY
    )


def main(argv: list[str] | None = None) -> None:
    """Serve until a signal comes.

    Raises:
        ValueError: options that do not fit, a package is missing, or a pipeline can't be served.
        OSError: the address is in use, or a file can't be read.
    """
    options, filter_options, replicas = _parsed(argv)
    sources, key = _check(options, replicas), _api_key()
    if replicas.ray:
        _serve_on_ray(options, filter_options, replicas, sources, key)
        print("Stopped.", flush=True)
        return

    from ..web.server import Server, bound, serve

    with bound(options.host, options.port) as listener:
        service = _service(options, filter_options, sources)
        app = _application(options, service, key)
        port = listener.getsockname()[1]
        start = functools.partial(_say, options, service, port, key)
        server = Server(app, service.engine, options.drain_seconds, start)
        serve(server, listener)
    print("Stopped.", flush=True)
    if server.force_exit:
        os._exit(status_of(server.signal))  # a thread may still compute, and Python's own end would wait or crash


def _serve_on_ray(
    options: ServeOptions, filter_options: FilterOptions, replicas: RayOptions, sources: dict[str, str], key: str | None
) -> None:
    """Serve by replicas until a signal comes. They run in folders of their own, so they are given whole paths."""
    from ..web.cluster import GRACE, Replicas, serve_replicas

    sources = {name: os.path.abspath(text) if os.path.exists(text) else text for name, text in sources.items()}
    needs = Replicas(
        replicas=replicas.replicas,
        most=replicas.max_replicas,
        cpus=replicas.replica_cpus,
        gpus=replicas.replica_gpus,
        ongoing=2 * options.max_batch,
        queued=options.max_queue,
        grace=options.timeout + GRACE,
    )
    build = functools.partial(application_of, options, filter_options, sources, key)
    serve_replicas(build, needs, options.host, options.port, replicas.ray_address, sources)


def build_application(argv: list[str]) -> Any:
    """Return the ASGI application of `hfgen serve` with these words, for a server of your own.

    Its engine computes on threads of its own until the process ends.

    Args:
        argv: pipelines and options.

    Raises:
        ValueError: as `main`; and for options that are the server's: address, port, replicas, and how it ends.
    """
    options, filter_options, replicas = _parsed(argv)
    if replicas.ray:
        raise ValueError("--ray is for the server, which is another one here.")
    refuse_server_options(options, "host", "port", "drain_seconds")
    sources, key = _check(options, replicas), _api_key()
    return application_of(options, filter_options, sources, key)


def refuse_server_options(options: ServeOptions, *names: str) -> None:
    """Raise ValueError for options of the server that were given where it is another one."""
    for name in names:
        if getattr(options, name) != getattr(ServeOptions([]), name):
            raise ValueError(f"--{name} {getattr(options, name)} is for the server, which is another one here.")


def application_of(
    options: ServeOptions, filter_options: FilterOptions, sources: dict[str, str], key: str | None
) -> Any:
    """Load the models, and return the ASGI application that serves them."""
    return _application(options, _service(options, filter_options, sources), key)


def _application(options: ServeOptions, service: Any, key: str | None) -> Any:
    from ..web.app import build_app

    return build_app(service, int(options.max_body_mb * 1e6), key)


def _parsed(argv: list[str] | None) -> tuple[ServeOptions, FilterOptions, RayOptions]:
    description = f"Serve trained pipelines over HTTP. If the environment has {API_KEY}, requests must give this key."
    groups = (ServeOptions, FilterOptions, RayOptions)
    command = parser("hfgen serve", description, EXAMPLE, *groups, config=False)
    options, filter_options, replicas = parse(command, argv, *groups)
    refuse_idle(filter_options, replicas)
    return options, filter_options, replicas


def _check(options: ServeOptions, replicas: RayOptions) -> dict[str, str]:
    """Return the source of each model by its name. Raises ValueError for options that do not fit."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise ValueError(f"hfgen serve needs {', '.join(missing)}. Install them: pip install 'hfgen[serve]'")
    if replicas.ray:
        _check_ray(options, replicas)
    if options.int8:
        from ..serving.speed import check_torchao

        check_torchao()
    if options.max_queue < options.max_batch:
        raise ValueError(
            f"--max_queue {options.max_queue} must be at least --max_batch {options.max_batch}, or no full batch fits."
        )
    sources: dict[str, str] = {}
    for text in options.pipelines:
        name, source = named_source(text)
        if name in sources:
            raise ValueError(f"Two models are called {name!r}. Give one another name: NAME={source}")
        sources[name] = source
    return sources


def _check_ray(options: ServeOptions, replicas: RayOptions) -> None:
    """Raise ValueError where the options do not fit replicas on Ray, or Ray is missing."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("hfgen serve --ray needs ray. Install it: pip install 'hfgen[ray]'")
    refuse_server_options(options, "drain_seconds")
    if options.port == 0:
        raise ValueError("--port 0 finds a port for one process. With --ray, give the port.")
    if replicas.max_replicas is not None and replicas.max_replicas <= replicas.replicas:
        raise ValueError(
            f"--max_replicas {replicas.max_replicas} must be above --replicas {replicas.replicas}, the least number."
        )


def _close_name(text: str) -> str:
    """Return a name of a model that is like a text."""
    name = re.sub("[^A-Za-z0-9._-]+", "-", text)[:64].strip("._-")
    return name or "model"


def named_source(text: str) -> tuple[str, str]:
    """Return name and source of NAME=SOURCE, or of a source whose last part is the name."""
    name, equals, source = text.partition("=")
    if not equals or os.path.exists(os.path.expanduser(text)):
        name, source = Path(text).expanduser().resolve().name if os.path.isdir(text) else text.rpartition("/")[2], text
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            f"{name!r} is no name of a model: letters, digits, '.', '_' and '-', at most 64. Give one: "
            f"{shell_text([f'{_close_name(name)}={source}'])}"
        )
    return name, os.path.expanduser(source)


def _api_key() -> str | None:
    """Return the key that requests must give, or None. Raises ValueError for an empty one."""
    key = os.environ.get(API_KEY)
    if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable()):
        raise ValueError(
            f"{API_KEY} must have at least 8 letters, all printable ASCII. Unset it to serve without a key."
        )
    return key


def _service(options: ServeOptions, filter_options: FilterOptions, sources: dict[str, str]) -> Any:
    """Load the models, and return what the routes share."""

    import hfgen

    from ..evaluation.filters import load_filters
    from ..serving.cache import ByteCache
    from ..serving.engine import BatchEngine
    from ..serving.speed import prepare
    from ..web.app import Service
    from ..web.metrics import Metrics
    from ..web.schemas import Limits
    from ..web.trial import served, warm

    limits = Limits(max_batch=options.max_batch, max_steps=options.max_steps, timeout=options.timeout)
    models, filters = {}, {}
    for name, source in sources.items():
        pipeline = place(hfgen.HFGenPipeline.from_pretrained(source), options.device)
        prepare(pipeline, options.dtype, options.int8, options.compile)
        models[name] = served(name, pipeline, limits)
        if options.compile and "generate" in models[name].actions:
            tell(f"{name}: compiling its networks, which may take minutes.")
            warm(models[name], options.max_batch)
        filters[name] = load_filters(filter_options, pipeline, source)
    metrics, cache = Metrics(models.values()), ByteCache(int(options.cache_mb * 1e6))
    sizes = {"max_batch": options.max_batch, "max_queue": options.max_queue, "workers": options.workers}
    engine = BatchEngine(**sizes, max_wait=options.max_wait, on_call=metrics.on_call)
    metrics.follow(engine, cache)
    return Service(engine, models, metrics, cache, limits, filters)


def _say(options: ServeOptions, service: Any, port: int, key: str | None) -> None:
    """Print what is served, and where."""
    for model in service.models.values():
        print(f"{model.name}: {type(model.pipeline).__name__}, revision {model.revision}: {', '.join(model.actions)}")
        for action, reason in model.without.items():
            tell(f"{model.name} has no {action}: {reason}")
    if key is None and not options.host.startswith(("127.", "::1", "localhost")):
        tell(
            f"everyone who reaches {options.host} may ask this server. Set {API_KEY} to a key that requests must give."
        )
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"Serving at http://{host}:{port} (documentation: /docs)", flush=True)
