"""`hfgen.train` as a notebook calls it: own networks, data, objectives and callbacks; what it leaves and refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_model
from torch import nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

import hfgen
from hfgen.data.batches import Batches
from hfgen.data.convert import as_items
from hfgen.data.tensors import TensorData
from hfgen.objectives.base import Loss, Objective
from hfgen.objectives.denoising import Denoising
from hfgen.options import TrainArgs
from hfgen.paths import StraightPath
from hfgen.trainer.checkpoint import CheckpointError
from hfgen.trainer.log import DivergenceError
from tests.helpers.processes import run_in_two_processes
from tests.helpers.toys import ROOT, rows, weights

TIMING = ("seconds", "items_per_second", "images_per_second")


@pytest.fixture(autouse=True)
def notebook(monkeypatch, tmp_path):
    """What a notebook's process looks like: its own arguments, and a folder to work in."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher", "-f", "x.json"])
    monkeypatch.chdir(tmp_path)


class Net(nn.Module):
    """A small network for items of any shape, called as denoisers are. It records the type of what it computes in."""

    def __init__(self, size=2, classes=None):
        super().__init__()
        self.embed = None if classes is None else nn.Embedding(classes, 8)
        inputs = size + 1 + (0 if classes is None else 8)
        self.body = nn.Sequential(nn.Linear(inputs, 32), nn.SiLU(), nn.Linear(32, size))
        self.types = set()

    def forward(self, x, timestep, class_labels=None):
        parts = [x.flatten(1), (timestep / 1000).to(x.dtype)[:, None]]
        hidden = torch.cat(parts if self.embed is None else [*parts, self.embed(class_labels).to(x.dtype)], 1)
        hidden = self.body[0](hidden)
        self.types.add(hidden.dtype)
        return self.body[2](self.body[1](hidden)).view_as(x)


class Autoencoding(Objective):
    """An objective of a user's own: the squared error of a reconstruction under noise."""

    players = ("network",)

    def loss(self, player, networks, batch, step):
        x = batch["x"]
        output = networks[player](x + 0.1 * step.randn("noise", x), torch.zeros(len(x)))
        value = (output - x).square().mean()
        return Loss(value, {"loss": value.detach()})


def net(seed=0, **options):
    torch.manual_seed(seed)
    return Net(**options)


def points(count=64):
    return 2 + 0.1 * torch.randn(count, 2, generator=torch.Generator().manual_seed(0))


def flow(**options):
    return Denoising(StraightPath(), **options)


def pipeline(networks, **options):
    return hfgen.DenoisingPipeline(networks["denoiser"], hfgen.RectifiedFlowScheduler(), **options)


def train(network=None, objective=None, data=None, folder="outputs/mine", **options):
    """Train for six steps, with quiet options."""
    few = {"max_train_steps": 6, "train_batch_size": 16, "logging_steps": 2, "report_to": "none"}
    data = points() if data is None else data
    return hfgen.train(network or net(), objective or flow(), data, folder, **{**few, **options})


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- fifteen lines ----------------------------------------------------------------------------------------------------

PREAMBLE = """
import torch, hfgen
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))
    def forward(self, x, timestep):
        return self.body(torch.cat([x, timestep[:, None] / 1000], 1))

class Points(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, i): return torch.full((2,), i / 64)

losses = []
"""

FIFTEEN = """
class MyObjective(hfgen.Objective):
    players = ("denoiser",)

    def loss(self, player, networks, batch, step):
        t, noise = step.rand("time", len(batch["x"])).float(), step.randn("noise", batch["x"])
        x_t = (1 - t)[:, None] * batch["x"] + t[:, None] * noise
        value = (networks[player](x_t, 1000 * t) - (noise - batch["x"])).square().mean()
        return hfgen.Loss(value, {"loss": value.detach()})


result = hfgen.train(
    Net(), MyObjective(), DATA, "outputs/mine", max_train_steps=6, train_batch_size=16, sample_steps=2,
    pipeline=lambda networks: hfgen.DenoisingPipeline(networks["denoiser"], hfgen.RectifiedFlowScheduler()),
    callbacks=[lambda networks, step: losses.append(step)],
)
"""


