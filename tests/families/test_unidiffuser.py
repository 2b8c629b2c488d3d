"""The front door of models with two clocks: texts that come back, runs that go on, `hfgen sample`; refusals."""

import pytest
import torch
from PIL import Image

import hfgen
from hfgen.commands import sample
from hfgen.families.unidiffuser.options import LatentTextArgs
from hfgen.families.unidiffuser.texts import latent_texts
from hfgen.training import train_unidiffuser
from tests.helpers.captions import write_captioned
from tests.helpers.doors import check_refusal, run_door

TEXTS = ["a dark cat", "a bright dog", "a grey cat", "a Grey dog"]
FEW = [
    *("--model_size", "xs", "--train_batch_size", 4, "--lr_warmup_steps", 1, "--eval_batch_size", 6),
    *("--num_inference_steps", 2, "--report_to", "none", "--sample_steps", 0, "--lr_scheduler", "constant_with_warmup"),
    *("--text_steps", 60, "--vocab_size", 300),
]
TRANSFORMER = ("--model", "uvit", "--patch_size", 4)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of twelve images with captions in lines of JSON."""
    return write_captioned(tmp_path_factory.mktemp("two_clocks"), TEXTS)


def train(capsys, images, folder, *words):
    words = "--dataset", images, "--output_dir", folder, *FEW, *words
    status, out, errors = run_door(train_unidiffuser.main, capsys, *words)
    assert status == 0, errors
    return out


@pytest.mark.parametrize("model", [(), TRANSFORMER], ids=["unet", "transformer"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(images, tmp_path, capsys, model):
    """And leaves a pipeline with five modes, pictures of them, and a card."""
    for folder, steps in (("a", 1), ("a", 2), ("b", 2)):
        out = train(capsys, images, tmp_path / folder, *model, "--max_train_steps", steps)
    assert "of 4 captions come back exactly" in out
    for part in ("denoiser", "text_autoencoder"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    for file in ("samples.png", "modes.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "a")
    assert type(pipeline) is hfgen.UniDiffuserPipeline
    assert pipeline.decode_text(pipeline.encode_text(TEXTS)) == [text.lower() for text in TEXTS]
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert "hfgen train unidiffuser" in card and "a dark cat" in card and "modes.png" in card
    grid = tmp_path / "grid.png"
    options = ["--num_samples", "2", "--num_inference_steps", "2", "--device", "cpu", "--grid", str(grid)]
    for words in ([], ["--prompt", "a grey dog", "--guidance_scale", "2"]):
        sample.main([str(tmp_path / "a"), *options, *words])
        assert Image.open(grid).size[0] > 8


def test_the_texts_are_learnt_once(tmp_path, monkeypatch):
    args = LatentTextArgs(text_steps=60, vocab_size=300)
    torch.manual_seed(7)
    first = latent_texts(TEXTS, args, tmp_path, 0)
    after = torch.rand(1)
    assert first.exact == 1 and first.latents.shape == (4, 4, 16)
    monkeypatch.setattr("hfgen.families.unidiffuser.texts._learn", None)
    torch.manual_seed(7)
    again = latent_texts(TEXTS, args, tmp_path, 0)
    assert torch.equal(again.latents, first.latents) and torch.equal(torch.rand(1), after)
    for texts, options, seed in ((TEXTS[:3], args, 0), (TEXTS, LatentTextArgs(text_steps=61, vocab_size=300), 0)):
        with pytest.raises(TypeError):  # others are learnt anew
            latent_texts(texts, options, tmp_path, seed)
    with pytest.raises(TypeError):
        latent_texts(TEXTS, args, tmp_path, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label_dropout", 0.1], "--label_dropout"),
        (["--vocab_size", 100], "--vocab_size 100 is less than 259"),
        (["--latent_channels", 1], "--latent_channels"),
        (["--patch_size", 4], "--patch_size 4 does nothing with --model patch_unet"),
        (["--resolution", 9, *TRANSFORMER], "are not tiled by patch_size=4"),
        (["--prediction_type", "score"], "prediction_type='score'"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, message, capsys, monkeypatch, tmp_path):
    check_refusal(train_unidiffuser.main, capsys, monkeypatch, tmp_path / "x", words, message)
