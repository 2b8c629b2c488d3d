"""The loop: every player's own gradient, exact resume, the same run however it is cut, and errors that name things."""

import os
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.objectives.base import Loss, Objective, Step
from hfgen.objectives.denoising import Denoising
from hfgen.options import DataArgs, TrainArgs
from hfgen.paths import StraightPath
from hfgen.trainer import checkpoint
from hfgen.trainer.ema import EMA
from hfgen.trainer.log import DivergenceError
from hfgen.trainer.loop import steps_in, train
from hfgen.trainer.signals import StopSignals
from tests.helpers.toys import HingeGAN, denoiser_networks, gan_networks, plain_networks, rows, run, weights


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


EXACT = {"rtol": 0, "atol": 0}


def test_each_player_moves_by_its_own_loss_and_sees_the_moves_before_it(tmp_path):
    trained, _ = run(tmp_path, "gan", max_train_steps=3, use_ema=False)
    networks, objective = gan_networks(), HingeGAN()
    optimizers = {
        name: torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0)
        for name, net in networks.items()
    }
    stream = Batches(load_images(DataArgs(max_train_samples=24)), 8, 0).iterate(0)
    for number in range(3):
        batch = next(stream)
        for turn, name in enumerate(objective.players):
            value = objective.loss(name, networks, batch, Step(number, turn=turn)).value
            gradients = torch.autograd.grad(value, list(networks[name].parameters()))
            for p, gradient in zip(networks[name].parameters(), gradients, strict=True):
                p.grad = gradient
            nn.utils.clip_grad_norm_(networks[name].parameters(), 1.0)
            rate = min(1, number / 2) * (1 if number < 2 else 0.5 * (1 + np.cos(np.pi * (number - 2) / (3 - 2))))
            optimizers[name].param_groups[0]["lr"] = 1e-3 * rate
            optimizers[name].step()
    assert_same(weights(trained), weights(networks), rtol=0, atol=1e-6)


def test_opponents_are_frozen_in_a_turn_and_thawed_after_it(tmp_path):
    seen = []

    class Watching(HingeGAN):
        def loss(self, player, networks, batch, step):
            seen.append((player, {n: all(p.requires_grad for p in net.parameters()) for n, net in networks.items()}))
            return super().loss(player, networks, batch, step)

    networks, _ = run(tmp_path, "gan", Watching(), max_train_steps=1)
    assert seen == [
        ("discriminator", {"generator": False, "discriminator": True}),
        ("generator", {"generator": True, "discriminator": False}),
    ]
    assert all(p.requires_grad for net in networks.values() for p in net.parameters())


def test_a_network_that_is_no_player_stays_as_it_is(tmp_path):
    teacher = nn.Linear(64, 64)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    networks = {**denoiser_networks(), "teacher": teacher}
    run(tmp_path, networks=networks, max_train_steps=2)
    assert_same(teacher.state_dict(), before, **EXACT)
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("kind", ["denoiser", "gan", "muon"])
def test_accumulated_micro_batches_are_one_batch(tmp_path, kind):
    cut = {"train_batch_size": 2, "gradient_accumulation_steps": 4}
    whole, _ = run(tmp_path / "whole", kind, networks=plain_networks(kind), train_batch_size=8)
    parts, _ = run(tmp_path / "parts", kind, networks=plain_networks(kind), **cut)
    assert_same(weights(whole), weights(parts), rtol=0, atol=1e-6)
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert a.keys() == b.keys()
        assert all(a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6) for key in a)


def run_until(folder, kind, until, **options):
    """`run`, told to stop by a signal during the last step before `until`."""
    from tests.helpers.toys import KINDS

    base = KINDS[kind][1]()

    class Stopping(Objective):
        players = base.players

        def loss(self, player, networks, batch, step):
            if step.number == until - 1 < 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return base.loss(player, networks, batch, step)

    return run(folder, kind, Stopping(), **options)


