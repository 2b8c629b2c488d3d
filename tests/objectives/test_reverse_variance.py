"""Heads of variances and learned ranges: what their losses are least at, biased networks, gradients, histories."""

import math

import pytest
import torch
from torch import nn

import hfgen
from hfgen import Denoising, LearnedRange, ReverseVariance
from hfgen.objectives.base import Step
from hfgen.objectives.learned_range import BINS, KEPT, LossHistory
from hfgen.paths import DiscretePath, StraightPath, betas_of, path_from_config
from hfgen.registry import PATHS
from tests.helpers.gaussian import Gaussian

VP = path_from_config(PATHS["vp"])


class Level(nn.Module):
    """A head that says one positive number everywhere, the only one it has."""

    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))

    def forward(self, sample, prediction, timestep):
        return self.log.exp().expand_as(sample)


class Ideal(nn.Module):
    """The perfect noise prediction for data N(0.6, 0.4^2), plus a bias."""

    def __init__(self, path, bias=0.0):
        super().__init__()
        self.path, self.bias, self.problem = path, bias, Gaussian()

    def forward(self, sample, timestep):
        point = self.path(self.path.time_of(timestep.double())).like(sample)
        x_0 = self.problem.x_0(sample, point.alpha, point.sigma)
        return (sample - point.alpha * x_0) / point.sigma + self.bias


class AtOneTime(DiscretePath):
    """The VP path, of which training sees one time alone."""

    def __init__(self, t):
        super().__init__(torch.cumprod(1 - betas_of("linear", 1000, 1e-4, 0.02), 0))
        self.only = t

    def snap(self, t):
        return torch.full_like(t, self.only) if t.ndim else super().snap(t)


def least(target, bias, t=0.3, count=20_000):
    """The number with the least loss of this target, found where the gradient is 0, and the output's mean square."""
    path, head = AtOneTime(t), Level()
    networks = {"denoiser": Ideal(path, bias), "variance_head": head}
    x = 0.6 + 0.4 * torch.randn(count, 1, generator=torch.Generator().manual_seed(1))
    objective = ReverseVariance(path, "epsilon", target)
    for _ in range(40):  # Newton's method in the log of the number
        value = objective.loss("variance_head", networks, {"x": x}, Step(0)).value
        (slope,) = torch.autograd.grad(value, head.log, create_graph=True)
        (bend,) = torch.autograd.grad(slope, head.log)
        with torch.no_grad():
            head.log -= (slope / bend.abs()).clamp(-1, 1)
    point = path(torch.tensor(t, dtype=torch.float64))
    noise = torch.randn(count, 1, generator=torch.Generator().manual_seed(2))
    output = networks["denoiser"](
        float(point.alpha) * x + float(point.sigma) * noise, torch.full((count,), 1e3 * t - 1)
    )
    return float(head.log.exp()), float(output.square().mean())


def open_share(t):
    """Var[eps | x_t], in closed form."""
    point = VP(torch.tensor(t, dtype=torch.float64))
    alpha, sigma = float(point.alpha), float(point.sigma)
    return 0.16 * alpha**2 / (0.16 * alpha**2 + sigma**2)


def test_the_three_targets_agree_for_a_perfect_network():
    wanted = open_share(0.3)
    npr, _ = least("npr", 0.0)
    sn, square = least("sn", 0.0)
    ocm, _ = least("ocm", 0.0)
    assert npr == pytest.approx(wanted, rel=0.05)
    assert sn - square == pytest.approx(wanted, abs=0.03)
    assert ocm == pytest.approx(wanted, rel=1e-3)  # of a linear network the Jacobian is exact


