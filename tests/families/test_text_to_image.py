"""The front door of text to image: both kinds of encoders, runs that go on, states that are kept, `hfgen sample`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import hfgen
from hfgen.commands import sample
from hfgen.families.text_to_image.encoder import learn_tokenizer, load_text_model, new_encoder
from hfgen.families.text_to_image.states import caption_states
from hfgen.models.text_tokens import states_of, tokens_of
from hfgen.training import train_text_to_image
from tests.helpers.captions import write_captioned
from tests.helpers.doors import check_refusal, run_door
from tests.helpers.text import text_encoders, tokenizer

TEXTS = ["a dark cat", "a bright dog", "a grey cat", "a Grey dog"]
FEW = [
    *("--model_size", "xs", "--train_batch_size", 4, "--lr_warmup_steps", 1, "--eval_batch_size", 6),
    *("--num_inference_steps", 2, "--report_to", "none", "--sample_steps", 0, "--lr_scheduler", "constant_with_warmup"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of twelve images with captions in lines of JSON."""
    folder = tmp_path_factory.mktemp("text") / "it's data"
    folder.mkdir()
    return write_captioned(folder, TEXTS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a tiny text model, as transformers saves one."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    text_encoders()["CLIPTextModel"].save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def train(capsys, images, folder, *words):
    words = "--dataset", images, "--output_dir", folder, *FEW, *words
    status, _, errors = run_door(train_text_to_image.main, capsys, *words)
    assert status == 0, errors
    return errors


@pytest.fixture(scope="module")
def trained(images, clip, tmp_path_factory):
    """Folders of a finished run of either kind of encoder."""
    home = tmp_path_factory.mktemp("runs")
    (home / "prompts.txt").write_text("a dark dog\n\na cat\n", encoding="utf-8")
    kinds = {"own": ("--model", "uvit"), "frozen": ("--text_encoder", clip, "--prompts", home / "prompts.txt")}
    for kind, words in kinds.items():
        words = ["--dataset", images, "--output_dir", home / kind, *FEW, "--max_train_steps", 2, *words]
        train_text_to_image.main(list(map(str, words)))
    return home


@pytest.mark.parametrize("kind", ["own", "frozen"])
def test_a_run_leaves_a_pipeline_that_draws_from_texts(trained, kind):
    pipeline = hfgen.HFGenPipeline.from_pretrained(trained / kind)
    assert type(pipeline) is hfgen.TextToImagePipeline
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(["a cat", "a dog"], num_images_per_prompt=2, num_inference_steps=2).images) == 4
    card = (trained / kind / "README.md").read_text(encoding="utf-8")
    shown = "a dark dog; a cat" if kind == "frozen" else "; ".join(TEXTS)
    assert shown in card and "text-to-image" in card and "hfgen train text_to_image" in card


def test_the_frozen_encoder_is_the_one_that_was_given(trained, clip):
    kept = hfgen.HFGenPipeline.from_pretrained(trained / "frozen").text_encoder.state_dict()
    for name, value in load_text_model(str(clip))[1].state_dict().items():
        assert torch.equal(kept[name], value)


