"""Flow maps in a pipeline: exact in any number of steps, a flow for other schedulers, sampled by diffusers, too."""

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from torch.testing import assert_close

import hfgen
from tests.models.test_denoisers import perturb
from tests.objectives.test_flow_map import MEAN, STD, Exact

NOISE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class GaussianMap(ModelMixin, ConfigMixin):
    """The flow map of a Gaussian in closed form."""

    @register_to_config
    def __init__(self, two_times: bool = True, sample_size: int = 8, in_channels: int = 1):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, sample, timestep, class_labels=None, r_timestep=None):
        times = [None if t is None else t.reshape(-1, 1, 1).expand(len(sample), 1, 1) for t in (timestep, r_timestep)]
        return (self.gain * Exact().forward(sample, *times),)[0]


def pipeline(two_times=True, name="flow_map"):
    made = hfgen.DenoisingPipeline(GaussianMap(two_times), hfgen.RectifiedFlowScheduler())
    made.use_scheduler(name)
    made.set_progress_bar_config(disable=True)
    return made


def draw(made, **options):
    return made(latents=NOISE, batch_size=2, output_type="latent", **options).images


def theirs(made):
    made.scheduler = FlowMapEulerDiscreteScheduler.from_config(made.scheduler.config)
    return made


@pytest.mark.parametrize("scheduler", ["flow_map", "diffusers"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_flow_map_is_exact_in_any_number_of_steps(scheduler, steps):
    made = pipeline() if scheduler == "flow_map" else theirs(pipeline())
    assert_close(draw(made, num_inference_steps=steps), MEAN + STD * NOISE, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheduler", ["flow_map", "diffusers"])
def test_what_is_decoded_by_a_scheduler_of_flow_maps_is_exact_too(scheduler):
    made = pipeline()
    given = {"num_inference_steps": 2, "scheduler": "flow_map" if scheduler == "flow_map" else theirs(made).scheduler}
    exact = MEAN + STD * NOISE
    assert_close(made.decode(NOISE, **given), exact, rtol=1e-4, atol=1e-5)
    assert_close(made.between(NOISE, NOISE, 2, **given)[0], exact, rtol=1e-4, atol=1e-5)
    assert_close(made.reconstruct(exact, **{**given, "num_inference_steps": 40}), exact, rtol=1e-3, atol=1e-3)


def test_other_schedulers_follow_its_flow():
    for name in ("euler", "heun", "ddim", "dpmsolver++"):
        assert torch.equal(
            draw(pipeline(True, name), num_inference_steps=4), draw(pipeline(False, name), num_inference_steps=4)
        )
    made = pipeline()
    made.scheduler = FlowMatchEulerDiscreteScheduler.from_config(made.scheduler.config)
    assert (draw(made, num_inference_steps=1) - MEAN - STD * NOISE).abs().max() > 0.1


def test_without_a_second_time_the_steps_are_eulers():
    assert torch.equal(
        draw(pipeline(False), num_inference_steps=3), draw(pipeline(False, "euler"), num_inference_steps=3)
    )


def test_schedulers_go_over_to_diffusers_and_back():
    made = pipeline()
    made.use_scheduler("flow_map", shift=2.0)
    other = FlowMapEulerDiscreteScheduler.from_config(made.scheduler.config)
    assert other.config.shift == 2.0
    back = hfgen.RectifiedFlowScheduler.from_config(other.config)
    assert back.config.solver == "flow_map" and back.config.shift == 2.0
    for scheduler in (made.scheduler, other, back):
        scheduler.set_timesteps(4)
    assert_close(back.timesteps.double(), other.timesteps, rtol=1e-6, atol=1e-4)
    assert_close(back.r_timesteps.double(), 1000 * other.sigmas[1:], rtol=1e-6, atol=1e-4)
    fresh = hfgen.RectifiedFlowScheduler.from_config(FlowMapEulerDiscreteScheduler(shift=3.0).config)
    assert fresh.config.shift == 3.0 and fresh.config.prediction_type == "flow_prediction"


def test_a_step_of_any_length_is_that_of_diffusers():
    ours, other = hfgen.RectifiedFlowScheduler(solver="flow_map"), FlowMapEulerDiscreteScheduler()
    for scheduler in (ours, other):
        scheduler.set_timesteps(4)
    u = torch.randn(2, 1, 8, 8)
    for t, r in ((1000.0, 0.0), (750.0, 500.0), (613.0, 12.5)):
        mine = ours.step(u, torch.tensor(t), NOISE, r_timestep=r).prev_sample
        assert_close(mine, other.step(u, torch.tensor(t), NOISE, r_timestep=torch.tensor(r)).prev_sample)
        assert_close(mine, NOISE - (t - r) / 1000 * u)
    with pytest.raises(ValueError, match="solver='flow_map'"):
        hfgen.RectifiedFlowScheduler(solver="euler").step(u, 1000, NOISE, r_timestep=0)
    assert hfgen.RectifiedFlowScheduler().r_timesteps is None


def test_diffusers_alone_samples_a_saved_flow_map(tmp_path):
    """The loop of diffusers' documentation, with the network that the folder holds."""
    network = perturb(hfgen.build_denoiser("dit", "xs", 8, 1, 2, two_times=True))
    made = hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler(solver="flow_map"), num_classes=2)
    made.save_pretrained(tmp_path)
    loaded = hfgen.HFGenPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.two_times and loaded.scheduler.config.solver == "flow_map"
    scheduler, x, labels = FlowMapEulerDiscreteScheduler(), NOISE, torch.tensor([0, 1])
    scheduler.set_timesteps(3)
    ends = [*scheduler.timesteps[1:], torch.tensor(0.0)]
    with torch.no_grad():
        for t, r in zip(scheduler.timesteps, ends, strict=True):
            output = network(x, t.expand(2), labels, r_timestep=r).sample
            x = scheduler.step(output, t, x, r_timestep=r).prev_sample
    options = {"class_labels": [0, 1], "num_inference_steps": 3}
    assert_close(draw(loaded, **options), x, rtol=1e-5, atol=1e-5)
    guided = draw(loaded, **options, guidance_scale=2.0)
    assert not torch.allclose(guided, x)
    steps = []
    loaded(latents=NOISE, **options, callback_on_step_end=lambda *values: steps.append(values[1]) or {})
    assert steps == [0, 1, 2]


def test_consistency_sampling_draws_the_data_in_any_number_of_steps():
    """One step is that of the flow map; more add noise that the generator draws, and keep the distribution exactly."""
    assert_close(draw(pipeline(name="consistency"), num_inference_steps=1), draw(pipeline(), num_inference_steps=1))
    many = torch.randn(2048, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for steps in (2, 4):
        samples = [
            pipeline(name="consistency")(
                latents=many,
                batch_size=2048,
                output_type="latent",
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
            ).images
            for seed in (2, 2, 3)
        ]
        assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
        assert abs(samples[0].mean() - MEAN) < 0.005 and abs(samples[0].std() - STD) < 0.005
        ends = MEAN + STD * many
        assert abs(torch.corrcoef(torch.stack([samples[0].flatten(), ends.flatten()]))[0, 1]) < 0.95  # the noise is new
