"""The front door of word2vec: words with the same company are near each other; runs that go on; refusals."""

import random
import shutil

import pytest

import hfgen
from hfgen.commands import attention, evaluate, sample
from hfgen.saving.hub import shareable_config
from hfgen.training import train_word2vec
from tests.helpers.doors import check_refusal, run_door

GROUPS = {"animal": ["cat", "dog", "cow", "horse"], "food": ["bread", "milk", "rice", "soup"]}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    choice = random.Random(0)
    lines = [" ".join([*choice.choices(GROUPS[choice.choice(list(GROUPS))], k=6), "the"]) for _ in range(500)]
    file = tmp_path_factory.mktemp("text") / "a text.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def train(capsys, text, folder, *words):
    few = ["--train_batch_size", 512, "--report_to", "none", "--checkpointing_steps", 5, "--output_dir", folder]
    status, _, errors = run_door(train_word2vec.main, capsys, "--text", text, "--dimension", 8, *few, *words)
    assert status == 0, errors


@pytest.mark.parametrize("method", ["skip_gram", "cbow"])
def test_words_with_the_same_company_are_near_each_other(text, tmp_path, capsys, method):
    steps = ["--max_train_steps", 120, "--learning_rate", "0.02", "--lr_warmup_steps", 10]
    train(capsys, text, tmp_path / "run", "--method", method, *steps)
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "run")
    for group in GROUPS.values():
        for word in group:
            assert {near for near, _ in pipeline.most_similar(word, count=3)} == set(group) - {word}
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "near 'the'" in card
    assert (tmp_path / "run" / "vectors" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(text, tmp_path, capsys):
    moved = tmp_path / "moved.txt"
    shutil.copy(text, moved)
    for folder, steps, file in (("a", 5, text), ("a", 10, moved), ("b", 10, text)):
        train(capsys, file, tmp_path / folder, "--max_train_steps", steps, "--lr_scheduler", "constant_with_warmup")
    name = "vectors/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "Give the text file to train on: --text"),
        (["--text", "no.txt"], "no.txt can't be read: No such file or directory. Give another --text"),
    ],
)
def test_a_run_without_text_is_refused(words, named, capsys, monkeypatch, tmp_path):
    check_refusal(train_word2vec.main, capsys, monkeypatch, tmp_path / "x", words, named)


@pytest.mark.parametrize(
    ("command", "options"),
    [(sample, ["--grid", "x.png"]), (evaluate, []), (evaluate, ["--dataset", "digits"]), (attention, [])],
)
def test_word_vectors_are_no_samples(tmp_path, command, options):
    hfgen.WordVectorsPipeline(hfgen.WordVectorsModel(2, 4), ["a", "b"]).save_pretrained(tmp_path / "vectors")
    with pytest.raises(ValueError, match="WordVectorsPipeline draws no samples"):
        command.main([str(tmp_path / "vectors"), *options])


def test_a_card_of_word_vectors_speaks_of_no_samples(text, tmp_path, capsys):
    train(capsys, text, tmp_path / "x", "--max_train_steps", 1)
    card = (tmp_path / "x" / "README.md").read_text(encoding="utf-8")
    assert "samples" not in card and "# Word vectors on a text.txt\n" in card
    assert str(text.parent) not in card  # nor of folders of this machine
    config = shareable_config((tmp_path / "x" / "config.yaml").read_text(encoding="utf-8"))
    assert "text: a text.txt\n" in config and str(text.parent) not in config
    assert "text: b.txt\n" in shareable_config("text: a/b.txt\n")  # of another folder than this
