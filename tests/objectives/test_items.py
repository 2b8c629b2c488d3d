"""Items of any shape: the loss against a formula written out number by number, padding, training and sampling."""

import json
import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.testing import assert_close

import hfgen
from hfgen.data.batches import Batches
from hfgen.data.tensors import EndlessData, TensorData
from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.paths import StraightPath, path_from_config

SHAPES = {"vector": (5,), "sequence": (6, 2), "image": (1, 4, 4), "points": (4, 3)}
BATCH = 6


class Waves(nn.Module):
    """A function of single numbers and of time, which remembers its inputs. It has no shape of its own."""

    def __init__(self):
        super().__init__()
        self.scale, self.inputs = nn.Parameter(torch.tensor(0.7, dtype=torch.float64)), []

    def forward(self, x, timestep):
        self.inputs.append(x)
        return torch.sin(self.scale * x + timestep.double().reshape(-1, *[1] * (x.ndim - 1)) / 1000)


class Mixer(nn.Module):
    """A small network for items of any shape."""

    def __init__(self, shape):
        super().__init__()
        size = math.prod(shape)
        self.body = nn.Sequential(nn.Linear(size + 1, 32), nn.SiLU(), nn.Linear(32, size))

    def forward(self, x, timestep):
        return self.body(torch.cat([x.flatten(1), (timestep / 1000)[:, None]], 1)).view_as(x)


def items(shape, count=BATCH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def points_mask(lengths=(4, 1, 2, 4, 3, 2), size=4):
    """A mask (B, N) of which the first `lengths` points are data."""
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def written_out(kind, x, eps, t, mask=None):
    """The loss of `Waves` in Python's own numbers: the mean over items of the mean over the numbers of each."""
    table = DDPMScheduler(num_train_timesteps=1000).alphas_cumprod.double()
    means = []
    for i in range(len(x)):
        alpha, sigma, clock = 1 - t[i], t[i], 1000 * t[i]
        if kind == "epsilon":  # on DDPM's table, whose entries are the times
            entry = round(float(t[i]) * 1000) - 1
            alpha, sigma, clock = math.sqrt(table[entry]), math.sqrt(1 - table[entry]), entry
        errors = []
        for place in torch.cartesian_prod(*[torch.arange(n) for n in x.shape[1:]]).reshape(-1, x.ndim - 1).tolist():
            if mask is not None and not mask[(i, *place[: mask.ndim - 1])]:
                continue
            data, noise = float(x[(i, *place)]), float(eps[(i, *place)])
            output = math.sin(0.7 * (alpha * data + sigma * noise) + clock / 1000)
            errors.append((output - (noise if kind == "epsilon" else noise - data)) ** 2)
        means.append(sum(errors) / max(1, len(errors)))
    return sum(means) / len(means)


def loss_of(kind, batch, step):
    path = path_from_config({"path": "discrete", "beta_schedule": "linear"}) if kind == "epsilon" else StraightPath()
    objective, network = Denoising(path, kind), Waves()
    loss = objective.loss("denoiser", {"denoiser": network}, batch, step).value
    return loss, network.inputs[0], objective.times(step, len(batch["x"]))


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flow_prediction", "epsilon"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_loss_is_its_formula_for_items_of_any_shape(name, kind):
    x, step = items(SHAPES[name]), Step(3, seed=1)
    loss, _, t = loss_of(kind, {"x": x}, step)
    assert loss.item() == pytest.approx(written_out(kind, x, step.randn("noise", x), t), rel=1e-5)


@pytest.mark.parametrize("kind", ["flow_prediction", "epsilon"])
def test_the_loss_is_a_mean_over_what_is_no_padding(kind):
    """Each item counts alike, whatever its number of points."""
    x, mask, step = items(SHAPES["points"]), points_mask(), Step(2)
    loss, _, t = loss_of(kind, {"x": x, "mask": mask}, step)
    assert loss.item() == pytest.approx(written_out(kind, x, step.randn("noise", x), t, mask), rel=1e-5)


@pytest.mark.parametrize("mask_dimensions", [2, 3])
def test_padding_has_no_noise_and_no_loss(mask_dimensions):
    x, step = items(SHAPES["points"]), Step(2)
    mask = points_mask()
    mask = mask if mask_dimensions == 2 else mask[..., None].expand(-1, -1, 3)
    loss, x_t, _ = loss_of("flow_prediction", {"x": x, "mask": mask}, step)
    padding = ~points_mask()
    assert torch.equal(x_t[padding], torch.zeros_like(x_t[padding])) and (x_t[~padding] != 0).all()
    junk = torch.where(padding[..., None], torch.full_like(x, 1e9), x)
    assert torch.equal(loss_of("flow_prediction", {"x": junk, "mask": mask}, step)[0], loss)


@pytest.mark.parametrize("more", [1, 7])
def test_the_length_of_the_padding_changes_nothing(more):
    x, mask, step = items(SHAPES["points"]), points_mask(), Step(2)
    eps = step.randn("noise", x)
    loss = loss_of("flow_prediction", {"x": x, "mask": mask, "noise": eps}, step)[0]
    longer = {name: torch.cat([value, torch.ones(BATCH, more, 3)], 1) for name, value in (("x", x), ("noise", eps))}
    longer["mask"] = torch.cat([mask, torch.zeros(BATCH, more, dtype=torch.bool)], 1)
    assert_close(loss_of("flow_prediction", longer, step)[0], loss, rtol=1e-6, atol=0)


def test_a_mask_of_everything_is_no_mask_and_an_item_of_padding_alone_costs_nothing():
    x, step = items(SHAPES["sequence"]), Step(0)
    plain = loss_of("flow_prediction", {"x": x}, step)[0]
    everything = loss_of("flow_prediction", {"x": x, "mask": torch.ones(BATCH, 6, dtype=torch.bool)}, step)[0]
    assert_close(everything, plain, rtol=1e-6, atol=0)
    nothing = loss_of("flow_prediction", {"x": x, "mask": torch.zeros(BATCH, 6, dtype=torch.bool)}, step)[0]
    assert nothing.item() == 0


@pytest.mark.parametrize("shape", [(BATCH, 3), (BATCH - 1, 4), (BATCH, 4, 3, 1), (4, BATCH)])
def test_a_mask_of_other_dimensions_is_refused(shape):
    with pytest.raises(ValueError, match=r"mask has shape .*; it must be the first dimensions of x, \(6, 4, 3\)"):
        loss_of("flow_prediction", {"x": items(SHAPES["points"]), "mask": torch.ones(shape)}, Step(0))


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"x holds torch.int64, and noise is added to real numbers. Give x.float\(\)"):
        loss_of("flow_prediction", {"x": torch.zeros(BATCH, 3, dtype=torch.int64)}, Step(0))


