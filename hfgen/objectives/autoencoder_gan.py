"""The edge between likelihood and adversary: autoencoders whose images a discriminator judges as well."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from torch import Tensor, nn

from .adversarial import accuracies, adversarial_loss
from .autoencoding import AutoencoderObjective, Rebuilt
from .base import Loss, Objective, Step
from .penalties import Control, CriticTurn, Penalty

MOST = 1e4
"""Of an adaptive weight."""


class AutoencoderGAN(Objective):
    """An autoencoder that minimises the loss of another objective, fit + rest, and at the same time deceives a
    discriminator D, which tells images x from reconstructions x' = E[x | z] (VQ-GAN, Esser et al. 2021,
    https://arxiv.org/abs/2012.09841):

        L_A = F + rest + weight lambda E g(D(x), D(x')),    L_D = E d(D(x), D(x')) + penalties,
        F = pixels fit + perceptual E P(x, x') + feature_matching E |h(x) - h(x')|^2 / (2 dimensions of h),
        lambda = |grad F| / (|grad E g| + 1e-6), by the last weights of the decoder; 1 unless `adaptive`,

    (d, g) a row of `hfgen.objectives.adversarial.LOSSES`, h the last hidden map of D, P a perceptual distance. lambda
    is that of each micro-batch, and at most 10^4. With an inner objective that also draws from its prior
    (`ELBO(draws=True)`) D judges samples as well, with equal weight, and with feature_matching in place of pixels this
    is the VAE-GAN (Larsen et al. 2016, https://arxiv.org/abs/1512.09300), but that the encoder, too, learns from D.

    What is judged is the image, whatever was made of it for the encoder or p(x | z). In D's turn the autoencoder is in
    evaluation mode: codebooks and batch statistics move once a step.

    Networks: "autoencoder", as the inner objective calls it, with a `decoder`; "discriminator", images (B, C, H, W) ->
    .logits (B,), .features (B, F, h, w); with `perceptual` also "perceptual", two batches of images -> (B,), see
    `hfgen.metrics.perceptual`.

    Args:
        inner: what the autoencoder is trained for besides.
        adversarial: a name in LOSSES.
        weight: of the adversarial loss.
        start_step: the optimiser step with which D and its influence begin.
        pixels, perceptual, feature_matching: weights of what asks that reconstructions be like images.
        adaptive: whether lambda balances the gradients.
        penalties: of D, from `hfgen.objectives.penalties`; on reconstructions where on generated images.

    Raises:
        ValueError: an unknown name, a number out of range, or nothing that asks for reconstructions from the start.
    """

    players = ("autoencoder", "discriminator")

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
        penalties: Sequence[Penalty] = (),
    ):
        if not min(weight, start_step, pixels, perceptual, feature_matching) >= 0:
            raise ValueError(
                f"{weight=}, {start_step=}, {pixels=}, {perceptual=} and {feature_matching=} must not be negative."
            )
        if not pixels + perceptual + (0 if start_step else feature_matching) > 0:
            raise ValueError(
                f"{pixels=}, {perceptual=}, {feature_matching=} from step {start_step} on: nothing asks for "
                "reconstructions from the start. Raise one of the first two, or feature_matching with start_step=0."
            )
        if any(isinstance(penalty, Control) for penalty in penalties):
            raise ValueError("Control remembers what a generator made of noise, and here is none. Leave it out.")
        self.inner, self.row, self.penalties = inner, adversarial_loss(adversarial), tuple(penalties)
        self.weight, self.start_step, self.adaptive = weight, start_step, adaptive
        self.pixels, self.perceptual, self.feature_matching = pixels, perceptual, feature_matching

    def turns(self, number: int) -> tuple[str, ...]:
        """Before `start_step` the autoencoder's alone."""
        return self.players if number >= self.start_step else self.players[:1]

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """For images (B, C, H, W)."""
        turn = self._discriminator if player == "discriminator" else self._autoencoder
        return turn(networks, batch["x"], step)

    def _autoencoder(self, networks: Mapping[str, nn.Module], images: Tensor, step: Step) -> Loss:
        names = "autoencoder", "discriminator"
        network, discriminator = (_walked_twice(networks[name], self.adaptive) for name in names)
        made = self.inner.rebuilt(network, images, step)
        fakes, logs, fit = self._images(made), dict(made.loss.logs), self.pixels * made.fit
        if self.perceptual:
            logs["perceptual"] = networks["perceptual"](images, fakes[0]).mean()
            fit = fit + self.perceptual * logs["perceptual"]
        value = fit + made.rest
        if step.number >= self.start_step:
            likeness, adversarial = self._critique(discriminator, images, fakes)
            if likeness is not None:
                logs["features"] = likeness
                fit = fit + self.feature_matching * likeness
            scale = torch.ones_like(fit)
            if self.adaptive:
                scale = adaptive_weight(fit, adversarial, last_weight(network))
            value = fit + made.rest + self.weight * scale * adversarial
            logs |= {"adversarial": adversarial, "adaptive_weight": scale}
        return Loss(value, {name: log.detach() for name, log in {**logs, "loss": value}.items()})

    def _critique(self, discriminator: nn.Module, images: Tensor, fakes: list[Tensor]) -> tuple[Tensor | None, Tensor]:
        """Half the mean squared difference of features, None where they are not matched, and E g: (), ()."""
        real_scores, real_features, likeness = None, None, None
        if self.row.paired or self.feature_matching:
            with torch.no_grad():
                real_scores, real_features = _judged(discriminator, images)
        judged = [_judged(discriminator, fake) for fake in fakes]
        if self.feature_matching:
            likeness = (judged[0][1] - real_features).square().mean() / 2
        return likeness, torch.stack([self.row.generator(real_scores, scores).mean() for scores, _ in judged]).mean()

    def _discriminator(self, networks: Mapping[str, nn.Module], images: Tensor, step: Step) -> Loss:
        discriminator = networks["discriminator"]
        with torch.no_grad(), _evaluating(networks["autoencoder"]) as network:
            fakes = self._images(self.inner.rebuilt(network, images, step))
        due = [penalty for penalty in self.penalties if penalty.due(step)]
        twice = {name for penalty in due for name in penalty.differentiates}
        seen = [images.detach().requires_grad_("real" in twice), fakes[0].requires_grad_("fake" in twice), *fakes[1:]]
        discriminator = _walked_twice(discriminator, bool(due))
        scores = [_judged(discriminator, x)[0] for x in seen]
        turn = CriticTurn(lambda x: _judged(discriminator, x)[0], *seen[:2], *scores[:2], lambda _: None, step)
        paid = {penalty.name: penalty.weight * penalty.every * penalty.value(turn) for penalty in due}
        losses = [self.row.discriminator(scores[0], fake).mean() for fake in scores[1:]]
        value = torch.stack(losses).mean() + sum(paid.values())
        logs = {"loss": value, **paid, **accuracies(self.row, *scores[:2])}
        return Loss(value, {name: log.detach() for name, log in logs.items()})

    def _images(self, made: Rebuilt) -> list[Tensor]:
        """Reconstructions, and samples where there are any, (B, C, H, W) in [-1, 1] each."""
        return [self.inner.likelihood.mean(params) for params in (made.params, made.drawn) if params is not None]


def adaptive_weight(fit: Tensor, adversarial: Tensor, weights: Tensor) -> Tensor:
    """|grad fit| / (|grad adversarial| + 1e-6) in some weights, at most 10^4: ()."""
    asked, got = (torch.autograd.grad(loss, weights, retain_graph=True)[0].norm() for loss in (fit, adversarial))
    return (asked / (got + 1e-6)).clamp(max=MOST)


def last_weight(network: nn.Module) -> Tensor:
    """The last matrix or kernel of a network's `decoder`."""
    decoder = extract_model_from_parallel(network).decoder
    return [p for p in decoder.parameters() if p.ndim > 1][-1]


def _judged(discriminator: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B,) and features (B, F, h, w), in float32 at least."""
    output = discriminator(images)
    scores, features = output.logits, output.features
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in (scores, features))


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode, and as it was after."""
    training = network.training
    try:
        yield network.eval()
    finally:
        network.train(training)


def _walked_twice(network: nn.Module, twice: bool) -> nn.Module:
    """The network as it is, or such that gradients can be taken of its graph twice: not compiled."""
    return network._orig_mod if twice and is_compiled_module(network) else network
