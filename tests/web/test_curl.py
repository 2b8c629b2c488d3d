"""The examples of docs/serving.md, run by curl against a server on this machine."""

import io
import json
import re
import shutil
import subprocess
import zipfile

import pytest
from PIL import Image

import hfgen
from tests.helpers.documents import blocks_of
from tests.helpers.toys import ROOT
from tests.saving import test_portable as portable

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from tests.web.test_service import Running, likelihood

KEY = "my-secret-key"


def commands():
    """Return the curl commands of the page."""
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = [block.text for block in blocks_of(text) if block.text.startswith("curl")]
    return [command for block in blocks for command in re.split(r"\n(?=curl)", block.strip())]


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("bash"), reason="needs curl and bash")
def test_the_examples_of_the_page_work(tmp_path):
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "patch_size": 2, "num_class_embeds": 11}
    digits = hfgen.DenoisingPipeline(portable.network("DiTModel", **sizes), hfgen.RectifiedFlowScheduler(), 10)
    Image.linear_gradient("L").resize((8, 8)).save(tmp_path / "digit.png")
    found = []
    with Running({"digits": digits, "vae": likelihood()}, key=KEY) as server:
        for command in commands():
            here = command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
            if KEY not in here:
                here = here.replace("curl ", f"curl -H 'X-API-Key: {KEY}' ", 1)
            line = here.replace("curl ", "curl --silent --show-error --fail ", 1)
            done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, timeout=60, check=False)
            assert done.returncode == 0, (command, done.stderr)
            found.append(done.stdout)
    assert len(found) == 7
    assert [entry["name"] for entry in json.loads(found[0])] == ["digits", "vae"] and json.loads(found[-1])
    assert [each["seed"] for each in json.loads(found[3])["samples"]] == [7, 8]
    assert len(json.loads(found[5])["bits_per_dim"]) == 1
    assert zipfile.ZipFile(tmp_path / "four.zip").namelist() == ["7.png", "8.png", "9.png", "10.png"]
    for name in ("three.png", "reconstructed.png"):
        assert Image.open(io.BytesIO((tmp_path / name).read_bytes())).size == (8, 8)
