"""The adversarial corner: a generator and a discriminator that learn from each other.

One objective combines a loss, penalties and a number of turns. Each GAN of the literature is one such choice.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, COUNT, check_range
from .adaptive_augmentation import AdaptiveAugmentation
from .augmentation import augment, check_names
from .base import Loss, Objective, Step, at_least_float32, choose, loss_with_logs, sample_of
from .penalties import Control, CriticTurn, Penalty, WeightClipping, mode_seeking, weighted_values
from .regularizers import GeneratorTurn, Regularizer
from .replay_buffer import ReplayBuffer


class AdversarialLoss(NamedTuple):
    """The losses of both players as functions of the discriminator's scores, with one value per item.

    Attributes:
        discriminator: scores of real and of generated items, (B,) and (B,) -> loss of the discriminator (B,).
        generator: the same for the loss of the generator. The scores of real items are None unless `paired`.
        boundary: an item with a higher score counts as real; None: scores have a meaning only in comparison.
        paired: whether the generator's loss needs scores of real items.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor | None, Tensor], Tensor]
    boundary: float | None = 0.0
    paired: bool = False


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """Compute -log D(x) - log(1 - D(G(z))), where D is the sigmoid of the score: (B,)."""
    return softplus(-real) + softplus(fake)


LOSSES = {
    "minimax": AdversarialLoss(_cross_entropy, lambda real, fake: -softplus(fake)),
    "non_saturating": AdversarialLoss(_cross_entropy, lambda real, fake: softplus(-fake)),
    "least_squares": AdversarialLoss(
        lambda real, fake: ((real - 1).square() + fake.square()) / 2,
        lambda real, fake: (fake - 1).square() / 2,
        boundary=0.5,
    ),
    "hinge": AdversarialLoss(
        lambda real, fake: (1 - real).relu() + (1 + fake).relu(),
        lambda real, fake: -fake,
    ),
    "wasserstein": AdversarialLoss(lambda real, fake: fake - real, lambda real, fake: -fake, boundary=None),
    "relativistic": AdversarialLoss(
        lambda real, fake: softplus(fake - real),
        lambda real, fake: softplus(real - fake),
        boundary=None,
        paired=True,
    ),
}
"""Losses by name: minimax and non-saturating (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661), least squares
(Mao et al. 2017, https://arxiv.org/abs/1611.04076), hinge (Lim & Ye 2017, https://arxiv.org/abs/1705.02894),
Wasserstein (Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875; needs a penalty or constraint) and relativistic
(Jolicoeur-Martineau 2018, https://arxiv.org/abs/1807.00734, in the pairing form)."""


def adversarial_loss(name: str) -> AdversarialLoss:
    """Return the entry of LOSSES with this name. Raises ValueError for an unknown name."""
    choose("loss", name, LOSSES)
    return LOSSES[name]


