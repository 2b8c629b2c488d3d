"""Laws of Triple-GAN: the equilibrium and the best discriminator of a discrete game, unbiased gradients, whose gradient
is whose, and refusals."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hfgen.objectives.base import Step
from hfgen.objectives.noisy_classification import NoisyClassification
from hfgen.objectives.penalties import R1, R2, Control
from hfgen.objectives.triple_adversarial import TripleAdversarial
from hfgen.paths import StraightPath

ITEMS, CLASSES = 3, 2
STEP = Step(0, seed=3)


class Table(nn.Module):
    """A discriminator of pairs (x, y) in {0, 1, 2} x {0, 1}: a score for each; x is a number (B, 1)."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(torch.as_tensor(scores, dtype=torch.float64).clone())

    def forward(self, x, class_labels=None):
        return SimpleNamespace(logits=self.scores[x[:, 0].long(), class_labels] + 0 * x[:, 0])


class Guess(nn.Module):
    """A classifier p(y | x) given as a table of probabilities."""

    def __init__(self, p):
        super().__init__()
        self.log_p = nn.Parameter(torch.as_tensor(p, dtype=torch.float64).log())

    def forward(self, x, timestep):
        return SimpleNamespace(logits=self.log_p[x[:, 0].long()])


class Maker(nn.Module):
    """A generator whose k-th item of class y is a given one, whatever the latent is."""

    def __init__(self, lists):
        super().__init__()
        self.lists, self.unused = lists, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z, class_labels=None):
        seen, items = [0] * CLASSES, []
        for label in class_labels.tolist():
            items.append(self.lists[label][seen[label]])
            seen[label] += 1
        x = torch.tensor(items, dtype=torch.float64)[:, None] + self.unused
        return SimpleNamespace(sample=x)


P = np.array([[2, 1], [1, 2], [3, 3]])
"""Counts of the true pairs (x, y), 12 in all."""


def columns(counts):
    """The items of each class in a table of counts (x, y)."""
    return [np.repeat(np.arange(ITEMS), counts[:, y]).tolist() for y in range(CLASSES)]


def batch():
    x, y = np.repeat(np.indices(P.shape).reshape(2, -1), P.reshape(-1), axis=1)
    x, y = torch.tensor(x, dtype=torch.float64)[:, None], torch.tensor(y)
    return {"x": x, "pair_x": x, "pair_labels": y}


def game(alpha=0.5, **options):
    return TripleAdversarial(2, alpha, **{"estimator": "exact", "pseudo_weight": 0.0, **options})


def networks(scores, guesses, made):
    return {
        "discriminator": Table(scores),
        "classifier": Guess(guesses),
        "generator": Maker(columns(np.asarray(made))),
    }


def given_x(counts):
    return counts / counts.sum(1, keepdims=True)


def best_scores(objective, parts):
    """The scores at which the discriminator's loss is smallest, by Newton's method in float64."""
    scores = parts["discriminator"].scores
    for _ in range(60):
        value = objective.loss("discriminator", parts, batch(), STEP).value
        (slope,) = torch.autograd.grad(value, scores, create_graph=True)
        bends = torch.stack([torch.autograd.grad(s, scores, retain_graph=True)[0].flatten() for s in slope.flatten()])
        with torch.no_grad():
            scores -= (slope / bends.diagonal().view_as(scores)).clamp(-1, 1)
    return scores.detach()


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_when_all_pairs_are_alike_the_best_discriminator_is_one_half(alpha, rho):
    objective = game(alpha, pseudo_pairs=rho)
    parts = networks(np.array([[0.3, -1.0], [2.0, 0.1], [0.0, -0.4]]), given_x(P), P)
    assert_close(best_scores(objective, parts).sigmoid(), torch.full((3, 2), 0.5, dtype=torch.float64))
    assert_close(objective.loss("discriminator", parts, batch(), STEP).value.item(), 2 * math.log(2))
    value = objective.loss("classifier", parts, batch(), STEP).value  # the classifier has no reason to move, either
    (slope,) = torch.autograd.grad(value, parts["classifier"].log_p)
    assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_the_best_discriminator_is_that_of_the_mixture(alpha, rho):
    guesses, made = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]), np.array([[1, 2], [4, 3], [1, 1]])
    parts = networks(np.zeros((3, 2)), guesses, made)
    found = best_scores(game(alpha, pseudo_pairs=rho), parts).sigmoid().numpy()
    p, guessed, generated = P / 12, P.sum(1, keepdims=True) / 12 * guesses, made / 12
    true = (1 - rho) * p + rho * guessed
    np.testing.assert_allclose(found, true / (true + alpha * guessed + (1 - alpha) * generated), rtol=1e-6)


