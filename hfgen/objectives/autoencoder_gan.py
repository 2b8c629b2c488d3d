"""The edge between likelihood and adversary: autoencoders with a discriminator."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ..utils.arguments import checked
from ..utils.ranges import AT_LEAST_0, COUNT_OR_0, check_range
from .adversarial import accuracies, adversarial_loss, uncompiled
from .autoencoding import AutoencoderObjective, AutoencoderTerms
from .base import Loss, Objective, Step, at_least_float32, loss_with_logs
from .penalties import Control, CriticTurn, Penalty, WeightClipping, weighted_values

MAX_ADAPTIVE_WEIGHT = 1e4


class AutoencoderGAN(Objective):
    """An autoencoder that minimises its own loss, F_0 + R, and at the same time deceives a discriminator D, which tells
    images x from reconstructions x' = E[x | z] (VQ-GAN, Esser et al. 2021, https://arxiv.org/abs/2012.09841):

        L_A = F + R + weight lambda E g(D(x), D(x')),    L_D = E d(D(x), D(x')) + penalties,
        F = pixels F_0 + perceptual E P(x, x') + feature_matching E |h(x) - h(x')|^2 / (2 dimensions of h),
        lambda = |grad F| / (|grad E g| + 1e-6) in the last weights of the decoder; 1 unless `adaptive`,

    where F_0 is the reconstruction loss and R the regulariser of `AutoencoderTerms`, (d, g) is a row of
    `hfgen.objectives.adversarial.LOSSES`, h is the last hidden map of D, and P is a perceptual distance. lambda is
    computed for each micro-batch and is at most 10^4.

    With an inner objective that also decodes samples of its prior (`ELBO(prior_samples=True)`), D judges these samples
    as well, with equal weight. With feature_matching in place of pixels this is the VAE-GAN (Larsen et al. 2016,
    https://arxiv.org/abs/1512.09300), except that here the encoder learns from D, too.

    D always sees the original images, even if the encoder or p(x | z) gets prepared or corrupted ones. In D's turn the
    autoencoder is in evaluation mode, so codebooks and batch statistics change once per step.

    Networks: "autoencoder", called as the inner objective says, with a `decoder`; "discriminator", images (B, C, H, W)
    -> .logits (B,), .features (B, F, h, w); with `perceptual` also "perceptual", two batches of images -> (B,), see
    `hfgen.metrics.perceptual`.

    Args:
        inner: the autoencoder's own objective.
        adversarial: a name in LOSSES.
        weight: weight of the adversarial loss.
        start_step: the first optimiser step with D and the adversarial loss.
        pixels, perceptual, feature_matching: weights of the three terms that compare reconstructions with images.
        adaptive: whether lambda balances the gradients.
        penalties: penalties and constraints of D, from `hfgen.objectives.penalties`. Reconstructions take the place of
            generated items.

    Raises:
        ValueError: an unknown name, a number out of range, or no weight for reconstructions before `start_step`.
    """

    players = ("autoencoder", "discriminator")

    @checked
    def __init__(
        self,
        inner: AutoencoderObjective,
        adversarial: str = "hinge",
        weight: float = 1.0,
        start_step: int = 0,
        pixels: float = 1.0,
        perceptual: float = 0.0,
        feature_matching: float = 0.0,
        adaptive: bool = True,
        penalties: Sequence[Penalty | WeightClipping] = (),
    ):
        terms = {"pixels": pixels, "perceptual": perceptual, "feature_matching": feature_matching}
        for name, value in {"weight": weight, **terms}.items():
            check_range(name, value, AT_LEAST_0)
        check_range("start_step", start_step, COUNT_OR_0)
        if not pixels + perceptual + (0 if start_step else feature_matching) > 0:
            raise ValueError(
                f"{pixels=}, {perceptual=} and, from step {start_step} on, {feature_matching=}: no term compares "
                "reconstructions with images from the start. Raise pixels or perceptual, or set start_step=0 with "
                "feature_matching above 0."
            )
        if any(isinstance(penalty, Control) for penalty in penalties):
            raise ValueError("Control is for generators of noise, and an autoencoder is none. Leave it out.")
        self.inner, self.row = inner, adversarial_loss(adversarial)
        self.penalties = tuple(p for p in penalties if isinstance(p, Penalty))
        self.constraints = tuple(p for p in penalties if isinstance(p, WeightClipping))
        self.weight, self.start_step, self.adaptive = weight, start_step, adaptive
        self.differentiates_twice = adaptive or bool(self.penalties)
        self.pixels, self.perceptual, self.feature_matching = pixels, perceptual, feature_matching
        self.needs = ("perceptual",) if perceptual else ()

    def turns(self, number: int) -> tuple[str, ...]:
        """Return the players of optimiser step `number`: before `start_step` the autoencoder alone."""
        return self.players if number >= self.start_step else self.players[:1]

    def project(self, player: str, network: nn.Module) -> None:
        """Apply the constraints to a discriminator, and those of the inner objective to an autoencoder."""
        if player == "autoencoder":
            self.inner.project(player, network)
        for constraint in self.constraints if player == "discriminator" else ():
            constraint.apply(network)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the player's loss on "x" (B, C, H, W)."""
        turn = self._discriminator if player == "discriminator" else self._autoencoder
        return turn(networks, batch["x"], step)

    def _autoencoder(self, networks: Mapping[str, nn.Module], images: Tensor, step: Step) -> Loss:
        network, discriminator = networks["autoencoder"], networks["discriminator"]
        if self.adaptive:  # whose graphs are differentiated twice
            network, discriminator = uncompiled(network), uncompiled(discriminator)
        terms = self.inner.terms(network, images, step)
        fakes, logs, fit = self._fakes(terms), dict(terms.logs), self.pixels * terms.reconstruction_loss
        if self.perceptual:
            logs["perceptual"] = networks["perceptual"](images, fakes[0]).mean()
            fit = fit + self.perceptual * logs["perceptual"]
        value = fit + terms.regulariser
        if step.number >= self.start_step:
            feature_loss, adversarial = self._adversarial_terms(discriminator, images, fakes)
            if feature_loss is not None:
                logs["features"] = feature_loss
                fit = fit + self.feature_matching * feature_loss
            scale = torch.ones_like(fit)
            if self.adaptive:
                scale = adaptive_weight(fit, adversarial, last_weight(network))
            value = fit + terms.regulariser + self.weight * scale * adversarial
            logs |= {"adversarial": adversarial, "adaptive_weight": scale}
        return loss_with_logs(value, logs)

    def _adversarial_terms(
        self, discriminator: nn.Module, images: Tensor, fakes: list[Tensor]
    ) -> tuple[Tensor | None, Tensor]:
        """Compute half the mean squared difference of features, None without feature matching, and E g: (), ()."""
        real_scores, real_features, feature_loss = None, None, None
        if self.row.paired or self.feature_matching:
            with torch.no_grad():
                real_scores, real_features = _scores_and_features(discriminator, images)
        outputs = [_scores_and_features(discriminator, fake) for fake in fakes]
        if self.feature_matching:
            feature_loss = (outputs[0][1] - real_features).square().mean() / 2
        losses = [self.row.generator(real_scores, scores).mean() for scores, _ in outputs]
        return feature_loss, torch.stack(losses).mean()

    def _discriminator(self, networks: Mapping[str, nn.Module], images: Tensor, step: Step) -> Loss:
        discriminator = networks["discriminator"]
        with torch.no_grad(), _eval_mode(networks["autoencoder"]) as network:
            fakes = self._fakes(self.inner.terms(network, images, step))
        penalties = [penalty for penalty in self.penalties if penalty.is_active(step)]
        grad_inputs = {name for penalty in penalties for name in penalty.grad_inputs}
        real = images.detach().requires_grad_("real" in grad_inputs)
        fakes[0].requires_grad_("fake" in grad_inputs)
        if penalties:  # which differentiate the graph twice
            discriminator = uncompiled(discriminator)
        real_scores, *fake_scores = [_scores_and_features(discriminator, x)[0] for x in (real, *fakes)]
        turn = CriticTurn(
            score=lambda x: _scores_and_features(discriminator, x)[0],
            real=real,
            fake=fakes[0],
            real_scores=real_scores,
            fake_scores=fake_scores[0],
            replay=lambda uniform: None,
            step=step,
        )
        terms = weighted_values(penalties, turn)
        losses = [self.row.discriminator(real_scores, scores).mean() for scores in fake_scores]
        value = torch.stack(losses).mean() + sum(terms.values())
        return loss_with_logs(value, {**terms, **accuracies(self.row, real_scores, fake_scores[0])})

    def _fakes(self, terms: AutoencoderTerms) -> list[Tensor]:
        """Return reconstructions and, if there are any, samples, each (B, C, H, W) in [-1, 1]."""
        params = terms.params, terms.sample_params
        return [self.inner.likelihood.mean(values) for values in params if values is not None]


def adaptive_weight(fit: Tensor, adversarial: Tensor, weights: Tensor) -> Tensor:
    """Compute |grad fit| / (|grad adversarial| + 1e-6), at most 10^4: ().

    Args:
        fit, adversarial: two losses, ().
        weights: the parameter in which the gradients are taken.
    """
    norms = [torch.autograd.grad(loss, weights, retain_graph=True)[0].norm() for loss in (fit, adversarial)]
    return (norms[0] / (norms[1] + 1e-6)).clamp(max=MAX_ADAPTIVE_WEIGHT)


def last_weight(network: nn.Module) -> Tensor:
    """Return the last matrix or kernel of a network's `decoder`."""
    decoder = extract_model_from_parallel(network).decoder
    return [p for p in decoder.parameters() if p.ndim > 1][-1]


def _scores_and_features(discriminator: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute scores (B,) and features (B, F, h, w), at least in float32."""
    output = discriminator(images)
    return at_least_float32(output.logits), at_least_float32(output.features)


@contextlib.contextmanager
def _eval_mode(network: nn.Module) -> Iterator[nn.Module]:
    """Put a network into evaluation mode, and restore its mode afterwards."""
    training = network.training
    try:
        yield network.eval()
    finally:
        network.train(training)