@pytest.mark.parametrize("kind", ["tensor", "array", "torch", "datasets"])
def test_own_network_data_objective_and_callback_in_fifteen_lines(kind, tmp_path):
    assert len([line for line in FIFTEEN.splitlines() if line.strip()]) <= 15
    names = {}
    exec(PREAMBLE, names)
    x = torch.stack([names["Points"]()[i] for i in range(64)])
    names["DATA"] = {"tensor": x, "array": x.double().numpy(), "torch": names["Points"]()}.get(kind)
    if kind == "datasets":
        import datasets

        names["DATA"] = datasets.Dataset.from_dict({"x": x.tolist()})
    exec(FIFTEEN, names)
    result = names["result"]
    assert result.finished and result.step == 6 and names["losses"] == [2, 4]
    assert result.pipeline(3).samples.shape == (3, 2)
    files = {path.name for path in (tmp_path / "outputs" / "mine").iterdir()}
    assert {"README.md", "config.yaml", "metrics.json", "metrics.jsonl", "samples.png", "loss.png"} <= files
    assert {"model_index.json", "checkpoint-6", "denoiser", "scheduler", "samples", "logs"} <= files


# --- what it leaves ---------------------------------------------------------------------------------------------------


def blocks(card):
    """The blocks of Python of a card."""
    return re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("shape", [(2,), (5, 3), (1, 4, 4)])
def test_the_card_names_no_program_and_its_lines_work(tmp_path, shape, monkeypatch):
    """They are executed in the folder beside which the model lies, by somebody who has the class."""
    size = int(np.prod(shape))

    class Mine(Net):
        def __init__(self):
            super().__init__(size)

    result = train(Mine(), data=torch.randn(64, *shape), pipeline=pipeline)
    folder = tmp_path / "outputs" / "mine"
    card = (folder / "README.md").read_text()
    assert "hfgen train " not in card and "ipykernel" not in card and str(tmp_path) not in card
    assert "trained from Python, by `hfgen.train`" in card and "The code of Mine is not here" in card
    assert f"tensors, 64 items of shape {shape}" in card and "6 steps, 96 items" in card
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["dataset"] == "tensors" and config["max_train_steps"] == 6
    block, *others = blocks(card)
    assert not others
    names = {"Mine": Mine}
    monkeypatch.chdir(tmp_path / "outputs")
    exec(block, names)
    for one in (result.pipeline, names["pipeline"]):
        one.set_progress_bar_config(disable=True)
    draws = [p(2, generator=torch.Generator().manual_seed(3))[0] for p in (result.pipeline, names["pipeline"])]
    if len(shape) == 3:
        assert [image.tobytes() for image in draws[0]] == [image.tobytes() for image in draws[1]]
    else:
        assert torch.equal(*draws)


def test_images_from_python_have_the_card_of_images(tmp_path):
    """With a network of hfgen the folder needs nothing but itself."""
    network = hfgen.build_denoiser("dit", "xs", 8, 1)
    train(network, data="digits", pipeline=pipeline, max_train_samples=32, max_train_steps=2)
    card = (tmp_path / "outputs" / "mine" / "README.md").read_text()
    assert "TorchModel" not in card and "pipeline_tag: unconditional-image-generation" in card
    assert "digits, 32 images" in card and "2 steps, 32 images" in card
    with Image.open(tmp_path / "outputs" / "mine" / "samples.png") as picture:
        assert picture.size[0] > 400
    loaded = hfgen.HFGenPipeline.from_pretrained(tmp_path / "outputs" / "mine")
    assert loaded(2).images[0].size == (8, 8)


