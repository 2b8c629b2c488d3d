"""The page itself, through gradio's own client. Without gradio these are skipped."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from hfgen.demo.studio import Studio
from hfgen.utils.provenance import read_provenance
from tests.demo.test_studio import denoising
from tests.helpers.toys import ROOT
from tests.saving import test_portable as portable

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")


def labels_of(page):
    return [block.label for block in page.blocks.values() if getattr(block, "label", None)]


@pytest.fixture(scope="module")
def running():
    """(studio, client) of a page on this machine."""
    from hfgen.demo.page import launch_options, page_of

    with Studio(denoising(), "pets", max_batch=4) as studio:
        page = page_of(studio)
        _, address, public = page.launch(
            server_name="127.0.0.1", share=False, prevent_thread_lock=True, quiet=True, **launch_options(studio)
        )
        assert public is None
        yield studio, gradio_client.Client(address, verbose=False)
        page.close(verbose=False)


def test_the_page_draws_and_its_files_have_their_provenance(running):
    _, client = running
    gallery, files = client.predict(5, 2, "dog", "heun", 2, 1, api_name="/draw")
    assert len(gallery) == len(files) == 2
    for i, path in enumerate(files):
        said = read_provenance(path)
        assert (said["seed"], said["scheduler"], said["model"]) == (str(5 + i), "heun", "pets")
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(gallery[i]["image"])))


def test_interpolations_and_reconstructions_are_there(running, tmp_path):
    _, client = running
    _, files = client.predict(1, 2, 3, "cat", "the model's own", 2, 1, api_name="/interpolate")
    assert [read_provenance(path)["action"] for path in files] == ["interpolate"] * 3
    Image.linear_gradient("L").save(tmp_path / "x.png")
    _, files = client.predict(gradio_client.handle_file(tmp_path / "x.png"), "cat", api_name="/reconstruct")
    assert len(files) == 2 and read_provenance(files[1])["action"] == "reconstruct"


def test_what_is_refused_is_shown_to_who_asked(running):
    _, client = running
    with pytest.raises(gradio_client.exceptions.AppError, match="seed"):
        client.predict(2**31 - 1, 2, "dog", "heun", 2, 1, api_name="/draw")


def test_a_page_has_the_tabs_of_what_its_pipeline_can(running):
    from hfgen.demo.page import page_of

    studio, _ = running
    assert {"Seed", "Steps", "Scheduler", "Class", "Guidance (1: none)"} <= set(labels_of(page_of(studio)))
    with Studio(portable.predicting()["made"], "bits") as other:
        found = labels_of(page_of(other))
        assert not {"Interpolation", "Reconstruction", "Scheduler", "Steps"} & set(found) and "Seed" in found


def test_a_written_space_starts(tmp_path):
    denoising().save_pretrained(tmp_path / "pets")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    run = {"cwd": tmp_path, "env": environment, "check": True, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "-m", "hfgen.cli", "demo", "pets", "--space", "out"], **run)
    code = "import app, json; print(json.dumps([app.demo.title, app.studio.classes]))"
    done = subprocess.run([sys.executable, "-c", code], **{**run, "cwd": tmp_path / "out"})
    assert json.loads(done.stdout.splitlines()[-1]) == ["pets: a demo", ["cat", "dog"]]


def test_hfgen_demo_serves_on_this_machine_alone(tmp_path):
    denoising().save_pretrained(tmp_path / "pets")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "hfgen.cli", "demo", "pets", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(200, process.kill)
    timer.start()
    try:
        address = next(line.split()[-1] for line in process.stdout if line.startswith("Serving at "))
        assert address.startswith(("http://localhost:", "http://127.0.0.1:"))
        gradio_client.Client(address, verbose=False).predict(1, 1, "cat", "the model's own", 1, 1, api_name="/draw")
        process.terminate()
        assert process.wait(60) == 143
    finally:
        timer.cancel()
        process.kill()
        process.wait()