@pytest.mark.parametrize("kind", ["own", "frozen"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(images, clip, tmp_path, capsys, kind):
    words = ["--text_encoder", clip] if kind == "frozen" else ["--model", "uvit"]
    encoders = []
    for folder, steps in (("a", 1), ("a", 2), ("b", 2)):
        train(capsys, images, tmp_path / folder, *words, "--max_train_steps", steps)
        encoders.append((tmp_path / folder / "text_encoder/model.safetensors").read_bytes())
    assert (encoders[0] == encoders[1]) is (kind == "frozen")  # the own one learns
    for part in ("denoiser/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()
    for file in ("tokenizer/tokenizer.json", "samples.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_other_captions_do_not_go_on(images, trained, tmp_path, capsys):
    shutil.copytree(trained / "own", tmp_path / "run")
    changed = Path(shutil.copytree(images, tmp_path / "data"))
    text = (changed / "captions.jsonl").read_text(encoding="utf-8").replace("bright", "black")
    (changed / "captions.jsonl").write_text(text, encoding="utf-8")
    words = ["--dataset", changed, "--output_dir", tmp_path / "run", *FEW, "--model", "uvit", "--max_train_steps", 4]
    status, _, errors = run_door(train_text_to_image.main, capsys, *words)
    assert status != 0 and "fingerprint" in errors


# --- the states of captions -------------------------------------------------------------------------------------------


class Counting:
    """Counts the captions that an encoder reads."""

    def __init__(self, encoder):
        self.encoder, self.read, self.device, self.state_dict = encoder, 0, encoder.device, encoder.state_dict

    def __call__(self, **tokens):
        self.read += len(tokens["input_ids"])
        return self.encoder(**tokens)


def test_states_are_computed_once_and_again_for_other_weights_or_captions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hfgen.families.text_to_image.states.CHUNK", 2)
    encoder = Counting(text_encoders()["CLIPTextModel"])
    tokens = tokens_of(tokenizer(), ["a cat", "dog", "b", "", "c"], 6)
    expected = states_of(encoder.encoder, tokens)

    def read(tokens, encoder=encoder, **options):
        before = encoder.read
        found = caption_states(encoder, tokens, tmp_path / "states", **options)
        return encoder.read - before, found

    count, found = read(tokens, main=False)
    assert count == 5 and not (tmp_path / "states").exists()
    count, found = read(tokens)
    assert count == 5
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    count, again = read(tokens)
    assert count == 0 and all(torch.equal(value, found[name]) for name, value in again.items())
    other = tokens_of(tokenizer(), ["a cat", "dog", "b", "x", "c"], 6)
    assert read(other)[0] == 2
    files = sorted((tmp_path / "states").glob("*.safetensors"))
    lost = sum(len(load_file(file)["encoder_attention_mask"]) for file in files[:2])
    files[0].unlink()  # as a run leaves them that was stopped
    files[1].write_bytes(files[1].read_bytes()[:-9])  # as a full disk leaves them
    assert len(files) == 4 and read(tokens)[0] + read(other)[0] == lost
    assert "can't be read" in capsys.readouterr().err
    assert read(tokens)[0] == read(other)[0] == 0
    moved = Counting(text_encoders()["CLIPTextModel"])
    next(moved.encoder.parameters()).data[0, 0] += 1
    assert read(tokens, moved)[0] == 5


def test_a_run_reads_the_states_of_an_earlier_one(images, clip, tmp_path, capsys, monkeypatch):
    words = ["--text_encoder", clip, "--states_dir", tmp_path / "states", "--max_train_steps", 1]
    train(capsys, images, tmp_path / "a", *words)
    assert len(list((tmp_path / "states").iterdir())) == 1
    monkeypatch.setattr(
        "hfgen.families.text_to_image.states.states_of", lambda *_: pytest.fail("states were computed again")
    )
    train(capsys, images, tmp_path / "b", *words)


# --- the vocabulary ---------------------------------------------------------------------------------------------------


def test_a_learnt_vocabulary_has_tokens_for_every_text():
    tokens = learn_tokenizer([*TEXTS, "naïve"] * 3, 300)
    assert len(tokens) <= 300 and tokens.convert_tokens_to_ids(["<|startoftext|>", "<|endoftext|>", "<|pad|>"]) == [
        *range(3)
    ]
    assert tokens("A GREY cat")["input_ids"] == tokens("a grey cat")["input_ids"]
    assert tokens("nai\u0308ve")["input_ids"] == tokens("naïve")["input_ids"]
    for text in ("a dark cat", "猫 and 🐕", "tab\there"):
        assert tokens.decode(tokens(text)["input_ids"], skip_special_tokens=True).strip() == text
    assert len(tokens("a grey cat")["input_ids"]) < len(tokens("x q z v")["input_ids"]) + 4
    again = learn_tokenizer([*TEXTS, "naïve"] * 3, 300)
    assert again.backend_tokenizer.to_str() == tokens.backend_tokenizer.to_str()
    encoder = new_encoder(tokens, "xs", 9)
    assert encoder.config.hidden_size == 128 and encoder.config.vocab_size == len(tokens)


@pytest.mark.parametrize("name", ["T5EncoderModel", "SiglipTextModel", "BertModel"])
def test_text_models_of_transformers_are_found_by_their_kind(tmp_path, name):
    text_encoders()[name].save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    tokens, encoder = load_text_model(str(tmp_path))
    assert type(encoder).__name__ == name and not any(p.requires_grad for p in encoder.parameters())
    assert tokens.pad_token is not None


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_of_prompts_have_a_row_each(trained, tmp_path, capsys):
    common = [str(trained / "own"), "--num_inference_steps", "2", "--num_samples", "4"]
    sample.main([*common, "--prompts", str(trained / "prompts.txt"), "--output_dir", str(tmp_path / "both")])
    for row, prompt in enumerate(["a dark dog", "a cat"]):
        words = ["--prompt", prompt, "--seed", str(2 * row), "--output_dir", str(tmp_path / str(row))]
        sample.main([*common[:-1], "2", *words, "--batch_size", "1"])
        for number in range(2):
            both = np.asarray(Image.open(tmp_path / "both" / f"{2 * row + number:06d}.png"), int)
            alone = np.asarray(Image.open(tmp_path / str(row) / f"{number:06d}.png"), int)
            assert abs(both - alone).max() <= 1
    grid = tmp_path / "grid.png"
    sample.main(
        [*common, "--prompt", "a cat", "--negative_prompt", "dog", "--guidance_scale", "3", "--grid", str(grid)]
    )
    assert grid.is_file()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--class_labels", "1"], "Samples show a class or a prompt"),
        (["--prompt", "a", "--prompts", "b"], "Give --prompt or --prompts, not both"),
        (["--prompts", "gone.txt"], "gone.txt can't be read"),
        (["--class_labels", "1"], "trained without classes"),
        (["--prompt", "a", "--call.prompt", "b"], "--call.prompt and --prompt are one argument"),
        (["--negative_prompt", "a", "--prompt", "b"], "negative_prompt does nothing at guidance_scale=1"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(trained, words, message):
    with pytest.raises(ValueError, match=message):
        sample.main([str(trained / "own"), *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label_dropout", 0], "guidance_scale=2.0 needs images trained on without their caption"),
        (["--class_conditional"], "--class_conditional"),
        (["--vocab_size", 400, "--text_encoder", "x"], "--vocab_size 400 does nothing with --text_encoder x"),
        (["--vocab_size", 258], "--vocab_size 258 is less than 259"),
        (["--states_dir", "x"], "--states_dir x"),
        (["--prompts", "no.txt"], "--prompts no.txt can't be read: No such file or directory"),
        (["--streaming"], "--streaming"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, monkeypatch, words, message):
    check_refusal(train_text_to_image.main, capsys, monkeypatch, tmp_path / "run", words, message)


def test_images_without_captions_and_encoders_that_are_none_are_refused(tmp_path, capsys, images, clip):
    words = ["--output_dir", tmp_path / "run", *FEW, "--max_train_steps", 1]
    status, _, errors = run_door(train_text_to_image.main, capsys, "--dataset", "digits", *words)
    assert status == 2 and "'digits' has no captions" in errors and errors.count("\n") == 1
    for name, message in ((tmp_path, "can't be used"), (clip, "--max_length 9 is more than the 6 tokens")):
        more = ["--text_encoder", name, "--max_length", 9]
        status, _, errors = run_door(train_text_to_image.main, capsys, "--dataset", images, *words, *more)
        assert status == 2 and message in errors, errors