def test_without_a_pipeline_there_are_weights_that_load(tmp_path, monkeypatch):
    networks = {"network": net(), "critic": nn.Linear(2, 1)}
    result = train(networks, Autoencoding())
    folder = tmp_path / "outputs" / "mine"
    assert result.pipeline is None and result.networks.keys() == {"network"}
    assert not (folder / "samples.png").exists() and not (folder / "model_index.json").exists()
    fresh = net(seed=5)
    load_model(fresh, folder / "network.safetensors")
    assert equal(fresh.state_dict(), result.networks["network"].state_dict())
    (block,) = blocks((folder / "README.md").read_text())
    names = {"Net": Net}
    monkeypatch.chdir(tmp_path / "outputs")
    exec(block, names)
    assert equal(names["network"].state_dict(), fresh.state_dict())


@pytest.mark.parametrize("shape", [(2,), (4, 2), (5, 3), (3, 4, 4), (7,)])
def test_samples_are_shown_as_what_they_are(tmp_path, shape):
    """Points of the plane as a scatter plot, sequences as curves, images as a grid; other items have no picture."""
    size, picture = int(np.prod(shape)), shape != (7,)
    train(net(size=size), data=torch.randn(64, *shape), pipeline=pipeline, sample_steps=3, eval_batch_size=9)
    folder = tmp_path / "outputs" / "mine"
    assert (folder / "samples.png").exists() == (folder / "samples" / "step-0000003.png").exists() == picture
    if picture:
        with Image.open(folder / "samples.png") as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 3


@pytest.mark.parametrize("use_ema", [True, False])
def test_networks_to_use_are_averages_or_the_weights_themselves(use_ema):
    network = net()
    options = {"ema_max_decay": 0.5} if use_ema else {}
    result = train(network, use_ema=use_ema, learning_rate=0.1, lr_warmup_steps=0, **options)
    (used,) = result.networks.values()
    assert (used is network) == (not use_ema) and not used.training
    assert equal(used.state_dict(), network.state_dict()) != use_ema
    config = json.loads(Path("outputs/mine/metrics.json").read_text())
    assert config["ema"] is use_ema


def test_a_pipeline_gets_own_modules_wrapped_and_the_networks_stay_the_users():
    network = net()
    result = train(network, pipeline=pipeline, use_ema=False)
    assert isinstance(result.pipeline.denoiser, hfgen.TorchModel) and result.pipeline.denoiser.module is network
    assert result.pipeline.sample_shape == (2,)


# --- resume -----------------------------------------------------------------------------------------------------------

OPTIONS = {"checkpointing_steps": 2, "sample_steps": 1, "gradient_accumulation_steps": 2, "train_batch_size": 8}


def left(folder):
    """What a run leaves that must not depend on how it was cut."""
    files = {path.name: path.read_bytes() for path in Path(folder).glob("samples*.png")}
    return rows(folder, TIMING), files


@pytest.mark.parametrize(
    ("how", "stop"), [("callback", 1), ("callback", 3), ("interrupt", 1), ("interrupt", 4), ("error", 3), ("error", 5)]
)
def test_the_same_call_again_continues_to_the_bits_of_the_whole_run(how, stop):
    def act(networks, step):
        if step != stop:
            return False
        if how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C, or the stop button of a notebook
        if how == "error":
            raise ZeroDivisionError
        return how == "callback"

    whole = train(net(), folder="whole", pipeline=pipeline, **OPTIONS)
    if how == "error":
        with pytest.raises(ZeroDivisionError):
            train(net(), folder="cut", pipeline=pipeline, callbacks=[act], **OPTIONS)
    else:
        cut = train(net(), folder="cut", pipeline=pipeline, callbacks=[act], **OPTIONS)
        assert not cut.finished and cut.step == stop and cut.pipeline is None
        assert not Path("cut/README.md").exists()
    resumed = train(net(seed=9), folder="cut", pipeline=pipeline, **OPTIONS)  # other first weights: all are restored
    assert resumed.finished and equal(weights(resumed.networks), weights(whole.networks))
    assert left("cut") == left("whole")


def test_a_finished_run_is_finished_again_and_a_longer_one_goes_on(capsys):
    first = train(pipeline=pipeline, lr_scheduler="constant")
    Path("outputs/mine/README.md").unlink()
    again = train(pipeline=pipeline, lr_scheduler="constant")
    assert equal(weights(first.networks), weights(again.networks)) and Path("outputs/mine/README.md").exists()
    longer = train(pipeline=pipeline, lr_scheduler="constant", max_train_steps=9)
    assert longer.step == 9 and "Resumed from outputs/mine/checkpoint-6 at step 6 of 9" in capsys.readouterr().out


