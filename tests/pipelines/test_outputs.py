"""What is not finite stops between network and pixels, and the message names the component, the step and the fix."""

import math
import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from hfgen.pipelines.outputs import NotFiniteError, StepRecord, require_numbers

import hfgen
from hfgen import cli
from hfgen.metrics import modes, pixels, sampling, straightness
from hfgen.metrics.features import load_features
from hfgen.metrics.measures import mean_measurement
from hfgen.registry import SAMPLERS, resolve, sampler
from tests.families.test_anomaly import detector, images, vae

SCHEDULERS = {name: resolve(sampler(name)[0]) for name in SAMPLERS}
FOREIGN = ("DDIM", "DDPM", "DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "HeunDiscrete", "PNDM")
DIFFUSERS = {name: getattr(diffusers, f"{name}Scheduler") for name in FOREIGN}


class Zero(ModelMixin, ConfigMixin):
    """A denoiser that predicts bias[0] x, and bias[1] below a time step."""

    @register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 1, below: float = -1.0):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor([0.1, 0.0]))

    def forward(self, x, timestep, class_labels=None):
        late = (timestep < self.config.below).view(-1, 1, 1, 1)
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=torch.where(late, self.bias[1], self.bias[0] * x))


def diffusion(scheduler=None, below=-1.0):
    scheduler = scheduler or hfgen.DDIMScheduler()
    pipeline = hfgen.DenoisingPipeline(Zero(below=below), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def spoil(network, value=math.nan, name=None):
    """Make one number of a network's state NaN; return the network."""
    state = network.state_dict()
    key = name or next(key for key, tensor in state.items() if tensor.is_floating_point())
    with torch.no_grad():
        state[key].view(-1)[0] = value
    return network


def seeded(number=0):
    return torch.Generator().manual_seed(number)


# --- sampling by steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*SCHEDULERS, *DIFFUSERS])
@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_broken_weights_are_named_under_every_scheduler(name, value, output_type):
    options = sampler(name)[1] if name in SCHEDULERS else {}
    kind = {**SCHEDULERS, **DIFFUSERS}[name]
    source = {"prediction_type": "epsilon", **({"path": "discrete"} if name in SCHEDULERS else {}), **options}
    pipeline = diffusion(kind.from_config(source))
    pipeline(output_type=output_type, num_inference_steps=4, generator=seeded())
    spoil(pipeline.denoiser, value)
    with pytest.raises(
        NotFiniteError, match=r"^The network's output became not finite in step 1 of \d+, at time"
    ) as told:
        pipeline(output_type=output_type, num_inference_steps=4, generator=seeded())
    assert "The denoiser has 1 weights that are not finite, in bias. Load other weights" in str(told.value)


def test_the_first_bad_step_is_named_with_its_time():
    pipeline = diffusion(below=300.0)
    spoil(pipeline.denoiser)  # bias[0]: from the first step on
    with pytest.raises(NotFiniteError, match="in step 1 of 5"):
        pipeline(num_inference_steps=5, generator=seeded())
    with torch.no_grad():
        pipeline.denoiser.bias.copy_(torch.tensor([0.1, math.inf]))
    times = [200.0 * i - 1 for i in (5, 4, 3, 2, 1)]
    assert pipeline.scheduler.__class__ is hfgen.DDIMScheduler
    with pytest.raises(NotFiniteError, match=rf"in step 5 of 5, at time step {times[4]:g}\."):
        pipeline(num_inference_steps=5, generator=seeded())


def test_infinity_that_clipping_would_hide_is_refused():
    pipeline = diffusion(hfgen.DDIMScheduler(clip_sample=True, prediction_type="sample"), below=300.0)
    with torch.no_grad():
        pipeline.denoiser.bias.copy_(torch.tensor([0.1, math.inf]))
    with pytest.raises(NotFiniteError, match="The network's output became not finite"):
        pipeline(num_inference_steps=5, generator=seeded())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents_and_callbacks_are_told_apart_from_networks(value):
    pipeline, latents = diffusion(), torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"^latents have 16 of 16 values that are not finite"):
        pipeline(latents=latents + value)

    def callback(_, i, timestep, tensors):
        return {"latents": tensors["latents"] * (value if i == 2 else 1)}

    with pytest.raises(NotFiniteError, match=r"^The latents that a callback returned are not finite in step 3 of 5"):
        pipeline(latents=latents + 1, num_inference_steps=5, callback_on_step_end=callback)
    with pytest.raises(ValueError, match=rf"guidance_scale={value} must be a finite number"):
        pipeline(guidance_scale=value)


