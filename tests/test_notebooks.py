"""The notebooks run from top to bottom, in small, and hold nothing but what a reader needs.

They are run as docs/python.md is: block after block in one namespace. They have no magics, so no kernel is needed.
"""

import ast
import json
import re

import pytest
import torch
from PIL import Image

from hfgen.compare import jobs
from hfgen.registry import FAMILIES
from tests.helpers.documents import links_of
from tests.helpers.kills import ForkedTraining, popen_of
from tests.helpers.toys import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

SMALL = {
    r"--max_train_steps \d+": "--max_train_steps 2",
    r"--autoencoder_steps \d+": "--autoencoder_steps 1",
    r"--text_steps \d+": "--text_steps 2",
    r"--output_dir outputs/energy": "--num_inference_steps 2 --eval_batch_size 10 --output_dir outputs/energy",
    r"--autoencoder_batch_size \d+": "--autoencoder_batch_size 8 --num_inference_steps 2 --eval_batch_size 10",
    r"--num_likelihood 100": "--num_likelihood 4 --eval_batch_size 10",
    r"--model patch_unet": "--model dit",
    r"--path ": "--num_inference_steps 2 --eval_batch_size 10 --path ",
    r"--pipeline outputs/flow": "--eval_batch_size 10 --pipeline outputs/flow",
    r"--sample_steps \d+": "--sample_steps 1",
    r"--train_batch_size 64 --num_samples \d+": "--train_batch_size 16 --num_samples 70",
    r"--train_batch_size \d+": "--train_batch_size 16",
    r"--health_steps \d+": "--health_steps 0",
    r"--num_pairs \d+ --pair_steps \d+": "--num_pairs 16 --pair_steps 2",
    r"--likelihood_samples \d+": "--likelihood_samples 2",
    r"--num_inference_steps [\d,]+ --batch": "--num_samples 70 --num_inference_steps 1 --num_likelihood 4 --batch",
    r"--batch_sizes [\d,]+ --latency_seconds [\d.]+": "--batch_sizes 1 --latency_seconds 0",
    r"--bootstrap \d+": "--bootstrap 0",
    r"--families vae,gan": "--families gan --dtypes float32",
    r"50k images": "32 images",
    r"num_inference_steps=\d+": "num_inference_steps=2",
    r"steps=100": "steps=2",
    r"--output_dir outputs/texts": "--num_inference_steps 2 --eval_batch_size 2 --output_dir outputs/texts",
    r"num_images_per_prompt=6": "num_images_per_prompt=1, num_inference_steps=2",
    r"--dataset digits": "--report_to none --dataset digits",
}
"""What is made small for a test: a pattern, and its text there. Each pattern is in some notebook."""

WITHOUT_LOG = re.compile(r"compare --report_to none")


def cells_of(path, kind):
    """The sources of a notebook's cells of a kind."""
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def small(source):
    for pattern, text in SMALL.items():
        source = re.sub(pattern, text, source)
    return WITHOUT_LOG.sub("compare", source)


@each_notebook
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jobs, "subprocess", popen_of(ForkedTraining))
    names = {"__name__": "__main__"}
    torch.manual_seed(0)
    shown = []
    for number, source in enumerate(cells_of(path, "code")):
        tree, name = ast.parse(small(source)), f"{path.name}, code cell {number}"
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        if last is not None:  # what a notebook shows below the cell
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
    pictures = [value for value in shown if isinstance(value, Image.Image)]
    assert pictures or path.stem in ("compare", "word_vectors")
    assert all(picture.width <= 1200 for picture in pictures)


@each_notebook
def test_a_notebook_is_valid_short_and_holds_no_outputs(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5) and set(book["metadata"]["language_info"]) == {"name"}
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) <= 20
    for cell in book["cells"]:
        assert cell["metadata"] == {} and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            assert 1 <= len(cell["source"]) <= 15
    first = book["cells"][0]
    assert first["cell_type"] == "markdown" and first["source"][0].startswith("# ")
    assert re.search(r"minutes?", "".join(first["source"]))  # how long it takes


@each_notebook
def test_the_links_of_a_notebook_lead_somewhere(path):
    for link in links_of("\n\n".join(cells_of(path, "markdown"))):
        assert "://" in link or (path.parent / link.partition("#")[0]).is_file(), link


def test_every_family_has_a_notebook():
    code = "\n".join(source for path in NOTEBOOKS for source in cells_of(path, "code"))
    for family in FAMILIES.values():
        assert family.door.rpartition(".")[2] in code


def test_every_pattern_is_in_a_notebook():
    code = "\n".join(source for path in NOTEBOOKS for source in cells_of(path, "code"))
    assert not [pattern for pattern in SMALL if not re.search(pattern, code)]
