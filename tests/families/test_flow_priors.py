"""Flows of the latents of an autoencoder, by the front door of normalizing flows."""

import json

import pytest
import torch
from safetensors.torch import load_file

import hfgen
from hfgen.data.encoded import drawn
from hfgen.data.images import load_images
from hfgen.families.latent_data import Encoder, latent_data
from hfgen.options import DataArgs
from hfgen.training import train_flow, train_vae
from tests.helpers.doors import run_door

QUICK = ["--max_train_samples", "48", "--train_batch_size", "8", "--report_to", "none", "--eval_batch_size", "4"]
QUICK += ["--num_likelihood", "8", "--sample_steps", "0", "--lr_warmup_steps", "1"]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The folder of a VAE of digits after two steps."""
    folder = tmp_path_factory.mktemp("vae") / "vae"
    options = ["--dataset", "digits", "--model", "mlp", "--model_size", "s", "--latent_channels", "3"]
    options += ["--likelihood", "bernoulli", "--prior", "standard_normal", "--likelihood_samples", "1"]
    train_vae.main([*options, *QUICK, "--max_train_steps", "2", "--output_dir", str(folder)])
    return folder


def test_latents_of_a_batch_are_drawn_anew_with_mean_and_deviation():
    mean, deviation = torch.tensor([[-2.0], [3.0]]).view(2, 1, 1, 1), torch.tensor([[0.5], [0.0]]).view(2, 1, 1, 1)
    batch = {"x": mean.repeat(5000, 1, 1, 1), "deviation": deviation.repeat(5000, 1, 1, 1)}
    draws = drawn(batch, 3, 7)["x"].view(5000, 2)
    assert (draws[:, 1] == 3).all() and abs(draws[:, 0].mean() + 2) < 0.03 and abs(draws[:, 0].std() - 0.5) < 0.02
    again, other = (drawn(batch, position, 7)["x"].view(5000, 2) for position in (3, 4))
    assert torch.equal(draws, again) and not torch.equal(draws[:, 0], other[:, 0])


def test_latents_are_identified_by_images_and_weights(autoencoder, tmp_path):
    pipeline = hfgen.VAEPipeline.from_pretrained(str(autoencoder))

    def fingerprint(count):
        encoder = Encoder(pipeline.autoencoder, load_images(DataArgs(max_train_samples=count)), 0)
        return latent_data(encoder, tmp_path).fingerprint

    first = fingerprint(4)
    assert fingerprint(4) == first != fingerprint(5)
    with torch.no_grad():
        next(pipeline.autoencoder.parameters()).mul_(1.001)
    assert fingerprint(4) != first


def test_a_dry_run_encodes_no_more_than_its_steps_need(autoencoder, tmp_path, capsys, monkeypatch):
    counts, whole = [], torch.Tensor.split
    monkeypatch.setattr(
        torch.Tensor,
        "split",
        lambda x, *rest: (counts.append(len(x)) if x.shape[1:] == (1, 8, 8) else 0, whole(x, *rest))[1],
    )
    words = ["--pipeline", autoencoder, "--model_size", "xs", "--dataset", "digits", "--max_train_samples", "1500"]
    words += [*QUICK[2:], "--max_train_steps", "9", "--dry_run", "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_flow.main, capsys, *words)
    assert status == 0 and not (tmp_path / "x").exists(), errors
    assert counts and max(counts) <= 256


def test_a_flow_becomes_the_prior_of_the_autoencoder(tmp_path, capsys, autoencoder):
    """The autoencoder stays bit for bit, and both priors are measured; a resumed run has the bits of a whole one."""
    words = ["--pipeline", autoencoder, "--model_size", "xs", "--checkpointing_steps", "1", *QUICK[2:]]
    words += ["--lr_scheduler", "constant_with_warmup", "--learning_rate", "0.001"]
    for folder, steps in (("a", 1), ("a", 3), ("b", 3)):
        output = ["--max_train_steps", steps, "--output_dir", tmp_path / folder]
        status, _, errors = run_door(train_flow.main, capsys, *words, *output)
        assert status == 0, errors
    for name in ("prior", "autoencoder"):
        files = [tmp_path / folder / name / "diffusion_pytorch_model.safetensors" for folder in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes()
    weights = load_file(tmp_path / "a/autoencoder/diffusion_pytorch_model.safetensors")
    for name, value in load_file(autoencoder / "autoencoder/diffusion_pytorch_model.safetensors").items():
        assert torch.equal(weights[name], value)
    pipeline = hfgen.HFGenPipeline.from_pretrained(str(tmp_path / "a"))
    assert isinstance(pipeline, hfgen.VAEPipeline) and isinstance(pipeline.prior, hfgen.FlowPriorModel)
    assert pipeline(3, generator=torch.Generator().manual_seed(0), output_type="pt").images.shape == (3, 1, 8, 8)
    metrics = json.loads((tmp_path / "a/metrics.json").read_text(encoding="utf-8"))
    measured = [entry["metric"] for entry in metrics["evaluation"]]
    assert measured == ["former prior: log-likelihood, nats, K = 20", "log-likelihood, nats, K = 20"]
    assert metrics["fitting_seconds"] >= 0  # the encoding counts as training


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "glow"], "--model glow is for flows of images"),
        (["--class_conditional"], "--class_conditional True is for flows of images"),
        (["--random_flip"], "Drop --streaming and --random_flip"),
        (["--resolution", "16"], "Give the data that it was trained on"),
    ],
)
def test_options_that_latents_have_no_use_for_are_refused(words, message, tmp_path, capsys, autoencoder):
    words = ["--pipeline", autoencoder, *QUICK[2:], *words, "--output_dir", tmp_path / "out"]
    status, _, errors = run_door(train_flow.main, capsys, *words)
    assert status == 2 and message in errors and not (tmp_path / "out").exists()
