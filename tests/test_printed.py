"""Every command that is printed is run as it is printed: those of documents, help, cards and "Next:" lines.

Only sizes are smaller (`tests/helpers/shell.py`); the folders that documents name, such as path/to/mnist, are made
here, and the Hub is one on this machine. `python -m tests.helpers.printed` lists the commands with their count.
"""

import contextlib
import importlib
import itertools
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from hfgen import cli
from hfgen.command_line.recipes import recipes
from hfgen.registry import FAMILIES
from hfgen.training import train_anomaly, train_diffusion, train_gan, train_vae
from tests.helpers import hub_server, printed
from tests.helpers.documents import PROGRAMS, blocks_of, commands_of
from tests.helpers.doors import check_pictures
from tests.helpers.printed import DOCUMENTS, NOT_RUN, commands_in, examples, reason
from tests.helpers.shell import ALWAYS, SIZES, output_of, run, shrunk, write_captions, write_images
from tests.helpers.toys import ROOT

TEN = tuple("0123456789")

QUICK = {"README.md", "anomaly.md", "attention.md", "denoising.md", "hub.md", "inputs.md", "training.md", "python.md"}
"""Documents whose commands run in every test; the others are slow."""

SLOW = (
    "hfgen compare",
    "hfgen explain",
    "hfgen train vae",
    "hfgen train vqgan",
    "hfgen train gan",
    "hfgen train latent",
    "hfgen train reflow",
    "hfgen train flow_map",
    "hfgen train diffusion --config cifar10",
    "hfgen train diffusion --config mnist",
)
"""First words of commands of quick documents that are slow."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(Image.Image, "show", lambda self: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the data and the models that documents take as given."""
    home = tmp_path_factory.mktemp("world")
    for name, side, channels in (("path/to/mnist", 8, 1), ("path/to/cifar10", 8, 3), ("ylecun/mnist", 8, 1)):
        for split in ("train", "test"):
            write_images(home / name / split, side, channels, 12, TEN)
    shutil.copytree(home / "path/to/cifar10", home / "uoft-cs/cifar10")
    write_images(home / "path/to/images", 8, 1, 30, ("cat", "tench (Tinca tinca)", "7"))
    write_images(home / "path/to/normal_images", 8, 1, 80)
    write_images(home / "path/to/new_images", 8, 1, 5)
    for name in ("path/to/captioned_images", "outputs/scenes/train"):
        write_images(home / name, 8, 1, 12)
        write_captions(home / name, ("a 3 left of a 7", "a 1 above a 2"))
    (home / "path/to/text.txt").write_text("the cat sat on the mat and the dog sat on the cat\n" * 20)
    (home / "path/to/prompts.txt").write_text("a 3 left of a 7\na 1 above a 2\n")
    few = "--max_train_steps 1 --train_batch_size 8 --report_to none"
    quick = "--model dit --model_size xs --class_conditional --num_inference_steps 2 --eval_batch_size 4"
    gan = "--model mlp --model_size xs --class_conditional --health_steps 0 --eval_batch_size 4"
    with inside(home):
        for door, name, words in (
            (train_diffusion, "quickstart", f"--dataset digits --max_train_samples 80 {quick}"),
            (train_diffusion, "mnist", f"--dataset path/to/mnist {quick}"),
            (train_diffusion, "cifar10", f"--dataset path/to/cifar10 {quick}"),
            (train_diffusion, "mine", f"--dataset path/to/images {quick}"),
            (train_gan, "mnist_gan", f"--dataset path/to/mnist {gan}"),
            (train_vae, "vae", "--dataset path/to/mnist --num_likelihood 4 --likelihood_samples 2 --model_size s"),
            (train_vae, "vq", "--dataset path/to/mnist --objective vq --model vq"),
            (train_anomaly, "anomaly", "--dataset path/to/normal_images --false_alarm_rate 0.1"),
        ):
            door.main([*few.split(), *words.split(), "--output_dir", f"outputs/{name}"])
    shutil.copytree(home / "outputs/quickstart", home / "outputs/straight")  # for commands after a slow reflow
    return home


