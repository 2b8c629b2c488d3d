"""Contrastive divergence: the gradient of the log-likelihood of an energy, by samples of its own chains."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..distributions.chains import clipped_gradient, langevin_step
from ..utils.arguments import checked
from ..utils.ranges import ABOVE_0, AT_LEAST_0, COUNT, PROBABILITY, check_range
from .adversarial import uncompiled
from .base import Loss, Objective, Step, choose, loss_with_logs
from .conditioning import condition_kwargs, condition_of
from .denoising import real_items
from .equilibrium import energy_of, gradient_of
from .persistent_chains import PersistentChains

Start = Literal["persistent", "data", "noise"]


class Langevin:
    """The chain that draws negatives: K steps of Langevin dynamics with noise of the step's streams.

    Args:
        num_steps: K.
        step_size, temperature: h and T, see `langevin_step`.
        clip: largest root mean square of a gradient; None: any.
        bound: states are clamped to [-bound, bound]; None: anything.

    Raises:
        ValueError: a number out of range.
    """

    @checked
    def __init__(
        self, num_steps: int, step_size: float, temperature: float, clip: float | None, bound: float | None = None
    ):
        check_range("num_steps", num_steps, COUNT)
        check_range("step_size", step_size, ABOVE_0)
        check_range("temperature", temperature, AT_LEAST_0)
        for name, value in (("clip", clip), ("bound", bound)):
            if value is not None:
                check_range(name, value, ABOVE_0)
        self.num_steps, self.step_size, self.temperature, self.clip = num_steps, step_size, temperature, clip
        self.bound = bound

    @torch.no_grad()
    def run(self, network: nn.Module, x: Tensor, kwargs: Mapping[str, Tensor], step: Step, stream: str) -> Tensor:
        """Return the states (B, *item) after K steps from x, on the energy of a network."""
        for k in range(self.num_steps):
            gradient = clipped_gradient(gradient_of(network, x, kwargs), self.clip).to(x)
            noise = step.randn(f"{stream} {k}", x) if self.temperature else x
            x = langevin_step(x, gradient, noise, self.step_size, self.temperature)
            x = x if self.bound is None else x.clamp(-self.bound, self.bound)
        return x


class ContrastiveDivergence(Objective):
    """Maximise the likelihood of exp(-E(x) / T) / Z by the difference between data x and samples y of a chain:

        L = E e(x) - E e(y) + penalty E (e(x)^2 + e(y)^2),    e = E / d,

    whose first part has the gradient of -T log p(x) / d where y has the density of the model (Hinton 2002,
    https://doi.org/10.1162/089976602760128018). The chain makes K steps of Langevin dynamics (`chain`) from

    - `data`: the items of the batch, contrastive divergence (CD-K);
    - `noise`: standard normal numbers, the short chains of Nijkamp et al. 2019, https://arxiv.org/abs/1904.09770;
    - `persistent`: where earlier steps left chains (Tieleman 2008), with a share `restart` of them from noise (Du &
      Mordatch 2019, https://arxiv.org/abs/1903.08689). The chains are the objective's `state`.

    Energies diverge when chains don't follow: an energy of samples far above that of data. Against that stand the
    penalty, which keeps energies near zero, the chain's clipped gradients, and noise in the data, which limits how
    steep an energy must be. The logs hold "gap", E e(y) - E e(x): in a healthy training it stays near zero.

    The network, named `energy`, is called as network(x, **condition) for `energy` (B,), as `EnergyModel`.

    Args:
        chain: draws y.
        start: `persistent`, `data` or `noise`.
        chains: the states, for `persistent`.
        restart: share of persistent chains that begin anew in a step.
        penalty: weight of the squared energies.
        data_noise: standard deviation of noise in the data, in units of x.
        num_classes: classes that the network is told, and that each chain keeps; None: unconditional.
        label_dropout: share of items and chains with the null class.

    Raises:
        ValueError: an unknown start, a number out of range, or chains and start that do not go together.
    """

    players = ("energy",)
    differentiates_twice = True

    @checked
    def __init__(
        self,
        chain: Langevin,
        start: Start = "persistent",
        chains: PersistentChains | None = None,
        restart: float = 0.05,
        penalty: float = 0.1,
        data_noise: float = 0.03,
        num_classes: int | None = None,
        label_dropout: float = 0.1,
    ):
        choose("start", start, ("persistent", "data", "noise"))
        if (start == "persistent") != (chains is not None):
            raise ValueError(f"{start=} and chains={chains and type(chains).__name__}: persistent chains have a state.")
        for name, value in (("restart", restart), ("label_dropout", label_dropout)):
            check_range(name, value, PROBABILITY)
        for name, value in (("penalty", penalty), ("data_noise", data_noise)):
            check_range(name, value, AT_LEAST_0)
        self.chain, self.start, self.restart = chain, start, restart
        self.penalty, self.data_noise, self.label_dropout = penalty, data_noise, label_dropout
        self.condition = condition_of(num_classes, None)
        self.state = {} if chains is None else {"chains": chains}

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: Step) -> Loss:
        """Return the loss for "x" (B, *item), and the condition."""
        x = real_items(batch["x"])
        if "mask" in batch:
            raise ValueError("The batch has a mask, and chains know no padding. Leave the mask out.")
        kwargs = condition_kwargs(self.condition, self.label_dropout, batch, networks, step)
        y, theirs = self.negatives(networks[player], x, kwargs, step)
        x = x + self.data_noise * step.randn("data noise", x) if self.data_noise else x
        both = {name: torch.cat([value, theirs[name]]) for name, value in kwargs.items()}
        energies = energy_of(networks[player], torch.cat([x, y]), both) / x[0].numel()
        real, fake = energies.chunk(2)
        value = real.mean() - fake.mean() + self.penalty * (real.square() + fake.square()).mean()
        logs = {"gap": fake.mean() - real.mean(), "energy_real": real.mean(), "energy_fake": fake.mean()}
        return loss_with_logs(value, logs)

    def negatives(
        self, network: nn.Module, x: Tensor, kwargs: Mapping[str, Tensor], step: Step
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return samples y (B, *item) of the chain, and their conditions; persistent chains are written back."""
        network, noise = uncompiled(network), step.randn("chain start", x)
        if self.start != "persistent":
            return self.chain.run(network, x if self.start == "data" else noise, kwargs, step, "chain"), kwargs
        chains = self.state["chains"]
        labels = kwargs.get("class_labels", torch.zeros(len(x), dtype=torch.long, device=x.device))
        slots, restart = chains.slots(step, len(x)), step.rand("restart", len(x)) < self.restart
        y, labels = chains.read(slots, noise, labels, restart)
        theirs = {"class_labels": labels} if kwargs else {}
        y = self.chain.run(network, y, theirs, step, "chain")
        chains.write(slots, y, labels)
        return y, theirs
