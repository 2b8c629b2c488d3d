"""What a decoder says about an image: p(x | z) by name, as a row of `OBSERVATIONS`.

Images x are (..., C, H, W) in [-1, 1], parameters (..., channels, H, W); leading dimensions broadcast. An 8-bit level
k = 0, ..., 255 is x = k / 127.5 - 1, and its bin reaches half a level, 1 / 255, to either side; the first and the last
bin are open, so that the masses of the 256 levels sum to one. All is computed in float32 at least, whatever precision a
network's output has.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_LEVEL = 1 / 255
LEAST_LOG_SCALE = -6.0
"""Learned scales are at least e^-6, a third of a level: the density of a pixel that never changes stays bounded."""


def bounded(x: Tensor) -> Tensor:
    """x between -1 and 1, with a tenth of the gradient where it lies beyond: what judges images (a discriminator, a
    distance of features) can still bring such a pixel back."""
    inside = x.clamp(-1, 1)
    if not x.requires_grad:
        return inside
    beyond = x - inside
    return inside + 0.1 * (beyond - beyond.detach())


class Likelihood(ABC):
    """p(x | z), given what the decoder made of z. Its `levels` say how many values a dimension of x has: 256 can be
    compared in bits per dimension with other models of 8-bit images, 2 is of another kind of data."""

    levels = 256

    @abstractmethod
    def channels(self, image_channels: int) -> int:
        """How many channels the decoder needs for images of so many."""

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) in nats, summed over C, H, W: (...)."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """E[x | z] as an image, (..., C, H, W) in [-1, 1]; with a gradient beyond these bounds too."""

    @abstractmethod
    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        """log P(the 8-bit levels x | z) in nats, summed over C, H, W: (...).

        Raises:
            ValueError: the observation is not of 8-bit levels.
        """

    def prepare(self, x: Tensor, uniform: Callable[[Tensor], Tensor]) -> Tensor:
        """What is modelled in place of images x (B, C, H, W). `uniform(x)` draws numbers in [0, 1) of x's shape."""
        return x


