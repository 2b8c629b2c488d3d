"""The front door of distillation: its own network and a GAN's, from any path, resumed, measured, and refusals."""

import json

import pytest
import torch

from hfgen import (
    ConsistencyScheduler,
    DDPMScheduler,
    DenoisingPipeline,
    DiTModel,
    GANPipeline,
    HFGenPipeline,
    RectifiedFlowScheduler,
    build_denoiser,
)
from hfgen.data.images import load_images
from hfgen.data.training_data import record_of
from hfgen.objectives.distilled import OneStep
from hfgen.options import DataArgs
from hfgen.paths import path_from_config
from hfgen.training import train_distill
from tests.helpers.doors import run_door
from tests.models.test_denoisers import perturb

FEW = ["--max_train_steps", "3", "--train_batch_size", "8", "--eval_batch_size", "4", "--sample_steps", "0"]
QUICK = ["--features", "none", "--num_samples", "8", *FEW]


def teacher_in(folder, scheduler, two_times=False):
    torch.manual_seed(0)
    sizes = {"patch_size": 4, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "num_class_embeds": 11}
    network = perturb(DiTModel(sample_size=8, in_channels=1, out_channels=1, two_times=two_times, **sizes))
    pipeline = DenoisingPipeline(network, scheduler, 10, [str(i) for i in range(10)])
    pipeline.training_data = record_of(DataArgs(), load_images(DataArgs()))
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    made = {"FLOW": RectifiedFlowScheduler(), "DDPM": DDPMScheduler(), "MAP": RectifiedFlowScheduler(solver="flow_map")}
    return {name: teacher_in(folder / name, scheduler, name == "MAP") for name, scheduler in made.items()}


def run(capsys, *words):
    return run_door(train_distill.main, capsys, "--report_to", "none", *words)


def drawn(pipeline, labels=(3, 7)):
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(n) for n in range(len(labels))]
    return pipeline(class_labels=list(labels), generator=generators, output_type="latent").images


@pytest.mark.parametrize("name", ["FLOW", "DDPM", "MAP"])
def test_the_teachers_network_draws_in_one_step(capsys, tmp_path, teachers, name):
    words = ["--pipeline", teachers[name], "--output_dir", tmp_path / "run", "--num_samples", "70"]
    status, _, errors = run(capsys, *words, *FEW, "--teacher_guidance_scale", "1.5")
    assert status == 0, errors
    pipeline = HFGenPipeline.from_pretrained(tmp_path / "run")
    images = drawn(pipeline)
    assert pipeline.num_timesteps == 1 and images.isfinite().all()
    config = pipeline.scheduler.config
    one = OneStep(path_from_config(config), config.prediction_type, name == "MAP")
    noise = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)])
    with torch.no_grad():
        expected = one(pipeline.denoiser, noise, {"class_labels": torch.tensor([3, 7])})
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)  # as it was trained
    card, metrics = ((tmp_path / "run" / file).read_text() for file in ("README.md", "metrics.json"))
    assert f"| teacher | {teachers[name].name} |" in card and str(teachers[name].parent) not in card
    assert "| student | the teacher's network, from its weights |" in card
    assert "evaluations of the network for an image, teacher → student | 20 → 1 |" in card
    measured = json.loads(metrics)["measured"]
    assert sum("Frechet" in key for key in measured) == 2 and any("images/s" in key for key in measured)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"score/loss", "generator/loss", "generator/gap"} <= set(rows[-1]), rows[-1]


def test_a_generator_of_a_gan_learns_from_the_teacher(capsys, tmp_path, teachers):
    words = [
        "--pipeline",
        teachers["FLOW"],
        "--student",
        "dcgan",
        "--model_size",
        "xs",
        "--output_dir",
        tmp_path / "run",
    ]
    status, _, errors = run(capsys, *words, *QUICK)
    assert status == 0, errors
    pipeline = HFGenPipeline.from_pretrained(tmp_path / "run")
    assert isinstance(pipeline, GANPipeline) and pipeline.discriminator is None and pipeline.config.num_classes == 10
    assert drawn(pipeline).shape == (2, 1, 8, 8)
    assert "| student | dcgan xs, new |" in (tmp_path / "run/README.md").read_text()


