"""Sampling: the law of what is drawn, guidance, seeds, callbacks, saving and loading without code, diffusers' parts."""

import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch.testing import assert_close

import hfgen
from hfgen import DenoisingPipeline, DiTModel, HFGenPipeline, PatchUNet2DModel
from hfgen.paths import broadcast, compose, path_from_config
from hfgen.registry import PATHS, SAMPLERS

EXACT = {"rtol": 0, "atol": 0}
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 8,
}
DIT = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "hidden_size": 32, "num_layers": 1}


def unet(**options):
    types = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(**types, **{**UNET, **options})


def patch_unet(**options):
    return PatchUNet2DModel(attention_levels=(False, True), **{**UNET, **options})


def dit(**options):
    return DiTModel(num_attention_heads=2, **{**DIT, **options})


NETWORKS = {"unet": unet, "patch_unet": patch_unet, "dit": dit}


def awake(network):
    """The network with every parameter drawn, so that nothing is zero and all of it matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.05)
    return network


def scheduler_of(sampler, path="straight", kind="flow_prediction"):
    cls, options = SAMPLERS[sampler]
    return getattr(hfgen, cls).from_config({**PATHS[path], "prediction_type": kind, **options})


def make(network="dit", sampler="rectified_flow", path="straight", kind="flow_prediction", classes=None, **options):
    names = options.pop("label_names", None)
    if classes is not None:
        options["num_class_embeds"] = classes + 1
    model = NETWORKS[network](**options) if isinstance(network, str) else network
    model = awake(model) if isinstance(network, str) else model
    pipeline = DenoisingPipeline(model, scheduler_of(sampler, path, kind), classes, names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def draw(pipeline, *numbers, steps=3, **options):
    call = {"generator": seeds(*numbers), "batch_size": len(numbers), "output_type": "latent"}
    return pipeline(num_inference_steps=steps, **{**call, **options}).images


class Gaussian(ModelMixin, ConfigMixin):
    """What an ideal network says of pixels N(mean, std^2): E[c_x x_0 + c_e eps | x_t] on one of PATHS."""

    mean, std = 0.2, 0.15

    @register_to_config
    def __init__(
        self, path: str = "straight", kind: str = "flow_prediction", in_channels: int = 1, sample_size: int = 16
    ):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))  # diffusers asks parameters for device and dtype
        self.path = path_from_config(PATHS[path])
        self.calls = 0

    def forward(self, sample, timestep, class_labels=None):
        self.calls += 1
        t = self.path.time_of(timestep.double())
        point, x = self.path(t), sample.double()
        x_t = x / broadcast(self.path.input_scale(t), x)
        alpha, sigma = broadcast(point.alpha, x), broadcast(point.sigma, x)
        x_0 = self.mean + self.std**2 * alpha / (self.std**2 * alpha**2 + sigma**2) * (x_t - alpha * self.mean)
        output = compose(self.config.kind, point, x_0, (x_t - alpha * x_0) / sigma)
        return SimpleNamespace(sample=output.to(sample.dtype))


class Classes(ModelMixin, ConfigMixin):
    """A network whose output on class c is (c + 1) x, and that records its calls."""

    @register_to_config
    def __init__(self, num_class_embeds: int = 4, in_channels: int = 1, sample_size: int = 4):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.calls = []

    def forward(self, sample, timestep, class_labels=None):
        self.calls.append((len(sample), timestep, class_labels))
        factor = 1 if class_labels is None else broadcast(class_labels + 1, sample)
        return SimpleNamespace(sample=sample * factor * 0.1)


# --- the law of the samples -------------------------------------------------------------------------------------------

LAWS = [
    ("rectified_flow", "straight", "flow_prediction", 30),
    ("euler", "straight", "v_prediction", 200),
    ("heun", "straight", "sample", 20),
    ("midpoint", "straight", "epsilon", 20),
    ("dpmsolver++", "straight", "flow_prediction", 20),
    ("ddpm", "straight", "flow_prediction", 300),
    ("dpmsolver++", "vp", "epsilon", 50),
    ("dpmsolver++", "cosine", "v_prediction", 50),
    ("ddim", "vp", "v_prediction", 1000),
    ("ddpm", "vp", "epsilon", None),
    ("dpmsolver++", "ve", "epsilon", 50),
    ("ddim", "ve", "sample", 100),
    ("rectified_flow", "linear_vp", "v_prediction", 60),
]


@pytest.mark.parametrize(("sampler", "path", "kind", "steps"), LAWS)
def test_an_ideal_network_gives_the_distribution_of_the_data(sampler, path, kind, steps):
    pipeline = make(Gaussian(path, kind), sampler, path, kind)
    x = pipeline(16, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="latent").images
    assert x.shape == (16, 1, 16, 16) and x.dtype == torch.float32
    count = x.numel()
    assert abs(x.mean() - Gaussian.mean) < 5 * Gaussian.std / count**0.5
    assert abs(x.std() / Gaussian.std - 1) < 5 / (2 * count) ** 0.5 + 0.01
    assert abs(((x - x.mean()) / x.std()).pow(4).mean() - 3) < 5 * (24 / count) ** 0.5
    assert pipeline.num_timesteps == pipeline.denoiser.calls


THEIRS = [
    ("DDIMScheduler", {"clip_sample": False}, "vp", "epsilon"),
    ("DPMSolverMultistepScheduler", {}, "vp", "epsilon"),
    ("EulerDiscreteScheduler", {}, "vp", "epsilon"),
    ("UniPCMultistepScheduler", {}, "cosine", "v_prediction"),
    ("HeunDiscreteScheduler", {}, "vp", "epsilon"),
    ("FlowMatchEulerDiscreteScheduler", {}, "straight", "flow_prediction"),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "straight", "flow_prediction"),
]


@pytest.mark.parametrize(("name", "options", "path", "kind"), THEIRS)
def test_schedulers_of_diffusers_do_what_they_do_by_hand(name, options, path, kind):
    pipeline = make(Gaussian(path, kind), "dpmsolver++", path, kind)
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    drawn = pipeline(8, num_inference_steps=40, generator=torch.Generator().manual_seed(0), output_type="latent").images

    scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    scheduler.set_timesteps(40)
    x = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(pipeline.denoiser(seen, t.expand(8)).sample, t, x).prev_sample
    assert torch.equal(drawn, x)
    assert abs(drawn.mean() - Gaussian.mean) < 0.02 and abs(drawn.std() / Gaussian.std - 1) < 0.25


@pytest.mark.parametrize(
    ("name", "path", "kind", "what"),
    [
        ("EulerDiscreteScheduler", "straight", "flow_prediction", "path=straight"),
        ("DDIMScheduler", "ve", "epsilon", "path=ve"),
        ("UniPCMultistepScheduler", "linear_vp", "epsilon", "path=linear_vp"),
        ("DPMSolverMultistepScheduler", "vp", "flow_prediction", "prediction_type=flow_prediction"),
        ("FlowMatchEulerDiscreteScheduler", "vp", "epsilon", "path=discrete"),
        ("FlowMatchEulerDiscreteScheduler", "ve", "epsilon", "path=ve"),
        ("FlowMatchEulerDiscreteScheduler", "straight", "epsilon", "prediction_type=epsilon"),
    ],
)
def test_a_scheduler_that_does_not_know_the_model_is_refused(name, path, kind, what):
    pipeline = make(Gaussian(path, kind), "dpmsolver++", path, kind)
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=rf"{what}.*diffusers' {name} does not know"):
        pipeline(num_inference_steps=2)


def test_use_scheduler_keeps_what_belongs_to_the_network_and_nothing_else():
    pipeline = make(Gaussian("cosine", "v_prediction"), "ddpm", "cosine", "v_prediction")
    pipeline.use_scheduler("dpmsolver++")
    fresh = scheduler_of("dpmsolver++", "cosine", "v_prediction")
    assert {k: v for k, v in pipeline.scheduler.config.items() if k[0] != "_"} == {
        k: v for k, v in fresh.config.items() if k[0] != "_"
    }
    for name in (*SAMPLERS, *SAMPLERS):  # no option of one scheduler is left to the next
        pipeline.use_scheduler(name)
        config, fresh = pipeline.scheduler.config, scheduler_of(name, "cosine", "v_prediction")
        facts = {"beta_schedule", "trained_betas", "beta_start", "beta_end", "rescale_betas_zero_snr"}
        for key in {k for k in fresh.config if k[0] != "_"} - facts:
            assert config[key] == fresh.config[key], (name, key)
        assert_close(pipeline.scheduler.alphas_cumprod, fresh.alphas_cumprod, **EXACT)
    pipeline.use_scheduler("dpmsolver++", solver_order=2)
    assert pipeline.scheduler.config.solver_order == 2
    with pytest.raises(ValueError, match=r"scheduler='dpm' is not known. Choose one of: ddpm, ddim"):
        pipeline.use_scheduler("dpm")


def test_use_scheduler_comes_back_from_schedulers_of_diffusers():
    for path, kind, theirs in (
        ("straight", "flow_prediction", "FlowMatchEulerDiscreteScheduler"),
        ("cosine", "v_prediction", "UniPCMultistepScheduler"),
    ):
        pipeline = make(Gaussian(path, kind), "dpmsolver++", path, kind)
        expected = draw(pipeline, 0, 1, steps=8)
        pipeline.scheduler = getattr(diffusers, theirs).from_config(pipeline.scheduler.config)
        pipeline.use_scheduler("dpmsolver++")
        assert_close(draw(pipeline, 0, 1, steps=8), expected, **EXACT)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()  # says what it is by its class alone
    pipeline.use_scheduler("euler")
    assert (pipeline.scheduler.config.path, pipeline.scheduler.config.prediction_type) == (
        "straight",
        "flow_prediction",
    )


def test_ours_inside_pipelines_of_diffusers():
    network = awake(unet())
    ours = DenoisingPipeline(network, hfgen.DDPMScheduler())
    for pipeline in (ours, theirs := diffusers.DDPMPipeline(network, hfgen.DDPMScheduler())):
        pipeline.set_progress_bar_config(disable=True)
    options = {"batch_size": 2, "num_inference_steps": 10, "output_type": "np"}
    a, b = (p(generator=torch.Generator().manual_seed(0), **options).images for p in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    theirs = diffusers.DDIMPipeline(network, hfgen.DDIMScheduler())
    theirs.set_progress_bar_config(disable=True)
    assert np.isfinite(theirs(generator=torch.Generator().manual_seed(0), **options).images).all()


# --- guidance ---------------------------------------------------------------------------------------------------------


def grid(steps, sampler="rectified_flow"):
    """The time steps of a scheduler."""
    scheduler = scheduler_of(sampler)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def guided(scale, steps=4, labels=(0, 2), **options):
    pipeline = make(Classes(), classes=3)
    return pipeline, draw(pipeline, 0, 1, steps=steps, class_labels=list(labels), guidance_scale=scale, **options)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_is_one_batched_forward_and_the_formula(scale):
    pipeline, drawn = guided(scale)
    assert [size for size, _, _ in pipeline.denoiser.calls] == [4] * 4
    assert all(labels.tolist() == [0, 2, 3, 3] for _, _, labels in pipeline.denoiser.calls)

    scheduler, network = scheduler_of("rectified_flow"), Classes()
    scheduler.set_timesteps(4)
    x = torch.cat([torch.randn(1, 1, 4, 4, generator=g) for g in seeds(0, 1)])
    for t in scheduler.timesteps:
        with_class = network(x, t, torch.tensor([0, 2])).sample
        without = network(x, t, torch.tensor([3, 3])).sample
        x = scheduler.step(scale * with_class + (1 - scale) * without, t, x).prev_sample
    assert_close(drawn, x, rtol=1e-5, atol=1e-6)


def test_without_guidance_the_batch_is_not_doubled():
    pipeline, _ = guided(1.0)
    assert [(size, labels.tolist()) for size, _, labels in pipeline.denoiser.calls] == [(2, [0, 2])] * 4
    pipeline.denoiser.calls.clear()
    draw(pipeline, 0, 1)
    assert all(labels.tolist() == [3, 3] for _, _, labels in pipeline.denoiser.calls)


def test_guidance_only_within_its_interval():
    pipeline, _ = guided(2.0, steps=10, guidance_interval=(0.25, 0.65))
    sizes = {float(t.flatten()[0]): size for size, t, _ in pipeline.denoiser.calls}
    assert sizes == {t: 4 if 250 <= t <= 650 else 2 for t in grid(10)}
    assert set(sizes.values()) == {2, 4}


@pytest.mark.parametrize(
    "interval", [(0.8, 0.2), (math.nan, 0.5), (0.0, math.nan), (-0.1, 1.0), (0.0, 1.1), (0.1, 0.2, 1)]
)
def test_an_interval_without_times_is_refused(interval):
    with pytest.raises(ValueError, match=r"guidance_interval=.* (0 <= low <= high <= 1|must be 2 values)"):
        guided(2.0, steps=2, guidance_interval=interval)


def test_the_interval_is_of_times_on_the_path():
    """On a table of 1000 entries the time of entry i is (i + 1)/1000."""
    pipeline = make(Classes(), "ddim", "vp", "epsilon", classes=3)
    for interval, guided_steps in (
        ((0.0, 0.5), {499, 249}),
        ((0.25, 0.75), {749, 499, 249}),
        ((0.5, 1.0), {999, 749, 499}),
    ):
        pipeline.denoiser.calls.clear()
        draw(pipeline, 0, steps=4, class_labels=1, guidance_scale=2.0, guidance_interval=interval)
        sizes = {int(t.flatten()[0]): size for size, t, _ in pipeline.denoiser.calls}
        assert set(sizes) == {999, 749, 499, 249}
        assert {t for t, size in sizes.items() if size == 2} == guided_steps


@pytest.mark.parametrize("name", ["guidance_scale", "_guidance_scale"])
def test_a_callback_changes_the_guidance_of_later_steps(name):
    pipeline, scales = make(Classes(), classes=3), []

    def callback(pipe, i, t, tensors):
        scales.append(pipe.guidance_scale)
        if i == 1:
            setattr(pipe, name, 1.0)

    options = {"class_labels": 1, "guidance_scale": 3.0, "callback_on_step_end": callback}
    changed = draw(pipeline, 0, steps=4, **options)
    assert [size for size, _, _ in pipeline.denoiser.calls] == [2, 2, 1, 1] and scales == [3.0, 3.0, 1.0, 1.0]
    sizes = grid(4)
    interval = ((sizes[1] - 1) / 1000, 1.0)
    assert_close(changed, draw(pipeline, 0, steps=4, class_labels=1, guidance_scale=3.0, guidance_interval=interval))
    with pytest.raises(ValueError, match=r"guidance_scale=3\.0 can't be used: class_labels are needed"):
        draw(pipeline, 0, steps=3, callback_on_step_end=lambda pipe, *_: setattr(pipe, "_guidance_scale", 3.0))
    assert torch.equal(draw(pipeline, 0, class_labels=1), draw(make(Classes(), classes=3), 0, class_labels=1))


def test_the_guidance_of_a_thread_is_its_own():
    pipeline, start = make("dit", classes=3), threading.Barrier(4)
    alone = {n: draw(pipeline, n, class_labels=1, guidance_scale=1.0 + n) for n in range(4)}
    together = {}

    def work(n):
        def callback(pipe, i, t, tensors):
            start.wait(timeout=60)  # all are in their callbacks at once
            pipe._guidance_scale = 1.0 + n

        options = {"class_labels": 1, "guidance_scale": 1.0 + n, "callback_on_step_end": callback}
        together[n] = draw(pipeline, n, **options)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[n], alone[n]) for n in range(4))


# --- the grid of a call -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmsolver++", "euler"])
def test_a_call_may_have_its_own_time_steps(sampler):
    pipeline = make(Gaussian("vp", "epsilon"), sampler, "vp", "epsilon")
    for timesteps in ([900, 500, 100], torch.tensor([900, 500, 100]), np.array([900, 500, 100])):
        pipeline(1, timesteps=timesteps, output_type="latent")
        assert pipeline.num_timesteps == 3
    seen = []
    pipeline(timesteps=[900, 500, 100], callback_on_step_end=lambda pipe, i, t, _: seen.append(int(t)) or {})
    assert seen == [900, 500, 100]
    for options in ({"num_inference_steps": 4}, {"sigmas": [1.0, 0.5]}):
        with pytest.raises(ValueError, match="Give one of num_inference_steps, timesteps and sigmas"):
            pipeline(timesteps=[900, 500, 100], **options)
    with pytest.raises(ValueError, match="strictly falling"):
        pipeline(timesteps=[100, 500])
    with pytest.raises(ValueError, match="Give timesteps on other paths"):
        pipeline(sigmas=[1.0, 0.5])


def test_a_call_may_have_its_own_noise_levels():
    pipeline, seen = make(), []
    pipeline(sigmas=[1.0, 0.6, 0.2], callback_on_step_end=lambda pipe, i, t, _: seen.append(float(t)) or {})
    assert seen == [1000.0, pytest.approx(600.0), pytest.approx(200.0)]
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline(sigmas=[1.0, 0.6, 0.2])
    assert pipeline.num_timesteps == 3
    pipeline.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler takes no sigmas"):
        pipeline(sigmas=[1.0, 0.6, 0.2])


@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep", "LCM", "IPNDM", "DDIMInverse", "FlowMatchLCM"])
def test_schedulers_of_networks_of_another_kind_are_refused(name):
    pipeline = make(Gaussian("vp", "epsilon"), "dpmsolver++", "vp", "epsilon")
    pipeline.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=f"diffusers' {name}Scheduler draws from networks of its own kind"):
        pipeline(num_inference_steps=2)
    pipeline.use_scheduler("dpmsolver++")  # the configuration still has the facts
    assert pipeline(2, num_inference_steps=20, output_type="latent").images.isfinite().all()


def test_guidance_that_can_not_be_is_refused():
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 can't be used: class_labels are needed"):
        draw(make(Classes(), classes=3), 0, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 can't be used: the model was trained without"):
        draw(make(Classes(num_class_embeds=3), classes=3), 0, class_labels=1, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"needs class_labels, from 0 to 2"):
        draw(make(Classes(num_class_embeds=3), classes=3), 0)
    assert draw(make(Classes(num_class_embeds=3), classes=3), 0, class_labels=1).shape == (1, 1, 4, 4)


# --- seeds and batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["rectified_flow", "ddpm"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_batch_is_its_singles(network, sampler):
    pipeline = make(network, sampler, classes=3)
    labels = [2, 0, 1]
    batch = draw(pipeline, 5, 6, 7, class_labels=labels, guidance_scale=1.5)
    for i, label in enumerate(labels):
        single = draw(pipeline, 5 + i, class_labels=label, guidance_scale=1.5)
        assert_close(batch[i : i + 1], single, rtol=0, atol=1e-5)
    assert (batch[0] - batch[1]).abs().max() > 0.1


@pytest.mark.parametrize("sampler", ["ddpm", "dpmsolver++", "rectified_flow"])
def test_threads_do_not_meet(sampler):
    pipeline = make("dit", sampler, classes=3)
    steps = {n: 3 + n % 3 for n in range(8)}
    alone = {n: draw(pipeline, n, steps=steps[n], class_labels=n % 3) for n in range(8)}
    together, start = {}, threading.Barrier(8)

    def work(n):
        start.wait()
        together[n] = draw(pipeline, n, steps=steps[n], class_labels=n % 3)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(8):
        assert torch.equal(together[n], alone[n])


def test_latents_are_the_noise():
    pipeline = make()
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    samples = pipeline(2, num_inference_steps=3, latents=noise, output_type="latent").images
    drawn = pipeline(2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="latent").images
    assert torch.equal(samples, drawn)
    with pytest.raises(ValueError, match=r"latents have shape \(2, 1, 8, 8\); this call needs \(3, 1, 8, 8\)"):
        pipeline(3, latents=noise)
    exploding = make(Gaussian("ve", "epsilon"), "ddim", "ve", "epsilon")
    out = exploding(2, latents=torch.zeros(2, 1, 16, 16), num_inference_steps=2, return_trajectory=True)
    assert not out.trajectory[0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": 3}, r"class 3 is not known: give a number from 0 to 2, or one of cat, dog, owl"),
        ({"class_labels": -1}, r"class -1 is not known"),
        ({"class_labels": "cow"}, r"class 'cow' is not known"),
        ({"class_labels": [0, "cow"]}, r"class 'cow' is not known"),
        ({"class_labels": torch.tensor([0.5])}, r"class 0\.5 is not known"),
        ({"class_labels": [0, 1], "batch_size": 3}, r"batch_size=3 but 2 class_labels"),
        ({"class_labels": []}, r"0 class_labels"),
        ({"batch_size": 0}, r"batch_size=0 must be at least 1"),
        ({"num_inference_steps": 0}, r"num_inference_steps=0"),
        ({"generator": seeds(0, 1), "batch_size": 3}, r"2 generators for 3 samples"),
        ({"generator": seeds(0), "batch_size": 3}, r"1 generators for 3 samples"),
        ({"output_type": "tensor", "num_inference_steps": 1}, r"output_type='tensor' is not known. Choose pil, np, pt"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(Classes(), classes=3, label_names=["cat", "dog", "owl"])(**options)


def test_labels_by_number_name_and_tensor_are_the_same():
    pipeline = make(Classes(), classes=3, label_names=["cat", "dog", "owl"])
    expected = draw(pipeline, 0, 1, class_labels=[1, 1])
    for labels in (1, "dog", ["dog", 1], torch.tensor([1, 1]), torch.tensor(1), np.array([1, 1]), np.int64(1), (1, 1)):
        assert torch.equal(draw(pipeline, 0, 1, class_labels=labels), expected)
    assert pipeline(class_labels=range(3), num_inference_steps=1, output_type="latent").images.shape[0] == 3
    with pytest.raises(ValueError, match=r"trained without classes"):
        make()(class_labels=0)


# --- output -----------------------------------------------------------------------------------------------------------


def test_output_types_and_ranges():
    pipeline = make("dit", in_channels=3, out_channels=3)
    latent = draw(pipeline, 0, 1)
    pt, array, pil = (draw(pipeline, 0, 1, output_type=kind) for kind in ("pt", "np", "pil"))
    expected = latent.clamp(-1, 1) / 2 + 0.5
    assert latent.abs().max() > 1  # else this could not tell whether images are clamped
    assert_close(pt, expected)
    assert array.shape == (2, 8, 8, 3) and array.dtype == np.float32
    np.testing.assert_allclose(array, expected.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    pixels = np.stack([np.asarray(image) for image in pil])
    np.testing.assert_array_equal(pixels, (array * 255).round().astype("uint8"))
    images, trajectory = pipeline(num_inference_steps=1, return_dict=False)
    assert images[0].size == (8, 8) and trajectory is None


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pil_modes(channels, mode):
    pipeline = make("dit", in_channels=channels, out_channels=channels)
    (image,) = draw(pipeline, 0, output_type="pil")
    assert (image.mode, image.size) == (mode, (8, 8))


def test_channels_without_a_pil_mode():
    pipeline = make("dit", in_channels=2, out_channels=2)
    assert draw(pipeline, 0, output_type="np").shape == (1, 8, 8, 2)
    with pytest.raises(ValueError, match=r"Images with 2 channels have no PIL mode; use output_type='np' or 'pt'"):
        draw(pipeline, 0, output_type="pil")


def test_images_need_not_be_square():
    assert draw(make("dit", sample_size=(8, 12)), 0).shape == (1, 1, 8, 12)


def test_the_trajectory_leads_from_noise_to_the_sample():
    pipeline = make("dit", "dpmsolver++")
    out = pipeline(2, num_inference_steps=5, generator=seeds(0, 1), output_type="latent", return_trajectory=True)
    assert out.trajectory.shape == (6, 2, 1, 8, 8)
    noise = torch.cat([torch.randn(1, 1, 8, 8, generator=g) for g in seeds(0, 1)])
    assert_close(out.trajectory[0], noise)
    assert torch.equal(out.trajectory[-1], out.images)
    assert all((a - b).abs().max() > 0 for a, b in zip(out.trajectory, out.trajectory[1:], strict=False))


def test_callbacks_watch_replace_and_interrupt():
    pipeline, seen = make(), []

    def watch(pipe, i, t, tensors):
        seen.append((i, float(t), tensors["latents"].clone()))
        return {} if i else None

    out = pipeline(
        2,
        num_inference_steps=4,
        generator=seeds(0, 1),
        output_type="latent",
        return_trajectory=True,
        callback_on_step_end=watch,
    )
    assert [(i, t) for i, t, _ in seen] == list(enumerate(grid(4)))
    assert torch.equal(torch.stack([x for _, _, x in seen]), out.trajectory[1:])
    assert torch.equal(out.images, draw(pipeline, 0, 1, steps=4))

    ones = torch.ones(2, 1, 8, 8)
    replaced = draw(pipeline, 0, 1, steps=4, callback_on_step_end=lambda *a: {"latents": ones} if a[1] == 3 else None)
    assert torch.equal(replaced, ones)

    def stop(pipe, i, t, tensors):
        pipe._interrupt = i == 1

    assert torch.equal(draw(pipeline, 0, 1, steps=4, callback_on_step_end=stop), seen[1][2])
    assert torch.equal(draw(pipeline, 0, 1, steps=4), out.images)  # the next call is not interrupted


# --- saving and loading -----------------------------------------------------------------------------------------------

AGAIN = """
import sys
from pathlib import Path
import torch
from hfgen import DenoisingPipeline, HFGenPipeline