def test_npr_corrects_a_biased_network_and_sn_does_not():
    """The best variance around a wrong mean is that of the residual: the variance and the squared bias."""
    bias, variance = 0.5, open_share(0.3)
    best = variance + bias**2
    npr, _ = least("npr", bias)
    sn, square = least("sn", bias)
    assert npr == pytest.approx(best, rel=0.05)
    assert abs(sn - square - best) > 0.5 * bias**2  # E[eps^2] - (E[eps] + bias)^2 is even below the variance
    loss = {value: math.log(value) + best / value for value in (npr, max(sn - square, 1e-3))}
    assert min(loss, key=loss.get) == npr


def test_a_head_is_trained_beside_a_frozen_denoiser():
    network = hfgen.PatchUNet2DModel(
        8, 1, 1, 1, block_out_channels=(8, 16), attention_levels=(False, True), norm_num_groups=4, attention_head_dim=8
    )
    from hfgen.models.variance_head import VarianceHeadModel

    head = VarianceHeadModel(8, 1, 1, 8, 1, 4)
    batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
    for target in ("npr", "sn", "ocm"):
        network.requires_grad_(False)
        loss = ReverseVariance(VP, "epsilon", target).loss(
            "variance_head", {"denoiser": network, "variance_head": head}, batch, Step(3)
        )
        loss.value.backward()
        assert loss.value.isfinite() and any(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())
        assert all(p.grad is None for p in network.parameters())
        head.zero_grad()
    assert head(batch["x"], batch["x"], 5).sample.shape == (4, 1, 8, 8)
    odd = VarianceHeadModel((7, 9), 3, 2, 8, 1, 4)(torch.zeros(2, 3, 7, 9), torch.zeros(2, 3, 7, 9), torch.tensor(1.0))
    torch.testing.assert_close(odd.sample, torch.ones(2, 3, 7, 9))  # a new head says 1


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match=r"target='other' is not known.*npr, sn, ocm"):
        ReverseVariance(VP, target="other")


# --- learned range ----------------------------------------------------------------------------------------------------


class Double(nn.Module):
    """A prediction and a position between the variances, one number each."""

    def __init__(self, halves=2):
        super().__init__()
        self.prediction, self.raw, self.halves = (
            nn.Parameter(torch.tensor(0.1)),
            nn.Parameter(torch.tensor(0.3)),
            halves,
        )

    def forward(self, sample, timestep):
        parts = [self.prediction.expand_as(sample), self.raw.expand_as(sample)]
        return torch.cat(parts[: self.halves], 1)


def test_the_bound_teaches_the_variance_and_not_the_mean():
    x, network = torch.rand(16, 2, 3) * 2 - 1, Double()
    simple, learned = Denoising(VP, "epsilon"), LearnedRange(Denoising(VP, "epsilon"), 0.5)
    parts = []
    for objective, player in ((simple, Double(1)), (learned, network)):
        value = objective.loss("denoiser", {"denoiser": player}, {"x": x}, Step(2)).value
        value.backward()
        parts.append(float(player.prediction.grad))
    assert parts[0] == pytest.approx(parts[1], rel=1e-5)
    assert abs(float(network.raw.grad)) > 1e-6


