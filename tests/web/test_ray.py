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
import yaml
from PIL import Image

import hfgen
from hfgen.commands import serve
from hfgen.commands.serve import build_application
from hfgen.utils.seeds import sample_generators
from tests.helpers.toys import ROOT
from tests.saving import test_portable as portable

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

CALL = {"num_inference_steps": 40, "class_labels": 1}
PORT = 8017
PATIENT = {f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S": "60" for name in ("READY", "HEALTH")}  # on a busy machine
INSTALLED = importlib.util.find_spec("ray") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("ray") / "digits"
    portable.denoising()["DiTModel-straight"].save_pretrained(place)
    return place


@pytest.mark.parametrize("words", [["--port", "9"], ["--host", "0.0.0.0"], ["--drain_seconds", "3"], ["--ray"]])
def test_what_is_the_server_s_is_refused_where_the_server_is_another_one(words, folder):
    with pytest.raises(ValueError, match=rf"^{words[0]} .*is for the server, which is another one here"):
        build_application([f"digits={folder}", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--replicas", "3"], "--replicas 3 does nothing with --ray False"),
        (["--ray", "--replicas", "0"], "--replicas"),
        (["--ray", "--port", "0"], "With --ray, give the port"),
        (["--ray", "--drain_seconds", "3"], "--drain_seconds 3.0 is for the server"),
        (["--ray", "--replicas", "3", "--max_replicas", "3"], "--max_replicas 3 must be above --replicas 3"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_cluster_starts(words, message, folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ray" or found(name))
    with pytest.raises((ValueError, SystemExit), match=message):
        serve.main([f"digits={folder}", *words])


def test_without_ray_the_extra_is_named(folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(ValueError, match=r"needs ray\. Install it: pip install 'hfgen\[ray\]'"):
        serve.main([f"digits={folder}", "--ray"])


class Cluster:
    """`hfgen serve --ray` with two replicas, in a process of its own: `with Cluster(folder) as cluster:`."""

    def __init__(self, folder, home):
        words = [f"digits={folder}", "--device", "cpu", "--ray", "--replicas", "2", "--port", str(PORT)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(home), **PATIENT}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "hfgen.cli", "serve", *words]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.lines = []

    def __enter__(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("Serving at "):
                return self
        raise AssertionError(self.lines)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.lines.append(self.process.communicate(timeout=120)[0])

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
@pytest.mark.skipif(not INSTALLED, reason="Ray is not installed")
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
        assert "2 replicas on Ray, each with 1 cores\n" in cluster.lines
        last = [pool.submit(cluster.ask, seed) for seed in range(200, 204)]
        time.sleep(0.2)
    assert [answer.result()[0] for answer in last] == [200] * 4  # accepted before SIGTERM
    assert cluster.process.returncode == 0 and cluster.lines[-1].endswith("Stopped.\n")


@pytest.mark.skipif(not INSTALLED, reason="Ray is not installed")
def test_the_service_of_kubernetes_is_what_ray_reads(folder):
    """Ray's own schema, and its own way to read the arguments of an application."""
    from ray.serve.schema import ServeDeploySchema

    from hfgen.commands import serve_on_ray
    from hfgen.web.cluster import Arguments

    manifest = yaml.safe_load((ROOT / "examples" / "serving" / "ray" / "rayservice.yaml").read_text())
    (one,) = ServeDeploySchema(**yaml.safe_load(manifest["spec"]["serveConfigV2"])).applications
    assert one.import_path == "hfgen.commands.serve_on_ray:application"
    application = serve_on_ray.application(Arguments(**one.args))
    assert application._bound_deployment.max_queued_requests == one.args["queued"]


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="Ray is not installed")
def test_replicas_that_do_not_start_end_in_one_line(tmp_path):
    command = [sys.executable, "-m", "hfgen.cli", "serve", str(tmp_path / "none"), "--ray", "--port", str(PORT)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **PATIENT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr.splitlines()[-1]
