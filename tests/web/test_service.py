"""The server over real HTTP on this machine: answers, refusals, limits, metrics, and its examples."""

import asyncio
import base64
import concurrent.futures
import http.client
import inspect
import io
import json
import socket
import struct
import threading
import time
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import hfgen
from hfgen.serving.cache import ByteCache
from hfgen.serving.engine import BatchEngine
from tests.saving import test_portable as portable

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from hfgen.web.app import Service, build_app
from hfgen.web.gate import Gate
from hfgen.web.metrics import Metrics
from hfgen.web.schemas import Limits
from hfgen.web.server import Server, bound
from hfgen.web.trial import served

LIMITS = Limits(max_batch=4, max_steps=200, timeout=60)
BODY = 20_000


def denoising():
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "patch_size": 2, "num_class_embeds": 3}
    return hfgen.DenoisingPipeline(portable.network("DiTModel", **sizes), hfgen.RectifiedFlowScheduler(), 2, ["a", "b"])


def likelihood():
    network = portable.network("MLPAutoencoderModel", out_channels=2, **portable.AUTOENCODERS["MLPAutoencoderModel"])
    prior = hfgen.GaussianMixturePriorModel((3, 1, 1), 2)
    return hfgen.VAEPipeline(network, prior, "gaussian_learned")


def points():
    """A rectified flow of points in the plane, which no picture shows."""
    network = hfgen.TorchModel(torch.nn.Bilinear(2, 1, 2), (2,))
    network.forward = lambda x, timestep: network.module(x, timestep[:, None] / 1000)
    return hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler())


