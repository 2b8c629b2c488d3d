"""Laws of conditions: arguments of a network, null values, and one null for training's dropout and guidance."""

import re

import pytest
import torch
from hfgen.pipelines.sampling import guided
from torch import nn
from torch.testing import assert_close

import hfgen
from hfgen.models.conditions import ClassCondition, Condition, TensorCondition, TextCondition
from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.paths import StraightPath
from tests.helpers.text import text_encoder, tokenizer

COUNT = 6


class Recorder(nn.Module):
    """A network that returns zeros and records the arguments of each call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, timestep, **kwargs):
        self.calls.append(kwargs)
        return torch.zeros_like(x)


class TemperatureCondition(Condition):
    """A condition of a user's own: two arguments from one tensor, and a null that is not zero."""

    def kwargs(self, batch, networks=None):
        return {"kelvin": batch["celsius"] + 273.0, "frozen": batch["celsius"] < 0}

    def null(self, kwargs):
        return {"kelvin": torch.full_like(kwargs["kelvin"], -1.0), "frozen": torch.zeros_like(kwargs["frozen"])}


def batch_of(count=COUNT):
    generator = torch.Generator().manual_seed(0)
    tokens = tokenizer()(["a cat", "dog"] * (count // 2), padding="max_length", return_tensors="pt")
    return {
        "x": torch.randn(count, 5, 3, generator=generator),
        "labels": torch.arange(count) % 3,
        "observation": torch.randn(count, 2, generator=generator),
        "celsius": torch.linspace(-5, 20, count),
        **tokens,
    }


CONDITIONS = {
    "class": lambda: ClassCondition(3),
    "tensor": lambda: TensorCondition("observation"),
    "renamed": lambda: TensorCondition("low_resolution", "observation"),
    "text": lambda: TextCondition(),
    "own": lambda: TemperatureCondition(),
}
NAMES = {
    "class": {"class_labels"},
    "tensor": {"observation"},
    "renamed": {"low_resolution"},
    "text": {"encoder_hidden_states", "encoder_attention_mask"},
    "own": {"kelvin", "frozen"},
}


@pytest.fixture(params=CONDITIONS)
def case(request):
    """(name, condition, batch, networks)"""
    return request.param, CONDITIONS[request.param](), batch_of(), {"text_encoder": text_encoder()}


# --- arguments and null values ----------------------------------------------------------------------------------------


def test_null_values_have_shape_and_type_of_the_arguments(case):
    name, condition, batch, networks = case
    kwargs = condition.kwargs(batch, networks)
    assert kwargs.keys() == NAMES[name]
    null = condition.null(kwargs)
    for key, value in kwargs.items():
        assert len(value) == COUNT
        assert (null[key].shape, null[key].dtype, null[key].device) == (value.shape, value.dtype, value.device)
    again = condition.null(null)
    assert all(torch.equal(again[key], null[key]) for key in null)  # the null of the null is the null
    other = condition.null(condition.kwargs({key: value.flip(0) for key, value in batch.items()}, networks))
    assert all(torch.equal(other[key], null[key]) for key in null)  # it does not depend on the condition


def test_dropped_rows_are_null_and_the_others_stay(case):
    _, condition, batch, networks = case
    kwargs, rows = condition.kwargs(batch, networks), torch.tensor([True, False, True, False, False, True])
    null, dropped = condition.null(kwargs), condition.dropped(kwargs, rows)
    for key in kwargs:
        assert torch.equal(dropped[key][rows], null[key][rows])
        assert torch.equal(dropped[key][~rows], kwargs[key][~rows])


def test_with_null_is_the_arguments_and_then_their_null(case):
    _, condition, batch, networks = case
    kwargs = condition.kwargs(batch, networks)
    both, null = condition.with_null(kwargs), condition.null(kwargs)
    for key in kwargs:
        assert torch.equal(both[key], torch.cat([kwargs[key], null[key]]))


def test_the_null_class_is_one_more_than_the_last():
    kwargs = ClassCondition(3).kwargs(batch_of())
    assert kwargs["class_labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert ClassCondition(3).null(kwargs)["class_labels"].tolist() == [3] * COUNT


def test_a_text_is_what_its_encoder_makes_of_the_tokens():
    batch, encoder = batch_of(), text_encoder()
    kwargs = TextCondition().kwargs(batch, {"text_encoder": encoder})
    states = encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.equal(kwargs["encoder_hidden_states"], states) and states.requires_grad
    assert not kwargs["encoder_hidden_states"].requires_grad
    assert torch.equal(kwargs["encoder_attention_mask"], batch["attention_mask"])
    null = TextCondition().null(kwargs)
    assert null["encoder_attention_mask"].tolist() == [[1, 0, 0, 0, 0, 0]] * COUNT
    assert not null["encoder_hidden_states"].any()
    without_mask = {key: value for key, value in batch.items() if key != "attention_mask"}
    whole = TextCondition("words").kwargs(without_mask, {"words": encoder})
    assert torch.equal(whole["encoder_attention_mask"], torch.ones(COUNT, 6, dtype=torch.long))
    everything = encoder(batch["input_ids"], attention_mask=torch.ones(COUNT, 6)).last_hidden_state
    assert torch.equal(whole["encoder_hidden_states"], everything) and not torch.equal(everything, states)


class Waiting(torch.Tensor):
    """Tokens on a device that the CPU waits for whenever it looks at a value; how often is counted."""

    looks = 0
    device = torch.device("cuda")

    def max(self, *args):
        Waiting.looks += 1
        return super().max(*args)


def test_tokens_on_a_device_are_looked_at_once():
    batch, encoder, condition = batch_of(), text_encoder(), TextCondition()
    waiting = {"input_ids": batch["input_ids"].as_subclass(Waiting)}
    Waiting.looks = 0
    for _ in range(3):
        kwargs = condition._check(waiting["input_ids"], encoder)
    assert kwargs is None and Waiting.looks == 1
    with pytest.raises(ValueError, match="vocab_size=1000"):
        condition._check(torch.full((1, 2), 999), encoder)  # on the CPU every batch is looked at
    with pytest.raises(ValueError, match="vocab_size=1000"):
        TextCondition()._check(torch.full((1, 2), 999).as_subclass(Waiting), encoder)
    with pytest.raises(ValueError, match="max_position_embeddings=99"):
        condition._check(torch.zeros(1, 99, dtype=torch.long).as_subclass(Waiting), encoder)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (ClassCondition(3), "The model is class-conditional but the data have no labels"),
        (TensorCondition("state", "seen"), "The batch has no 'seen', only x, other. Add it to the data set."),
        (TextCondition(), """needs "input_ids" in the batch (it has x, other) and 'text_encoder' among the networks"""),
    ],
)
def test_a_batch_that_lacks_the_tensor_is_refused(condition, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        condition.kwargs({"x": torch.zeros(2), "other": torch.zeros(2)}, {"denoiser": nn.Identity()})


def test_impossible_conditions_are_refused():
    with pytest.raises(ValueError, match="num_classes=0 must be a whole number, at least 1"):
        ClassCondition(0)
    with pytest.raises(ValueError, match="'text_encoder' among the networks"):
        TextCondition().kwargs(batch_of())
    with pytest.raises(ValueError, match="Give one of the two"):
        Denoising(StraightPath(), num_classes=3, condition=TensorCondition("observation"))
    with pytest.raises(TypeError, match="abstract"):
        Condition()


# --- training ---------------------------------------------------------------------------------------------------------


def test_any_condition_reaches_the_network_and_is_dropped_as_often_as_asked(case):
    """The objective knows no condition by its class: an own one works as the others do."""
    _, condition, batch, networks = case
    kwargs = condition.kwargs(batch, networks)
    null, network = condition.null(kwargs), Recorder()
    dropped, steps = 0, 200
    objective = Denoising(StraightPath(), condition=condition, label_dropout=0.25)
    for number in range(steps):
        objective.loss("denoiser", {**networks, "denoiser": network}, batch, Step(number))
    for call in network.calls:
        rows = step_rows(kwargs, null, call)
        dropped += sum(rows)
    assert abs(dropped / (steps * COUNT) - 0.25) < 4 * (0.25 * 0.75 / (steps * COUNT)) ** 0.5


def step_rows(kwargs, null, call):
    """Which rows of a call were null; every other row must be the condition's, with all arguments alike."""
    assert call.keys() == kwargs.keys()
    rows = []
    for i in range(COUNT):
        is_null = all(torch.equal(call[key][i], null[key][i]) for key in call)
        assert is_null or all(torch.equal(call[key][i], kwargs[key][i]) for key in call)
        rows.append(is_null)
    return rows


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0), (1.0, COUNT)])
def test_no_dropout_and_nothing_but_dropout(case, dropout, share):
    _, condition, batch, networks = case
    kwargs, network = condition.kwargs(batch, networks), Recorder()
    objective = Denoising(StraightPath(), condition=condition, label_dropout=dropout)
    objective.loss("denoiser", {**networks, "denoiser": network}, batch, Step(0))
    assert sum(step_rows(kwargs, condition.null(kwargs), network.calls[0])) == share


