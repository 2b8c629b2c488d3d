"""Laws of the adversarial corner: losses and penalties against closed forms, dynamics of small games, runs that do not
depend on how they are cut; and laws of the measures of modes."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hfgen.metrics import modes
from hfgen.metrics.feature_network import ImageSet
from hfgen.metrics.features import load_features
from hfgen.metrics.measures import MEASURES, Comparison, check_counts
from hfgen.models.build_gan import build_gan
from hfgen.models.discriminators import MLPDiscriminatorModel
from hfgen.objectives.adversarial import LOSSES, Adversarial, accuracies, adversarial_loss, mean_distance
from hfgen.objectives.augmentation import AUGMENTATIONS, augment
from hfgen.objectives.base import Objective, Step
from hfgen.objectives.penalties import (
    R1,
    R2,
    Consistency,
    Control,
    CriticTurn,
    GradientPenalty,
    WeightClipping,
    mode_seeking,
)
from hfgen.objectives.replay_buffer import Remembering, ReplayBuffer
from hfgen.trainer import checkpoint
from tests.helpers.cuts import Interruption
from tests.helpers.processes import run_in_two_processes
from tests.helpers.toys import TracedObjective, rows, run, weights


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Sampler(nn.Module):
    """A generator: z (B, d) -> items of a shape."""

    def __init__(self, latent, shape, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.shape = nn.Linear(latent, math.prod(shape), dtype=dtype), shape

    def forward(self, z, class_labels=None):
        return SimpleNamespace(sample=self.layer(z.to(self.layer.weight.dtype)).tanh().unflatten(1, self.shape))


class Critic(nn.Module):
    """A discriminator of items of a shape, D(x) = v tanh(W x). `labels` holds the labels of all calls."""

    def __init__(self, shape, hidden=7, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), hidden, dtype=dtype), nn.Tanh(), nn.Linear(hidden, 1, dtype=dtype)
        )
        self.labels = []

    def forward(self, x, class_labels=None):
        self.labels.append(class_labels)
        return SimpleNamespace(logits=self.body(x.to(self.body[1].weight.dtype)).squeeze(1))


class Linear(nn.Module):
    """The discriminator D(x) = w x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x, class_labels=None, return_dict=True):
        return SimpleNamespace(logits=x.flatten(1) @ self.w.flatten())


SHAPE = (2, 5, 4)
SHAPES = [SHAPE, (7,), (4, 3)]
"""Of images (C, H, W), vectors (D,) and sequences (T, D)."""


def small_networks(shape=SHAPE):
    return {"generator": Sampler(3, shape), "discriminator": Critic(shape)}


def batch(count=6, seed=5, shape=SHAPE):
    return {"x": normal(count, *shape, seed=seed).tanh()}


# --- losses -----------------------------------------------------------------------------------------------------------

REAL, FAKE = [2.0, -1.0, 0.3], [0.5, -3.0, 0.8]


def sigmoid(s):
    return 1 / (1 + np.exp(-np.asarray(s)))


