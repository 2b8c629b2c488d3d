"""Would requests gain if they joined a batch between its steps? A simulation with measured times of steps.

    python benchmarks/continuous_joining.py --pipeline outputs/quickstart

Today a request waits until the running call ends, and then shares the next one. With joining it waits until the running
step ends; each sample in the batch is then at a step of its own, and leaves when it is done. The times of a step by
number of samples are measured with the pipeline. Requests of one sample arrive at random (a Poisson process), at shares
of the largest rate that full batches allow. Both ways have the same arrivals, and a batch of at most `--max_batch`.

The simulation flatters joining: it costs nothing to gather samples of different steps, and every sampler could do it.
"""

import bisect
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

from hfgen.options import option, parse, parser
from hfgen.utils.ranges import COUNT

MEASURED = (1, 2, 4, 8, 16, 32)
"""Numbers of samples whose step is timed; between them the time is interpolated."""


@dataclasses.dataclass
class Options:
    """Benchmark"""

    pipeline: str = option("outputs/quickstart", "folder of a trained pipeline")
    steps: int = option(10, "steps of a sample", range=COUNT)
    max_batch: int = option(16, "samples in a batch, at most", range=COUNT)
    max_wait: float = option(0.005, "seconds that a request waits for others, where none is computed")
    loads: str = option("0.1,0.3,0.5,0.7,0.9", "shares of the largest rate")
    requests: int = option(5000, "requests of each simulation", range=COUNT)
    repeats: int = option(5, "timed calls; the result is their median", range=COUNT)


def step_seconds(options: Options) -> Callable[[int], float]:
    """Return the seconds of a step by number of samples, measured by calls of the pipeline."""
    from serving_peers import draw, loaded

    pipeline, sizes = loaded(options.pipeline), [size for size in MEASURED if size <= options.max_batch]
    classes = pipeline.config.get("num_classes")
    seconds = []
    for size in sizes:
        label = {"class_labels": 0} if classes else {}
        requests = [{"seed": seed, "num_inference_steps": options.steps, **label} for seed in range(size)]
        draw(pipeline, requests)
        times = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            draw(pipeline, requests)
            times.append((time.perf_counter() - start) / options.steps)
        seconds.append(statistics.median(times))
        print(f"{size:3d} samples: {1000 * seconds[-1]:6.2f} ms a step", flush=True)

    def at(count: int) -> float:
        right = min(max(1, bisect.bisect_left(sizes, count)), len(sizes) - 1) if len(sizes) > 1 else 0
        left = max(0, right - 1)
        if left == right:
            return seconds[0]
        share = (count - sizes[left]) / (sizes[right] - sizes[left])
        return seconds[left] + share * (seconds[right] - seconds[left])

    return at


def together(arrivals: Sequence[float], at: Callable[[int], float], options: Options) -> list[float]:
    """Return the latency of each request if a call ends before the next one begins."""
    latencies, now, first = [], 0.0, 0
    while first < len(arrivals):
        if arrivals[first] > now:  # nothing is computed: the oldest waits for others, or until the batch is full
            full = first + options.max_batch - 1
            full_at = arrivals[full] if full < len(arrivals) else float("inf")
            now = min(arrivals[first] + options.max_wait, max(full_at, arrivals[first]))
        last = min(bisect.bisect_right(arrivals, now), first + options.max_batch)
        now += options.steps * at(last - first)
        latencies += [now - arrivals[i] for i in range(first, last)]
        first = last
    return latencies


def joining(arrivals: Sequence[float], at: Callable[[int], float], options: Options) -> list[float]:
    """Return the latency of each request if it joins the batch after the running step."""
    latencies, now, coming = [], 0.0, 0
    batch: list[list[float]] = []  # of each sample: when it came, and the steps that are left
    while coming < len(arrivals) or batch:
        if not batch:
            now = max(now, arrivals[coming])
        while coming < len(arrivals) and arrivals[coming] <= now and len(batch) < options.max_batch:
            batch.append([arrivals[coming], options.steps])
            coming += 1
        now += at(len(batch))
        for sample in batch:
            sample[1] -= 1
        latencies += [now - came for came, left in batch if left == 0]
        batch = [sample for sample in batch if sample[1]]
    return latencies


def main(argv: list[str] | None = None) -> None:
    """Measure, simulate and print a Markdown table."""
    (options,) = parse(parser("continuous_joining.py", "", "", Options), argv, Options)
    import torch

    from hfgen.utils.seeds import generator_of

    at = step_seconds(options)
    largest = options.max_batch / (options.steps * at(options.max_batch))
    print(f"\nfull batches: {largest:.1f} images/s\n")
    print("| load | requests/s | way | P50 | P95 | P99 |\n|---|---|---|---|---|---|")
    for load in map(float, options.loads.split(",")):
        gaps = torch.empty(options.requests, dtype=torch.float64)
        arrivals = gaps.exponential_(load * largest, generator=generator_of("arrivals")).cumsum(0).tolist()
        for name, way in (("calls", together), ("joining", joining)):
            seconds = sorted(way(arrivals, at, options))
            at_percent = [f"{1000 * seconds[len(seconds) * p // 100]:.0f} ms" for p in (50, 95, 99)]
            print(f"| {load:.0%} | {load * largest:.1f} | {name} | {' | '.join(at_percent)} |", flush=True)


if __name__ == "__main__":
    main()
