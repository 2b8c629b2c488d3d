"""What a server says of its images: their provenance, and the verdicts of filters."""

import base64
import io
import json
import zipfile

import pytest

import hfgen
from hfgen.utils.provenance import GENERATED, read_provenance

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from tests.web.test_service import Running, denoising, likelihood, picture


@pytest.fixture(scope="module")
def server():
    with Running({"digits": denoising(), "vae": likelihood()}) as running:
        yield running


def said(data):
    return read_provenance(io.BytesIO(data))


# --- provenance -------------------------------------------------------------------------------------------------------


def test_every_png_says_what_drew_it(server):
    revision = server.models["digits"].revision
    ask = {"seed": 3, "num_samples": 2, "class_labels": [0, "b"], "num_inference_steps": 2, "scheduler": "heun"}
    _, _, data = server.post("/models/digits/generate", ask)
    archive = zipfile.ZipFile(io.BytesIO(data))
    _, _, text = server.post("/models/digits/generate", {**ask, "format": "json"})
    for i, each in enumerate(json.loads(text)["samples"]):
        assert said(base64.b64decode(each["png"])) == said(archive.read(f"{3 + i}.png")) == {
            "model": "digits", "revision": revision, "seed": str(3 + i), "scheduler": "heun", "steps": "2",
            "action": "generate", "call": json.dumps({"class_labels": i}), "version": hfgen.__version__,
            "digital_source_type": GENERATED,
        }  # fmt: skip
    _, _, png = server.post("/models/digits/generate", {"class_labels": 0})
    assert (said(png)["scheduler"], said(png)["steps"]) == ("RectifiedFlowScheduler", "20")


def test_reconstructions_and_interpolations_say_that_they_are_such(server):
    _, _, png = server.post("/models/vae/reconstruct", {"images": [picture()]})
    found = said(png)
    assert (found["model"], found["action"], found["digital_source_type"]) == ("vae", "reconstruct", GENERATED)
    assert "scheduler" not in found and "steps" not in found
    _, _, data = server.post("/models/vae/interpolate", {"first": picture(), "second": picture(), "steps": 2})
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert {said(archive.read(name))["action"] for name in archive.namelist()} == {"interpolate"}


# --- filters ----------------------------------------------------------------------------------------------------------


class Judge:
    """A filter that finds images of some seeds: it knows them by the order in which it is asked."""

    def __init__(self, name, found, refuses):
        self.name, self.found, self.refuses, self.asked = name, found, refuses, 0

    def judge(self, images):
        self.asked += len(images)
        return [f"picture {i} is bad" if i in self.found else None for i in range(len(images))]


@pytest.fixture
def filtered():
    with Running({"vae": likelihood(), "free": likelihood()}) as running:
        yield running


def test_a_refusal_is_403_with_the_reason_and_counted(filtered):
    judge = Judge("memorised", {1}, True)
    filtered.service.filters["vae"] = [judge]
    ask = {"seed": 5, "num_samples": 2}
    for _ in range(2):  # a refusal is not kept: whoever asks again gets the same
        status, _, text = filtered.post("/models/vae/generate", ask)
        assert status == 403
        assert json.loads(text) == {"kind": "filtered", "detail": "Refused by a filter. seed 6: picture 1 is bad"}
    assert filtered.metric("hfgen_filtered_total", model="vae", filter="memorised", outcome="refused") == 2
    assert filtered.metric("hfgen_errors_total", kind="filtered") == 2
    assert filtered.post("/models/vae/generate", {"seed": 5})[0] == 200  # its first picture is none of these
    assert filtered.post("/models/free/generate", ask)[0] == 200


def test_a_flag_is_in_the_header_and_in_json_and_counted(filtered):
    judge = Judge("unwanted_class", {0}, False)
    filtered.service.filters["vae"] = [judge]
    for _ in range(2):
        status, headers, _ = filtered.post("/models/vae/generate", {"seed": 5, "num_samples": 2})
        assert (status, headers["x-flags"]) == (200, "5 unwanted_class")
    status, headers, text = filtered.post("/models/vae/generate", {"seed": 5, "num_samples": 2, "format": "json"})
    assert [each.get("flags") for each in json.loads(text)["samples"]] == [["unwanted_class: picture 0 is bad"], None]
    assert filtered.metric("hfgen_filtered_total", model="vae", filter="unwanted_class", outcome="flagged") == 3
    judge.found = set()
    assert "x-flags" not in filtered.post("/models/vae/generate", {"seed": 9})[1]
    asked = judge.asked
    assert filtered.post("/models/vae/generate", {"seed": 9})[0] == 200 and judge.asked == asked  # from the cache
