"""Reflow: pairs whose bits do not depend on how they are drawn, straightness, and the front door."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file

from hfgen import (
    CouplingFlowModel,
    DenoisingPipeline,
    DiTModel,
    NormalizingFlowPipeline,
    RectifiedFlowScheduler,
    build_denoiser,
)
from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.data.tensors import digest_of
from hfgen.data.training_data import record_of
from hfgen.families import few_steps
from hfgen.families.reflow.pairs import Source, draw_pairs, load_pairs, shard_file
from hfgen.metrics.straightness import straightness
from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.options import DataArgs
from hfgen.paths import StraightPath
from hfgen.saving import hub
from hfgen.training import train_flow_map, train_reflow
from hfgen.utils.seeds import generator_of
from tests.helpers.doors import run_door
from tests.helpers.gaussian import F64, Gaussian, ideal_pipeline

EXACT = {"rtol": 0, "atol": 0}


class Doubling:
    """A model that draws 2 noise + label. Call number `stop` is interrupted."""

    def __init__(self, stop=10**9):
        self.calls, self.stop = 0, stop

    def __call__(self, noise, labels):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return 2 * noise + (0 if labels is None else torch.tensor(labels).view(-1, 1, 1, 1))


def source(draw=None, classes=3, **changes):
    facts = {"weights": "abc", "pair_steps": 10, **changes}
    return Source(draw or Doubling(), (1, 4, 4), classes, 5, 8, facts)


def draw_and_load(folder, count=20, **options):
    draw_pairs(folder, count, source(**options))
    return load_pairs(folder, count, 8)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_pair_i_has_noise_of_its_own_and_its_class(tmp_path):
    pairs = draw_and_load(tmp_path).tensors
    assert len(pairs["x"]) == 20 and pairs["noise"].dtype == pairs["x"].dtype == torch.float32
    for i in (0, 7, 8, 19):
        assert torch.equal(pairs["noise"][i], torch.randn(1, 4, 4, generator=generator_of("pairs", 5, i)))
        assert pairs["labels"][i] == i % 3 and torch.equal(pairs["x"][i], 2 * pairs["noise"][i] + i % 3)
    assert "labels" not in draw_and_load(tmp_path / "plain", classes=None).tensors


def test_pairs_with_the_noise_of_samples_are_refused(tmp_path):
    draw_and_load(tmp_path)
    index = tmp_path / "pairs.json"
    facts = json.loads(index.read_text())
    del facts["random_streams"]  # as written before there were streams
    index.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"measured on noise that it was trained on.*Remove the folder"):
        draw_pairs(tmp_path, 20, source())


def test_an_interrupted_generation_continues_to_the_same_bits(tmp_path):
    whole = draw_and_load(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        draw_pairs(tmp_path / "cut", 20, source(Doubling(stop=1)))
    assert len(list((tmp_path / "cut").glob("pairs-*.safetensors"))) == 1
    model = Doubling()
    draw_pairs(tmp_path / "cut", 20, source(model))
    assert model.calls == 2  # of three batches
    continued = load_pairs(tmp_path / "cut", 20, 8)
    for name in ("noise", "x", "labels"):
        assert torch.equal(continued.tensors[name], whole.tensors[name])
    model = Doubling()
    draw_pairs(tmp_path / "cut", 40, source(model))  # a larger number continues the same cache
    assert model.calls == 2
    assert torch.equal(load_pairs(tmp_path / "cut", 40, 8).tensors["noise"][:20], whole.tensors["noise"])


def test_processes_share_the_work_and_draw_the_pairs_of_one(tmp_path):
    whole, models = draw_and_load(tmp_path / "one", 40), [Doubling(), Doubling()]
    for rank in (0, 1):
        draw_pairs(tmp_path / "two", 40, source(models[rank]), rank, 2)
    assert [model.calls for model in models] == [3, 2]
    assert torch.equal(load_pairs(tmp_path / "two", 40, 8).tensors["x"], whole.tensors["x"])


def test_a_cache_of_another_source_is_refused_with_the_differences(tmp_path):
    draw_and_load(tmp_path)
    with pytest.raises(ValueError, match=r"pair_steps is 10 there and 20 here\. Give another --pair_dir"):
        draw_and_load(tmp_path, pair_steps=20)
    with pytest.raises(ValueError, match=r"classes is 3 there and None here; weights is abc there and xyz here"):
        draw_and_load(tmp_path, classes=None, weights="xyz")
    with pytest.raises(ValueError, match=r"num_pairs=0"):
        draw_and_load(tmp_path, 0)


def test_a_damaged_shard_is_named(tmp_path):
    draw_and_load(tmp_path)
    shard = shard_file(tmp_path, 1)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"pairs-00001.safetensors can't be read .*Remove it"):
        load_pairs(tmp_path, 20, 8)
    shard.unlink()
    assert len(draw_and_load(tmp_path)) == 20
    assert not list(tmp_path.glob(".*"))


def test_the_digest_depends_on_the_weights():
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 3)
    same = torch.nn.Linear(3, 3)
    same.load_state_dict(network.state_dict())
    assert digest_of(network.state_dict()) == digest_of(same.state_dict())
    with torch.no_grad():
        same.bias[0] += 1e-6
    assert digest_of(network.state_dict()) != digest_of(same.state_dict())


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_hold_each_pair_once_per_epoch_and_resume_anywhere(tmp_path):
    pairs = draw_and_load(tmp_path, 24)
    loader = Batches(pairs, 4, seed=1)
    stream = loader.iterate(0)
    batches = [next(stream) for _ in range(12)]
    assert loader.batches_per_epoch == 6
    for batch in batches:
        labels = batch["labels"].view(-1, 1, 1, 1)
        torch.testing.assert_close(batch["x"], 2 * batch["noise"] + labels, **EXACT)
    for epoch in (batches[:6], batches[6:]):
        noise = torch.cat([batch["noise"] for batch in epoch])
        assert torch.equal(noise.flatten(1)[:, 0].sort().values, pairs.tensors["noise"].flatten(1)[:, 0].sort().values)
    resumed = next(loader.iterate(7))
    assert all(torch.equal(resumed[name], batches[7][name]) for name in resumed)
    halves = [next(Batches(pairs, 2, 1, rank, 2).iterate(3)) for rank in (0, 1)]
    assert torch.equal(torch.cat([half["noise"] for half in halves]), batches[3]["noise"])


def test_pairs_have_the_same_order_as_images(tmp_path):
    data, pairs = load_images(DataArgs(max_train_samples=24)), draw_and_load(tmp_path, 24)
    rows = Batches(data, 4, seed=9)._order(8, 4)
    assert torch.equal(next(Batches(pairs, 4, seed=9).iterate(2))["noise"], pairs.tensors["noise"][rows])


# --- straightness -----------------------------------------------------------------------------------------------------


def test_straightness_is_the_mean_square_deviation_of_the_velocity():
    path = torch.randn(6, 3, 2, 4, dtype=F64)
    velocity, line = np.diff(path.numpy(), axis=0) * 5, path[-1].numpy() - path[0].numpy()
    expected = ((line - velocity) ** 2).mean(0).reshape(3, -1).mean(1)
    np.testing.assert_allclose(straightness(path).numpy(), expected, rtol=1e-12)
    line = torch.linspace(0, 1, 5, dtype=F64).view(-1, 1, 1) * torch.randn(1, 3, 7, dtype=F64)
    assert float(straightness(line).abs().max()) < 1e-12
    with pytest.raises(ValueError, match=r"always straight; take two"):
        straightness(path[:2])


def test_straightness_of_a_gaussian_is_the_integral():
    """The exact flow keeps z: x_t = (1 - t) m + z sqrt((1 - t)^2 c^2 + t^2)."""
    problem = Gaussian(0.3, 0.2)
    t = np.linspace(0, 1, 100001)
    scale = np.sqrt((1 - t) ** 2 * problem.std**2 + t**2)
    slope = (t - (1 - t) * problem.std**2) / scale
    expected = np.trapezoid((1 - problem.std - slope) ** 2, t)  # times E[z^2] = 1
    pipeline = ideal_pipeline(problem, side=8)
    pipeline.use_scheduler("euler")
    options = {"output_type": "latent", "return_trajectory": True, "num_inference_steps": 200}
    path = pipeline(64, generator=torch.Generator().manual_seed(0), **options).trajectory
    assert float(straightness(path).mean()) == pytest.approx(expected, rel=0.06)


# --- the front door ---------------------------------------------------------------------------------------------------


QUICK = ["--pair_steps", "2", "--num_pairs", "40", "--pair_batch_size", "16", "--num_samples", "70"]
FEW = ["--max_train_steps", "3", "--train_batch_size", "8", "--eval_batch_size", "10", "--sample_steps", "0"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher") / "digits"
    sizes = {"patch_size": 4, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "num_class_embeds": 11}
    network = DiTModel(sample_size=8, in_channels=1, out_channels=1, **sizes)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.05)
    pipeline = DenoisingPipeline(network, RectifiedFlowScheduler(), 10, [str(i) for i in range(10)])
    pipeline.training_data = record_of(DataArgs(), load_images(DataArgs()))
    pipeline.save_pretrained(folder)
    return folder


def run(capsys, *words):
    return run_door(train_reflow.main, capsys, "--report_to", "none", *words)


def test_a_run_saves_a_pipeline_with_the_euler_scheduler_and_its_metrics(capsys, tmp_path, teacher):
    from hfgen import HFGenPipeline

    folder = tmp_path / "run"
    words = ["--pipeline", teacher, "--output_dir", folder, *QUICK, *FEW]
    status, out, errors = run(capsys, *words)
    assert status == 0, errors
    saved = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (saved["_class_name"], saved["solver"], saved["power"]) == ("RectifiedFlowScheduler", "euler", 1.0)
    metrics, card = json.loads((folder / "metrics.json").read_text()), (folder / "README.md").read_text()
    assert any(name.startswith("straightness") for name in metrics["measured"])
    for network in ("digits-cnn", "digits-texture"):
        distances = [name for name in metrics["measured"] if f"Frechet distance ({network}" in name]
        assert [name.split(", ")[2] for name in distances] == [f"{n} Euler step{'s' * (n > 1)}" for n in (1, 2, 4, 8)]
    for name, value in metrics["measured"].items():
        assert f"| {name} | {value} |" in card and name in out and " → " in value
    assert "hfgen train reflow --config config.yaml" in card
    assert yaml.safe_load((folder / "config.yaml").read_text())["num_pairs"] == 40
    assert not [path for path in hub.files_to_push(folder) if "pairs" in str(path)]

    pairs, pipeline = load_pairs(folder / "pairs", 40, 16), HFGenPipeline.from_pretrained(teacher)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "latent", "latents": pairs.tensors["noise"][:16]}
    images = pipeline(class_labels=[i % 10 for i in range(16)], **options).images
    torch.testing.assert_close(pairs.tensors["x"][:16], images, rtol=0, atol=1e-5)

    stamps = {path: path.stat().st_mtime_ns for path in (folder / "pairs").iterdir()}
    status, out, errors = run(capsys, *words, "--max_train_steps", "4")
    assert status == 0 and "Resumed from" in out, errors
    assert stamps == {path: path.stat().st_mtime_ns for path in (folder / "pairs").iterdir()}
    status, _, errors = run(capsys, *words, "--pair_steps", "3")
    assert status == 2 and "pair_steps is 2 there and 3 here" in errors
    assert errors.splitlines()[-1].startswith("error: ")


def test_training_starts_from_the_weights_of_the_teacher_on_its_pairs(capsys, tmp_path, teacher, monkeypatch):
    arguments = {}

    def train(self, networks, objective, data, **_):
        arguments.update(networks=networks, objective=objective, batch=next(data.iterate(0)))

    monkeypatch.setattr("hfgen.families.run.Run.train", train)
    status, _, errors = run(capsys, "--pipeline", teacher, "--output_dir", tmp_path / "run", *QUICK, *FEW)
    assert status == 0, errors
    weights = load_file(teacher / "denoiser" / "diffusion_pytorch_model.safetensors")
    student = arguments["networks"]["denoiser"].state_dict()
    assert all(torch.equal(student[name], value) for name, value in weights.items())
    assert arguments["batch"].keys() == {"x", "noise", "labels"}
    objective = arguments["objective"]
    assert (objective.prediction_type, objective.label_dropout) == ("flow_prediction", 0.1)


class TwoPixelModel(ModelMixin, ConfigMixin):
    """A network for images of two pixels."""

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: tuple[int, int] = (1, 2)):
        super().__init__()
        layers = [torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU()]
        self.body = torch.nn.Sequential(*layers, torch.nn.Linear(64, 2))

    def forward(self, sample, timestep, class_labels=None):
        time = timestep.to(sample).view(-1, 1) / 1000
        return SimpleNamespace(sample=self.body(torch.cat([sample.flatten(1), time], 1)).view_as(sample))


def fit(network, batches, steps=500):
    objective, optimizer = Denoising(StraightPath()), torch.optim.Adam(network.parameters(), 5e-3)
    for number in range(steps):
        optimizer.zero_grad()
        objective.loss("denoiser", {"denoiser": network}, next(batches), Step(number)).value.backward()
        optimizer.step()


def test_reflow_straightens_and_one_step_is_closer_to_the_data(tmp_path):
    """The data are two points on opposite sides, and trajectories of the first flow to them are curved."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def data():
        while True:
            signs = torch.randint(0, 2, (256, 1, 1, 1), generator=generator) * 2.0 - 1
            yield {"x": signs * torch.tensor([1.0, -0.5]) + 0.05 * torch.randn(256, 1, 1, 2, generator=generator)}

    pipeline = DenoisingPipeline(TwoPixelModel(), RectifiedFlowScheduler())
    pipeline.set_progress_bar_config(disable=True)
    noise, metrics = torch.randn(1000, 1, 1, 2, generator=torch.Generator().manual_seed(10**6)), []

    def measure():
        pipeline.use_scheduler("euler")
        options = {"latents": noise, "output_type": "latent"}
        path = pipeline(1000, num_inference_steps=32, return_trajectory=True, **options).trajectory
        one = pipeline(1000, num_inference_steps=1, **options).images.flatten(1)
        ends = torch.tensor([[1.0, -0.5], [-1.0, 0.5]])
        metrics.append((float(straightness(path).mean()), float(torch.cdist(one, ends).min(1).values.mean())))

    fit(pipeline.denoiser, data())
    measure()
    pipeline.use_scheduler("rectified_flow")

    def draw(noise, labels):
        return pipeline(len(noise), latents=noise, num_inference_steps=20, output_type="latent").images

    draw_pairs(tmp_path, 4096, Source(draw, pipeline.sample_shape, None, 0, 1024, {}))
    pairs = load_pairs(tmp_path, 4096, 1024)
    fit(pipeline.denoiser, Batches(pairs, 256, 0).iterate(0))
    measure()
    (curvature_before, distance_before), (curvature, distance) = metrics
    assert curvature < curvature_before / 3
    assert distance < distance_before / 3


