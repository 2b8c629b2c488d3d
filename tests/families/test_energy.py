"""The front door of energies: each objective, resumed runs with chains, divergence and its rollbacks, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import hfgen
from hfgen.data.images import load_images
from hfgen.families.energy import divergence
from hfgen.families.energy.options import GuardArgs
from hfgen.options import DataArgs
from hfgen.training import train_energy
from tests.helpers.doors import check_refusal, run_door

QUICK = [
    "--dataset",
    "digits",
    "--max_train_samples",
    "24",
    "--train_batch_size",
    "8",
    "--model",
    "dit",
    "--model_size",
    "xs",
]
QUICK += ["--lr_warmup_steps", "0", "--lr_scheduler", "constant", "--report_to", "none", "--eval_batch_size", "2"]
QUICK += ["--num_inference_steps", "2", "--sample_steps", "0"]
CHAINS = ["--objective", "contrastive", "--chain_steps", "1", "--num_chains", "16", "--form", "scalar"]


def train(capsys, *words):
    status, _, errors = run_door(train_energy.main, capsys, *QUICK, *words)
    return status, errors


@pytest.mark.parametrize(
    ("words", "scheduler"),
    [
        (["--class_conditional", "--guidance_scale", "2"], "GradientDescentScheduler"),
        pytest.param(["--form", "field", "--scheduler", "langevin"], "LangevinScheduler", marks=pytest.mark.slow),
        (["--objective", "score"], "AnnealedLangevinScheduler"),
        (["--objective", "energy_matching", "--flow_steps", "1", "--scheduler", "mala"], "HamiltonianScheduler"),
    ],
)
def test_each_objective_leaves_a_pipeline_that_draws(words, scheduler, tmp_path, capsys):
    extra = ["--chain_steps", "1", "--num_chains", "16", "--gap_steps", "0"] if "energy_matching" in words else []
    status, errors = train(capsys, *words, *extra, "--max_train_steps", 2, "--output_dir", tmp_path)
    assert status == 0, errors
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path)
    assert type(pipeline.scheduler).__name__ == scheduler
    assert pipeline(2, num_inference_steps=2, output_type="latent").images.shape == (2, 1, 8, 8)
    assert (tmp_path / "descent.gif").is_file() and (tmp_path / "samples.png").is_file()


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path, capsys):
    """With its chains, which are half of what the training knows."""
    for folder, steps in (("a", 2), ("a", 3), ("b", 3)):
        words = [*CHAINS, "--class_conditional", "--max_train_steps", steps, "--output_dir", tmp_path / folder]
        status, errors = train(capsys, *words, "--checkpointing_steps", 2)
        assert status == 0, errors
    for name in ("energy_model/diffusion_pytorch_model.safetensors", "checkpoint-3/state_chains.safetensors"):
        first, second = (load_file(tmp_path / folder / name) for folder in ("a", "b"))
        assert first and all(torch.equal(first[key], second[key]) for key in first)
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text(encoding="utf-8"))
    assert [entry["metric"] for entry in metrics["evaluation"]] == ["energy gap per dimension"]


ROLL = [*CHAINS, "--checkpointing_steps", "1", "--checkpoints_total_limit", "3", "--gap_steps", "1"]


def alarms_at(monkeypatch, *steps):
    """The monitor finds a gap of 9 at these steps, the first time it comes to each of them, and otherwise none."""
    left, mean = list(steps), divergence.DivergenceMonitor._mean

    def row(self, pipeline, step):
        found = original(self, pipeline, step)
        if step in left:
            left.remove(step)
            return {**found, "gap": 9.0, "alarm": "a test"}
        return {**found, "gap": 0.0, "alarm": None}

    original = divergence.DivergenceMonitor.row
    monkeypatch.setattr(divergence.DivergenceMonitor, "row", row)
    return mean


def test_a_divergence_is_rolled_back_with_half_the_learning_rate(tmp_path, capsys, monkeypatch):
    alarms_at(monkeypatch, 3)
    status, errors = train(capsys, *ROLL, "--max_train_steps", 4, "--output_dir", tmp_path)
    assert status == 0, errors
    names = {path.name for path in tmp_path.iterdir()}
    assert {"diverged-3", "checkpoint-4"} <= names
    rows = [json.loads(line) for line in (tmp_path / "divergence.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4] and rows[2]["rolled_back_to"] == 2
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["lr"] == pytest.approx(0.0005)


def test_a_loss_that_is_not_finite_is_rolled_back_too(tmp_path, capsys, monkeypatch):
    loss, left = hfgen.ContrastiveDivergence.loss, [2]

    def broken(self, player, networks, batch, step):
        found = loss(self, player, networks, batch, step)
        if step.number in left:
            left.remove(step.number)
            return found._replace(value=found.value * torch.nan)
        return found

    monkeypatch.setattr(hfgen.ContrastiveDivergence, "loss", broken)
    status, errors = train(
        capsys, *ROLL, "--logging_steps", 1, "--max_train_steps", 4, "--most_gap", 1e6, "--output_dir", tmp_path
    )
    assert status == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "divergence.jsonl").read_text().splitlines()]
    failed = [row for row in rows if "rolled_back_to" in row]
    assert len(failed) == 1 and "nan" in failed[0]["alarm"] and failed[0]["gap"] is None
    assert (tmp_path / "checkpoint-4").is_dir()


def test_energies_are_compared_under_classes_that_the_data_have():
    """Chains of the null class are left out, and so are those that have not begun."""
    chains = hfgen.PersistentChains(5, (1, 8, 8))
    chains.items.copy_(torch.arange(5.0)[:, None, None, None].expand(5, 1, 8, 8))
    chains.labels.copy_(torch.tensor([0, 10, 3, 4, 5]))
    chains.ages.copy_(torch.tensor([1, 1, 2, 0, 1]))
    seen = []

    class Stub:
        config = SimpleNamespace(num_classes=10)

        def energy(self, x, labels):
            seen.append((x.flatten(1)[:, 0].tolist(), labels.tolist()))
            return x.flatten(1).sum(1).double()

    args, data = GuardArgs(most_gap=100.0), load_images(DataArgs(max_train_samples=20))
    monitor = divergence.DivergenceMonitor(args, 1, "stop", chains, data, Path("nowhere"), 0)
    row = monitor.row(Stub(), 7)
    assert seen[1] == ([0.0, 2.0, 4.0], [0, 3, 5]) and len(seen[0][1]) == 20
    assert row["energy_fake"] == 2.0 and row["gap"] == 2.0 - row["energy_real"] and row["alarm"] is None


def test_a_gap_is_an_alarm(tmp_path, capsys):
    status, errors = train(
        capsys, *ROLL, "--on_divergence", "stop", "--most_gap", 1e-9, "--max_train_steps", 3, "--output_dir", tmp_path
    )
    assert status == 1 and "At step 1 the energy had diverged: its samples lie" in errors
    assert "There is no healthy one. Lower --learning_rate or --chain_step_size" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--form", "field", "--objective", "contrastive"], "--form field has no energy"),
        (["--form", "field", "--scheduler", "hmc"], "--scheduler hmc accepts moves by their energy"),
        (["--scheduler", "annealed_langevin"], "do not go together"),
        (["--objective", "score", "--scheduler", "langevin"], "do not go together"),
        (["--objective", "score", "--decay", "0.5"], "--decay 0.5 does nothing with --objective score"),
        (["--chain_steps", "3"], "--chain_steps 3 does nothing with --objective equilibrium"),
        (["--objective", "contrastive", "--start", "data", "--num_chains", "8"], "--num_chains 8 does nothing"),
        (["--on_divergence", "rollback"], "does nothing with --objective equilibrium"),
        ([*CHAINS, "--gap_steps", "1", "--checkpointing_steps", "3"], "Raise it to"),
        (["--guidance_scale", "2"], "class_conditional"),
        (["--objective", "score", "--sigma_min", "20"], "VE needs 0 < sigma_min < sigma_max"),
        (["--torch_compile"], "--torch_compile"),
        (["--gradient_checkpointing"], "--gradient_checkpointing"),
        (["--temperature", "0.5"], "--temperature 0.5 does nothing with --scheduler nesterov"),
        ([*CHAINS, "--momentum", "0.5"], "--momentum 0.5 does nothing with --scheduler langevin"),
        (["--objective", "score", "--step_size", "0.5"], "--step_size 0.5 does nothing with --scheduler annealed"),
        (["--momentum", "0.5", "--scheduler", "langevin"], "--momentum 0.5 does nothing"),
        (["--resolution", "67", "--model", "unet"], "can't divide 67 x 67"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message, capsys, monkeypatch, tmp_path):
    check_refusal(train_energy.main, capsys, monkeypatch, tmp_path / "x", words, message)