def test_an_objective_may_take_notes():
    """A notebook calls again with the same objects: what they have collected does not make it another run."""

    class Noting(Autoencoding):
        def __init__(self):
            self.history, self.sums, self._calls = [], {"loss": 0.0}, 0

        def loss(self, player, networks, batch, step):
            loss = super().loss(player, networks, batch, step)
            self.history.append(loss.value.item())
            self.sums["loss"] += self.history[-1]
            self._calls += 1
            return loss

    network, objective = net(), Noting()
    train(network, objective, max_train_steps=4)
    assert train(network, objective, max_train_steps=6).step == 6 and len(objective.history) == 6


def test_the_same_network_may_be_trained_further_in_another_folder():
    network = net()
    first = train(network, folder="a", use_ema=False).networks["denoiser"]
    before = {key: value.clone() for key, value in first.state_dict().items()}
    second = train(network, folder="b", use_ema=False).networks["denoiser"]
    assert first is second and not equal(before, second.state_dict())
    assert equal(before, _weights_in("a/denoiser.safetensors"))


def _weights_in(path):
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"data": points() + 1}, "data_fingerprint"),
        ({"objective": flow(prediction_type="sample")}, "prediction_type"),
        ({"network": net(size=2, classes=3)}, "networks"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"resume_from_checkpoint": "none"}, "Choose another --output_dir"),
    ],
)
def test_another_run_in_the_folder_is_refused_by_what_differs(change, name):
    train()
    before = left("outputs/mine")
    with pytest.raises(CheckpointError, match=name):
        train(**change)
    assert left("outputs/mine") == before


# --- between steps ----------------------------------------------------------------------------------------------------


def test_callbacks_get_the_networks_to_sample_from_and_stop_the_training():
    calls = []

    class AtEnd(hfgen.Callback):
        def __call__(self, networks, step):
            calls.append(("own", step, networks["denoiser"].training, torch.is_grad_enabled()))

        def at_end(self, networks, step):
            calls.append(("end", step, None, None))

    def stop(networks, step):
        calls.append(("stop", step, None, None))
        return step == 4

    result = train(callbacks=[AtEnd(3), hfgen.Callback(2, stop)])
    assert not result.finished and result.step == 4
    assert calls == [("stop", 2, None, None), ("own", 3, False, False), ("stop", 4, None, None)]
    calls.clear()
    result = train(callbacks=[AtEnd(3)])
    assert result.finished and calls == [("end", 6, None, None)]  # the last step is no preview: the end is


def test_a_plain_function_is_called_every_sample_steps():
    steps = []
    train(callbacks=[lambda networks, step: steps.append(step)], sample_steps=2)
    assert steps == [2, 4]
    with pytest.raises(
        ValueError, match=r"sample_steps=0 never calls a callback; give hfgen.Callback\(every, function\)"
    ):
        train(folder="other", callbacks=[print], sample_steps=0)
    with pytest.raises(ValueError, match="called every -1 steps"):
        hfgen.Callback(-1, print)


def test_an_own_preview_is_shown_and_described(tmp_path):
    from hfgen.options import SampleArgs

    class Dots(hfgen.Preview):
        def grid(self, pipeline):
            return Image.new("RGB", (9, 9), "red")

        def facts(self, pipeline):
            return {"dots": "red"}

    preview = Dots("Dots", "toy", SampleArgs(), seed=0)
    train(pipeline=pipeline, preview=preview, sample_steps=4)
    folder = tmp_path / "outputs" / "mine"
    with Image.open(folder / "samples" / "step-0000004.png") as image:
        assert image.size == (9, 9)
    card = (folder / "README.md").read_text()
    assert "# Dots on tensors" in card and "| dots | red |" in card and "A toy model" in card


# --- families of hfgen from Python ------------------------------------------------------------------------------------


