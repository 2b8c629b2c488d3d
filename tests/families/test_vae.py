"""The front door of autoencoders: the files of each objective, interrupted runs, and refusals."""

import contextlib
import json
import math

import pytest
import torch
import yaml
from PIL import Image

from hfgen import HFGenPipeline, VAEPipeline, VQPipeline, cli
from hfgen.data.convert import as_items
from hfgen.data.images import load_images
from hfgen.data.summary import sample
from hfgen.families.vae import evaluation
from hfgen.families.vae.choice import DRAWINGS, PHOTOGRAPHS, suited_to
from hfgen.families.vae.options import HeldOutArgs
from hfgen.metrics.pixels import reconstruction_error
from hfgen.models.priors import GaussianMixturePriorModel
from hfgen.options import DataArgs
from hfgen.saving import hub
from hfgen.training import train_vae
from hfgen.utils.seeds import generator_of
from tests.helpers.doors import check_refusal, check_saved_grid, check_stops, run_door

QUICK = ["--dataset_split", "train[:64]", "--held_out_split", "train[64:84]", "--train_batch_size", "8"]
FEW = ["--max_train_steps", "2", "--lr_warmup_steps", "1", "--eval_batch_size", "6", "--report_to", "none"]
FEW += ["--latent_channels", "3", "--logging_steps", "1"]
MIXED = ["--mixture_components", "2", "--likelihood_samples", "3"]
OBJECTIVES = {
    "elbo": ["--beta", "0.5", "--beta_warmup_steps", "2", "--free_bits", "0.1", *MIXED],
    "iwae": ["--num_importance_samples", "3", "--likelihood", "gaussian_learned", *MIXED],
    "ae": ["--likelihood", "gaussian", "--likelihood_sigma", "0.2", *MIXED[:2]],
    "dae": ["--corruption", "gaussian", "--corruption_strength", "0.2", "--model", "conv", *MIXED[:2]],
    "vq": ["--model", "vq", "--likelihood", "gaussian", "--commitment", "0.5"],
}


def run(capsys, *words):
    return run_door(train_vae.main, capsys, *words)


def train(capsys, folder, *words):
    """Run two steps, and return stdout."""
    status, out, errors = run(capsys, *QUICK, *FEW, "--output_dir", folder, *words)
    assert status == 0, errors
    return out


def held_out_images():
    """Return the measured images, in their order."""
    return sample(load_images(DataArgs(dataset_split="train[64:84]")), 20)[0] / 127.5 - 1


# --- the files of a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_saves_a_pipeline_with_pictures_measurements_and_a_card(capsys, tmp_path, objective):
    folder = tmp_path / "run"
    out = train(capsys, folder, "--objective", objective, *OBJECTIVES[objective], "--sample_steps", "1")
    pictures = {"reconstructions.png"}
    if objective != "vq":
        pictures |= {"samples.png", "interpolation.gif", "traversal.png"}
    assert pictures == {path.name for path in folder.glob("*.png")} - {"loss.png"} | {"interpolation.gif"} & pictures
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-0000001.png"]
    pipeline = HFGenPipeline.from_pretrained(folder)
    assert type(pipeline) is (VQPipeline if objective == "vq" else VAEPipeline)
    options = yaml.safe_load((folder / "config.yaml").read_text())
    assert options["objective"] == objective and pipeline.config.likelihood == options["likelihood"]

    entries = {entry["metric"]: entry for entry in json.loads((folder / "metrics.json").read_text())["evaluation"]}
    x = held_out_images()
    mse = reconstruction_error(x, pipeline.reconstruct(x))["mse"]
    assert entries["reconstruction error, mse"]["value"] == pytest.approx(mse, rel=1e-5)
    bounds = {"elbo": 3, "iwae": 4}.get(objective, 0)  # bernoulli has no bits per dimension
    assert len(entries) == bounds + 1 + (objective == "vq")
    card = (folder / "README.md").read_text()
    for name, entry in entries.items():
        assert name in out and f"| {name} | {entry['value']:.4g}" in card
        protocol = entry["protocol"]
        assert (protocol["data"], protocol["split"], protocol["real images"]) == ("digits", "train[64:84]", 20)
    for name in (*pictures, "loss.png"):
        assert f"]({name})" in card
    assert "hfgen train vae --config config.yaml" in card and str(tmp_path) not in card