def test_each_loss_is_the_formula_written_out_over_all_pairs():
    scores = np.array([[0.5, -1.0], [0.2, 1.5], [-0.7, 0.1]])
    guesses, made = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]), np.array([[1, 2], [4, 3], [1, 1]])
    parts, d = networks(scores, guesses, made), 1 / (1 + np.exp(-scores))
    p, guessed, generated = P / 12, P.sum(1, keepdims=True) / 12 * guesses, made / 12
    objective = game(0.3, pseudo_weight=0.7, entropy=0.2)
    found = {name: objective.loss(name, parts, batch(), STEP).value.item() for name in objective.players}
    log = np.log
    assert_close(found["discriminator"], -(p * log(d) + (0.3 * guessed + 0.7 * generated) * log(1 - d)).sum())
    entropy = -(P.sum(1) / 12 * (guesses * log(guesses)).sum(1)).sum()
    classifier = (0.3 * guessed * log(1 - d) - p * log(guesses) - 0.7 * generated * log(guesses)).sum() + 0.2 * entropy
    assert_close(found["classifier"], classifier)
    assert_close(found["generator"], -0.7 * (generated * log(d)).sum())
    minimax = game(0.3, loss="minimax").loss("generator", parts, batch(), STEP).value.item()
    assert_close(minimax, 0.7 * (generated * log(1 - d)).sum())
    later = game(0.3, pseudo_weight=0.7, pseudo_after=1)
    values = [later.loss("classifier", parts, batch(), Step(number)).value.item() for number in (0, 1)]
    assert_close(values[0] - values[1], 0.7 * (generated * log(guesses)).sum())


def test_a_sampled_label_gives_the_exact_gradients_on_average():
    scores = np.array([[0.5, -1.0], [0.2, 1.5], [-0.7, 0.1]])
    parts = networks(scores, np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]), P)
    for player, name in (("classifier", "log_p"), ("discriminator", "scores")):
        weight = getattr(parts[player], name)

        def gradient(objective, step, player=player, weight=weight):
            return torch.autograd.grad(objective.loss(player, parts, batch(), step).value, weight)[0]

        exact = gradient(game(0.6), STEP)
        drawn = torch.stack([gradient(game(0.6, estimator="sampled"), Step(i, seed=1)) for i in range(400)])
        error = drawn.std(0) / math.sqrt(len(drawn))
        assert (drawn.std(0).max() > 0.01) and ((drawn.mean(0) - exact).abs() < 4 * error + 1e-9).all()


def test_the_turn_of_a_player_has_gradients_of_no_other_one():
    parts = networks(np.zeros((3, 2)), np.full((3, 2), 0.5), P)
    for estimator in ("exact", "sampled"):
        objective = game(estimator=estimator, pseudo_weight=1.0, pseudo_pairs=0.3, entropy=0.1)
        for player in objective.players:
            value = objective.loss(player, parts, batch(), STEP).value
            parameters = {name: next(part.parameters()) for name, part in parts.items()}
            slopes = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            moved = {name for name, slope in zip(parameters, slopes, strict=True) if slope is not None}
            through = {"discriminator"} if player == "generator" else set()  # which the trainer freezes
            assert moved == {player} | through


def test_penalties_are_at_true_and_at_generated_pairs_of_their_class():
    class Slope(nn.Module):
        """The score w_y x^2, of slope 2 w_y x."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float64))

        def forward(self, x, class_labels=None):
            return SimpleNamespace(logits=self.w[class_labels] * x[:, 0] ** 2)

    made = np.array([[1, 2], [4, 3], [1, 1]])
    parts = {**networks(np.zeros((3, 2)), np.full((3, 2), 0.5), made), "discriminator": Slope()}
    logs = game(penalties=[R1(0.5), R2(2.0)]).loss("discriminator", parts, batch(), STEP).logs
    squares = (2 * np.array([[1.0, 3.0]]) * np.arange(3)[:, None]) ** 2
    assert_close(logs["r1"].item(), 0.5 * (P / 12 * squares).sum() / 2)
    assert_close(logs["r2"].item(), 2.0 * (made / 12 * squares).sum() / 2)
    assert "r1" not in game(penalties=[R1(0.5, 2)]).loss("discriminator", parts, batch(), Step(1)).logs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, "alpha"),
        ({"loss": "hinge"}, "loss='hinge' is not known. Choose one of: non_saturating, minimax"),
        ({"pseudo_pairs": 1.0}, "pseudo_pairs"),
        ({"penalties": [Control(0.1)]}, "none a Control"),
        ({"penalties": [R1(0.1), R1(0.2)]}, "of different classes"),
        ({"augment": ["blur"]}, "augmentation 'blur' is not known"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        game(**options)


def test_batches_without_pairs_are_refused():
    parts = networks(np.zeros((3, 2)), np.full((3, 2), 0.5), P)
    with pytest.raises(ValueError, match=r"The batch has x, and no pairs .* hfgen.LabelledPairs\(data\)"):
        game().loss("generator", parts, {"x": batch()["x"]}, STEP)


def test_a_classifier_sees_augmented_clean_images():
    class Seen(nn.Module):
        def forward(self, x, timestep):
            self.x = x
            return SimpleNamespace(logits=x.flatten(1)[:, :2])

    network, x = Seen(), torch.randn(4, 1, 8, 8)
    for augment, changed in (((), False), (("translation",), True)):
        objective = NoisyClassification(StraightPath(), noise=False, augment=augment)
        objective.loss("classifier", {"classifier": network}, {"x": x, "labels": torch.tensor([0, 1, 0, 1])}, STEP)
        assert torch.allclose(network.x, x) != changed
    with pytest.raises(ValueError, match="is for clean images"):
        NoisyClassification(StraightPath(), augment=["translation"])
