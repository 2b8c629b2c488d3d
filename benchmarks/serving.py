"""Throughput and latency of `hfgen serve`, a plain FastAPI handler, and LitServe with its own batches, in one run.

    pip install litserve
    python benchmarks/serving.py --pipeline outputs/quickstart
    python benchmarks/serving.py --pipeline outputs/quickstart --sides hfgen --clients 100 --requests 200

Each client asks for an image, waits for the answer and asks for the next one, each with a seed of its own, so that no
cache helps. The servers (benchmarks/serving_peers.py) run one after another, each with the same pipeline in float32,
the same number of threads and the same largest batch. The limit is the pipeline without a server, called with full
batches just before each turn. Each server first answers one seed, and all answers must be the same image. A turn lasts
`--seconds`, or until each client has had `--requests` answers. Throughput is a median over turns. The percentiles are
those of all requests.

Give the servers a core and the clients another one: `--server_core 1 --client_core 0`.
"""

import dataclasses
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from measured import Measured
from serving_peers import draw, loaded

from hfgen.options import option, parse, parser
from hfgen.utils.ranges import AT_LEAST_0, COUNT

PERCENTILES = (50, 95, 99)
START_SECONDS = 120.0
"""Seconds until a server must answer its first request."""


@dataclasses.dataclass
class Options:
    """Benchmark"""

    pipeline: str = option("outputs/quickstart", "folder of a trained pipeline")
    sides: str = option("hfgen,plain,litserve", "servers that take part")
    clients: str = option("1,8,32,100", "numbers of clients at a time")
    steps: int = option(10, "steps of a sample", range=COUNT)
    max_batch: int = option(16, "samples in a batch, at most", range=COUNT)
    seconds: float = option(10.0, "length of a turn", range=AT_LEAST_0)
    requests: int = option(0, "requests of each client, in place of --seconds; 0: --seconds", range=AT_LEAST_0)
    repeats: int = option(3, "turns of each side", range=COUNT)
    server_core: int | None = option(None, "CPU core of the server; default: any")
    client_core: int | None = option(None, "CPU core of the clients; default: any")
    output_dir: str = option("outputs/serving", "folder for the JSON file")