@dataclasses.dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent binary pixels, x = 1 with probability sigmoid(l), else -1, with l the decoder's output.

    Grey images are binarised anew each time they are seen, 1 with probability (x + 1) / 2 (Burda et al. 2016,
    https://arxiv.org/abs/1509.00519, after Salakhutdinov & Murray 2008). `log_prob` of a grey image is the mean over
    its binarisations.
    """

    levels = 2

    def channels(self, image_channels: int) -> int:
        return image_channels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logits = real(params)
        return _sum(torch.addcmul(F.logsigmoid(logits), x.to(logits) - 1, logits, value=0.5))

    def mean(self, params: Tensor) -> Tensor:
        return (real(params) / 2).tanh()

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        known = ", ".join(name for name, build in OBSERVATIONS.items() if build(1.0, 1).levels == 256)
        raise ValueError(
            "likelihood='bernoulli' is of binary pixels, not of 8-bit levels. For bits per dimension train with one "
            f"of: {known}."
        )

    def prepare(self, x: Tensor, uniform: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.where(uniform(x).mul_(2).sub_(1) < x, 1.0, -1.0).to(x.dtype)


@dataclasses.dataclass(frozen=True)
class Gaussian(Likelihood):
    """Independent pixels N(mu, sigma^2) with mu the decoder's output and `sigma` fixed, in units of x: a density."""

    sigma: float

    def channels(self, image_channels: int) -> int:
        return image_channels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        mean = real(params)
        constant = math.log(self.sigma) + math.log(2 * math.pi) / 2
        return _sum((x.to(mean) - mean).square()) / (-2 * self.sigma**2) - math.prod(x.shape[-3:]) * constant

    def mean(self, params: Tensor) -> Tensor:
        return bounded(real(params))

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        mean = real(params)
        return _sum(_log_normal_mass(x.to(mean), mean, mean.new_tensor(math.log(self.sigma))))


@dataclasses.dataclass(frozen=True)
class LearnedGaussian(Likelihood):
    """Independent pixels N(mu, sigma^2), mu and log sigma the two halves of the decoder's channels: a density.

    log sigma is bounded from below by `LEAST_LOG_SCALE`, smoothly (Rybkin et al. 2021,
    https://arxiv.org/abs/2006.13202).
    """

    def channels(self, image_channels: int) -> int:
        return 2 * image_channels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        mean, log_sigma = self._split(params)
        deviation = (x.to(mean) - mean) * (-log_sigma).exp()
        return _sum(-deviation.square() / 2 - log_sigma - math.log(2 * math.pi) / 2)

    def mean(self, params: Tensor) -> Tensor:
        return bounded(self._split(params)[0])

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        mean, log_sigma = self._split(params)
        return _sum(_log_normal_mass(x.to(mean), mean, log_sigma))

    @staticmethod
    def _split(params: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_sigma = real(params).chunk(2, -3)
        return mean, _bounded(log_sigma)


@dataclasses.dataclass(frozen=True)
class DiscretizedLogisticMixture(Likelihood):
    """8-bit pixels: a mixture of `components` logistic distributions, each cut into the 256 bins

        P(x | z) = sum_m w_m prod_c [ sigmoid((x_c + 1/255 - mu_mc) / s_mc) - sigmoid((x_c - 1/255 - mu_mc) / s_mc) ]

    with weights that the C channels of a pixel share (PixelCNN++, Salimans et al. 2017,
    https://arxiv.org/abs/1701.05517, without its regression from channel to channel). The decoder's channels are M
    logits of w, M C means and M C log-scales, bounded from below by `LEAST_LOG_SCALE`.
    """

    components: int

    def channels(self, image_channels: int) -> int:
        return self.components * (1 + 2 * image_channels)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        log_weights, means, log_scales = self._split(params)
        log_mass = _log_logistic_mass(x.to(means).unsqueeze(-4), means, log_scales)  # (..., M, C, H, W)
        return (log_weights + log_mass.sum(-3)).logsumexp(-3).flatten(-2).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        log_weights, means, _ = self._split(params)
        return bounded((log_weights.exp().unsqueeze(-3) * means).sum(-4))

    def log_mass(self, params: Tensor, x: Tensor) -> Tensor:
        return self.log_prob(params, x)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (..., M, H, W), means and log-scales (..., M, C, H, W)."""
        logits, rest = real(params).tensor_split((self.components,), -3)
        means, log_scales = rest.unflatten(-3, (2, self.components, -1)).unbind(-5)
        return logits.log_softmax(-3), means, _bounded(log_scales)


OBSERVATIONS: dict[str, Callable[[float, int], Likelihood]] = {
    "bernoulli": lambda sigma, components: Bernoulli(),
    "gaussian": lambda sigma, components: Gaussian(sigma),
    "gaussian_learned": lambda sigma, components: LearnedGaussian(),
    "discretized_logistic_mixture": lambda sigma, components: DiscretizedLogisticMixture(components),
}
"""Name -> what makes the observation of a sigma and a number of components."""


def observation(name: str, sigma: float = 0.1, components: int = 5) -> Likelihood:
    """The observation of this name.

    Args:
        name: a key of `OBSERVATIONS`.
        sigma: of `gaussian`, in units of [-1, 1].
        components: of `discretized_logistic_mixture`.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    if name not in OBSERVATIONS:
        raise ValueError(f"likelihood={name!r} is not known. Choose one of: {', '.join(OBSERVATIONS)}.")
    if not (sigma > 0 and components >= 1):
        raise ValueError(f"{sigma=} must be positive and {components=} at least 1.")
    return OBSERVATIONS[name](sigma, components)


def real(x: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def _sum(x: Tensor) -> Tensor:
    """Over C, H, W."""
    return x.flatten(-3).sum(-1)


def _bounded(log_scale: Tensor) -> Tensor:
    """Above LEAST_LOG_SCALE, with a gradient everywhere; x itself far above."""
    return LEAST_LOG_SCALE + F.softplus(log_scale - LEAST_LOG_SCALE)


def _bin(x: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bin of x in units of the scale from the mean: its ends, and its width."""
    precision = (-log_scale).exp()
    return (x - HALF_LEVEL - mean) * precision, (x + HALF_LEVEL - mean) * precision, 2 * HALF_LEVEL * precision


def _open_ends(x: Tensor, first: Tensor, between: Tensor, last: Tensor) -> Tensor:
    """Level 0's, the inner levels' and level 255's values, each where x is at that level."""
    return torch.where(x < HALF_LEVEL - 1, first, torch.where(x > 1 - HALF_LEVEL, last, between))


def _log_logistic_mass(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log [sigmoid(b) - sigmoid(a)] = log sigmoid(b) + log sigmoid(-a) + log(1 - e^-(b - a)), which never cancels."""
    a, b, width = _bin(x, mean, log_scale)
    first, last = F.logsigmoid(b), F.logsigmoid(-a)
    return _open_ends(x, first, first + last + (-torch.expm1(-width)).log(), last)


def _log_normal_mass(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log [Phi(b) - Phi(a)], of the mirrored bin where that is the one in the lower tail."""
    a, b, _ = _bin(x, mean, log_scale)
    below = torch.minimum(a, -b), torch.minimum(b, -a)  # both ends mirrored if a + b > 0
    low, high = (torch.special.log_ndtr(end) for end in below)
    between = high + (-torch.expm1((low - high).clamp(max=-1e-20))).log()  # not -inf where the bin vanishes
    return _open_ends(x, torch.special.log_ndtr(b), between, torch.special.log_ndtr(-a))