def accuracies(row: AdversarialLoss, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Measure the discriminator: shares of real and of generated items that it classifies correctly, and mean scores.

    Without a boundary, a score is correct if it lies on the right side of the score that it is paired with.

    Args:
        row: the loss.
        real, fake (B,): scores of real and of generated items.
    """
    above = real > (fake if row.boundary is None else row.boundary)
    below = fake < (real if row.boundary is None else row.boundary)
    return {
        "accuracy_real": above.float().mean(),
        "accuracy_fake": below.float().mean(),
        "score_real": real.detach().mean(),
        "score_fake": fake.detach().mean(),
    }


class Adversarial(Objective):
    """A generative adversarial network. The discriminator's scores D(x) have no activation:

        L_D = E d(D(x), D(G(z))) + sum_i weight_i penalty_i,    L_G = E g(D(x), D(G(z))),    z ~ N(0, 1)^d,

    where (d, g) is a row of LOSSES and the penalties come from `hfgen.objectives.penalties`. Items x may have any shape
    (B, *item). With `augment`, both players see augmented items, and so do the penalties. Generated items get the
    labels of the real items of the batch. Every term is a mean over items, so the gradients of micro-batches add up to
    that of the whole batch.

    Networks are called as generator(z (B, d), class_labels) -> .sample (B, *item) and discriminator(items,
    class_labels) -> .logits (B,). They get class_labels only if `conditional`.

    Args:
        loss: a name in LOSSES.
        latent_channels: d.
        penalties: penalties and constraints of the discriminator, at most one of each class.
        n_critic: turns of the discriminator before each turn of the generator.
        augment: names in AUGMENTATIONS, for images (B, C, H, W) only; or an `AdaptiveAugmentation`, which is part of
            the objective's state.
        mode_seeking: weight of `mode_seeking` in the generator's loss; 0: none.
        conditional: whether the networks take class labels.
        replay: the generated items of earlier steps, for the penalty `Control`. It is part of the objective's state.
        fresh_batches: whether each turn of the discriminator has other real items, as in Algorithm 1 of Arjovsky et al.
            2017; the generator's turn then has those of the last one. Otherwise all turns of a step have the same.
        regularizers: terms of the generator's loss, at most one of each class. Their state is part of the objective's.
        inputs: further arguments of the generator, (items (B, *item), step, stream) -> {name: (B, ...)}, such as
            `StyleInputs`; None: it has no others.

    Raises:
        ValueError: an unknown name, a number out of range, or parts that do not go together.
    """

    @checked
    def __init__(
        self,
        loss: str,
        latent_channels: int,
        penalties: Sequence[Penalty | WeightClipping] = (),
        n_critic: int = 1,
        augment: Sequence[str] | AdaptiveAugmentation = (),
        mode_seeking: float = 0.0,
        conditional: bool = False,
        replay: ReplayBuffer | None = None,
        fresh_batches: bool = True,
        regularizers: Sequence[Regularizer] = (),
        inputs: Callable | None = None,
    ):
        for name, value in (("latent_channels", latent_channels), ("n_critic", n_critic)):
            check_range(name, value, COUNT)
        check_range("mode_seeking", mode_seeking, AT_LEAST_0)
        classes = [type(term) for term in (*penalties, *regularizers)]
        if len(set(classes)) < len(classes):
            raise ValueError(
                f"{penalties=} and {regularizers=} have two of one class. Give one with the sum of their weights."
            )
        if conditional and Control in classes:
            raise ValueError("Control stores items without labels. Leave it out, or set conditional=False.")
        if replay is not None and Control not in classes:
            raise ValueError("replay does nothing without the penalty Control, which reads it. Leave it out.")
        self.row, adapts = adversarial_loss(loss), isinstance(augment, AdaptiveAugmentation)
        if adapts and self.row.boundary is None:
            raise ValueError(f"{loss=} has no score that divides real from generated images. Give names as augment.")
        if not adapts:
            check_names(augment)
        self.augment = augment if adapts else tuple(augment)
        self._augmented = augment if adapts else partial(_augmented, self.augment)
        self._adaptive = (augment,) if adapts else ()
        self.regularizers, self.inputs = tuple(regularizers), inputs
        self.state = {} if replay is None else {"replay": replay}
        self.state |= {term.name: term.state for term in regularizers if term.state is not None}
        self.state |= {"augmentation": augment} if adapts else {}
        self.players = ("discriminator",) * n_critic + ("generator",)
        self.batches_per_step = n_critic if fresh_batches else 1
        self.latent_channels, self.conditional, self.mode_seeking = latent_channels, conditional, mode_seeking
        self.penalties = tuple(p for p in penalties if isinstance(p, Penalty))
        self.constraints = tuple(p for p in penalties if isinstance(p, WeightClipping))
        self.differentiates_twice = bool(self.penalties) or any(term.differentiates_twice for term in regularizers)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the player's loss on "x" (B, *item) and, if `conditional`, "labels" (B,)."""
        return (self._discriminator if player == "discriminator" else self._generator)(networks, batch, step)

    def project(self, player: str, network: nn.Module) -> None:
        """Apply the constraints to a discriminator."""
        for constraint in self.constraints if player == "discriminator" else ():
            constraint.apply(network)

    def constrain(self, player: str, networks: Mapping[str, nn.Module]) -> None:
        """Apply the constraints to a discriminator, and end the step of what the losses have measured."""
        super().constrain(player, networks)
        measures = self.regularizers if player == "generator" else self._adaptive
        for measure in measures:
            measure.end_step()

    def latents(self, items: Tensor, step: Step, stream: str = "latent") -> Tensor:
        """Draw a latent for each item (B, ...): z (B, d)."""
        return step.randn(stream, items.new_empty(len(items), self.latent_channels))

    def _discriminator(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        with torch.no_grad():
            z = self.latents(batch["x"], step)
            generated = _sample(self._generate(networks["generator"], z, batch, step))
        return self.judgement(networks["discriminator"], batch, generated, step)

    def judgement(self, critic: nn.Module, batch: Mapping[str, Tensor], generated: Tensor, step: Step) -> Loss:
        """Return the discriminator's loss with its penalties, for the real items of a batch and generated ones
        (B, *item)."""
        labels = self._labels(batch)
        penalties = [penalty for penalty in self.penalties if penalty.is_active(step)]
        real, fake = self._augmented(batch["x"], step, "real"), self._augmented(generated, step, "fake")
        grad_inputs = {name for penalty in penalties for name in penalty.grad_inputs}
        real, fake = (x.detach().requires_grad_(name in grad_inputs) for name, x in (("real", real), ("fake", fake)))
        replay, eager = self._replay(critic), uncompiled(critic)  # compiled networks can't be differentiated twice
        scores = [score_of(eager if grad_inputs else critic, x, labels) for x in (real, fake)]
        read = (lambda uniform: None) if replay is None else partial(replay.read, step.number)
        turn = CriticTurn(lambda x: score_of(eager, x, labels), real, fake, *scores, read, step)
        terms = weighted_values(penalties, turn)
        value = self.row.discriminator(*scores).mean() + sum(terms.values())
        if step.turn == 0 and replay is not None:
            replay.write(fake.detach(), step.number, step.shard, step.shards)
        logs = {**terms, **accuracies(self.row, *scores)}
        for adaptive in self._adaptive:
            adaptive.observe(scores[0].detach() - self.row.boundary)
            logs["augment_probability"] = adaptive.probability.clone()
        return loss_with_logs(value, logs)

    def deceit(self, critic: nn.Module, batch: Mapping[str, Tensor], fake: Tensor, step: Step) -> Tensor:
        """Compute the adversarial loss of what generated the items `fake` (B, *item), for a batch of real ones: ()."""
        labels, real_scores = self._labels(batch), None
        if self.row.paired:
            with torch.no_grad():
                real_scores = score_of(critic, self._augmented(batch["x"], step, "real"), labels)
        fake_scores = score_of(critic, self._augmented(fake, step, "fake"), labels)
        return self.row.generator(real_scores, fake_scores).mean()

    def _generator(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        active = [term for term in self.regularizers if term.is_active(step)]
        real, generator = batch["x"], networks["generator"]
        generator = uncompiled(generator) if any(term.differentiates_twice for term in active) else generator
        z = self.latents(real, step)
        output = self._generate(generator, z, batch, step)
        fake = _sample(output)
        value, logs = self.deceit(networks["discriminator"], batch, fake, step), {}
        if self.mode_seeking:
            other = self.latents(real, step, "other latent")
            other_fake = _sample(self._generate(generator, other, batch, step))
            logs["mode_seeking"] = self.mode_seeking * mode_seeking(z, other, fake, other_fake)
        logs |= weighted_values(active, GeneratorTurn(output, fake, step, uncompiled(generator)))
        value = value + sum(logs.values())
        if len(real) > 1:
            logs["diversity"] = mean_distance(fake.detach()) / mean_distance(real).clamp(min=1e-12)
        return loss_with_logs(value, logs)

    def _generate(self, generator: nn.Module, z: Tensor, batch: Mapping[str, Tensor], step: Step) -> object:
        """Return the generator's output for latents (B, d) and the labels of a batch."""
        labels, inputs = self._labels(batch), {} if self.inputs is None else self.inputs(batch["x"], step, "input")
        return generator(z, **inputs) if labels is None else generator(z, class_labels=labels, **inputs)

    def _replay(self, critic: nn.Module) -> ReplayBuffer | None:
        """Return the buffer that `Control` reads; None without that penalty. Raises ValueError if there is none."""
        if not any(isinstance(penalty, Control) for penalty in self.penalties):
            return None
        replay = self.state.get("replay", getattr(extract_model_from_parallel(critic), "replay_buffer", None))
        if replay is None:
            raise ValueError(
                "Control needs a memory of generated items: Adversarial(..., replay=hfgen.ReplayBuffer(...))."
            )
        return replay

    def _labels(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        if not self.conditional:
            return None
        if "labels" not in batch:
            raise ValueError("conditional=True needs data with labels, and these have none. Set conditional=False.")
        return batch["labels"]


def mean_distance(items: Tensor) -> Tensor:
    """Compute the mean Euclidean distance between two different items of a batch (B, *item), B > 1: ()."""
    return torch.pdist(items.flatten(1).float()).mean()


def _augmented(names: tuple[str, ...], images: Tensor, step: Step, stream: str) -> Tensor:
    return augment(images, names, step, stream)


def generated_items(generator: nn.Module, z: Tensor, labels: Tensor | None) -> Tensor:
    """Return the items (B, *item) of a generator for latents z (B, d) and classes (B,), in float32 or more."""
    return _sample(generator(z) if labels is None else generator(z, class_labels=labels))


def _sample(output: object) -> Tensor:
    return at_least_float32(sample_of(output))


def score_of(discriminator: nn.Module, items: Tensor, labels: Tensor | None) -> Tensor:
    """Return the scores (B,) of a discriminator for items (B, *item) and classes (B,), in float32 or more."""
    output = discriminator(items) if labels is None else discriminator(items, class_labels=labels)
    return at_least_float32(getattr(output, "logits", output))


def uncompiled(network: nn.Module) -> nn.Module:
    """Return the network inside `torch.compile`, whose graph can be differentiated twice; other networks unchanged."""
    return network._orig_mod if is_compiled_module(network) else network