def test_own_classes_are_learnt_and_guided(tmp_path):
    """An own network with an embedding of the null class: guidance works, also after loading."""
    data = TensorDataset(points(), torch.arange(64) % 3)

    def labelled(networks):
        return pipeline(networks, num_classes=3, label_names=["cat", "dog", "owl"])

    result = train(net(classes=4), flow(num_classes=3), data, pipeline=labelled)
    result.pipeline.set_progress_bar_config(disable=True)
    options = {"generator": torch.Generator().manual_seed(0), "guidance_scale": 3.0}
    samples = result.pipeline(class_labels=["cat", "owl"], **options).samples
    denoiser = hfgen.TorchModel.load(net(classes=4), "outputs/mine/denoiser")
    loaded = hfgen.HFGenPipeline.from_pretrained("outputs/mine", denoiser=denoiser)
    loaded.set_progress_bar_config(disable=True)
    options["generator"] = torch.Generator().manual_seed(0)
    assert torch.equal(loaded(class_labels=["cat", "owl"], **options).samples, samples)
    assert "with classes" in Path("outputs/mine/README.md").read_text()
    never = train(net(classes=3), flow(num_classes=3, label_dropout=0.0), data, "sure", pipeline=labelled)
    assert never.pipeline.null_label is None
    with pytest.raises(ValueError, match="trained without label dropout"):
        never.pipeline(class_labels=[0], guidance_scale=2.0)


def test_own_images_are_measured_while_training():
    """A tensor of pixels, pictures one by one, and pixels with another tensor are the same images."""
    digits, labels = as_items("digits").images[:150], torch.arange(150) % 2
    pictures = [(Image.fromarray(image[0].numpy()), int(label)) for image, label in zip(digits, labels, strict=True)]
    tensors = {"x": digits, "labels": labels}
    options = {"eval_steps": 1, "eval_num_samples": 65, "eval_features": "digits", "max_train_steps": 1}
    values = []
    for name, data in {"tensors": tensors, "pictures": pictures, "more": {**tensors, "weight": labels}}.items():
        torch.manual_seed(0)
        network = hfgen.build_denoiser("dit", "xs", 8, 1, num_classes=2)
        train(network, flow(num_classes=2), data, name, pipeline=lambda n: pipeline(n, num_classes=2), **options)
        measured = [json.loads(line) for line in Path(name, "evaluations.jsonl").read_text().splitlines()]
        assert [row["step"] for row in measured] == [1] and "Frechet" in measured[0]["metric"]
        values.append([row["value"] for row in measured])
        assert hfgen.HFGenPipeline.from_pretrained(f"{name}/best").config.num_classes == 2
    assert values[0] == values[1] == values[2]


def test_two_players_are_given_by_name():
    generator, discriminator = hfgen.build_gan("mlp", "s", 4, 1, latent_channels=8)
    networks = {"generator": generator, "discriminator": discriminator}

    def gan(networks):
        return hfgen.GANPipeline(networks["generator"], networks["discriminator"])

    objective = hfgen.Adversarial("non_saturating", 8)
    result = train(networks, objective, torch.randn(32, 1, 4, 4).clamp(-1, 1), pipeline=gan, max_train_steps=2)
    assert result.pipeline(2).images[0].size == (4, 4)
    logged = json.loads(Path("outputs/mine/metrics.jsonl").read_text().splitlines()[-1])
    assert {"generator/loss", "discriminator/loss"} <= logged.keys()
    with pytest.raises(ValueError, match="Adversarial trains discriminator, generator: give networks by these names"):
        train(generator, objective)
    with pytest.raises(ValueError, match=r"trains discriminator, and networks are \['generator'\]"):
        train({"generator": generator}, objective)


