"""The documents are true: their code runs, their commands parse, and what they name is there.

docs/python.md runs as a notebook does, block after block. The blocks of the other documents run against small models
that are trained here first.
"""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import hfgen
from hfgen.paths import StraightPath
from hfgen.training import (
    train_anomaly,
    train_ar,
    train_classifier,
    train_diffusion,
    train_energy,
    train_flow,
    train_flow_map,
    train_gan,
    train_latent,
    train_mae,
    train_stylegan,
    train_text_to_image,
    train_triple_gan,
    train_unidiffuser,
    train_vae,
    train_word2vec,
)
from tests.helpers import hub_server
from tests.helpers.commands import assert_parses
from tests.helpers.documents import anchors_of, blocks_of, commands_of, inline_commands, links_of, paths_of
from tests.helpers.shell import write_captions, write_images
from tests.helpers.toys import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
EXECUTED = [path for path in DOCUMENTS if path.name != "python.md"]

NOT_RUN = {
    ("docs/hub.md", "from diffusers import DiffusionPipeline"): "runs code of a repository: test_portable does, alone",
}
"""Blocks of code that are not executed, by document and first line, and why."""

SETUP = {
    "README.md": "import diffusers",
    "docs/adversarial.md": """
images = torch.rand(2, 1, 8, 8) * 2 - 1
a, b = images.split(1)
from hfgen import HFGenPipeline
""",
    "docs/anomaly.md": """
images, normal_images = torch.rand(3, 1, 8, 8) * 2 - 1, torch.rand(30, 1, 8, 8) * 2 - 1
""",
    "docs/attention.md": """
network = hfgen.DiTModel(28, 1, 1, patch_size=2, hidden_size=8, num_layers=1, num_attention_heads=1)
x, t = torch.zeros(1, 1, 28, 28), torch.zeros(1)
""",
    "docs/denoising.md": """
network = hfgen.DiTModel(4, 1, 1, 1, hidden_size=8, num_layers=1, num_attention_heads=1, num_class_embeds=11)
pipeline = hfgen.DenoisingPipeline(network, hfgen.DDPMScheduler(), 10)
images, labels, x = torch.ones(1, 1, 4, 4), [3], torch.zeros(1, 1, 4, 4)
""",
    "docs/few_steps.md": """
network = hfgen.build_denoiser("dit", "xs", 8, 1, 10, two_times=True)
x, timestep, labels, r = torch.zeros(2, 1, 8, 8), 500, torch.tensor([1, 2]), 0
""",
    "docs/guidance.md": 'pipeline = hfgen.HFGenPipeline.from_pretrained("outputs/quickstart")',
    "docs/inputs.md": """
from hfgen.models.autoencoder_with_prior import latent_shape
network = hfgen.build_autoencoder("mlp", "s", 28, 1, 1)
pipeline = hfgen.VAEPipeline(network, hfgen.GaussianMixturePriorModel(latent_shape=latent_shape(network)))
""",
    "docs/metrics.md": "real_batches, fake_batches = ([torch.rand(1000, 1, 28, 28) * 2 - 1] for _ in range(2))",
    "docs/variances.md": """
network = hfgen.DiTModel(4, 1, 1, 1, hidden_size=8, num_layers=1, num_attention_heads=1, num_class_embeds=11)
pipeline = hfgen.DenoisingPipeline(network, hfgen.DDPMScheduler(), 10)
images, labels = torch.ones(2, 1, 4, 4), [3, 5]
""",
    "docs/schedulers.md": 'pipeline = hfgen.HFGenPipeline.from_pretrained("outputs/quickstart")',
}
"""What the code of a document takes as given."""


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No windows, no progress bars, and the arguments of a notebook's process."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher", "-f", "x.json"])
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(Image.Image, "show", lambda self: None)


# --- docs/python.md ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def notebook():
    return list(blocks_of((ROOT / "docs" / "python.md").read_text(encoding="utf-8")))


def run_block(block, names, document):
    """Execute a block in a namespace. Errors point to the line of the document."""
    tree = ast.increment_lineno(ast.parse(block.text), block.line - 1)
    exec(compile(tree, document, "exec"), names)


