"""Problems with a known score, for tests of solvers: a Gaussian, whose flow is known, and a mixture of Gaussians."""

import math
from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from hfgen import DDPMScheduler, DenoisingPipeline, paths
from hfgen.registry import PATHS

F64 = torch.float64


class Gaussian:
    """Data x_0 ~ N(mean, std^2), independent in all dimensions.

    E[x_0 | x_t] is linear in x_t, and the probability flow does not change the standardised sample z.
    """

    def __init__(self, mean: float = 0.6, std: float = 0.4):
        self.mean, self.std = mean, std

    def x_0(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """Compute E[x_0 | x_t = x] where the path has these scales."""
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def at(self, z: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """Compute the point on the trajectory of z where the path has these scales."""
        return alpha * self.mean + z * math.sqrt(alpha**2 * self.std**2 + sigma**2)


class Mixture:
    """An equal mixture of five Gaussians of standard deviation `std` in `dim` dimensions."""

    def __init__(self, dim: int = 4, std: float = 0.25, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.means = torch.randn(5, dim, generator=generator, dtype=F64) * 0.6
        self.std = std

    def x_0(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """Compute E[x_0 | x_t = x], for x (..., dim), where the path has these scales."""
        variance = alpha**2 * self.std**2 + sigma**2
        away = x[..., None, :] - alpha * self.means  # (..., K, dim)
        share = torch.softmax(-away.square().sum(-1) / (2 * variance), -1)
        centre = share @ self.means
        return centre + alpha * self.std**2 / variance * (x - alpha * centre)


class Mixture1D:
    """Independent coordinates, each from an equal mixture of two Gaussians of standard deviation `spread`."""

    def __init__(self, means: tuple[float, float], spread: float):
        self.means, self.spread = means, spread
        self.mean = sum(means) / 2
        self.std = math.hypot(spread, (means[0] - means[1]) / 2)

    def x_0(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """Compute E[x_0 | x_t = x], for x of any shape, where the path has these scales."""
        variance = alpha**2 * self.spread**2 + sigma**2
        means = torch.tensor(self.means, dtype=x.dtype)
        away = x[..., None] - alpha * means
        share = torch.softmax(-away.square() / (2 * variance), -1)
        return (share * (means + alpha * self.spread**2 / variance * away)).sum(-1)


def ideal_network(problem, scheduler, kind: str):
    """Return the output of a perfect network of this prediction kind as a function (x, t) -> output."""

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        point = scheduler.path(torch.tensor(t, dtype=F64))
        alpha, sigma = float(point.alpha), float(point.sigma)
        x_0 = problem.x_0(x, alpha, sigma)
        eps = (x - alpha * x_0) / sigma
        c_x, c_e = (float(value) for value in paths.prediction_row(kind)(point))
        return (c_x * x_0 if c_x else 0.0) + (c_e * eps if c_e else 0.0)

    return predict


def run(scheduler, problem, x: torch.Tensor, **options) -> torch.Tensor:
    """Run all steps and return the last sample. The network gets the exact times; `timesteps` holds them in float32."""
    predict = ideal_network(problem, scheduler, scheduler.config.prediction_type)
    for timestep, stage in zip(scheduler.timesteps, scheduler._stages, strict=True):
        x = scheduler.step(predict(x, stage.row.t), timestep, x, **options).prev_sample
    return x


def start(scheduler, problem: Gaussian, z: torch.Tensor) -> torch.Tensor:
    """Return the sample at the start of the trajectory of z."""
    point = scheduler.path(torch.tensor(scheduler._times[0], dtype=F64))
    return problem.at(z, float(point.alpha), float(point.sigma))


class IdealDenoiser(ModelMixin, ConfigMixin):
    """A network with the best output on one of hfgen's paths, called like a U-Net, for one problem or one per class."""

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = 4, num_class_embeds: int | None = None):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))  # diffusers reads device and dtype from parameters

    def configure(self, problems: list, path: str, kind: str) -> "IdealDenoiser":
        """Set the problems, the path by its name, and the prediction kind. Return self."""
        self.problems, self.path, self.kind = problems, paths.path_from_config(PATHS[path]), kind
        return self

    def forward(self, sample, timestep, class_labels=None):
        t = self.path.time_of(timestep.double()[0])
        point, x = self.path(t), sample.double().flatten(1)  # (B, D)
        alpha, sigma = float(point.alpha), float(point.sigma)
        x_t = x / float(self.path.input_scale(t))
        x_0 = torch.stack([problem.x_0(x_t, alpha, sigma) for problem in self.problems])  # (classes, B, D)
        x_0 = x_0[torch.zeros(len(x), dtype=torch.long) if class_labels is None else class_labels, range(len(x))]
        output = paths.compose(self.kind, point, x_0, (x_t - alpha * x_0) / sigma)
        return SimpleNamespace(sample=output.view_as(sample).to(sample.dtype))


def ideal_pipeline(
    problems, path: str = "straight", kind: str = "flow_prediction", side: int = 4, channels: int = 1, **options
):
    """Return a pipeline with an ideal network for images (channels, side, side).

    Args:
        problems: a problem, or a list with one for each class.
        path: a key of `hfgen.registry.PATHS`.
        kind: the prediction kind.
        side, channels: shape of the images.
        options: options of the pipeline's `DDPMScheduler`.
    """
    problems = problems if isinstance(problems, list) else [problems]
    classes = len(problems) if len(problems) > 1 else None
    network = IdealDenoiser(channels, side, classes).configure(problems, path, kind)
    scheduler = DDPMScheduler.from_config({**PATHS[path], "prediction_type": kind, "clip_sample": False, **options})
    pipeline = DenoisingPipeline(network, scheduler, classes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