# --- one process, several trainings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("no", "bf16"), ("bf16", "no"), ("bf16", "bf16", "no")])
@pytest.mark.parametrize("same", [True, False])
def test_each_training_has_its_own_precision(order, same):
    """Also where one network is trained again: the autocast of the first training is not left on it."""
    network = net()
    for number, precision in enumerate(order):
        network = network if same else net()
        network.types.clear()
        result = train(network, folder=str(number), mixed_precision=precision, use_ema=False)
        assert network.types == {torch.bfloat16 if precision == "bf16" else torch.float32}
        network.types.clear()
        result.networks["denoiser"](torch.zeros(1, 2), torch.zeros(1))
        assert network.types == {torch.float32}  # as it is after loading
        assert yaml.safe_load(Path(f"{number}/config.yaml").read_text())["mixed_precision"] == precision


def test_an_own_accelerator_is_used():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    network = net()
    train(network, accelerator=accelerator)
    assert network.types == {torch.bfloat16} and accelerator.device.type == "cpu"


TWO = """
import sys
import torch, hfgen
from hfgen.paths import StraightPath
from tests.families.test_train import net, points

result = hfgen.train(net(), hfgen.Denoising(StraightPath()), points(), sys.argv[1] + "/two", max_train_steps=6,
                     train_batch_size=8, logging_steps=1, report_to="none")
print("rank", torch.distributed.get_rank(), result.finished)
"""


