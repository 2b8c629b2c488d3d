"""Trainings that follow each other in one process, and networks, logs and batches that can't be trained."""

import functools
import itertools
import json
import sys
import types

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import hfgen
from hfgen.families.identity import code_of, identity_of
from hfgen.objectives.base import Loss, Objective
from hfgen.options import TrainArgs
from hfgen.paths import CosineVPPath, DiscretePath, LinearVPPath, StraightPath, VEPath, betas_of
from hfgen.trainer.checkpoint import CheckpointError
from hfgen.trainer.log import DivergenceError
from hfgen.trainer.loop import train

X = torch.linspace(-1, 1, 32 * 3 * 64).reshape(32, 3, 8, 8)
QUIET = {"report_to": "none", "sample_steps": 0, "logging_steps": 1, "lr_warmup_steps": 0, "lr_scheduler": "constant"}


class Images:
    batch_size, batches_per_epoch, fingerprint = 8, 4, "linspace"

    def __init__(self, last=None):
        self.last = last

    def iterate(self, start=0):
        for i in itertools.count(start):
            if i == self.last:
                return
            yield {"x": X[(torch.arange(8) + i * 8) % 32]}


class Identity(Objective):
    players = ("net",)

    def __init__(self, log=lambda value: value.detach()):
        self.log = log

    def loss(self, player, networks, batch, step):
        value = (networks["net"](batch["x"]).float() - batch["x"]).square().mean()
        return Loss(value, {"loss": self.log(value)})


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


def fit(folder, network, steps, accelerator=None, objective=None, batches=None, **options):
    args = TrainArgs(output_dir=str(folder), max_train_steps=steps, **{**QUIET, "checkpointing_steps": 2, **options})
    accelerator = accelerator or Accelerator(cpu=True)
    return train({"net": network}, objective or Identity(), batches or Images(), args, accelerator)


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_two_trainings_with_one_accelerator_have_checkpoints_of_their_own(tmp_path):
    accelerator, first, second = Accelerator(cpu=True), net(0), net(1)
    fit(tmp_path / "a", first, 4, accelerator)
    fit(tmp_path / "b", second, 4, accelerator)
    third = net(7)
    fit(tmp_path / "b", third, 4)  # a fresh session, nothing left to train: the weights are those of the checkpoint
    assert same(weights(third), weights(second)) and not same(weights(third), weights(first))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_same_call_again_in_the_same_process_goes_on_as_a_fresh_one_does(tmp_path, precision):
    network, accelerator = net(0), Accelerator(cpu=True, mixed_precision=precision)
    fit(tmp_path / "one", network, 4, accelerator)
    again = fit(tmp_path / "one", network, 8, accelerator)
    whole = net(0)
    expected = fit(tmp_path / "two", whole, 8, Accelerator(cpu=True, mixed_precision=precision))
    assert same(weights(network), weights(whole))
    x = X[:2]
    for one, two in ((again.networks["net"], expected.networks["net"]), (network, whole)):
        assert torch.equal(one(x), two(x)) and one(x).dtype == torch.float32
    average = again.networks["net"]
    assert not torch.equal(average(x), network(x))  # the average answers with its own weights


def test_tied_weights_are_saved_and_restored(tmp_path):
    def tied(seed):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
        network[1].weight = network[0].weight
        return network

    whole = fit(tmp_path / "whole", tied(0), 6)
    fit(tmp_path / "cut", tied(0), 4)
    cut = fit(tmp_path / "cut", tied(5), 6)
    assert whole.step == 6 and same(weights(whole.networks["net"]), weights(cut.networks["net"]))
    network = cut.networks["net"]
    assert torch.equal(network[0].weight, network[1].weight)


@pytest.mark.parametrize(
    "log",
    [
        lambda value: value.item(),
        lambda value: 3,
        lambda value: True,
        lambda value: value.detach()[None],
        lambda value: value.detach().double(),
        lambda value: value.detach() > 0,
        lambda value: value.detach().numpy(),
        lambda value: value.detach().numpy()[None],
        lambda value: np.float32(value.item()),
        lambda value: np.int64(7),
        lambda value: value,  # with its gradient
    ],
)
def test_a_log_is_a_number_in_any_form(tmp_path, log):
    assert fit(tmp_path, net(0), 2, objective=Identity(log)).step == 2


