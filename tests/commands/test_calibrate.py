"""`hfgen calibrate`: what it writes, that nothing else of a pipeline changes, and what it refuses."""

import functools
import json
from types import SimpleNamespace

import diffusers
import pytest
import torch

import hfgen
from hfgen import cli
from hfgen.training import train_diffusion, train_gan
from tests.helpers.gaussian import Gaussian, IdealDenoiser, ideal_pipeline

FEW = [
    "--max_train_steps",
    "1",
    "--train_batch_size",
    "8",
    "--report_to",
    "none",
    "--eval_batch_size",
    "4",
    "--max_train_samples",
    "80",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate") / "model"
    words = [
        "--model",
        "dit",
        "--model_size",
        "xs",
        "--path",
        "vp",
        "--prediction_type",
        "epsilon",
        "--class_conditional",
    ]
    train_diffusion.main([*FEW, *words, "--num_inference_steps", "2", "--output_dir", str(folder)])
    return folder


def options_of(folder):
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))


def weights_of(folder):
    return (folder / "denoiser" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_a_calibration_adds_to_the_scheduler_and_changes_nothing_else(trained, tmp_path, capsys):
    before = options_of(trained)
    words = ["--num_images", "80", "--num_levels", "8", "--device", "cpu"]
    cli.main(["calibrate", str(trained), *words, "--output_dir", str(tmp_path / "new")])
    assert "8-bit levels" in capsys.readouterr().out
    after = options_of(tmp_path / "new")
    assert {key: after[key] for key in before if key not in ("variance_type", "_default_options")} == {
        key: value for key, value in before.items() if key not in ("variance_type", "_default_options")
    }
    assert after["variance_type"] == "analytic" and len(after["data_variances"]) == 8
    assert weights_of(trained) == weights_of(tmp_path / "new") and options_of(trained) == before
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "new")
    assert type(pipeline.scheduler).__name__ == before["_class_name"]
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for kind in ("analytic", "fixed_small"):
        pipeline.use_scheduler("ddpm", variance_type=kind)
        call = {"class_labels": 3, "num_inference_steps": 4, "output_type": "latent"}
        images.append(pipeline(generator=torch.Generator().manual_seed(0), **call).images)
    assert not torch.equal(*images)
    # once more, in place: what was measured before is replaced
    cli.main(["calibrate", str(tmp_path / "new"), *words, "--kind", "residual", "--num_levels", "5"])
    assert len(options_of(tmp_path / "new")["data_variances"]) == 5


@pytest.mark.parametrize("kind", ["npr", "sn", "ocm"])
def test_a_head_is_trained_saved_and_used(trained, tmp_path, kind):
    words = ["--kind", kind, "--max_train_steps", "3", "--train_batch_size", "8", "--device", "cpu"]
    cli.main(["calibrate", str(trained), *words, "--output_dir", str(tmp_path / "head")])
    assert weights_of(trained) == weights_of(tmp_path / "head")
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "head")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config["variance_type"] == kind
    call = {"class_labels": [1, 2], "num_inference_steps": 3, "output_type": "latent"}
    plain = pipeline(generator=torch.Generator().manual_seed(0), **call).images  # DPM-Solver++ needs no head
    pipeline.use_scheduler("ddpm")
    drawn = pipeline(generator=torch.Generator().manual_seed(0), **call).images
    assert drawn.isfinite().all() and not torch.equal(plain, drawn)
    assert pipeline.variational_bound(torch.zeros(2, 1, 8, 8) - 1, [1, 2], 5).isfinite().all()
    pipeline.variance_head = None
    with pytest.raises(ValueError, match=f"variance_type='{kind}' needs a variance_head.*hfgen calibrate"):
        pipeline(**call)


def test_what_can_not_be_calibrated_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_gan.main([*FEW, "--model", "mlp", "--model_size", "xs", "--health_steps", "0", "--output_dir", "gan"])
    for words, named in (
        (["nowhere"], r"nowhere is no folder.*--output_dir FOLDER"),
        (["gan"], "gan holds a GANPipeline; only a pipeline with a denoiser"),
        ([str(trained), "--kind", "npr", "--num_images", "7"], "--num_images 7"),
        ([str(trained), "--max_train_steps", "7"], "--max_train_steps 7"),
        ([str(trained), "--num_images", "2", "--num_levels", "64"], "too few for 64 levels|levels of noise"),
        ([str(trained), "--kind", "best"], "best"),
    ):
        with pytest.raises((ValueError, SystemExit)) as stop:
            cli.main(["calibrate", *words])
        if isinstance(stop.value, ValueError):
            assert stop.match(named)


class AtAnyTimes(IdealDenoiser):
    """The ideal network for items at different times."""

    def forward(self, sample, timestep, class_labels=None):
        output = torch.empty_like(sample)
        for time in timestep.unique():
            rows = timestep == time
            output[rows] = super().forward(sample[rows], timestep[rows]).sample
        return SimpleNamespace(sample=output)


def ideal(problem, path, kind):
    pipeline = ideal_pipeline(problem, path, kind)
    pipeline.denoiser.__class__ = AtAnyTimes
    return pipeline