@contextlib.contextmanager
def inside(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def place(world, tmp_path, monkeypatch):
    """The present folder, with a copy of that world, beside a Hub of its own."""
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    shutil.copytree(ROOT / "hfgen" / "compare", "outputs/compare", ignore=lambda *_: ["__pycache__"])
    Path("outputs/compare/mnist.json").rename("outputs/compare/report.json")
    with hub_server.Hub() as hub:
        hub_server.use(hub, monkeypatch, tmp_path / "home")
        yield tmp_path / "world"


def perform(listed, monkeypatch, name, alone=False):
    """Run commands in order, each with smaller sizes; print them and their count.

    What lies already in the folder of a training is removed, unless one of these commands made it. `alone`: each
    command is the first one.
    """
    made = set()
    for words in listed:
        folder = output_of(words)
        if folder is not None and (alone or folder not in made):
            shutil.rmtree(folder, ignore_errors=True)
            made.add(folder)
        small = shrunk(words)
        print(f"$ {shlex.join(small)}")
        try:
            run(small, monkeypatch)
        except BaseException as error:
            raise AssertionError(f"{name}: {shlex.join(words)}: {type(error).__name__}: {error}") from error
    print(f"{len(listed)} commands of {name}")


def is_slow(path, words):
    return path.name not in QUICK or shlex.join(words).startswith(SLOW)


def documents(slow):
    chosen = [path for path in DOCUMENTS if any(is_slow(path, words) is slow for words in commands_in(path))]
    return pytest.mark.parametrize("path", chosen, ids=lambda path: path.name)


@documents(slow=False)
def test_commands_of_documents_run(path, place, monkeypatch):
    perform([words for words in commands_in(path) if not is_slow(path, words)], monkeypatch, path.name)


@pytest.mark.slow
@documents(slow=True)
def test_slow_commands_of_documents_run(path, place, monkeypatch):
    perform(commands_in(path), monkeypatch, path.name)


def test_sizes_that_are_always_given_are_known():
    assert {name for names in ALWAYS.values() for name in names} <= SIZES.keys()


def test_the_list_of_commands_has_all_with_their_count(capsys):
    printed.main()
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if line.startswith("  ")]
    skipped = [line for line in listed if "    # not run: " in line]
    assert lines[-1] == f"{len(listed) - len(skipped)} of {len(listed)} commands are run"
    assert len(listed) - len(skipped) == sum(len(commands_in(path)) for path in DOCUMENTS) + len(examples_run()) > 100


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_two_trainings_of_a_document_have_two_folders(path):
    """The second one would be refused, as it does not fit the checkpoint of the first."""
    found = {}
    for words in commands_in(path):
        if output_of(words) is not None:
            options = sorted(shlex.join(words).split(" --"))
            assert found.setdefault(output_of(words), options) == options, f"{shlex.join(words)} has its folder"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_documents_have_no_placeholders(path):
    """Such as FOLDER or PIPELINE: whoever copies the line would have to know what to write there."""
    assert not [words for words in commands_in(path) if any(re.fullmatch("[A-Z_]{3,}", word) for word in words)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_of_a_shell_hold_commands_alone(path):
    """Python in one of them would be run by no test."""
    for block in blocks_of(path.read_text(encoding="utf-8")):
        if block.kind == "shell":
            assert {words[0] for words in commands_of(block)} <= set(PROGRAMS), f"{path.name}:{block.line}"


def test_no_exception_outlives_its_reason():
    listed = [
        shlex.join(words)
        for path in DOCUMENTS
        for block in blocks_of(path.read_text(encoding="utf-8"))
        if block.kind == "shell"
        for words in commands_of(block)
    ]
    for start in (*NOT_RUN, *SLOW):
        assert any(line.startswith(start) for line in listed) or start in str(
            [path.read_text(encoding="utf-8") for path in DOCUMENTS]
        ), start
    assert not any(re.search(r"(^|\s)\.\.\.(\s|$)", line) for line in listed)  # nothing is left out


# --- help -------------------------------------------------------------------------------------------------------------


HEAVY = (
    "energy",
    "classifier",
    "explain",
    "compare",
    "vqgan",
    "gan",
    "gmmn",
    "triple_gan",
    "vae",
    "latent",
    "evaluate",
)
HEAVY += ("stylegan", "reflow", "flow_map")


def examples_run():
    return [words for words in examples() if reason(words) is None]


def is_heavy(words):
    return words[1] in HEAVY or words[2] in HEAVY


def test_examples_of_help_run(place, monkeypatch):
    perform([words for words in examples_run() if not is_heavy([*words, ""])], monkeypatch, "help", alone=True)


@pytest.mark.slow
def test_slow_examples_of_help_run(place, monkeypatch):
    perform([words for words in examples_run() if is_heavy([*words, ""])], monkeypatch, "help", alone=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_recipes_run(name, place, monkeypatch):
    recipe = recipes()[name]
    words = [*shlex.split(recipe.command), "--output_dir", "outputs/recipe"]
    if name == "mnist_vae_conv":  # its network halves 28 x 28 pixels twice, and 8 x 8 too
        words += ["--latent_channels", "2"]
    perform([words], monkeypatch, name)


# --- "Next:" lines and cards ------------------------------------------------------------------------------------------


ODD = ("it's a cat", "owl, barn", "3")
TINY = {
    "ar": "--model_size xs --class_conditional --num_likelihood 4",
    "classifier": "",
    "diffusion": "--model dit --model_size xs --class_conditional --num_inference_steps 2",
    "distill": "--pipeline outputs/mine --features none --num_samples 8",
    "energy": "--model_size xs --class_conditional --num_inference_steps 2",
    "flow": "--model_size xs --class_conditional --num_likelihood 4",
    "flow_map": "--model dit --model_size xs --class_conditional --features none --num_samples 8",
    "mae": "--model_size xs --num_likelihood 4",
    "gan": "--model mlp --model_size xs --class_conditional --health_steps 0",
    "gmmn": "--model_size xs --health_steps 0",
    "triple_gan": "--model mlp --model_size xs --health_steps 0 --num_likelihood 4",
    "stylegan": "--model_size xs --class_conditional --health_steps 0",
    "vae": "--num_likelihood 4 --likelihood_samples 2",
    "vqgan": "--discriminator_size xs --num_likelihood 4 --perceptual 0",
    "latent": "--from_scratch --model_size xs --class_conditional --num_inference_steps 2 --perceptual 0 "
    "--adversarial_weight 0 --autoencoder_steps 1 --autoencoder_batch_size 8",
    "reflow": "--pipeline outputs/mine --num_pairs 16 --pair_steps 2 --pair_batch_size 8 --features none",
    "text_to_image": "--model uvit --model_size xs --num_inference_steps 2",
    "unidiffuser": "--model_size xs --num_inference_steps 2 --text_steps 2",
    "anomaly": "--false_alarm_rate 0.1",
    "word2vec": "--dimension 4",
}


def slowly(name, slow):
    """A parameter, marked as slow if it is among these."""
    return pytest.param(name, marks=[pytest.mark.slow] if name in slow else [])


def next_lines(out):
    return [line.strip() for line in out.split("\nNext:\n")[1].splitlines() if line.startswith("  ")]


@pytest.mark.parametrize(
    "family", [slowly(family, ("vqgan", "reflow", "distill", "flow_map", "latent")) for family in TINY]
)
def test_next_lines_and_the_card_of_a_family_run(family, place, monkeypatch, capsys):
    """With classes whose names hold quotes and commas, in a folder whose name does."""
    write_images(Path("my data/it's"), 8, 1, 30, ODD if family != "anomaly" else ())
    if family in ("text_to_image", "unidiffuser"):
        write_captions(Path("my data/it's"), ODD)
    folder = "out puts/it's"
    source = ["--dataset", "my data/it's"]
    if family == "word2vec":
        Path("my data/text.txt").write_text("a cat sat on a mat\n" * 5, encoding="utf-8")
        source = ["--text", "my data/text.txt"]
    words = ["hfgen", "train", family, *source, *TINY[family].split(), "--output_dir", folder]
    words += ["--train_batch_size", "8", "--max_train_steps", "1"]
    words += [] if family in ("anomaly", "classifier", "mae", "word2vec") else ["--eval_batch_size", "4"]
    run(words, monkeypatch)
    lines = next_lines(capsys.readouterr().out)
    check_pictures(Path(folder))
    assert len(lines) >= 2 and lines[-1].startswith("tensorboard --logdir 'out puts/it'")
    listed = [shlex.split(line) for line in lines]
    assert Path(listed[-1][2]).is_dir() and shutil.which("tensorboard", path=str(Path(sys.executable).parent))
    perform(listed[:-1], monkeypatch, f"Next of {family}")
    if family in ("ar", "diffusion", "energy", "flow", "gan"):
        assert "--class_labels" in lines[0]
    card = Path(folder, "README.md").read_text(encoding="utf-8")
    listed = [words for block in blocks_of(card) if block.kind == "shell" for words in commands_of(block)]
    for name in ("my data", "outputs"):  # config.yaml names them from where the run was started
        Path(folder, name).symlink_to(Path(name).resolve())
    monkeypatch.chdir(folder)
    assert listed
    perform([words for words in listed if reason(words) is None], monkeypatch, f"card of {family}")


def test_next_lines_of_evaluations_run(place, monkeypatch, capsys):
    """Of a pipeline with classes, as it was drawn, and of a folder of images; with names that need quotes."""
    shutil.copytree("outputs/mine", "a b's")
    shutil.copytree("path/to/images", "it's")
    words = ["--dataset", "it's", "--metrics", "frechet", "--features", "digits", "--num_samples", "70"]
    steps = ["--scheduler", "heun", "--num_inference_steps", "2", "--guidance_scale", "1.5"]
    for target, more, count in (("a b's", steps, 2), ("it's", [], 1)):
        run(["hfgen", "evaluate", target, *words, "--resolution", "8", "--bootstrap", "0", *more], monkeypatch)
        lines = [shlex.split(line) for line in next_lines("\n" + capsys.readouterr().out)]
        assert len(lines) == count
        if more:
            options = dict(itertools.pairwise(lines[0]))
            assert options["--class_labels"] == "2" and options["--scheduler"] == "heun"
        perform(lines, monkeypatch, f"Next of hfgen evaluate {target}")
    run(["hfgen", "evaluate", "outputs/vae", "--metrics", "reconstruction", "--num_likelihood", "4"], monkeypatch)
    (line,) = next_lines("\n" + capsys.readouterr().out)  # nothing was drawn
    perform([shlex.split(line)], monkeypatch, "Next of hfgen evaluate outputs/vae")


@pytest.mark.parametrize("family", [slowly(family, ("vae", "gan")) for family in ("diffusion", "vae", "gan")])
def test_next_lines_of_unclassed_images_run(family, place, monkeypatch, capsys):
    options = [word for word in TINY[family].split() if word != "--class_conditional"]
    few = ["--train_batch_size", "8", "--max_train_steps", "1", "--eval_batch_size", "4", "--report_to", "none"]
    run(["hfgen", "train", family, "--dataset", "path/to/normal_images", *options, *few], monkeypatch)
    lines = next_lines(capsys.readouterr().out)
    assert "--class_labels" not in " ".join(lines)
    perform([shlex.split(line) for line in lines], monkeypatch, f"Next of {family}")


def test_what_commands_print_of_commands_runs(place, monkeypatch, capsys):
    """A refusal that shows the command to give instead, with a folder whose name needs quotes."""
    shutil.copytree("outputs/vae", "a b's")
    with pytest.raises(SystemExit):
        cli.main(["anomaly", "score", "a b's", "path/to/new_images"])
    (line,) = re.findall(r"hfgen anomaly fit .*", capsys.readouterr().err)
    words = [word for word in shlex.split(line) if not word.startswith("...")]
    assert words[:5] == ["hfgen", "anomaly", "fit", "--pipeline", "a b's"]


def test_every_family_is_here():
    assert set(TINY) == set(FAMILIES)
    assert all(importlib.import_module(FAMILIES[family].door) for family in TINY)
