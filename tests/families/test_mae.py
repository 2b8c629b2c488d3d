"""The front door of masked autoencoders: what it learns and measures, runs that go on, refusals."""

import json

import pytest
import torch

import hfgen
from hfgen.commands import evaluate
from hfgen.options import DataArgs
from hfgen.training import train_mae
from tests.helpers.doors import check_refusal, run_door

FEW = [
    *("--model_size", "xs", "--train_batch_size", 32, "--report_to", "none", "--lr_warmup_steps", 2),
    *("--mixed_precision", "no"),
]
DATA = ["--dataset_split", "train[:400]", "--held_out_split", "train[400:500]"]


def train(capsys, folder, *words):
    status, out, errors = run_door(train_mae.main, capsys, *FEW, *DATA, "--output_dir", folder, *words)
    assert status == 0, errors
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae") / "run"
    words = ["--max_train_steps", 40, "--learning_rate", "0.002", "--output_dir", folder, "--sample_steps", 20]
    train_mae.main(list(map(str, [*FEW, *DATA, *words])))
    return folder


def test_it_learns_and_is_measured(trained):
    entries = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))["evaluation"]
    found = {entry["metric"]: entry for entry in entries}
    assert set(found) == {"squared error of hidden pixels", "accuracy of a linear probe"}
    pipeline, data = hfgen.HFGenPipeline.from_pretrained(trained), hfgen.load_images(DataArgs())
    held_out = data.images[400:500].float() / 127.5 - 1
    mask, made = pipeline.mask(100), pipeline.reconstruct(held_out)
    error = (made - held_out).square()[mask].mean()
    assert found["squared error of hidden pixels"]["value"] == pytest.approx(float(error), rel=0.05)  # of other masks
    assert float(error) < 0.7 * float(held_out.square()[mask].mean())  # that of grey
    assert found["accuracy of a linear probe"]["value"] > 0.3  # of ten classes
    assert found["accuracy of a linear probe"]["protocol"]["training images of the probe"] == 400
    assert (trained / "reconstructions.png").is_file() and (trained / "timelapse.gif").is_file()
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "# Masked autoencoder on digits" in card and "image-feature-extraction" in card
    assert "accuracy of a linear probe" in card and "hfgen train mae" in card


def test_reconstructions_are_evaluated_as_those_of_any_pipeline(trained, tmp_path):
    file = tmp_path / "metrics.json"
    words = ["--metrics", "reconstruction", "--num_likelihood", "20", "--output", str(file), "--device", "cpu"]
    evaluate.main([str(trained), *words])
    (entry,) = json.loads(file.read_text(encoding="utf-8"))["evaluation"]
    assert entry["metric"] == "reconstruction error, mse" and 0 < entry["value"] < 1


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path, capsys):
    steps = ["--lr_scheduler", "constant_with_warmup", "--mask_ratio", 0.5, "--normalised_targets"]
    for folder, count in (("a", 2), ("a", 4), ("b", 4)):
        train(capsys, tmp_path / folder, "--max_train_steps", count, *steps)
    for name in ("autoencoder/diffusion_pytorch_model.safetensors", "reconstructions.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "a")
    assert pipeline.config.mask_ratio == 0.5 and pipeline.config.normalised_targets is True
    assert "moments known" in (tmp_path / "a" / "metrics.json").read_text(encoding="utf-8")


def test_images_without_labels_have_no_probe(tmp_path, capsys):
    out = train(capsys, tmp_path / "a", "--max_train_steps", 1, "--label_column", "none", "--patch_size", 4)
    assert "squared error of hidden pixels" in out and "probe" not in out
    network = hfgen.HFGenPipeline.from_pretrained(tmp_path / "a").autoencoder
    assert network.config.patch_size == 4 and network(torch.zeros(1, 1, 8, 8)).sample.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask_ratio", 1], "--mask_ratio"),
        (["--likelihood_samples", 5], "--likelihood_samples"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, message, capsys, monkeypatch, tmp_path):
    check_refusal(train_mae.main, capsys, monkeypatch, tmp_path / "x", words, message)


def test_a_share_that_hides_no_patch_is_refused(tmp_path, capsys):
    words = [*FEW, *DATA, "--mask_ratio", 0.01, "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_mae.main, capsys, *words)
    assert status == 2 and "mask_ratio=0.01 hides 0 of 16 patches" in errors