def test_bounds_are_measured_under_the_prior_of_the_training_and_the_fitted_prior(capsys, tmp_path):
    """ELBO and likelihood are for the standard normal. The saved mixture has a likelihood of its own."""
    train(capsys, tmp_path / "run", *MIXED, "--likelihood", "gaussian_learned")
    entries = json.loads((tmp_path / "run" / "metrics.json").read_text())["evaluation"]
    values = {entry["metric"]: entry["value"] for entry in entries}
    mixture = HFGenPipeline.from_pretrained(tmp_path / "run")
    mixture.set_progress_bar_config(disable=True)
    assert mixture.prior.config.num_components == 2 and mixture.prior.means.any()
    normal = VAEPipeline(mixture.autoencoder, GaussianMixturePriorModel((3, 1, 1)), "gaussian_learned")
    normal.set_progress_bar_config(disable=True)

    def mean(pipeline, method, count):
        return getattr(pipeline, method)(held_out_images(), count, generator_of("likelihood", 0)).mean().item()

    assert values["ELBO, nats"] == pytest.approx(mean(normal, "elbo", evaluation.ELBO_SAMPLES), rel=1e-5)
    log_likelihood = mean(normal, "log_likelihood", 3)
    assert values["log-likelihood, K = 3, nats"] == pytest.approx(log_likelihood, rel=1e-5)
    assert values["bits per dimension, K = 3"] == pytest.approx(mean(normal, "bits_per_dim", 3), rel=1e-5)
    log_likelihood = mean(mixture, "log_likelihood", 3)
    assert values["fitted prior: log-likelihood, K = 3, nats"] == pytest.approx(log_likelihood, rel=1e-5)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "prior the standard normal, fitted prior a mixture of 2 Gaussians" in card


@pytest.mark.parametrize("prior", ["standard_normal", "vamp"])
def test_other_priors_are_the_same_during_and_after_training(capsys, tmp_path, prior):
    words = ["--num_pseudo_inputs", "4"] if prior == "vamp" else []
    out = train(capsys, tmp_path / "run", "--prior", prior, *words, "--likelihood_samples", "2")
    saved = HFGenPipeline.from_pretrained(tmp_path / "run").prior
    assert saved.config.num_components == (4 if prior == "vamp" else 1)
    assert bool(saved.means.any()) is (prior == "vamp")
    assert "Fitting the prior" not in out and "fitted prior:" not in out


def test_pseudo_inputs_start_as_training_images(capsys, tmp_path):
    """With a learning rate near 0, the components of the prior are the posteriors of the first training images."""
    train(capsys, tmp_path / "run", "--prior", "vamp", "--num_pseudo_inputs", "4", "--learning_rate", "1e-9")
    pipeline = HFGenPipeline.from_pretrained(tmp_path / "run")
    images = sample(load_images(DataArgs(dataset_split="train[:64]")), 4)[0] / 127.5 - 1
    torch.testing.assert_close(pipeline.prior.means, pipeline.encode(images).flatten(1), rtol=1e-4, atol=1e-5)


def test_the_mixture_is_fitted_to_the_latents_of_training_images(capsys, tmp_path):
    train(capsys, tmp_path / "run", *MIXED[:2], "--objective", "ae", "--likelihood", "gaussian")
    pipeline = HFGenPipeline.from_pretrained(tmp_path / "run")
    latents = pipeline.encode(load_images(DataArgs(dataset_split="train[:64]")).images / 127.5 - 1).flatten(1)
    prior = pipeline.prior
    torch.testing.assert_close(prior.weights @ prior.means, latents.mean(0), rtol=1e-3, atol=1e-4)
    covariances = prior.scale_tril @ prior.scale_tril.mT
    second = torch.einsum("m,mij->ij", prior.weights, covariances + prior.means.unsqueeze(2) * prior.means.unsqueeze(1))
    centred = second - torch.outer(latents.mean(0), latents.mean(0))
    torch.testing.assert_close(centred, latents.T.cov(correction=0), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("model", "likelihood"), [("kl", "bernoulli"), ("vqmodel", "gaussian")])
