"""Each family, trained on points in the plane in seconds, and what there is to see of it."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import hfgen

from ..data.batches import Batches
from ..data.tensors import EndlessData
from ..distributions.likelihoods import build_likelihood
from ..metrics.neighbours import prdc
from ..objectives.base import Objective
from ..options import TrainArgs
from ..paths import Path, compose, decompose, path_from_config
from ..registry import PATHS
from ..trainer.loop import train
from ..utils.seeds import seed_of
from .networks import PointDenoiser
from .problems import Problem

BATCH = 256
FRAMES = 32
"""Steps of the animation, and of the families that draw by steps."""
SHARPNESS = 0.04
"""How wide a data point is where a density of the data themselves is shown, in units of x."""

Field = Callable[[Tensor, float], Tensor]
"""(points (M, 2), time t from 1, noise, to 0, data) -> arrows (M, 2)."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """A family after it was trained.

    Attributes:
        title: its name in words.
        way: how it draws.
        times: of the frames, from 1 to 0.
        positions: of the drawn points in each frame, (F, N, 2); the first are noise, the last samples.
        density: log density of what the points should look like at a time, or of the data; a field of one number.
        field: what it learned, as arrows.
        field_name: what they are.
        exact: what it should have learned, where that is known.
        seconds: of training.
    """

    title: str
    way: str
    times: list[float]
    positions: Tensor
    density: Field
    field: Field
    field_name: str
    exact: Field | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class DemoSetup:
    """What all families share: the data, and how long and from which seed they are trained and drawn from."""

    problem: Problem
    steps: int = 2000
    seed: int = 0
    samples: int = 1000

    def batches(self) -> Batches:
        """Return endless batches {"x": (B, 2, 1, 1)} of points."""

        def draw(count: int, generator: torch.Generator) -> dict[str, Tensor]:
            return {"x": self.problem.sample(count, generator)[:, :, None, None]}

        return Batches(EndlessData(draw, (2, 1, 1), "points", "points", stream="points"), BATCH, self.seed)

    def train(
        self, networks: Mapping[str, nn.Module], objective: Objective, **options: float | None
    ) -> tuple[dict[str, nn.Module], float]:
        """Trained networks, in evaluation mode, and the seconds that it took; options of `TrainArgs`."""
        with tempfile.TemporaryDirectory() as folder:
            quiet = {"checkpointing_steps": 0, "sample_steps": 0, "logging_steps": self.steps, "report_to": "none"}
            args = TrainArgs(
                output_dir=folder,
                seed=self.seed,
                max_train_steps=self.steps,
                train_batch_size=BATCH,
                **quiet,
                **options,
            )
            result = train(networks, objective, self.batches(), args, Accelerator(cpu=True))
        return result.networks, result.seconds

    def noise(self) -> Tensor:
        """Standard normal points (N, 2), the same for all families."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "noise"))
        return torch.randn(self.samples, 2, generator=generator)

    def clean(self, x: Tensor, t: float) -> Tensor:
        """Log density of the data themselves."""
        return self.problem.log_prob(x, 1.0, SHARPNESS)


def images(points: Tensor) -> Tensor:
    """(N, 2) -> (N, 2, 1, 1)."""
    return points.float()[:, :, None, None]


# --- by steps ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shown:
    """Which arrows are drawn: minus the prediction of a kind, so that they point to the data."""

    kind: str
    name: str

    def arrows(self, path: Path, t: float, x_0: Tensor, eps: Tensor) -> Tensor:
        """(M, 2), from x_0 and eps or what they are on average, (M, 2) each."""
        return -compose(self.kind, path(_time(t)), x_0, eps)


SCORE = Shown("epsilon", "score times noise level")  # score = -E[eps | x_t] / sigma
VELOCITY = Shown("flow_prediction", "velocity, back in time")


