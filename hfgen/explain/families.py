"""Demos of families: each trained on points in the plane in seconds, with samples, learned field and exact field."""

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

import hfgen

from ..distributions.likelihoods import build_likelihood
from ..metrics.neighbours import prdc
from ..models.autoencoder_with_prior import AutoencoderWithPrior
from ..paths import Path, compose, decompose, path_from_config
from ..registry import PATHS
from ..utils.seeds import generator_of
from .coordinates import Coordinates
from .demo import FRAMES, Demo, DemoSetup, as_images, one_pass_times
from .flow_stages import FlowStages
from .landscape import energy_demo
from .networks import PointDenoiser

COUPLINGS = 8
"""Couplings of the flow."""
MIN_TIME, MAX_TIME = 0.02, 1 - 1e-3
"""Fields are computed at times within these bounds, where neither alpha nor sigma vanishes."""


# --- with a scheduler -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ArrowKind:
    """The arrows to draw: minus a prediction, which points to the data.

    Attributes:
        kind: the prediction, a row of `paths.PREDICTIONS`.
        name: what the arrows are.
    """

    kind: str
    name: str

    def arrows(self, path: Path, t: float, x_0: Tensor, eps: Tensor) -> Tensor:
        """Return the arrows (M, 2) for x_0 and eps, or for their means given x_t, (M, 2) each."""
        return -compose(self.kind, path(_time(t)), x_0, eps)


SCORE = ArrowKind("epsilon", "score times noise level")  # score = -E[eps | x_t] / sigma
VELOCITY = ArrowKind("flow_prediction", "velocity, back in time")


