"""The front door of moment matching: what it learns in pixels and in latents, runs that go on, refusals."""

import json

import pytest
import torch
import yaml
from torch.testing import assert_close

import hfgen
from hfgen.distributions.latents import scale_of
from hfgen.options import DataArgs
from hfgen.training import train_gmmn, train_vae
from tests.helpers.doors import check_refusal, run_door

FEW = ["--model_size", "xs", "--report_to", "none", "--mixed_precision", "no", "--lr_warmup_steps", 2]
FEW += ["--latent_channels", 4, "--eval_batch_size", 4, "--train_batch_size", 64]
DATA = ["--dataset_split", "train[:200]"]
QUIET = ["--health_steps", 0]


def train(capsys, folder, *words):
    status, out, errors = run_door(train_gmmn.main, capsys, *FEW, "--output_dir", folder, *words)
    assert status == 0, errors
    return out


def weights(folder):
    return hfgen.HFGenPipeline.from_pretrained(folder).generator.state_dict()


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The folder of a small autoencoder, whose decoder gives logits of black and white."""
    folder = tmp_path_factory.mktemp("vae") / "vae"
    words = [
        "--model",
        "mlp",
        "--model_size",
        "s",
        "--latent_channels",
        3,
        "--num_likelihood",
        4,
        "--report_to",
        "none",
    ]
    words += ["--max_train_steps", 30, "--likelihood_samples", 2, "--eval_batch_size", 4, "--lr_warmup_steps", 2]
    train_vae.main(list(map(str, [*words, *DATA, "--output_dir", folder])))
    return folder


def test_it_learns_pixels_under_the_monitor_and_says_its_kernel(capsys, tmp_path):
    folder, words = tmp_path / "run", ["--max_train_steps", 60, "--logging_steps", 1, "--learning_rate", "0.005"]
    health = ["--health_steps", 30, "--health_samples", 30, "--on_collapse", "continue"]
    train(capsys, folder, *words, *health, *DATA)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [line["mmd_squared"] for line in lines if "mmd_squared" in line]
    assert len(found) == 60 and sum(found[-10:]) < 0.6 * sum(found[:10])
    pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
    assert type(pipeline) is hfgen.GANPipeline and pipeline.vae is None and pipeline.discriminator is None
    assert (folder / "health.jsonl").is_file() and (folder / "interpolation.gif").is_file()
    images = hfgen.load_images(DataArgs(dataset_split="train[:200]")).images.float() / 127.5 - 1
    unit = torch.pdist(images.flatten(1)).median().item()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "# Moment matching network on digits" in card
    assert "sum of Gaussians with deviations " + ", ".join(f"{unit * s:.3g}" for s in (0.125, 0.25, 0.5, 1)) in card


def test_an_interrupted_run_ends_with_the_same_bits(capsys, tmp_path):
    train(capsys, tmp_path / "whole", *DATA, *QUIET, "--max_train_steps", 4, "--lr_scheduler", "constant_with_warmup")
    for steps in (2, 4):
        words = ["--max_train_steps", steps, "--lr_scheduler", "constant_with_warmup", "--checkpointing_steps", 2]
        train(capsys, tmp_path / "cut", *DATA, *QUIET, *words)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_latents_of_an_autoencoder_are_matched_and_decoded_by_the_saved_pipeline(capsys, tmp_path, autoencoder):
    folder = tmp_path / "run"
    words = ["--autoencoder", autoencoder, "--max_train_steps", 80, "--logging_steps", 1, "--learning_rate", "0.005"]
    train(capsys, folder, *words, *QUIET)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [line["mmd_squared"] for line in lines if "mmd_squared" in line]
    assert sum(found[-10:]) < 0.6 * sum(found[:10])
    assert yaml.safe_load((folder / "config.yaml").read_text())["dataset_split"] == "train[:200]"  # the autoencoder's
    pipeline, teacher = (hfgen.HFGenPipeline.from_pretrained(place) for place in (folder, autoencoder))
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    latents = scale_of(teacher.autoencoder).restore(pipeline.generator(z).sample)
    assert latents.shape == (5, 3, 1, 1) and pipeline.latent_shape == (4, 1, 1)
    images = pipeline(latents=z, output_type="latent").images
    assert_close(images, teacher.decode(latents), rtol=1e-5, atol=1e-5)
    assert images.shape == (5, *pipeline.sample_shape) == (5, 1, 8, 8)
    found = pipeline.project(images, steps=30)  # through the decoder
    assert (pipeline.decode(found) - images).square().mean() < 0.5 * images.var(0).mean()


def test_what_does_not_go_together_is_refused(capsys, monkeypatch, tmp_path, autoencoder):
    for words, message in (
        (["--root"], "--root True does nothing with --estimator unbiased"),
        (["--latent_dir", "x"], "--latent_dir x does nothing without --autoencoder"),
        (["--bandwidths", "1,0"], "--bandwidths 1,0 must be positive numbers, separated by commas"),
        (["--train_batch_size", "1"], "--train_batch_size 1 has no two images to compare"),
        (["--autoencoder", str(autoencoder), "--model", "dcgan"], "--model dcgan makes pixels from -1 to 1"),
        (["--autoencoder", str(autoencoder), "--random_flip"], "Drop --streaming and --random_flip"),
        (["--gradient_checkpointing"], "--gradient_checkpointing is not for --model mlp"),
    ):
        check_refusal(train_gmmn.main, capsys, monkeypatch, tmp_path / "run", words, message)
