"""Elementwise maps of normalizing flows: increasing functions y = f(x; h) of one number, whose parameters h a network
computes from other numbers.

All maps have bounded slopes, so that latents far from those of the data give finite samples. They compute in float32 or
float64, whatever the precision of the network.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.arguments import checked

MAX_LOG_SCALE = math.log(1000.0)
"""Bound of log-scales: no affine map or spline scales by more than 1000, or by less than 1/1000."""

MIXTURE_LOG_SCALES = (-9.0, 3.0)
"""Bounds of the log-scales of a mixture of logistic distributions."""

MIXTURE_FLOOR = 0.0002
"""Share of one more component of a mixture, with mean 0 and scale 1, which no parameter changes. So there is no gap
between components where the density is so small that the inverse is lost to rounding. It costs 0.0003 bits."""

MIXTURE_SPREAD = 1.0
"""Initial means of a mixture lie between minus and plus this number, so that its components differ."""

LARGEST_LOGIT = 40.0
"""Beyond this logit, which has a probability of 4e-18, mixtures map numbers to normal ones in a straight line."""

SAFE_LOGIT = 60.0
"""Up to this logit the inverse of a mixture is found by masses; beyond, by their logarithms, which take longer."""

SPLINE_BOUND = 5.0
"""A spline is the identity outside [-5, 5]."""

ITERATIONS = 60
"""Steps of the search for the inverse of a mixture, at most: Newton's, or halvings of the interval that holds it."""

LOG_ROOT_TWO_PI = math.log(2 * math.pi) / 2


class ElementwiseMap(ABC):
    """Base of elementwise maps.

    Attributes:
        size: number of parameters P of each map.
    """

    size: int

    @abstractmethod
    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log dy/dx, (*shape) each, for numbers x (*shape) and parameters (*shape, P)."""

    @abstractmethod
    def inverse(self, y: Tensor, params: Tensor) -> Tensor:
        """Return x (*shape) for y (*shape) and parameters (*shape, P)."""

    def initial(self) -> Tensor:
        """Return the parameters (P,) that a network computes before it is trained."""
        return torch.zeros(self.size)

    def fitted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return parameters (D, P) that fit each column of numbers x (N, D), and the size of a small change of each
        parameter, (D, P). A map that does not fit itself returns `initial` and ones."""
        initial = self.initial().to(x).expand(x.shape[1], -1)
        return initial, torch.ones_like(initial)


def bounded(raw: Tensor, bound: float) -> Tensor:
    """Bound numbers smoothly to (-bound, bound) by raw / (1 + |raw| / bound), which has slope 1 at 0."""
    return raw / (1 + raw.abs() / bound)


class AdditiveMap(ElementwiseMap):
    """y = x + b, whose log-slope is 0 (NICE, Dinh et al. 2015, https://arxiv.org/abs/1410.8516)."""

    size = 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x + params[..., 0], torch.zeros_like(x)

    def inverse(self, y: Tensor, params: Tensor) -> Tensor:
        return y - params[..., 0]


class AffineMap(ElementwiseMap):
    """y = exp(a) x + b (RealNVP, Dinh et al. 2017, https://arxiv.org/abs/1605.08803).

    The parameters are b and a before its bound, `MAX_LOG_SCALE`.
    """

    size = 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = bounded(params[..., 1], MAX_LOG_SCALE)
        return x * log_scale.exp() + params[..., 0], log_scale

    def inverse(self, y: Tensor, params: Tensor) -> Tensor:
        return (y - params[..., 0]) * (-bounded(params[..., 1], MAX_LOG_SCALE)).exp()


