"""Consistency sampling: estimates and new noise, on every path, from the level that a generator has learnt."""

import logging
import math

import pytest
import torch
from torch.testing import assert_close

import hfgen
from hfgen.objectives.distilled import OneStep
from hfgen.paths import path_from_config
from hfgen.registry import PATHS
from hfgen.schedulers.table import scales
from tests.helpers.gaussian import F64, Gaussian, ideal_pipeline

PROBLEM = Gaussian()
SHAPE = (2, 1, 4, 4)


def made(path="straight", kind="flow_prediction", **options):
    return hfgen.ConsistencyScheduler.from_config({**PATHS[path], "prediction_type": kind}, **options)


def normal(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction", "sample"])
def test_a_step_goes_to_the_estimate_and_adds_new_noise_of_the_next_time(path, kind):
    scheduler, curve = made(path, kind), path_from_config(PATHS[path])
    scheduler.set_timesteps(3)
    x, times = normal(), curve.time_of(scheduler.timesteps.double()).tolist()
    assert times == sorted(times, reverse=True) and times[-1] > 0.05
    for i, t in enumerate(times):
        now = scales(curve, t)
        estimate = PROBLEM.x_0(x, now.alpha, now.sigma)
        eps = (x - now.alpha * estimate) / now.sigma
        point = curve(torch.tensor(t, dtype=F64))
        output = hfgen.paths.compose(kind, point, estimate, eps)
        drawn = scheduler.step(output, scheduler.timesteps[i], x, generator=torch.Generator().manual_seed(9))
        if i == 2:
            expected = estimate
        else:
            then = scales(curve, times[i + 1])
            expected = then.alpha * estimate + then.sigma * normal(9)
        assert_close(drawn.prev_sample, expected, rtol=1e-4, atol=2e-4)
        x = drawn.prev_sample


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ratio", [0.5, 2.5])
def test_the_first_step_starts_at_the_level_that_a_generator_has_learnt(path, ratio):
    pipeline = ideal_pipeline(PROBLEM, path, "epsilon")
    pipeline.scheduler = hfgen.ConsistencyScheduler.from_config(pipeline.scheduler.config, start_ratio=ratio)
    shape = (3, *pipeline.sample_shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    images = pipeline(batch_size=3, latents=noise, output_type="latent").images
    one = OneStep(path_from_config(pipeline.scheduler.config), "epsilon", ratio=ratio)
    with torch.no_grad():
        assert_close(images, one(pipeline.denoiser, noise, {}), rtol=1e-4, atol=1e-4)
    now = scales(one.path, float(one.time))
    assert now.sigma / now.alpha == pytest.approx(ratio, rel=0.02)  # tables have steps
    pipeline.use_scheduler("ddim")
    pipeline.use_scheduler("consistency")
    assert pipeline.scheduler.config.start_ratio == ratio


def test_it_is_said_that_a_generator_of_one_level_is_asked_for_others(caplog):
    pipeline = ideal_pipeline(PROBLEM, "straight", "epsilon")
    pipeline.scheduler = hfgen.ConsistencyScheduler.from_config(pipeline.scheduler.config, start_ratio=1.75)
    with caplog.at_level(logging.WARNING):
        pipeline(batch_size=2, output_type="latent")
        assert not caplog.records
        for _ in range(2):  # said once
            pipeline(batch_size=2, output_type="latent", scheduler="ddim", num_inference_steps=3)
        pipeline(batch_size=2, output_type="latent", num_inference_steps=2)
        pipeline.use_scheduler("rectified_flow")
        pipeline(batch_size=2, output_type="latent", num_inference_steps=1)
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(". ")[1].split(" asks ")[0] for text in said] == [
        "DDIMScheduler in 3 steps",
        "ConsistencyScheduler in 2 steps",
        "RectifiedFlowScheduler in 1 step",
    ]
    assert all("from noise 1.75 times as strong as the signal" in text for text in said)


def test_levels_are_even_and_shifted_but_the_first():
    scheduler = made(start_ratio=1.5)
    scheduler.set_timesteps(3)
    assert_close(scheduler.timesteps.tolist(), [600.0, 400.0, 200.0], rtol=1e-5, atol=1e-3)
    scheduler = made(start_ratio=1.5, shift=3.0)
    scheduler.set_timesteps(2)
    assert_close(scheduler.timesteps.tolist(), [600.0, 600 * 1.5 / 2], rtol=1e-5, atol=1e-3)
    assert made().default_num_inference_steps == 1 and made().r_timesteps.abs().max() == 0


@pytest.mark.parametrize("options", [{"start_ratio": 0.0}, {"start_ratio": math.inf}, {"shift": -1.0}])
def test_levels_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be positive and finite"):
        made(**options)


def test_noise_does_not_lead_back():
    pipeline = ideal_pipeline(PROBLEM)
    with pytest.raises(ValueError, match="draws noise in its steps"):
        pipeline.invert(torch.zeros(1, *pipeline.sample_shape), scheduler="consistency")
