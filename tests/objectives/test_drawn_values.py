"""Objectives whose values are drawn: laws of many draws, and losses put together from their parts."""

import math

import pytest
import torch
from torch import nn

from hfgen import Denoising, LearnedRange, ReverseVariance
from hfgen.objectives.augmentation import augment
from hfgen.objectives.base import Step
from hfgen.paths import DiscretePath, VEPath, betas_of

TABLE = torch.cumprod(1 - betas_of("linear", 1000, 1e-4, 0.02), 0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_uniform(values, low, high):
    """Kolmogorov's distance from the uniform distribution, at a level of 1e-6."""
    share = (values.sort().values - low) / (high - low)
    rank = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    distance = torch.maximum((share - rank[1:]).abs(), (share - rank[:-1]).abs()).max()
    assert float(distance) < math.sqrt(math.log(2e6) / 2 / len(values)), float(distance)


def test_colors_are_changed_by_three_uniform_numbers_of_each_image():
    """Brightness moves the mean, contrast stretches what is left of grey, and saturation what is left of colour."""
    x = normal(4000, 3, 2, 2)
    y = augment(x, ("color",), Step(3), "real")
    brightness = (y - x).mean((1, 2, 3))
    grey_x, grey_y = (value.mean(1) - value.mean((1, 2, 3))[:, None, None] for value in (x, y))
    contrast = (grey_y / grey_x).flatten(1)
    color_x, color_y = (value - value.mean(1, keepdim=True) for value in (x, y))
    both = (color_y / color_x).flatten(1)
    assert (contrast - contrast[:, :1]).abs().max() < 1e-6 and (both - both[:, :1]).abs().max() < 1e-6
    saturation = both[:, 0] / contrast[:, 0]
    for values, low, high in ((brightness, -0.5, 0.5), (contrast[:, 0], 0.5, 1.5), (saturation, 0.0, 2.0)):
        assert_uniform(values, low, high)
    assert torch.corrcoef(torch.stack([brightness, contrast[:, 0], saturation])).triu(1).abs().max() < 0.08


class Outputs(nn.Module):
    """A prediction and a position between the variances that depend on the item and its time."""

    def forward(self, sample, timestep):
        time = timestep.to(sample)[:, None, None] / 1000
        return torch.cat([0.3 * sample + time, (sample - 2 * time).tanh()], 1)


@pytest.mark.parametrize("weight", [1e-3, 0.5])
def test_a_learned_range_adds_the_bound_of_all_steps(weight):
    """T times the bound of a step is that of the chain."""
    denoising = Denoising(DiscretePath(TABLE[:500]), "epsilon")
    batch, networks = {"x": normal(6, 1, 4).float()}, {"denoiser": Outputs()}
    loss = LearnedRange(denoising, weight).loss("denoiser", networks, batch, Step(1))
    bound = float(loss.logs["vlb"])
    assert float(loss.value) == pytest.approx(float(loss.logs["simple"]) + weight * 500 * bound, rel=1e-5) and bound > 0
    prediction = {"denoiser": lambda *inputs: Outputs()(*inputs)[:, :1]}
    assert float(loss.logs["simple"]) == pytest.approx(
        float(denoising.loss("denoiser", prediction, batch, Step(1)).value), rel=1e-6
    )


def test_a_learned_range_tells_the_network_the_class():
    told, batch = [], {"x": normal(6, 1, 4).float(), "labels": torch.tensor([0, 2, 1, 1, 0, 2])}

    def network(x, timestep, class_labels):
        told.append(class_labels)
        return Outputs()(x, timestep)

    denoising = Denoising(DiscretePath(TABLE), "epsilon", num_classes=3, label_dropout=0.0)
    for importance in (False, True):
        LearnedRange(denoising, importance=importance).loss("denoiser", {"denoiser": network}, batch, Step(1))
        assert torch.equal(told[-1], batch["labels"])


def test_importance_weighs_each_item_and_notes_its_loss():
    """Times and weights come from the history; a weight multiplies both parts of the loss of its item."""
    denoising = Denoising(DiscretePath(TABLE), "epsilon")
    objective, batch = LearnedRange(denoising, 1e-3, importance=True), {"x": normal(4, 1, 4).float()}
    share = torch.tensor([0.0, 0.2, 0.6004, 0.9999], dtype=torch.float64)
    weights, noted = torch.tensor([3.0, 0.0, 0.5, 1.0], dtype=torch.float64), []
    objective.history.note = lambda t, losses: noted.append((t, losses))
    seen = []

    def network(x, timestep):
        seen.append(timestep)
        return Outputs()(x, timestep)

    def value(weights):
        objective.history.draw = lambda uniform: (share, weights)
        return float(objective.loss("denoiser", {"denoiser": network}, batch, Step(2)).value)

    total, parts = value(weights), [value(4.0 * row) for row in torch.eye(4, dtype=torch.float64)]
    assert total == pytest.approx(sum(w * part for w, part in zip(weights.tolist(), parts, strict=True)) / 4, rel=1e-5)
    assert seen[0].tolist() == [0, 199, 600, 999]  # of the entry of a table at the time or after it
    assert torch.equal(noted[0][0], share) and noted[0][1].tolist() == pytest.approx(parts, rel=1e-5)


class AtOneTime(DiscretePath):
    def snap(self, t):
        return torch.full_like(t, 0.3) if t.ndim else super().snap(t)


class ExplodingAtOneTime(VEPath):
    def snap(self, t):
        return torch.full_like(t, 0.3) if t.ndim else super().snap(t)


class Stated(nn.Module):
    """A head that says a number for each dimension."""

    def __init__(self):
        super().__init__()
        self.numbers = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))

    def forward(self, sample, prediction, timestep):
        return self.numbers.expand_as(sample)


@pytest.mark.parametrize("path", [AtOneTime(TABLE), ExplodingAtOneTime(0.05, 20.0)])
def test_random_signs_find_the_diagonal_of_a_jacobian_that_has_more_than_that(path):
    """Of eps = M x_scaled the variance of eps given x_t is 1 - sigma scale M_ii, on VP and VE paths alike."""
    matrix = torch.tensor([[0.3, -0.9], [0.7, -0.2]], dtype=torch.float64)
    head, x = Stated(), normal(20_000, 2)
    objective = ReverseVariance(path, "epsilon", "ocm")
    networks = {"denoiser": lambda x, timestep: x @ matrix.T, "variance_head": head}
    objective.loss("variance_head", networks, {"x": x}, Step(0)).value.backward()
    point = path(torch.tensor(0.3, dtype=torch.float64))
    alpha, sigma = float(point.alpha), float(point.sigma)
    scale = 1.0 if alpha < 1 else (1 + sigma**2) ** -0.5
    weight = alpha**2 / (alpha**2 + sigma**2)
    found = -head.numbers.grad[0] / weight  # of w (0 - goal)^2, averaged over two dimensions
    expected = 1 - sigma * scale * matrix.diagonal()
    torch.testing.assert_close(found, expected, atol=0.04 * sigma * scale, rtol=0)
