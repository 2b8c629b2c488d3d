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
