"""The state of an objective and buffers of networks that serve: restored bit for bit, not trained, not averaged."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hfgen.objectives.base import Loss, Objective
from hfgen.trainer.checkpoint import CheckpointError
from tests.helpers.cuts import Interruption, check_resume
from tests.helpers.toys import ToyDenoiser, TracedObjective, denoiser_networks, run, weights


class Queue(nn.Module):
    """The last 16 items, in a ring, and how many were written: a float and a whole-number buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("items", torch.zeros(16, 64))
        self.register_buffer("written", torch.tensor(0))

    def write(self, items):
        for item in items:
            self.items[int(self.written) % 16] = item
            self.written += 1


class Taught(Objective):
    """Denoise towards the data, a queue of earlier items and a teacher, which is the student's moving average.

    The losses are counted, so that whatever is lost or seen twice shows in the weights.
    """

    players = ("denoiser",)

    def __init__(self):
        torch.manual_seed(1)
        counter = nn.Module()
        counter.register_buffer("losses", torch.zeros(()))
        self.state = {"teacher": ToyDenoiser(), "queue": Queue(), "counter": counter}

    def loss(self, player, networks, batch, step):
        x, queue = batch["x"], self.state["queue"]
        noise, time = step.randn("noise", x), step.uniform("time", x[:, 0, 0, 0]) * 1000
        output = networks[player](x + noise, time).sample
        with torch.no_grad():
            taught = self.state["teacher"](x + noise, time).sample
        value = (output - x).square().mean() + (output - taught).square().mean()
        value = value + 0.1 * (output.flatten(1) - queue.items.mean(0)).square().mean()
        value = value * (1 + 0.01 * self.state["counter"].losses)
        queue.write(x.flatten(1))
        self.state["counter"].losses += 1
        return Loss(value, {"loss": value.detach()})

    @torch.no_grad()
    def constrain(self, player, networks):
        for mean, value in zip(self.state["teacher"].parameters(), networks[player].parameters(), strict=True):
            mean.lerp_(value, 0.3)