def pinned(core: int | None) -> None:
    """Keep this process on a core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


@contextmanager
def server(side: str, options: Options) -> Iterator[tuple[int, str]]:
    """Run a server, and give its port and address when it answers. It has ended when the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, most, address = options.pipeline, str(options.max_batch), "/generate"
    peer = [sys.executable, str(Path(__file__).with_name("serving_peers.py")), side, folder, str(port), most]
    if side == "hfgen":
        address = "/models/model/generate"
        peer = [sys.executable, "-m", "hfgen.cli", "serve", f"model={folder}", "--host", "127.0.0.1"]
        peer += ["--port", str(port), "--max_batch", most, "--cache_mb", "0", "--timeout", "600"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            peer,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: pinned(options.server_core),
            start_new_session=True,
        )
        try:
            wait_for(process, port, address, options, log)
            yield port, address
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):  # what it started, and itself if it has not ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(process: Any, port: int, address: str, options: Options, log: Any) -> None:
    """Return when a server answers. Raises SystemExit with what it printed if it ends or is silent."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if ask(http.client.HTTPConnection("127.0.0.1", port, timeout=60), address, 0, options)[0] == 200:
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    raise SystemExit(f"error: the server did not answer: {log.read().decode(errors='replace')[-2000:]}")


def ask(connection: http.client.HTTPConnection, address: str, seed: int, options: Options) -> tuple[int, bytes]:
    """Return status and content of the answer to one request."""
    body = json.dumps({"seed": seed, "num_inference_steps": options.steps, **labels(options, seed)})
    connection.request("POST", address, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def labels(options: Options, seed: int) -> dict[str, int]:
    """Return the class of a request, if the pipeline has classes."""
    config = json.loads((Path(options.pipeline) / "model_index.json").read_text())
    return {"class_labels": seed % config["num_classes"]} if config.get("num_classes") else {}


class Clients:
    """Clients that ask in threads of their own.

    Args:
        count: number of clients.
        where: port and address of the server.
        options: of the benchmark.
        first_seed: the seeds are this one and those after it.
    """

    def __init__(self, count: int, where: tuple[int, str], options: Options, first_seed: int):
        self.count, self.where, self.options, self.seed = count, where, options, first_seed
        self.latencies: list[float] = []
        self.failed: list[str] = []
        self.lock, self.end = threading.Lock(), 0.0

    def run(self) -> tuple[float, list[float], list[str]]:
        """Return answers per second, the seconds of each, and what failed."""
        threads = [threading.Thread(target=self._ask) for _ in range(self.count)]
        start = time.perf_counter()
        self.end = start + self.options.seconds
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(self.latencies) / (time.perf_counter() - start), self.latencies, self.failed

    def _ask(self) -> None:
        port, address = self.where
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        left = self.options.requests
        while left > 0 if self.options.requests else time.perf_counter() < self.end:
            left -= 1
            with self.lock:
                self.seed += 1
                seed = self.seed
            start = time.perf_counter()
            try:
                status, content = ask(connection, address, seed, self.options)
                wrong = "" if status == 200 and content.startswith(b"\x89PNG") else f"{status}: {content[:200]!r}"
            except OSError as error:
                wrong = repr(error)
                connection.close()
            with self.lock:
                if wrong:
                    self.failed.append(wrong)
                else:
                    self.latencies.append(time.perf_counter() - start)
        connection.close()


def check_same(side: str, where: tuple[int, str], options: Options) -> None:
    """Check that the image of a seed is that of the pipeline, to one level of 255. Raises AssertionError."""
    import numpy as np
    from PIL import Image

    (right,) = draw(loaded(options.pipeline), [{"seed": 5, "num_inference_steps": options.steps, **labels(options, 5)}])
    connection = http.client.HTTPConnection("127.0.0.1", where[0], timeout=60)
    given = Image.open(io.BytesIO(ask(connection, where[1], 5, options)[1]))
    worst = np.abs(np.asarray(given, int) - np.asarray(right, int)).max()
    assert worst <= 1, f"{side} draws another image of seed 5: {worst} levels away."


def race(options: Options, measured: Measured) -> None:
    """Measure each side with each number of clients, in turns."""
    for turn in range(options.repeats):
        measured.get(f"limit {turn}", lambda: limit(options))
        for side in options.sides.split(","):
            keys = {f"{side} {count} {turn}": int(count) for count in options.clients.split(",")}
            if all(key in measured.values for key in keys):
                continue
            with server(side, options) as where:
                check_same(side, where, options)
                Clients(options.max_batch, where, dataclasses.replace(options, seconds=2, requests=0), 10**6).run()
                for key, count in keys.items():
                    rate, seconds, failed = Clients(count, where, options, 1000 * (turn + 1)).run()
                    print(f"{key}: {rate:.1f} images/s, {len(seconds)} answers, {len(failed)} failed", flush=True)
                    measured.set(key, {"rate": rate, "seconds": seconds, "failed": failed})


def limit(options: Options) -> float:
    """Return images per second of the pipeline, called with full batches on the core of the servers."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    pinned(options.server_core)
    pipeline = loaded(options.pipeline)
    requests = [
        {"seed": seed, "num_inference_steps": options.steps, **labels(options, seed)}
        for seed in range(options.max_batch)
    ]
    draw(pipeline, requests)
    times = []
    for _ in range(max(3, options.repeats)):
        start = time.perf_counter()
        draw(pipeline, requests)
        times.append(time.perf_counter() - start)
    if before is not None:
        os.sched_setaffinity(0, before)
    return options.max_batch / statistics.median(times)


def table(options: Options, measured: Measured) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| server | clients | images/s | of the limit | P50 | P95 | P99 | answers | failed |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for side in options.sides.split(","):
        for count in options.clients.split(","):
            turns = [measured.values[f"{side} {count} {turn}"] for turn in range(options.repeats)]
            rate = statistics.median(turn["rate"] for turn in turns)
            seconds = sorted(second for turn in turns for second in turn["seconds"])
            at = [f"{1000 * seconds[min(len(seconds) - 1, len(seconds) * p // 100)]:.0f} ms" for p in PERCENTILES]
            failed = sum(len(turn["failed"]) for turn in turns)
            share = statistics.median(
                turn["rate"] / measured.values[f"limit {number}"] for number, turn in enumerate(turns)
            )
            yield f"| {side} | {count} | {rate:.1f} | {share:.0%} | {' | '.join(at)} | {len(seconds)} | {failed} |"


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    (options,) = parse(parser("serving.py", "", "", Options), argv, Options)
    settings = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("output_dir",)}
    measured = Measured(Path(options.output_dir) / "serving.json", settings)
    pinned(options.client_core)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a server must not outlive its benchmark
    race(options, measured)
    print("\n".join(table(options, measured)))


if __name__ == "__main__":
    main()