@pytest.mark.parametrize("student", ["teacher", "mlp"])
def test_a_discriminator_helps_and_resuming_is_exact(capsys, tmp_path, teachers, student):
    words = ["--pipeline", teachers["FLOW"], "--student", student, "--adversarial_weight", "0.5", "--model_size", "xs"]
    words += [*QUICK, "--checkpointing_steps", "2", "--lr_scheduler", "constant"]
    for name, steps in (("whole", ["4"]), ("parts", ["2", "4"])):
        for count in steps:
            status, _, errors = run(capsys, *words, "--output_dir", tmp_path / name, "--max_train_steps", count)
            assert status == 0, errors
    whole, parts = (HFGenPipeline.from_pretrained(tmp_path / name) for name in ("whole", "parts"))
    assert torch.equal(drawn(whole), drawn(parts))
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert {"discriminator/loss", "generator/adversarial", "generator/distillation"} <= set(rows[-1]), rows[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give the trained pipeline to distil: --pipeline outputs/quickstart"),
        (["--pipeline", "nowhere"], "There is no folder nowhere"),
        (["--pipeline", "FLOW", "--model_size", "xs"], "--model_size xs does nothing without"),
        (["--pipeline", "FLOW", "--latent_channels", "8"], "--latent_channels 8 does nothing with --student teacher"),
        (["--pipeline", "FLOW", "--student", "mlp", "--label_dropout", "0.2"], "--label_dropout 0.2 does nothing"),
        (["--pipeline", "FLOW", "--method", "dmd", "--alpha", "1.1"], "--alpha 1.1 does nothing with --method dmd"),
        (["--pipeline", "FLOW", "--r1", "2"], "--r1 2.0 does nothing"),
        (["--pipeline", "FLOW", "--least_time", "0.9", "--most_time", "0.1"], "least_time=0.9 must be below"),
        (
            ["--pipeline", "FLOW", "--discriminator_learning_rate", "0.1"],
            "discriminator_learning_rate=0.1 does nothing",
        ),
        (["--pipeline", "PLAIN", "--teacher_guidance_scale", "2"], "needs a teacher with classes"),
        (["--pipeline", "FLOW", "--resolution", "4"], "images of shape (1, 8, 8)"),
        (["--pipeline", "FLOW", "--label_column", "none"], "The teacher knows 10 classes, and digits has no labels"),
        (["--pipeline", "ONE"], "draws in one step, from one level of noise, and has not learnt the others"),
        (["--pipeline", "LEARNED"], "has 2 output channels for items with 1"),
        (["--pipeline", "FLOW", "--output_dir", "FLOW"], "would be overwritten"),
    ],
)
def test_impossible_options_are_refused_in_one_line(capsys, tmp_path, teachers, words, message):
    if {"PLAIN", "LEARNED", "ONE"} & set(words):
        sizes = {"patch_size": 4, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
        learned = DiTModel(sample_size=8, in_channels=1, out_channels=2, **sizes)
        network = learned if "LEARNED" in words else build_denoiser("dit", "xs", 8, 1)
        scheduler = ConsistencyScheduler(start_ratio=2.5) if "ONE" in words else RectifiedFlowScheduler()
        DenoisingPipeline(network, scheduler).save_pretrained(tmp_path / "made")
    places = {**teachers, **dict.fromkeys(("PLAIN", "LEARNED", "ONE"), tmp_path / "made")}
    words = [str(places.get(word, word)) for word in words]
    status, _, errors = run(capsys, "--output_dir", tmp_path / "run", *QUICK, *words)
    assert status == 2 and errors.splitlines()[-1].startswith("error: ") and message in errors, errors
    assert not (tmp_path / "run").exists()
