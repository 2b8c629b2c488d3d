"""Guides of samples: classifiers, energies and worse networks, and a form of classifier-free guidance.

A guide tilts what is drawn: with a potential U(x_t) the density p_t(x_t) becomes proportional to
p_t(x_t) exp(-s U(x_t)), whose score has -s grad U more. That changes the estimate of the noise, and by the table of
predictions every output:

    eps' = eps + s sigma grad U,    output' = output + s sigma (alpha c_e - sigma c_x) / alpha grad U

Sources: Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233 (classifier guidance); Chung et al. 2023,
https://arxiv.org/abs/2209.14687 (potentials of the estimate of x_0); Karras et al. 2024,
https://arxiv.org/abs/2406.02507 (autoguidance); Lin et al. 2024, https://arxiv.org/abs/2305.08891 (rescale); Sadat et
al. 2025, https://arxiv.org/abs/2410.02416 (projection).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hfgen.paths import path_facts
from hfgen.schedulers.configuration import network_facts
from hfgen.utils.arguments import checked

from .inputs import check_number

ROUNDING_OF_TIMES = 1e-7
"""Time steps are float32: a time as far outside an interval belongs to it."""


class NoisyState(NamedTuple):
    """What a guide may look at.

    Args:
        x_t (B, *item): the sample at time t, with a gradient.
        x_0 (B, *item) or None: the network's estimate of the data, a function of x_t, if the guide asks for it.
        t (): time on the path, from 0, data, to 1, noise.
        scaled (B, *item): x_t as the network sees it.
        timestep (): the network's time step.
    """

    x_t: Tensor
    x_0: Tensor | None
    t: Tensor
    scaled: Tensor
    timestep: Tensor


class Guide:
    """Base of the members of the call's `guidance`: a strength, and the times at which it counts.

    Args:
        scale: strength; 0 is none.
        interval: (low, high), times on the path in [0, 1] from data to noise; both ends belong to it.

    Raises:
        ValueError: no finite scale, or no interval.
    """

    @checked
    def __init__(self, scale: float, interval: tuple[float, float]):
        check_number("scale", scale)
        ends = [float(end) for end in interval] if isinstance(interval, Sequence) and len(interval) == 2 else []
        if not ends or not 0 <= ends[0] <= ends[1] <= 1:
            raise ValueError(f"interval={interval} must be two times (low, high), 0 <= low <= high <= 1.")
        self.scale, self.interval = float(scale), (ends[0], ends[1])

    def inside(self, t: float) -> bool:
        """Return whether the guide counts at time t."""
        return self.interval[0] - ROUNDING_OF_TIMES <= t <= self.interval[1] + ROUNDING_OF_TIMES


class EnergyGuide(Guide, ABC):
    """Base of guides with a potential: low where samples are to be."""

    sees_data = False  # whether the potential needs the estimate of x_0

    @abstractmethod
    def energy(self, state: NoisyState) -> Tensor:
        """Return the potential of each sample, (B,)."""


class EnergyGuidance(EnergyGuide):
    """Guidance by any differentiable potential, without training: `EnergyGuidance(lambda x, t: x.mean((1, 2, 3)))`.

    On `x_t` the density at time t is tilted by exp(-scale U(x_t, t)): exactly, if U is what the data's tilt becomes at
    time t. On `x_0` the potential sees the network's estimate of the data, and gradients go through the network. It is
    then one of pictures, easy to write down, but the tilt is not exact: exp(-U(E[x_0 | x_t])) stands for
    E[exp(-U(x_0)) | x_t]. For a linear U the mean of samples is exact, for a convex one samples are guided too
    strongly, the more the earlier; `interval` leaves out the early times.

    Args:
        potential: called as potential(x, t) with x (B, *item) and the path's time t (), returns (B,).
        scale: strength s.
        interval: see `Guide`.
        on: `x_0` or `x_t`, what the potential is given.

    Raises:
        ValueError: no callable, an unknown `on`, or as `Guide`.
    """

    @checked
    def __init__(
        self,
        potential: Callable[[Tensor, Tensor], Tensor],
        scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        on: Literal["x_0", "x_t"] = "x_0",
    ):
        super().__init__(scale, interval)
        if not callable(potential):
            raise ValueError(f"potential={potential!r} can't be called. Give a function of (x, t) that returns (B,).")
        if on not in ("x_0", "x_t"):
            raise ValueError(f"on={on!r} is not known. Choose one of: x_0, x_t.")
        self.potential, self.sees_data = potential, on == "x_0"

    def energy(self, state: NoisyState) -> Tensor:
        """Return the potential of each sample, (B,).

        Raises:
            ValueError: it is no tensor (B,), or no function of the samples.
        """
        x = state.x_0 if self.sees_data else state.x_t
        value = self.potential(x, state.t)
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != (len(x),):
            raise ValueError(
                f"The potential returned {shape}; it must return a tensor ({len(x)},), one for each sample."
            )
        if not value.requires_grad:
            raise ValueError("The potential does not depend on the samples in a way that can be differentiated.")
        return value


class ClassifierGuidance(EnergyGuide):
    """Guidance by a classifier of noisy images, U = -log p(class | x_t), as `hfgen train classifier` trains one.

    It needs a classifier of the same path and image shape, and a denoiser with or without classes.

    Args:
        classifier: a `NoisyClassifierPipeline`; or a network called as network(x_t, timestep), whose output is the
            logits (B, classes) or has them as `logits`.
        class_labels: the class of all samples, or one for each, by number; or by name for a pipeline with names.
        scale: strength; 1 is Bayes' rule, above 1 sharpens towards the class.
        interval: see `Guide`. The default leaves out the noisiest times. There an exact classifier has no gradient, and
            a trained one has errors, which sigma / alpha multiplies without a bound.

    Raises:
        ValueError: an unknown class, or as `Guide`.
    """

    @checked
    def __init__(
        self,
        classifier: Any,
        class_labels: int | str | Sequence[int | str] | Tensor,
        scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 0.95),
    ):
        super().__init__(scale, interval)
        self.classifier = classifier
        if hasattr(classifier, "class_numbers"):
            numbers = classifier.class_numbers(class_labels)
        else:
            numbers = torch.as_tensor(class_labels, dtype=torch.long).reshape(-1).tolist()
        self.class_numbers = list(numbers)

    def energy(self, state: NoisyState) -> Tensor:
        """Return -log p(class | x_t) of each sample, (B,).

        Raises:
            ValueError: another number of classes than of samples, or one that the classifier does not have.
        """
        count, labels = len(state.x_t), self.class_numbers
        if len(labels) not in (1, count):
            raise ValueError(f"{len(labels)} class_labels of the classifier for {count} samples. Give one, or {count}.")
        output = getattr(self.classifier, "classifier", self.classifier)(state.scaled, state.timestep.expand(count))
        logits = getattr(output, "logits", output)
        if min(labels) < 0 or max(labels) >= logits.shape[1]:
            raise ValueError(f"class_labels={labels} of the classifier must be from 0 to {logits.shape[1] - 1}.")
        rows = torch.tensor(labels, device=logits.device).expand(count)
        return torch.nn.functional.cross_entropy(logits.float(), rows, reduction="none")

    def check(self, path: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        """Raise ValueError for a classifier of another path or of other images."""
        if not hasattr(self.classifier, "scheduler"):
            return
        theirs = path_facts(self.classifier.scheduler.config)
        if theirs != path or tuple(self.classifier.sample_shape) != tuple(shape):
            raise ValueError(
                f"The classifier is of images {tuple(self.classifier.sample_shape)} on the path {theirs['path']!r}, "
                f"and the model draws {tuple(shape)} on {path['path']!r}. Train one with the model's path: --noise."
            )


class Autoguidance(Guide):
    """Guidance away from a worse model of the same data: output = scale good + (1 - scale) bad (Karras et al. 2024).

    The bad model is smaller, or an earlier checkpoint; its errors are those of the good one, only larger. It is told
    the same classes, so that images become better rather than more alike.

    Args:
        bad: a `DenoisingPipeline` on the same path, with any prediction kind; or a network called as the good one is,
            with the same prediction kind.
        scale: 1 is none, above 1 leads away from the bad model.
        interval: see `Guide`.
    """

    @checked
    def __init__(self, bad: Any, scale: float = 2.0, interval: tuple[float, float] = (0.0, 1.0)):
        super().__init__(scale, interval)
        self.bad, self.network = bad, getattr(bad, "denoiser", bad)

    @property
    def kind(self) -> str | None:
        """Return what the bad model predicts; None: what the good one does."""
        return network_facts(self.bad.scheduler.config)["prediction_type"] if hasattr(self.bad, "scheduler") else None

    def check(self, path: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        """Raise ValueError for a bad model of another path or of other items."""
        if not hasattr(self.bad, "scheduler"):
            return
        theirs = path_facts(self.bad.scheduler.config)
        if theirs != path or tuple(self.bad.item_shape) != tuple(shape):
            raise ValueError(
                f"The bad model draws {tuple(self.bad.item_shape)} on the path {theirs['path']!r}, and the good one "
                f"{tuple(shape)} on {path['path']!r}. Give one of the same path."
            )


class ProjectedGuidance:
    """Classifier-free guidance without what saturates (APG, Sadat et al. 2025): of the difference in x_0 that the class
    makes, the part along x_0 itself counts `parallel` times. The rest is of the scale.

    Args:
        parallel: eta of the paper; 1 with the other defaults is plain guidance.
        norm_threshold: largest norm of the difference; None: any.
        momentum: beta of the paper, the share of earlier differences that is added; it is negative there.

    Raises:
        ValueError: a number out of range.
    """

    @checked
    def __init__(self, parallel: float = 0.0, norm_threshold: float | None = None, momentum: float = 0.0):
        check_number("parallel", parallel, 0.0)
        check_number("momentum", momentum, -1.0)
        if norm_threshold is not None:
            check_number("norm_threshold", norm_threshold, 0.0)
        self.parallel, self.norm_threshold, self.momentum = parallel, norm_threshold, momentum

    def difference(self, change: Tensor, x_0: Tensor) -> Tensor:
        """Return the difference that counts, from that of the estimates of x_0 (B, *item), at the class's x_0."""
        shape, flat, along = change.shape, change.flatten(1).double(), x_0.flatten(1).double()
        if self.norm_threshold is not None:
            flat = flat * (self.norm_threshold / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        unit = along / along.norm(dim=1, keepdim=True).clamp(min=1e-12)
        part = (flat * unit).sum(1, keepdim=True) * unit
        return (flat - part + self.parallel * part).view(shape).to(change)


def split_guides(
    guidance: Any, path: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[list[EnergyGuide], list[Autoguidance]]:
    """Return the guides with a potential, and those with a worse model.

    Raises:
        ValueError: something else is among them, or a model does not fit.
    """
    guides = list(guidance) if isinstance(guidance, Sequence) else [guidance]
    for guide in guides:
        if not isinstance(guide, EnergyGuide | Autoguidance):
            raise ValueError(
                f"guidance holds {guide!r}, which is no guide. Give a list of EnergyGuidance, ClassifierGuidance and "
                "Autoguidance."
            )
        if hasattr(guide, "check"):
            guide.check(path, shape)
    return [each for each in guides if isinstance(each, EnergyGuide)], [
        each for each in guides if isinstance(each, Autoguidance)
    ]


def check_guides(guidance: Sequence[Guide], pipeline: Any) -> None:
    """Raise ValueError, before anything is drawn, for guides that do not fit what the denoiser of a pipeline models."""
    if guidance:  # a pipeline without a path has none
        split_guides(guidance, path_facts(network_facts(pipeline.scheduler.config)), tuple(pipeline.item_shape))
