"""Laws of score distillation: the fixed point is the teacher's distribution, for every prediction and path."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.objectives.distilled import Distilled, OneStep, one_pass
from hfgen.paths import LinearVPPath, StraightPath, broadcast, compose

MEAN, STD = 0.3, 0.5
CASES = [
    (StraightPath(), "flow_prediction"),
    (LinearVPPath(), "epsilon"),
    (LinearVPPath(), "v_prediction"),
    (StraightPath(), "sample"),
]


class Posterior(nn.Module):
    """The exact denoiser of data N(mean, std^2), with any prediction on any path."""

    def __init__(self, path, kind, mean, std):
        super().__init__()
        self.path, self.kind, self.mean, self.std = path, kind, mean, std

    def forward(self, x, timestep):
        t = self.path.time_of(timestep.double())
        point = self.path(t)
        alpha, sigma = (broadcast(value, x) for value in point[:2])
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        x_0 = self.mean + gain * (x - alpha * self.mean)
        return compose(self.kind, point, x_0, (x - alpha * x_0) / sigma)


class Affine(nn.Module):
    """A generator b + a z."""

    def __init__(self, std, mean):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(std).double()), nn.Parameter(torch.tensor(mean).double())

    def forward(self, z):
        return self.b + self.a * z


def networks_for(path, kind, generator):
    """The score network is at its optimum: it knows what the generator draws."""
    a, b = generator.a.detach().abs(), generator.b.detach()
    return {"generator": generator, "teacher": Posterior(path, kind, MEAN, STD), "score": Posterior(path, kind, b, a)}


@pytest.mark.parametrize(("path", "kind"), CASES)
@pytest.mark.parametrize("method", ["sid", "dmd"])
def test_the_fixed_point_has_the_teachers_mean_and_variance(path, kind, method):
    objective = Distilled(path, kind, method, alpha_steps=40, generate=one_pass)
    generator = Affine(1.0, -1.0)
    optimizer = torch.optim.Adam(generator.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    x = torch.zeros(32, 256, dtype=torch.float64)
    for number in range(100):
        optimizer.zero_grad()
        value = objective.loss("generator", networks_for(path, kind, generator), {"x": x}, Step(number)).value
        value.backward()
        optimizer.step()
        schedule.step()
    assert abs(generator.b.item() - MEAN) < 0.02 and abs(abs(generator.a.item()) - STD) < 0.02


@pytest.mark.parametrize("method", ["sid", "dmd"])
def test_at_the_fixed_point_there_is_no_gradient(method):
    objective, generator = Distilled(StraightPath(), method=method, generate=one_pass), Affine(STD, MEAN)
    networks = networks_for(StraightPath(), "flow_prediction", generator)
    loss = objective.loss("generator", networks, {"x": torch.zeros(8, 64, dtype=torch.float64)}, Step(0))
    loss.value.backward()
    assert_close(loss.logs["gap"], torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-7)
    assert generator.a.grad.abs() < 1e-6 and generator.b.grad.abs() < 1e-6


def test_sid_is_the_papers_loss():
    """-a ||f - g||^2 + (f - g) . (f - x), with weights of one image each."""
    objective, generator = Distilled(StraightPath(), generate=one_pass, alpha_steps=1), Affine(1.0, 0.0)
    networks = networks_for(StraightPath(), "flow_prediction", generator)
    like = torch.zeros(16, 1, dtype=torch.float64)
    for number, alpha in ((0, 1.2), (1, 1.0)):
        step = Step(number)
        x = step.randn("latent", like)
        t = 0.02 + 0.96 * step.rand("time", 16)
        x_t = objective.path.mix(x, step.randn("noise", like), t)
        f, g = (objective.estimate(networks[name], x_t, t, {}) for name in ("teacher", "score"))
        weight = 1 / (x - f).abs().clamp(min=1e-5)
        expected = (weight * (-alpha * (f - g) ** 2 + (f - g) * (f - x))).mean()
        assert_close(objective.loss("generator", networks, {"x": like}, step).value, expected)


def test_the_score_network_learns_by_denoising_what_is_drawn():
    objective, generator = Distilled(StraightPath(), generate=one_pass), Affine(0.7, 0.1)
    networks = networks_for(StraightPath(), "flow_prediction", generator)
    networks["score"] = Posterior(StraightPath(), "flow_prediction", nn.Parameter(torch.tensor(0.0).double()), 1.0)
    like, step = torch.zeros(32, 1, dtype=torch.float64), Step(2)
    loss = objective.loss("score", networks, {"x": like}, step)
    x = 0.1 + 0.7 * step.randn("latent", like)
    expected = Denoising(StraightPath()).loss("denoiser", {"denoiser": networks["score"]}, {"x": x}, step).value
    assert_close(loss.value, expected)
    loss.value.backward()
    assert generator.a.grad is None


class Labelled(nn.Module):
    """A denoiser whose clean image of class k is k + 1, and of no class 10."""

    def forward(self, x, timestep, class_labels=None):
        return torch.tensor([1.0, 2.0, 10.0])[class_labels][:, None].expand_as(x)


@pytest.mark.parametrize(("path", "kind"), CASES)
def test_one_step_is_the_teachers_estimate_where_noise_is_strong(path, kind):
    """alpha s^2 / (alpha^2 s^2 + sigma^2) at sigma = 2.5 alpha, of x_t = z sqrt(alpha^2 + sigma^2)."""
    z = torch.randn(5, 1, dtype=torch.float64)
    x = OneStep(path, kind)(Posterior(path, kind, MEAN, STD), z, {})
    gain = STD**2 / (STD**2 + 2.5**2)
    assert_close(x, MEAN + gain * (z * (1 + 2.5**2) ** 0.5 - MEAN), rtol=1e-5, atol=1e-6)
    assert OneStep(StraightPath(), "sample").timestep == pytest.approx(1000 * 2.5 / 3.5)


def test_the_teacher_is_guided():
    objective = Distilled(StraightPath(), "sample", num_classes=2, guidance_scale=3.0)
    labels = {"class_labels": torch.tensor([0, 1])}
    f = objective.estimate(Labelled(), torch.zeros(2, 1), torch.tensor([0.5, 0.5]), labels, 3.0)
    assert_close(f[:, 0], torch.tensor([3 * 1.0 - 2 * 10.0, 3 * 2.0 - 2 * 10.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gan"}, "method='gan' is not known"),
        ({"least_time": 0.9, "most_time": 0.1}, "least_time=0.9 must be below"),
        ({"alpha": float("nan")}, "alpha"),
        ({"guidance_scale": 2.0}, "needs a condition"),
        ({"prediction_type": "velocity"}, "prediction_type='velocity'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Distilled(StraightPath(), **options)
