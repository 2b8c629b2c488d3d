"""A disk that fails at any write of a command: one line or a note, a true status, and nothing that was saved is lost.

A few writes of each command are fast enough for every change; all of them are slow.
"""

import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

import hfgen
from hfgen import HFGenPipeline, cli
from hfgen.compare import jobs, recipes
from hfgen.disk import saves
from hfgen.explain import drawing
from hfgen.trainer.checkpoint import checkpoints, verify
from tests.compare.test_compare import QUICK
from tests.evaluation.test_evaluate import FEW, small_pipeline
from tests.helpers.commands import DOORS
from tests.helpers.doors import file_contents
from tests.helpers.full_disk import FailingDisk
from tests.helpers.kills import ForkedTraining, popen_of

SHORT = ["--dataset", "digits", "--max_train_samples", "40", "--train_batch_size", "4", "--logging_steps", "1"]
SHORT += ["--report_to", "none", "--max_train_steps", "2", "--lr_warmup_steps", "1", "--checkpointing_steps", "1"]
SMALL = ["--model_size", "xs", "--num_inference_steps", "1"]
CAUSES = r"No space left on device|Read-only file system|Input/output error|only a part of it|not trained|\.lock"
"""What the error line says of a write that the work depends on: the system's words, torch's, or which rows failed."""
NOTES = ("can't be", "can't write", "does not log any more")
"""What is said of a write that the work does not depend on."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command.

    Args:
        run: home -> runs the command, which writes below `home`.
        left: pattern of a file that it leaves if its status is 0.
        few: how many of its writes fail in the fast test.
        prepare: home -> makes what the command starts from.
    """

    run: Callable[[Path], object]
    left: str
    few: int = 0
    prepare: Callable[[Path], object] = lambda home: None


def door(name, *words):
    return lambda home: DOORS[f"train_{name}"].main([*map(str, words), "--output_dir", str(home / "run")])


def command(text, *words):
    return lambda home: cli.main([word.replace("HOME", str(home)) for word in [*text.split(), *words]])


def save_pipeline(home):
    small_pipeline().save_pretrained(home / "run")


def reflow(home):
    few = ["--num_pairs", "8", "--pair_batch_size", "4", "--pair_steps", "1", "--eval_samples", "10"]
    words = [*SHORT, "--pipeline", home / "run", *few, "--features", "none", "--sample_steps", "0"]
    DOORS["train_reflow"].main([*map(str, words), "--output_dir", str(home / "reflowed")])


def save_codes(home):
    torch.manual_seed(0)
    network = hfgen.build_autoencoder("vq", "s", 8, 1, 1)
    network.train()(torch.randn(8, 1, 8, 8))
    hfgen.VQPipeline(network).save_pretrained(home / "run")


def codes(home):
    words = [*SHORT, "--pipeline", home / "run", "--model_size", "xs", "--num_likelihood", "4", "--sample_steps", "0"]
    DOORS["train_ar"].main([*map(str, words), "--eval_batch_size", "2", "--output_dir", str(home / "prior")])


def words(home):
    few = ["--dimension", "4", "--train_batch_size", "4", "--max_train_steps", "2", "--checkpointing_steps", "1"]
    text = ["--text", str(home / "text.txt"), "--report_to", "none"]
    DOORS["train_word2vec"].main([*text, *few, "--output_dir", str(home / "vectors")])


def compare(home):
    words = ["compare", *QUICK.replace("1280images", "640images").split(), "--latency_seconds", "0.01"]
    one = {"vae": recipes.RECIPES["vae"]}
    with mock.patch.object(jobs, "subprocess", popen_of(ForkedTraining)), mock.patch.object(recipes, "RECIPES", one):
        cli.main(
            [*words, "--device", "cpu", "--output_dir", str(home / "out"), "--reference_cache", str(home / "cache")]
        )


def explain(home):
    frames = drawing.frames  # most of the time of the command: two of them are enough here
    with mock.patch.object(drawing, "frames", lambda *given: itertools.islice(frames(*given), 2)):
        command("explain --families rectified_flow --max_train_steps 1 --output HOME/new/a.html")(home)


CASES = {
    "explain": Case(explain, "new/a.html", 2),
    "sample": Case(
        command("sample HOME/run --num_samples 3 --num_inference_steps 1 --device cpu --output_dir HOME/s"),
        "s/000002.png",
        5,
        save_pipeline,
    ),
    "grid": Case(
        command("sample HOME/run --num_samples 3 --num_inference_steps 1 --device cpu --grid HOME/new/g.png"),
        "new/g.png",
        0,
        save_pipeline,
    ),
    "attention": Case(
        command("attention HOME/run --num_inference_steps 2 --device cpu --output HOME/a/maps.png"),
        "a/maps.png",
        3,
        save_pipeline,
    ),
    "evaluate": Case(
        command("evaluate HOME/run --dataset digits --metrics frechet --reference_cache HOME/cache", *FEW),
        "run/metrics.json",
        2,
        save_pipeline,
    ),
    "diffusion": Case(door("diffusion", *SHORT, *SMALL, "--sample_steps", "1"), "run/model_index.json", 1),
    "ar": Case(
        door("ar", *SHORT, "--model_size", "xs", "--num_likelihood", "4", "--eval_batch_size", "2"),
        "run/model_index.json",
    ),
    "vae": Case(door("vae", *SHORT, "--num_likelihood", "4", "--sample_steps", "1"), "run/model_index.json", 2),
    "gan": Case(
        door("gan", *SHORT, "--model", "mlp", "--model_size", "xs", "--health_samples", "20", "--health_steps", "1"),
        "run/model_index.json",
        2,
    ),
    "again": Case(
        door("diffusion", *SHORT, *SMALL, "--sample_steps", "0", "--max_train_steps", "3"),
        "run/model_index.json",
        0,
        lambda home: door("diffusion", *SHORT, *SMALL, "--sample_steps", "0")(home),
    ),
    "reflow": Case(reflow, "reflowed/model_index.json", 1, save_pipeline),
    "anomaly": Case(
        door("anomaly", *SHORT, "--sample_steps", "0", "--num_calibration", "20", "--false_alarm_rate", "0.1"),
        "run/model_index.json",
        0,
    ),
    "codes": Case(codes, "prior/model_index.json", 1, save_codes),
    "words": Case(
        words, "vectors/model_index.json", 2, lambda home: (home / "text.txt").write_text("a cat a dog\n" * 9)
    ),
    "compare": Case(compare, "out/report.json"),
}


