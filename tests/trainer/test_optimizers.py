"""The optimisers of players, learning rates of their own, and batches of their own for each turn."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import hfgen
from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.families.adversarial_options import AdversarialTrainArgs
from hfgen.objectives.adversarial import Adversarial
from hfgen.objectives.base import Objective, loss_with_logs
from hfgen.objectives.penalties import WeightClipping
from hfgen.options import DataArgs, TrainArgs
from hfgen.trainer.checkpoint import CheckpointError, compare
from hfgen.trainer.loop import steps_in
from hfgen.trainer.optimizers import OPTIMIZERS
from tests.helpers.cuts import Interruption
from tests.helpers.toys import HingeGAN, TracedObjective, deep_networks, gan_networks, rows, run, weights

CONSTANT = {"lr_scheduler": "constant", "lr_warmup_steps": 0, "max_grad_norm": None, "use_ema": False}


class Slopes(Objective):
    """Two points w of R^3 and the losses (number of the step + 1) c . w, whose gradients are known."""

    players = ("discriminator", "generator")
    slope = torch.tensor([1.0, -0.5, 2.0])

    def loss(self, player, networks, batch, step):
        return loss_with_logs((step.number + 1) * (self.slope * networks[player].weight).sum(), {})


def two_points():
    points = {name: nn.Linear(3, 1, bias=False) for name in Slopes.players}
    for point in points.values():
        nn.init.zeros_(point.weight)
    return points


def rmsprop(rate, steps, alpha):
    """Tieleman & Hinton 2012 in float64: v <- alpha v + (1 - alpha) g^2, w <- w - rate g / (sqrt(v) + 1e-8)."""
    w, v = np.zeros(3), np.zeros(3)
    for number in range(steps):
        g = (number + 1) * Slopes.slope.double().numpy()
        v = alpha * v + (1 - alpha) * g**2
        w = w - rate * g / (np.sqrt(v) + 1e-8)
    return w


def adam(rate, steps, beta_1, beta_2, epsilon):
    """Kingma & Ba 2015 in float64."""
    w, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    for number in range(1, steps + 1):
        g = number * Slopes.slope.double().numpy()
        m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
        w = w - rate * (m / (1 - beta_1**number)) / (np.sqrt(v / (1 - beta_2**number)) + epsilon)
    return w


EXPECTED = {
    "adamw": ({"adam_beta1": 0.3, "adam_beta2": 0.8}, lambda rate: adam(rate, 5, 0.3, 0.8, 1e-8)),
    "rmsprop": ({"rmsprop_alpha": 0.7}, lambda rate: rmsprop(rate, 5, 0.7)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_optimiser_against_numpy_at_the_rate_of_each_player(tmp_path, name):
    options, expected = EXPECTED[name]
    rates = {"learning_rate": 0.01, "discriminator_learning_rate": 0.03}
    options = {**CONSTANT, **options, **rates, "optimizer": name, "max_train_steps": 5, "logging_steps": 1}
    points, _ = run(tmp_path, "", Slopes(), two_points(), **options)
    for player, rate in {"generator": 0.01, "discriminator": 0.03}.items():
        np.testing.assert_allclose(points[player].weight.detach()[0].numpy(), expected(rate), rtol=1e-5)
        assert [row[f"{player}/lr"] for row in rows(tmp_path)] == [rate] * 5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_row_says_how_many_bytes_of_moments_it_keeps(name):
    network = deep_networks(torch.float32)["discriminator"].append(nn.BatchNorm1d(1))
    network[0].bias.requires_grad_(False)
    optimizer = OPTIMIZERS[name].make(network, 0.1)
    for p in network.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step()
    kept = [v for p in network.parameters() for key, v in optimizer.state[p].items() if key != "step"]
    assert sum(v.numel() * v.element_size() for v in kept) == OPTIMIZERS[name].moments(network) > 0


def test_each_rate_has_the_same_schedule(tmp_path):
    rates = {"learning_rate": 0.01, "discriminator_learning_rate": 0.03}
    run(tmp_path, "", Slopes(), two_points(), max_train_steps=6, logging_steps=1, lr_scheduler="cosine", **rates)
    for number, row in enumerate(rows(tmp_path), 1):
        share = min(number / 2, 1) * (0.5 * (1 + math.cos(math.pi * (number - 2) / 4)) if number > 2 else 1)
        assert row["generator/lr"] == pytest.approx(0.01 * share, abs=1e-12)
        assert row["discriminator/lr"] == pytest.approx(0.03 * share, abs=1e-12)


# --- resume -----------------------------------------------------------------------------------------------------------

WGAN = {"optimizer": "rmsprop", "learning_rate": 1e-3, "discriminator_learning_rate": 4e-3, "logging_steps": 1}
SHORT = {"train_batch_size": 4, "gradient_accumulation_steps": 2, "checkpointing_steps": 1, "use_ema": False}


class Flat(Objective):
    """`Adversarial` for the plain networks of the tests, which take flat items."""

    def __init__(self, inner):
        self.inner, self.players, self.batches_per_step = inner, inner.players, inner.batches_per_step

    def loss(self, player, networks, batch, step):
        views = {"generator": networks["generator"], "discriminator": lambda x: networks["discriminator"](x)[:, 0]}
        return self.inner.loss(player, views, {**batch, "x": batch["x"].flatten(1)}, step)

    def project(self, player, network):
        self.inner.project(player, network)


def wgan(n_critic=3, fresh=True):
    return Flat(Adversarial("wasserstein", 8, (WeightClipping(0.05),), n_critic, fresh_batches=fresh))


def test_an_interrupted_wgan_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
    def interrupt(step):
        if (step.number, step.turn, step.shard) == (3, 2, 1):
            raise Interruption

    whole = TracedObjective(wgan())
    networks, _ = run(tmp_path / "whole", "", whole, gan_networks(), **WGAN, **SHORT)
    lost = TracedObjective(wgan(), interrupt)
    with pytest.raises(Interruption):
        run(tmp_path / "cut", "", lost, gan_networks(), **WGAN, **SHORT)
    rest = TracedObjective(wgan())
    cut, _ = run(tmp_path / "cut", "", rest, gan_networks(), **WGAN, **SHORT)
    expected, values = weights(networks), weights(cut)
    assert all(torch.equal(values[key], expected[key]) for key in expected)
    assert {**lost.trace, **rest.trace} == whole.trace and rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_the_rate_of_the_discriminator_may_change_on_resume_and_the_optimiser_may_not(tmp_path, capsys):
    run(tmp_path, "gan", max_train_steps=2, **CONSTANT)
    run(tmp_path, "gan", max_train_steps=4, discriminator_learning_rate=4e-3, **CONSTANT)
    assert "discriminator_learning_rate: None -> 0.004" in capsys.readouterr().out
    assert rows(tmp_path)[-1]["discriminator/lr"] == 4e-3 and rows(tmp_path)[-1]["generator/lr"] == 1e-3
    with pytest.raises(CheckpointError, match="optimizer: adamw -> rmsprop"):
        run(tmp_path, "gan", max_train_steps=6, optimizer="rmsprop", **CONSTANT)


def test_checkpoints_from_before_these_options_are_continued_as_they_were_trained():
    before = {"seed": 0, "n_critic": 5}
    assert compare(before, {**before, "optimizer": "adamw", "batches_per_step": 1}) == []
    for other in ({"optimizer": "rmsprop"}, {"batches_per_step": 5}):
        with pytest.raises(ValueError, match=r"optimizer: adamw -> rmsprop|batches_per_step: 1 -> 5"):
            compare(before, {**before, **other})


def test_a_rollback_slows_all_players():
    args = AdversarialTrainArgs(learning_rate=1e-3, discriminator_learning_rate=4e-3, train_batch_size=7)
    slow = args.slower(4)
    assert (slow.learning_rate, slow.discriminator_learning_rate, slow.train_batch_size) == (2.5e-4, 1e-3, 7)
    assert AdversarialTrainArgs(learning_rate=1e-3).slower(2).learning_rates == {}


@pytest.mark.parametrize("rate", [0.0, -1e-3, math.nan, math.inf])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"discriminator_learning_rate .* must be (finite, and )?above 0"):
        AdversarialTrainArgs(discriminator_learning_rate=rate)


def test_from_python_a_player_has_a_rate_of_its_own_and_others_are_refused(tmp_path):
    digits, options = load_images(DataArgs(max_train_samples=24)), {"report_to": "none", "train_batch_size": 8}
    result = hfgen.train(
        gan_networks(), HingeGAN(), digits, tmp_path / "gan", max_train_steps=1, lr_scheduler="constant",
        lr_warmup_steps=0, learning_rate=1e-4, discriminator_learning_rate=4e-4, optimizer="rmsprop", **options,
    )  # fmt: skip
    assert (result.logs["generator/lr"], result.logs["discriminator/lr"]) == (1e-4, 4e-4)
    with pytest.raises(ValueError, match=r"discriminator_learning_rate=0.1 does nothing: denoiser learn"):
        hfgen.train(
            nn.Linear(8, 8), hfgen.Denoising(hfgen.paths.StraightPath()), torch.zeros(32, 8), tmp_path / "flow",
            max_train_steps=1, discriminator_learning_rate=0.1, **options,
        )  # fmt: skip


# --- fresh batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(("batch_size", "parts"), [(8, 1), (2, 4)])
def test_each_turn_of_the_discriminator_has_its_own_batch_of_the_one_stream(tmp_path, fresh, batch_size, parts):
    """Turn k of step n has batch 3 n + k of the stream, and the generator that of the turn before it."""
    objective = TracedObjective(wgan(3, fresh), tensors=True)
    options = {"train_batch_size": batch_size, "gradient_accumulation_steps": parts, "max_train_steps": 4}
    run(tmp_path, "", objective, gan_networks(), samples=100, **options)
    whole = Batches(load_images(DataArgs(max_train_samples=100)), 8, seed=0).iterate()
    stream = [next(whole)["x"] for _ in range(12)]
    assert not torch.equal(stream[0], stream[1])
    for number in range(4):
        for turn in range(4):
            seen = torch.cat([objective.trace[number, turn, shard][0] for shard in range(parts)])
            assert torch.equal(seen, stream[3 * number + min(turn, 2) if fresh else number])


def test_ranks_share_each_batch_of_a_turn():
    """Batch b of a step in micro-batches of two processes is the batch of one process, in order."""
    data = load_images(DataArgs(max_train_samples=100))
    whole = Batches(data, 8, seed=0).iterate()
    ranks = [Batches(data, 2, seed=0, rank=rank, world=2).iterate() for rank in (0, 1)]
    for _ in range(9):  # three steps of three batches, each accumulated from two micro-batches
        parts = [next(ranks[rank])["x"] for _ in range(2) for rank in (0, 1)]
        assert torch.equal(torch.cat(parts), next(whole)["x"])


def test_what_was_seen_counts_the_batches_of_all_turns(tmp_path):
    _, result = run(tmp_path, "", wgan(3), gan_networks(), samples=48, logging_steps=1)
    assert result.items_seen == 6 * 3 * 8
    assert [row["epoch"] for row in rows(tmp_path)] == pytest.approx([number / 2 for number in range(1, 7)])
    state = json.loads((tmp_path / "checkpoint-6" / "state.json").read_text())
    assert state["config"]["batches_per_step"] == 3
    _, result = run(tmp_path / "same", "", wgan(3, fresh=False), gan_networks(), samples=48)
    assert result.items_seen == 6 * 8

    class Data:
        batches_per_epoch, batch_size = 30, 8

    assert [steps_in(TrainArgs(num_epochs=2), Data(), each) for each in (1, 3, 7)] == [60, 20, 9]


def test_turns_that_are_left_out_leave_the_stream_where_it_is(tmp_path):
    """The discriminator has no turn in odd steps; the generator still has the batches of its step."""

    class Sometimes(Flat):
        def turns(self, number):
            return self.players[2:] if number % 2 else self.players

    objective = TracedObjective(Sometimes(wgan(2).inner), tensors=True)
    run(tmp_path, "", objective, gan_networks(), samples=100, max_train_steps=3)
    whole = Batches(load_images(DataArgs(max_train_samples=100)), 8, seed=0).iterate()
    stream = [next(whole)["x"] for _ in range(6)]
    assert torch.equal(objective.trace[1, 0, 0][0], stream[2])
    assert torch.equal(objective.trace[2, 0, 0][0], stream[4]) and torch.equal(objective.trace[2, 2, 0][0], stream[5])