def test_networks_of_diffusers_can_be_trained(capsys, tmp_path, model, likelihood):
    words = ["--model", model, "--likelihood", likelihood, "--latent_channels", "1", "--num_likelihood", "4"]
    words += ["--objective", "vq"] if model == "vqmodel" else [*MIXED, "--gradient_checkpointing"]
    train(capsys, tmp_path / "run", *words)
    index = json.loads((tmp_path / "run" / "model_index.json").read_text())
    assert index["autoencoder"] == ["diffusers", {"kl": "AutoencoderKL", "vqmodel": "VQModel"}[model]]


@pytest.mark.parametrize("objective", ["elbo", "iwae", "vq"])
def test_training_in_bfloat16_saves_float32(capsys, tmp_path, objective):
    words = ["--objective", objective, *OBJECTIVES[objective], "--mixed_precision", "bf16"]
    train(capsys, tmp_path / "run", *words)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert math.isfinite(row["loss"])
    assert HFGenPipeline.from_pretrained(tmp_path / "run").autoencoder.dtype == torch.float32


def test_the_saved_pipeline_draws_the_samples_of_the_grid(capsys, tmp_path):
    folder = tmp_path / "run"
    train(capsys, folder, *MIXED)
    check_saved_grid(folder, tmp_path)
    names = set(hub.files_to_push(folder))
    assert {"README.md", "interpolation.gif", "prior/config.json", "autoencoder/config.json"} <= names
    assert not [name for name in names if "checkpoint" in name]


def test_without_a_test_split_a_line_says_that_training_images_are_measured(capsys, tmp_path):
    words = [*FEW, *MIXED, "--max_train_samples", "40", "--train_batch_size", "8", "--num_likelihood", "5"]
    status, out, errors = run(capsys, *words, "--output_dir", tmp_path / "run")
    assert status == 0, errors
    assert "'digits' has no split 'test'" in out and "Measurements after training will be of training images" in out
    entries = json.loads((tmp_path / "run" / "metrics.json").read_text())["evaluation"]
    assert {entry["protocol"]["split"] for entry in entries} == {"train, which was trained on"}


def test_a_missing_test_split_leaves_no_process_waiting():
    """No error leaves the block in which the other processes wait."""

    class Accelerator:
        print = staticmethod(lambda *_: None)

        @contextlib.contextmanager
        def main_process_first(self):
            yield
            self.finished = True

    accelerator, data = Accelerator(), load_images(DataArgs(max_train_samples=9))
    held_out = evaluation.load_held_out(DataArgs(), HeldOutArgs(num_likelihood=4), data, accelerator)
    assert accelerator.finished and len(held_out.images) == 4


def test_eval_steps_saves_the_best_pipeline(capsys, tmp_path):
    words = ["--dataset_split", "train[:80]", "--eval_steps", "1", "--eval_num_samples", "70", *MIXED]
    train(capsys, tmp_path / "run", *words)
    best = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert best["evaluation"][0]["metric"].startswith("Frechet distance")
    assert "guidance" not in best["evaluation"][0]["protocol"]
    assert not HFGenPipeline.from_pretrained(tmp_path / "run" / "best").prior.means.any()


# --- interruptions, estimates, overfitting ----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["elbo", "vq"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(capsys, tmp_path, monkeypatch, objective):
    long = ["--max_train_steps", "5", "--sample_steps", "2", "--checkpointing_steps", "2"]
    words = [*QUICK, *FEW, *long, "--objective", objective, *OBJECTIVES[objective]]
    contents = check_stops(train_vae.main, capsys, monkeypatch, tmp_path, words, {1: 2, 3: 4})
    whole, cut = (json.loads(files["metrics.json"])["evaluation"] for files in contents)
    assert whole == cut


