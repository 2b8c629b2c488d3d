"""Replicas on Ray: the same images from each, and no silence where one is killed. Only where Ray is installed."""

import concurrent.futures
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import hfgen
from hfgen.commands.serve import build_application
from hfgen.utils.seeds import sample_generators
from tests.helpers.toys import ROOT
from tests.saving import test_portable as portable

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

EXAMPLE = ROOT / "examples" / "serving" / "ray"
CALL = {"num_inference_steps": 40, "class_labels": 1}
PORT = 8017


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("ray") / "digits"
    portable.denoising()["DiTModel-straight"].save_pretrained(place)
    return place


@pytest.mark.parametrize("words", [["--port", "9"], ["--host", "0.0.0.0"], ["--drain_seconds", "3"]])
def test_what_is_the_server_s_is_refused_where_the_server_is_another_one(words, folder):
    with pytest.raises(ValueError, match=rf"^{words[0]} .* is for the server, which is another one here"):
        build_application([f"digits={folder}", *words])


class Cluster:
    """Two replicas on a Ray of this machine, in a process of their own: `with Cluster(folder) as cluster:`."""

    def __init__(self, folder, home):
        words = f"digits={folder} --device cpu --timeout 60"
        code = f"""
import sys, time
sys.path.insert(0, {str(EXAMPLE)!r})
import ray
from ray import serve
import replicas
ray.init(num_cpus=3, include_dashboard=False, object_store_memory=10**8, _temp_dir={str(home)!r}, log_to_driver=False)
serve.start(http_options={{"port": {PORT}}})
serve.run(replicas.application(replicas.Arguments(words={words!r}, cpus=1)))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""
        paths = os.pathsep.join([str(ROOT), str(EXAMPLE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        assert any(line == "ready\n" for line in self.process.stdout)
        return self

    def __exit__(self, *_):
        self.process.communicate("", timeout=120)

    def ask(self, seed):
        """Return (status, image or text) of a request for one sample, whatever happens to it."""
        body = json.dumps({"seed": seed, **CALL}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/models/digits/generate", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, np.asarray(Image.open(io.BytesIO(answer.read())), int)
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read()

    def replicas(self):
        """Return the process ids of the replicas."""
        import psutil

        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child.pid for child in children if "ServeReplica" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_replica_that_is_killed_under_load_leaves_no_request_without_an_answer(folder):
    """What is answered are the images of the seeds, and afterwards there are two replicas again."""
    pipeline, seeds = hfgen.HFGenPipeline.from_pretrained(folder), range(120)
    pipeline.set_progress_bar_config(disable=True)
    with (
        tempfile.TemporaryDirectory(prefix="r") as home,  # Ray's sockets lie in it, whose names must be short
        Cluster(folder, home) as cluster,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        before = cluster.replicas()
        assert len(before) == 2
        answers = [pool.submit(cluster.ask, seed) for seed in seeds]
        while sum(answer.done() for answer in answers) < 20:
            time.sleep(0.01)
        os.kill(before[0], signal.SIGKILL)
        statuses = {seed: answer.result() for seed, answer in zip(seeds, answers, strict=True)}
        drawn = {seed: image for seed, (status, image) in statuses.items() if status == 200}
        assert {status for status, _ in statuses.values()} <= {200, 500, 503} and len(drawn) >= 90
        for seed in list(drawn)[::10]:
            (right,) = pipeline(1, generator=sample_generators(seed, range(1)), **CALL).images
            assert np.abs(drawn[seed] - np.asarray(right, int)).max() <= 1
        end = time.monotonic() + 90
        while len(after := cluster.replicas()) < 2 or before[0] in after:
            assert time.monotonic() < end
            time.sleep(0.5)
        assert [cluster.ask(seed)[0] for seed in seeds[:8]] == [200] * 8