def test_a_network_that_overflows_is_not_accused_of_its_weights():
    pipeline = diffusion(hfgen.DDIMScheduler(prediction_type="sample"))
    with torch.no_grad():
        pipeline.denoiser.bias.copy_(torch.tensor([3e38, 0.0]))
    with pytest.raises(NotFiniteError, match="The weights of denoiser are finite, so the values overflowed"):
        pipeline(num_inference_steps=5, generator=seeded())


def test_a_scheduler_whose_own_sample_is_not_finite_is_blamed():
    record = StepRecord(torch.zeros(2))
    for stage, values in (("network", 1.0), ("The scheduler's sample", 1.0)) * 2:
        record.add(stage, torch.tensor([values]))
    record.require([9, 5], {})
    record.add("network", torch.ones(1))
    record.add("The scheduler's sample", torch.tensor([math.nan]))
    with pytest.raises(
        NotFiniteError, match=r"sample became not finite in step 3 of 3, at time step 1, after a network"
    ):
        record.require([9, 5, 1], {})


def test_likelihoods_of_broken_networks_are_refused():
    pipeline = diffusion()
    x = torch.zeros(2, 1, 4, 4) + 1 / 255
    assert pipeline.log_likelihood(x, num_inference_steps=2).isfinite().all()
    spoil(pipeline.denoiser)
    for measure in (pipeline.log_likelihood, pipeline.bits_per_dim, pipeline.variational_bound):
        with pytest.raises(NotFiniteError, match=r"The denoiser has 1 weights that are not finite, in bias"):
            measure(x, num_inference_steps=2)


# --- one pass ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mlp", "dcgan", "residual", "resnet"])
def test_broken_generators_are_named(architecture):
    generator, discriminator = hfgen.build_gan(architecture, "xs", 8, 1, 4, None)
    pipeline = hfgen.GANPipeline(generator, discriminator)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(2)
    key = next(key for key, value in generator.state_dict().items() if value.is_floating_point())
    spoil(generator)
    for call in (
        lambda: pipeline(2),
        lambda: pipeline(2, output_type="latent"),
        lambda: pipeline.decode(torch.ones(2, 4, 1, 1)),
        lambda: pipeline.project(torch.zeros(1, 1, 8, 8), steps=1),
    ):
        with pytest.raises(NotFiniteError, match=rf"The generator has 1 weights that are not finite, in {key}"):
            call()


def test_a_broken_discriminator_is_named_where_it_guides_a_projection():
    generator, discriminator = hfgen.build_gan("mlp", "xs", 8, 1, 4, None)
    pipeline = hfgen.GANPipeline(generator, spoil(discriminator))
    pipeline.set_progress_bar_config(disable=True)
    pipeline(1)
    with pytest.raises(NotFiniteError, match="The discriminator has 1 weights"):
        pipeline.encode(torch.zeros(1, 1, 8, 8))
    for truncation in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match="truncation="):
            pipeline(1, truncation=truncation)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "gaussian_learned"])