@pytest.mark.parametrize(
    "log",
    [
        lambda value: "low",
        lambda value: torch.ones(3),
        lambda value: None,
        lambda value: np.ones(2),
        lambda value: {},
        lambda value: 1j,
    ],
)
def test_a_log_that_is_no_number_is_named_in_the_first_step(tmp_path, log):
    with pytest.raises(TypeError, match=r"The log 'loss' of net is .*one number"):
        fit(tmp_path, net(0), 4, objective=Identity(log))
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("bad", [float("nan"), np.float64("inf"), torch.tensor(-torch.inf)])
def test_a_log_that_is_not_finite_stops_the_run_and_is_named(tmp_path, bad):
    with pytest.raises(DivergenceError, match=r"net/loss is (nan|inf|-inf) at step 1"):
        fit(tmp_path, net(0), 4, objective=Identity(lambda value: bad))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_extra_state_is_refused_before_the_first_step(tmp_path):
    class Counting(nn.Conv2d):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match=r"net has '_extra_state', a dict, in its state.*register it as a buffer"):
        fit(tmp_path, Counting(3, 3, 3, padding=1), 4)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_batches_that_end_are_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"The batches ended in step 4.*for ever"):
        fit(tmp_path, net(0), 6, batches=Images(last=3))


@pytest.mark.parametrize(
    "iterate", [lambda start: iter(()), lambda start: iter([{"x": X[:8]}] * 2), lambda start: [{"x": X[:8]}] * 2]
)
def test_few_batches_or_none_are_named_by_their_number(tmp_path, iterate):
    batches = Images()
    batches.iterate = iterate
    with pytest.raises(ValueError, match=r"The batches ended in step [13].*repeat the data"):
        fit(tmp_path, net(0), 6, batches=batches, checkpointing_steps=0)


def test_fp16_is_refused_on_a_cpu(tmp_path):
    class Half(Accelerator):
        mixed_precision = "fp16"

    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        fit(tmp_path, net(0), 2, Half(cpu=True))


def test_a_run_of_another_objective_network_or_data_is_not_resumed_from_python(tmp_path):
    points = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    def network(width=8):
        torch.manual_seed(0)
        return Points(width)

    def again(network, path, data, **options):
        options = {"max_train_steps": 4, "train_batch_size": 8, "report_to": "none", "sample_steps": 0, **options}
        return hfgen.train(network, hfgen.Denoising(path), data, tmp_path, **options)

    assert again(network(), StraightPath(), points).step == 4
    assert again(network(), StraightPath(), points, max_train_steps=6).step == 6

    for other, what in (
        ((network(), CosineVPPath(), points), "objective/path/class: StraightPath -> CosineVPPath"),
        ((network(4), StraightPath(), points), "networks/denoiser/shapes"),
        ((network(), StraightPath(), points + 1), "data_fingerprint"),
    ):
        with pytest.raises(CheckpointError, match=what):
            again(*other, max_train_steps=8)


class Taught(Objective):
    players = ("net",)

    def loss(self, player, networks, batch, step):
        value = (networks["net"](batch["x"]) - networks["teacher"](batch["x"])).square().mean()
        return Loss(value, {"loss": value.detach()})


def test_a_run_does_not_go_on_with_another_teacher(tmp_path):
    """The weights of a network that does not learn are in no checkpoint; its buffers are, and may change."""

    def again(seed, steps, average=0.0):
        torch.manual_seed(seed)
        networks = {"net": nn.Linear(2, 2), "teacher": nn.Linear(2, 2)}
        networks["teacher"].register_buffer("average", torch.tensor(average))
        options = {"train_batch_size": 8, "max_train_steps": steps, "report_to": "none", "sample_steps": 0}
        return hfgen.train(networks, Taught(), torch.ones(16, 2), tmp_path, **options)

    assert again(0, 2).step == 2
    assert again(0, 3, average=1.0).step == 3
    with pytest.raises(CheckpointError, match=r"does not fit this run: frozen_networks/teacher: \w+ -> \w+\n"):
        again(1, 4)


def table(schedule):
    return DiscretePath(torch.cumprod(1 - betas_of(schedule, 1000, 0.0001, 0.02), 0))


def scaled(factor):
    return lambda output: output * factor


def outer(inner):
    return lambda output: inner(output) + 1


def read(scale):
    """A function that reads a global variable of a notebook."""
    space = {"scale": scale, "mean": scale, "__name__": "__main__"}
    exec("def weight(x):\n    return scale * x.mean()", space)
    return space["weight"]