class Running:
    """A server in a thread: `with Running(pipelines) as server:`. It has its engine, and asks."""

    def __init__(self, pipelines, key=None, limits=LIMITS, **options):
        models = {name: served(name, pipeline, limits) for name, pipeline in pipelines.items()}
        metrics, cache = Metrics(models.values()), ByteCache(100_000)
        options = {"max_batch": limits.max_batch, "max_queue": 8, "max_wait": 0.002, **options}
        self.engine = BatchEngine(**options, on_call=metrics.on_call)
        metrics.follow(self.engine, cache)
        self.models, self.cache, self.metrics = models, cache, metrics
        self.service = Service(self.engine, models, metrics, cache, limits)
        app = build_app(self.service, BODY, key)
        self.server, self.listener = Server(app, self.engine), bound("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(30)
        self.listener.close()
        self.engine.close()

    def ask(self, method, path, body=None, headers=(), timeout=60):
        """Return (status, headers, content)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": "application/json", **dict(headers)})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path, body=None, **options):
        return self.ask("POST", path, body, **options)

    def metric(self, name, **labels):
        """Return the value of a metric now."""
        value = self.metrics.registry.get_sample_value(name, labels)
        return 0 if value is None else value


@pytest.fixture(scope="module")
def server():
    pipelines = {
        "digits": denoising(),
        "vae": likelihood(),
        "detector": portable.detecting()["density"],
        "codes": portable.coding()["vq"],
        "text.1": portable.showing()["DiTModel"],
        "points": points(),
        "gan": portable.generating()["mlp"],
        "bits": portable.predicting()["made"],
    }
    with Running(pipelines) as running:
        yield running


def levels(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def by_hand(server, name, seed, **call):
    pipeline = server.models[name].pipeline
    return np.asarray(pipeline(**call, generator=torch.Generator().manual_seed(seed))[0][0]).astype(int)


def picture(size=(8, 8), mode="L", kind="PNG", **options):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


# --- answers ----------------------------------------------------------------------------------------------------------


def test_one_sample_is_a_png_and_the_one_that_the_pipeline_draws(server):
    status, headers, data = server.post(
        "/models/digits/generate", {"seed": 7, "class_labels": "b", "num_inference_steps": 3}
    )
    assert (status, headers["content-type"], headers["x-seed"]) == (200, "image/png", "7")
    assert headers["x-model-revision"] == server.models["digits"].revision
    assert abs(levels(data) - by_hand(server, "digits", 7, class_labels="b", num_inference_steps=3)).max() <= 1


def test_several_samples_are_a_zip_file_or_json(server):
    ask = {"seed": 3, "num_samples": 3, "class_labels": [0, 1, "a"], "num_inference_steps": 2}
    status, headers, data = server.post("/models/digits/generate", ask)
    assert (status, headers["content-type"]) == (200, "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.namelist() == ["3.png", "4.png", "5.png"]
    status, headers, text = server.post("/models/digits/generate", {**ask, "format": "json"})
    answer = json.loads(text)
    assert (answer["model"], [each["seed"] for each in answer["samples"]]) == ("digits", [3, 4, 5])
    for each, label in zip(answer["samples"], [0, 1, 0], strict=True):
        expected = by_hand(server, "digits", each["seed"], class_labels=label, num_inference_steps=2)
        assert abs(levels(base64.b64decode(each["png"])) - expected).max() <= 1
        assert abs(levels(archive.read(f"{each['seed']}.png")) - expected).max() <= 1


def test_actions_on_images_answer_what_the_pipelines_say(server):
    image = picture()
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
    vae, detector = (server.models[name].pipeline for name in ("vae", "detector"))
    status, _, data = server.post("/models/vae/reconstruct", {"images": [image]})
    expected = vae.to_images(vae.reconstruct([Image.fromarray(array)]).clamp(-1, 1))[0]
    assert status == 200 and abs(levels(data) - np.asarray(expected).astype(int)).max() <= 1
    status, _, data = server.post(
        "/models/vae/interpolate", {"first": image, "second": image, "steps": 3, "format": "json"}
    )
    assert status == 200 and len(json.loads(data)["images"]) == 3
    status, _, data = server.post("/models/vae/bits-per-dim", {"images": [image, image], "seed": 1})
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    bits = vae.bits_per_dim([Image.fromarray(array)] * 2, generator=generators)
    assert status == 200 and json.loads(data)["bits_per_dim"] == pytest.approx(bits.tolist(), rel=1e-4)
    status, _, data = server.post("/models/detector/anomaly-score", {"images": [image]})
    judged = detector([Image.fromarray(array)])
    assert json.loads(data)["scores"] == pytest.approx(judged.scores.tolist(), rel=1e-4)
    assert json.loads(data)["decisions"] == judged.decisions.tolist() and status == 200


def test_samples_that_are_no_images_are_numbers(server):
    status, headers, text = server.post(
        "/models/points/generate", {"seed": 4, "num_samples": 2, "num_inference_steps": 3}
    )
    assert (status, headers["content-type"]) == (200, "application/json")
    pipeline = server.models["points"].pipeline
    for each in json.loads(text)["samples"]:
        generator = torch.Generator().manual_seed(each["seed"])
        expected = pipeline(num_inference_steps=3, generator=generator)[0][0]
        assert each["values"] == pytest.approx(expected.tolist(), abs=1e-5) and each["png"] is None
    assert server.post("/models/points/generate", {"format": "png"})[0] == 422


def test_models_list_what_each_can_do(server):
    entries = {entry["name"]: entry for entry in json.loads(server.ask("GET", "/models")[2])}
    assert {name: entry["actions"] for name, entry in entries.items()} == {
        "digits": ["generate", "reconstruct", "interpolate", "bits-per-dim"],
        "vae": ["generate", "reconstruct", "interpolate", "bits-per-dim"],
        "detector": ["reconstruct", "interpolate", "anomaly-score"],
        "codes": ["reconstruct"],
        "text.1": ["generate"],
        "points": ["generate"],
        "gan": ["generate", "reconstruct", "interpolate"],
        "bits": ["generate"],
    }
    assert entries["digits"]["label_names"] == ["a", "b"] and entries["digits"]["sample_shape"] == [1, 8, 8]


def test_examples_of_the_openapi_description_work_as_shown(server):
    status, _, text = server.ask("GET", "/openapi.json")
    description = json.loads(text)
    assert status == 200
    tried = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            body = None
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                (body,) = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["examples"]
            status, headers, _ = server.ask(method.upper(), path, body)
            assert status == 200, (path, status)
            assert headers["content-type"].partition(";")[0] in operation["responses"]["200"]["content"]
            tried.append(path)
    assert len(tried) == 4 + 18


def test_references_of_the_openapi_description_lead_somewhere(server):
    text = server.ask("GET", "/openapi.json")[2].decode()
    names = set(json.loads(text)["components"]["schemas"])
    assert {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]} <= names


def test_what_needs_more_samples_than_the_server_computes_is_left_out():
    model = served("vae", likelihood(), LIMITS.model_copy(update={"max_batch": 1}))
    assert model.actions == ("generate", "reconstruct", "bits-per-dim")
    assert model.without == {"interpolate": "it needs 2 samples at a time, and the server computes 1."}


@pytest.mark.parametrize("name", ["words", "a/b", "", "-"])
def test_what_can_do_nothing_here_and_what_has_no_name_is_refused(name):
    with pytest.raises(ValueError, match=r"^words can't be served: WordVectorsPipeline draws no|is no name of a model"):
        served(name, portable.naming()["words"], LIMITS)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("digits/generate", {"seed": -1}, 422, "seed: Input should be greater than or equal to 0"),
        ("digits/generate", {"seed": 2**31 - 1, "num_samples": 2, "class_labels": 0}, 422, "seed 2147483648"),
        ("digits/generate", {"seed": "7"}, 422, "seed: Input should be a valid integer"),
        ("digits/generate", {"seed": True}, 422, "seed: Input should be a valid integer"),
        ("digits/generate", {"num_samples": 5}, 422, "num_samples: Input should be less than or equal to 4"),
        ("digits/generate", {"class_labels": 2}, 422, "2"),
        ("digits/generate", {"class_labels": "c"}, 422, "c"),
        ("digits/generate", {"class_labels": [0, 1]}, 422, "2 class_labels for 1 samples"),
        ("digits/generate", {"class_labels": []}, 422, "class_labels"),
        ("digits/generate", {"num_inference_steps": 201}, 422, "less than or equal to 200"),
        ("digits/generate", {"guidance_scale": 2.0}, 422, "class_labels are needed"),
        ("digits/generate", {"scheduler": "best"}, 422, "scheduler: Input should be 'ddpm'"),
        ("digits/generate", {"truncation": 0.5}, 422, "truncation: Extra inputs are not permitted"),
        ("digits/generate", {"num_samples": 2, "format": "png"}, 422, "do not go into one PNG"),
        ("digits/generate", {"\ud800": 1}, 422, "valid string"),
        ("digits/generate", [], 422, "body: "),
        ("digits/generate", b"{", 422, "JSON"),
        ("digits/generate", b'{"seed": NaN}', 422, "seed"),
        ("digits/generate", b'{"seed": ' + b"9" * 5000 + b"}", 400, "body"),
        ("digits/generate", b"[" * 15000, 400, "body"),
        ("vae/generate", {"class_labels": 0}, 422, "class_labels: Extra inputs"),
        ("vae/reconstruct", {"images": ["no"]}, 422, "images[0] is no"),
        ("vae/reconstruct", {"images": ["é"]}, 422, "images[0] is no base64"),
        ("vae/reconstruct", {"images": []}, 422, "images: List should have at least 1 item"),
        ("vae/reconstruct", {"images": [picture((9, 8))]}, 422, "images[0] is 9 x 8 pixels"),
        ("vae/reconstruct", {"images": [picture(mode="RGB")]}, 422, "mode RGB"),
        ("vae/reconstruct", {"images": [picture(mode="LA"), picture(), picture((4, 4))]}, 422, "images[2] is 4 x 4"),
        ("digits/paint", {}, 404, "has no action 'paint'. It has: generate, reconstruct"),
        ("codes/generate", {}, 404, "has no action 'generate': This VQPipeline has no prior over codes"),
        ("bits/bits-per-dim", {}, 404, "has no action 'bits-per-dim': This model has 2 values of a pixel"),
        ("faces/generate", {}, 404, "no model 'faces'. There are: digits, vae"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(server, path, body, status, detail):
    found, headers, text = server.post(f"/models/{path}", body)
    answer = json.loads(text)
    assert found == status and detail in answer["detail"], (found, answer)
    assert headers["content-type"] == "application/json" and set(answer) == {"kind", "detail"}
    assert len(answer["detail"]) <= 1000


def test_files_that_are_no_still_image_are_refused(server):
    still = Image.linear_gradient("L").resize((8, 8))
    buffer = io.BytesIO()
    still.save(buffer, "GIF", save_all=True, append_images=[still.rotate(90)])
    film = base64.b64encode(buffer.getvalue()).decode()
    damaged = base64.b64encode(base64.b64decode(picture())[:60]).decode()
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    data = base64.b64decode(picture())
    bomb = base64.b64encode(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]).decode()
    for image, reason in ((film, "several pictures"), (damaged, "damaged"), (bomb, "too many pixels")):
        status, _, text = server.post("/models/vae/reconstruct", {"images": [image]})
        assert status == 422 and reason in json.loads(text)["detail"], (reason, text)


def test_other_methods_and_addresses(server):
    assert server.ask("GET", "/models/digits/generate")[0] == 405
    assert server.ask("DELETE", "/healthz")[0] == 405
    assert json.loads(server.ask("GET", "/nothing")[2])["kind"] == "not_found"


def test_a_large_body_is_refused_whether_or_not_it_says_its_size(server):
    status, _, text = server.post("/models/digits/generate", b" " * (BODY + 1))
    assert status == 413 and json.loads(text)["kind"] == "too_large"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /models/digits/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n" % (BODY + 1) + b" " * (BODY + 1) + b"\r\n")
        assert b" 413 " in connection.recv(1000)


# --- cache, metrics, key ----------------------------------------------------------------------------------------------


def test_the_same_request_is_answered_from_the_cache(server):
    ask = {"seed": 11, "class_labels": 1, "num_inference_steps": 2}
    first = server.post("/models/digits/generate", ask)
    samples, hits = server.metric("hfgen_batch_samples_sum"), server.metric("hfgen_cache_total", result="hit")
    again = server.post("/models/digits/generate", {**ask, "class_labels": "b", "timeout": 5})  # the name of class 1
    assert again[2] == first[2] and server.metric("hfgen_batch_samples_sum") == samples
    assert server.metric("hfgen_cache_total", result="hit") == hits + 1
    others = [{**ask, "seed": 12}, {**ask, "class_labels": 0}, {**ask, "num_inference_steps": 3}]
    answers = {server.post("/models/digits/generate", other)[2] for other in others}
    assert len(answers | {first[2]}) == 4


def test_the_cache_is_bounded_in_bytes():
    cache = ByteCache(10)
    for key in "abc":
        cache.put(key, b"1234")
    assert (cache.get("a"), cache.get("b"), cache.bytes, len(cache)) == (None, b"1234", 8, 2)
    cache.put("d", b"1234")  # "c" was not asked for longest
    assert cache.get("c") is None and cache.get("b") == b"1234"
    cache.put("b", b"12345678901")
    assert cache.get("b") is None and cache.bytes == 0 == len(cache)
    cache.put("e", b"12")
    cache.put("e", b"123")
    assert cache.bytes == 3
    nothing = ByteCache(0)
    nothing.put("a", b"1")
    assert nothing.get("a") is None
    with pytest.raises(ValueError, match="most_bytes=-1"):
        ByteCache(-1)


def test_metrics_count_and_their_labels_are_few(server):
    labels = {"model": "digits", "action": "generate", "status": "200"}
    before, errors = (
        server.metric("hfgen_requests_total", **labels),
        server.metric("hfgen_errors_total", kind="invalid"),
    )
    server.post("/models/digits/generate", {"seed": 21, "class_labels": 0, "num_inference_steps": 1})
    server.post("/models/digits/generate", {"seed": -1})
    assert server.metric("hfgen_requests_total", **labels) == before + 1
    assert server.metric("hfgen_errors_total", kind="invalid") == errors + 1
    for i in range(5):
        server.post(f"/models/m{i}/a{i}")
    status, headers, text = server.ask("GET", "/metrics")
    lines = text.decode().splitlines()
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    assert not [line for line in lines if 'model="m' in line]
    for name in ("queue_seconds_count", "compute_seconds_count", "batch_samples_sum", "queue_samples", "cache_bytes",
                 "images_total", "request_seconds_bucket", "draining"):  # fmt: skip
        assert any(line.startswith(f"hfgen_{name}") for line in lines), name
    revision = server.models["digits"].revision
    assert any(line.startswith("hfgen_model_info{") and revision in line for line in lines)


def test_a_key_is_needed_where_one_is_set():
    with Running({"vae": likelihood()}, key="secret-key") as server:
        right = [
            {"Authorization": "Bearer secret-key"},
            {"X-API-Key": "secret-key"},
            {"authorization": "bearer  secret-key"},
        ]
        wrong = [{}, {"Authorization": "Bearer secret-kez"}, {"Authorization": "secret-key"}, {"X-API-Key": "\xe9"}]
        wrong += [{"Authorization": "Basic secret-key"}, {"X-API-Key": ""}]
        for headers in right:
            assert server.post("/models/vae/generate", {}, headers=headers)[0] == 200
        for headers in wrong:
            status, answer, text = server.post("/models/vae/generate", {}, headers=headers)
            assert status == 401 and answer["www-authenticate"] == "Bearer" and b"secret" not in text
        assert server.ask("GET", "/models")[0] == 401
        assert [server.ask("GET", path)[0] for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3


async def received(gate, path="/models/vae/generate"):
    """Return the statuses that a gate answers with to a request that has no body yet."""
    statuses = []

    async def send(message):
        statuses.append(message.get("status"))

    async def receive():
        return {"type": "http.disconnect"}

    await gate({"type": "http", "path": path, "headers": []}, receive, send)
    return [status for status in statuses if status]


def test_open_requests_are_bounded_before_their_bodies_are_read(server):
    gate = Gate(None, server.metrics, {}, BODY, 2)
    assert asyncio.run(received(gate)) == [] and gate.open == 0  # the client left
    gate.open = 2
    assert asyncio.run(received(gate)) == [429] and gate.open == 2


# --- load -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch):
    """A server whose pipeline is held up: (server, event that the pipeline has begun, event that lets it go on)."""
    pipeline, begun, gate = likelihood(), threading.Event(), threading.Event()
    with Running(
        {"vae": pipeline}, limits=Limits(max_batch=2, max_steps=9, timeout=60), max_queue=2, max_wait=0.0
    ) as server:
        call = type(pipeline).__call__

        def slow(self, *args, **kwargs):
            begun.set()
            assert gate.wait(60)
            return call(self, *args, **kwargs)

        slow.__signature__ = inspect.signature(call)
        monkeypatch.setattr(type(pipeline), "__call__", slow)
        yield server, begun, gate
        gate.set()


def in_background(server, pool, count, **body):
    return [pool.submit(server.post, "/models/vae/generate", {"seed": 100 + i, **body}) for i in range(count)]


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_queue_is_429_with_a_time_to_retry(held):
    server, begun, gate = held
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = in_background(server, pool, 1)
        assert begun.wait(30)
        waiting = in_background(server, pool, 1, num_samples=2)
        until(lambda: server.engine.waiting == 2)
        status, headers, text = server.post("/models/vae/generate", {"seed": 5})
        assert status == 429 and int(headers["retry-after"]) >= 1 and json.loads(text)["kind"] == "queue_full"
        gate.set()
        assert [answer.result()[0] for answer in (*first, *waiting)] == [200, 200]
    assert server.post("/models/vae/generate", {"seed": 5})[0] == 200


def test_a_late_answer_is_504_and_a_client_that_leaves_is_not_computed(held):
    server, begun, gate = held
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = in_background(server, pool, 1)
        assert begun.wait(30)
        status, _, text = server.post("/models/vae/generate", {"seed": 5, "timeout": 0.05})
        assert status == 504 and json.loads(text)["kind"] == "deadline"
        body = json.dumps({"seed": 6}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            lines = ["POST /models/vae/generate HTTP/1.1", "Host: x", "Content-Type: application/json"]
            head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
            connection.sendall(head.encode() + body)
            until(lambda: server.engine.waiting == 1)
        until(lambda: server.engine.waiting == 0)
        assert not gate.is_set()
        gate.set()
        assert first[0].result()[0] == 200
    until(lambda: server.metric("hfgen_errors_total", kind="gone") == 1)
    assert server.metric("hfgen_batch_samples_sum") == 1


def test_a_server_that_ends_answers_what_it_accepted_and_refuses_the_rest(held):
    server, begun, gate = held
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = in_background(server, pool, 1)
        assert begun.wait(30)
        waiting = in_background(server, pool, 1, num_samples=2)
        until(lambda: server.engine.waiting == 2)
        server.server.handle_exit(15, None)
        until(lambda: server.engine.closing)
        status, headers, text = server.post("/models/vae/generate", {"seed": 5})
        assert status == 503 and "retry-after" in headers and json.loads(text)["kind"] == "draining"
        assert server.ask("GET", "/readyz")[0] == 503 and server.ask("GET", "/healthz")[0] == 200
        gate.set()
        assert [answer.result()[0] for answer in (*first, *waiting)] == [200, 200]
    server.thread.join(30)
    assert not server.thread.is_alive()


def test_an_exception_that_nobody_expected_is_500_and_says_nothing_of_the_inside(held, monkeypatch):
    server, _, gate = held
    gate.set()
    monkeypatch.setattr(type(server.models["vae"].pipeline), "to_images", lambda *_: 1 / 0)
    status, _, text = server.post("/models/vae/generate", {"seed": 9})
    assert status == 500 and json.loads(text)["kind"] == "internal" and b"zero" not in text
    monkeypatch.undo()
    assert server.post("/models/vae/generate", {"seed": 9})[0] == 200


def test_callers_at_once_get_their_own_images(server):
    call = {"class_labels": 1, "num_inference_steps": 2}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.post, "/models/digits/generate", {"seed": 300 + i, **call}) for i in range(8)]
        answers = [answer.result() for answer in asked]
    assert {status for status, *_ in answers} == {200}
    for i, (_, _, data) in enumerate(answers):
        assert abs(levels(data) - by_hand(server, "digits", 300 + i, **call)).max() <= 1