def test_a_script_is_launched_on_two_processes(tmp_path):
    """They are one with twice the batch, and the main one leaves the folder."""
    output = run_in_two_processes(TWO, tmp_path)
    assert "rank 0 True" in output and "rank 1 True" in output and output.count("Done: 6 steps") == 1
    one = train(folder="one", logging_steps=1)
    trained = net(seed=1)
    load_model(trained, tmp_path / "two" / "denoiser.safetensors")
    assert_close(trained.state_dict(), one.networks["denoiser"].state_dict(), rtol=0, atol=1e-5)
    for a, b in zip(rows(tmp_path / "two", TIMING), rows("one", TIMING), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_a_dry_run_trains_nothing(capsys):
    result = train(dry_run=True)
    assert not result.finished and not result.networks and not Path("outputs").exists()
    assert "optimiser steps:" in capsys.readouterr().out


def test_the_global_seed_does_not_matter():
    """Noise, order and dropout come from the option `seed`, whatever a notebook has drawn before."""
    networks = [net(), net()]
    torch.manual_seed(1)
    one = train(networks[0], folder="a")
    torch.manual_seed(2)
    torch.randn(3)
    assert equal(weights(one.networks), weights(train(networks[1], folder="b").networks))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rte": 1.0}, "hfgen.train has no option 'learning_rte'. Did you mean learning_rate?"),
        ({"batch_size": 4}, "hfgen.train has no option 'batch_size'. Did you mean "),
        ({"zzz": 4}, "hfgen.train has no option 'zzz'. Those of `hfgen train diffusion --help_all` are known."),
        ({"dataset": "digits"}, "hfgen.train has no option 'dataset'. Did you mean data?"),
        ({"learning_rate": "fast"}, "learning_rate='fast' must be a number."),
        ({"max_train_steps": 1.5}, "max_train_steps=1.5 must be a whole number or None."),
        ({"use_ema": 1}, "use_ema=1 must be True or False."),
        ({"lr_scheduler": "cosin"}, "lr_scheduler='cosin' must be 'constant' or "),
        ({"report_to": None}, "report_to=None must be a text."),
        ({"objective": Autoencoding}, "objective=the class Autoencoding is no objective. Give an instance, such as"),
        ({"objective": "mse"}, "objective='mse' must be an Objective."),
        ({"network": Net}, "networks hold the class Net, which is no module."),
        ({"network": {"denoiser": "net"}}, "networks hold str, which is no module."),
        ({"data": 3}, "int is no data set. Give a name, tensors"),
    ],
)
def test_what_is_of_another_type_is_refused_with_a_type_error(options, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        train(**options)
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_batch_size": 0}, "train_batch_size 0 must be from 1"),
        ({"ema_max_decay": 0.5, "use_ema": False}, "--ema_max_decay 0.5 does nothing with --use_ema False"),
        ({"ema_max_decay": 1.5}, "--ema_max_decay 1.5 must be at least 0 and below 1"),
        ({"report_to": "nothing"}, "report_to='nothing' is not installed. There are: none"),
        ({"eval_batch_size": 0}, "eval_batch_size 0 must be at least 1"),
        ({"eval_steps": 2}, "eval_steps needs a pipeline, to draw samples or to save."),
        ({"push_to_hub": True}, "push_to_hub needs a pipeline"),
        (
            {"eval_steps": 2, "pipeline": pipeline},
            "eval_steps=2 measures 8-bit images, and tensors holds others. Give 0.",
        ),
        ({"resolution": 32}, "resolution=32 does nothing with data of type Tensor"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
        ({"network": {"net": nn.Linear(2, 2)}}, "Denoising trains denoiser, and networks are ['net']."),
        (
            {"network": net(), "objective": hfgen.FlowMap(teacher="flow")},
            "FlowMap evaluates flow, and networks are ['denoiser']. Give it by this name; it is not trained.",
        ),
        (
            {"network": {"score": net(), "generator": net()}, "objective": hfgen.Distilled(StraightPath())},
            "Distilled evaluates teacher, and networks are ['score', 'generator'].",
        ),
        (
            {"network": hfgen.build_flow("nice", "xs", 8, 1, 3), "objective": hfgen.MaximumLikelihood(num_classes=5)},
            "flow has num_class_embeds=4, and MaximumLikelihood 5 classes. Build it with num_class_embeds=5.",
        ),
        ({"data": torch.full((4, 2), torch.nan)}, "x has 8 values that are not finite"),
        ({"data": points().long()}, "noise is added to real numbers"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_value_error(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(**options)
    assert not Path("outputs/mine/README.md").exists()


def test_a_player_that_is_a_text_is_refused():
    class One(Autoencoding):
        players = "network"

    with pytest.raises(
        TypeError, match=re.escape("players = 'network' is a text. Write a tuple: players = ('network',).")
    ):
        train(objective=One())


def test_a_loss_that_is_no_loss_is_refused_with_the_fix():
    class Plain(Autoencoding):
        def loss(self, player, networks, batch, step):
            return super().loss(player, networks, batch, step).value

    with pytest.raises(TypeError, match=r"Plain.loss returned Tensor. Return hfgen.Loss\(value, logs\)"):
        train(objective=Plain())


def test_a_loss_that_is_not_finite_is_raised():
    class Infinite(Autoencoding):
        def loss(self, player, networks, batch, step):
            value = super().loss(player, networks, batch, step).value / 0
            return Loss(value, {"loss": value.detach()})

    with pytest.raises(DivergenceError, match="network/loss is inf at step 1; no checkpoint was saved before"):
        train(objective=Infinite())


def test_numbers_of_numpy_and_paths_are_options_too(tmp_path):
    train(folder=tmp_path / "a", max_train_steps=np.int64(2), learning_rate=np.float32(0.5), num_epochs=3)
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (config["max_train_steps"], config["learning_rate"], config["num_epochs"]) == (2, 0.5, 3)


# --- the former call --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", [True, False])
def test_the_call_of_the_release_before_still_works(keyword):
    args = TrainArgs(output_dir="old", max_train_steps=2, train_batch_size=16, report_to="none", sample_steps=1)
    batches, steps = Batches(TensorData({"x": points()}), 16, seed=0), []
    accelerator, preview = Accelerator(cpu=True), lambda networks, step: steps.append(step)
    positional, keywords = (accelerator, preview), {}
    if keyword:
        positional, keywords = (), {"accelerator": accelerator, "preview": preview, "config": {"mine": 1}}
    with pytest.warns(FutureWarning, match=r"is now hfgen\.trainer\.loop\.train"):
        result = hfgen.train({"denoiser": net()}, flow(), batches, args, *positional, **keywords)
    assert result.finished and steps == [1]
    config = json.loads(Path("old/checkpoint-2/state.json").read_text())["config"]
    assert ("mine" in config) == keyword


def test_importing_hfgen_for_it_costs_nothing_until_it_is_used():
    code = "import sys, hfgen; hfgen.__dir__(); assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
