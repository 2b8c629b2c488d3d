"""The files of a Space: what is in them, and that nothing is written in a dry run."""

import ast
import re

import pytest
import yaml

import hfgen
from hfgen import cli
from hfgen.demo import space
from tests.demo.test_studio import denoising


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a saved pipeline, `pets`."""
    monkeypatch.chdir(tmp_path)
    denoising().save_pretrained("pets")
    (tmp_path / "pets" / "notes.txt").write_text("private")
    return tmp_path


def header_of(text):
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_a_space_of_a_folder_holds_the_pipeline_and_starts_from_it(place, capsys):
    cli.main(["demo", "pets", "--space", "out"])
    assert capsys.readouterr().out.startswith(f"{len(list_of(place / 'out'))} files in out.")
    files = list_of(place / "out")
    assert {"app.py", "README.md", "requirements.txt", "model/model_index.json"} <= files
    assert not any("notes" in name for name in files)  # as in a push of the pipeline
    header, _ = header_of((place / "out" / "README.md").read_text())
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py") and re.match(r"\d+\.\d+", header["sdk_version"])
    assert "models" not in header
    assert (place / "out" / "requirements.txt").read_text() == f"hfgen[demo]=={hfgen.__version__}\n"
    loads = [node for node in ast.walk(ast.parse((place / "out" / "app.py").read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained"]  # fmt: skip
    assert [ast.literal_eval(load.args[0]) for load in loads] == ["model"]
    assert hfgen.HFGenPipeline.from_pretrained(place / "out" / "model").config.label_names == ["cat", "dog"]


def list_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_space_of_a_repository_loads_it_from_the_hub(place):
    files = space.space_files("someone/digits", "digits", "6.0")
    assert set(files) == {"app.py", "README.md", "requirements.txt"}
    assert 'from_pretrained("someone/digits")' in files["app.py"].decode()
    header, _ = header_of(files["README.md"].decode())
    assert header["models"] == ["someone/digits"] and header["title"] == "digits: a demo"


def test_a_dry_run_lists_files_and_bytes_and_writes_nothing(place, capsys):
    before = list_of(place)
    cli.main(["demo", "NAME=pets".replace("NAME", "digits"), "--space", "hf://spaces/someone/digits", "--dry_run"])
    *lines, total = capsys.readouterr().out.splitlines()
    sizes = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines}
    assert sizes["model/model_index.json"] == (place / "pets" / "model_index.json").stat().st_size
    assert total.split("  ")[-1] == f"bytes in {len(sizes)} files would be written to hf://spaces/someone/digits"
    assert list_of(place) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--space", "hf://spaces/digits"], "hf://spaces/digits names no Space. Write hf://spaces/OWNER/NAME."),
        (["--space", "pets/notes.txt"], "is a file. Give a folder"),
        (["--space", "out", "--hub_private_repo"], "--hub_private_repo is for a Space on the Hub"),
        (["--dry_run"], "--dry_run True does nothing without --space"),
    ],
)
def test_options_that_do_not_fit_are_refused(place, words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from hfgen.commands import demo

        demo.main(["pets", *words])


def test_a_push_makes_a_space_of_gradio_and_commits_all_files(monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo, **options):
            calls.append((repo, options))

        def create_commit(self, repo, operations, **options):
            calls.append((repo, sorted(each.path_in_repo for each in operations), options["repo_type"]))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert space.push_space({"app.py": b"x", "README.md": b"y"}, "a/b").endswith("/spaces/a/b")
    options = {"repo_type": "space", "space_sdk": "gradio", "private": False, "exist_ok": True}
    assert calls == [("a/b", options), ("a/b", ["README.md", "app.py"], "space")]