def test_the_bound_is_the_divergence_of_the_step():
    """Against the two normal distributions of torch, item by item."""
    objective, x = LearnedRange(Denoising(VP, "epsilon")), torch.rand(6, 1, 4, dtype=torch.float64) * 2 - 1
    t = torch.tensor([0.001, 0.002, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    noisy = objective.denoising.noisy({"x": x}, Step(0), t)
    prediction, raw = torch.full_like(x, 0.2), torch.full_like(x, -0.4)
    found = objective.bits(prediction, raw, noisy)
    assert found[0] == 0  # the step to the data
    for i, time in list(enumerate(t))[1:]:
        now, then = VP(time), VP(time - 1e-3)
        a = now.alpha / then.alpha
        large = now.sigma**2 - (a * then.sigma) ** 2
        small = (then.sigma / now.sigma) ** 2 * large
        keep, gain = a * (then.sigma / now.sigma) ** 2, then.alpha * large / now.sigma**2
        x_0 = (noisy.x_t[i] - now.sigma * prediction[i]) / now.alpha
        v = torch.exp(0.7 * small.log() + 0.3 * large.log())
        true = torch.distributions.Normal(keep * noisy.x_t[i] + gain * x[i], small.sqrt())
        model = torch.distributions.Normal(keep * noisy.x_t[i] + gain * x_0, v.sqrt())
        wanted = torch.distributions.kl_divergence(true, model).mean() / math.log(2)
        assert float(found[i]) == pytest.approx(float(wanted), rel=1e-6)


def test_what_is_learned_is_what_the_scheduler_draws_with():
    """The raw value of the least bound, in DDPM's scheduler, is the variance of the true step of a Gaussian."""
    t, s, raws = 0.4, 0.399, torch.linspace(-1, 1, 401)
    path = AtOneTime(t)
    objective = LearnedRange(Denoising(path, "epsilon"))
    x = 0.6 + 0.4 * torch.randn(40_000, 1, 1, generator=torch.Generator().manual_seed(0))
    noisy = objective.denoising.noisy({"x": x}, Step(0), torch.full((len(x),), t, dtype=torch.float64))
    output = Ideal(path)(noisy.x_t, noisy.timestep)
    bits = [float(objective.bits(output, torch.full_like(x, float(raw)), noisy).mean()) for raw in raws]
    best = float(raws[int(torch.tensor(bits).argmin())])
    scheduler = hfgen.DDPMScheduler(variance_type="learned_range")
    v = float(scheduler.reverse_variance(t, s, raw=torch.tensor(best)))
    now, then = (VP(torch.tensor(value, dtype=torch.float64)) for value in (t, s))
    a = now.alpha / then.alpha
    prior, large = 0.16 * then.alpha**2 + then.sigma**2, now.sigma**2 - (a * then.sigma) ** 2
    assert v == pytest.approx(float(1 / (1 / prior + a * a / large)), rel=0.02)


def test_importance_draws_where_losses_are_large_and_keeps_the_mean():
    history, chance = LossHistory(), torch.Generator().manual_seed(0)
    uniform = torch.rand(1000, generator=chance, dtype=torch.float64)
    t, weight = history.draw(uniform)
    torch.testing.assert_close(t, uniform)  # nothing is known yet
    assert (weight == 1).all()
    for _ in range(KEPT + 3):
        t = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        history.note(t, 1 + 9 * (t < 0.1))
        history.update()
    t, weight = history.draw(torch.rand(20_000, generator=chance, dtype=torch.float64))
    share = float((t < 0.1).double().mean())
    assert share == pytest.approx(1 / 1.9, abs=0.02)  # 10 of 19 parts of the loss
    assert float((weight * (1 + 9 * (t < 0.1))).mean()) == pytest.approx(1.9, rel=0.02)
    assert float(weight.mean()) == pytest.approx(1, rel=0.03)
    history.note(torch.tensor([0.5]), torch.tensor([float("nan")]))
    history.update()
    assert history.losses.isfinite().all()


def test_a_history_changes_between_steps_alone_and_is_a_state():
    objective = LearnedRange(Denoising(VP, "epsilon"), importance=True)
    network, x = Double(), torch.rand(8, 1, 2) * 2 - 1
    before = objective.history.counts.clone()
    objective.loss("denoiser", {"denoiser": network}, {"x": x}, Step(0))
    assert torch.equal(before, objective.history.counts)
    objective.constrain("denoiser", {"denoiser": network})
    assert int(objective.history.counts.sum()) == 8 and objective.state == {"loss_history": objective.history}


def test_learned_ranges_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="vlb_weight"):
        LearnedRange(Denoising(VP, "epsilon"), 0.0)
    with pytest.raises(ValueError, match=r"needs a network with 2 output channels, not 1.*learned_variance=True"):
        LearnedRange(Denoising(StraightPath())).loss(
            "denoiser", {"denoiser": Double(1)}, {"x": torch.zeros(2, 1, 3)}, Step(0)
        )
