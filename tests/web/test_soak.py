"""A server under hours of mixed requests: its memory stays, and every answer is one that the documentation names."""

import http.client
import json
import random
import signal
import threading
import time

import psutil
import pytest

import hfgen
from tests.saving import test_portable as portable
from tests.web.test_serve import Process

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from tests.web.test_service import picture

ANSWERS = {200, 404, 413, 422, 429, 504}
MOST_GROWTH = 50 * 2**20
"""Bytes that a server may grow by after its first tenth of the time."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A denoiser with classes, and a VAE for the actions on images."""
    place = tmp_path_factory.mktemp("soak")
    portable.denoising()["DiTModel-straight"].save_pretrained(place / "digits")
    sizes = portable.AUTOENCODERS["MLPAutoencoderModel"]
    network = portable.network("MLPAutoencoderModel", out_channels=2, **sizes)
    prior = hfgen.GaussianMixturePriorModel((3, 1, 1), 2)
    hfgen.VAEPipeline(network, prior, "gaussian_learned").save_pretrained(place / "vae")
    return place


def requests_of(random, image):
    """Yield paths and bodies of requests: new seeds, all formats and actions, and some that do not fit."""
    while True:
        seed, count = random.randrange(2**31), random.randint(1, 4)
        draw = {"seed": seed, "num_samples": count, "class_labels": 0, "num_inference_steps": random.randint(1, 5)}
        form = random.choice([{}, {"format": "json"}, {"format": "zip"}, {"timeout": 0.01}])
        yield "/models/digits/generate", {**draw, **form}
        yield "/models/vae/reconstruct", {"images": [image] * count, "format": "json"}
        yield "/models/vae/bits-per-dim", {"images": [image], "seed": seed}
        yield random.choice(
            [
                ("/models/vae/generate", {"num_samples": 99}),
                ("/models/vae/reconstruct", {"images": ["no image"]}),
                ("/models/none/generate", {}),
                ("/models/digits/generate", {"seed": "seven"}),
                ("/models/vae/reconstruct", {"images": ["A" * 300_000]}),
            ]
        )


class Caller(threading.Thread):
    """A client that asks until the end, and leaves one request in ten before its answer."""

    def __init__(self, port, number, end, image):
        super().__init__()
        self.port, self.random, self.end, self.image = port, random.Random(number), end, image
        self.statuses, self.left = {}, 0

    def run(self):
        for path, body in requests_of(self.random, self.image):
            if time.monotonic() > self.end:
                return
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                if self.random.random() < 0.1:
                    self.left += 1
                    continue
                answer = connection.getresponse()
                answer.read()
                self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            finally:
                connection.close()


@pytest.mark.parametrize("seconds", [6, pytest.param(3600, marks=pytest.mark.slow)])
def test_memory_stays_and_no_request_fails(folders, seconds, capsys):
    server = Process(folders / "digits", folders / "vae", "--max_batch", 8, "--max_queue", 16, "--cache_mb", 1)
    process, end = psutil.Process(server.process.pid), time.monotonic() + seconds
    callers = [Caller(server.port, number, end, picture()) for number in range(4)]
    for caller in callers:
        caller.start()
    time.sleep(seconds / 10)
    before = process.memory_info().rss
    for caller in callers:
        caller.join()
    grown, statuses = process.memory_info().rss - before, {}
    for caller in callers:
        for status, count in caller.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    left = sum(caller.left for caller in callers)
    with capsys.disabled():
        answers = f"{sum(statuses.values())} answers {statuses}, {left} clients left"
        print(f"\n{answers}, memory {before >> 20} MiB, grown by {grown / 2**20:.1f} MiB")
    assert server.end(signal.SIGTERM, timeout=600)[0] == 0
    assert set(statuses) <= ANSWERS and statuses[200] > seconds and left > 0
    assert grown < MOST_GROWTH
