"""Priors over the codes of a trained autoencoder: extraction that goes on to the same bits, and pipelines that draw."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

import hfgen
from hfgen.data.images import load_images
from hfgen.families.ar import codes
from hfgen.options import DataArgs
from hfgen.training import train_ar
from tests.helpers.doors import check_refusal, run_door

DATA = ["--dataset", "digits", "--max_train_samples", "48"]
FEW = ["--train_batch_size", "8", "--model_size", "xs", "--lr_warmup_steps", "2", "--eval_batch_size", "4"]
FEW += ["--num_likelihood", "8", "--report_to", "none", "--checkpointing_steps", "1"]


def autoencoder():
    torch.manual_seed(0)
    network = hfgen.build_autoencoder("vq", "s", 8, 1, 1)
    network.train()(torch.randn(8, 1, 8, 8))
    pipeline = hfgen.VQPipeline(network)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "vq"
    autoencoder().save_pretrained(folder)
    return folder


def extract(pipeline, data, home, rank=0, world=1):
    cache = codes.code_data(pipeline, data, home).cache
    cache.fill(rank, world)
    return cache.folder


def load(pipeline, data, home):
    loaded = codes.code_data(pipeline, data, home)
    loaded.prepare()
    return loaded


def with_prior(classes=3, null=True):
    pipeline = autoencoder()
    shape = pipeline.code_shape
    prior = hfgen.build_autoregressive("transformer", "xs", shape, 1, pipeline.num_codes, classes, null)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made = hfgen.VQPipeline(pipeline.autoencoder, prior=prior, num_classes=classes)
    made.set_progress_bar_config(disable=True)
    return made


def test_an_interrupted_extraction_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(codes, "BLOCK", 10)
    pipeline, data = autoencoder(), load_images(DataArgs(max_train_samples=25))
    whole = extract(pipeline, data, tmp_path / "whole")
    encode, calls = pipeline.encode, []

    def interrupted(images):
        calls.extend([len(images)] if len(images) > 1 else [])  # one of zeros says the shape of the codes
        if len(calls) == 2 and len(images) > 1:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(pipeline, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(pipeline, data, tmp_path / "cut")
    part = codes.code_data(pipeline, data, tmp_path / "cut").cache.folder
    assert sorted(path.name for path in part.iterdir()) == ["codes-00000.json", "codes-00000.safetensors", "codes.json"]
    first = (part / "codes-00000.safetensors").stat().st_mtime_ns
    assert extract(pipeline, data, tmp_path / "cut") == part
    assert calls == [10, 10, 10, 5] and (part / "codes-00000.safetensors").stat().st_mtime_ns == first
    for file in sorted(whole.glob("*.safetensors")):
        assert file.read_bytes() == (part / file.name).read_bytes()
    extract(pipeline, data, tmp_path / "cut")
    assert len(calls) == 4  # nothing is computed twice
    assert 0 < codes.code_data(pipeline, data, tmp_path / "cut").seconds < 60
    loaded = load(pipeline, data, tmp_path / "cut")
    expected = encode(data.pixels(torch.arange(25))[0] / 127.5 - 1)
    assert torch.equal(loaded.tensors["x"][:, 0].long(), expected)
    assert torch.equal(loaded.tensors["labels"], data.labels)


def test_other_weights_and_other_images_have_caches_of_their_own(tmp_path):
    pipeline, data = autoencoder(), load_images(DataArgs(max_train_samples=25))
    folders = {extract(pipeline, data, tmp_path)}
    folders.add(extract(pipeline, load_images(DataArgs(max_train_samples=24)), tmp_path))
    with torch.no_grad():
        pipeline.autoencoder.to_latents.bias.add_(1e-3)
    folders.add(extract(pipeline, data, tmp_path))
    assert len(folders) == 3


def test_two_processes_share_the_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(codes, "BLOCK", 10)
    pipeline, data = autoencoder(), load_images(DataArgs(max_train_samples=25))
    one = load(pipeline, data, tmp_path / "one")
    for rank in (1, 0):
        extract(pipeline, data, tmp_path / "two", rank, 2)
    assert torch.equal(one.tensors["x"], load(pipeline, data, tmp_path / "two").tensors["x"])


@pytest.mark.parametrize("damage", ["truncated", "other codes", "no integers", "a pipe"])
def test_damaged_files_are_named(tmp_path, damage):
    from safetensors.torch import save_file

    pipeline, data = autoencoder(), load_images(DataArgs(max_train_samples=25))
    folder = extract(pipeline, data, tmp_path)
    file = folder / "codes-00000.safetensors"
    if damage == "truncated":
        os.truncate(file, 40)
    elif damage == "a pipe":
        file.unlink()
        os.mkfifo(file)
    elif damage == "no integers":
        save_file({"codes": load_file(file)["codes"].float()}, file)
    else:
        save_file({"codes": load_file(file)["codes"] + 256}, file)
    with pytest.raises(ValueError, match=r"codes-00000.safetensors .*same command computes it again"):
        load(pipeline, data, tmp_path)


def test_a_prior_is_trained_on_the_codes_of_a_pipeline_and_draws_images(saved, tmp_path, capsys):
    """A run that was stopped has the bits of one that was not, and uses the codes that it finds."""
    words = ["--pipeline", saved, *DATA, "--class_conditional", "--lr_scheduler", "constant_with_warmup"]
    for folder, steps in (("a", 1), ("a", 2), ("b", 2)):
        output = ["--max_train_steps", steps, "--output_dir", tmp_path / folder]
        status, _, errors = run_door(train_ar.main, capsys, *words, *FEW, *output)
        assert status == 0, errors
    name = "prior/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text(encoding="utf-8"))
    (entry,) = metrics["evaluation"]
    assert entry["metric"] == "bits per code (of codes, not of pixels)" and 0 < entry["value"] < 20
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "b")
    assert type(pipeline) is hfgen.VQPipeline and pipeline.prior is not None
    assert pipeline(class_labels=[3, 4], guidance_scale=1.5).images[0].size == (8, 8)
    old = hfgen.HFGenPipeline.from_pretrained(saved)
    assert old.prior is None
    assert torch.equal(old.autoencoder.codebook.codes, pipeline.autoencoder.codebook.codes)


def test_a_dry_run_computes_no_codes(saved, tmp_path, capsys):
    words = ["--pipeline", saved, *DATA, *FEW, "--max_train_steps", "1", "--dry_run", "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_ar.main, capsys, *words)
    assert status == 0, errors
    assert not (tmp_path / "x").exists()


def test_images_of_a_prior_are_the_same_alone_and_in_a_batch():
    pipeline = with_prior()
    generators = [torch.Generator().manual_seed(n) for n in (0, 1)]
    both = pipeline(class_labels=[0, 1], generator=generators, output_type="latent").images
    alone = pipeline(class_labels=1, generator=torch.Generator().manual_seed(1), output_type="latent").images
    torch.testing.assert_close(alone, both[1:])
    grids = pipeline.encode(torch.rand(3, 1, 8, 8) * 2 - 1)
    with torch.no_grad():
        expected = pipeline.prior(grids[:, None], torch.tensor([0, 1, 3])).log_prob.double()
    given = pipeline.code_log_likelihood(grids[:2], [0, 1], batch_size=1)
    torch.testing.assert_close(given, expected[:2], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(pipeline.code_log_likelihood(grids[2:]), expected[2:], atol=1e-4, rtol=1e-5)


def test_a_prior_of_other_codes_is_refused():
    pipeline = autoencoder()
    prior = hfgen.build_autoregressive("transformer", "xs", pipeline.code_shape, 1, 7)
    with pytest.raises(ValueError, match="7 codes, and the autoencoder has 256"):
        hfgen.VQPipeline(pipeline.autoencoder, prior=prior)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--pixels", "binary"], "--pixels binary is for models of pixels"),
        (["--model", "made"], "--model made: codes are names"),
        (["--random_flip"], "Drop --streaming and --random_flip"),
    ],
)
def test_options_that_do_not_go_with_codes_are_refused(saved, capsys, monkeypatch, tmp_path, words, named):
    check_refusal(train_ar.main, capsys, monkeypatch, tmp_path / "x", ["--pipeline", saved, *DATA, *words], named)


def test_images_of_another_shape_are_refused(saved, capsys, tmp_path):
    words = ["--pipeline", saved, *DATA, *FEW, "--resolution", "10", "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_ar.main, capsys, *words)
    assert status == 2 and "images of shape (1, 8, 8), and those of digits have shape (1, 10, 10)" in errors


def test_a_pipeline_without_codes_is_refused(capsys, monkeypatch, tmp_path):
    network = hfgen.build_autoregressive("fvsbn", "xs", 4, 1, 2)
    hfgen.ARPipeline(network).save_pretrained(tmp_path / "ar")
    check_refusal(
        train_ar.main, capsys, monkeypatch, tmp_path / "x", ["--pipeline", tmp_path / "ar", *DATA], "needs a VQPipeline"
    )