def denoised(school: DemoSetup, title: str, path: str, kind: str, sampler: str, shown: Shown) -> Demo:
    """A denoiser on a path, drawn from in `FRAMES` steps of a scheduler."""
    way, problem = path_from_config(PATHS[path]), school.problem
    trained, seconds = school.train({"denoiser": PointDenoiser()}, hfgen.Denoising(way, kind), learning_rate=3e-3)
    denoiser = trained["denoiser"]
    scheduler = hfgen.DDIMScheduler.from_config({**PATHS[path], "prediction_type": kind, "clip_sample": False})
    pipeline = hfgen.DenoisingPipeline(denoiser, scheduler)
    pipeline.use_scheduler(sampler)
    pipeline.set_progress_bar_config(disable=True)
    call = {"output_type": "latent", "return_trajectory": True, "num_inference_steps": FRAMES}
    drawn = pipeline(batch_size=school.samples, latents=images(school.noise()), **call)
    pipeline.scheduler.set_timesteps(FRAMES)
    clock = way.time_of(torch.as_tensor(pipeline.scheduler.timesteps, dtype=torch.float64)).tolist()

    def learned(x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            output = denoiser(images(x), way.timestep(_time(t))).sample.flatten(1)
        return shown.arrows(way, t, *decompose(kind, way(_time(t)), x.double(), output.double()))

    def exact(x: Tensor, t: float) -> Tensor:
        alpha, sigma = _scales(way, t)
        eps = -sigma * problem.score(x, alpha, sigma)
        return shown.arrows(way, t, (x - sigma * eps) / alpha, eps)

    return Demo(
        title=title,
        way=f"{FRAMES} steps of {sampler}",
        times=[*clock, 0.0],
        positions=drawn.trajectory.flatten(2),
        density=lambda x, t: problem.log_prob(x, *_scales(way, t)),
        field=learned,
        field_name=shown.name,
        exact=exact,
        seconds=seconds,
    )


def _time(t: float) -> Tensor:
    """t on the path, kept away from where alpha or sigma vanish."""
    return torch.tensor(min(max(t, SHARPNESS / 2), 1 - 1e-3), dtype=torch.float64)


def _scales(path: Path, t: float) -> tuple[float, float]:
    point = path(_time(t))
    return float(point.alpha), float(point.sigma)


# --- in one pass ------------------------------------------------------------------------------------------------------


def jumped(school: DemoSetup, samples: Tensor, **what: object) -> Demo:
    """A family that draws in one pass: each latent's way to its sample is drawn as a straight line."""
    times = [1 - i / FRAMES for i in range(FRAMES + 1)]
    noise = school.noise()
    positions = torch.stack([torch.lerp(samples, noise, t) for t in times])
    return Demo(times=times, positions=positions, density=school.clean, exact=None, **what)


def _vae(school: DemoSetup) -> Demo:
    """A VAE with two latents and p(x | z) = N(mean, 0.06^2)."""
    from ..models.autoencoder_with_prior import AutoencoderWithPrior

    likelihood = build_likelihood("gaussian", 0.06)
    network = AutoencoderWithPrior(hfgen.MLPAutoencoderModel(1, 2, likelihood.channels(2), (128, 128), 2, "silu"))
    trained, seconds = school.train(
        {"autoencoder": network}, hfgen.ELBO(likelihood, network.latent_shape), learning_rate=3e-3
    )
    autoencoder = trained["autoencoder"].autoencoder
    noise = torch.randn(school.samples, 2, generator=torch.Generator().manual_seed(seed_of(school.seed, "pixels")))
    with torch.no_grad():
        samples = autoencoder.decode(images(school.noise())).sample.flatten(1) + likelihood.sigma * noise

    def pull(x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            return autoencoder(images(x)).sample.flatten(1).double() - x

    name = "from a point to its reconstruction"
    return jumped(school, samples, title="VAE", way="one pass", field=pull, field_name=name, seconds=seconds)


def _gan(school: DemoSetup) -> Demo:
    """R3GAN's loss and penalties (Huang et al. 2024, https://arxiv.org/abs/2501.05441)."""
    generator = hfgen.MLPGeneratorModel(1, 2, 2, (128, 128, 128), "none")
    networks = {"generator": generator, "discriminator": hfgen.MLPDiscriminatorModel(1, 2, (128, 128, 128))}
    objective = hfgen.Adversarial("relativistic", 2, (hfgen.R1(0.05), hfgen.R2(0.05)))
    trained, seconds = school.train(networks, objective, learning_rate=1e-3, adam_beta1=0.5, max_grad_norm=None)
    with torch.no_grad():
        samples = trained["generator"](school.noise()).sample.flatten(1)

    def rise(x: Tensor, t: float) -> Tensor:
        with torch.enable_grad():
            at = images(x).requires_grad_()
            (gradient,) = torch.autograd.grad(trained["discriminator"](at).logits.sum(), at)
        return gradient.flatten(1).double()

    name = "where the critic's score rises"
    return jumped(school, samples, title="GAN", way="one pass", field=rise, field_name=name, seconds=seconds)


FAMILIES: dict[str, Callable[[DemoSetup], Demo]] = {
    "diffusion": lambda school: denoised(school, "Diffusion", "cosine_vp", "v_prediction", "ddim", SCORE),
    "rectified_flow": lambda s: denoised(s, "Rectified flow", "straight", "flow_prediction", "euler", VELOCITY),
    "vae": _vae,
    "gan": _gan,
}
"""What `--families` may name: one function each, from the schooling to the lesson."""


def quality(lesson: Demo, school: DemoSetup) -> dict[str, float]:
    """How good the samples are: the share that lies where data do, and the share of the data that they cover.

    `inside`: no less likely than the least likely hundredth of the data; `coverage`: `metrics.neighbours.prdc`, k = 5.
    """
    generator = torch.Generator().manual_seed(seed_of(school.seed, "reference"))
    real, fake = school.problem.sample(school.samples, generator), lesson.positions[-1]
    least = school.clean(real.double(), 0.0).quantile(0.01)
    inside = (school.clean(fake.double(), 0.0) >= least).double().mean().item()
    return {"inside": inside, "coverage": prdc(real.double(), fake.double())["coverage"]}
