"""The front door of style-based generators: its files, adaptive augmentation, runs that go on, refusals."""

import json

import torch
from PIL import Image

import hfgen
from hfgen.training import train_gan, train_stylegan
from tests.helpers.doors import check_refusal, run_door

FEW = ["--dataset_split", "train[:96]", "--train_batch_size", 8, "--model_size", "xs", "--latent_channels", 4]
FEW += ["--report_to", "none", "--mixed_precision", "no", "--lr_warmup_steps", 1, "--eval_batch_size", 4]
FEW += ["--logging_steps", 1, "--lr_scheduler", "constant_with_warmup"]
QUIET = ["--health_steps", 0]
ADAPTIVE = ["--augment", "translation,flip", "--augment_target", 0.05, "--learning_rate", 0.01, "--augment_speed", 100]


def train(capsys, folder, *words):
    status, out, errors = run_door(train_stylegan.main, capsys, *FEW, "--output_dir", folder, *words)
    assert status == 0, errors
    return out


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_classes_saves_a_pipeline_and_pictures_of_its_layers(capsys, tmp_path):
    folder = tmp_path / "run"
    train(capsys, folder, "--max_train_steps", 2, "--class_conditional", *QUIET, "--sample_steps", 1)
    pictures = {"samples.png", "mixing.png", "edits.png", "loss.png"}
    assert {path.name for path in folder.glob("*.png")} == pictures
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in card for name in (*pictures, "interpolation.gif"))
    assert "# StyleGAN (non-saturating) on digits" in card
    with Image.open(folder / "mixing.png") as mixing, Image.open(folder / "edits.png") as edits:
        assert mixing.height > edits.height
    pipeline = hfgen.HFGenPipeline.from_pretrained(folder, discriminator=True)
    assert type(pipeline) is hfgen.StyleGANPipeline and pipeline.config.num_classes == 10
    assert pipeline(class_labels=[3, 4], output_type="pt").images.shape == (2, 1, 8, 8)
    assert pipeline.discriminator(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])).logits.shape == (2,)
    logs = rows_of(folder)
    assert "generator/path_length" in logs[0] and "generator/path_length" not in logs[1]
    assert "discriminator/r1" in logs[0] and "discriminator/r1" not in logs[1]


def test_an_interrupted_run_with_adaptive_augmentation_ends_with_the_same_bits(capsys, tmp_path):
    words = [*QUIET, *ADAPTIVE, "--path_length_every", 2, "--penalty_every", 2]
    train(capsys, tmp_path / "whole", *words, "--max_train_steps", 6)
    for steps in (3, 6):
        train(capsys, tmp_path / "cut", *words, "--max_train_steps", steps, "--checkpointing_steps", 3)
    whole, cut = (hfgen.HFGenPipeline.from_pretrained(tmp_path / name, discriminator=True) for name in ("whole", "cut"))
    for name in ("generator", "discriminator"):
        first, second = (getattr(each, name).state_dict() for each in (whole, cut))
        assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = (
        [row["discriminator/augment_probability"] for row in rows_of(tmp_path / name)] for name in ("whole", "cut")
    )
    assert first[-3:] == second[-3:] and any(first)


def test_other_generators_learn_with_adaptive_augmentation_as_well(capsys, tmp_path):
    few = [*FEW, "--model", "mlp", *QUIET, *ADAPTIVE, "--max_train_steps", 4, "--output_dir", tmp_path / "run"]
    status, _, errors = run_door(train_gan.main, capsys, *few)
    assert status == 0, errors
    found = [row["discriminator/augment_probability"] for row in rows_of(tmp_path / "run")]
    assert all(abs(value * 100 / 8 - round(value * 100 / 8)) < 1e-5 for value in found)  # steps of 8 images of 100


def test_what_does_not_go_together_is_refused(capsys, monkeypatch, tmp_path):
    for words, message in (
        (["--augment_target", "0.6"], "--augment_target 0.6 does nothing with --augment none"),
        (["--augment", "flip", "--augment_speed", "9"], "--augment_speed 9 does nothing without --augment_target"),
        (["--path_length", "0", "--path_length_every", "2"], "--path_length_every 2 does nothing"),
        (["--augment", "blur"], "'blur' is not known"),
        (["--spectral_norm"], "--spectral_norm"),
        (["--gradient_checkpointing"], "--gradient_checkpointing"),
        (["--loss", "hinge", "--style_mixing", "2"], "--style_mixing 2"),
        (["--loss", "relativistic", *map(str, ADAPTIVE)], "no score that divides real from generated"),
        (["--dataset", "digits", "--resolution", "4"], "can't make 4 x 4 images"),
    ):
        check_refusal(train_stylegan.main, capsys, monkeypatch, tmp_path / "run", words, message)