def denoiser_demo(setup: DemoSetup, title: str, path_name: str, kind: str, sampler: str, arrows: ArrowKind) -> Demo:
    """Train a denoiser, and draw samples in `FRAMES` steps of a scheduler.

    Args:
        setup: the data and the training.
        title: name of the family.
        path_name: a name of `registry.PATHS`.
        kind: prediction of the network.
        sampler: a name of `registry.SAMPLERS`.
        arrows: the field to draw.
    """
    path, problem = path_from_config(PATHS[path_name]), setup.problem
    networks, seconds = setup.train({"denoiser": PointDenoiser()}, hfgen.Denoising(path, kind), learning_rate=3e-3)
    denoiser = networks["denoiser"]
    scheduler = hfgen.DDIMScheduler.from_config({**PATHS[path_name], "prediction_type": kind, "clip_sample": False})
    pipeline = hfgen.DenoisingPipeline(denoiser, scheduler)
    pipeline.use_scheduler(sampler)
    pipeline.set_progress_bar_config(disable=True)
    call = {"output_type": "latent", "return_trajectory": True, "num_inference_steps": FRAMES}
    output = pipeline(batch_size=setup.num_samples, latents=as_images(setup.noise()), **call)
    pipeline.scheduler.set_timesteps(FRAMES)
    times = path.time_of(torch.as_tensor(pipeline.scheduler.timesteps, dtype=torch.float64)).tolist()

    def learned_field(x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            prediction = denoiser(as_images(x), path.timestep(_time(t))).sample.flatten(1)
        return arrows.arrows(path, t, *decompose(kind, path(_time(t)), x.double(), prediction.double()))

    def exact_field(x: Tensor, t: float) -> Tensor:
        alpha, sigma = _scales(path, t)
        eps = -sigma * problem.score(x, alpha, sigma)
        return arrows.arrows(path, t, (x - sigma * eps) / alpha, eps)

    return Demo(
        title=title,
        method=f"{FRAMES} steps of {sampler}",
        times=[*times, 0.0],
        positions=output.trajectory.flatten(2),
        density=lambda x, t: problem.log_prob(x, *_scales(path, t)),
        field=learned_field,
        field_name=arrows.name,
        exact_field=exact_field,
        seconds=seconds,
    )


def _flow_map(setup: DemoSetup) -> Demo:
    """Train a flow map from data alone; each frame is one step from the noise to its time."""
    path, problem = path_from_config(PATHS["straight"]), setup.problem
    objective = hfgen.FlowMap("mean_flow", "jvp", curriculum_steps=setup.steps // 4, flow_share=0.25)
    networks, seconds = setup.train({"denoiser": PointDenoiser(two_times=True)}, objective, learning_rate=3e-3)
    denoiser = networks["denoiser"]

    def velocity(x: Tensor, t: float, r: float) -> Tensor:
        ends = (torch.full((len(x),), 1000 * time) for time in (t, r))
        with torch.no_grad():
            return denoiser(as_images(x), next(ends), r_timestep=next(ends)).sample.flatten(1)

    times, noise = one_pass_times(), setup.noise()
    return Demo(
        title="Flow map",
        method="one step",
        times=times,
        positions=torch.stack([noise - (1 - t) * velocity(noise, 1.0, t) for t in times]),
        density=lambda x, t: problem.log_prob(x, *_scales(path, t)),
        field=lambda x, t: -velocity(x, t, 0.0).double(),
        field_name="mean velocity to the data",
        exact_field=None,
        seconds=seconds,
    )


def _time(t: float) -> Tensor:
    """Return t as float64 tensor, clamped to [MIN_TIME, MAX_TIME]."""
    return torch.tensor(min(max(t, MIN_TIME), MAX_TIME), dtype=torch.float64)


def _scales(path: Path, t: float) -> tuple[float, float]:
    """Return (alpha, sigma) of the path at time t."""
    point = path(_time(t))
    return float(point.alpha), float(point.sigma)


# --- in one pass ------------------------------------------------------------------------------------------------------


def one_pass_demo(setup: DemoSetup, samples: Tensor, **attributes: Any) -> Demo:
    """Return the demo of a family that draws in one pass: points move straight from their latents to their samples.

    Args:
        setup: the data.
        samples: (N, 2), of the latents `setup.noise()`.
        attributes: title, method, field, field_name and seconds of the demo.
    """
    times = one_pass_times()
    noise = setup.noise()
    positions = torch.stack([torch.lerp(samples, noise, t) for t in times])
    return Demo(times=times, positions=positions, density=setup.data_density, exact_field=None, **attributes)


def _vae(setup: DemoSetup) -> Demo:
    """Train a VAE with two latents and p(x | z) = N(mean, 0.06^2)."""
    likelihood = build_likelihood("gaussian", 0.06)
    network = AutoencoderWithPrior(hfgen.MLPAutoencoderModel(1, 2, likelihood.channels(2), (128, 128), 2, "silu"))
    objective = hfgen.ELBO(likelihood, network.latent_shape)
    networks, seconds = setup.train({"autoencoder": network}, objective, learning_rate=3e-3)
    autoencoder = networks["autoencoder"].autoencoder
    generator = generator_of("explanation", setup.seed, "pixels")
    noise = torch.randn(setup.num_samples, 2, generator=generator)
    with torch.no_grad():
        samples = autoencoder.decode(as_images(setup.noise())).sample.flatten(1) + likelihood.sigma * noise

    def reconstruction_step(x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            return autoencoder(as_images(x)).sample.flatten(1).double() - x

    return one_pass_demo(
        setup,
        samples,
        title="VAE",
        method="one pass",
        field=reconstruction_step,
        field_name="from a point to its reconstruction",
        seconds=seconds,
    )


def _gan(setup: DemoSetup) -> Demo:
    """Train a GAN with the loss and penalties of R3GAN (Huang et al. 2024, https://arxiv.org/abs/2501.05441)."""
    generator = hfgen.MLPGeneratorModel(1, 2, 2, (128, 128, 128), "none")
    networks = {"generator": generator, "discriminator": hfgen.MLPDiscriminatorModel(1, 2, (128, 128, 128))}
    objective = hfgen.Adversarial("relativistic", 2, (hfgen.R1(0.05), hfgen.R2(0.05)))
    networks, seconds = setup.train(networks, objective, learning_rate=1e-3, adam_beta1=0.5, max_grad_norm=None)
    with torch.no_grad():
        samples = networks["generator"](setup.noise()).sample.flatten(1)

    def logit_gradient(x: Tensor, t: float) -> Tensor:
        with torch.enable_grad():
            inputs = as_images(x).requires_grad_()
            (gradient,) = torch.autograd.grad(networks["discriminator"](inputs).logits.sum(), inputs)
        return gradient.flatten(1).double()

    return one_pass_demo(
        setup,
        samples,
        title="GAN",
        method="one pass",
        field=logit_gradient,
        field_name="gradient of the discriminator",
        seconds=seconds,
    )


# --- layer by layer ---------------------------------------------------------------------------------------------------


def _flow(setup: DemoSetup) -> Demo:
    """Train a coupling flow with mixtures of logistic distributions, and draw samples coupling by coupling.

    The points move straight from one coupling to the next, over the exact density that they had at the last one.
    """
    sizes = {"layers_per_level": COUPLINGS, "hidden_channels": 64, "network_depth": 2, "components": 6}
    network = hfgen.CouplingFlowModel(
        1, 2, num_levels=1, squeeze=1, elementwise="logistic_mixture", mixing="convolution", network="mlp", **sizes
    )
    networks, seconds = setup.train({"flow": network}, hfgen.MaximumLikelihood("none"), learning_rate=2e-3)
    stages, points = FlowStages(networks["flow"]), [setup.noise()]
    for stage in range(stages.count):
        points.append(stages.moved(points[-1], stage))

    def stage_of(t: float) -> int:
        return int((1 - t) * COUPLINGS + 1e-6)

    def position(t: float) -> Tensor:
        stage = stage_of(t)
        return torch.lerp(points[stage], points[min(stage + 1, COUPLINGS)], (1 - t) * COUPLINGS - stage)

    times = one_pass_times()
    return Demo(
        title="Normalizing flow",
        method=f"{COUPLINGS} couplings",
        times=times,
        positions=torch.stack([position(t) for t in times]),
        density=lambda x, t: stages.density(x, stage_of(t)),
        field=lambda x, t: (stages.moved(x, min(stage_of(t), COUPLINGS - 1)) - x).double(),
        field_name="move of the next coupling",
        exact_field=None,
        seconds=seconds,
    )


# --- number by number -------------------------------------------------------------------------------------------------


def _autoregressive(setup: DemoSetup) -> Demo:
    """Train RNADE, and draw first the one coordinate of a point, then the other one given it: see `Coordinates`."""
    network = hfgen.MaskedAutoregressiveModel("nade", (2, 1, 1), levels=None, hidden_size=128, components=20)
    objective = hfgen.MaximumLikelihood("none", log_prob=attrgetter("log_prob"), player="model")
    networks, seconds = setup.train({"model": network}, objective, learning_rate=3e-3)
    coordinates, times = Coordinates(networks["model"], setup.noise()), one_pass_times()
    return Demo(
        title="Autoregressive",
        method="one coordinate, then the other",
        times=times,
        positions=torch.stack([coordinates.position(t) for t in times]),
        density=coordinates.density,
        field=coordinates.slope,
        field_name="gradient of the learned log density",
        exact_field=None,
        seconds=seconds,
    )


FAMILIES: dict[str, Callable[[DemoSetup], Demo]] = {
    "diffusion": lambda setup: denoiser_demo(setup, "Diffusion", "cosine_vp", "v_prediction", "ddim", SCORE),
    "rectified_flow": lambda setup: denoiser_demo(
        setup, "Rectified flow", "straight", "flow_prediction", "euler", VELOCITY
    ),
    "flow_map": _flow_map,
    "vae": _vae,
    "gan": _gan,
    "flow": _flow,
    "ar": _autoregressive,
    "energy": energy_demo,
}
"""Name in `--families` -> function that trains the family."""


def quality(demo: Demo, setup: DemoSetup) -> dict[str, float]:
    """Measure a demo's samples.

    Returns:
        inside: share of samples in the data's region: those with a density above the first percentile of the data.
        coverage: share of the data with a sample nearby (`metrics.neighbours.prdc`, k = 5).
    """
    generator = generator_of("explanation", setup.seed, "reference")
    real, fake = setup.problem.sample(setup.num_samples, generator), demo.positions[-1]
    threshold = setup.data_density(real.double(), 0.0).quantile(0.01)
    inside = (setup.data_density(fake.double(), 0.0) >= threshold).double().mean().item()
    return {"inside": inside, "coverage": prdc(real.double(), fake.double())["coverage"]}
