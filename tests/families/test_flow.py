"""The front door of normalizing flows: actnorms that are the same everywhere, measurements, resumed runs, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file

import hfgen
from hfgen.data.images import load_images
from hfgen.families.flow.options import FlowArgs, LikelihoodArgs
from hfgen.families.flow.recipe import FlowRecipe
from hfgen.families.vae.evaluation import _renumbered
from hfgen.options import DataArgs, TrainArgs
from hfgen.training import train_flow
from tests.helpers.doors import check_refusal, run_door
from tests.helpers.processes import run_in_two_processes

QUICK = ["--max_train_samples", "48", "--train_batch_size", "8", "--model_size", "xs", "--lr_warmup_steps", "2"]
FEW = ["--eval_batch_size", "4", "--num_likelihood", "8", "--report_to", "none", "--checkpointing_steps", "1"]


def recipe(**options):
    return FlowRecipe(DataArgs(max_train_samples=100), FlowArgs(**options), LikelihoodArgs(), TrainArgs(seed=3))


def test_actnorms_are_set_by_the_same_images_in_each_process():
    data = load_images(DataArgs(max_train_samples=100))
    made = [recipe(model="glow", model_size="xs", class_conditional=True).network(data, 10) for _ in range(2)]
    for first, second in zip(made[0].state_dict().items(), made[1].state_dict().items(), strict=True):
        assert first[0] == second[0] and torch.equal(first[1], second[1])
    flags = [value for name, value in made[0].state_dict().items() if name.endswith("initialised")]
    assert flags and all(flags)


PROGRAM = """
import sys
import torch
from accelerate import Accelerator
from hfgen.training import train_flow
few = "--dataset digits --max_train_samples 48 --train_batch_size 4 --model glow --model_size xs --max_train_steps 2"
train_flow.main([*few.split(), "--eval_batch_size", "4", "--num_likelihood", "8", "--report_to", "none",
                 "--output_dir", sys.argv[1] + "/run"])
"""


@pytest.mark.slow
def test_two_processes_train_the_flow_of_one(tmp_path, capsys):
    run_in_two_processes(PROGRAM, tmp_path)
    words = ["--dataset", "digits", *QUICK[:2], "--train_batch_size", "8", "--model", "glow", "--model_size", "xs"]
    run_door(train_flow.main, capsys, *words, *FEW, "--max_train_steps", "2", "--output_dir", tmp_path / "one")
    two, one = (torch_weights(tmp_path / name) for name in ("run", "one"))
    for name, value in one.items():
        torch.testing.assert_close(two[name].float(), value.float(), atol=1e-4, rtol=1e-4)


def torch_weights(folder):
    return load_file(folder / "flow" / "diffusion_pytorch_model.safetensors")


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path, capsys):
    """With actnorms, which are set before the first step and come from the checkpoint afterwards."""
    words = ["--dataset", "digits", "--model", "glow", "--class_conditional", "--lr_scheduler", "constant_with_warmup"]
    for folder, steps in (("a", 1), ("a", 2), ("b", 2)):
        output = ["--max_train_steps", steps, "--output_dir", tmp_path / folder]
        status, _, errors = run_door(train_flow.main, capsys, *words, *QUICK, *FEW, *output)
        assert status == 0, errors
    name = "flow/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text(encoding="utf-8"))
    measured = {entry["metric"]: entry for entry in metrics["evaluation"]}
    assert 0 < measured["bits per dimension"]["value"] < 20
    assert measured["inverse error, largest of a pixel"]["value"] < 1e-4


def test_a_flow_without_a_null_label_is_measured_under_the_classes_of_the_images(tmp_path, capsys):
    """And names them in the protocol; images without classes are refused before the first step."""
    words = ["--dataset", "digits", "--model", "nice", "--class_conditional", "--label_dropout", 0, *QUICK, *FEW]
    words += ["--max_train_steps", 1]
    status, _, errors = run_door(train_flow.main, capsys, *words, "--output_dir", tmp_path / "a")
    assert status == 0, errors
    entries = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))["evaluation"]
    assert {entry["protocol"]["classes"] for entry in entries} == {"those of the images"}
    pipeline = hfgen.NormalizingFlowPipeline.from_pretrained(tmp_path / "a")
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"needs class_labels, from 0 to 9, or use of_class\(label\)"):
        pipeline.interpolate(images, images)
    assert pipeline.of_class("3").interpolate(images, images, 2).shape == (2, 2, 1, 8, 8)
    torch.testing.assert_close(pipeline.reconstruct(images, [3, 4]), images, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["a", "b"], ["a", "b"], [0, 1, 1]),
        (["b", "c"], ["a", "b", "c"], [1, 2, 2]),
        (["a", "z"], ["a", "b"], None),
        (None, None, [0, 1, 1]),
        (None, ["a", "b"], None),
        (["a", "b"], None, None),
    ],
)
def test_classes_of_held_out_images_are_those_of_the_same_names(names, known, expected):
    numbers = _renumbered(torch.tensor([0, 1, 1]), names, known)
    assert (None if numbers is None else numbers.tolist()) == expected
    assert _renumbered(None, names, known) is None


@pytest.mark.parametrize("model", ("residual", "implicit"))
def test_residual_flows_are_trained_measured_and_sampled(model, tmp_path, capsys):
    words = ["--dataset", "digits", "--model", model, *QUICK, *FEW, "--max_train_steps", "1", "--num_likelihood", "4"]
    status, _, errors = run_door(train_flow.main, capsys, *words, "--output_dir", tmp_path)
    assert status == 0, errors
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    measured = {entry["metric"]: entry["value"] for entry in metrics["evaluation"]}
    assert 0 < measured["bits per dimension"] < 20 and measured["inverse error, largest of a pixel"] < 1e-4
    assert (tmp_path / "interpolation.gif").is_file()


def test_images_that_an_architecture_does_not_take_are_refused(capsys, monkeypatch, tmp_path):
    words = ["--dataset", "digits", "--resolution", "9", "--model", "glow"]
    check_refusal(train_flow.main, capsys, monkeypatch, tmp_path / "x", words, "squeeze=2 do not tile")
