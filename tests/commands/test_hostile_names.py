"""Hostile names from data, end to end: console, card, report and pictures; tokens and configurations of commands."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from hfgen import cli
from hfgen.compare import charts, pages
from hfgen.compare.recommend import SHIPPED
from hfgen.console.notes import LastingOutput
from hfgen.console.text import UNSEEN
from hfgen.saving import card as cards
from hfgen.training import train_flow
from tests.helpers.fuzz import BOMB, time_limit
from tests.helpers.fuzz_subjects import images

NAME = "\x1b[31mA\u202e|`b`<script>alert(1)\n# [c](javascript:d) $e$ \x9b2J"
"""A name that a folder may have, of a class or a data set."""


def assert_plain(text: str) -> None:
    """No letters without a shape but line ends and tabs, and no line begins with what only a name can begin."""
    assert not {letter for letter in text if unicodedata.category(letter) in UNSEEN} - {"\n", "\t"}
    assert not any(line.startswith(("# [c]", "[c]")) for line in text.splitlines())


@pytest.fixture
def data(tmp_path):
    """A folder of images whose name, classes and files are hostile."""
    folder = tmp_path / f"data {NAME}"
    for label in ("1", "2"):
        (folder / (label + NAME)).mkdir(parents=True)
    for name, content, label in images():
        (folder / f"{label + 1}{NAME}" / f"{NAME}{name}").write_bytes(content)
    (folder / f"notes{NAME}").write_text("")
    return folder


def run(*words: object) -> tuple[int, str, str]:
    """`hfgen words` in this process: (exit status, standard output, standard error), as a terminal gets them."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            cli.main(list(map(str, words)))
            status = 0
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), complaint.getvalue()


def test_the_look_at_a_data_set(data, tmp_path):
    status, out, complaint = run("data", data, "--preview", tmp_path / "grid.png")
    assert not status
    assert_plain(out)
    assert_plain(complaint)
    assert "1\\x1b[31mA" in out and "2 classes" in complaint


def test_errors(data):
    (file,) = (data / f"1{NAME}").glob("*a0.png")
    file.write_bytes(b"no image")
    for words in (("data", data), ("sample", f"nowhere{NAME}"), ("push", f"nowhere{NAME}", "a/b"), (NAME,)):
        status, out, complaint = run(*words)
        assert status == 2 and "\\x1b[31m" in complaint
        assert "\x1b" not in complaint + out and "\u202e" not in complaint + out and "\x9b" not in complaint + out


def test_a_training(data, tmp_path):
    """Whose held-out images are those of the same folder: what is printed, and the card."""
    words = "--class_conditional --model_size xs --resolution 8 --train_batch_size 4 --max_train_steps 1"
    words += " --lr_warmup_steps 0 --eval_batch_size 2 --report_to none --sample_steps 0 --num_likelihood 2"
    words += " --dataset_split train[:4] --held_out_split train[4:]"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as complaint:
        train_flow.main(["--dataset", str(data), "--output_dir", str(tmp_path / "run"), *words.split()])
    assert "Measuring 2 images of data \\x1b[31mA" in out.getvalue()
    for text in (out.getvalue(), complaint.getvalue(), (tmp_path / "run" / "README.md").read_text()):
        assert_plain(text)


def test_standard_output_moves_no_cursor(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "__stdout__", stream)
    LastingOutput(stream).write("a\x1b[2Jb\tc\n")
    assert stream.getvalue() == "a\\x1b[2Jb\tc\n"


def test_a_card(tmp_path):
    folder = tmp_path / 'run "x" \u202e'
    folder.mkdir()
    Image.new("L", (2, 2)).save(folder / "samples.png")
    entry = {"metric": f"distance {NAME}", "value": 1.0, "protocol": {NAME: NAME}}
    (folder / "metrics.json").write_text(json.dumps({"evaluation": [entry]}))
    facts = {"classes": NAME, NAME: NAME}
    shared = {"call": "", "facts": facts, "command": "hfgen train", "tags": [], "data": NAME, "licence": NAME}
    cards.write_card(folder, title=NAME, summary=NAME, **shared, pictures={"samples.png": NAME})
    for _ in range(2):
        text = (folder / "README.md").read_text()
        assert_plain(text)
        body = text.split("\n---\n", 1)[1]
        assert "<script>" not in body and "](javascript" not in body.replace("\\](", "")
        assert not [
            line for line in body.splitlines() if line.startswith("|") and line.count("\\|") + 4 < line.count("|")
        ]
        assert r'from_pretrained("run \"x\" \u202e")' in body
        cards.add_results(folder)
    assert 'from_pretrained("a/b")' in cards.name_repository(text, "a/b")