class Counting(nn.Module):
    """A frozen network that counts its calls, scales by the count, and has tied weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.again = self.layer
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x):
        self.calls += 1
        return self.again(x.flatten(1)) / (1 + self.calls)


class Guided(Objective):
    """Denoise towards what a network says that serves."""

    players = ("denoiser",)

    def loss(self, player, networks, batch, step):
        x = batch["x"]
        output = networks[player](x + step.randn("noise", x), torch.zeros(len(x))).sample
        value = (output.flatten(1) - networks["critic"](x)).square().mean()
        return Loss(value, {"loss": value.detach()})


def taught():
    return denoiser_networks(), Taught()


def guided():
    networks = denoiser_networks()
    return {**networks, "critic": Counting()}, Guided()


def interrupted(folder, build, place=(3, 0, 1), **options):
    """Run until the loss at `place`, (step, turn, shard), with a checkpoint after each step."""

    def interrupt(step):
        if (step.number, step.turn, step.shard) == place:
            raise Interruption

    networks, objective = build()
    cut = {"train_batch_size": 4, "gradient_accumulation_steps": 2, "checkpointing_steps": 1, "logging_steps": 1}
    with pytest.raises(Interruption):
        run(folder, objective=TracedObjective(objective, interrupt), networks=networks, **{**cut, **options})
    return cut


def remove(folder, name, manifest=True):
    """Delete a file of a checkpoint, and its entry, as if it had never been there."""
    (folder / name).unlink()
    if manifest:
        path = folder / "manifest.json"
        files = json.loads(path.read_text())
        del files[name]
        path.write_text(json.dumps(files))


# --- state of the objective -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(0, 0, 1), (1, 0, 0), (3, 0, 1), (5, 0, 1)])
def test_a_run_with_state_is_resumed_bit_for_bit(tmp_path, place):
    """Buffer, queue and teacher are those of the checkpoint, whatever the lost step had made of them."""
    objectives = []

    def build():
        networks, objective = taught()
        objectives.append(objective)
        return networks, objective

    check_resume(tmp_path, build, place)
    whole, _, resumed = (weights(objective.state) for objective in objectives)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert whole["counter.losses"] == 12 and whole["queue.written"] == 48


def test_state_decides_the_weights():
    """The laws above would be empty if the state had no effect: each part of it changes the gradient."""
    from hfgen.objectives.base import Step

    def gradient(change):
        networks, objective = taught()
        change(objective.state)
        x = torch.linspace(-1, 1, 256).view(4, 1, 8, 8)
        networks["denoiser"].eval()
        objective.loss("denoiser", networks, {"x": x}, Step(0)).value.backward()
        return torch.cat([p.grad.flatten() for p in networks["denoiser"].parameters()])

    plain = gradient(lambda state: None)
    assert torch.equal(gradient(lambda state: None), plain)
    for change in (
        lambda state: state["queue"].items.fill_(1.0),
        lambda state: state["counter"].losses.fill_(1.0),
        lambda state: state["teacher"].body[0].bias.data.fill_(1.0),
    ):
        assert not torch.equal(gradient(change), plain)


def test_state_is_neither_trained_nor_averaged(tmp_path):
    networks, objective = taught()
    before, teacher = copy.deepcopy(objective.state["teacher"]), objective.state["teacher"]
    _, result = run(tmp_path, objective=objective, networks=networks, max_train_steps=1, checkpointing_steps=1)
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.training
    students = networks["denoiser"].parameters()
    for old, new, student in zip(before.parameters(), teacher.parameters(), students, strict=True):
        assert torch.equal(new, torch.lerp(old, student, 0.3))  # the step of `constrain`, once, and no optimiser's
    folder = tmp_path / "checkpoint-1"
    files = {path.name for path in folder.glob("*.safetensors")}
    assert files == {
        "model.safetensors",
        "ema_denoiser.safetensors",
        *(f"state_{name}.safetensors" for name in ("teacher", "queue", "counter")),
    }
    assert result.networks.keys() == {"denoiser"}
    optimizer = torch.load(folder / "optimizer.bin")
    assert len(optimizer["state"]) == len(list(networks["denoiser"].parameters()))


def test_a_checkpoint_holds_the_state_of_its_step(tmp_path):
    networks, objective = taught()
    options = {"max_train_steps": 4, "checkpointing_steps": 1, "checkpoints_total_limit": None}
    run(tmp_path, objective=objective, networks=networks, **options)
    for step in range(1, 5):
        folder = tmp_path / f"checkpoint-{step}"
        assert load_file(folder / "state_counter.safetensors")["losses"] == step
        assert load_file(folder / "state_queue.safetensors")["written"] == 8 * step


@pytest.mark.parametrize("damage", ["missing", "unlisted", "cut", "changed", "other"])
@pytest.mark.parametrize("name", ["teacher", "queue"])
def test_a_missing_or_damaged_state_is_refused_by_name(tmp_path, name, damage):
    options = interrupted(tmp_path, taught)
    folder = tmp_path / "checkpoint-3"
    file = folder / f"state_{name}.safetensors"
    if damage in ("missing", "unlisted"):
        remove(folder, file.name, manifest=damage == "unlisted")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "changed":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    networks, objective = taught()
    if damage == "other":
        objective.state = {**objective.state, name: nn.BatchNorm1d(3)}
    with pytest.raises(CheckpointError) as error:
        run(tmp_path, objective=objective, networks=networks, **options)
    assert "checkpoint-3" in str(error.value)
    assert (f"state_{name}" in str(error.value)) or damage == "other"


def test_state_of_an_objective_without_any_is_none(tmp_path):
    run(tmp_path, checkpointing_steps=2)
    assert not list(tmp_path.glob("checkpoint-*/state_*.safetensors"))
    assert not list(tmp_path.glob("checkpoint-*/served_*.safetensors"))


# --- buffers of networks that serve -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(1, 0, 1), (3, 0, 1), (4, 0, 0)])
def test_buffers_of_a_network_that_serves_are_restored(tmp_path, place):
    """A counter that a loss moves holds after a resume what the whole run has: every call once."""
    critics = []

    def build():
        networks, objective = guided()
        critics.append(networks["critic"])
        return networks, objective

    check_resume(tmp_path, build, place)
    assert [int(critic.calls) for critic in critics] == [12, 2 * place[0] + place[2], 12]
    buffers = load_file(tmp_path / "cut" / "checkpoint-6" / "served_critic.safetensors")
    assert buffers.keys() == {"calls"} and buffers["calls"] == 12  # no parameter, tied or not, and no scratch


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_buffers_are_refused_by_name(tmp_path, damage):
    options = interrupted(tmp_path, guided)
    file = tmp_path / "checkpoint-3" / "served_critic.safetensors"
    file.unlink() if damage == "missing" else file.write_bytes(file.read_bytes()[:-1])
    networks, objective = guided()
    with pytest.raises(CheckpointError, match=r"checkpoint-3/served_critic\.safetensors"):
        run(tmp_path, objective=objective, networks=networks, **options)


def test_other_buffers_are_refused(tmp_path):
    options = interrupted(tmp_path, guided)
    networks, objective = guided()
    networks["critic"].register_buffer("more", torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"the buffers are \['calls', 'more'\], and \['calls'\] were saved"):
        run(tmp_path, objective=objective, networks=networks, **options)


def test_checkpoints_from_before_load_and_say_what_they_lack(tmp_path, capsys):
    """hfgen 0.1 saved no buffers of networks that serve: they stay as they are, and a line says so."""
    options = interrupted(tmp_path, guided)
    remove(tmp_path / "checkpoint-3", "served_critic.safetensors")
    networks, objective = guided()
    _, result = run(tmp_path, objective=objective, networks=networks, **options)
    lines = capsys.readouterr().out
    assert "Changed since it was saved: buffers of critic: not in the checkpoint, left as loaded." in lines
    assert result.finished and networks["critic"].calls == 6
