"""The first request of each action of a model, before it is served: what is offered works as its example shows."""

import dataclasses
from typing import Any

from ..serving.jobs import Draw
from ..utils.arguments import checked
from ..utils.ranges import COUNT
from .actions import alone, drawn
from .models import ServedModel, model_of
from .schemas import Limits, request_schema


@checked
def served(name: str, pipeline: Any, limits: Limits) -> ServedModel:
    """Return a pipeline under a name, with the actions whose example works. The others are left out, with the reason.

    Raises:
        ValueError: the name is none, or the pipeline can do nothing for callers over HTTP.
    """
    model, without = model_of(name, pipeline), {}
    for action in model.actions:
        try:
            _try(model, action, limits)
        except ValueError as error:
            without[action] = str(error)
    actions = tuple(action for action in model.actions if action not in without)
    if not actions:
        raise ValueError(f"{name} can't be served: {without['generate']}")
    return dataclasses.replace(model, actions=actions, without=without)


@checked
def warm(model: ServedModel, max_batch: int) -> None:
    """Draw one sample, two, and `max_batch`: compiled networks have one form for a single sample and one for more.

    Raises:
        ValueError: `max_batch` is not at least 1.
    """
    if not COUNT.holds(max_batch):
        raise ValueError(f"max_batch={max_batch} must be {COUNT}.")
    for count in sorted({1, min(2, max_batch), max_batch}):
        job = Draw(model.pipeline, 0, count, model.example)
        job.run([job])


def _try(model: ServedModel, action: str, limits: Limits) -> None:
    """Answer the example of an action. Raises ValueError if that can't be done."""
    schema = request_schema(model, action, limits)
    (example,) = schema.model_config["json_schema_extra"]["examples"]
    body = schema.model_validate(example)
    job, render = drawn(model, body) if action == "generate" else alone(model, action, body)
    if job.size > limits.max_batch:
        raise ValueError(f"it needs {job.size} samples at a time, and the server computes {limits.max_batch}.")
    render(job.run([job])[0])
