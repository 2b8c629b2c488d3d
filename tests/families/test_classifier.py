"""The front door of classifiers of noisy images: what it learns, runs that go on, guidance by it; refusals."""

import pytest
import torch

import hfgen
from hfgen.commands import sample
from hfgen.models.noisy_classifier import ClassifierOutput
from hfgen.objectives.base import Step
from hfgen.objectives.noisy_classification import NoisyClassification
from hfgen.options import DataArgs
from hfgen.paths import path_from_config
from hfgen.registry import PATHS
from hfgen.training import train_classifier
from tests.helpers.doors import run_door

FEW = ["--train_batch_size", 64, "--report_to", "none", "--lr_warmup_steps", 2, "--mixed_precision", "no"]


def train(capsys, folder, *words):
    status, out, errors = run_door(train_classifier.main, capsys, *FEW, "--output_dir", folder, *words)
    assert status == 0, errors
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "run"
    words = ["--noise", "--path", "straight", "--max_train_steps", 60, "--output_dir", folder]
    train_classifier.main(list(map(str, [*FEW, *words])))
    return folder


def test_it_knows_digits_and_knows_less_in_noise(trained):
    pipeline = hfgen.HFGenPipeline.from_pretrained(trained)
    data = hfgen.load_images(DataArgs())
    images, labels = data.images[:200].float() / 127.5 - 1, data.labels[:200]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    right = []
    for t in (0.05, 0.6, 0.95):
        output = pipeline((1 - t) * images + t * noise, 1000 * t)
        assert output.probabilities.sum(1).allclose(torch.ones(200), atol=1e-5)
        right.append(float((output.probabilities.argmax(1) == labels).float().mean()))
    assert right[0] > 0.8 and right[0] > right[1] > right[2] and right[2] < 0.4
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "accuracy at t = 0.3" in card


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path, capsys):
    steps = ["--lr_scheduler", "constant_with_warmup", "--max_train_samples", 100]
    for folder, count in (("a", 2), ("a", 4), ("b", 4)):
        train(capsys, tmp_path / folder, "--max_train_steps", count, *steps)
    name = "classifier/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_clean_images_alone_and_refusals(tmp_path, capsys, trained):
    out = train(capsys, tmp_path / "clean", "--no_noise", "--max_train_steps", 2, "--max_train_samples", 100)
    assert "accuracy at t = 0," in out
    status, _, errors = run_door(train_classifier.main, capsys, *FEW, "--no_noise", "--path", "ve")
    assert status == 2 and "--path" in errors
    words = ["--label_column", "none", "--output_dir", tmp_path / "x"]
    status, _, errors = run_door(train_classifier.main, capsys, *FEW, *words)
    assert status == 2 and "no labels, which a classifier needs" in errors
    with pytest.raises(ValueError, match="NoisyClassifierPipeline draws no samples"):
        sample.main([str(trained)])


def test_its_loss_is_the_cross_entropy_at_the_times_of_a_path():
    path, seen = path_from_config(PATHS["ve"]), []

    class Network(torch.nn.Module):
        def forward(self, x, timestep):
            seen.append((x, timestep))
            return ClassifierOutput(logits=x.flatten(1)[:, :3])

    batch = {"x": torch.rand(512, 1, 2, 2) * 2 - 1, "labels": torch.arange(512) % 3}
    loss = NoisyClassification(path).loss("classifier", {"classifier": Network()}, batch, Step(0))
    x, timestep = seen[0]
    assert 0.6 < float(x.std()) < 1 and float(x.abs().max()) < 6  # not the noise of 50 itself: as a denoiser sees it
    assert float(timestep.min()) < 5 and float(timestep.max()) > 990
    wanted = torch.nn.functional.cross_entropy(x.flatten(1)[:, :3], batch["labels"])
    torch.testing.assert_close(loss.value, wanted)
    with pytest.raises(ValueError, match="needs labels"):
        NoisyClassification(path).loss("classifier", {"classifier": Network()}, {"x": batch["x"]}, Step(0))
    with pytest.raises(ValueError, match="label_smoothing"):
        NoisyClassification(path, label_smoothing=1.0)
