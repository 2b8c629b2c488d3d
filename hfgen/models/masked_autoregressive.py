"""Autoregressive models without a transformer: FVSBN, MADE, NADE and RNADE."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..utils.arguments import checked
from .conditionals import AutoregressiveOutput, Categorical, GaussianMixture, require_finite_params, symbols_of
from .layers import check_class_labels, guided_outputs, real


class BeliefNetwork(nn.Module):
    """Parameters h_i = b_i + sum_(j < i) alpha_ij x_j: a fully visible sigmoid belief network (FVSBN, Frey et al. 1996,
    https://papers.nips.cc/paper/1153). It has P (d + d (d - 1) / 2) parameters.

    Args:
        size: number d of numbers in an item.
        params: number P of parameters of each number.
    """

    def __init__(self, size: int, params: int):
        super().__init__()
        self.size, self.shift_size = size, size * params
        self.weight = nn.Parameter(torch.zeros(params, size * (size - 1) // 2))  # alpha_10, alpha_20, alpha_21, ...
        self.bias = nn.Parameter(torch.zeros(size, params))

    def forward(self, x: Tensor, shift: Tensor | None, ranks: Tensor) -> Tensor:
        """Return h (B, d, P) for numbers x (B, d); `shift` (B, d P) is added."""
        row, column = torch.tril_indices(self.size, self.size, -1, device=x.device)
        matrix = self.weight.new_zeros(len(self.weight), self.size**2)
        matrix = matrix.index_copy(1, row * self.size + column, self.weight).unflatten(1, (self.size, -1))  # (P, d, d)
        params = torch.einsum("pij,bj->bip", matrix, x.to(matrix)) + self.bias
        return params if shift is None else params + shift.view(params.shape)

    def one_by_one(self, x: Tensor, shift: Tensor | None, ranks: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each position i with h_i (B, P), in order, while the caller fills x (B, d): O(d) a number."""
        for i in range(self.size):
            first = i * (i - 1) // 2
            params = x[:, :i].to(self.weight) @ self.weight[:, first : first + i].T + self.bias[i]
            yield i, params if shift is None else params + shift.unflatten(1, (self.size, -1))[:, i]


class MaskedPerceptron(nn.Module):
    """A perceptron whose weights are masked, so that h_i depends on the numbers before it in an order (MADE, Germain et
    al. 2015, https://arxiv.org/abs/1502.03509). Hidden unit k of each layer has the degree m_k = k mod (d - 1). It sees
    inputs whose position in the order is at most m_k, and units of smaller or equal degree; h_i sees units whose degree
    is smaller than its position.

    Args:
        size, params: as those of `BeliefNetwork`.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
    """

    def __init__(self, size: int, params: int, hidden: int, layers: int):
        super().__init__()
        self.size, self.shift_size = size, hidden
        self.hidden = nn.ModuleList(nn.Linear(hidden if i else size, hidden) for i in range(layers))
        self.output = nn.Linear(hidden, size * params)

    def forward(self, x: Tensor, shift: Tensor | None, ranks: Tensor) -> Tensor:
        """Return h (B, d, P) for numbers x (B, d) whose positions in the order are `ranks` (d,); `shift` (B, hidden) is
        added to the first hidden layer."""
        units = torch.arange(self.shift_size, device=x.device) % max(1, self.size - 1)  # m (hidden,)
        seen = ranks
        for index, layer in enumerate(self.hidden):
            x = F.linear(x.to(layer.weight.dtype), layer.weight * (seen <= units[:, None]), layer.bias)
            x = F.relu(x if index or shift is None else x + shift)
            seen = units
        weight = self.output.weight.unflatten(0, (self.size, -1)) * (units < ranks[:, None])[:, None]
        return F.linear(x, weight.flatten(0, 1), self.output.bias).unflatten(1, (self.size, -1))

    def one_by_one(self, x: Tensor, shift: Tensor | None, ranks: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each position i with h_i (B, P), in the order, while the caller fills x (B, d): a pass a number."""
        for i in ranks.argsort().tolist():
            yield i, self(x, shift, ranks)[:, i]


class SharedEstimator(nn.Module):
    """Parameters h_i = b_i + V_i sigmoid(c + sum_(j < i) W_j x_j): the hidden layers of all numbers share W (NADE,
    Larochelle & Murray 2011, https://proceedings.mlr.press/v15/larochelle11a.html). The sums of a number are those of
    the number before plus one more term. So all of them together take O(d hidden) and not O(d^2 hidden). There are
    d hidden + hidden + P d (hidden + 1) parameters.

    Args:
        size, params: as those of `BeliefNetwork`.
        hidden: width of the hidden layer.
    """

    def __init__(self, size: int, params: int, hidden: int):
        super().__init__()
        self.size, self.shift_size = size, hidden
        self.input = nn.Parameter(torch.randn(size, hidden) / math.sqrt(size))  # W
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))  # c
        self.output = nn.Parameter(torch.randn(size, params, hidden) / math.sqrt(hidden))  # V
        self.bias = nn.Parameter(torch.zeros(size, params))  # b

    def forward(self, x: Tensor, shift: Tensor | None, ranks: Tensor) -> Tensor:
        """Return h (B, d, P) for numbers x (B, d); `shift` (B, hidden) is added to c."""
        terms = x[:, :-1, None].to(self.input) * self.input[:-1]  # (B, d - 1, hidden)
        first = self._start(x, shift)[:, None]
        sums = torch.cat([first, terms], 1).cumsum(1)
        return torch.einsum("bdh,dph->bdp", sums.sigmoid(), self.output) + self.bias

    def one_by_one(self, x: Tensor, shift: Tensor | None, ranks: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each position i with h_i (B, P), in order, while the caller fills x (B, d): O(hidden) a number."""
        sums = self._start(x, shift)
        for i in range(self.size):
            yield i, sums.sigmoid() @ self.output[i].T + self.bias[i]
            sums = sums + x[:, i, None].to(self.input) * self.input[i]

    def _start(self, x: Tensor, shift: Tensor | None) -> Tensor:
        bias = self.hidden_bias.expand(len(x), -1)
        return bias if shift is None else bias + shift


class MaskedAutoregressiveModel(ModelMixin, ConfigMixin):
    """An autoregressive model of items of d numbers x_i: each has a distribution whose parameters h_i are computed from
    the numbers before it,

        log p(x) = sum_i log p(x_i; h_i(x_0, ..., x_(i-1))).

    The numbers of an image follow row by row, and the channels of a pixel one after the other. Symbols enter as numbers
    from 0 to 1.

    Args:
        architecture: `fvsbn` (`BeliefNetwork`), `made` (`MaskedPerceptron`), or `nade` (`SharedEstimator`; of real
            numbers it is RNADE).
        sample_shape: shape of an item: (C, H, W), or any other, such as (d,).
        levels: number of values of a number of x; None: they are real numbers, of mixtures of normal distributions.
        hidden_size: width of hidden layers; `fvsbn` has none.
        num_layers: hidden layers of `made`; 1 for others.
        num_orders: number of orders of `made`: the first is that above, the others are random. In training each item of
            a batch has one of them. Otherwise p(x) is the mean of the probabilities under all of them.
        components: normal distributions in a mixture; 1 if there are levels.
        num_class_embeds: number of classes, including the one that means 'no class', the last one; None: unconditional.

    Raises:
        ValueError: an unknown architecture, a number out of range, or a setting that another one does not have.
    """

    @checked
    @register_to_config
    def __init__(
        self,
        architecture: str = "made",
        sample_shape: tuple[int, ...] = (1, 28, 28),
        levels: int | None = 2,
        hidden_size: int = 500,
        num_layers: int = 1,
        num_orders: int = 1,
        components: int = 1,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        size = math.prod(sample_shape)
        if architecture not in ("fvsbn", "made", "nade"):
            raise ValueError(f"{architecture=} is not known. Choose fvsbn, made or nade.")
        if min(hidden_size, num_layers, num_orders, components) < 1 or size < 2 or (levels or 2) < 2:
            raise ValueError(
                f"{hidden_size=}, {num_layers=}, {num_orders=} and {components=} must be at least 1, {levels=} and the "
                f"numbers in an item, here {size}, at least 2."
            )
        if architecture != "made" and (num_layers, num_orders) != (1, 1):
            raise ValueError(f"{num_layers=} and {num_orders=} are settings of made; {architecture} has 1 of each.")
        if levels is not None and components != 1:
            raise ValueError(f"{components=} is a setting of real numbers (levels=None), and {levels=}. Leave it out.")
        self.conditional = GaussianMixture(components) if levels is None else Categorical(levels, levels - 1)
        shape = size, self.conditional.free
        if architecture == "made":
            self.network = MaskedPerceptron(*shape, hidden_size, num_layers)
        else:
            self.network = BeliefNetwork(*shape) if architecture == "fvsbn" else SharedEstimator(*shape, hidden_size)
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds, self.network.shift_size)
        orders = [torch.randperm(size, generator=torch.Generator().manual_seed(k)) for k in range(1, num_orders)]
        self.register_buffer("ranks", torch.stack([torch.arange(size), *orders]))  # (orders, d)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of an item."""
        return tuple(self.config.sample_shape)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """The shape (d, 1) of the uniform numbers that `draw` makes one item of."""
        return (self.ranks.shape[1], 1)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        order: int | None = None,
        return_dict: bool = True,
    ) -> AutoregressiveOutput | tuple[Tensor, Tensor | None]:
        """Return log-probabilities (B,), and the parameters (B, d, 1, P) of each number.

        Args:
            sample (B, *item): items in [-1, 1], of which each number is rounded to the nearest of the levels; numbers
                of levels, int64; or any real numbers for a model of these.
            class_labels (B,): classes; None for a network without classes.
            order: the number of one order; None: all of them, see the class.
            return_dict: whether to return an AutoregressiveOutput instead of a tuple.

        Raises:
            ValueError: classes that the network needs or does not take.
        """
        check_class_labels(class_labels, self.config.num_class_embeds)
        values, count = self._flat(sample), len(self.ranks)
        shift = None if self.classes is None else self.classes(class_labels)
        if order is not None or count == 1:
            log_prob, params = self._log_prob(values, shift, order or 0)
        elif self.training:
            log_prob, params = self._in_turns(values, shift), None
        else:
            parts = [self._log_prob(values, shift, k)[0] for k in range(count)]
            log_prob, params = torch.logsumexp(torch.stack(parts), 0) - math.log(count), None
        return AutoregressiveOutput(log_prob, params) if return_dict else (log_prob, params)

    def tokens_above(self, row: int) -> int:
        """Return the number of numbers above a row of pixels."""
        channels, _, width = self.sample_shape
        return row * width * channels

    @torch.no_grad()
    def draw(
        self,
        uniform: Tensor,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        known: Tensor | None = None,
        num_known: int = 0,
    ) -> Tensor:
        """Draw items (B, *item), one number after the other: each is the quantile of a uniform one.

        With several orders, an item has one of them, chosen by its first uniform number; with known numbers the first.

        Args:
            uniform (B, d, 1): numbers in [0, 1).
            class_labels (B,): classes.
            guidance_scale: 1 is no guidance; above 1 sharpens towards the class. It needs the class that means 'no
                class', the network's last one.
            temperature: divides the log-odds, or multiplies standard deviations; 0: the most likely symbols.
            known (B, *item): items, as those of `forward`, whose first numbers are kept.
            num_known: how many.

        Returns:
            Numbers of the levels, int64, or real numbers.

        Raises:
            ValueError: classes that do not fit, guidance without classes, or parameters that are not finite.
        """
        check_class_labels(class_labels, self.config.num_class_embeds, guidance_scale)
        shift = None if self.classes is None else self.classes(class_labels)
        if guidance_scale != 1.0:
            free = self.classes(torch.full_like(class_labels, self.config.num_class_embeds - 1))
            shift = torch.stack([shift, free])  # (2, B, width)
        u, values, count = uniform[..., 0], self._flat(known) if num_known else None, len(self.ranks)
        chosen = torch.zeros_like(u[:, 0])
        if count > 1 and not num_known:
            chosen = u[:, 0] * count
            u = torch.cat([chosen.frac()[:, None], u[:, 1:]], 1)
        drawn = torch.zeros(u.shape, dtype=torch.long if self.config.levels else u.dtype, device=u.device)
        for k in range(count):
            rows = (chosen.long() == k).nonzero()[:, 0]
            if len(rows):
                own = None if shift is None else shift.index_select(-2, rows)
                first = None if values is None else values[rows, :num_known]
                drawn[rows] = self._drawn(u[rows], own, k, guidance_scale, temperature, first)
        return self._item(drawn)

    def _drawn(
        self, u: Tensor, shift: Tensor | None, order: int, scale: float, temperature: float, first: Tensor | None
    ) -> Tensor:
        """Return the numbers (B, d) of items in one order: the first ones, if any, then quantiles of u (B, d)."""
        copies, num_known = 1 if scale == 1.0 else 2, 0 if first is None else first.shape[1]
        shift = shift.flatten(0, 1) if copies == 2 else shift
        x = torch.zeros(copies * len(u), u.shape[1], dtype=u.dtype, device=u.device)
        drawn = torch.zeros_like(u, dtype=torch.long if self.config.levels else u.dtype)
        finite = torch.ones((), dtype=torch.bool, device=u.device)
        for i, params in self.network.one_by_one(x, shift, self.ranks[order]):
            finite = finite & params.isfinite().all()
            if i < num_known:
                drawn[:, i] = first[:, i]
            else:
                params = params if copies == 1 else guided_outputs(real(params), scale)
                drawn[:, i] = self.conditional.draw(params, u[:, i], temperature)
            x[:, i] = self._inputs(drawn[:, i]).repeat(copies)
        require_finite_params(finite)
        return drawn

    def _log_prob(self, values: Tensor, shift: Tensor | None, order: int) -> tuple[Tensor, Tensor]:
        """Return log p (B,) of numbers (B, d) in one order, and the parameters (B, d, 1, P) of each."""
        params = self.network(self._inputs(values), shift, self.ranks[order])
        return self.conditional.log_prob(params, values).sum(1), params.unsqueeze(2)

    def _in_turns(self, values: Tensor, shift: Tensor | None) -> Tensor:
        """Return log p (B,) of numbers (B, d), of which each item has the next order."""
        count = min(len(self.ranks), len(values))
        shifts = [None if shift is None else shift[k::count] for k in range(count)]
        parts = [self._log_prob(values[k::count], shifts[k], k)[0] for k in range(count)]
        places = torch.cat([torch.arange(len(values), device=values.device)[k::count] for k in range(count)])
        return torch.cat(parts)[places.argsort()]

    def _flat(self, sample: Tensor) -> Tensor:
        """Return the numbers (B, d) of items (B, *item): symbols int64, or real numbers."""
        values = sample if self.config.levels is None else symbols_of(sample, self.config.levels)
        return (values.permute(0, 2, 3, 1) if len(self.sample_shape) == 3 else values).flatten(1)

    def _item(self, values: Tensor) -> Tensor:
        """Return items (B, *item) of numbers (B, d)."""
        if len(self.sample_shape) != 3:
            return values.unflatten(1, self.sample_shape)
        channels, *sides = self.sample_shape
        return values.unflatten(1, (*sides, channels)).permute(0, 3, 1, 2)

    def _inputs(self, values: Tensor) -> Tensor:
        """Return numbers as the network takes them: symbols from 0 to 1, real ones as they are."""
        return values if self.config.levels is None else real(values.to(self.dtype)) / (self.config.levels - 1)