@pytest.mark.parametrize("name", SHAPES)
def test_slices_of_the_effective_batch_have_its_noise_and_times(name):
    """Two micro-batches of three are one batch of six, for any shape."""
    x = items(SHAPES[name])
    whole = loss_of("flow_prediction", {"x": x}, Step(4))[0]
    parts = [loss_of("flow_prediction", {"x": x[3 * i : 3 * i + 3]}, Step(4, shard=i, shards=2))[0] for i in range(2)]
    assert_close(sum(parts) / 2, whole, rtol=1e-6, atol=0)


# --- training and sampling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "unit"), [*zip(SHAPES, ("items", "motions", "images", "clouds"), strict=True)])
def test_items_of_any_shape_are_trained_on_and_sampled(tmp_path, name, unit):
    shape = SHAPES[name]
    tensors = {"x": 2 + 0.1 * items(shape, 64).float()}
    if name == "points":
        tensors["mask"] = points_mask((4, 3) * 32)
    torch.manual_seed(0)
    result = hfgen.train(
        Mixer(shape),
        Denoising(StraightPath()),
        TensorData(tensors, unit=unit),
        tmp_path,
        pipeline=lambda networks: hfgen.DenoisingPipeline(networks["denoiser"], hfgen.RectifiedFlowScheduler()),
        **{"max_train_steps": 60, "train_batch_size": 32, "learning_rate": 1e-2, "lr_warmup_steps": 0},
        report_to="none",
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [key for key in rows[0] if key.endswith("_per_second")] == [f"{unit}_per_second"]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics[f"{unit}_seen"] == 60 * 32 and f"{unit}_per_second" in metrics
    assert result.pipeline.sample_shape == shape
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    samples = result.pipeline(3, generator=generators, output_type="latent").samples
    assert samples.shape == (3, *shape) and samples.isfinite().all()
    if len(shape) != 3:
        with pytest.raises(ValueError, match="are no images; use output_type='latent'"):
            result.pipeline(1, output_type="pt")
    alone = result.pipeline(1, generator=torch.Generator().manual_seed(1), output_type="latent").samples
    assert_close(alone, samples[1:2], rtol=0, atol=1e-5)
    assert (tmp_path / "samples.png").exists() == (name in ("sequence", "image", "points"))


def test_an_endless_data_set_is_trained_on(tmp_path):
    """A cloud that is drawn anew has no epochs."""
    data = EndlessData(
        lambda count, generator: {"x": torch.randn(count, 2, generator=generator)}, (2,), "cloud", "points"
    )
    options = {"train_batch_size": 16, "max_train_steps": 4, "logging_steps": 2, "report_to": "none"}
    hfgen.train(Mixer((2,)), Denoising(StraightPath()), data, tmp_path, **options)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and "epoch" not in rows[0] and "points_per_second" in rows[0]
    with pytest.raises(ValueError, match="no known length; give --max_train_steps"):
        hfgen.train(Mixer((2,)), Denoising(StraightPath()), data, tmp_path / "other", report_to="none")


def test_noise_of_the_data_is_the_coupling():
    """A "noise" among the tensors takes the place of independent noise: its rows stay with their items."""
    x, noise = items((5,), 8), items((5,), 8, seed=1)
    batch = next(Batches(TensorData({"x": x, "noise": noise}), 6, seed=0).iterate())
    loss, x_t, t = loss_of("flow_prediction", batch, Step(0))
    assert loss.item() == pytest.approx(written_out("flow_prediction", batch["x"], batch["noise"], t), rel=1e-5)
    assert_close(x_t, (1 - t)[:, None] * batch["x"] + t[:, None] * batch["noise"])
