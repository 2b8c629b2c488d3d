"""The adversarial corner: a generator and a discriminator that learn from each other.

One object is loss x penalties x schedule; each GAN of the literature is a choice of them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from torch import Tensor, nn
from torch.nn.functional import softplus

from .augmentation import augment, check_names
from .base import Loss, Objective, Step
from .penalties import Control, CriticTurn, Penalty, WeightClipping, mode_seeking
from .replay_buffer import ReplayBuffer


class AdversarialLoss(NamedTuple):
    """What each player minimises, of the discriminator's scores, one value an image.

    Attributes:
        discriminator: scores of real and of generated images (B,), (B,) -> (B,).
        generator: the same; those of real images are None unless `paired`.
        boundary: an image that scores higher is called real; None: scores mean something in comparison only.
        paired: the generator's loss needs scores of real images.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor | None, Tensor], Tensor]
    boundary: float | None = 0.0
    paired: bool = False


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))) for D the sigmoid of the score."""
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
"""By name: minimax and non-saturating (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661), least squares (Mao et
al. 2017, https://arxiv.org/abs/1611.04076), hinge (Lim & Ye 2017, https://arxiv.org/abs/1705.02894), Wasserstein
(Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875; needs a penalty or constraint) and relativistic
(Jolicoeur-Martineau 2018, https://arxiv.org/abs/1807.00734, in the pairing form)."""


def adversarial_loss(name: str) -> AdversarialLoss:
    """The row of LOSSES that a name stands for. Raises ValueError naming those there are."""
    if name not in LOSSES:
        raise ValueError(f"loss={name!r} is not known. Choose one of: {', '.join(LOSSES)}.")
    return LOSSES[name]


def accuracies(row: AdversarialLoss, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Shares of real and of generated images that scores (B,), (B,) tell right, and the mean scores; without a boundary
    a score is right where it is on the right side of the score it is paired with."""
    above = real > (fake if row.boundary is None else row.boundary)
    below = fake < (real if row.boundary is None else row.boundary)
    return {
        "accuracy_real": above.float().mean(),
        "accuracy_fake": below.float().mean(),
        "score_real": real.detach().mean(),
        "score_fake": fake.detach().mean(),
    }


class Adversarial(Objective):
    """A generative adversarial network, on scores D(x) with no activation:

        L_D = E d(D(x), D(G(z))) + sum_i weight_i penalty_i,    L_G = E g(D(x), D(G(z))),    z ~ N(0, 1)^d,

    (d, g) a row of LOSSES; the penalties are those of `hfgen.objectives.penalties`. Both players see images through
    `augment`, if there are any, and the penalties see what the discriminator sees. Generated images have the labels of
    the real ones of the batch. Every term is a mean over images, so that a batch may be cut.

    Networks are called as generator(z (B, d), class_labels) -> .sample (B, C, H, W) and discriminator(images,
    class_labels) -> .logits (B,), with class_labels only where `conditional`.

    Args:
        loss: a name in LOSSES.
        latent_channels: d.
        penalties: of the discriminator; at most one of a kind.
        n_critic: turns of the discriminator before each of the generator; the real images of a step are the same.
        augment: names in AUGMENTATIONS.
        mode_seeking: weight of `mode_seeking` in the generator's loss, 0: none.
        conditional: the networks take class labels.
        replay: the memory of generated images that `Control` reads; it is part of the objective's state.

    Raises:
        ValueError: an unknown name, a number out of range, or parts that don't go together.
    """

    def __init__(
        self,
        loss: str,
        latent_channels: int,
        penalties: Sequence[Penalty | WeightClipping] = (),
        n_critic: int = 1,
        augment: Sequence[str] = (),
        mode_seeking: float = 0.0,
        conditional: bool = False,
        replay: ReplayBuffer | None = None,
    ):
        check_names(augment)
        if latent_channels < 1 or n_critic < 1 or not mode_seeking >= 0:
            raise ValueError(f"{latent_channels=} and {n_critic=} must be at least 1, {mode_seeking=} not negative.")
        kinds = [type(penalty) for penalty in penalties]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"{penalties=} hold two of a kind. Give one with the weight that is meant.")
        if conditional and Control in kinds:
            raise ValueError("Control remembers images without labels. Leave it out, or set conditional=False.")
        if replay is not None and Control not in kinds:
            raise ValueError("replay does nothing without the penalty Control, which reads it. Leave it out.")
        self.state = {} if replay is None else {"replay": replay}
        self.players = ("discriminator",) * n_critic + ("generator",)
        self.row, self.latent_channels, self.conditional = adversarial_loss(loss), latent_channels, conditional
        self.penalties = tuple(p for p in penalties if isinstance(p, Penalty))
        self.constraints = tuple(p for p in penalties if isinstance(p, WeightClipping))
        self.augment, self.mode_seeking = tuple(augment), mode_seeking

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """For images (B, C, H, W) and, where `conditional`, labels (B,)."""
        return (self._discriminator if player == "discriminator" else self._generator)(networks, batch, step)

    def constrain(self, player: str, networks: Mapping[str, nn.Module]) -> None:
        """Put the discriminator back into its constraints."""
        for constraint in self.constraints if player == "discriminator" else ():
            constraint.apply(networks[player])

    def latents(self, images: Tensor, step: Step, stream: str = "latent") -> Tensor:
        """z (B, d) for as many images as there are."""
        return step.randn(stream, images.new_empty(len(images), self.latent_channels))

    def _discriminator(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        labels, critic = self._labels(batch), networks["discriminator"]
        with torch.no_grad():
            made = _sample(networks["generator"], self.latents(batch["x"], step), labels)
        due = [penalty for penalty in self.penalties if penalty.due(step)]
        real, fake = self._augmented(batch["x"], step, "real"), self._augmented(made, step, "fake")
        twice = {name for penalty in due for name in penalty.differentiates}
        real, fake = (x.detach().requires_grad_(name in twice) for name, x in (("real", real), ("fake", fake)))
        replay, eager = self._replay(critic), _uncompiled(critic)  # compiled networks can't be differentiated twice
        scores = [_score(eager if twice else critic, x, labels) for x in (real, fake)]
        seen = CriticTurn(lambda x: _score(eager, x, labels), real, fake, *scores, self._recall(replay, step), step)
        paid = {penalty.name: penalty.weight * penalty.every * penalty.value(seen) for penalty in due}
        value = self.row.discriminator(*scores).mean() + sum(paid.values())
        if step.turn == 0 and replay is not None:
            replay.write(fake.detach(), step.number, step.shard, step.shards)
        logs = {"loss": value, **paid, **accuracies(self.row, *scores)}
        return Loss(value, {name: log.detach() for name, log in logs.items()})

    def _generator(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        labels, real, generator = self._labels(batch), batch["x"], networks["generator"]
        z = self.latents(real, step)
        fake = _sample(generator, z, labels)
        real_scores = None
        if self.row.paired:
            with torch.no_grad():
                real_scores = _score(networks["discriminator"], self._augmented(real, step, "real"), labels)
        fake_scores = _score(networks["discriminator"], self._augmented(fake, step, "fake"), labels)
        value = self.row.generator(real_scores, fake_scores).mean()
        logs = {}
        if self.mode_seeking:
            other = self.latents(real, step, "other latent")
            logs["mode_seeking"] = self.mode_seeking * mode_seeking(z, other, fake, _sample(generator, other, labels))
            value = value + logs["mode_seeking"]
        if len(real) > 1:
            logs["diversity"] = spread(fake.detach()) / spread(real).clamp(min=1e-12)
        return Loss(value, {name: log.detach() for name, log in {"loss": value, **logs}.items()})

    def _replay(self, critic: nn.Module) -> ReplayBuffer | None:
        """Return the memory that `Control` reads; None without that penalty. Raises ValueError if there is none."""
        if not any(isinstance(penalty, Control) for penalty in self.penalties):
            return None
        memory = self.state.get("replay", getattr(extract_model_from_parallel(critic), "replay_buffer", None))
        if memory is None:
            raise ValueError(
                "Control needs a memory of generated images: Adversarial(..., replay=hfgen.ReplayBuffer(...))."
            )
        return memory

    @staticmethod
    def _recall(memory: ReplayBuffer | None, step: Step) -> Callable[[Tensor], Tensor | None]:
        """Return uniform numbers (B,) -> images (B, C, H, W) of earlier steps, None if there are none."""
        return (lambda uniform: None) if memory is None else partial(memory.read, step.number)

    def _labels(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        if not self.conditional:
            return None
        if "labels" not in batch:
            raise ValueError("conditional=True needs images with labels; these have none. Set conditional=False.")
        return batch["labels"]

    def _augmented(self, images: Tensor, step: Step, stream: str) -> Tensor:
        return augment(images, self.augment, step, stream)


def spread(images: Tensor) -> Tensor:
    """Mean Euclidean distance between two different images of a batch (B, ...), B > 1: ()."""
    return torch.pdist(images.flatten(1).float()).mean()


def _sample(generator: nn.Module, z: Tensor, labels: Tensor | None) -> Tensor:
    return _whole((generator(z) if labels is None else generator(z, class_labels=labels)).sample)


def _score(discriminator: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
    return _whole((discriminator(images) if labels is None else discriminator(images, class_labels=labels)).logits)


def _whole(x: Tensor) -> Tensor:
    """In float32 where a network answers in half of it: images are differences of gradients, scores of each other."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _uncompiled(network: nn.Module) -> nn.Module:
    return network._orig_mod if is_compiled_module(network) else network