def test_a_dry_run_writes_nothing(capsys, tmp_path, teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, errors = run(capsys, "--pipeline", teacher, "--output_dir", "run", *QUICK, *FEW, "--dry_run")
    assert status == 0, errors
    assert "pairs:" in out and "40 in" in out and "optimiser steps:" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give the trained pipeline to straighten: --pipeline outputs/quickstart"),
        (["--pipeline", "nowhere"], "There is no folder nowhere"),
        (["--pipeline", "TEACHER", "--features", "mnist"], "takes images of 1 channel(s) and 28 x 28"),
        (["--pipeline", "TEACHER", "--features", "vgg"], "features='vgg' are not known"),
        (["--pipeline", "TEACHER", "--num_samples", "10"], "must both be at least 65"),
        (
            ["--pipeline", "TEACHER", "--resolution", "4"],
            "images of shape (1, 8, 8), and those of digits have shape (1, 4, 4)",
        ),
        (["--pipeline", "TEACHER", "--num_pairs", "0"], "--num_pairs 0 must be"),
        (["--pipeline", "TEACHER", "--pair_steps", "0"], "--pair_steps 0 must be at least 1"),
        (["--pipeline", "TEACHER", "--max_train_steps", "0"], "--max_train_steps 0 must be"),
        (["--pipeline", "TEACHER", "--train_batch_size", "0"], "--train_batch_size 0 must be"),
        (["--pipeline", "TEACHER", "--output_dir", "TEACHER"], "would be overwritten"),
    ],
)
def test_impossible_options_are_refused_in_one_line(capsys, tmp_path, teacher, words, message):
    words = [str(teacher) if word == "TEACHER" else word for word in words]
    status, _, errors = run(capsys, "--output_dir", tmp_path / "run", *QUICK, *FEW, *words)
    assert status == 2 and errors.splitlines()[-1].startswith("error: ") and message in errors, errors
    assert not (tmp_path / "run").exists()


