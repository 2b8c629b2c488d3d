"""Flow matching of single tokens, given those before them."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..models.conditions import Condition
from ..utils.arguments import checked
from ..utils.ranges import COUNT, PROBABILITY, check_range
from .base import Loss, Objective, Step, at_least_float32, loss_with_logs
from .conditioning import condition_kwargs, condition_of


class TokenFlow(Objective):
    """Learn the velocity of each token from noise to data, given the tokens before it and a condition c (MAR, Li et al.
    2024, https://arxiv.org/abs/2406.11838, by flow matching, Lipman et al. 2023, https://arxiv.org/abs/2210.02747):

        L = E |v(x_t, t; earlier tokens, c) - (noise - x)|^2,    x_t = (1 - t) x + t noise

    with a time t for each token, uniform in [0, 1].

    Args:
        num_tokens: number N of tokens of an item.
        random_order: whether each item has an order of its own, drawn in each step.
        num_classes: a short form of condition=ClassCondition(num_classes); None: unconditional, unless `condition` is
            given.
        label_dropout: probability in [0, 1] of training on the null condition, for guidance.
        condition: c, the network's inputs besides the sample, see `hfgen.models.conditions`.
        player: name of the network, which is called as `ContinuousTransformerModel`.

    Raises:
        ValueError: a number out of range, or both `num_classes` and `condition`.
    """

    call = ("noise", "time")

    @checked
    def __init__(
        self,
        num_tokens: int,
        random_order: bool = False,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        condition: Condition | None = None,
        player: str = "model",
    ):
        check_range("label_dropout", label_dropout, PROBABILITY)
        check_range("num_tokens", num_tokens, COUNT)
        self.num_tokens, self.random_order, self.label_dropout = num_tokens, random_order, label_dropout
        self.condition, self.players = condition_of(num_classes, condition), (player,)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the mean squared error of the velocities for "x" (B, C, H, W), and the condition."""
        x = batch["x"]
        kwargs = condition_kwargs(self.condition, self.label_dropout, batch, networks, step)
        noise, time = step.randn("noise", x), self.numbers("time", x, step).to(x.dtype)
        order = self.numbers("order", x, step).argsort(1) if self.random_order else None
        output = networks[player](x, noise, time, **kwargs, order=order)
        error = at_least_float32(output.sample) - at_least_float32(output.target)
        return loss_with_logs(error.square().mean(), {})

    def numbers(self, stream: str, x: Tensor, step: Step) -> Tensor:
        """Return a uniform number for each token of items x (B, ...): (B, N)."""
        return step.rand(stream, len(x) * self.num_tokens).view(len(x), -1).to(x.device)
