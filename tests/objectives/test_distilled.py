"""Laws of score distillation: the fixed point is the teacher's distribution, for every prediction and path."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hfgen.objectives.adversarial import Adversarial
from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.objectives.distilled import Distilled, OneStep, clean_estimate, one_pass
from hfgen.objectives.flow_map import FlowMap
from hfgen.objectives.penalties import R1
from hfgen.paths import LinearVPPath, StraightPath, VEPath, broadcast, compose
from tests.helpers.processes import run_in_two_processes
from tests.helpers.toys import run, weights
from tests.objectives.test_flow_map import Exact

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


def test_a_flow_map_starts_from_pure_noise_and_knows_the_end():
    """x_0 = MEAN + STD z of the Gaussian's trajectory, where the estimate of a denoiser would be the mean."""
    one = OneStep(StraightPath(), "flow_prediction", two_times=True)
    z = torch.randn(5, 1, dtype=torch.float64)
    assert one.timestep == 1000 and one.ratio is None
    assert_close(one(Exact(), z, {}), MEAN + STD * z)


def test_some_items_have_no_condition_in_all_networks():
    labels, seen = torch.arange(64) % 2, []

    class Told(Posterior):
        def forward(self, x, timestep, class_labels=None):
            seen.append(class_labels)
            return super().forward(x, timestep)

    objective = Distilled(StraightPath(), num_classes=2, label_dropout=0.3, generate=one_pass)

    def generator(z, class_labels=None):
        seen.append(class_labels)
        return (0.5 * z).requires_grad_()

    networks = {name: Told(StraightPath(), "flow_prediction", MEAN, STD) for name in ("teacher", "score")}
    batch = {"x": torch.zeros(64, 3, dtype=torch.float64), "labels": labels}
    for player, count in (("score", 2), ("generator", 3)):
        seen.clear()
        objective.loss(player, {"generator": generator, **networks}, batch, Step(0))
        assert len(seen) == count and all(torch.equal(each, seen[0]) for each in seen)
        assert 5 < (seen[0] == 2).sum() < 35 and torch.equal(seen[0][seen[0] < 2], labels[seen[0] < 2])


class Scorer(nn.Module):
    """Scores of items (B, d): a learned multiple of their sum."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7).double())

    def forward(self, x):
        return self.weight * x.sum(1)


@pytest.mark.parametrize("loss", ["non_saturating", "relativistic"])
def test_a_discriminator_judges_the_same_samples(loss):
    """Its loss is that of a GAN for them, and the generator's is both losses; gradients reach their player alone."""
    adversarial = Adversarial(loss, 4, (R1(0.5, every=1),))
    objective = Distilled(
        StraightPath(), method="dmd", generate=one_pass, adversarial=adversarial, adversarial_weight=0.3
    )
    plain = Distilled(StraightPath(), method="dmd", generate=one_pass)
    generator, critic, step = Affine(0.7, 0.1), Scorer(), Step(3)
    networks = {**networks_for(StraightPath(), "flow_prediction", generator), "discriminator": critic}
    batch = {"x": torch.randn(16, 4, dtype=torch.float64)}
    assert objective.players == ("score", "discriminator", "generator") and objective.differentiates_twice
    for player in ("discriminator", "generator"):
        expected = adversarial.loss(player, networks, batch, step).value
        if player == "generator":
            expected = plain.loss(player, networks, batch, step).value + 0.3 * expected
        found = objective.loss(player, networks, batch, step)
        assert_close(found.value, expected)
    found.value.backward()
    assert generator.a.grad.abs() > 0 and {"distillation", "adversarial", "gap"} <= set(found.logs)
    critic.weight.grad = generator.a.grad = None
    objective.loss("discriminator", networks, batch, step).value.backward()
    assert generator.a.grad is None and critic.weight.grad.abs() > 0
    score = objective.loss("score", networks, batch, step).value
    assert_close(score, plain.loss("score", networks, batch, step).value)


