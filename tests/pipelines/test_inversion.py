"""Inversion on every path, against the closed form of a Gaussian: there and back, and on the way between."""

import copy
import inspect
import math

import diffusers
import pytest
import torch
from torch.testing import assert_close

import hfgen
from hfgen.registry import PATHS, SAMPLERS
from tests.helpers.gaussian import Gaussian, ideal_pipeline

KINDS = ("epsilon", "sample", "v_prediction", "flow_prediction", "score")
NOISY = ("ddpm", "euler_maruyama", "consistency", "annealed_langevin")
DETERMINISTIC = [name for name in SAMPLERS if name not in NOISY]
PROBLEM = Gaussian()


def images(count=6, problem=PROBLEM, channels=1):
    noise = torch.randn(count, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return problem.mean + problem.std * noise


def rmse(a, b):
    return float((a.double() - b.double()).square().mean().sqrt())


def expected(problem, pipeline, x):
    """The noise of x by the closed form: the standardised sample z stays, and samplers begin at `start_time`."""
    scheduler = hfgen.RectifiedFlowScheduler.from_config(pipeline.scheduler.config)
    point = scheduler.path(torch.tensor(scheduler.start_time, dtype=torch.float64))
    alpha, sigma = float(point.alpha), float(point.sigma)
    return problem.at((x.double() - problem.mean) / problem.std, alpha, sigma) / math.hypot(alpha, sigma)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_inversion_is_the_closed_form_and_leads_back(path, kind):
    if (path, kind) in {("ve", "v_prediction"), ("ve", "flow_prediction")}:
        pytest.skip("these two are none on the VE path")
    pipeline, x = ideal_pipeline(PROBLEM, path, kind), images()
    noise = pipeline.invert(x)
    assert noise.shape == x.shape and noise.dtype == torch.float32
    assert rmse(noise, expected(PROBLEM, pipeline, x)) < 2e-3
    assert rmse(pipeline.decode(noise), x) < 1e-3
    if kind in ("sample", "score") or (kind == "flow_prediction" and path != "straight"):  # clean data, no eps
        with pytest.raises(ValueError, match="Use method='ode'"):
            pipeline.invert(x, method="ddim")
    else:
        assert rmse(pipeline.reconstruct(x, method="ddim"), x) < 5e-3


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_every_deterministic_scheduler_leads_back(sampler):
    """Their own error is what is left; first-order ones have that of 100 steps."""
    for path, kind in (("straight", "flow_prediction"), ("vp", "epsilon")):
        pipeline, x = ideal_pipeline(PROBLEM, path, kind), images()
        noise = pipeline.invert(x)
        pipeline.use_scheduler(sampler)
        back = pipeline(batch_size=len(x), latents=noise, num_inference_steps=100, output_type="latent").images
        assert rmse(back, x) < (0.02 if sampler in ("ddim", "euler", "flow_map") else 2e-3), path


def test_the_steps_of_ddim_lead_back_from_their_own_inverse():
    pipeline, x = ideal_pipeline(PROBLEM), images()
    noise = pipeline.invert(x, num_inference_steps=20, method="ddim")
    pipeline.use_scheduler("ddim", clip_sample=False)
    back = pipeline(batch_size=len(x), latents=noise, num_inference_steps=20, output_type="latent").images
    assert rmse(back, x) < 3e-3 < rmse(pipeline.decode(noise), x)
    assert_close(pipeline.decode(noise, num_inference_steps=20, method="ddim"), back)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_a_scheduler_of_the_call_draws_what_the_pipelines_call_draws(sampler):
    pipeline, x = ideal_pipeline(PROBLEM, "vp", "epsilon"), images()
    before, noise = pipeline.scheduler, pipeline.invert(x)
    drawn = pipeline(batch_size=6, latents=noise, num_inference_steps=9, output_type="latent", scheduler=sampler).images
    options = {"num_inference_steps": 9, "scheduler": sampler}
    for method in ("ode", "ddim"):
        assert torch.equal(pipeline.decode(noise, method=method, **options), drawn)
    other = pipeline.named_scheduler(sampler, pipeline.scheduler)
    state = copy.deepcopy(vars(other))
    assert torch.equal(pipeline.decode(noise, num_inference_steps=9, scheduler=other), drawn)
    assert vars(other).keys() == state.keys() and pipeline.scheduler is before
    assert torch.equal(pipeline.invert(x, scheduler=sampler), noise)
    there = pipeline.invert(x, num_inference_steps=9)
    assert torch.equal(pipeline.reconstruct(x, **options), pipeline.decode(there, **options))
    way = pipeline.between(noise[:3], noise[3:], 2, **options)
    assert_close(way.flatten(0, 1), drawn, rtol=0, atol=1e-5)
    assert_close(pipeline.interpolate(x[:3], x[3:], 2, **options)[0], pipeline.decode(there[:3], **options))


def draws_noise(scheduler):
    """Whether two copies with generators of their own come to two samples."""

    def end(seed):
        torch.manual_seed(seed)
        own, x = copy.deepcopy(scheduler), torch.ones(1, 1, 4, 4)
        own.set_timesteps(4)
        takes = "generator" in inspect.signature(own.step).parameters
        options = {"generator": torch.Generator().manual_seed(seed)} if takes else {}
        for t in own.timesteps:
            x = own.step(torch.ones_like(x), t, x, **options, return_dict=False)[0]
        return x

    return not torch.equal(end(0), end(1))


THEIRS = ["DDPM", "EulerAncestralDiscrete", "EulerDiscrete", "KDPM2AncestralDiscrete", "SASolver", "UniPCMultistep"]


@pytest.mark.parametrize("name", [*SAMPLERS, *THEIRS, "sde-dpmsolver++"])
def test_no_scheduler_that_draws_noise_leads_back(name):
    pipeline, options = ideal_pipeline(PROBLEM, "vp", "epsilon"), {"num_inference_steps": 4}
    theirs = {"sde-dpmsolver++": ("DPMSolverMultistep", {"algorithm_type": name})}.get(name, (name, {}))
    scheduler = name
    if name not in SAMPLERS:
        cls = getattr(diffusers, f"{theirs[0]}Scheduler")
        scheduler = cls.from_config(pipeline.scheduler.config, **theirs[1])
    noise = torch.ones(2, 1, 4, 4)
    if not draws_noise(pipeline._scheduler_of(scheduler)):
        drawn = pipeline(batch_size=2, latents=noise, output_type="latent", scheduler=scheduler, **options).images
        assert torch.equal(pipeline.decode(noise, scheduler=scheduler, **options), drawn)
        return
    for call in (pipeline.invert, pipeline.decode, pipeline.reconstruct):
        with pytest.raises(ValueError, match="draws noise in its steps"):
            call(noise, scheduler=scheduler, **options)
    with pytest.raises(ValueError, match="draws noise in its steps"):
        pipeline.between(1, 2, scheduler=scheduler, **options)


def test_the_error_falls_with_the_steps():
    pipeline, x = ideal_pipeline(PROBLEM, "vp", "epsilon"), images()
    exact = expected(PROBLEM, pipeline, x)
    few, many = (rmse(pipeline.invert(x, num_inference_steps=n), exact) for n in (8, 32))
    assert many < few / 4


CLASSES = [Gaussian(0.6, 0.4), Gaussian(-0.5, 0.2), Gaussian()]


def test_classes_and_guidance():
    """The third problem stands for the null label. Another class gives what is alike there: the same z."""
    pipeline = ideal_pipeline(CLASSES, "vp", "epsilon")
    pipeline.register_to_config(num_classes=2)
    pipeline.denoiser.register_to_config(num_class_embeds=3)
    x, labels = torch.cat([images(2, CLASSES[0]), images(2, CLASSES[1])]), [0, 0, 1, 1]
    noise = pipeline.invert(x, labels)
    assert rmse(pipeline.decode(noise, labels), x) < 1e-3
    other = pipeline.decode(noise, [1, 1, 0, 0])
    z = torch.cat([(x[:2] - 0.6) / 0.4 * 0.2 - 0.5, (x[2:] + 0.5) / 0.2 * 0.4 + 0.6])
    assert rmse(other, z) < 0.02  # the noise at the last time step is that of the class by a little
    guided = pipeline.reconstruct(x, labels, guidance_scale=1.5)
    assert rmse(guided, x) < 0.02 < rmse(pipeline.decode(noise, labels, guidance_scale=1.5), x)
    way = pipeline.interpolate(x[:1], x[1:2], 3, class_labels=0)
    assert rmse(way[0], x[:1]) < 1e-3 and rmse(way[2], x[1:2]) < 1e-3
    assert_close(pipeline.encode(x, labels), noise)


def test_the_way_between_two_images_turns_at_constant_speed():
    pipeline, x = ideal_pipeline(PROBLEM), images(4)
    way = pipeline.interpolate(x[:2], x[2:], 5)
    assert way.shape == (5, 2, 1, 4, 4)
    assert rmse(way[0], x[:2]) < 1e-3 and rmse(way[-1], x[2:]) < 1e-3
    first, second = ((part - PROBLEM.mean).flatten(1) / PROBLEM.std for part in (x[:2], x[2:]))
    angle = torch.nn.functional.cosine_similarity(first, second).acos()[:, None]
    norms = [end.norm(dim=1, keepdim=True) for end in (first, second)]
    middle = (first / norms[0] + second / norms[1]) / (2 * (angle / 2).cos()) * sum(norms) / 2
    assert rmse(way[2].flatten(1), PROBLEM.mean + PROBLEM.std * middle) < 2e-3


def test_seeds_are_those_of_samples():
    pipeline = ideal_pipeline(PROBLEM)
    pipeline.use_scheduler("rectified_flow")
    way = pipeline.between(3, 8, 4)
    for end, seed in ((way[0], 3), (way[-1], 8)):
        drawn = pipeline(generator=torch.Generator().manual_seed(seed), output_type="latent", num_inference_steps=50)
        assert_close(end, drawn.images, atol=1e-4, rtol=0)
    assert_close(pipeline.interpolate(3, 8, 4), way)
    assert pipeline.between([1, 2], [3, 4], 2).shape == (2, 2, 1, 4, 4)
    mixed = pipeline.interpolate(images(1), 3, 3)
    assert rmse(mixed[0], images(1)) < 1e-3
    assert_close(mixed[-1], way[0], atol=1e-4, rtol=0)


def test_a_sample_is_the_same_alone_and_in_any_batch():
    pipeline, x = ideal_pipeline(PROBLEM), images(70)
    assert_close(pipeline.invert(x)[66:67], pipeline.invert(x[66:67]), rtol=0, atol=1e-6)


def test_images_are_taken_as_callers_have_them():
    network = hfgen.DiTModel(8, 1, 1, 2, hidden_size=8, num_layers=1, num_attention_heads=1)
    pipeline = hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler())
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(batch_size=2, num_inference_steps=2).images
    assert pipeline.invert(pictures, num_inference_steps=4).shape == (2, 1, 8, 8)
    assert pipeline.reconstruct(pictures[0], num_inference_steps=4).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.invert(torch.zeros(1, 1, 5, 4)), r"needs \(B, 1, 4, 4\)"),
        (lambda p: p.invert(torch.full((1, 1, 4, 4), math.nan)), "not finite"),
        (lambda p: p.invert(images(), num_inference_steps=0), "num_inference_steps=0"),
        (lambda p: p.invert(images(), method="euler"), "Choose ode or ddim"),
        (lambda p: p.invert(images(), class_labels=1), "without classes"),
        (lambda p: p.invert(images(), guidance_scale=2.0), "guidance_scale=2.0"),
        (lambda p: p.decode(torch.zeros(1, 3)), r"needs \(B, 1, 4, 4\)"),
        (lambda p: p.interpolate(images(2), images(3)), "both ends of one shape"),
        (lambda p: p.interpolate(images(), images(), 1), "must be at least 2"),
        (lambda p: p.invert(images(), scheduler="none"), "scheduler='none' is not known"),
        (lambda p: p.decode(images(), scheduler=3), "scheduler=3 must be a SchedulerMixin"),
        (lambda p: p.between(1, 2, scheduler=diffusers.DDIMScheduler()), "is for another model"),
        (lambda p: p.between(1, 2, kind="cubic"), "linear or spherical"),
        (lambda p: p.between(-1, 2), "seed -1"),
        (lambda p: p.between(1, [2, 3]), "both ends of one shape"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(ideal_pipeline(PROBLEM))
