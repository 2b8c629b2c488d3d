"""Figures that objectives log, by hand: of several items and dimensions, so that no mean is a sum or another mean."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hfgen
from hfgen.distributions.likelihoods import build_likelihood
from hfgen.models.energy import EnergyOutput
from hfgen.objectives.autoencoding import VectorQuantized
from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.objectives.distilled import Distilled
from hfgen.objectives.flow_map import FlowMap
from hfgen.objectives.learned_range import LearnedRange
from hfgen.objectives.noisy_classification import NoisyClassification
from hfgen.paths import LinearVPPath, StraightPath

FACTORS = torch.tensor([1.0, 2.0, 2.0])  # root mean square 3^(1/2)


def logs_of(objective, networks, batch, player, step=Step(0)):  # noqa: B008
    """Return value and logs as numbers."""
    loss = objective.loss(player, networks, batch, step)
    return {"value": float(loss.value.detach()), **{name: float(value) for name, value in loss.logs.items()}}


class Clock(nn.Module):
    """u = t (1, 2, 2): du/dt is (1, 2, 2) in every item, and so is any difference."""

    def forward(self, x, timestep, r_timestep=None):
        return FACTORS * timestep[:, None].float() / 1000 + 0 * x


@pytest.mark.parametrize("tangent", ["jvp", "difference"])
def test_the_slope_of_a_flow_map_is_its_root_mean_square(tangent):
    """Per dimension, over the items whose interval has a length, at any share of these."""
    for share in (0.2, 0.7):
        objective = FlowMap("mean_flow", tangent, flow_share=share, adaptive_power=0)
        logs = logs_of(objective, {"denoiser": Clock()}, {"x": torch.zeros(40, 3)}, "denoiser")
        assert logs["du_dt"] == pytest.approx(math.sqrt(3), rel=1e-3)


def test_the_flow_error_is_that_of_items_at_rest():
    """x_0 = 0, eps = (1, 2, 2): at rest the error is 3 (1 - t)^2; in motion the target is (1, 2, 2) (1 - (t - r))."""
    objective = FlowMap("mean_flow", "jvp", flow_share=0.3, adaptive_power=0)
    batch = {"x": torch.zeros(50, 3), "noise": FACTORS.expand(50, 3)}
    t, r, _ = objective.intervals(Step(0), 50)
    errors = 3 * (t - torch.where(r < t, 1 - (t - r), 1.0)) ** 2
    logs = logs_of(objective, {"denoiser": Clock()}, batch, "denoiser")
    assert 0 < (r < t).double().mean() < 1
    assert logs["error"] == pytest.approx(float(errors.mean()), rel=1e-4) == logs["value"]
    assert logs["flow_error"] == pytest.approx(float(errors[r == t].mean()), rel=1e-4)


class Sums(nn.Module):
    """E(x) = the sum of x, without a slope that a chain would follow at step size 0."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, sample, class_labels=None, with_gradient=False):
        gradient = self.gain.expand_as(sample) if with_gradient else None
        return EnergyOutput(energy=self.gain * sample.sum(1), gradient=gradient)


def test_energies_are_logged_per_dimension():
    """Data of 1, 2 and 3 in two dimensions; one step of length 1/2 without noise takes 1/2 off each number."""
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    chain = hfgen.Langevin(1, 0.5, 0.0, None)
    contrast = hfgen.ContrastiveDivergence(chain, "data", penalty=1.0, data_noise=0.0)
    logs = logs_of(contrast, {"energy": Sums()}, {"x": x}, "energy")
    assert (logs["energy_real"], logs["energy_fake"], logs["gap"]) == pytest.approx((2.0, 1.5, -0.5))
    assert logs["value"] == pytest.approx(0.5 + 14 / 3 + (0.25 + 2.25 + 6.25) / 3)
    flow = hfgen.EquilibriumMatching()
    for steps, names in ((1, {"value", "loss", "flow"}), (0, {"value", "loss", "flow", "gap"})):
        objective = hfgen.EnergyMatching(flow, contrast, steps, weight=3.0)
        both = logs_of(objective, {"energy": Sums()}, {"x": x}, "energy")
        assert names <= both.keys() and ("gap" in both) == ("gap" in names)
        assert both["flow"] == pytest.approx(logs_of(flow, {"energy": Sums()}, {"x": x}, "energy")["value"])
        assert both["value"] == pytest.approx(both["flow"] + (0 if steps else 3 * logs["value"]), rel=1e-5)


