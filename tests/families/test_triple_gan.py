"""The front door of Triple-GAN: what it learns from few labels, runs that go on, the saved classifier, refusals."""

import json

import pytest
import torch
from torch.testing import assert_close

import hfgen
from hfgen.families.triple_gan.options import TripleTrainArgs
from hfgen.options import DataArgs
from hfgen.training import train_triple_gan
from tests.helpers.doors import check_refusal, run_door

FEW = ["--model", "mlp", "--model_size", "xs", "--report_to", "none", "--mixed_precision", "no", "--lr_warmup_steps", 2]
FEW += ["--latent_channels", 4, "--eval_batch_size", 10, "--train_batch_size", 32, "--health_steps", 0]
FEW += ["--dataset_split", "train[:300]", "--held_out_split", "train[300:500]"]


def train(capsys, folder, *words):
    status, out, errors = run_door(train_triple_gan.main, capsys, *FEW, "--output_dir", folder, *words)
    assert status == 0, errors
    return out


@pytest.fixture(scope="module")
def held_out():
    data = hfgen.load_images(DataArgs(dataset_split="train[300:500]"))
    return data.images.float() / 127.5 - 1, data.labels


def test_the_classifier_of_few_labels_is_measured_saved_and_loaded(capsys, tmp_path, held_out):
    folder = tmp_path / "run"
    out = train(capsys, folder, "--num_labels", 50, "--max_train_steps", 40, "--adam_beta1", 0.9, "--pseudo_after", 5)
    (line,) = [line for line in out.splitlines() if line.startswith("accuracy of the classifier: ")]
    (entry,) = json.loads((folder / "metrics.json").read_text())["evaluation"]
    assert entry["metric"] == "accuracy of the classifier" and f"{entry['value']:.4f}" in line
    pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
    images, labels = held_out
    probabilities = pipeline.classify(images)
    assert_close(probabilities.sum(1), torch.ones(200))
    found = float((probabilities.argmax(1) == labels).double().mean())
    assert found == pytest.approx(entry["value"]) and found > 0.3  # chance is 0.1
    with torch.no_grad():
        assert_close(probabilities, pipeline.classifier(images, 0).logits.softmax(1), rtol=1e-4, atol=1e-6)
    assert len(pipeline(class_labels=[3, "7"]).images) == 2 and pipeline.discriminator is None
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "50 of 300 images have a label" in card and "# Triple-GAN on digits" in card


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(capsys, tmp_path):
    words = ["--num_labels", 20, "--lr_scheduler", "constant_with_warmup", "--pseudo_after", 1, "--augment", "none"]
    train(capsys, tmp_path / "whole", *words, "--max_train_steps", 4)
    for steps in (2, 4):
        train(capsys, tmp_path / "cut", *words, "--max_train_steps", steps, "--checkpointing_steps", 2)
    load = hfgen.HFGenPipeline.from_pretrained
    whole, cut = (load(tmp_path / name, discriminator=True) for name in ("whole", "cut"))
    for name in ("generator", "discriminator", "classifier"):
        first, second = (getattr(pipeline, name).state_dict() for pipeline in (whole, cut))
        assert first and all(torch.equal(first[key], second[key]) for key in first), name


def test_a_generator_alone_has_no_classes_to_give():
    generator = hfgen.build_gan("mlp", "xs", 8, 1, 4, num_classes=2)[0]
    with pytest.raises(ValueError, match="has no classifier; hfgen train triple_gan makes one"):
        hfgen.GANPipeline(generator, num_classes=2).classify(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="num_classes=2, and the classifier has 3 classes"):
        classifier = hfgen.NoisyClassifierModel(8, 1, 3, 1, (8, 8), 4)
        hfgen.GANPipeline(generator, num_classes=2, classifier=classifier)


def test_learning_rates_of_the_players_fall_together():
    args = TripleTrainArgs(learning_rate=4e-3, classifier_learning_rate=2e-3, discriminator_learning_rate=1e-3)
    assert args.learning_rates == {"classifier": 2e-3, "discriminator": 1e-3}
    slower = args.slower(2)
    assert (slower.learning_rate, slower.learning_rates) == (2e-3, {"classifier": 1e-3, "discriminator": 5e-4})
    assert TripleTrainArgs().slower(2).learning_rates == {}


def test_what_does_not_go_together_is_refused(capsys, monkeypatch, tmp_path):
    for words, message in (
        (["--pseudo_weight", "0", "--pseudo_after", "7"], "--pseudo_after 7 does nothing with --pseudo_weight 0"),
        (["--alpha", "1"], "--alpha 1"),
        (["--augment", "blur"], "augmentation 'blur' is not known"),
        (["--gradient_checkpointing"], "--gradient_checkpointing is not for --model dcgan"),
        (["--label_seed", "3"], "--label_seed 3 does nothing without --num_labels"),
    ):
        check_refusal(train_triple_gan.main, capsys, monkeypatch, tmp_path / "run", words, message)
    monkeypatch.undo()
    words = ["--label_column", "none", "--output_dir", tmp_path / "run"]
    status, _, errors = run_door(train_triple_gan.main, capsys, *FEW, *words)
    assert status == 2 and "digits has no labels, and pairs of image and class are learnt" in errors