class Activated(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function


def dit(**options):
    return hfgen.DiTModel(8, 3, 3, patch_size=4, hidden_size=8, num_layers=1, **options)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: CosineVPPath(0.008), lambda: CosineVPPath(0.02)),
        (lambda: LinearVPPath(), lambda: LinearVPPath(0.1, 10.0)),
        (lambda: VEPath(0.01, 50.0), lambda: VEPath(0.01, 40.0)),
        (lambda: table("linear"), lambda: table("squaredcos_cap_v2")),
        (lambda: table("linear"), lambda: table("scaled_linear")),
        (lambda: scaled(1.0), lambda: scaled(2.0)),
        (lambda: lambda t: t, lambda: lambda t: t * t),
        (lambda: lambda t: 2 * t, lambda: lambda t: 3 * t),
        (lambda: lambda t: t.sin(), lambda: lambda t: t.cos()),
        (lambda: lambda t, by=2.0: t, lambda: lambda t, by=3.0: t),
        (lambda: outer(lambda t: t), lambda: outer(lambda t: -t)),
        (lambda: functools.partial(lambda a, b: a, 1), lambda: functools.partial(lambda a, b: b, 1)),
        (lambda: (lambda t: t, max), lambda: (lambda t: -t, max)),
        (lambda: read(1.0), lambda: read(2.0)),
        (lambda: Activated(torch.tanh), lambda: Activated(torch.relu)),
        (lambda: Activated(lambda x: x), lambda: Activated(lambda x: -x)),
        (lambda: functools.partial(max, 1), lambda: functools.partial(max, 2)),
        (lambda: functools.partial(round, ndigits=1), lambda: functools.partial(round, ndigits=2)),
        (lambda: dit(num_attention_heads=1), lambda: dit(num_attention_heads=2)),
        (lambda: hfgen.FlowMap(step_share=0.05), lambda: hfgen.FlowMap(step_share=0.1)),
        (lambda: hfgen.FlowMap(label_dropout=0.1), lambda: hfgen.FlowMap(label_dropout=0.2)),
        (lambda: hfgen.MaximumLikelihood("gaussian", 0.05), lambda: hfgen.MaximumLikelihood("gaussian", 0.1)),
        (lambda: hfgen.Distilled(table("linear")), lambda: hfgen.Distilled(table("squaredcos_cap_v2"))),
        (lambda: hfgen.Distilled(StraightPath(), alpha=1.2), lambda: hfgen.Distilled(StraightPath(), alpha=1.0)),
    ],
)
def test_whatever_defines_an_objective_or_network_is_in_the_identity_of_a_run(one, other):
    def identity(value):
        return identity_of(types.SimpleNamespace(part=value))

    assert identity(one()) == identity(one()) != identity(other())
    assert json.loads(json.dumps(identity(one()))) == identity(one())  # as a checkpoint holds it


def test_a_function_is_what_it_does_and_not_how_it_is_written():
    def code(text):
        space = {"mean": text, "__name__": "__main__"}  # a variable that is not read: x.mean is an attribute
        exec(text, space)
        return code_of(space["weight"])

    one = code("def weight(x):\n    return x.mean() + 1")
    assert one == code("\n\ndef weight(y):\n    # said otherwise\n    return y.mean() + 1")
    assert one == code('def weight(x):\n    """Weigh."""\n    return x.mean() + 1')
    assert one != code("def weight(x):\n    return x.mean() + 2")
    assert list(one) == [sys.implementation.cache_tag]  # another Python's code is not compared
    assert (
        code_of(torch.tanh)
        is code_of(test_whatever_defines_an_objective_or_network_is_in_the_identity_of_a_run)
        is None
    )


def test_a_run_does_not_go_on_with_another_lambda(tmp_path):
    class Weighted(Objective):
        players = ("net",)

        def __init__(self, weight):
            self.weight = weight

        def loss(self, player, networks, batch, step):
            value = self.weight(networks["net"](batch["x"]).square().mean())
            return Loss(value, {"loss": value.detach()})

    def again(weight, steps):
        options = {"train_batch_size": 8, "max_train_steps": steps, "report_to": "none", "sample_steps": 0}
        return hfgen.train(nn.Linear(2, 2), Weighted(weight), torch.ones(16, 2), tmp_path, **options)

    weights = [lambda loss: loss, lambda loss: 2 * loss]
    assert again(weights[0], 2).step == 2
    assert again(lambda value: value, 3).step == 3  # the same, written again
    with pytest.raises(CheckpointError, match=r"objective/weight does/"):
        again(weights[1], 4)


class Points(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, timestep):
        return self.body(torch.cat([x, timestep[:, None].to(x) / 1000], 1))