def ended(case, home, capsys):
    """Run a command: (status, standard error)."""
    status = 0
    try:
        case.run(home)
    except SystemExit as stop:
        status = stop.code or 0
    return status, capsys.readouterr().err


PICTURES = (".png", ".gif")


def results(home, kept=(".safetensors", *PICTURES, ".html", ".csv")):
    """The files that the same command leaves with the same bits. safetensors orders the facts in caches at random."""
    files = {name: data for name, data in file_contents(home).items() if name.endswith(kept)}
    weights = {name for name in files if name.startswith("out/") and name.endswith(".safetensors")}
    return {name: data for name, data in files.items() if name in weights or not name.startswith(("out/", "cache/"))}


def check_readable(home, before):
    """What was there before can be read, and so can what is there now."""
    for index in {name for name in before if name.endswith("model_index.json")}:
        HFGenPipeline.from_pretrained(home / Path(index).parent)
    for name in file_contents(home):
        path, hidden = home / name, any(part[0] == "." for part in Path(name).parts)
        if not hidden and "checkpoint-" not in name:
            if name.endswith(".json"):
                json.loads(path.read_text())
            elif name.endswith((".png", ".gif")):
                Image.open(path).load()
    for folder in (path for path in home.iterdir() if path.is_dir()):
        for checkpoint in checkpoints(folder):
            verify(checkpoint)


def check_failure(outcome, home, before, place, removing=False):
    """Check what a command with a failing disk, which has `ended` so, has said and left.

    A file that is not needed any more and can't be removed is worth no note.
    """
    status, error = outcome
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in error and status in (0, 1, 2), (place, error[-2000:])
    assert len(lines) == bool(status), (place, status, error[-2000:])
    if not status:
        assert removing or any(note in error for note in NOTES), (place, error[-2000:])
    else:
        assert re.search(CAUSES, lines[0]), (place, lines)
    assert all((home / name).exists() or name.startswith("run/") for name in before)
    check_readable(home, before)


def sweep(case, tmp_path, capsys, code, lasting, most):
    """Let writes of a command fail one after the other: all, or `most` at even distances."""
    base, home = tmp_path / "base", tmp_path / "home"
    base.mkdir()
    case.prepare(base)

    def fresh():
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(base, home)

    fresh()
    with FailingDisk(home, 0, code) as disk:
        assert ended(case, home, capsys)[0] == 0
    expected, before = results(home), file_contents(base)
    count = disk.count
    numbers = range(1, count + 1)
    if most and count > most:
        numbers = sorted({round((i + 1) * count / (most + 1)) for i in range(most)})
    for at in numbers:
        fresh()
        with FailingDisk(home, at, code, lasting) as disk:
            outcome = ended(case, home, capsys)
        place = f"write {at} of {count}: {disk.places[at - 1] if len(disk.places) >= at else 'in a training'}"
        check_failure(outcome, home, before, place, disk.only_removals)
        assert outcome[0] or (home / case.left).exists(), place
        again = ended(case, home, capsys)
        assert again[0] == 0, (place, again[1][-2000:])
        found = results(home)
        other = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
        if outcome[0] == 0 and "can't be written" in outcome[1]:  # of the training: nothing draws them again
            other = [name for name in other if not name.endswith(PICTURES)]
        assert not other, (place, other)
        left = [path for path in home.rglob(".*") if re.search(r"\.part|\.new$|\.saving|\.removing", path.name)]
        assert not left, (place, left)
    return count


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(saves, "PATIENCE", 0.01)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.few])
def test_a_disk_that_fails_at_some_write_of_a_command(name, tmp_path, capsys):
    code = [errno.ENOSPC, errno.EROFS, errno.EIO][sum(map(ord, name)) % 3]
    assert sweep(CASES[name], tmp_path, capsys, code, code != errno.EIO, CASES[name].few)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "lasting"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EIO, False)])
@pytest.mark.parametrize("name", CASES)
def test_a_disk_that_fails_at_any_write_of_a_command(name, code, lasting, tmp_path, capsys):
    if name == "compare" and not hasattr(os, "fork"):
        pytest.skip("needs fork")
    assert sweep(CASES[name], tmp_path, capsys, code, lasting, 0)
