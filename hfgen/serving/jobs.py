"""Jobs for a `BatchEngine`: samples of a pipeline by their seeds, and work that shares its call with no other."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from ..utils.arguments import checked
from ..utils.drawing import check_draws
from ..utils.seeds import check_seed, sample_generators

PER_SAMPLE = ("class_labels", "prompt", "negative_prompt")
"""Arguments of a call that each sample may have of its own. All others are the same for all samples of a call."""

OWN = (
    *("batch_size", "generator", "latents", "codes", "num_images_per_prompt", "output_type", "return_dict"),
    *("return_trajectory", "callback_on_step_end", "callback_on_step_end_tensor_inputs"),
)
"""Arguments that a `Draw` sets, or that would make samples depend on more than their seeds."""


class Draw:
    """Samples of one caller: sample i is drawn with `seed + i`, whichever samples of others share the call.

    The result is a list of `count` samples: PIL images, or tensors of pipelines of other items.

    Args:
        pipeline: draws, and may be called from several threads.
        seed: of the first sample.
        count: number of samples.
        call: arguments of the pipeline's call, texts, numbers, truth values, None and lists of these. Those in
            `PER_SAMPLE` may be lists of `count`. Schedulers are given by name.

    Raises:
        ValueError: the pipeline does not draw, or its call has no such argument; a seed out of range; a value that is
            no plain data; a list of another length.
    """

    @checked
    def __init__(self, pipeline: Any, seed: int = 0, count: int = 1, call: Mapping[str, Any] | None = None):
        check_draws(pipeline, "Ask for what it can do.")
        if count < 1:
            raise ValueError(f"count={count} must be at least 1.")
        for number in (seed, seed + count - 1):
            check_seed(number)
        self.pipeline, self.seed, self.size = pipeline, seed, count
        if own := [name for name in call or {} if name in OWN]:
            raise ValueError(f"{own[0]} is set for each call, and no request can give it. Leave it out.")
        given = pipeline.call_with(**(call or {}))
        self.each = {name: _spread(name, given[name], count) for name in PER_SAMPLE if name in given}
        self.shared = {name: value for name, value in given.items() if name not in PER_SAMPLE}
        self.key: Hashable = (id(pipeline), *self.each, _text(self.shared))
        _text(self.each)

    def run(self, jobs: Sequence["Draw"]) -> list[list[Any]]:
        """Return the samples of each job, drawn in one call.

        Raises:
            ValueError: whatever the pipeline refuses.
        """
        each = {name: [value for job in jobs for value in job.each[name]] for name in self.each}
        generators = [one for job in jobs for one in sample_generators(job.seed, range(job.size))]
        samples = self.pipeline(**self.shared, **each, batch_size=len(generators), generator=generators)[0]
        if samples is None:
            call = ", ".join(f"{name}={value!r}" for name, value in self.shared.items())
            raise ValueError(f"{type(self.pipeline).__name__} draws no samples with {call}.")
        if len(samples) != len(generators):
            raise RuntimeError(f"{type(self.pipeline).__name__} drew {len(samples)} samples, not {len(generators)}.")
        ends = accumulate((job.size for job in jobs), initial=0)
        return [list(samples[start:end]) for start, end in pairwise(ends)]


class Alone:
    """Work that shares its call with no other job.

    Args:
        function: returns the result.
        size: for how many samples it counts in the queue.
    """

    @checked
    def __init__(self, function: Callable[[], Any], size: int = 1):
        self.function, self.size = function, size
        self.key: Hashable = object()

    def run(self, jobs: Sequence["Alone"]) -> list[Any]:
        """Return the result of this one job."""
        return [job.function() for job in jobs]


def _spread(name: str, value: Any, count: int) -> list[Any]:
    """Return a value for each sample."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise ValueError(f"{len(values)} {name} for {count} samples. Give one for all, or one for each.")
    return values


def _text(values: Mapping[str, Any]) -> str:
    """Return values as a text, the same for the same values."""
    for name, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} is a {type(value).__name__}; give plain data: a text, a number, a truth value, or a list."
            ) from None
    return json.dumps(values, sort_keys=True)
