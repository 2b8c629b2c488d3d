"""The front door of autoregressive models: measurements, resumed runs, refusals."""

import json

import pytest

from hfgen.commands import evaluate
from hfgen.training import train_ar
from tests.helpers.doors import check_refusal, run_door

QUICK = ["--max_train_samples", "48", "--train_batch_size", "8", "--model_size", "xs", "--lr_warmup_steps", "2"]
FEW = ["--eval_batch_size", "4", "--num_likelihood", "8", "--report_to", "none", "--checkpointing_steps", "1"]


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path, capsys):
    """With binary pixels, whose draws belong to the step."""
    words = [
        "--dataset",
        "digits",
        "--pixels",
        "binary",
        "--class_conditional",
        "--lr_scheduler",
        "constant_with_warmup",
    ]
    for folder, steps in (("a", 1), ("a", 2), ("b", 2)):
        output = ["--max_train_steps", steps, "--output_dir", tmp_path / folder]
        status, _, errors = run_door(train_ar.main, capsys, *words, *QUICK, *FEW, *output)
        assert status == 0, errors
    name = "model/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text(encoding="utf-8"))
    (entry,) = metrics["evaluation"]
    assert entry["metric"] == "log-likelihood, nats" and -200 < entry["value"] < 0
    assert (tmp_path / "b" / "completions.png").is_file()


@pytest.mark.parametrize(
    ("options", "pixels"),
    [
        (["--model", "made", "--num_orders", "2", "--pixels", "binary"], "binarised at random, 1 draw"),
        (["--model", "fvsbn", "--class_conditional", "--label_dropout", "0"], "of 256 levels, exact"),
        (
            ["--model", "nade", "--pixels", "real", "--components", "3", "--likelihood_samples", "2"],
            "the mean of 2 draws",
        ),
    ],
)
def test_each_model_trains_and_is_measured(tmp_path, capsys, options, pixels):
    words = ["--dataset", "digits", *QUICK, *FEW, *options, "--max_train_steps", "1", "--output_dir", tmp_path / "run"]
    status, _, errors = run_door(train_ar.main, capsys, *words)
    assert status == 0, errors
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    (entry,) = metrics["evaluation"]
    assert pixels in entry["protocol"]["pixels"]


def test_patches_drawn_by_a_flow_train(tmp_path, capsys):
    words = ["--dataset", "digits", *QUICK, *FEW, "--pixels", "flow", "--random_order", "--class_conditional"]
    words += ["--gradient_checkpointing"]
    status, out, errors = run_door(
        train_ar.main, capsys, *words, "--max_train_steps", "2", "--output_dir", tmp_path / "x"
    )
    assert status == 0, errors
    assert "states no likelihood" in out
    assert "Completions will be of training images" in out and "Measur" not in out
    assert (tmp_path / "x" / "completions.png").is_file()
    with pytest.raises(ValueError, match=r"--metrics bits_per_dimension: .* states no probabilities"):
        evaluate.main([str(tmp_path / "x"), "--metrics", "bits_per_dimension"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--pixels", "real"], "--pixels real is for --model nade, made or fvsbn"),
        (["--resolution", "9", "--patch_size", "2"], "patch_size=2"),
        (["--gradient_checkpointing", "--model", "made"], "--gradient_checkpointing is not for --model made"),
        (["--pixels", "flow", "--model", "made"], "--model made"),
    ],
)
def test_options_that_do_not_go_together_are_refused(capsys, monkeypatch, tmp_path, words, named):
    check_refusal(train_ar.main, capsys, monkeypatch, tmp_path / "x", ["--dataset", "digits", *words], named)
