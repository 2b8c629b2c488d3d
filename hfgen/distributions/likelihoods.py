"""Likelihoods p(x | z) of items: the distribution that a decoder's output describes. `LIKELIHOODS` lists them by name.

**Shapes.** Items x are (*batch, C, ...) and lie in [-1, 1]. The first dimension of an item is its channels, whatever
follows: vectors (D,), sequences (C, T), images (C, H, W). Parameters are (*batch, channels(C), ...): channels first as
well, with the same dimensions after them. `batch_ndim` is the number of batch dimensions, 1 by default: x (B, C, H, W)
and K decoded samples of each item, (B, K, channels, H, W), are compared as `log_prob(params, x.unsqueeze(1), 2)`. Batch
dimensions broadcast; items must fit exactly. A log-probability is summed over all dimensions of an item.

Sequences (T, D) and points (N, 3) have their channels last. Two likelihoods care: `gaussian_learned` splits the
channels into two halves, and `discretized_logistic_mixture` shares its weights among them. Transpose such items to
(D, T) and (3, N).

**8-bit levels.** Level k = 0, ..., 255 is x = k / 127.5 - 1, and its bin reaches half a level, 1 / 255, to either side.
The first and the last bin are open, so that the masses of the 256 levels sum to one.

Everything is computed in float32, or in float64 if the parameters are float64, whatever the network's precision.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.arguments import checked

HALF_LEVEL = 1 / 255
"""Half the distance between two 8-bit levels."""

MIN_LOG_SCALE = -6.0
"""Learned scales are at least e^-6, a third of a level. The density of a pixel that never changes stays bounded."""


def upcast(x: Tensor) -> Tensor:
    """Return x in float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def clamp_with_gradient(x: Tensor) -> Tensor:
    """Clamp x to [-1, 1] and pass a tenth of the gradient outside.

    A loss on the clamped images (of a discriminator, of perceptual features) can thus bring such a pixel back.
    """
    inside = x.clamp(-1, 1)
    if not x.requires_grad:
        return inside
    excess = x - inside
    return inside + 0.1 * (excess - excess.detach())