def test_other_paths_are_refused(capsys, tmp_path):
    from hfgen import DDPMScheduler

    network = build_denoiser("dit", "xs", 8, 1)
    DenoisingPipeline(network, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    status, _, errors = run(capsys, "--pipeline", tmp_path / "ddpm", "--output_dir", tmp_path / "run")
    assert status == 2 and "A rectified flow is needed here: train one with --path straight" in errors


@pytest.mark.parametrize("door", [train_reflow.main, train_flow_map.main], ids=["reflow", "flow_map"])
def test_pipelines_without_a_denoiser_are_refused(capsys, tmp_path, door):
    sizes = {"layers_per_level": 1, "hidden_channels": 8, "network_depth": 1}
    NormalizingFlowPipeline(CouplingFlowModel(8, 1, **sizes)).save_pretrained(tmp_path / "flow")
    status, _, errors = run_door(door, capsys, "--pipeline", tmp_path / "flow", "--output_dir", tmp_path / "run")
    assert status == 2 and errors.splitlines()[-1].startswith("error: "), errors
    assert "flow holds a NormalizingFlowPipeline; --pipeline needs a DenoisingPipeline or a LatentPipeline." in errors


def test_features_that_fit():
    for name, shape in {"digits": (1, 8, 8), "mnist": (1, 28, 28)}.items():
        names = [network.name for network in few_steps.features_for(None, shape)]
        assert names == [f"{name}-cnn", f"{name}-texture"]
    assert few_steps.features_for(None, (3, 5, 5)) == few_steps.features_for("none", (1, 8, 8)) == []