def report() -> dict:
    """A report of hfgen compare with hostile names."""
    content = json.loads(SHIPPED.read_text(encoding="utf-8"))
    content["rows"] = content["rows"][:3]
    for number, row in enumerate(content["rows"]):
        row |= {
            "name": f"{number}{NAME}",
            "family": f"{row['family']}{NAME}",
            "notes": [NAME],
            "command": f"a {NAME}\n```\n",
        }
        row["figures"] = {f"{name} {NAME}": figure for name, figure in row["figures"].items()}
    content |= {
        "protocol": {**content["protocol"], "data": NAME, NAME: NAME},
        "hardware": NAME,
        "command": f"```\n{NAME}",
    }
    return content


def test_a_report_for_people(tmp_path):
    content = report()
    for folder in ("samples", "nearest"):
        (tmp_path / folder).mkdir()
        for row in content["rows"]:
            Image.new("L", (2, 2)).save(tmp_path / folder / pages.picture_name(row))
    page, text = pages.page(content, tmp_path), pages.markdown(content)
    for shown in (page, text):
        assert not {letter for letter in shown if unicodedata.category(letter) in UNSEEN} - {"\n", "\t"}
    assert "<script>alert" not in page and page.count("<script>") == 1 and "data:image/png;base64," in page
    outside = re.sub(r"^(`{3,})$.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<script>" not in outside
    assert_plain(outside)
    assert_plain(pages.brief(content["rows"][0]))


def test_charts(tmp_path):
    import xml.etree.ElementTree as tree

    chart = charts.bars(report()["rows"])
    assert "$e$" in "".join(tree.fromstring(chart).itertext())  # as it is, and not as mathematics


def test_a_recommendation(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report()))
    status, out, _ = run("recommend", "--report", tmp_path / "report.json")
    assert not status and "\\x1b" in out
    assert_plain(out)


# --- tokens and configurations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["push", "nowhere", "a/b", "--token", "hf_SECRET"], ["train", "vae", "--hub_token=hf_SECRET"]]
)
def test_a_token_is_in_the_environment_alone(words):
    code = f"""
import os, sys
from hfgen import cli
os.execve = lambda path, words, environment: (print(words[3:], environment.get("HF_TOKEN")), sys.exit(0))
sys.argv = ["hfgen", *{words!r}]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hf_SECRET" in done.stdout.split("]")[1] and "hf_SECRET" not in done.stdout.split("]")[0] + done.stderr
    assert "hf auth login" in done.stderr


def test_no_module_of_the_working_directory_is_run(tmp_path):
    (tmp_path / "torch.py").write_text("print('A STRANGER')\nraise SystemExit(3)")
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 knows no PYTHONSAFEPATH")
    call = "launch('hfgen.training.train_vae', ['--max_train_steps', '0'], 'hfgen train vae')"
    code = f"from hfgen.commands.launch import launch; {call}"
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    code = f"import sys; sys.path = [path for path in sys.path if path]; {code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "A STRANGER" not in done.stdout + done.stderr


CONFIGURATIONS = {
    "bomb": (BOMB, "stands for more than"),
    "twice": ("seed: 1\nseed: 2\n", "line 2: 'seed' is there twice"),
    "list": ("- 1\n", "a configuration has lines"),
    "unknown": ("sed: 1\n", "did you mean seed"),
    "type": ("seed: [1]\n", "seed"),
    "range": ("seed: -1\n", "must be from 0"),
    "deep": ("a: " + "[" * 999, "nests more than"),
    "bytes": ("a: \udcff", "no text in UTF-8"),
    "long": ("#" * 300_000, "no such file has more than"),
}


@pytest.mark.parametrize("name", [*CONFIGURATIONS, "pipe", "zeros", "folder", "nothing"])
def test_a_configuration_ends_in_a_line_that_names_it(tmp_path, name, capsys):
    from hfgen.options import TrainArgs, parse_or_exit, parser

    path, why = tmp_path / "some.yaml", "some.yaml"
    if name in CONFIGURATIONS:
        text, why = CONFIGURATIONS[name]
        path.write_text(text, errors="surrogateescape")
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "zeros":
        path.symlink_to("/dev/zero")
    start = time.process_time()
    with time_limit(2), pytest.raises(SystemExit) as stop:
        parse_or_exit(parser("p", "d", "e", TrainArgs), ["--config", str(path)], TrainArgs)
    complaint = capsys.readouterr().err
    assert stop.value.code == 2 and "some.yaml" in complaint and why in complaint and "Traceback" not in complaint
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", ["- 1", "a: [", "nonsense: 1", BOMB])
def test_a_configuration_of_accelerate_ends_in_a_line_that_names_it(tmp_path, text, monkeypatch):
    from accelerate.commands.config import config_args

    from hfgen.commands import launch

    path = tmp_path / "default_config.yaml"
    path.write_text(text)
    monkeypatch.setattr(config_args, "default_config_file", str(path))
    with pytest.raises(ValueError, match=r"default_config\.yaml.*accelerate config"):
        launch._launcher([], {})