def test_the_page_about_python_runs_as_a_notebook(notebook, tmp_path, monkeypatch):
    """One namespace, block after block, in an empty folder; the Hub is one on this machine."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    torch.manual_seed(0)
    with hub_server.Hub() as hub:
        hub_server.use(hub, monkeypatch, tmp_path / "home")
        for block in notebook:
            run_block(block, names, "docs/python.md")
        assert set(hub.repos) == {"someone/circle"}
    assert (names["samples"].norm(dim=1) - 1).abs().mean() < 0.15  # the first model has learnt the circle
    assert (names["upper"][:, 1] > 0).float().mean() > 0.9
    assert (names["lower"][:, 1] < 0).float().mean() > 0.9
    assert list(names["distances"]) == [100, 200] and names["result"].finished
    assert sorted(path.name for path in Path("outputs").iterdir()) == [
        *("circle", "consistent", "dataset", "digits", "halves", "measured", "own")
    ]
    cards = [path.read_text() for path in Path("outputs").glob("*/README.md")]
    assert len(cards) == 7 and not any("ipykernel" in card or "hfgen train " in card for card in cards)


def test_the_page_about_python_has_short_blocks_that_are_all_python(notebook):
    assert {block.kind for block in notebook} == {"python"} and {block.language for block in notebook} == {"python"}
    for block in notebook:
        assert len([line for line in block.text.splitlines() if line.strip()]) <= 15, block


def test_the_page_about_python_lists_the_files_of_a_run(tmp_path, monkeypatch):
    """The table of files, against a folder."""
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = text.split("| file | what it is |")[1].split("\n\n")[0]
    listed = {name.strip("/") for name in re.findall(r"`([\w./-]+)`", "".join(re.findall(r"^\|(.*?)\|", table, re.M)))}
    network = hfgen.TorchModel(torch.nn.Bilinear(2, 1, 2), (2,))
    network.forward = lambda x, timestep: network.module(x, timestep[:, None])
    hfgen.train(
        network,
        hfgen.Denoising(StraightPath()),
        torch.randn(64, 2),
        tmp_path / "run",
        lambda networks: hfgen.DenoisingPipeline(networks["denoiser"], hfgen.RectifiedFlowScheduler()),
        **{"max_train_steps": 2, "sample_steps": 1, "logging_steps": 1, "train_batch_size": 8, "report_to": "none"},
    )
    found = {re.sub(r"-\d+", "-N", path.name) for path in (tmp_path / "run").iterdir()}
    assert listed == {name for name in found if not name.endswith(".py")}


# --- the other documents ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder in which the models are that the documents load, each trained for two steps."""
    folder = tmp_path_factory.mktemp("documents")
    few = "--dataset digits --max_train_samples 200 --max_train_steps 2 --train_batch_size 16 --report_to none"
    quick = "--model dit --model_size xs --class_conditional --num_inference_steps 2 --eval_batch_size 4"
    scratch = "--from_scratch --perceptual 0 --adversarial_weight 0 --autoencoder_steps 2 --autoencoder_batch_size 16"
    flow = "--model_size xs --eval_batch_size 4 --num_likelihood 4"
    gan = "--model mlp --model_size xs --class_conditional --health_steps 0 --eval_batch_size 4"
    few_labels = gan.replace("--class_conditional ", "")
    flow_map = f"--pipeline {folder / 'outputs' / 'quickstart'} --features none --num_samples 8 --eval_batch_size 4"
    adapter = f"--init_from {folder / 'outputs' / 'quickstart'} --lora_rank 2 --label_column none --eval_batch_size 4"
    for door, name, options in (
        (train_diffusion, "quickstart", quick),
        (train_flow_map, "few", flow_map),
        (train_diffusion, "cat", f"{adapter} --new_class cat"),
        (train_diffusion, "dog", f"{adapter} --new_class dog"),
        (train_latent, "latent", f"{quick} {scratch}"),
        (train_gan, "mnist_gan", gan),
        (train_stylegan, "stylegan_digits", "--model_size xs --health_steps 0 --eval_batch_size 4"),
        (train_triple_gan, "triple_gan_digits", f"{few_labels} --num_labels 20 --num_likelihood 4"),
        (train_energy, "energy_digits", quick),
        (train_flow, "flow_digits", flow),
        (train_ar, "ar_digits", f"{flow} --class_conditional"),
        (train_vae, "vq", "--objective vq --model vq --likelihood gaussian --num_likelihood 4"),
        (train_ar, "vq_prior", f"{flow} --class_conditional --pipeline {folder / 'outputs' / 'vq'}"),
        (train_anomaly, "anomaly", "--false_alarm_rate 0.1"),
        (train_classifier, "classifier", "--path straight"),
        (train_mae, "mae_digits", "--model_size xs --num_likelihood 4"),
    ):
        door.main([*few.split(), *options.split(), "--output_dir", str(folder / "outputs" / name)])
    text = folder / "text.txt"
    text.write_text("the cat and the cats\nthe dog and the dogs\n" * 5, encoding="utf-8")
    few = "--dimension 4 --max_train_steps 2 --train_batch_size 16 --report_to none"
    words = ["--text", str(text), *few.split(), "--output_dir", str(folder / "outputs" / "word2vec")]
    train_word2vec.main(words)
    write_images(folder / "captioned", 8, 1, 8)
    write_captions(folder / "captioned", ("a 3 left of a 7", "a 1 above a 2"))
    few = "--model uvit --model_size xs --max_train_steps 2 --train_batch_size 8 --eval_batch_size 4 --report_to none"
    words = ["--dataset", str(folder / "captioned"), *few.split(), "--num_inference_steps", "2"]
    train_text_to_image.main([*words, "--output_dir", str(folder / "outputs" / "text_to_image")])
    words = ["--dataset", str(folder / "captioned"), *few.split()[2:], "--text_steps", "2"]
    words += ["--num_inference_steps", "2"]
    train_unidiffuser.main([*words, "--output_dir", str(folder / "outputs" / "unidiffuser")])
    return folder