# --- the pipeline's own method ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "kind"), [("vp", "epsilon"), ("straight", "flow_prediction"), ("ve", "sample")])
def test_a_calibrated_pipeline_has_the_posteriors_variance(path, kind):
    problem, pipeline = Gaussian(0.0, 0.4), ideal(Gaussian(0.0, 0.4), path, kind)
    x = 0.4 * torch.randn(600, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    table = pipeline.calibrate(
        x, kind="residual", num_levels=10, generator=torch.Generator().manual_seed(1), batch_size=600
    )
    for s, variance in table:
        ratio = (1 - s) / s
        assert variance == pytest.approx(1 / (1 / problem.std**2 + ratio**2), rel=0.15)
    assert pipeline.scheduler.config.variance_type == "analytic"


def test_bounds_fall_with_better_variances():
    """On narrow data the measured variance bounds better than both fixed ones, at every number of steps."""
    problem = Gaussian(0.1, 0.25)
    x = (
        ((0.1 + 0.25 * torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))).clamp(-1, 1) + 1) * 127.5
    ).round()
    x = x / 127.5 - 1
    pipeline = ideal(problem, "vp", "epsilon")
    pipeline.calibrate(x, kind="residual", num_levels=16, repeats=16, generator=torch.Generator().manual_seed(1))
    for steps in (5, 10, 50):
        bits = {}
        for kind in ("analytic", "fixed_small", "fixed_large"):
            pipeline.use_scheduler("ddpm", variance_type=kind, clip_sample=False)
            generator = torch.Generator().manual_seed(2)
            bits[kind] = float(pipeline.variational_bound(x, None, steps, generator).mean())
        assert bits["analytic"] < min(bits["fixed_small"], bits["fixed_large"]), (steps, bits)


def test_a_calibrated_pipeline_takes_other_schedulers_and_other_weights_forget_it():
    pipeline = ideal(Gaussian(0.0, 0.4), "vp", "epsilon")
    before = hfgen.DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.calibrate(torch.zeros(16, 1, 4, 4), num_levels=8, generator=torch.Generator().manual_seed(0))
    images = {}
    for name, scheduler in {
        "own": None,
        "before": before,
        "fixed": hfgen.DDPMScheduler.from_config(pipeline.scheduler.config, variance_type="fixed_small"),
        "diffusers": diffusers.DDPMScheduler.from_config(pipeline.scheduler.config),
    }.items():
        call = {"num_inference_steps": 5, "scheduler": scheduler, "output_type": "latent"}
        images[name] = pipeline(2, generator=torch.Generator().manual_seed(0), **call).images
    assert torch.equal(images["before"], images["fixed"]) and not torch.equal(images["own"], images["fixed"])
    noisy = hfgen.DDIMScheduler.from_config(pipeline.scheduler.config, optimal_variance=True)
    with pytest.raises(ValueError, match="DDIMScheduler draws noise in its steps"):
        pipeline.decode(torch.zeros(1, 1, 4, 4), scheduler=noisy)
    pipeline.forget_variances()
    assert pipeline.scheduler.config.get("data_variances") is None
    assert pipeline.scheduler.config.variance_type == "fixed_small" and pipeline.variance_head is None


def test_a_scheduler_of_diffusers_keeps_what_is_measured_for_hfgens():
    pipeline = ideal(Gaussian(0.0, 0.4), "vp", "epsilon")
    pipeline.scheduler = diffusers.DDIMScheduler(clip_sample=False)
    table = pipeline.calibrate(torch.zeros(16, 1, 4, 4), num_levels=8, generator=torch.Generator().manual_seed(0))
    assert isinstance(pipeline.scheduler, diffusers.DDIMScheduler)
    pipeline.use_scheduler("ddpm")
    assert pipeline.scheduler.config.data_variances == table
    pipeline.scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipeline.calibrate(torch.zeros(16, 1, 4, 4), num_levels=8)
    pipeline.forget_variances()
    pipeline.use_scheduler("ddpm")
    assert pipeline.scheduler.config.data_variances is None


def test_the_forms_of_guidance_are_options_of_sample(trained, tmp_path, monkeypatch):
    call, told = hfgen.DenoisingPipeline.__call__, []

    @functools.wraps(call)  # whose arguments `hfgen sample` reads
    def listen(self, **options):
        told.append((options["guidance_scale"], options.get("guidance_method"), options.get("guidance_rescale")))
        return call(self, **options)

    monkeypatch.setattr(hfgen.DenoisingPipeline, "__call__", listen)
    words = ["--num_samples", "2", "--class_labels", "1", "--num_inference_steps", "2", "--device", "cpu"]
    words += ["--guidance_scale", "3", "--output_dir", str(tmp_path / "out")]
    for form in ([], ["--guidance_method", "apg"], ["--guidance_rescale", "0.7"]):
        cli.main(["sample", str(trained), *words, *form])
    assert told == [(3.0, None, None), (3.0, "apg", None), (3.0, None, 0.7)]