for folder in sorted(Path(sys.argv[1]).iterdir()):
    pipeline = HFGenPipeline.from_pretrained(folder)
    assert type(pipeline) is DenoisingPipeline
    pipeline.set_progress_bar_config(disable=True)
    expected = torch.load(folder / "expected.pt")
    seeds = [torch.Generator().manual_seed(n) for n in range(2)]
    samples = pipeline(
        class_labels=["dog", "cat"], num_inference_steps=3, guidance_scale=2.0, generator=seeds, output_type="latent"
    ).images
    assert torch.equal(samples, expected), (folder.name, (samples - expected).abs().max())
    assert type(pipeline.scheduler).__module__.split(".")[0] == folder.name.split("-")[2], pipeline.scheduler
"""


def test_a_fresh_process_draws_the_same_bits(tmp_path):
    """Every network with ours and theirs; two class names look like a component's entry in the index."""
    schedulers = {
        "ddpm-hfgen": lambda: scheduler_of("ddpm", "vp", "epsilon"),
        "ddim-hfgen": lambda: scheduler_of("ddim", "cosine", "v_prediction"),
        "dpm-hfgen": lambda: scheduler_of("dpmsolver++", "ve", "epsilon"),
        "heun-hfgen": lambda: scheduler_of("heun"),
        "ddim-diffusers": lambda: diffusers.DDIMScheduler(clip_sample_range=0.5),
        "flow-diffusers": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
    }
    for name, network in NETWORKS.items():
        for key, scheduler in schedulers.items():
            pipeline = DenoisingPipeline(awake(network(num_class_embeds=3)), scheduler(), 2, ["cat", "dog"])
            pipeline.set_progress_bar_config(disable=True)
            folder = tmp_path / f"{name}-{key}"
            pipeline.save_pretrained(folder)
            drawn = draw(pipeline, 0, 1, class_labels=["dog", "cat"], guidance_scale=2.0)
            torch.save(drawn, folder / "expected.pt")
    done = fresh(AGAIN, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def fresh(code, *arguments):
    """Run code in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "a" / "saved"
    make("dit", classes=2, label_names=["cat", "dog"]).save_pretrained(folder)
    return folder


def test_what_is_saved_names_no_machine(saved, tmp_path):
    again = tmp_path / "b"
    HFGenPipeline.from_pretrained(saved).save_pretrained(again)
    files = sorted(str(p.relative_to(again)) for p in again.rglob("*") if p.is_file())
    index = json.loads((again / "model_index.json").read_text())
    assert files == [
        "denoiser/config.json",
        "denoiser/diffusion_pytorch_model.safetensors",
        f"denoiser/{index['denoiser'][0]}.py",
        f"{index['_class_name'][0]}.py",
        "model_index.json",
        f"scheduler/{index['scheduler'][0]}.py",
        "scheduler/scheduler_config.json",
    ]
    for name in files:
        assert (again / name).read_bytes() == (saved / name).read_bytes()
        assert str(tmp_path).encode() not in (again / name).read_bytes()
    assert index["denoiser"][1] == "DiTModel" and index["label_names"] == {"0": "cat", "1": "dog"}


CANARIES = ("pipeline.py", "denoiser/hfgen.py", "denoiser/any.py", "denoiser/dit.py", "scheduler/hfgen.py", "hfgen.py")


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def plant(folder, mark):
    for name in CANARIES:
        (folder / name).write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass DiTModel: pass\n")
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.pkl"):
        (folder / "denoiser" / name).write_bytes(pickle.dumps({"weight": Bomb(mark)}))
        shutil.copy(folder / "denoiser" / name, folder / name)


@pytest.mark.parametrize("front", [HFGenPipeline, DenoisingPipeline])
def test_loading_runs_no_code_from_the_folder(saved, tmp_path, front, monkeypatch):
    monkeypatch.chdir(saved)  # where a careless import would look
    mark = tmp_path / "mark"
    expected = draw(HFGenPipeline.from_pretrained(saved), 0)
    plant(saved, mark)
    assert torch.equal(draw(front.from_pretrained(saved), 0), expected)
    index = json.loads((saved / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "DenoisingPipeline"]  # as code that comes with a folder is declared
    index["denoiser"] = ["dit", "DiTModel"]
    (saved / "model_index.json").write_text(json.dumps(index))
    assert torch.equal(draw(front.from_pretrained(saved), 0), expected)
    assert not mark.exists()


def test_weights_that_only_a_pickle_holds_are_refused(saved, tmp_path):
    mark = tmp_path / "mark"
    plant(saved, mark)
    (saved / "denoiser" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.safetensors"):
        HFGenPipeline.from_pretrained(saved)
    assert not mark.exists()


@pytest.mark.parametrize(
    "entry", [["evil", "Evil"], ["os", "system"], ["torch.nn", "Linear"], [None, None], "hfgen", None, ["hfgen"]]
)
def test_components_from_elsewhere_are_refused(saved, tmp_path, entry):
    index = json.loads((saved / "model_index.json").read_text())
    (saved / "model_index.json").write_text(json.dumps({**index, "denoiser": entry}))
    (saved / "denoiser" / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ValueError, match=r"as denoiser, which is no network or scheduler of hfgen or diffusers"):
        HFGenPipeline.from_pretrained(saved)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "options", [{"trust_remote_code": True}, {"custom_pipeline": "pipeline"}, {"custom_revision": "main"}]
)
def test_nobody_can_ask_for_code_to_be_run(saved, options):
    for front in (HFGenPipeline, DenoisingPipeline):
        with pytest.raises(ValueError, match=rf"{next(iter(options))} would run code"):
            front.from_pretrained(saved, **options)


def test_folders_that_are_no_pipeline_of_ours(saved, tmp_path):
    with pytest.raises(ValueError, match=r"is not a saved pipeline: there is no model_index\.json"):
        HFGenPipeline.from_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"no folder someone/something, and .* is not in the cache"):
        HFGenPipeline.from_pretrained("someone/something")
    with pytest.raises(ValueError, match=r"a/b/c is neither a folder with a saved pipeline nor a name of a repository"):
        HFGenPipeline.from_pretrained("a/b/c")

    class OtherPipeline(HFGenPipeline):
        pass

    with pytest.raises(ValueError, match=r"holds a DenoisingPipeline, not an OtherPipeline"):
        OtherPipeline.from_pretrained(saved)
    index = json.loads((saved / "model_index.json").read_text())
    (saved / "model_index.json").write_text(json.dumps({**index, "_class_name": "DDPMPipeline"}))
    with pytest.raises(ValueError, match=r"holds a DDPMPipeline\. The families .* load are: .*DenoisingPipeline"):
        HFGenPipeline.from_pretrained(saved)
    del index["_class_name"]
    (saved / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"The families hfgen can load are"):
        HFGenPipeline.from_pretrained(saved)


def test_loading_options_still_work(saved, tmp_path):
    pipeline = HFGenPipeline.from_pretrained(saved)
    half = HFGenPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.denoiser.dtype == torch.bfloat16
    images = draw(half, 0, class_labels=1, guidance_scale=2.0)
    assert images.dtype == torch.float32  # only the network is in half precision
    assert_close(images, draw(pipeline, 0, class_labels=1, guidance_scale=2.0), rtol=0, atol=0.2)

    pipeline.save_pretrained(tmp_path / "variant", variant="fp16")
    assert re.search(r"\.fp16\.safetensors", " ".join(p.name for p in (tmp_path / "variant" / "denoiser").iterdir()))
    again = HFGenPipeline.from_pretrained(tmp_path / "variant", variant="fp16")
    assert torch.equal(draw(again, 0), draw(pipeline, 0))
    other = HFGenPipeline.from_pretrained(saved, scheduler=scheduler_of("heun"))
    assert other.scheduler.config.solver == "heun"
    assert HFGenPipeline.from_pretrained(saved).null_label == 2


def test_networks_are_in_evaluation_mode():
    pipeline = make(awake(unet(dropout=0.5)).train())
    assert not pipeline.denoiser.training
    assert torch.equal(draw(pipeline, 0), draw(pipeline, 0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"batch_size": 1.5}, "batch_size=1.5 must be a whole number"),
        ({"batch_size": "3"}, "batch_size='3' must be a whole number"),
        ({"batch_size": True}, "batch_size=True must be a whole number"),
        ({"batch_size": 10**23}, "batch_size=10+ must be a whole number from 1"),
        ({"num_inference_steps": 1.5}, "num_inference_steps=1.5 must be a whole number"),
        ({"num_inference_steps": "x"}, "num_inference_steps='x' must be a whole number"),
        ({"num_inference_steps": 10**23}, "num_inference_steps=10+ must be a whole number from 1"),
        ({"guidance_scale": "a"}, "guidance_scale='a' must be a number"),
        ({"generator": 3}, "generator=3 must be a Generator"),
    ],
)
def test_arguments_of_a_wrong_type_or_size_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(classes=3)(**{"class_labels": 1, "num_inference_steps": 2, **call})


def test_an_argument_that_no_family_takes_is_said_to_be_such():
    with pytest.raises(ValueError, match=r"takes no eta \(1 given\), and no other family does"):
        DenoisingPipeline.call_with(eta=1)