def test_dropout_is_that_of_the_whole_effective_batch():
    """Two micro-batches of three drop what one batch of six drops."""
    condition, batch = TensorCondition("observation"), batch_of()
    objective, network = Denoising(StraightPath(), condition=condition, label_dropout=0.5), Recorder()
    objective.loss("denoiser", {"denoiser": network}, batch, Step(3))
    for shard in range(2):
        part = {key: value[3 * shard : 3 * shard + 3] for key, value in batch.items()}
        objective.loss("denoiser", {"denoiser": network}, part, Step(3, shard=shard, shards=2))
    whole, *parts = (call["observation"] for call in network.calls)
    assert torch.equal(torch.cat(parts), whole) and (whole == 0).all(1).any()


def test_num_classes_is_short_for_the_condition_of_classes():
    calls = []
    for options in ({"num_classes": 3}, {"condition": ClassCondition(3)}):
        network, objective = Recorder(), Denoising(StraightPath(), **options, label_dropout=0.5)
        objective.loss("denoiser", {"denoiser": network}, batch_of(), Step(1))
        calls.append(network.calls[0]["class_labels"])
    assert torch.equal(*calls) and 3 in calls[0]


def test_without_a_condition_the_network_gets_none():
    network = Recorder()
    Denoising(StraightPath()).loss("denoiser", {"denoiser": network}, batch_of(), Step(0))
    assert network.calls == [{}]