class Likelihood(ABC):
    """Base of the distributions p(x | z), given the decoder's output for z.

    Attributes:
        levels: number of values of one dimension of x. With 256 the likelihood models 8-bit data, and its bits per
            dimension are comparable with those of other models of such data; 2 means binary data.
    """

    levels = 256

    @abstractmethod
    def channels(self, item_channels: int) -> int:
        """Return the number of channels that the decoder needs for items of `item_channels` channels."""

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        """Compute log p(x | z) in nats, summed over each item.

        Args:
            params (*batch, channels, ...): the decoder's output.
            x (*batch, C, ...): the items.
            batch_ndim: number of batch dimensions of both; they broadcast.

        Returns:
            One number per item, (*batch).

        Raises:
            ValueError: the shapes do not fit.
        """

    @abstractmethod
    def mean(self, params: Tensor, batch_ndim: int = 1) -> Tensor:
        """Compute E[x | z], (*batch, C, ...), clamped to [-1, 1] by `clamp_with_gradient`, from params
        (*batch, channels, ...).

        Raises:
            ValueError: the parameters have a number of channels that no item needs.
        """

    @abstractmethod
    def log_mass(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        """Compute log P(the 8-bit levels of x | z) in nats, summed over each item. Shapes: those of `log_prob`.

        Raises:
            ValueError: the shapes do not fit, or the likelihood does not model 8-bit levels.
        """

    def prepare(self, x: Tensor, uniform: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the items that are modelled in place of the data x (B, ...). By default these are x.

        Args:
            x (B, ...): data in [-1, 1].
            uniform: draws numbers in [0, 1) of the shape of its argument.
        """
        return x

    def check(self, params: Tensor, x: Tensor, batch_ndim: int) -> None:
        """Refuse parameters and items whose shapes do not fit each other.

        Raises:
            ValueError: names both shapes, and the shape that the parameters should have.
        """
        shapes = f"params {tuple(params.shape)} and x {tuple(x.shape)} with batch_ndim={batch_ndim}"
        if batch_ndim < 0 or x.ndim <= batch_ndim:
            raise ValueError(f"{shapes}: x needs {batch_ndim} batch dimensions and at least one item dimension.")
        item = tuple(x.shape[batch_ndim:])
        expected = (self.channels(item[0]), *item[1:])
        if tuple(params.shape[batch_ndim:]) != expected:
            raise ValueError(
                f"{shapes}: items of shape {item} need parameters of shape {expected} after the batch dimensions."
            )
        sides = zip(params.shape[:batch_ndim], x.shape[:batch_ndim], strict=True)
        if any(a != b and 1 not in (a, b) for a, b in sides):
            raise ValueError(f"{shapes}: the batch dimensions do not broadcast.")


@checked
@dataclasses.dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent binary dimensions: x = 1 with probability sigmoid(l), else -1, where l is the decoder's output.

    Grey images are binarised anew each time they are used, to 1 with probability (x + 1) / 2 (Burda et al. 2016,
    https://arxiv.org/abs/1509.00519, after Salakhutdinov & Murray 2008). `log_prob` of a grey image is the mean over
    its binarisations.
    """

    levels = 2

    def channels(self, item_channels: int) -> int:
        return item_channels

    def log_prob(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        self.check(params, x, batch_ndim)
        logits = upcast(params)
        return _item_sum(torch.addcmul(F.logsigmoid(logits), x.to(logits) - 1, logits, value=0.5), batch_ndim)

    def mean(self, params: Tensor, batch_ndim: int = 1) -> Tensor:
        return (upcast(params) / 2).tanh()

    def log_mass(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        names = ", ".join(name for name, build in LIKELIHOODS.items() if build(1.0, 1).levels == 256)
        raise ValueError(
            "likelihood='bernoulli' models binary pixels, not 8-bit levels. For bits per dimension train with one of: "
            f"{names}."
        )

    def prepare(self, x: Tensor, uniform: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x (B, ...) made binary: 1 where u < (x + 1) / 2 for u = `uniform(x)`, else -1."""
        return torch.where(uniform(x).mul_(2).sub_(1) < x, 1.0, -1.0).to(x.dtype)


@checked
@dataclasses.dataclass(frozen=True)
class Gaussian(Likelihood):
    """Independent dimensions N(mu, sigma^2), a density. mu is the decoder's output; `sigma` is fixed, in units of x."""

    sigma: float

    def channels(self, item_channels: int) -> int:
        return item_channels

    def log_prob(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        self.check(params, x, batch_ndim)
        mean, dimensions = upcast(params), math.prod(x.shape[batch_ndim:])
        constant = math.log(self.sigma) + math.log(2 * math.pi) / 2
        return _item_sum((x.to(mean) - mean).square(), batch_ndim) / (-2 * self.sigma**2) - dimensions * constant

    def mean(self, params: Tensor, batch_ndim: int = 1) -> Tensor:
        return clamp_with_gradient(upcast(params))

    def log_mass(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        self.check(params, x, batch_ndim)
        mean = upcast(params)
        return _item_sum(_log_normal_mass(x.to(mean), mean, mean.new_tensor(math.log(self.sigma))), batch_ndim)


@checked
@dataclasses.dataclass(frozen=True)
class LearnedGaussian(Likelihood):
    """Independent dimensions N(mu, sigma^2), a density. The decoder's channels are C means, then C log-scales.

    log sigma has the smooth lower bound `MIN_LOG_SCALE` (Rybkin et al. 2021, https://arxiv.org/abs/2006.13202).
    """

    def channels(self, item_channels: int) -> int:
        return 2 * item_channels

    def log_prob(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        self.check(params, x, batch_ndim)
        mean, log_sigma = self._split(params, batch_ndim)
        deviation = (x.to(mean) - mean) * (-log_sigma).exp()
        return _item_sum(-deviation.square() / 2 - log_sigma - math.log(2 * math.pi) / 2, batch_ndim)

    def mean(self, params: Tensor, batch_ndim: int = 1) -> Tensor:
        return clamp_with_gradient(self._split(params, batch_ndim)[0])

    def log_mass(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        self.check(params, x, batch_ndim)
        mean, log_sigma = self._split(params, batch_ndim)
        return _item_sum(_log_normal_mass(x.to(mean), mean, log_sigma), batch_ndim)

    @staticmethod
    def _split(params: Tensor, batch_ndim: int) -> tuple[Tensor, Tensor]:
        """Split parameters (*batch, 2 C, ...) into means and log-scales (*batch, C, ...)."""
        _check_channels("gaussian_learned", params, batch_ndim, 0, 2)
        mean, log_sigma = upcast(params).chunk(2, batch_ndim)
        return mean, _bounded_log_scale(log_sigma)


@checked
@dataclasses.dataclass(frozen=True)
class DiscretizedLogisticMixture(Likelihood):
    """8-bit data: a mixture of `components` logistic distributions, each cut into the 256 bins,

        P(x | z) = sum_m w_m prod_c [ sigmoid((x_c + 1/255 - mu_mc) / s_mc) - sigmoid((x_c - 1/255 - mu_mc) / s_mc) ],

    at each position (a pixel of an image), independently of the other positions. The C channels of a position share the
    weights (PixelCNN++, Salimans et al. 2017, https://arxiv.org/abs/1701.05517, without its regression from channel to
    channel). The decoder's channels are the M logits of w, M C means and M C log-scales; log-scales have the smooth
    lower bound `MIN_LOG_SCALE`.
    """

    components: int

    def channels(self, item_channels: int) -> int:
        return self.components * (1 + 2 * item_channels)

    def log_prob(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        self.check(params, x, batch_ndim)
        log_weights, means, log_scales = self._split(params, batch_ndim)
        log_mass = _log_logistic_mass(x.to(means).unsqueeze(batch_ndim), means, log_scales)  # (*batch, M, C, ...)
        return _item_sum((log_weights + log_mass.sum(batch_ndim + 1)).logsumexp(batch_ndim), batch_ndim)

    def mean(self, params: Tensor, batch_ndim: int = 1) -> Tensor:
        log_weights, means, log_scales = self._split(params, batch_ndim)
        levels = _logistic_level_mean(means, log_scales)  # (*batch, M, C, ...)
        return clamp_with_gradient((log_weights.exp().unsqueeze(batch_ndim + 1) * levels).sum(batch_ndim))

    def log_mass(self, params: Tensor, x: Tensor, batch_ndim: int = 1) -> Tensor:
        return self.log_prob(params, x, batch_ndim)

    def _split(self, params: Tensor, batch_ndim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split parameters into log-weights (*batch, M, ...), and means and log-scales (*batch, M, C, ...)."""
        _check_channels("discretized_logistic_mixture", params, batch_ndim, self.components, 2 * self.components)
        logits, moments = upcast(params).tensor_split((self.components,), batch_ndim)
        means, log_scales = moments.unflatten(batch_ndim, (2, self.components, -1)).unbind(batch_ndim)
        return logits.log_softmax(batch_ndim), means, _bounded_log_scale(log_scales)


LIKELIHOODS: dict[str, Callable[[float, int], Likelihood]] = {
    "bernoulli": lambda sigma, components: Bernoulli(),
    "gaussian": lambda sigma, components: Gaussian(sigma),
    "gaussian_learned": lambda sigma, components: LearnedGaussian(),
    "discretized_logistic_mixture": lambda sigma, components: DiscretizedLogisticMixture(components),
}
"""Name -> function that builds the likelihood from a sigma and a number of components."""


@checked
def build_likelihood(name: str, sigma: float = 0.1, components: int = 5) -> Likelihood:
    """Build the likelihood of this name.

    Args:
        name: a key of `LIKELIHOODS`.
        sigma: standard deviation of `gaussian`, in units of [-1, 1].
        components: number of components of `discretized_logistic_mixture`.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood={name!r} is not known. Choose one of: {', '.join(LIKELIHOODS)}.")
    if not (0 < sigma < math.inf and components >= 1):
        raise ValueError(f"{sigma=} must be above 0 and finite, and {components=} at least 1.")
    return LIKELIHOODS[name](sigma, components)


def _item_sum(x: Tensor, batch_ndim: int) -> Tensor:
    """Sum (*batch, ...) over all dimensions after the batch dimensions: (*batch)."""
    return x.flatten(batch_ndim).sum(-1) if x.ndim > batch_ndim else x


def _check_channels(name: str, params: Tensor, batch_ndim: int, fixed: int, each: int) -> None:
    """Refuse parameters (*batch, channels, ...) unless channels = fixed + each C for a C of at least 1."""
    channels = params.shape[batch_ndim] if 0 <= batch_ndim < params.ndim else 0
    if channels <= fixed or (channels - fixed) % each:
        needs = f"{fixed} + {each} C" if fixed else f"{each} C"
        raise ValueError(
            f"params {tuple(params.shape)} with batch_ndim={batch_ndim} have {channels} channels; {name} needs "
            f"{needs} for items of C channels, channels first."
        )


def _bounded_log_scale(log_scale: Tensor) -> Tensor:
    """Bound log-scales smoothly from below by MIN_LOG_SCALE; the gradient is never 0, and large ones do not change."""
    return MIN_LOG_SCALE + F.softplus(log_scale - MIN_LOG_SCALE)


def _bin_edges(x: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edges of the bin of x, as signed distances from the mean in units of the scale, and its width."""
    precision = (-log_scale).exp()
    return (x - HALF_LEVEL - mean) * precision, (x + HALF_LEVEL - mean) * precision, 2 * HALF_LEVEL * precision


def _with_open_ends(x: Tensor, first: Tensor, inner: Tensor, last: Tensor) -> Tensor:
    """Select for each dimension of x the value for level 0, for the inner levels, or for level 255."""
    return torch.where(x < HALF_LEVEL - 1, first, torch.where(x > 1 - HALF_LEVEL, last, inner))


def _log_logistic_mass(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Compute log [sigmoid(b) - sigmoid(a)] without cancellation, for a bin from a to b:

    log sigmoid(b) + log sigmoid(-a) + log(1 - e^-(b - a)).
    """
    a, b, width = _bin_edges(x, mean, log_scale)
    first, last = F.logsigmoid(b), F.logsigmoid(-a)
    return _with_open_ends(x, first, first + last + (-torch.expm1(-width)).log(), last)


def _logistic_level_mean(mean: Tensor, log_scale: Tensor) -> Tensor:
    """Compute the mean of the 256 levels whose masses are those of `_log_logistic_mass`:

        sum_k x_k P(x_k) = -1 + w sum_k P(x > e_k) = -1 + w sum_k sigmoid((mean - e_k) / scale),

    for the 255 edges e_k between bins of width w. They are the midpoints of 255 intervals that fill [-1, 1]. So for
    scales of w or more the sum is the integral from -1 to 1, with two terms of Euler and Maclaurin's formula for
    midpoints. Its error is below 1e-7. Of smaller scales the 36 edges around the mean are summed; the others have
    sigmoids that differ from 0 or 1 by less than e^-17.
    """
    width = math.log(2 * HALF_LEVEL)
    total = _integral_over_edges(mean, (-log_scale.clamp(width, 60)).exp())
    narrow = log_scale < width
    if narrow.any():
        total = total.masked_scatter(narrow, _sum_over_edges(mean[narrow], log_scale[narrow]))
    return total - 1


def _integral_over_edges(mean: Tensor, precision: Tensor) -> Tensor:
    """Compute w sum_k sigmoid((mean - e_k) precision) for precisions of at most 1 / w.

    A mean above 0 is mirrored: the two softplus of a large one would cancel.
    """
    above = mean > 0
    mean = torch.where(above, -mean, mean)
    low, high = (mean + 1) * precision, (mean - 1) * precision
    few = torch.log1p(torch.expm1(2 * precision.clamp(max=1)) * torch.sigmoid(high))  # exact for very large scales
    integral = torch.where(precision < 1, few, F.softplus(low) - F.softplus(high)) / precision
    step = 2 * HALF_LEVEL * precision
    slopes = [z.sigmoid() * (-z).sigmoid() for z in (high, low)]
    first, third = (a - b for a, b in (slopes, [q * (1 - 6 * q) for q in slopes]))
    total = integral + 2 * HALF_LEVEL * (step / 24 * first - 7 * step**3 / 5760 * third)
    return torch.where(above, 2 - total, total)


def _sum_over_edges(mean: Tensor, log_scale: Tensor) -> Tensor:
    """Compute w sum_k sigmoid((mean - e_k) / scale) for scales of at most w, from the 36 edges around the mean."""
    width, precision = 2 * HALF_LEVEL, (-log_scale).exp()
    below = ((mean.detach() + 1) / width).clamp(0, 255).round()  # edges below the mean
    total = (below - 18).clamp(min=0)
    for offset in range(-17, 19):
        k = below + offset
        edge = (2 * k - 1) * HALF_LEVEL - 1
        total = total + torch.where((k >= 1) & (k <= 255), ((mean - edge) * precision).sigmoid(), 0.0)
    return width * total


def _log_normal_mass(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Compute log [Phi(b) - Phi(a)] for a bin from a to b.

    A bin in the upper tail is mirrored into the lower one, where differences are exact.
    """
    a, b, _ = _bin_edges(x, mean, log_scale)
    edges = torch.minimum(a, -b), torch.minimum(b, -a)  # both are mirrored if a + b > 0
    low, high = (torch.special.log_ndtr(edge) for edge in edges)
    inner = high + (-torch.expm1((low - high).clamp(max=-1e-20))).log()  # not -inf where the bin vanishes
    return _with_open_ends(x, torch.special.log_ndtr(b), inner, torch.special.log_ndtr(-a))
