"""Metrics of a server, for Prometheus. Their labels have few values: models, actions, statuses and kinds of errors."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from ..serving.cache import ByteCache
from ..serving.engine import BatchEngine, Call
from .models import ServedModel

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper ends of the buckets of times."""

SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper ends of the buckets of samples in a call."""

OTHER = "other"
"""Label of what is no model or action here."""


class Metrics:
    """The metrics of one server, in a registry of its own.

    Args:
        models: those that are served.
    """

    def __init__(self, models: Iterable[ServedModel]):
        self.registry = CollectorRegistry()
        shared = {"registry": self.registry}
        where = ("model", "action")
        self.requests = Counter("hfgen_requests", "Requests by HTTP status", (*where, "status"), **shared)
        self.errors = Counter("hfgen_errors", "Requests that were refused or failed, by kind", ("kind",), **shared)
        self.latency = Histogram(
            "hfgen_request_seconds", "From a request to its answer", where, buckets=SECONDS, **shared
        )
        self.queue = Histogram("hfgen_queue_seconds", "Time of a job in the queue", buckets=SECONDS, **shared)
        self.compute = Histogram("hfgen_compute_seconds", "Time of a call of a pipeline", buckets=SECONDS, **shared)
        self.batch = Histogram("hfgen_batch_samples", "Samples in a call of a pipeline", buckets=SAMPLES, **shared)
        self.failed_calls = Counter("hfgen_failed_calls", "Calls of a pipeline that raised an exception", **shared)
        self.images = Counter("hfgen_images", "Samples that were answered", ("model",), **shared)
        self.cache = Counter("hfgen_cache", "Look-ups in the cache of answers", ("result",), **shared)
        what = ("model", "filter", "outcome")
        self.filtered = Counter("hfgen_filtered", "Samples flagged by filters, and answers refused", what, **shared)
        self.waiting = Gauge("hfgen_queue_samples", "Samples in the queue", **shared)
        self.draining = Gauge("hfgen_draining", "1 while the server finishes and accepts nothing more", **shared)
        self.cache_bytes = Gauge("hfgen_cache_bytes", "Bytes in the cache of answers", **shared)
        info = Info("hfgen_model", "The models by name, with their revisions", ("model",), **shared)
        for model in models:
            info.labels(model.name).info({"revision": model.revision, "pipeline": type(model.pipeline).__name__})
        for result in ("hit", "miss"):
            self.cache.labels(result)

    def follow(self, engine: BatchEngine, cache: ByteCache) -> None:
        """Read the queue and the cache whenever the metrics are read, and device memory where there is a GPU."""
        import torch

        self.waiting.set_function(lambda: engine.waiting)
        self.draining.set_function(lambda: float(engine.closing))
        self.cache_bytes.set_function(lambda: cache.bytes)
        if torch.cuda.is_available():
            memory = Gauge("hfgen_device_bytes", "Memory that torch holds on the GPU", registry=self.registry)
            memory.set_function(torch.cuda.memory_allocated)

    def on_call(self, call: Call) -> None:
        """Count a call of the engine."""
        for seconds in call.waited:
            self.queue.observe(seconds)
        self.compute.observe(call.seconds)
        self.batch.observe(call.size)
        if call.error is not None:
            self.failed_calls.inc()

    def text(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        return generate_latest(self.registry)