class LogisticMixtureMap(ElementwiseMap):
    """y = Phi^-1( sum_k w_k sigmoid((x - m_k) / s_k) ), the map of a mixture of logistic distributions to N(0, 1).

    If numbers x have the density of the mixture, then y is normal; with a normal base density, a single such map is the
    mixture itself. Flow++ (Ho et al. 2019, https://arxiv.org/abs/1902.00275) has the mixture's CDF with a logit in
    place of Phi^-1. The parameters are K logits of the weights w, K means m, and K log-scales before their bounds,
    `MIXTURE_LOG_SCALES`. One more component is fixed, see `MIXTURE_FLOOR`. The inverse is found by Newton's method
    between the smallest and the largest quantile of a component, which enclose that of the mixture; the interval is
    halved where Newton's steps do not halve.

    Args:
        components: K.
    """

    def __init__(self, components: int):
        self.components, self.size = components, 3 * components

    def fitted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return parameters with components at quantiles of the numbers, as wide as the gaps between these. A level
        that most pixels have gets several narrow ones. The unit of a mean is the width of its component."""
        count = self.components
        means = x.quantile((torch.arange(count, device=x.device, dtype=x.dtype) + 0.5) / count, 0).T  # (D, K)
        gaps = means.diff(dim=1)
        gaps = torch.cat([gaps[:, :1], (gaps[:, 1:] + gaps[:, :-1]) / 2, gaps[:, -1:]], 1)  # on both sides
        least, largest = MIXTURE_LOG_SCALES
        log_scales = (gaps / 2).log().clamp(least + 0.1, largest - 0.1)
        offset, rate = _log_scale_line()
        raw = (((log_scales - least) / (largest - least)).logit() - offset) / rate
        ones = torch.ones_like(raw)
        return torch.cat([0 * ones, means, raw], 1), torch.cat([ones, log_scales.exp(), ones], 1)

    def initial(self) -> Tensor:
        means = torch.linspace(-MIXTURE_SPREAD, MIXTURE_SPREAD, self.components)
        return torch.cat([torch.zeros(self.components), means, torch.zeros(self.components)])

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_cdf, log_rest, log_density = self._masses(x, *self._split(params))
        y, log_slope = normal_of_logit(log_cdf - log_rest)
        return y, log_density - log_cdf - log_rest + log_slope

    def inverse(self, y: Tensor, params: Tensor) -> Tensor:
        log_weights, means, log_scales = (part.flatten(0, -2) for part in self._split(params))  # (N, K + 1)
        goal, eps = logit_of_normal(y).flatten(), torch.finfo(y.dtype).eps
        evaluate = self._error if goal.abs().max() < SAFE_LOGIT else self._far_error
        quantiles = means + log_scales.exp() * goal.unsqueeze(-1)
        low, high = quantiles.amin(-1), quantiles.amax(-1)
        x, step, rows = (low + high) / 2, high - low, torch.arange(len(goal), device=y.device)
        result, mixture = x.clone(), (log_weights, means, log_scales)
        for _ in range(ITERATIONS):
            error, rate = evaluate(x, goal, *mixture)
            low, high = torch.where(error > 0, low, x), torch.where(error > 0, x, high)
            going = (error.abs() > 8 * eps * (1 + goal.abs())) & (high - low > eps * (1 + x.abs()))
            newton = x - error / rate
            faster = (newton >= low) & (newton <= high) & ((newton - x).abs() <= step / 2)
            before, x = x, torch.where(going, torch.where(faster, newton, (low + high) / 2), x)
            step = (x - before).abs()
            result[rows] = x
            if 2 * (count := int(going.sum())) < len(rows):  # the others are found
                if count == 0:
                    break
                x, step, rows, goal, low, high = (part[going] for part in (x, step, rows, goal, low, high))
                mixture = tuple(part[going] for part in mixture)
        return result.view_as(y)

    @staticmethod
    def _error(
        x: Tensor, goal: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the logit of P(<= x) less the goal, and its slope. Masses below exp(-80) count as 0."""
        distance = (x.unsqueeze(-1) - means) * (-log_scales).exp()
        tail = (-distance.abs()).exp()
        near, weights = 1 / (1 + tail), log_weights.exp()
        far, above = tail * near, distance > 0
        below, rest = ((weights * torch.where(side, near, far)).sum(-1) for side in (above, ~above))
        density = (weights * near * far * (-log_scales).exp()).sum(-1)
        return below.log() - rest.log() - goal, density / (below * rest)

    @classmethod
    def _far_error(cls, x: Tensor, goal: Tensor, *mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `_error` does, for masses of any size."""
        log_cdf, log_rest, log_density = cls._masses(x, *mixture)
        return log_cdf - log_rest - goal, (log_density - log_cdf - log_rest).exp()

    @staticmethod
    def _masses(x: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log P(<= x), log P(> x) and the log-density of the mixture at x (*shape)."""
        distance = (x.unsqueeze(-1) - means) * (-log_scales).exp()  # (*shape, K + 1)
        below = F.logsigmoid(distance)
        above = below - distance  # logsigmoid(-distance)
        log_density = (log_weights + below + above - log_scales).logsumexp(-1)
        return (log_weights + below).logsumexp(-1), (log_weights + above).logsumexp(-1), log_density

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-weights, means and log-scales, (*shape, K + 1) each."""
        logits, means, raw = params.split(self.components, -1)
        (least, largest), (offset, rate) = MIXTURE_LOG_SCALES, _log_scale_line()
        log_scales = least + (largest - least) * torch.sigmoid(rate * raw + offset)
        log_weights = F.pad(logits.log_softmax(-1) + math.log1p(-MIXTURE_FLOOR), (0, 1), value=math.log(MIXTURE_FLOOR))
        return log_weights, F.pad(means, (0, 1)), F.pad(log_scales, (0, 1))


def _log_scale_line() -> tuple[float, float]:
    """Return offset and rate of the logits of log-scales: raw parameters of 0 are log-scales of 0, with slope 1."""
    least, largest = MIXTURE_LOG_SCALES
    share = -least / (largest - least)
    return math.log(share / (1 - share)), 1 / ((largest - least) * share * (1 - share))


class SplineMap(ElementwiseMap):
    """A rational-quadratic spline from [-5, 5] to itself, and the identity outside (Durkan et al. 2019,
    https://arxiv.org/abs/1906.04032).

    The parameters are the logits of K widths and of K heights of bins, and K - 1 log-slopes at the knots between bins,
    before their bounds: widths and heights differ by a factor of at most 1000, as slopes do from 1.

    Args:
        bins: K.
    """

    def __init__(self, bins: int):
        self.bins, self.size = bins, 3 * bins - 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        knots = self._knots(params)
        inside = (x > -SPLINE_BOUND) & (x < SPLINE_BOUND)
        left, width, bottom, height, first, last = self._bin(knots, torch.where(inside, x, 0.0), 0)
        share = torch.where(inside, (x - left) / width, 0.5)  # in [0, 1]
        rest, steepness = share * (1 - share), height / width
        denominator = steepness + (first + last - 2 * steepness) * rest
        y = bottom + height * (steepness * share.square() + first * rest) / denominator
        slope = last * share.square() + 2 * steepness * rest + first * (1 - share).square()
        log_slope = 2 * steepness.log() + slope.log() - 2 * denominator.log()
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)

    def inverse(self, y: Tensor, params: Tensor) -> Tensor:
        knots = self._knots(params)
        inside = (y > -SPLINE_BOUND) & (y < SPLINE_BOUND)
        left, width, bottom, height, first, last = self._bin(knots, torch.where(inside, y, 0.0), 1)
        rise, steepness = torch.where(inside, y - bottom, 0.0), height / width
        bend = rise * (first + last - 2 * steepness)
        a, b, c = height * (steepness - first) + bend, height * first - bend, -steepness * rise
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        return torch.where(inside, left + width * 2 * c / (-b - root), y)

    def _knots(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions x and y of the knots, and slopes there, (*shape, K + 1) each."""
        widths, heights, slopes = params.split((self.bins, self.bins, self.bins - 1), -1)
        places = []
        for raw in (widths, heights):
            shares = bounded(raw, MAX_LOG_SCALE / 2).softmax(-1)
            places.append(SPLINE_BOUND * (2 * F.pad(shares.cumsum(-1)[..., :-1], (1, 0)) - 1))
        ends = [F.pad(place, (0, 1), value=SPLINE_BOUND) for place in places]
        return *ends, F.pad(bounded(slopes, MAX_LOG_SCALE), (1, 1)).exp()

    @staticmethod
    def _bin(knots: tuple[Tensor, Tensor, Tensor], value: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Return left, width, bottom, height and the slopes at both ends of the bin that holds a value, (*shape) each.

        `axis` is 0 for a value x, and 1 for a value y.
        """
        inner = knots[axis][..., 1:-1]
        index = (inner <= value.unsqueeze(-1)).sum(-1, keepdim=True)  # (*shape, 1)
        left, bottom, first = (knot.gather(-1, index).squeeze(-1) for knot in knots)
        right, top, last = (knot.gather(-1, index + 1).squeeze(-1) for knot in knots)
        return left, right - left, bottom, top - bottom, first, last


@checked
def build_elementwise(name: str, components: int) -> ElementwiseMap:
    """Build the elementwise map of this name.

    Args:
        name: `additive`, `affine`, `logistic_mixture` or `spline`.
        components: logistic distributions of a mixture, or bins of a spline; at least 2.

    Raises:
        ValueError: an unknown name, or too few components.
    """
    builders = {
        "additive": lambda: AdditiveMap(),
        "affine": lambda: AffineMap(),
        "logistic_mixture": lambda: LogisticMixtureMap(components),
        "spline": lambda: SplineMap(components),
    }
    if name not in builders:
        raise ValueError(f"elementwise={name!r} is not known. Choose one of: {', '.join(builders)}.")
    if components < 2:
        raise ValueError(f"{components=} must be at least 2.")
    return builders[name]()


def normal_of_logit(logit: Tensor) -> tuple[Tensor, Tensor]:
    """Return y = Phi^-1(sigmoid(l)) and log dy/dl, (*shape) each, for logits l (*shape) up to `LARGEST_LOGIT`.

    Beyond, y goes on in a straight line with the same slope. So the inverse grows linearly and not as y^2, which over
    many layers would overflow. The lower tail is computed, where probabilities are exact, and mirrored.
    """
    size = logit.abs()
    inner = size.clamp(max=LARGEST_LOGIT)
    y = -torch.special.ndtri(torch.sigmoid(-inner))
    log_slope = F.logsigmoid(inner) + F.logsigmoid(-inner) + y.square() / 2 + LOG_ROOT_TWO_PI
    return torch.copysign(y + (size - inner) * log_slope.exp(), logit), log_slope


def logit_of_normal(y: Tensor) -> Tensor:
    """Return the logit l (*shape) for y (*shape): the inverse of `normal_of_logit`."""
    edge, log_slope = normal_of_logit(y.new_tensor(LARGEST_LOGIT))
    inner = y.clamp(-edge, edge)
    logit = torch.special.log_ndtr(inner) - torch.special.log_ndtr(-inner)
    return logit + (y - inner) * (-log_slope).exp()