class Wave(nn.Module):
    """A function of single numbers, of two times or one, for items of any shape."""

    def forward(self, x, timestep, r_timestep=None):
        clock = timestep if r_timestep is None else 2 * timestep - r_timestep
        return torch.sin(0.7 * x + clock.double().reshape(-1, *[1] * (x.ndim - 1)) / 1000)


@pytest.mark.parametrize("shape", [(105,), (15, 7), (3, 5, 7), (3, 7, 1, 5)])
def test_no_objective_of_few_steps_assumes_pixels(shape):
    """Items of any shape have the loss of the same numbers in a row."""
    x = torch.randn(6, 105, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    networks = {name: Wave() for name in ("denoiser", "teacher", "score", "generator")}
    values = []
    for each in (x, x.view(6, *shape)):
        for objective, player in (
            (FlowMap(), "denoiser"),
            (FlowMap("shortcut", teacher="teacher"), "denoiser"),
            (FlowMap("consistency", "jvp"), "denoiser"),
            (Distilled(StraightPath()), "generator"),
            (Distilled(LinearVPPath(), "epsilon", "dmd"), "generator"),
            (Distilled(StraightPath()), "score"),
        ):
            values.append(objective.loss(player, networks, {"x": each}, Step(1)).value)
    assert_close(torch.stack(values[:6]), torch.stack(values[6:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial": Adversarial("hinge", 1, n_critic=2)}, "one turn a step"),
        ({"adversarial": Adversarial("hinge", 1, conditional=True)}, "must agree"),
        ({"adversarial": Adversarial("hinge", 1), "adversarial_weight": -1.0}, "adversarial_weight"),
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


class Small(nn.Module):
    """A denoiser or a generator of digits, by whether it is told a time."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(65, 24), nn.SiLU(), nn.Linear(24, 64))

    def forward(self, x, timestep=None):
        time = torch.zeros(len(x), 1) if timestep is None else timestep[:, None].to(x.dtype) / 1000
        return self.body(torch.cat([x.flatten(1), time], 1)).view_as(x)


def players():
    names = ("teacher", "score", "generator", "discriminator")
    made = {name: Small(seed) for seed, name in enumerate(names[:3])}
    return {**made, "discriminator": nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))}


def trained(folder, method, **options):
    adversarial = Adversarial("non_saturating", 1, (R1(1.0, every=2),))
    objective = Distilled(StraightPath(), method=method, generate=one_pass, adversarial=adversarial)
    torch.manual_seed(5)
    return weights(run(folder, objective=objective, networks=players(), **options)[0])


TWO = """
import sys
import torch
from tests.objectives.test_distilled import trained

for method in ("sid", "dmd"):
    found = trained(f"{sys.argv[1]}/{method}", method, train_batch_size=4)
    torch.save(found, f"{sys.argv[1]}/{method}/{torch.distributed.get_rank()}.pt")
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    run_in_two_processes(TWO, tmp_path)
    for method in ("sid", "dmd"):
        parts = [torch.load(tmp_path / method / f"{rank}.pt") for rank in range(2)]
        for name, value in trained(tmp_path / f"one-{method}", method).items():
            assert torch.equal(parts[0][name], parts[1][name])
            assert_close(parts[0][name], value, rtol=1e-4, atol=1e-5)


def test_the_network_sees_items_of_unit_variance_on_a_path_of_growing_noise():
    """At t = 1/2 of VE, sigma^2 = .01 * 50 = .5: the input is x_t / sqrt(1.5), and x_0 = x_t - sqrt(.5) eps."""
    seen = []

    def network(x, timestep):
        seen.append((x, timestep))
        return 0 * x + 2.0

    x_t, t = torch.tensor([[3.0], [-6.0]], dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    found = clean_estimate(network, VEPath(0.01, 50.0), "epsilon", x_t, t, {})
    assert_close(seen[0][0], x_t / 1.5**0.5)
    assert_close(found, x_t - 2 * 0.5**0.5)
