"""Maximum likelihood of models with an exact density or probability: normalizing flows, and autoregressive models."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ..distributions.densities import dequantised, flow_log_prob, level_bits, symbol_bits
from ..distributions.likelihoods import HALF_LEVEL, Bernoulli
from ..models.conditions import Condition
from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, PROBABILITY, check_range
from .base import Loss, Objective, Step, choose, loss_with_logs
from .conditioning import condition_kwargs, condition_of

Dequantisation = Literal["uniform", "variational", "gaussian", "none", "binary", "symbols"]


class MaximumLikelihood(Objective):
    """Maximise the log-probability of items, or the log-density of items with noise:

        L = -E log p(y | c) / d,    y = x + noise

    for items x of any shape with d dimensions and a condition c, such as the class. log p is exact: for a normalizing
    flow f it is log N(f(y); 0, I) + log|det df/dy| (Dinh et al. 2017, https://arxiv.org/abs/1605.08803), and an
    autoregressive model states it.

    Without noise, the density of 8-bit data can grow without bound at the levels. `uniform` noise fills the bin of each
    level, for x in [-1, 1]. The loss is then an upper bound on the bits of the levels, and the logs hold it as
    "bits_per_dim" (Theis et al. 2016, https://arxiv.org/abs/1511.01844). With `variational` dequantisation the network
    itself fills the bins, whose width it is told as its argument `bin_width`, see `AugmentedFlowModel`. `gaussian`
    noise is that of TarFlow (Zhai et al. 2024, https://arxiv.org/abs/2412.06329): samples are denoised, and the logs
    hold "log_prob" (in nats) alone.

    A model of symbols needs no noise, and its bits are exact. `symbols` are the levels of images in [-1, 1], or whole
    numbers, such as codes. `binary` pixels are black or white, drawn anew in each step: white with probability
    (x + 1) / 2 (Salakhutdinov & Murray 2008).

    Args:
        dequantisation: the noise: `uniform`, `variational`, `gaussian`, or `none` for data that are real numbers;
            `binary` or `symbols` for a model of symbols.
        noise_level: standard deviation of `gaussian`, in units of x, above 0.
        num_classes: a short form of condition=ClassCondition(num_classes); None: unconditional, unless `condition` is
            given.
        label_dropout: probability in [0, 1] of training on the null condition, for guidance.
        condition: c, the network's inputs besides the sample, see `hfgen.models.conditions`.
        log_prob: the network's output -> log p(y) (B,) in nats; by default that of a normalizing flow.
        noise_shape: shape of the standard normal noise that the network takes for each item, as its argument `noise`:
            `flow.noise_shape` of a flow whose log-density is an unbiased estimate or a bound. None: it takes none.
        player: name of the network.

    Raises:
        ValueError: an unknown dequantisation, a number out of range, both `num_classes` and `condition`, or
            `variational` without `noise_shape`.
    """

    call = ()

    @checked
    def __init__(
        self,
        dequantisation: Dequantisation = "uniform",
        noise_level: float = 0.05,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        condition: Condition | None = None,
        log_prob: Callable[[Any], Tensor] = flow_log_prob,
        noise_shape: tuple[int, ...] | None = None,
        player: str = "flow",
    ):
        choose("dequantisation", dequantisation, _KINDS)
        if dequantisation == "variational" and noise_shape is None:
            raise ValueError("dequantisation='variational' is noise of the network: give noise_shape=flow.noise_shape.")
        check_range("noise_level", noise_level, ABOVE_0)
        check_range("label_dropout", label_dropout, PROBABILITY)
        self.dequantisation, self.noise_level, self.label_dropout = dequantisation, noise_level, label_dropout
        self.condition = condition_of(num_classes, condition)
        self.log_prob, self.noise_shape, self.players = log_prob, noise_shape, (player,)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the mean of -log p(y) / d for "x" (B, *item), and the condition."""
        x = batch["x"]
        if not x.is_floating_point() and self.dequantisation != "symbols":
            raise ValueError(f"x holds {x.dtype}, and a density is one of real numbers. Give x.float().")
        if self.dequantisation == "uniform" and step.number == 0:
            _warn_of_other_data(x)
        y, dimensions = self.with_noise(x, step), math.prod(x.shape[1:])
        kwargs = condition_kwargs(self.condition, self.label_dropout, batch, networks, step)
        if self.noise_shape is not None:
            kwargs["noise"] = step.randn("noise of the network", y.new_empty(len(y), *self.noise_shape))
        if self.dequantisation == "variational":
            kwargs["bin_width"] = 2 * HALF_LEVEL
        log_prob, bits = self.log_prob(networks[player](y, **kwargs)).mean(), _KINDS[self.dequantisation].bits
        logs = {} if bits is None else {"bits_per_dim": bits(log_prob, dimensions)}
        return loss_with_logs(-log_prob / dimensions, {"log_prob": log_prob, **logs})

    def with_noise(self, x: Tensor, step: Step) -> Tensor:
        """Return y (B, *item) for items x (B, *item)."""
        return _KINDS[self.dequantisation].noisy(x, step, self.noise_level)


def _warn_of_other_data(x: Tensor) -> None:
    """Warn of data that are no levels in [-1, 1], whose bits mean nothing."""
    low, high = float(x.min()), float(x.max())
    if max(-low, high) > 1 + 1e-3:
        logging.getLogger(__name__).warning(
            "x has values from %.3g to %.3g. dequantisation='uniform' adds the noise of 8-bit levels in [-1, 1], and "
            "bits_per_dim are theirs. For real numbers give dequantisation='none', or 'gaussian'.",
            *(low, high),
        )


class _Kind(NamedTuple):
    """A row of the table of dequantisations.

    Attributes:
        noisy: (x, step, noise level) -> y.
        bits: (log p(y) in nats, dimensions) -> bits per dimension of the levels; None: there are no levels.
    """

    noisy: Callable[[Tensor, Step, float], Tensor]
    bits: Callable[[Tensor, int], Tensor] | None = None


_KINDS = {
    "uniform": _Kind(lambda x, step, level: dequantised(x, step.uniform("dequantisation", x)), level_bits),
    "variational": _Kind(lambda x, step, level: x, level_bits),
    "gaussian": _Kind(lambda x, step, level: x + level * step.randn("noise", x)),
    "none": _Kind(lambda x, step, level: x),
    "binary": _Kind(lambda x, step, level: Bernoulli().prepare(x, lambda like: step.uniform("binarize", like))),
    "symbols": _Kind(lambda x, step, level: x, symbol_bits),
}
"""Dequantisation -> what it does."""