def test_the_fitted_prior_and_the_measurements_may_change_after_training(capsys, tmp_path):
    folder = tmp_path / "run"
    train(capsys, folder, *MIXED)
    weights = (folder / "autoencoder" / "diffusion_pytorch_model.safetensors").read_bytes()
    out = train(capsys, folder, "--mixture_components", "3", "--likelihood_samples", "2", "--num_likelihood", "5")
    assert "at step 2" in out and HFGenPipeline.from_pretrained(folder).prior.config.num_components == 3
    assert (folder / "autoencoder" / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_a_dry_run_estimates_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*MIXED, "--max_train_steps", "1000", "--output_dir", "x", "--dry_run"]
    status, out, errors = run(capsys, *QUICK, *FEW, *words)
    assert status == 0, errors
    facts = {line.split(":")[0]: line.split(":", 1)[1].strip() for line in out.splitlines() if ":" in line}
    assert int(facts["autoencoder parameters"].replace(",", "")) > 1e4
    assert facts["optimiser steps"] == "1,000 (8,000 images)"
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("objective", ["elbo", "vq"])
def test_one_batch_can_be_overfitted(capsys, tmp_path, objective):
    words = ["--objective", objective, *OBJECTIVES[objective], "--overfit_batch", "--max_train_steps", "150"]
    words += ["--learning_rate", "0.01", "--lr_scheduler", "constant", "--lr_warmup_steps", "0"]
    words += ["--logging_steps", "50", "--latent_channels", "8"]
    train(capsys, tmp_path / "run", *words)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.05 and math.isfinite(losses[-1])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta", "-1"], "--beta -1.0 must be at least 0"),
        (["--free_bits", "-0.5"], "--free_bits -0.5 must be at least 0"),
        (["--objective", "iwae", "--num_importance_samples", "0"], "--num_importance_samples 0 must be at least 1"),
        (["--objective", "iwae", "--beta", "2"], "--beta 2.0 does nothing with --objective iwae, only with elbo"),
        (["--objective", "ae", "--prior", "vamp"], "--prior vamp does nothing with --objective ae"),
        (["--objective", "ae", "--eval_steps", "5"], "--eval_steps 5 does nothing with --objective ae"),
        (
            ["--objective", "vq", "--model", "mlp"],
            "--model mlp can't be trained with --objective vq",
        ),
        (["--model", "vq"], "--model vq can't be trained with --objective elbo, which takes mlp or conv or kl"),
        (["--objective", "vq", "--model", "vq", "--likelihood_samples", "5"], "--likelihood_samples 5 does nothing"),
        (["--objective", "vq", "--model", "vq", "--commitment", "-1"], "--commitment -1.0 must be at least 0"),
        (["--objective", "dae", "--corruption_strength", "2"], "strength=2.0 must be from 0 to 1"),
        (["--likelihood_sigma", "0.2"], "--likelihood_sigma 0.2 does nothing without --likelihood, only with gaussian"),
        (["--likelihood", "gaussian", "--likelihood_sigma", "0"], "--likelihood_sigma 0.0 must be above 0"),
        (["--num_pseudo_inputs", "9"], "--num_pseudo_inputs 9 does nothing with --prior mixture, only with vamp"),
        (["--prior", "vamp", "--num_pseudo_inputs", "0"], "--num_pseudo_inputs 0 must be at least 1"),
        (["--prior", "vamp", "--free_bits", "1"], "--free_bits 1.0 needs KL in closed form"),
        (["--mixture_components", "0"], "--mixture_components 0 must be at least 1"),
        (["--latent_channels", "0"], "--latent_channels 0 must be at least 1"),
        (["--model", "kl", "--resolution", "30"], "can't halve 30 x 30 images twice"),
        (["--num_likelihood", "1"], "--num_likelihood 1 must be at least 2"),
        (["--likelihood_samples", "0"], "--likelihood_samples 0 must be at least 1"),
        (["--eval_batch_size", "0"], "--eval_batch_size 0 must be at least 1"),
        (["--gradient_checkpointing"], "--gradient_checkpointing is not for --model mlp"),
        (["--scheduler", "ddim"], "--scheduler is no option of hfgen train "),
        (["--guidance_scale", "2"], "--guidance_scale is no option of hfgen train "),
        (["--latent_channel", "3"], "did you mean --latent_channels?"),
    ],
)
def test_impossible_options_are_refused_before_data_are_read(capsys, tmp_path, monkeypatch, words, message):
    check_refusal(train_vae.main, capsys, monkeypatch, tmp_path / "run", words, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--held_out_split", "tset"], "'digits' has no split 'tset'"),
        (["--dataset_split", "train[:20]", "--latent_channels", "30"], "A mixture of 10 Gaussians in 30 dimensions"),
        (
            ["--prior", "vamp", "--num_pseudo_inputs", "65"],
            "64 images (1, 8, 8) can't be the start of 65 pseudo-inputs",
        ),
        (["--model", "kl", "--dataset_split", "train[:64]", "--resolution", "9"], "can't halve 9 x 9 images twice"),
        (["--max_train_steps", "0"], "--max_train_steps 0 must be at least 1"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused_before_training(capsys, tmp_path, words, message):
    status, _, errors = run(capsys, *QUICK, *FEW, "--output_dir", tmp_path / "run", *words)
    assert status == 2 and message in errors and errors.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_help_is_of_this_family(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "vae", "--help"])
    text = capsys.readouterr().out
    assert "--objective" in text and "hfgen train vae --config vae_digits" in text
    assert not {"--scheduler", "--num_inference_steps", "--guidance_scale", "--prediction_type"} & set(text.split())


# --- network and likelihood by the data -------------------------------------------------------------------------------


def images_of(kind, count=40, side=8):
    """Drawings of black and white, grey photographs of all levels, or the same in colour."""
    generator = torch.Generator().manual_seed(0)
    channels = 3 if kind.startswith("colour") else 1
    levels = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return (levels > 180).to(torch.uint8) * 255 if kind.endswith("drawings") else levels


@pytest.mark.parametrize(
    ("kind", "choice", "reason"),
    [
        ("drawings", DRAWINGS, "100% of whose pixels are black or white"),
        ("photographs", PHOTOGRAPHS, "4% of whose pixels"),
        ("colour photographs", PHOTOGRAPHS, "3 channels"),
        ("colour drawings", PHOTOGRAPHS, "3 channels"),
    ],
)
def test_network_and_likelihood_suit_the_data(kind, choice, reason):
    x = images_of(kind)
    data = as_items(x, DataArgs())
    assert suited_to(data)[0] == choice and reason in suited_to(data)[1]


def test_digits_are_drawings_as_before():
    assert suited_to(load_images(DataArgs()))[0] == DRAWINGS == {"model": "mlp", "likelihood": "bernoulli"}


@pytest.fixture
def photographs(tmp_path):
    """A folder of small photographs in colour."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i, x in enumerate(images_of("colour photographs", 24)):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def test_photographs_train_with_what_is_chosen_said_and_kept(photographs, tmp_path, capsys, monkeypatch):
    words = [
        "--dataset",
        photographs,
        "--output_dir",
        tmp_path / "run",
        "--latent_channels",
        "2",
        "--report_to",
        "none",
    ]
    words += ["--train_batch_size", "8", "--max_train_steps", "1", "--eval_images", "8", "--likelihood_samples", "2"]
    words += ["--prior", "standard_normal", "--eval_batch_size", "2"]
    status, _, errors = run(capsys, *words)
    assert status == 0, errors
    said = "--model conv and --likelihood discretized_logistic_mixture: chosen by the data, 3 channels"
    assert said in errors and "Give --model or --likelihood for another" in errors
    options = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert {name: options[name] for name in PHOTOGRAPHS} == PHOTOGRAPHS
    monkeypatch.setattr("hfgen.families.vae.choice.PHOTOGRAPHS", DRAWINGS)  # another version may choose otherwise
    words[words.index("--max_train_steps") + 1] = "2"
    status, out, errors = run(capsys, *words)
    assert status == 0 and "Resumed from" in out and "as in the checkpoint" in errors, errors


def test_options_that_are_given_win(photographs, tmp_path, capsys):
    words = ["--dataset", photographs, "--output_dir", tmp_path / "run", "--dry_run", "--prior", "standard_normal"]
    status, _, errors = run(capsys, *words, "--model", "mlp", "--likelihood", "gaussian")
    assert status == 0 and "chosen" not in errors
    status, _, errors = run(capsys, *words, "--likelihood", "gaussian")
    assert status == 0 and "--model conv: chosen by the data" in errors and "Give --model for another" in errors
