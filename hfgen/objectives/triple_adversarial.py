"""Three players on pairs of an item and its class: a classifier, a conditional generator and one discriminator."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, BELOW_1, COUNT, COUNT_OR_0, INSIDE_0_1, check_range
from .adversarial import accuracies, adversarial_loss, generated_items, score_of, uncompiled
from .augmentation import augment, check_names
from .base import Loss, Objective, Step, at_least_float32, choose, loss_with_logs
from .penalties import Control, CriticTurn, Penalty, weighted_values

LOSSES = ("non_saturating", "minimax")
"""Losses of the generator: rows of the table of adversarial losses that share the discriminator of cross-entropy."""

ESTIMATORS = ("sampled", "exact")
"""The mean over the classifier's labels of an item: from one of them, or over all of them."""


class Pairs(NamedTuple):
    """Items of the classifier with labels, and their weights: sum_j w_ij f(x_i, y_ij) is an estimate, or the value, of
    the mean of f over p_c(y | x_i).

    Attributes:
        items (B, *item): x.
        labels (B, J): y; J is 1 (a sample) or the number of classes (all).
        weights (B, J): 1, or p_c(y | x). Their gradient is that of the classifier.
    """

    items: Tensor
    labels: Tensor
    weights: Tensor


class TripleAdversarial(Objective):
    """The game of Triple-GAN (Li et al. 2017, https://arxiv.org/abs/1703.02291). Data are pairs (x, y) of an item and
    its class. A classifier gives items x ~ p(x) a label, p_c(x, y) = p(x) p_c(y | x). A generator gives labels an item,
    p_g(x, y) = p(y) p_g(x | y). One discriminator D, the sigmoid of its scores, tells the pairs of both from true ones:

        L_D = -E_r log D - alpha E_c log(1 - D) - (1 - alpha) E_g log(1 - D),    r = (1 - rho) p + rho p_c,
        L_C = alpha E_c log(1 - D) - E_p log p_c(y | x) - lambda E_g log p_c(y | x) + eta E H(p_c(. | x)),
        L_G = (1 - alpha) E_g g(D).

    The best D is r / (r + alpha p_c + (1 - alpha) p_g). The cross-entropy of L_C has its minimum at p_c = p, so that
    p = p_c = p_g and D = 1/2 are the one equilibrium (for rho = lambda = eta = 0). With rho the discriminator takes
    pairs of the classifier for true ones, too: few labelled items, of which true pairs are made, are soon known by
    heart.

    Labels are discrete. The gradient of E_c log(1 - D) in the classifier is that of sum_y p_c(y | x) log(1 - D(x, y)),
    or its estimate from one label y ~ p_c(y | x), grad log p_c(y | x) (log(1 - D(x, y)) - b), where b is the mean of
    the other items of the micro-batch (Williams 1992, https://doi.org/10.1007/BF00992696). Both have the same mean.

    Networks are called as generator(z (B, d), class_labels).sample, discriminator(items, class_labels).logits (B,) and
    classifier(items, 0).logits (B, K). Batches hold "x" (B, *item) of all items, and pairs "pair_x" (B, *item) with
    "pair_labels" (B,), see `hfgen.data.partial_labels.LabelledPairs`. Generated items have the labels of these pairs.

    Args:
        latent_channels: d.
        alpha: share of the classifier among the pairs that are not true.
        loss: g, of LOSSES; non-saturating is -log D, minimax log(1 - D).
        estimator: of ESTIMATORS. "exact" calls the discriminator K times.
        pseudo_pairs: rho.
        pseudo_weight: lambda, of the classifier's cross-entropy on generated pairs.
        pseudo_after: the step from which that term counts: early items teach nothing.
        entropy: eta, weight of the mean entropy of the classifier's labels.
        penalties: of the discriminator, at true and generated pairs, at most one of each class.
        augment: names in AUGMENTATIONS, for images: all that the discriminator and the cross-entropies see.

    Raises:
        ValueError: an unknown name, a number out of range, or parts that do not go together.
    """

    players = ("discriminator", "classifier", "generator")

    @checked
    def __init__(
        self,
        latent_channels: int,
        alpha: float = 0.5,
        loss: str = "non_saturating",
        estimator: Literal["sampled", "exact"] = "sampled",
        pseudo_pairs: float = 0.0,
        pseudo_weight: float = 0.1,
        pseudo_after: int = 0,
        entropy: float = 0.0,
        penalties: Sequence[Penalty] = (),
        augment: Sequence[str] = (),
    ):
        choose("loss", loss, LOSSES)
        choose("estimator", estimator, ESTIMATORS)
        check_names(augment)
        ranges = {"latent_channels": COUNT, "alpha": INSIDE_0_1, "pseudo_pairs": BELOW_1, "pseudo_weight": AT_LEAST_0}
        ranges |= {"pseudo_after": COUNT_OR_0, "entropy": AT_LEAST_0}
        given = {"latent_channels": latent_channels, "alpha": alpha, "pseudo_pairs": pseudo_pairs, "entropy": entropy}
        given |= {"pseudo_weight": pseudo_weight, "pseudo_after": pseudo_after}
        for name, value in given.items():
            check_range(name, value, ranges[name])
        classes = [type(penalty) for penalty in penalties]
        if Control in classes or len(set(classes)) < len(classes):
            raise ValueError(f"{penalties=} must be of different classes, and none a Control, which knows no labels.")
        self.latent_channels, self.alpha, self.estimator = latent_channels, alpha, estimator
        self.row = adversarial_loss(loss)
        self.pseudo_pairs, self.pseudo_weight, self.pseudo_after = pseudo_pairs, pseudo_weight, pseudo_after
        self.entropy, self.penalties, self.augment = entropy, tuple(penalties), tuple(augment)
        self.differentiates_twice = bool(penalties)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the player's loss on "x" (B, *item), "pair_x" (B, *item) and "pair_labels" (B,).

        Raises:
            ValueError: the batch has no pairs.
        """
        if "pair_x" not in batch:
            raise ValueError(
                f"The batch has {', '.join(batch)}, and no pairs of an item and its class. Wrap the data: "
                "hfgen.LabelledPairs(data)."
            )
        own = {"discriminator": self._discriminator, "classifier": self._classifier, "generator": self._generator}
        return own[player](networks, batch, step)

    def _discriminator(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        critic, labels, active = networks["discriminator"], batch["pair_labels"], self._active(step)
        with torch.no_grad():
            fake, guessed = self._generated(networks, batch, step), self._guessed(networks, batch, step)
        grad_inputs = {name for penalty in active for name in penalty.grad_inputs}
        real = self._seen(batch["pair_x"], step, "true pairs")
        real, fake = (x.detach().requires_grad_(name in grad_inputs) for name, x in (("real", real), ("fake", fake)))
        eager = uncompiled(critic) if grad_inputs else critic
        real_scores, fake_scores = (score_of(eager, x, labels) for x in (real, fake))
        scores = self._scores(critic, guessed)  # (B, J)
        turn = CriticTurn(
            lambda x: score_of(uncompiled(critic), x, labels),
            *(real, fake, real_scores, fake_scores, lambda uniform: None, step),
        )
        terms = weighted_values(active, turn)
        rho, negative = self.pseudo_pairs, (guessed.weights * softplus(scores)).sum(1)
        value = (1 - rho) * softplus(-real_scores).mean() + self.alpha * negative.mean()
        value = value + (1 - self.alpha) * softplus(fake_scores).mean() + sum(terms.values())
        if rho:
            value = value + rho * (guessed.weights * softplus(-scores)).sum(1).mean()
        guesses = (guessed.weights * scores).sum(1).detach().mean()
        return loss_with_logs(
            value, {**terms, **accuracies(self.row, real_scores, fake_scores), "score_classifier": guesses}
        )

    def _classifier(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        network, labels = networks["classifier"], batch["pair_labels"]
        game, logits = self._deceit(networks, batch, step)
        known = _logits(network, self._seen(batch["pair_x"], step, "labelled"))
        logs = {"game": self.alpha * game, "cross_entropy": cross_entropy(known, labels)}
        if self.pseudo_weight and step.number >= self.pseudo_after:
            with torch.no_grad():
                fake = self._generated(networks, batch, step)
            logs["pseudo_cross_entropy"] = self.pseudo_weight * cross_entropy(_logits(network, fake), labels)
        if self.entropy:
            log_p = logits.log_softmax(1)
            logs["entropy"] = -self.entropy * (log_p.exp() * log_p).sum(1).mean()
        return loss_with_logs(sum(logs.values()), {**logs, "accuracy": (known.argmax(1) == labels).float().mean()})

    def _deceit(
        self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step
    ) -> tuple[Tensor, Tensor]:
        """Return E_c log(1 - D), with the classifier's gradient or an estimate of it, and its logits (B, K)."""
        guessed = self._guessed(networks, batch, step)
        with torch.no_grad():
            rewards = -softplus(self._scores(networks["discriminator"], guessed))  # (B, J)
        logits = _logits(networks["classifier"], guessed.items)
        if self.estimator == "exact":
            return (logits.softmax(1) * rewards).sum(1).mean(), logits
        rewards, count = rewards[:, 0], len(rewards)
        others = (rewards.sum() - rewards) / (count - 1) if count > 1 else torch.zeros_like(rewards)
        log_p = logits.log_softmax(1).gather(1, guessed.labels)[:, 0]
        surrogate = (log_p * (rewards - others)).mean()
        return rewards.mean() + surrogate - surrogate.detach(), logits

    def _generator(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        fake = self._generated(networks, batch, step)
        scores = score_of(networks["discriminator"], fake, batch["pair_labels"])
        return loss_with_logs((1 - self.alpha) * self.row.generator(None, scores).mean(), {})

    def _generated(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Tensor:
        """Draw an item for each label of the pairs, (B, *item), as the others see it."""
        labels = batch["pair_labels"]
        z = step.randn("latent", batch["pair_x"].new_empty(len(labels), self.latent_channels))
        return self._seen(generated_items(networks["generator"], z, labels), step, "generated")

    def _guessed(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Pairs:
        """Return items of all kinds with labels of the classifier, without gradient: one label drawn, or all."""
        items = self._seen(batch["x"], step, "unlabelled")
        with torch.no_grad():
            p = _logits(networks["classifier"], items).softmax(1)  # (B, K)
        if self.estimator == "exact":
            return Pairs(items, torch.arange(p.shape[1], device=p.device).expand(len(p), -1), p)
        u = step.rand("labels of the classifier", len(p))[:, None].to(p.device)
        labels = (p.double().cumsum(1) <= u).sum(1, keepdim=True).clamp(max=p.shape[1] - 1)
        return Pairs(items, labels, torch.ones_like(p[:, :1]))

    def _scores(self, critic: nn.Module, pairs: Pairs) -> Tensor:
        """Return the scores (B, J) of all pairs, computed in one call."""
        count = pairs.labels.shape[1]
        scores = score_of(critic, pairs.items.repeat_interleave(count, 0), pairs.labels.flatten())
        return scores.view(-1, count)

    def _seen(self, items: Tensor, step: Step, stream: str) -> Tensor:
        return augment(items, self.augment, step, stream)

    def _active(self, step: Step) -> list[Penalty]:
        return [penalty for penalty in self.penalties if penalty.is_active(step)]


def _logits(classifier: nn.Module, items: Tensor) -> Tensor:
    return at_least_float32(classifier(items, 0).logits)
