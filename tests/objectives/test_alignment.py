"""Representation alignment: the distance of directions by hand, what learns, grids, and the front door."""

import json
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import hfgen
from hfgen.models.aligned_denoiser import AlignedOutput, image_tokens
from hfgen.objectives.base import Step
from hfgen.paths import StraightPath
from hfgen.training import train_diffusion, train_mae
from tests.helpers.doors import check_refusal, check_stops, run_door


class Told(nn.Module):
    """A network that predicts a number everywhere, with features that it was told."""

    def __init__(self, features):
        super().__init__()
        self.number, self.told = nn.Parameter(torch.tensor(0.5)), nn.Parameter(features)

    def forward(self, sample, timestep):
        return AlignedOutput(sample=self.number.expand(sample.shape), features=self.told)


class Seeing(nn.Module):
    """A frozen network whose features are tokens that it was told."""

    def __init__(self, tokens, rows, columns):
        super().__init__()
        self.tokens, self.grid = nn.Parameter(tokens), types.SimpleNamespace(rows=rows, columns=columns)

    def encode(self, sample):
        return self.tokens * 2  # directions do not know sizes


def numbers(*shape, seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def place():
    return Step(0)


def test_the_loss_is_the_inner_one_and_the_distance_of_directions():
    """Cosines by NumPy, position by position: token 3 c + r of the frozen network belongs to row r // 3."""
    tokens, features, x = numbers(2, 6, 5, seed=0), numbers(2, 5, 2, 3, seed=1), numbers(2, 1, 4, 6, seed=2)
    network, frozen = Told(features), Seeing(tokens, 2, 3)
    inner = hfgen.Denoising(StraightPath(), label_dropout=0.0)
    alone = inner.loss("denoiser", {"denoiser": network}, {"x": x}, place())
    both = hfgen.Alignment(inner, frozen, 0.25).loss("denoiser", {"denoiser": network}, {"x": x}, place())
    cosines = []
    for item in range(2):
        for row in range(2):
            for column in range(3):
                a, b = features[item, :, row, column].numpy(), tokens[item, 3 * row + column].numpy()
                cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    distance = 1 - np.mean(cosines)
    assert_close(both.value.item(), alone.value.item() + 0.25 * distance, atol=1e-5, rtol=0)
    assert_close(both.logs["alignment"].item(), distance, atol=1e-5, rtol=0)
    assert both.logs["loss"] == alone.logs["loss"]
    both.value.backward()
    assert network.told.grad.abs().sum() > 0 and network.number.grad.abs() > 0 and frozen.tokens.grad is None


def test_features_of_the_same_directions_have_no_distance():
    tokens = numbers(2, 6, 5, seed=0)
    network = Told(7 * tokens.mT.unflatten(2, (2, 3)))
    objective = hfgen.Alignment(hfgen.Denoising(StraightPath(), label_dropout=0.0), Seeing(tokens, 2, 3))
    loss = objective.loss("denoiser", {"denoiser": network}, {"x": numbers(2, 1, 4, 6, seed=2)}, place())
    assert_close(loss.logs["alignment"].item(), 0.0, atol=1e-6, rtol=0)


def test_tokens_of_an_image_come_last_and_row_by_row():
    tokens = torch.arange(8.0).reshape(1, 8, 1)
    assert image_tokens(tokens, (4, 6))[0, 0].tolist() == [[2, 3, 4], [5, 6, 7]]  # two are of time and class
    assert image_tokens(tokens[:, 2:], (4, 6))[0, 0].tolist() == [[2, 3, 4], [5, 6, 7]]
    assert image_tokens(tokens, (2, 4))[0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def denoiser(kind):
    torch.manual_seed(0)
    return hfgen.build_denoiser(kind, "xs", 8, 1, 3)


@pytest.mark.parametrize("kind", ["unet", "patch_unet", "dit", "uvit"])
def test_the_prediction_is_the_denoisers_and_its_middle_learns_from_the_features(kind):
    network, x, labels = denoiser(kind), numbers(2, 1, 8, 8, seed=3), torch.tensor([0, 2])
    example = {"sample": x[:1], "timestep": torch.zeros(1), "class_labels": labels[:1]}
    wrapped = hfgen.AlignedDenoiser(network, 5, (2, 2), example)
    assert network.training and wrapped.denoiser is network
    wrapped.eval()
    output = wrapped(x, torch.tensor([10.0, 900.0]), class_labels=labels)
    assert torch.equal(output.sample, network(x, torch.tensor([10.0, 900.0]), class_labels=labels).sample)
    assert output.features.shape == (2, 5, 2, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rough = wrapped(x, torch.tensor([10.0, 900.0]), class_labels=labels).features
    assert_close(rough.float(), output.features, atol=0.05, rtol=0.05)
    output.features.square().sum().backward()
    learns = [name for name, parameter in wrapped.named_parameters() if parameter.grad is not None]
    assert any(name.startswith("projector") for name in learns) and any(name.startswith("denoiser") for name in learns)


def test_what_can_not_be_aligned_is_refused():
    network, inner = denoiser("dit"), hfgen.Denoising(StraightPath())
    example = {"sample": torch.zeros(1, 1, 8, 8), "timestep": torch.zeros(1), "class_labels": torch.zeros(1).long()}
    with pytest.raises(ValueError, match="layer='middle' is not known"):
        hfgen.AlignedDenoiser(network, 5, (2, 2), example, "middle")
    with pytest.raises(ValueError, match="no map"):
        hfgen.AlignedDenoiser(network, 5, (2, 2), example, "time_embedding")
    with pytest.raises(ValueError, match="has no encode and no grid"):
        hfgen.Alignment(inner, nn.Linear(1, 1))
    with pytest.raises(ValueError, match="weight"):
        hfgen.Alignment(inner, Seeing(torch.zeros(1, 1, 1), 1, 1), 0.0)
    with pytest.raises(ValueError, match="has the players"):
        hfgen.Alignment(hfgen.Adversarial("hinge", 4), Seeing(torch.zeros(1, 1, 1), 1, 1))


# --- the front door ---------------------------------------------------------------------------------------------------

WORDS = ["--dataset", "digits", "--max_train_samples", 40, "--train_batch_size", 8, "--report_to", "none"]
FEW = [*WORDS, "--class_conditional", "--model", "dit", "--model_size", "xs", "--num_inference_steps", 2]
FEW += ["--eval_batch_size", 4, "--sample_steps", 0, "--lr_warmup_steps", 1]


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    """The folder of a masked autoencoder."""
    folder = tmp_path_factory.mktemp("mae") / "mae"
    words = [*WORDS, "--model_size", "xs", "--max_train_steps", 2, "--lr_warmup_steps", 1, "--output_dir", folder]
    train_mae.main(list(map(str, words)))
    return folder


def test_an_aligned_training_goes_on_exactly_and_leaves_a_plain_pipeline(mae, capsys, monkeypatch, tmp_path):
    words = [*FEW, "--align_with", mae, "--max_train_steps", 3, "--checkpointing_steps", 1, "--logging_steps", 1]
    check_stops(train_diffusion.main, capsys, monkeypatch, tmp_path, words, {1: 2})
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "whole" / "run")
    assert type(pipeline.denoiser) is hfgen.DiTModel and set(pipeline.components) >= {"denoiser", "scheduler"}
    rows = [json.loads(line) for line in (tmp_path / "whole" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["alignment"] < 2 for row in rows)


def test_a_hidden_layer_learns_the_features(mae, capsys, tmp_path):
    words = [*FEW, "--align_with", mae, "--align_weight", 5, "--max_train_steps", 25, "--logging_steps", 1]
    status, _, errors = run_door(train_diffusion.main, capsys, *words, "--output_dir", tmp_path / "x")
    assert status == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["alignment"] < 0.7 * rows[0]["alignment"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--align_weight", 1], "--align_weight 1.0 does nothing without --align_with"),
        (["--align_layer", "x"], "--align_layer x does nothing without --align_with"),
        (["--align_with", "x", "--lora_rank", 2, "--init_from", "y"], "--align_with x does nothing with --lora_rank 2"),
        (["--align_with", "x", "--objective", "likelihood"], "--align_with x does nothing with --objective likelihood"),
        (["--align_with", "x", "--torch_compile"], "--align_with x does nothing with --torch_compile"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message, capsys, monkeypatch, tmp_path):
    check_refusal(train_diffusion.main, capsys, monkeypatch, tmp_path / "run", [*FEW, *words], message)


def test_another_network_other_images_and_an_unknown_layer_are_refused(mae, capsys, tmp_path):
    words = [*FEW, "--max_train_steps", 1, "--output_dir", tmp_path / "x"]
    for more, message in (
        (["--align_with", mae, "--align_layer", "middle"], "--align_layer middle: layer='middle' is not known"),
        (["--align_with", mae, "--resolution", 16], "The pipeline has images of shape (1, 8, 8)"),
        (["--align_with", tmp_path / "gone"], "gone"),
    ):
        status, _, errors = run_door(train_diffusion.main, capsys, *words, *more)
        assert status == 2 and message in errors, errors