r, f = np.asarray(REAL), np.asarray(FAKE)
BY_HAND = {
    "minimax": (-np.log(sigmoid(r)) - np.log(1 - sigmoid(f)), np.log(1 - sigmoid(f)), [2 / 3, 1 / 3]),
    "non_saturating": (-np.log(sigmoid(r)) - np.log(1 - sigmoid(f)), -np.log(sigmoid(f)), [2 / 3, 1 / 3]),
    "least_squares": ([(1 + 0.25) / 2, (4 + 9) / 2, (0.49 + 0.64) / 2], [0.125, 8.0, 0.02], [1 / 3, 1 / 3]),
    "hinge": ([0 + 1.5, 2 + 0, 0.7 + 1.8], [-0.5, 3.0, -0.8], [2 / 3, 1 / 3]),
    "wasserstein": ([-1.5, -2.0, 0.5], [-0.5, 3.0, -0.8], [2 / 3, 2 / 3]),
    "relativistic": (-np.log(sigmoid(r - f)), -np.log(sigmoid(f - r)), [2 / 3, 2 / 3]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_at_scores_computed_by_hand(name):
    row, (discriminator, generator, shares) = adversarial_loss(name), BY_HAND[name]
    real, fake = (torch.tensor(scores, dtype=torch.float64) for scores in (REAL, FAKE))
    np.testing.assert_allclose(row.discriminator(real, fake), discriminator, rtol=1e-12)
    np.testing.assert_allclose(row.generator(real if row.paired else None, fake), generator, rtol=1e-12)
    logs = accuracies(row, real, fake)
    assert [logs["accuracy_real"].item(), logs["accuracy_fake"].item()] == pytest.approx(shares)
    assert logs["score_real"].item() == pytest.approx(1.3 / 3) and logs["score_fake"].item() == pytest.approx(-1.7 / 3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_each_player_gets_the_gradient_of_its_own_loss_and_the_other_none(name, shape):
    networks, data, objective = small_networks(shape), batch(shape=shape), Adversarial(name, 3)
    row, generator, discriminator = LOSSES[name], networks["generator"], networks["discriminator"]
    for turn, player in enumerate(("discriminator", "generator")):
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        networks["discriminator"].requires_grad_(player == "discriminator")
        networks["generator"].requires_grad_(player == "generator")
        step = Step(4, turn=turn)
        loss = objective.loss(player, networks, data, step)
        loss.value.backward()
        other = networks["generator" if player == "discriminator" else "discriminator"]
        assert all(p.grad is None for p in other.parameters())
        fake = generator(objective.latents(data["x"], step)).sample
        scores = discriminator(data["x"]).logits, discriminator(fake).logits
        expected = (row.discriminator if player == "discriminator" else row.generator)(*scores).mean()
        assert_close(loss.value, expected)
        gradients = torch.autograd.grad(expected, list(networks[player].parameters()))
        assert_close([p.grad for p in networks[player].parameters()], list(gradients))
        assert any(gradient.abs().max() > 1e-4 for gradient in gradients)


def test_scores_train_to_the_optimal_discriminator():
    """Train a table of scores over five points on multisets of two distributions: D becomes p / (p + q)."""
    counts = torch.tensor([[4, 1, 2, 8, 1], [1, 1, 6, 2, 6]])
    points = [torch.repeat_interleave(torch.arange(5.0), row)[:, None, None, None] for row in counts]

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Parameter(torch.zeros(5, dtype=torch.float64))

        def forward(self, x, class_labels=None):
            return SimpleNamespace(logits=self.scores[x.flatten().long()])

    networks = {"generator": lambda z: SimpleNamespace(sample=points[1]), "discriminator": Table()}
    objective, table = Adversarial("non_saturating", 1), networks["discriminator"].scores
    optimizer = torch.optim.LBFGS([table], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = objective.loss("discriminator", networks, {"x": points[0]}, Step(0)).value
        value.backward()
        return value

    optimizer.step(closure)
    p, q = counts / counts.sum(1, keepdim=True)
    assert_close(table.sigmoid().detach(), modes.optimal_discriminator(p, q).double(), rtol=0, atol=1e-5)
    # its loss there is 2 log 2 - 2 JS (Goodfellow et al. 2014, theorem 1)
    assert closure().item() == pytest.approx(2 * math.log(2) - 2 * modes.js_divergence(p, q), abs=1e-8)


def test_labels_go_to_both_networks():
    networks, labels = small_networks(), torch.tensor([3, 1, 2, 0, 1, 1])
    generator, generator_labels = networks["generator"], []
    networks["generator"] = lambda z, class_labels=None: (generator_labels.append(class_labels), generator(z))[1]
    objective, data = Adversarial("relativistic", 3, [R1(1.0)], conditional=True), {**batch(), "labels": labels}
    for player in objective.players:
        objective.loss(player, networks, data, Step(0))
    assert len(generator_labels) == 2 and len(networks["discriminator"].labels) == 4
    assert all(torch.equal(each, labels) for each in [*generator_labels, *networks["discriminator"].labels])
    with pytest.raises(ValueError, match="needs data with labels, and these have none"):
        objective.loss("generator", networks, batch(), Step(0))


# --- penalties --------------------------------------------------------------------------------------------------------


def critic_loss(penalty, discriminator, data, number=0):
    """Return the loss of a turn of the discriminator with a Wasserstein loss and a penalty."""
    networks = {"generator": Sampler(3, data["x"].shape[1:]), "discriminator": discriminator}
    return objective_with(penalty).loss("discriminator", networks, data, Step(number))


def objective_with(*penalties, **options):
    return Adversarial("wasserstein", 3, penalties, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_penalties_of_a_linear_critic_are_exact(shape):
    w, data = normal(*shape, seed=3), batch(shape=shape)
    norm = w.norm().item()
    for penalty, expected in (
        (GradientPenalty(10.0), 10 * (norm - 1) ** 2),
        (R1(0.7), 0.7 * norm**2 / 2),
        (R2(0.7), 0.7 * norm**2 / 2),
    ):
        critic = Linear(w.clone())
        loss = critic_loss(penalty, critic, data)
        assert loss.logs[penalty.name].item() == pytest.approx(expected, rel=1e-9)
        without = critic_loss(WeightClipping(), critic, data)
        assert loss.value.item() == pytest.approx(without.value.item() + expected, rel=1e-9)
        (gradient,) = torch.autograd.grad(loss.value - without.value, critic.w)  # of the penalty alone
        factor = 20 * (norm - 1) / norm if isinstance(penalty, GradientPenalty) else 0.7
        assert_close(gradient, factor * w, rtol=1e-7, atol=1e-9)


class Quadratic(nn.Module):
    """The discriminator D(x) = ||x - a||^2 / 2, whose gradient is x - a."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x, class_labels=None):
        return SimpleNamespace(logits=(x - self.a).flatten(1).square().sum(1) / 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_taken_at_real_items_generated_items_and_between_them(shape):
    a, data, step = normal(*shape, seed=7), batch(shape=shape), Step(0)
    fake = Sampler(3, shape)(objective_with().latents(data["x"], step)).sample
    squares = [(x - a).flatten(1).square().sum(1).mean() / 2 for x in (data["x"], fake)]
    for penalty, expected in zip((R1(1.0), R2(1.0)), squares, strict=True):
        assert_close(critic_loss(penalty, Quadratic(a), data).logs[penalty.name], expected.detach())
    u = step.uniform("gradient_penalty", data["x"].flatten(1)[:, :1])  # one number per item
    assert 0 <= u.min() < u.max() < 1
    between = u * data["x"].flatten(1) + (1 - u) * fake.flatten(1)
    expected = ((between - a.flatten()).norm(dim=1) - 1).square().mean()
    assert_close(critic_loss(GradientPenalty(1.0), Quadratic(a), data).logs["gradient_penalty"], expected.detach())


def test_consistency_compares_scores_of_images_with_those_of_augmented_images():
    data, step, inputs = batch(), Step(0), []

    def score(x):
        inputs.append(x.detach())
        return x.flatten(1).sum(1)

    scores = data["x"].flatten(1).sum(1)
    value = Consistency(1.0).value(CriticTurn(score, data["x"], -data["x"], scores, scores, None, step))
    augmented = augment(data["x"], ("translation",), step, "consistency")
    assert torch.equal(inputs[0], augmented) and not torch.equal(augmented, data["x"])
    assert_close(value, (scores - augmented.flatten(1).sum(1)).square().mean())


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_augmentations_of_items_that_are_no_images_are_refused_by_name(shape):
    data = batch(shape=shape)
    message = re.escape(f"translation needs images (B, C, H, W); these items have shape {(6, *shape)}")
    for objective in (Adversarial("hinge", 3, augment=("translation",)), objective_with(Consistency(1.0))):
        with pytest.raises(ValueError, match=message):
            objective.loss("discriminator", small_networks(shape), data, Step(0))
    assert augment(data["x"], (), Step(0), "real") is data["x"]


@pytest.mark.parametrize("shape", SHAPES)
def test_control_weighs_real_scores_and_those_of_earlier_steps(shape):
    w, data = normal(*shape, seed=3), batch(shape=shape)
    objective, generator = objective_with(Control(0.5), replay=ReplayBuffer(60, shape)), Sampler(3, shape)
    networks = {"generator": generator, "discriminator": Linear(w)}
    generated = {}

    def score(x):
        return x.flatten(1) @ w.flatten()

    for number in range(4):
        logs = objective.loss("discriminator", networks, data, Step(number)).logs
        generated[number] = generator(objective.latents(data["x"], Step(number))).sample.detach()
        if number == 0:
            past = score(generated[0])
        else:
            earlier = score(torch.cat([generated[i] for i in range(number)]).float().double())
            index = (Step(number).rand("recall", 6) * len(earlier)).long()
            past = earlier[index]
        expected = 0.5 * (score(data["x"]).square().mean() + past.square().mean()).item() / 2
        assert logs["control"].item() == pytest.approx(expected, rel=1e-6)


def test_control_needs_a_replay_buffer_and_nothing_else_takes_one():
    w, data = normal(*SHAPE, seed=3), batch()
    networks = {"generator": Sampler(3, SHAPE), "discriminator": Linear(w)}
    with pytest.raises(ValueError, match=r"memory of generated items: .*replay=hfgen\.ReplayBuffer"):
        objective_with(Control(0.5)).loss("discriminator", networks, data, Step(1))
    with pytest.raises(ValueError, match="does nothing without the penalty Control"):
        objective_with(R1(0.5), replay=ReplayBuffer(60, SHAPE))
    with pytest.warns(FutureWarning, match="Remembering will be removed"):
        remembering = Remembering(Linear(w), 60, SHAPE)
    objective, former = objective_with(Control(0.5), replay=ReplayBuffer(60, SHAPE)), objective_with(Control(0.5))
    for number in range(4):
        logs = objective.loss("discriminator", networks, data, Step(number)).logs
        other = former.loss("discriminator", {**networks, "discriminator": remembering}, data, Step(number)).logs
        assert torch.equal(other["control"], logs["control"])


def test_a_lazy_penalty_costs_as_much_on_average():
    critic, data = Linear(normal(*SHAPE, seed=3)), batch()
    always = critic_loss(R1(0.3), critic, data).logs["r1"].item()
    logs = [critic_loss(R1(0.3, every=4), critic, data, number).logs for number in range(8)]
    lazy = [row["r1"].item() if "r1" in row else 0.0 for row in logs]
    assert lazy == pytest.approx([4 * always, 0, 0, 0] * 2)


def test_weights_and_their_averages_are_clipped_after_each_turn(tmp_path):
    networks = {"generator": Sampler(3, (1, 8, 8)), "discriminator": Critic((1, 8, 8))}
    objective = objective_with(WeightClipping(0.02), n_critic=2)
    _, result = run(tmp_path, objective=objective, networks=networks, ema_max_decay=0.0)
    for network in (networks["discriminator"], result.networks["discriminator"]):
        largest = max(p.abs().max().item() for p in network.parameters())
        assert 0.019 < largest <= 0.02 + 1e-9
    assert max(p.abs().max().item() for p in networks["generator"].parameters()) > 0.1
    assert {"discriminator/accuracy_real", "generator/diversity"} <= rows(tmp_path)[0].keys()
    # LR schedules count steps, not turns
    assert all(row["discriminator/lr"] == row["generator/lr"] > 0 for row in rows(tmp_path)[:-1])


def test_spectral_norm_makes_scores_1_lipschitz():
    torch.manual_seed(0)
    critic = MLPDiscriminatorModel(4, 1, (32, 32), spectral_norm=True).double()
    x, y = 3 * normal(500, 1, 4, 4), 3 * normal(500, 1, 4, 4, seed=1)
    for _ in range(200):
        critic(x[:1])  # one power iteration
    critic.eval()
    distance = (x - y).flatten(1).norm(dim=1)
    assert ((critic(x).logits - critic(y).logits).abs() <= distance * (1 + 1e-6)).all()
    near = x + 1e-6 * (y - x)
    assert ((critic(x).logits - critic(near).logits).abs() <= 1e-6 * distance * (1 + 1e-5)).all()


@pytest.mark.parametrize("shape", [(1, 1, 2), (2,), (2, 1)])
def test_mode_seeking_by_hand(shape):
    z, other_z = torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([[1.0, 3.0], [1.0, 0.0]])
    x = torch.tensor([[0.3, -0.1], [0.7, 0.4]]).view(2, *shape)
    y = x + torch.tensor([[0.5, -0.5], [0.0, 0.2]]).view(2, *shape)
    assert mode_seeking(z, other_z, x, y).item() == pytest.approx((2 / 0.5 + 0.5 / 0.1) / 2, rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_mode_seeking_and_diversity_in_the_generators_loss(shape):
    data, networks = batch(shape=shape), small_networks(shape)
    loss = Adversarial("hinge", 3, mode_seeking=0.1).loss("generator", networks, data, Step(0))
    plain = Adversarial("hinge", 3).loss("generator", networks, data, Step(0))
    assert_close(loss.value - plain.value, loss.logs["mode_seeking"], check_dtype=False)
    assert loss.logs["mode_seeking"] > 0

    def diversity():
        return Adversarial("hinge", 3).loss("generator", networks, data, Step(0)).logs["diversity"].item()

    real = data["x"]
    data["x"] = networks["generator"](Adversarial("hinge", 3).latents(real, Step(0))).sample.detach()
    assert diversity() == pytest.approx(1)
    networks["generator"] = lambda z: SimpleNamespace(sample=real[:1].expand(len(z), *shape))
    assert diversity() == 0


def test_the_mean_distance_by_hand():
    points = torch.tensor([[0.0], [1.0], [3.0]])
    assert mean_distance(points).item() == pytest.approx((1 + 3 + 2) / 3)
    assert mean_distance(points.view(3, 1, 1)) == mean_distance(points)


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_translation_moves_whole_images_by_up_to_an_eighth():
    x, step = normal(200, 2, 16, 9), Step(3)
    translated, shifts = augment(x, ("translation",), step, "real"), []
    for before, after in zip(x, translated, strict=True):
        matches = []
        for dy in range(-2, 3):
            for dx in range(-1, 2):
                shifted = torch.zeros_like(before)
                to = [slice(max(0, d), side + min(0, d)) for d, side in ((dy, 16), (dx, 9))]
                source = [slice(max(0, -d), side + min(0, -d)) for d, side in ((dy, 16), (dx, 9))]
                shifted[:, to[0], to[1]] = before[:, source[0], source[1]]
                matches += [(dy, dx)] if torch.equal(shifted, after) else []
        assert len(matches) == 1
        shifts += matches
    assert len(set(shifts)) == 5 * 3  # all shifts occur in 200 images


def test_cutout_is_a_square():
    step = Step(3)
    cut = augment(torch.ones(300, 1, 8, 8), ("cutout",), step, "real")[:, 0] == 0
    sizes = cut.any(2).sum(1), cut.any(1).sum(1)
    assert torch.equal(cut.sum((1, 2)), sizes[0] * sizes[1])  # a rectangle
    assert all(size.max() == 4 and size.min() == 2 for size in sizes)  # half the side, or less at the border
    assert cut.any(0).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_are_cut_as_batches_are_and_have_gradients_of_gradients(name):
    x = normal(8, 2, 8, 8)
    whole = augment(x, (name,), Step(3), "fake")
    parts = [augment(part, (name,), Step(3, shard=i, shards=4), "fake") for i, part in enumerate(x.chunk(4))]
    assert torch.equal(torch.cat(parts), whole) and not torch.equal(whole[0] - x[0], whole[1] - x[1])
    few = normal(2, 2, 4, 4).requires_grad_()
    function = lambda x: augment(x, (name,), Step(3), "fake")  # noqa: E731
    assert torch.autograd.gradcheck(function, few) and torch.autograd.gradgradcheck(function, few)


def test_both_players_see_augmented_images():
    networks, data, step = small_networks(), batch(), Step(0)
    critic, inputs = networks["discriminator"], []
    networks["discriminator"] = lambda x: (inputs.append(x.detach()), critic(x))[1]
    objective = Adversarial("relativistic", 3, augment=("translation", "cutout"))
    for player in objective.players:
        inputs.clear()
        objective.loss(player, networks, data, step)
        fake = networks["generator"](objective.latents(data["x"], step)).sample.detach()
        expected = [augment(x, objective.augment, step, name) for x, name in ((data["x"], "real"), (fake, "fake"))]
        assert all(torch.equal(a, b) for a, b in zip(inputs, expected, strict=True))


# --- dynamics ---------------------------------------------------------------------------------------------------------


class Slope(nn.Module):
    """The discriminator D(x) = psi x."""

    def __init__(self, psi):
        super().__init__()
        self.psi = nn.Parameter(psi)

    def forward(self, x, class_labels=None):
        return SimpleNamespace(logits=self.psi * x.flatten())


class Constant(nn.Module):
    """A replay buffer whose items are all c, the constant output of the generator."""

    def __init__(self, c):
        super().__init__()
        self.c = c

    def write(self, images, number, shard, shards):
        pass

    def read(self, number, uniform):
        return torch.full((len(uniform), 1, 1, 1), self.c, dtype=torch.float64)


class Dirac(nn.Module):
    """The generator G(z) = theta."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, z, class_labels=None):
        return SimpleNamespace(sample=self.theta.expand(len(z))[:, None, None, None])


def eigenvalues(loss, c, *penalties, h=1e-5):
    """Compute the eigenvalues of (psi, theta)' = -(dL_D / dpsi, dL_G / dtheta), linearised at psi = 0, theta = c."""
    replay = Constant(c) if any(isinstance(penalty, Control) for penalty in penalties) else None
    objective = Adversarial(loss, 1, penalties, replay=replay)
    data = {"x": torch.full((2, 1, 1, 1), c, dtype=torch.float64)}

    def field(at):
        networks = {"generator": Dirac(at[1].clone()), "discriminator": Slope(at[0].clone())}
        values = {name: objective.loss(name, networks, data, Step(1)).value for name in networks}
        gradients = [
            torch.autograd.grad(values[name], list(networks[name].parameters()))[0]
            for name in ("discriminator", "generator")
        ]
        return -torch.stack(gradients)

    start = torch.tensor([0.0, c], dtype=torch.float64)
    columns = [(field(start + h * e) - field(start - h * e)) / (2 * h) for e in torch.eye(2, dtype=torch.float64)]
    return np.sort_complex(np.linalg.eigvals(torch.stack(columns, 1).numpy()))


def roots(damping, force):
    """Compute the roots of x^2 + damping x + force^2."""
    return np.sort_complex(np.roots([1, damping, force**2]))


@pytest.mark.parametrize(
    ("loss", "c", "force"),
    [("wasserstein", 1.0, 1.0), ("relativistic", 1.0, 0.5), ("hinge", 0.0, 1.0), ("non_saturating", 0.0, 0.5)],
)
def test_a_dirac_gan_circles_and_r1_and_control_pull_it_in(loss, c, force):
    """Mescheder et al. 2018, section 2, and Xu et al. 2020, section 3: D(x) = psi x, G = theta, real data at c.

    The feedback of Control is psi (c^2 + theta^2), so at c = 0 it has no effect."""
    plain = eigenvalues(loss, c)
    np.testing.assert_allclose(plain, roots(0, force), atol=1e-8)
    assert np.abs(plain.real).max() < 1e-8 and np.abs(plain.imag).min() > 0.4
    for weight in (0.3, 1.7):
        for damping, penalties in (
            (weight, [R1(weight)]),
            (2 * weight, [R1(weight), R2(weight)]),
            (2 * weight * c**2, [Control(weight)]),
        ):
            penalised = eigenvalues(loss, c, *penalties)
            np.testing.assert_allclose(penalised, roots(damping, force), atol=1e-7)
            assert (penalised.real < -0.05).all() or (c == 0 and isinstance(penalties[0], Control))


# --- a run is the same however it is cut ------------------------------------------------------------------------------


class InDouble(Objective):
    """An objective on items in float64, in which rounding errors do not become steps of Adam."""

    def __init__(self, inner):
        self.inner, self.players, self.turns, self.state = inner, inner.players, inner.turns, inner.state
        self.batches_per_step = inner.batches_per_step

    def loss(self, player, networks, batch, step):
        return self.inner.loss(player, networks, {**batch, "x": batch["x"].double()}, step)

    def constrain(self, player, networks):
        self.inner.constrain(player, networks)


PENALTIES = (R1(0.1), R2(0.1, every=2), Control(0.2), Consistency(0.5), GradientPenalty(0.3), WeightClipping(2.0))


def real_networks(dtype=torch.float64):
    torch.manual_seed(0)
    generator, discriminator = build_gan("residual", "xs", 8, 1, latent_channels=6, norm="none")
    return {
        "generator": generator.to(dtype),
        "discriminator": discriminator.to(dtype),
    }


def full_objective(n_critic=2, mode_seeking=0.01):
    """An objective with every penalty and augmentation."""
    replay = ReplayBuffer(64, (1, 8, 8))
    return Adversarial("relativistic", 6, PENALTIES, n_critic, tuple(AUGMENTATIONS), mode_seeking, replay=replay)


@pytest.mark.parametrize("n_critic", [1, 2])
def test_accumulated_micro_batches_are_one_batch(tmp_path, n_critic):
    trained = {}
    for name, batch_size, micro_batches in (("whole", 8, 1), ("parts", 2, 4)):
        options = {"train_batch_size": batch_size, "gradient_accumulation_steps": micro_batches, "max_train_steps": 4}
        objective = InDouble(full_objective(n_critic, mode_seeking=0.0))
        trained[name], _ = run(tmp_path / name, "", objective, real_networks(), logging_steps=1, **options)
    assert_close(weights(trained["parts"]), weights(trained["whole"]), rtol=0, atol=1e-7)
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert a.keys() == b.keys()
        keys = [key for key in a if not key.endswith("diversity")]  # which compares items within a micro-batch
        assert [a[key] for key in keys] == pytest.approx([b[key] for key in keys], rel=1e-4, abs=1e-6)


def test_a_run_lost_mid_accumulation_resumes_to_the_same_bits(tmp_path):
    """The ring of the replay buffer wraps around, penalties are lazy, and the discriminator has two turns."""
    place = None  # (step, turn, shard) of the interruption

    def interrupt(step):
        if (step.number, step.turn, step.shard) == place:
            raise Interruption

    options = {"max_train_steps": 10, "train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    options |= {"checkpointing_steps": 2, "samples": 24}
    objectives = {name: TracedObjective(full_objective(), interrupt) for name in ("whole", "cut")}
    whole, result = run(tmp_path / "whole", "", objectives["whole"], float_networks(), **options)
    for number, turn in ((3, 0), (9, 2)):
        place = (number, turn, 1)
        with pytest.raises(Interruption):
            run(tmp_path / "cut", "", TracedObjective(full_objective(), interrupt), float_networks(), **options)
    place = None
    cut, cut_result = run(tmp_path / "cut", "", objectives["cut"], float_networks(), **options)
    for a, b in ((whole, cut), (result.networks, cut_result.networks)):
        expected, values = weights(a), weights(b)
        assert not [key for key in expected if not torch.equal(values[key], expected[key])]
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    ring = objectives["whole"].state["replay"].items
    assert ring.flatten(1).any(1).all()  # it is full
    assert torch.equal(ring, objectives["cut"].state["replay"].items)


def float_networks():
    return real_networks(torch.float32)


TWO = """
import sys, torch
from tests.objectives.test_adversarial import InDouble, full_objective, real_networks
from tests.helpers.toys import run
options = {"train_batch_size": 4, "max_train_steps": 20, "logging_steps": 1, "sample_steps": 3, "use_ema": False}
for name, stop in (("stopped", True), ("whole", None)):
    preview = lambda networks, step: stop
    objective, folder = InDouble(full_objective()), f"{sys.argv[1]}/{name}"
    networks, result = run(folder, "", objective, real_networks(), preview=preview, **options)
    print(f"{name} rank {torch.distributed.get_rank()} step {result.step} {result.finished}", flush=True)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Train in two processes, first until the preview stops the run, then to the end; return folder and output."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run_in_two_processes(TWO, folder)


def test_two_processes_have_the_losses_of_one(tmp_path, two):
    options = {"train_batch_size": 8, "max_train_steps": 20, "logging_steps": 1, "use_ema": False}
    run(tmp_path, "", InDouble(full_objective()), real_networks(), **options)
    pairs = list(zip(rows(tmp_path), rows(two[0] / "whole"), strict=True))
    assert len(pairs) == 20
    for a, b in pairs:
        assert a.keys() == b.keys()
        for key in ("discriminator/loss", "generator/loss", "discriminator/r1", "discriminator/control"):
            assert a[key] == pytest.approx(b[key], rel=0, abs=1e-4), key
    first, last = pairs[0][0], pairs[-1][0]
    assert first["discriminator/loss"] != pytest.approx(last["discriminator/loss"], abs=1e-2)


def test_a_preview_may_stop_the_run_on_every_process(tmp_path, two, capsys):
    for rank in (0, 1):  # only the main process calls the preview
        assert f"stopped rank {rank} step 3 False" in two[1] and f"whole rank {rank} step 20 True" in two[1]
    checkpoint.verify(two[0] / "stopped" / "checkpoint-3")
    steps = []

    def preview(networks, step):
        steps.append(step)
        return step == 4

    networks = {"generator": Sampler(3, (1, 8, 8)), "discriminator": Critic((1, 8, 8))}
    options = {"objective": objective_with(), "networks": networks, "preview": preview, "sample_steps": 2}
    _, result = run(tmp_path, max_train_steps=10, **options)
    assert (result.step, result.finished, steps) == (4, False, [2, 4])
    checkpoint.verify(tmp_path / "checkpoint-4")
    assert "Stopped at step 4" in capsys.readouterr().out


# --- precision and compilers ------------------------------------------------------------------------------------------


def penalised_loss(networks, images, autocast=False):
    """Return loss and gradients of a discriminator with the penalties that differentiate twice."""
    objective = Adversarial("relativistic", 6, [R1(1.0), R2(1.0), GradientPenalty(1.0)])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = objective.loss("discriminator", networks, {"x": images}, Step(0))
    loss.value.backward()
    return loss, {name: p.grad for name, p in networks["discriminator"].named_parameters()}


def test_penalties_under_autocast_are_near_those_in_full_precision():
    images = normal(16, 1, 8, 8, dtype=torch.float32).tanh()
    (loss, gradients), (low, low_gradients) = (penalised_loss(float_networks(), images, low) for low in (False, True))
    assert all(value.dtype == torch.float32 for value in low.logs.values())
    for name in ("loss", "r1", "r2", "gradient_penalty"):
        assert low.logs[name].item() == pytest.approx(loss.logs[name].item(), rel=0.03, abs=1e-4)
    a, b = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, low_gradients))
    assert torch.cosine_similarity(a, b, dim=0) > 0.99 and a.norm() > 0.1


def test_a_compiled_discriminator_is_differentiated_twice_as_it_is():
    images = normal(4, 1, 8, 8, dtype=torch.float32).tanh()
    plain, compiled = float_networks(), float_networks()
    compiled["discriminator"] = torch.compile(compiled["discriminator"], backend="aot_eager")
    loss, gradients = penalised_loss(plain, images)
    again, same = penalised_loss(compiled, images)
    assert_close(again.value, loss.value)
    assert_close(list(same.values()), list(gradients.values()))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Adversarial("minmax", 3), "loss='minmax' is not known. Choose one of: minimax"),
        (lambda: Adversarial("hinge", 0), "latent_channels=0"),
        (lambda: Adversarial("hinge", 3, n_critic=0), "n_critic=0"),
        (lambda: Adversarial("hinge", 3, mode_seeking=-1.0), "mode_seeking=-1.0"),
        (lambda: Adversarial("hinge", 3, augment=("colour",)), "'colour' is not known"),
        (lambda: Adversarial("hinge", 3, augment=("color", "color")), "name one twice"),
        (lambda: Adversarial("hinge", 3, [R1(1.0), R1(2.0)]), "two of one class"),
        (lambda: Adversarial("hinge", 3, [Control(1.0)], conditional=True), "Control stores items without labels"),
        (lambda: R1(0.0), r"weight=0\.0 must be above 0"),
        (lambda: R2(1.0, every=0), "every=0 must be at least 1"),
        (lambda: Consistency(1.0, transforms=("rotation",)), "'rotation' is not known"),
        (lambda: WeightClipping(0.0), "bound=0.0"),
    ],
)
def test_impossible_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0, -2.5])
def test_of_two_lines_the_divergences_are_constant_and_the_distance_is_not(theta):
    """Arjovsky et al. 2017, example 1: (0, U) against (theta, U), U uniform, on 21 points each."""
    y = torch.linspace(0, 1, 21, dtype=torch.float64)
    lines = [torch.stack([torch.full_like(y, x), y], 1) for x in (0.0, theta)]
    mass = torch.full_like(y, 1 / 21)
    assert modes.wasserstein_distance(*lines, mass, mass) == pytest.approx(abs(theta), abs=1e-9)
    if theta:  # on the union of both supports
        p, q = torch.cat([mass, 0 * mass]), torch.cat([0 * mass, mass])
        assert modes.js_divergence(p, q) == pytest.approx(math.log(2), abs=1e-12)
        assert modes.kl_divergence(p, q) == modes.kl_divergence(q, p) == math.inf
        assert torch.equal(modes.optimal_discriminator(p, q), torch.cat([torch.ones(21), torch.zeros(21)]).double())
    else:
        assert modes.js_divergence(mass, mass) == modes.kl_divergence(mass, mass) == 0


def test_divergences_are_their_definitions_and_take_distributions_only():
    p, q = torch.tensor([0.5, 0.0, 0.2, 0.3]), torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert modes.kl_divergence(p, q) == pytest.approx(0.5 * math.log(5), rel=1e-6)
    assert modes.kl_divergence(q, p) == math.inf
    expected = 0.5 * math.log(5 / 3) + 0.1 * math.log(1 / 3) + 0.4 * math.log(2)
    assert modes.js_divergence(p, q) == modes.js_divergence(q, p) == pytest.approx(expected / 2, rel=1e-6)
    for wrong in ([0.5, 0.4], [1.5, -0.5]):
        with pytest.raises(ValueError, match="two distributions"):
            modes.kl_divergence(torch.tensor(wrong), torch.tensor([0.5, 0.5]))


def test_modes_of_points_by_hand():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    metrics = modes.modes(centres.repeat(25, 1), centres, 0.1)
    assert metrics == {"covered": 4, "high_quality": 1.0, "reverse_kl": pytest.approx(0, abs=1e-12)}
    # 60 at the first, 2 at the second (below a tenth of a quarter), 8 at the third, 30 between the second and fourth
    counts = torch.tensor([60, 2, 8, 30])
    places = torch.tensor([[0.05, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 5.1]])
    metrics = modes.modes(places.repeat_interleave(counts, 0), centres, 0.1)
    expected = sum(n / 100 * math.log(4 * n / 100) for n in counts.tolist())
    assert metrics == {"covered": 2, "high_quality": pytest.approx(0.7), "reverse_kl": pytest.approx(expected)}
    assert modes.modes(centres[:1].repeat(5, 1), centres, 0.1)["reverse_kl"] == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match="radius=0"):
        modes.modes(centres, centres, 0)


def test_classes_covered_by_hand():
    network = load_features("digits")

    def images(counts):
        labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
        logits = 5 * torch.nn.functional.one_hot(labels, 10).double()
        return ImageSet(network.label, torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), logits, logits)

    real, fake = [100] * 9 + [0], [420, 200, 100, 50, 9, 11, 0, 90, 10, 10]
    covered, kl = MEASURES["class_coverage"](Comparison(network, images(real), images(fake)))
    assert covered.metric == network.metric_name("classes covered of 9") and covered.better == "higher"
    assert covered.value == 7  # 9 of 100 and 0 are too few, and the tenth class is not in the data
    p, q = ((np.asarray(counts) + 0.5) / (sum(counts) + 5) for counts in (real, fake))
    assert kl.value == pytest.approx((q * np.log(q / p)).sum()) and kl.better == "lower"
    unscored = SimpleNamespace(scores=False, name="plain", num_features=4)
    with pytest.raises(ValueError, match="plain has no classes, which class_coverage needs"):
        check_counts(["class_coverage"], unscored, 100, 100, 5, 100)