# --- sampling ---------------------------------------------------------------------------------------------------------


class Labelled(nn.Module):
    """A small network with an embedding of 3 classes and their null, which records the labels it gets."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.labels = nn.Embedding(4, 8), nn.Linear(2 + 1 + 8, 2), []

    def forward(self, x, timestep, class_labels=None):
        self.labels.append(class_labels)
        time = (timestep.to(x.dtype) / 1000)[:, None]
        return torch.tanh(self.body(torch.cat([x, time, self.embed(class_labels)], 1)))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_trainings_null_is_samplings_null(scale):
    """The label that dropout gave is the label that guidance gives, and a guided step is its formula by hand."""
    torch.manual_seed(0)
    network = Labelled()
    objective = Denoising(StraightPath(), num_classes=3, label_dropout=1.0)
    batch = {"x": torch.randn(4, 2), "labels": torch.tensor([0, 1, 2, 0])}
    objective.loss("denoiser", {"denoiser": network}, batch, Step(0))
    (trained,) = set(network.labels.pop().tolist())

    denoiser = hfgen.TorchModel(network, (2,), num_class_embeds=4)
    pipeline = hfgen.DenoisingPipeline(denoiser, hfgen.RectifiedFlowScheduler(solver_type="euler"), num_classes=3)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.null_label == trained == 3
    labels, noise = torch.tensor([1, 2]), torch.randn(2, 2)
    options = {"latents": noise, "num_inference_steps": 4, "output_type": "latent"}
    samples = pipeline(class_labels=labels, guidance_scale=scale, **options).samples
    assert scale == 1.0 or all(call.tolist() == [1, 2, trained, trained] for call in network.labels)

    scheduler, x = hfgen.RectifiedFlowScheduler(solver_type="euler"), noise
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            towards, null = network(x, t.expand(2), labels), network(x, t.expand(2), torch.full((2,), trained))
            x = scheduler.step(scale * towards + (1 - scale) * null, t, x).prev_sample
    assert_close(samples, x, rtol=1e-5, atol=1e-5)
    null = pipeline(2, **options).samples  # without labels: the null label
    assert_close(pipeline(class_labels=[1, 2], guidance_scale=0.0, **options).samples, null, rtol=1e-5, atol=1e-5)


def test_guidance_and_dropout_have_one_null_for_any_condition(case):
    _, condition, batch, networks = case
    kwargs, network = condition.kwargs(batch, networks), Recorder()
    dropped = condition.dropped(kwargs, torch.ones(COUNT, dtype=torch.bool))
    guided(network, batch["x"], 0.5, condition, kwargs, scale=2.0)
    for key, value in network.calls[0].items():
        assert torch.equal(value[COUNT:], dropped[key]) and torch.equal(value[:COUNT], kwargs[key])


# --- text, frozen -----------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """A denoiser of sequences (5, 3) that reads hidden states."""

    def __init__(self):
        super().__init__()
        self.mix, self.read = nn.Linear(4, 3), nn.Linear(8, 3)

    def forward(self, x, timestep, encoder_hidden_states, encoder_attention_mask):
        time = (timestep / 1000).view(-1, 1, 1).expand(*x.shape[:2], 1)
        mask = encoder_attention_mask.to(x.dtype).unsqueeze(-1)
        words = (encoder_hidden_states * mask).sum(1) / mask.sum(1)
        return self.mix(torch.cat([x, time], -1)) + self.read(words).unsqueeze(1)


def test_a_text_encoder_serves_and_stays_as_it_is(tmp_path):
    """It is among the networks, frozen and in evaluation mode; its network alone learns, and a resumed run is exact."""
    encoder, batch = text_encoder(), batch_of(8)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    data = {key: batch[key] for key in ("x", "input_ids", "attention_mask")}
    options = {"train_batch_size": 4, "lr_scheduler": "constant", "report_to": "none", "logging_steps": 1}

    def train(folder, steps):
        torch.manual_seed(0)
        networks = {"denoiser": Reader(), "text_encoder": encoder.train()}
        objective = Denoising(StraightPath(), condition=TextCondition(), label_dropout=0.5)
        return hfgen.train(networks, objective, data, folder, max_train_steps=steps, **options)

    whole = train(tmp_path / "whole", 6)
    assert whole.networks.keys() == {"denoiser"} and not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    files = {path.name for path in (tmp_path / "whole" / "checkpoint-6").glob("*.safetensors")}
    assert "model.safetensors" in files and "model_1.safetensors" not in files
    assert train(tmp_path / "cut", 3).step == 3
    cut = train(tmp_path / "cut", 6).networks["denoiser"].state_dict()
    assert all(torch.equal(value, cut[key]) for key, value in whole.networks["denoiser"].state_dict().items())