def test_the_gap_of_a_distillation_is_a_root_mean_square():
    """Estimates of x_0 that differ by (1, 2, 2) everywhere."""
    constant = lambda value: lambda x, timestep: value.expand_as(x)  # noqa: E731
    networks = {"generator": lambda z: z, "teacher": constant(FACTORS), "score": constant(0 * FACTORS)}
    for method in ("sid", "dmd"):
        objective = Distilled(StraightPath(), "sample", method, generate=lambda network, noise, kwargs: noise)
        logs = logs_of(objective, networks, {"x": torch.zeros(6, 3)}, "generator")
        assert logs["gap"] == pytest.approx(math.sqrt(3), rel=1e-5)


def test_both_parts_of_a_learned_range_are_means_over_items():
    objective = LearnedRange(Denoising(LinearVPPath(), "epsilon"), 0.25)
    batch = {"x": torch.linspace(-1, 1, 12).view(6, 2), "noise": torch.tensor([1.0, 3.0]).expand(6, 2)}
    network = lambda x, timestep: torch.zeros(len(x), 4)  # noqa: E731
    logs = logs_of(objective, {"denoiser": network}, batch, "denoiser")
    assert logs["simple"] == pytest.approx(5)  # (1 + 9) / 2, whatever the time
    t, parts = objective.denoising.times(Step(0), 6), []
    for i in range(6):
        noisy = objective.denoising.noisy(
            {name: value[i : i + 1] for name, value in batch.items()}, Step(0), t[i : i + 1]
        )
        parts.append(float(objective.bits(torch.zeros(1, 2), torch.zeros(1, 2), noisy)))
    assert logs["vlb"] == pytest.approx(sum(parts) / 6, rel=1e-5)
    assert logs["value"] == pytest.approx(5 + 0.25 * 1000 * logs["vlb"], rel=1e-5)


def test_the_accuracy_of_a_classifier_is_a_share():
    """Three of four right; its cross-entropy where each class has the same logit but one with 2 more."""
    labels = torch.tensor([0, 1, 2, 0])
    logits = 2 * nn.functional.one_hot(torch.tensor([0, 1, 2, 1]), 3).float()
    network = lambda x, timestep: SimpleNamespace(logits=logits)  # noqa: E731
    objective = NoisyClassification(LinearVPPath(), label_smoothing=0.0)
    logs = logs_of(objective, {"classifier": network}, {"x": torch.zeros(4, 1, 2, 2), "labels": labels}, "classifier")
    total = math.log(math.exp(2) + 2)
    assert logs["accuracy"] == 0.75 and logs["value"] == pytest.approx(total - 2 * 3 / 4)


def test_the_terms_of_a_quantised_autoencoder_are_means_over_items_and_sums_over_pixels():
    """A Gaussian of deviation 1 around 0 at pixels 1: log p = -1/2 - log(2 pi) / 2 each, of 12 pixels an item."""
    likelihood = build_likelihood("gaussian", sigma=1.0)
    output = SimpleNamespace(
        sample=torch.zeros(5, 3, 2, 2), commit_loss=torch.tensor(4.0), perplexity=torch.tensor(7.0)
    )
    networks, batch = {"autoencoder": lambda x: output}, {"x": torch.ones(5, 3, 2, 2)}
    logs = logs_of(VectorQuantized(likelihood), networks, batch, "autoencoder")
    expected = -12 * (0.5 + math.log(2 * math.pi) / 2)
    assert logs["reconstruction"] == pytest.approx(expected)
    assert (logs["commitment"], logs["perplexity"]) == (4, 7)
    assert logs["value"] == pytest.approx(-expected / 12 + 0.25 * 4)
