"""`hfgen serve` as a process: what it says, what it refuses before it loads anything, and how it ends."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch

from hfgen.commands import serve
from hfgen.console.endings import status_of
from tests.helpers.toys import ROOT
from tests.saving import test_portable as portable

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from hfgen.serving import speed
from hfgen.web import trial

KEY = "a-key-of-letters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline that can take its time: a denoiser, of any number of steps."""
    place = tmp_path_factory.mktemp("serve") / "digits"
    portable.denoising()["DiTModel-straight"].save_pretrained(place)
    return place


class Process:
    """`hfgen serve` with these words, on a port of its own."""

    def __init__(self, *words, **environment):
        command = [sys.executable, "-m", "hfgen.cli", "serve", *map(str, words), "--port", "0", "--device", "cpu"]
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := re.match(r"Serving at http://localhost:(\d+) ", line):
                self.port = int(found[1])
                return
        raise AssertionError(self.process.stderr.read())

    def ask(self, path, body=None, key=KEY):
        """Return (status, content)."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read()

    def end(self, *signals, timeout=120):
        """Send signals, and return (status, rest of standard output, standard error)."""
        for number in signals:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


def test_a_process_serves_with_a_key_and_answers_what_it_accepted_after_sigterm(folder):
    server = Process(f"mine={folder}", "--max_batch", 1, "--max_wait", 0, HFGEN_API_KEY=KEY)
    assert re.match(r"mine: DenoisingPipeline, revision [0-9a-f]{16}: generate, reconstruct, ", server.lines[0])
    assert server.ask("/models", key="another-key")[0] == 401
    long = {"num_inference_steps": 1000, "class_labels": 0}
    answers = {}
    threads = [
        threading.Thread(
            target=lambda i=i: answers.update({i: server.ask("/models/mine/generate", {**long, "seed": i})})
        )
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    seen = 0  # one is computed, and two wait; for a moment the first two may wait before one is taken
    while seen < 3:
        seen = seen + 1 if b"hfgen_queue_samples 2.0" in server.ask("/metrics")[1] else 0
        assert any(thread.is_alive() for thread in threads)
        time.sleep(0.3)
    status, out, err = server.end(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert [answers[i][0] for i in range(3)] == [200] * 3
    assert all(answers[i][1].startswith(b"\x89PNG") for i in range(3))
    assert status == 0 and out == "Stopped.\n" and "finishes what it has accepted" in err


def test_a_second_signal_ends_it_at_once(folder):
    server = Process(folder, "--drain_seconds", 600)
    assert server.lines[0].startswith("digits: ")
    server.process.send_signal(signal.SIGTERM)
    while server.ask("/readyz")[0] != 503:
        pass
    assert server.end(signal.SIGINT)[0] == status_of(signal.SIGTERM)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=x", "a=y"], r"^Two models are called 'a'\. Give one another name: NAME=y"),
        (["a b=x"], r"^'a b' is no name of a model"),
        (["=x"], r"^'' is no name of a model"),
        (["x", "--max_batch", "9", "--max_queue", "8"], r"^--max_queue 8 must be at least --max_batch 9"),
        (["x", "--port", "65536"], r"^--port 65536 must be "),
        (["x", "--host", "203.0.113.1"], r"^203\.0\.113\.1:8000 can't be served at: "),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(words, message):
    with pytest.raises((ValueError, OSError), match=message):
        serve.main(words)


@pytest.mark.parametrize("key", ["", "short", "a key of \xe9 and more"])
def test_a_key_that_protects_nothing_is_refused(monkeypatch, key):
    monkeypatch.setenv(serve.API_KEY, key)
    with pytest.raises(ValueError, match=r"^HFGEN_API_KEY must have at least 8 letters"):
        serve.main(["x"])


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    with pytest.raises(ValueError, match=r"^hfgen serve needs uvicorn\. Install them: pip install 'hfgen\[serve\]'$"):
        serve.main(["x"])


def test_8_bits_without_torchao_are_refused_before_anything_is_loaded(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else find(name))
    with pytest.raises(ValueError, match=r"^8-bit weights need torchao\. Install it: pip install 'hfgen\[int8\]'$"):
        serve.main(["x", "--int8"])


def test_a_model_is_cast_then_rounded_then_compiled_and_drawn_from_before_it_is_served(folder, monkeypatch):
    done = []
    monkeypatch.setattr(speed, "quantize", lambda pipeline: done.append(pipeline.dtype))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: done.append("compile"))
    monkeypatch.setattr(trial, "warm", lambda model, count: done.append((model.name, count)))
    options = serve.ServeOptions([], max_batch=3, dtype="bfloat16", device="cpu", compile=True, int8=True)
    with serve._service(options, serve.FilterOptions(), {"mine": str(folder)}).engine:
        assert done == [torch.bfloat16, "compile", ("mine", 3)]


def test_names_of_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "a=b").mkdir(parents=True)
    assert serve.named_source("digits=outputs/x") == ("digits", "outputs/x")
    assert serve.named_source("someone/faces") == ("faces", "someone/faces")
    assert serve.named_source("outputs/") == ("outputs", "outputs/")
    with pytest.raises(ValueError, match="'a=b' is no name"):
        serve.named_source("outputs/a=b")


@pytest.mark.parametrize("folder", ["outputs/my model", "it's", "__", "ü", "a b" * 40])
def test_a_folder_that_gives_no_name_is_refused_with_one_that_does(folder):
    with pytest.raises(ValueError, match="is no name of a model") as caught:
        serve.named_source(folder)
    (word,) = shlex.split(str(caught.value).split("Give one: ")[1])
    assert serve.named_source(word)[1] == folder
