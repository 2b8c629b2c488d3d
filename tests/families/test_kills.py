"""`kill -9` in the commands that go on where they were: reflow's couplings, evaluate, compare and anomaly fit.
Ctrl-C, a second one, SIGTERM and SIGHUP in evaluate and compare.

Twenty moments each are slow; one of two commands is fast enough for every change.
"""

import json
import os
import signal

import pytest

from hfgen import cli
from hfgen.compare import recipes
from tests.compare.test_compare import QUICK
from tests.evaluation.test_evaluate import FEW, small_pipeline
from tests.helpers.commands import DOORS
from tests.helpers.doors import file_contents
from tests.helpers.kills import check_kills

SLOW = [pytest.param(20, marks=pytest.mark.slow)]
MOMENTS = [*SLOW, 1]
SHORT = ["--dataset", "digits", "--max_train_samples", "60", "--train_batch_size", "4", "--logging_steps", "1"]
SHORT += ["--report_to", "none", "--max_train_steps", "2", "--lr_warmup_steps", "1", "--sample_steps", "0"]

CAUGHT = ((signal.SIGHUP,), (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT))
"""Signals that a command catches: a lost terminal, `kill`, Ctrl-C, and a second Ctrl-C."""

STOPS = pytest.mark.parametrize("signals", [((signal.SIGKILL,),), CAUGHT], ids=["killed", "signalled"])

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def saved(home):
    """Files that hold weights, couplings, pictures, and measurements without their times."""
    files = file_contents(home)
    kept = {name: data for name, data in files.items() if name.endswith((".safetensors", ".png", ".gif"))}
    metrics = {name: json.loads(data) for name, data in files.items() if name.endswith("metrics.json")}
    return {**kept, **{name: values.get("evaluation") for name, values in metrics.items()}}


@pytest.mark.parametrize("moments", MOMENTS)
def test_couplings_of_reflow(tmp_path, moments):
    small_pipeline().save_pretrained(tmp_path / "teacher")
    words = [*SHORT, "--pipeline", tmp_path / "teacher", "--num_pairs", "64", "--pair_batch_size", "4"]
    words += ["--pair_steps", "2", "--eval_samples", "10", "--features", "none", "--output_dir"]

    def act(home):
        DOORS["train_reflow"].main([*map(str, words), str(home / "run")])

    check_kills(act, tmp_path / "work", saved, moments)


@pytest.mark.parametrize("moments", SLOW)
def test_anomaly_fit(tmp_path, moments):
    words = [*SHORT, "--num_calibration", "20", "--false_alarm_rate", "0.1", "--checkpointing_steps", "1"]

    def act(home):
        DOORS["train_anomaly"].main([*words, "--output_dir", str(home / "run")])

    check_kills(act, tmp_path / "work", saved, moments)


@STOPS
@pytest.mark.parametrize("moments", MOMENTS)
def test_evaluate(tmp_path, moments, signals):
    def act(home):
        cli.main(["evaluate", str(home / "run"), "--dataset", "digits", *FEW, "--metrics", "frechet", *cache])

    cache = ["--reference_cache", str(tmp_path / "cache")]
    prepare = lambda home: small_pipeline().save_pretrained(home / "run")  # noqa: E731
    check_kills(act, tmp_path / "work", saved, moments, prepare=prepare, signals=signals)


@STOPS
@pytest.mark.parametrize("moments", SLOW)
def test_compare(tmp_path, moments, signals, monkeypatch):
    monkeypatch.setattr(recipes, "RECIPES", {"vae": recipes.RECIPES["vae"]})
    words = ["compare", *QUICK.replace("1280images", "640images").split(), "--latency_seconds", "0.01"]
    words += ["--reference_cache", str(tmp_path / "cache"), "--device", "cpu", "--output_dir"]

    def figures(home):
        (row,) = json.loads((home / "out" / "report.json").read_text())["rows"]
        assert row["status"] == "measured", row["notes"]
        weights = {name: data for name, data in saved(home).items() if name.endswith(".safetensors")}
        return {"figures": row["figures"], "seeds": row["seeds"], **weights}

    act = lambda home: cli.main([*words, str(home / "out")])  # noqa: E731
    check_kills(act, tmp_path / "work", figures, moments, signals=signals)
