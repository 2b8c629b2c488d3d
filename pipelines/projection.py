"""From an image to the latent that a generator would draw it from: there is no encoder, so it is searched for."""

from collections.abc import Callable

import torch
from torch import Tensor

AT_ONCE = 64
"""Images that are projected together."""

CANDIDATES = 512
"""Latents drawn from N(0, I), always the same, among which the search begins."""

STARTS = 4
"""Of them, so many an image are followed, the nearest ones: the error has many valleys."""

NOISE = 0.05
"""Deviation of pixels in [-1, 1] around what the generator draws."""

FEATURES = 0.1
"""Weight of the features' error."""


Drawing = Callable[[Tensor, Tensor], Tensor]
"""Latents (N, d), or images, and classes (N,) -> images (N, C, H, W), or features (N, F)."""


@torch.no_grad()
def starts(images: Tensor, labels: Tensor, generate: Drawing, size: int) -> Tensor:
    """For each of images (B, C, H, W) of classes `labels` (B,) the candidates (B, STARTS, size) of its class whose
    images are nearest."""
    z = torch.randn(CANDIDATES, size, generator=torch.Generator().manual_seed(0)).to(images.device)
    found = z.new_empty(len(images), STARTS, size)
    for label in labels.unique():
        of_class = labels == label
        drawn = generate(z, label.expand(len(z)))
        distances = torch.cdist(images[of_class].flatten(1), drawn.flatten(1))
        found[of_class] = z[distances.topk(STARTS, largest=False).indices]
    return found


def projected(
    images: Tensor,
    labels: Tensor,
    generate: Drawing,
    features: Drawing | None,
    size: int,
    steps: int,
    learning_rate: float,
    tick: Callable[[], object],
) -> Tensor:
    """Latents z (B, d) of images x (B, C, H, W), by Adam, its rate going to 0 as a cosine, on each image by itself:

        mean (x - G(z))^2 + NOISE^2 |z|^2 / D + FEATURES mean (f(x) - f(G(z)))^2 / mean f(x)^2

    over D pixels. The first two terms are -log p(z | x) for x ~ N(G(z), NOISE^2) and z ~ N(0, I), up to scale and
    constants (after Creswell & Bharath 2018, https://arxiv.org/abs/1802.05701; features f after Yeh et al. 2017,
    https://arxiv.org/abs/1607.07539).

    Args:
        images, labels: x in float32, and their classes (B,).
        generate: G.
        features: f; None: without that term.
        size: d.
        steps, learning_rate: of Adam.
        tick: called after each step.
    """
    x, y = images.repeat_interleave(STARTS, 0), labels.repeat_interleave(STARTS, 0)  # (B S, C, H, W), (B S,)
    z = starts(images, labels, generate, size).flatten(0, 1).requires_grad_()
    seen = None if features is None else features(x, y).detach()
    optimizer = torch.optim.Adam([z], learning_rate)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def errors() -> Tensor:
        drawn = generate(z, y)
        found = (x - drawn).square().flatten(1).mean(1) + NOISE**2 * z.square().sum(1) / images[0].numel()
        if features is not None:
            off = (features(drawn, y) - seen).square().mean(1) / seen.square().mean(1).clamp(min=1e-12)
            found = found + FEATURES * off
        return found  # (B S,)

    with torch.enable_grad():
        for _ in range(steps):
            (z.grad,) = torch.autograd.grad(errors().sum(), z)
            optimizer.step()
            rates.step()
            tick()
    with torch.no_grad():
        best = errors().view(-1, STARTS).argmin(1)
    return z.detach().view(len(images), STARTS, -1)[torch.arange(len(images), device=z.device), best]
