"""Replicas of `hfgen serve` on a cluster of Ray: one address, and a queue with batches in each replica.

    pip install 'hfgen[serve]' 'ray[serve]'
    serve run replicas:application words="digits=outputs/quickstart --max_batch 16" replicas=2

`words` are those of `hfgen serve` but `--host`, `--port` and `--drain_seconds`, which are Ray's here: see
`serve run --help` and https://docs.ray.io/en/latest/serve/.
"""

import shlex
from typing import Any

from pydantic import BaseModel
from ray import serve


class Arguments(BaseModel):
    """What `serve run` is given as name=value.

    Attributes:
        words: of `hfgen serve`.
        replicas: number of them. With `most`, the least number.
        most: replicas, at most, that Ray starts while requests wait; None: always `replicas`.
        cpus, gpus: that a replica needs.
        ongoing: requests that a replica has at a time, the others wait before them. At least two batches, or a replica
            has nothing to do while its answers are sent.
        queued: requests that wait before the replicas; further ones get 503.
    """

    words: str
    replicas: int = 2
    most: int | None = None
    cpus: float = 1
    gpus: float = 0
    ongoing: int = 32
    queued: int = 256


def application(arguments: Arguments) -> serve.Application:
    """Return the application that Ray deploys."""
    words = shlex.split(arguments.words)

    def build() -> Any:  # in each replica
        from hfgen.commands.serve import build_application

        return build_application(words)

    number: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.most is not None:
        number = {"autoscaling_config": {"min_replicas": arguments.replicas, "max_replicas": arguments.most}}
    deployment = serve.deployment(
        serve.ingress(build)(type("Replica", (), {})),
        name="hfgen",
        **number,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        max_ongoing_requests=arguments.ongoing,
        max_queued_requests=arguments.queued,
        graceful_shutdown_timeout_s=90,  # a replica that ends answers what it has: hfgen's own --timeout is 60
    )
    return deployment.bind()