def test_broken_autoencoders_and_priors_are_named(likelihood):
    pipeline = vae(likelihood)
    pipeline.set_progress_bar_config(disable=True)
    x = images(2).gt(0) * 2.0 - 1
    pipeline(2), pipeline.log_likelihood(x, 2)
    for temperature in (math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature="):
            pipeline(1, temperature=temperature)
    with pytest.raises(ValueError, match=r"^latents have 1 of 3 values that are not finite"):
        pipeline.decode(spoil(torch.nn.Linear(3, 1)).weight.detach().view(1, 3, 1, 1))
    for name in ("weights", "means", "scale_tril"):
        prior = hfgen.GaussianMixturePriorModel((3, 1, 1), 2)
        broken = hfgen.VAEPipeline(pipeline.autoencoder, spoil(prior, name=name), likelihood, 0.3)
        broken.set_progress_bar_config(disable=True)
        with pytest.raises(NotFiniteError, match=rf"^The prior has 1 weights that are not finite, in {name}"):
            broken(4)
        with pytest.raises(NotFiniteError, match=rf"^The bounds .*The prior has 1 weights .*in {name}"):
            broken.log_likelihood(x, 2)
    spoil(pipeline.autoencoder)
    for call in (pipeline.encode, pipeline.reconstruct, pipeline.elbo, pipeline.log_likelihood):
        with pytest.raises(NotFiniteError, match="The autoencoder has 1 weights that are not finite"):
            call(x)
    decoder = vae(likelihood)
    last = [key for key, value in decoder.autoencoder.state_dict().items() if value.is_floating_point()][-1]
    spoil(decoder.autoencoder, math.inf, last)  # the likelihood's mean may hide it
    with pytest.raises(NotFiniteError, match=rf"^The decoder's outputs .*in {last}"):
        decoder(2)


@pytest.mark.parametrize("architecture", ["vq", "vqmodel"])
def test_a_broken_codebook_is_no_code(architecture):
    def pipeline():
        torch.manual_seed(0)
        return hfgen.VQPipeline(hfgen.build_autoencoder(architecture, "s", 8, 1, 1))

    x = images(2)
    pipeline().encode(x)
    book = "codebook" if architecture == "vq" else "quantize"
    for part, message in ((book, "The autoencoder's codebook has 1 weights"), ("encoder", "encoder's outputs")):
        broken = pipeline()
        parts = [key for key, value in broken.autoencoder.state_dict().items() if value.is_floating_point()]
        spoil(broken.autoencoder, name=next(key for key in parts if key.startswith(part)))
        for call in (broken.encode, broken.reconstruct, broken.perplexity):
            with pytest.raises(NotFiniteError, match=message):
                call(x)


@pytest.mark.parametrize("score", ["density", "reconstruction", "elbo", "likelihood"])
def test_a_broken_detector_calls_nothing_normal(score):
    x = images(5, 3)
    assert detector(score)(x).scores.isfinite().all()
    messages = {part: rf"The {part} has 1 weights that are not finite" for part in ("autoencoder", "prior")}
    messages["calibration"] = "1 of 99 anomaly scores are NaN"
    for part in ("autoencoder", "calibration", *(() if score == "reconstruction" else ("prior",))):
        broken = detector(score)
        spoil(getattr(broken, part))
        calls = [broken] if part == "calibration" else [broken, broken.anomaly_score]
        for call in calls:
            with pytest.raises(ValueError, match=messages[part]):
                call(x)


# --- saved, evaluated, shown ------------------------------------------------------------------------------------------


def test_saved_weights_are_named_by_commands(tmp_path, capsys):
    denoiser = hfgen.build_denoiser("patch_unet", "xs", 8, 1)
    pipeline = hfgen.DenoisingPipeline(denoiser, hfgen.RectifiedFlowScheduler())
    spoil(pipeline.denoiser)
    pipeline.save_pretrained(tmp_path / "broken")
    for words in (
        ["sample"],
        ["evaluate", "--dataset=digits", "--num_samples=70", "--metrics=frechet", "--device=cpu"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([words[0], str(tmp_path / "broken"), *words[1:]])
        message = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2 and message.startswith("error: ") and "values that are not finite" in message
        assert str(tmp_path / "broken" / "denoiser") in message
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_pipelines_of_others_are_refused_too():
    class Foreign:
        def set_progress_bar_config(self, disable):
            pass

        def __call__(self, batch_size, **_):
            return type("Output", (), {"images": torch.full((batch_size, 1, 8, 8), math.nan)})

    with pytest.raises(ValueError, match="Images 0 to 4 of a Foreign have NaN or infinity"):
        sampling.draw(Foreign(), 5)
    with pytest.raises(NotFiniteError, match="The images have values that are not finite"):
        hfgen.HFGenPipeline.to_images(torch.full((1, 1, 8, 8), math.nan))


def test_metrics_of_what_is_no_number_are_refused():
    broken = spoil(torch.nn.Linear(8, 8)).weight.detach().view(1, 1, 8, 8)
    network = load_features("digits")
    with pytest.raises(ValueError, match="1 values of the images are NaN or infinite"):
        network(broken)
    for measure in (pixels.radial_spectrum, lambda x: pixels.reconstruction_error(x, x)):
        with pytest.raises(ValueError, match="finite"):
            measure(broken)
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        mean_measurement("bits", broken.flatten()[:2], "lower")
    with pytest.raises(ValueError, match="finite"):
        modes.class_coverage(torch.zeros(2, 8), broken[0, 0])
    with pytest.raises(ValueError, match="finite"):
        modes.modes(broken[0, 0], torch.zeros(2, 8), 1.0)
    with pytest.raises(ValueError, match="finite"):
        straightness.straightness(torch.full((3, 1, 2), math.nan))
    spoil(network.network)
    with pytest.raises(ValueError, match=r"The features of digits-cnn are not finite. Its weights are not"):
        network(torch.zeros(1, 1, 8, 8))


def test_infinity_has_a_meaning_only_where_it_is_said():
    values = torch.tensor([1.0, math.inf, -math.inf])
    assert require_numbers(values, "scores", {}) is values
    with pytest.raises(NotFiniteError):
        require_numbers(torch.tensor([math.nan]), "scores", {})


def test_a_training_outlives_a_grid_that_is_not_finite(capsys):
    from hfgen.families.callbacks import Callback, Callbacks

    def draw(networks, step):
        if step == 2:
            hfgen.HFGenPipeline.to_images(torch.full((1, 1, 2, 2), np.inf))
        return step == 4

    calls = Callbacks([Callback(2, draw)])
    assert [calls({}, step) for step in (2, 4)] == [False, True]
    assert "warning: no Callback at step 2: The images have values" in capsys.readouterr().err
    assert "torch" in sys.modules