def test_a_signal_saves_and_leaves_without_error(tmp_path, capsys):
    _, result = run_until(tmp_path, "denoiser", 3)
    assert (result.step, result.finished) == (3, False)
    checkpoint.verify(tmp_path / "checkpoint-3")
    assert "the same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_one_interruption_in_another_tells_signals_from_what_it_was_asked():
    alone = Accelerator(cpu=True)
    with StopSignals() as outer:
        with StopSignals() as inner:
            inner.request()
            assert inner.requested(alone) and not outer.requested(alone)
            os.kill(os.getpid(), signal.SIGINT)  # the first: no KeyboardInterrupt
            assert outer.requested(alone)
        with StopSignals() as later:
            assert later.requested(alone)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                signal.sigtimedwait([], 1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_whoever_has_no_turn_is_left_as_it_is(tmp_path):
    """A generator that moves in every other step: its average and Adam count its moves, its LR goes by the step."""

    class Sparse(HingeGAN):
        def turns(self, number):
            return self.players if number % 2 else self.players[:1]

    options = {"lr_scheduler": "linear", "checkpointing_steps": 1, "checkpoints_total_limit": 6, "logging_steps": 1}
    run(tmp_path, "gan", Sparse(), max_train_steps=6, **options)
    kept = [load_file(tmp_path / f"checkpoint-{number}" / "model_1.safetensors") for number in range(1, 7)]
    averages = [load_file(tmp_path / f"checkpoint-{n}" / "ema_generator.safetensors") for n in range(1, 7)]
    assert_same(kept[0], gan_networks()["generator"].state_dict(), **EXACT)
    for before, after in ((1, 2), (3, 4)):
        assert_same(kept[before], kept[after], **EXACT)
        assert_same(averages[before], averages[after], **EXACT)
    assert [int(average["updates"]) for average in averages] == [0, 1, 1, 2, 2, 3]
    state = torch.load(tmp_path / "checkpoint-6" / "optimizer_1.bin")["state"]
    assert {int(entry["step"]) for entry in state.values()} == {3}
    found = rows(tmp_path)
    assert ["generator/loss" in row for row in found] == [False, True] * 3
    assert all(row["generator/lr"] == row["discriminator/lr"] for row in found)
    assert [row["generator/lr"] for row in found] == pytest.approx([5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4, 0])


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, _ = run(tmp_path)
    again, result = run(tmp_path)
    assert result.finished
    assert_same(weights(first), weights(again), **EXACT)
    assert len(rows(tmp_path)) == 3


def test_learning_rates_end_at_zero_whatever_the_accumulation(tmp_path):
    run(tmp_path, gradient_accumulation_steps=3, max_train_steps=10, lr_warmup_steps=4, logging_steps=1)
    rates = [row["lr"] for row in rows(tmp_path)]
    assert rates[3] == pytest.approx(1e-3)
    assert rates[:3] == pytest.approx([2.5e-4, 5e-4, 7.5e-4])
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_moving_average_against_numpy():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = EMA(network, max_decay=0.9, inv_gamma=1.0, power=0.75)
    expected = {key: value.double().numpy().copy() for key, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for update in range(1, 40):
        with torch.no_grad():
            for p in network.parameters():
                p += torch.randn(p.shape, generator=generator)
            network(torch.randn(5, 3, generator=generator))  # moves the running statistics
        ema.update(network)
        decay = min(0.9, 1 - (1 + update) ** -0.75)
        for key, value in network.state_dict().items():
            new = value.double().numpy()
            average = decay * expected[key] + (1 - decay) * new
            expected[key] = average if value.is_floating_point() else new
    for key, value in ema.module.state_dict().items():
        np.testing.assert_allclose(value.double().numpy(), expected[key], rtol=1e-6, atol=1e-7)
    assert ema.module[1].num_batches_tracked == 39


class Diary(nn.Linear):
    """A layer with two float buffers, of which it declares one a record."""

    unaveraged = ("seen",)

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("scale", torch.zeros(3))


def test_what_a_module_declares_a_record_has_no_average():
    network = nn.Sequential(Diary(), nn.BatchNorm1d(2))
    ema = EMA(network, max_decay=0.5)
    for number in (1.0, 2.0):
        network[0].seen.fill_(number), network[0].scale.fill_(number)
        ema.update(network)
    decays = [min(0.5, 1 - (1 + n) ** -0.75) for n in (1, 2)]
    scale = decays[1] * (1 - decays[0]) * 1 + (1 - decays[1]) * 2
    assert ema.module[0].seen.tolist() == [0.0] * 3
    assert ema.module[0].scale.tolist() == pytest.approx([scale] * 3)
    again = EMA(network)
    again.load_state_dict(ema.state_dict())
    assert_same(again.state_dict(), ema.state_dict(), **EXACT)


@pytest.mark.parametrize("options", [{"max_decay": 1.0}, {"max_decay": -0.1}, {"inv_gamma": 0.0}, {"power": -1.0}])
def test_moving_average_refuses_impossible_decays(options):
    with pytest.raises(ValueError, match="ema_"):
        EMA(nn.Linear(1, 1), **options)


class Spoilt(Denoising):
    """NaN at step 4."""

    def loss(self, player, networks, batch, step):
        value, logs = super().loss(player, networks, batch, step)
        bad = float("nan") if step.number == 3 else 1.0
        return Loss(value * bad, {"loss": logs["loss"] * bad})


class Torn(Denoising):
    """One of three logs is finite at step 2, where the loss is not."""

    def loss(self, player, networks, batch, step):
        value, logs = super().loss(player, networks, batch, step)
        bad = float("inf") if step.number == 1 else 1.0
        return Loss(value * bad, {"loss": logs["loss"] * bad, "whole": logs["loss"], "du_dt": logs["loss"] * bad})


def test_nan_is_traced_to_the_logs_that_have_it(tmp_path):
    with pytest.raises(DivergenceError, match=r"/?loss is inf at step 2 \(so are du_dt\); no checkpoint was saved"):
        run(tmp_path, objective=Torn(StraightPath()), checkpointing_steps=0)


def test_nan_stops_with_step_name_and_last_checkpoint(tmp_path):
    with pytest.raises(DivergenceError, match=r"loss is nan at step 4; the last good checkpoint is .*checkpoint-2"):
        run(tmp_path, objective=Spoilt(StraightPath()), checkpointing_steps=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-2"]
    assert [row["step"] for row in rows(tmp_path)] == [2]


def test_the_preview_sees_averaged_networks_in_evaluation_mode(tmp_path):
    seen = []

    def preview(networks, step):
        seen.append((step, networks["denoiser"].training, torch.is_grad_enabled()))

    args = TrainArgs(output_dir=str(tmp_path), report_to="none", max_train_steps=5, sample_steps=2, train_batch_size=8)
    loader = Batches(load_images(DataArgs(max_train_samples=24)), 8, 0)
    networks = denoiser_networks()
    train(networks, Denoising(StraightPath()), loader, args, Accelerator(cpu=True), preview)
    assert seen == [(2, False, False), (4, False, False)]


@pytest.mark.parametrize(
    "name", ["train_batch_size", "gradient_accumulation_steps", "logging_steps", "max_train_steps"]
)
def test_numbers_out_of_range_are_refused(name):
    class Endless:
        batches_per_epoch = None
        batch_size = 8

    with pytest.raises(ValueError, match=name):
        steps_in(TrainArgs(**{name: 0}), Endless(), 1)
    with pytest.raises(ValueError, match="max_train_steps"):
        steps_in(TrainArgs(), Endless(), 1)


def test_epochs_are_counted_in_optimiser_steps():
    class Data:
        batches_per_epoch = 10.5
        batch_size = 8

    assert steps_in(TrainArgs(num_epochs=4), Data(), 1) == 42
    assert steps_in(TrainArgs(num_epochs=4, gradient_accumulation_steps=4), Data(), 1) == 11