def python_blocks(path):
    return [block for block in blocks_of(path.read_text(encoding="utf-8")) if block.kind == "python"]


@pytest.mark.parametrize("path", [path for path in EXECUTED if python_blocks(path)], ids=name_of)
def test_code_in_documents_runs(path, outputs, tmp_path, monkeypatch):
    """In one namespace for each document, which begins with what the document takes as given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").symlink_to(outputs / "outputs")
    names, document = {"__name__": "__main__", "torch": torch, "hfgen": hfgen}, name_of(path)
    with hub_server.Hub() as hub:
        hub_server.use(hub, monkeypatch, tmp_path / "home")
        hfgen.HFGenPipeline.from_pretrained("outputs/quickstart").push_to_hub("someone/digits")
        exec(SETUP.get(document, ""), names)
        for block in python_blocks(path):
            if not any(document == name and block.text.startswith(start) for name, start in NOT_RUN):
                run_block(block, names, document)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_in_documents_parse(path, monkeypatch):
    """Each is accepted by the parser of its program, in the root of the repository. Of benchmarks the file is there."""
    monkeypatch.chdir(ROOT)
    text = path.read_text(encoding="utf-8")
    commands = [words for block in blocks_of(text) if block.kind == "shell" for words in commands_of(block)]
    for words in [*commands, *inline_commands(text)]:
        if words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert words[1] in targets, words
        elif words[0] in ("hfgen", "accelerate", "torchrun") or words[:2] == ["python", "-m"]:
            assert_parses(words)
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_and_paths_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for link in links_of(text):
        file, _, anchor = link.partition("#")
        if "://" not in link:
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link
    for name in paths_of(text):  # <name> stands for any name, of files that there are or will be
        folder, _, pattern = re.sub(r"<\w+>", "*", name.rstrip("/")).rpartition("/")
        assert list(ROOT.glob(f"{folder}/{pattern}")) or ("<" in name and list(ROOT.glob(folder))), name


def test_what_is_not_run_is_there():
    """No exception outlives its reason."""
    for document, start in NOT_RUN:
        blocks = blocks_of((ROOT / document).read_text(encoding="utf-8"))
        assert any(block.text.startswith(start) for block in blocks), (document, start)
    assert set(SETUP) <= {name_of(path) for path in EXECUTED}


@pytest.mark.parametrize(
    ("block", "commands"),
    [
        ("hfgen push a b # one\n", [["hfgen", "push", "a", "b"]]),
        ("hfgen data x \\\n    --seed 1\n\nhfgen info\n", [["hfgen", "data", "x", "--seed", "1"], ["hfgen", "info"]]),
        (
            "hfgen info --a 1\n... --b 2   # it's more\n",
            [["hfgen", "info", "--a", "1"], ["hfgen", "info", "--a", "1", "--b", "2"]],
        ),
        ("hfgen train vae ... --beta 4\n", [["hfgen", "train", "vae", "--beta", "4"]]),
    ],
)
def test_commands_are_read_as_a_shell_reads_them(block, commands):
    (read,) = blocks_of(f"Text\n\n    {block.strip().replace(chr(10), chr(10) + '    ')}\n")
    assert read.kind == "shell" and list(commands_of(read)) == commands


@pytest.mark.parametrize(
    "command",
    [
        "hfgen train diffusion --learning_rat 1",
        "hfgen train vae --objective elbo --num_importance_samples 7",
        "hfgen sample",
        "hfgen evaluate outputs/mine --metric frechet",
        "accelerate launch training/train_gan.py --config no/such.yaml",
        "hfgen smaple outputs/mine",
    ],
)
def test_a_command_that_would_be_refused_is_noticed(command):
    with pytest.raises((AssertionError, ValueError)):
        assert_parses(command.split())
