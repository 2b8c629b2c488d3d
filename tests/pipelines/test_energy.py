"""EnergyPipeline: samples alone and in a batch, sums of energies, inpainting, energies of images, schedulers."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import hfgen
from hfgen.models.energy import EnergyOutput, energy_and_gradient
from hfgen.registry import ENERGY_SAMPLERS

TINY = {"sample_size": 4, "in_channels": 1, "out_channels": 1, "patch_size": 1, "block_out_channels": (16,)}
TINY |= {"layers_per_block": 1, "attention_levels": (False,), "attention_head_dim": 8, "norm_num_groups": 4}


def network(form="dot", classes=3, seed=0):
    torch.manual_seed(seed)
    energy = hfgen.EnergyModel("PatchUNet2DModel", TINY, form, classes)
    for parameter in energy.parameters():
        nn.init.normal_(parameter, std=0.1)
    return energy


def pipeline(scheduler=None, form="dot", classes=2, seed=0):
    null = None if classes is None else classes + 1
    names = None if classes is None else ["a", "b"]
    scheduler = scheduler or hfgen.GradientDescentScheduler(0.05, momentum=0.3)
    made = hfgen.EnergyPipeline(network(form, null, seed), scheduler, classes, names)
    made.set_progress_bar_config(disable=True)
    return made


class Normal(nn.Module):
    """E(x) = |x - mean|^2 / (2 s^2), with a mean for each class and one more at zero for "no class"."""

    def __init__(self, means=(1.0, -0.5), deviation=0.5):
        super().__init__()
        self.means = nn.Parameter(torch.tensor([*means, 0.0]))
        self.deviation = deviation

    def forward(self, sample, class_labels=None, with_gradient=False):
        mean = self.means[class_labels].reshape(-1, 1)
        energy = lambda x: (x - mean).square().sum(1) / (2 * self.deviation**2)  # noqa: E731
        value, gradient = energy_and_gradient(energy, sample)
        return EnergyOutput(energy=value, gradient=gradient)


def dit():
    return hfgen.DiTModel(4, 1, 1, 1, hidden_size=8, num_layers=1, num_attention_heads=1)


def normal(scheduler=None, **options):
    model = hfgen.TorchModel(Normal(**options), (1,), 3)
    made = hfgen.EnergyPipeline(model, scheduler or hfgen.HamiltonianScheduler(0.02, 3), 2, ["a", "b"])
    made.set_progress_bar_config(disable=True)
    return made


def seeds(count):
    return [torch.Generator().manual_seed(n) for n in range(count)]


@pytest.mark.parametrize("name", [name for name in ENERGY_SAMPLERS if name != "annealed_langevin"])
def test_a_sample_is_the_same_alone_and_in_a_batch(name):
    made = pipeline()
    call = {"num_inference_steps": 1 if name == "hmc" else 3, "scheduler": name, "output_type": "latent"}
    together = made(class_labels=["a", "b", "a"], generator=seeds(3), **call).images
    for i, label in enumerate(("a", "b", "a")):
        alone = made(class_labels=label, generator=[seeds(3)[i]], **call).images
        assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_annealed_chains_are_for_energies_of_many_levels():
    scheduler = hfgen.AnnealedLangevinScheduler(sigma_min=0.1, sigma_max=5.0, steps_per_level=2)
    made = pipeline(scheduler)
    assert made(2, num_inference_steps=3, output_type="latent").images.shape == (2, 1, 4, 4)
    assert made.num_timesteps == 7
    made.use_scheduler("annealed_langevin", snr=0.2)
    assert made.scheduler.config.sigma_max == 5.0 and made.scheduler.config.snr == 0.2
    made.use_scheduler("langevin")
    assert made.scheduler.init_noise_sigma == pytest.approx(math.hypot(1, 5.0))
    with pytest.raises(ValueError, match="goes through levels of noise"):
        pipeline().use_scheduler("annealed_langevin")


def test_guidance_is_a_sum_of_energies():
    made, call = pipeline(), {"num_inference_steps": 4, "output_type": "latent"}
    guided = made(class_labels=["a"], guidance_scale=2.5, generator=seeds(1), **call).images
    summed = made(terms=[(2.5, "a"), (-1.5, None)], generator=seeds(1), **call).images
    assert_close(guided, summed)
    plain = made(class_labels=["a"], generator=seeds(1), **call).images
    assert_close(made(terms=[(1.0, 0)], generator=seeds(1), **call).images, plain)
    assert (guided - plain).abs().max() > 1e-4


def test_a_sum_of_energies_is_sampled_and_measured():
    """Normal densities multiply: that of weights 1 and 1 at 1 and -1/2 has mean 1/4, and half the variance."""
    made = normal()
    x = made(1500, num_inference_steps=25, terms=[(1, "a"), (1, "b")], generator=torch.Generator().manual_seed(0))
    x = x.images
    assert float(x.mean()) == pytest.approx(0.25, abs=0.04)
    assert float(x.std()) == pytest.approx(0.5 / math.sqrt(2), rel=0.08)
    away = [(2.0, "a"), (-1.0, "b")]  # mean 2 * 1 - (-1/2), variance as that of one
    x = made(1500, num_inference_steps=40, terms=away, generator=torch.Generator().manual_seed(0)).images
    assert float(x.mean()) == pytest.approx(2.5, abs=0.06)
    points = torch.tensor([[0.0], [1.0]])
    expected = [2 * (p - 1) ** 2 / 0.5 - (p + 0.5) ** 2 / 0.5 for p in (0.0, 1.0)]
    assert_close(made.energy(points, terms=away), torch.tensor(expected, dtype=torch.float64))
    other = normal(means=(3.0, 0.0), deviation=1.0)
    both = made.energy(points, terms=[hfgen.EnergyTerm(0.5, "a"), hfgen.EnergyTerm(2.0, 0, other)])
    assert_close(both, 0.5 * made.energy(points, "a") + 2 * other.energy(points, "a"))


def test_the_score_is_minus_the_slope_of_the_energy():
    made = pipeline()
    x, h = torch.rand(2, 1, 4, 4) - 0.5, 1e-2
    direction = torch.randn_like(x)
    score = made.score(x, ["a", "b"])
    after, before = (made.energy(x + sign * h * direction, ["a", "b"]) for sign in (1, -1))
    assert_close((score * direction).sum((1, 2, 3)).double(), (before - after) / (2 * h), rtol=0.02, atol=1e-3)
    assert torch.equal(made.anomaly_score(x), made.energy(x))
    assert_close(made.energy(x, "b", batch_size=1), made.energy(x, "b"), rtol=1e-5, atol=1e-6)


def test_inpainting_leaves_what_is_given_and_draws_the_rest():
    made = pipeline()
    images = torch.rand(2, 1, 4, 4) * 2 - 1
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[2:] = True
    for name in ("nesterov", "langevin", "hmc"):
        out = made.inpaint(images, mask, ["a", "b"], 3, scheduler=name, generator=seeds(2), output_type="latent")
        assert torch.equal(out[:, :, :2], images[:, :, :2]) and (out[:, :, 2:] != images[:, :, 2:]).all()
    halves = torch.stack([mask, ~mask])
    out = made.inpaint(images, halves, num_inference_steps=2, output_type="latent")
    assert torch.equal(out[0, 0, :2], images[0, 0, :2]) and torch.equal(out[1, 0, 2:], images[1, 0, 2:])


def test_inpainting_draws_from_the_conditional_density():
    """Two correlated numbers, the first given: HMC with a part of the state held draws the second, given the first."""
    rho = 0.8

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, sample, class_labels=None, with_gradient=False):
            def energy(x):
                a, b = x[:, 0, 0, 0], x[:, 0, 0, 1]
                return (a.square() - 2 * rho * a * b + b.square()) / (2 * (1 - rho**2))

            value, gradient = energy_and_gradient(energy, sample)
            return EnergyOutput(energy=value, gradient=gradient)

    scheduler = hfgen.HamiltonianScheduler(0.05, 4)
    made = hfgen.EnergyPipeline(hfgen.TorchModel(Pair(), (1, 1, 2)), scheduler)
    made.set_progress_bar_config(disable=True)
    given = torch.full((1500, 1, 1, 2), -0.9)
    mask = torch.tensor([[False, True]])
    generator = torch.Generator().manual_seed(0)
    x = made.inpaint(given, mask, num_inference_steps=25, generator=generator, output_type="latent")[:, 0, 0, 1]
    assert float(x.mean()) == pytest.approx(-0.9 * rho, abs=0.05)
    assert float(x.std()) == pytest.approx(math.sqrt(1 - rho**2), rel=0.08)


def test_a_descent_with_a_tolerance_ends_before_its_steps():
    made = normal(hfgen.GradientDescentScheduler(0.1, tolerance=0.05))
    out = made(3, "a", num_inference_steps=400, return_trajectory=True, output_type="latent")
    assert len(out.trajectory) < 60 and float((out.images - 1).abs().max()) < 0.05


def test_callbacks_change_and_interrupt():
    made, seen = pipeline(), []

    def callback(pipeline, step, timestep, tensors):
        seen.append(int(timestep))
        pipeline._interrupt = step == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    out = made(1, num_inference_steps=5, callback_on_step_end=callback, output_type="latent")
    assert seen == [4, 3] and (out.images == 0).all()


def test_a_callback_may_change_the_guidance():
    """From the second step on, here of plain descent, whose steps are known."""
    made, call = pipeline(hfgen.GradientDescentScheduler(0.05)), {"output_type": "latent", "class_labels": "a"}

    def callback(pipeline, step, timestep, tensors):
        pipeline.guidance_scale = 2.5

    changed = made(num_inference_steps=2, generator=seeds(1), callback_on_step_end=callback, **call).images
    x = made(num_inference_steps=1, generator=seeds(1), **call).images
    assert_close(changed, x + 0.05 * (2.5 * made.score(x, "a") - 1.5 * made.score(x)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"guidance_scale=2.5 can't be used"):
        pipeline(classes=None)(1, num_inference_steps=3, callback_on_step_end=callback)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pipeline(form="field").energy(torch.zeros(1, 1, 4, 4)), "gradient of an energy alone"),
        (lambda: pipeline(form="field")(1, scheduler="hmc"), "gradient of an energy alone"),
        (lambda: pipeline(hfgen.RectifiedFlowScheduler()), "follows a path, and an energy has none"),
        (lambda: pipeline()(1, scheduler="ddim"), "scheduler='ddim' is not known"),
        (lambda: pipeline()(1, scheduler=hfgen.DDIMScheduler()), "DDIMScheduler follows a path"),
        (lambda: hfgen.DenoisingPipeline(dit(), hfgen.LangevinScheduler())(1), "follows an energy, and this model"),
        (lambda: pipeline()(1, terms=[]), "terms are empty"),
        (lambda: pipeline()(1, terms=[3]), r"terms=\[3\] must be a list"),
        (lambda: pipeline()(1, terms=[(1, "a", None, 2)]), "give tuples"),
        (lambda: pipeline()(1, terms=[()]), "give tuples"),
        (lambda: pipeline()(1, terms=[(math.nan, "a")]), "weight=nan must be a finite number"),
        (lambda: pipeline()(1, terms=[(1, "c")]), "class 'c' is not known"),
        (lambda: pipeline()(1, "a", terms=[(1, "b")]), "terms say the classes"),
        (lambda: pipeline()(1, terms=[(1, None, normal())]), "A term has the pipeline EnergyPipeline; give"),
        (lambda: pipeline()(1, terms=[(1, None, "other")]), "A term has the pipeline str"),
        (lambda: pipeline(classes=None)(1, "a"), "trained without classes"),
        (lambda: pipeline(classes=None)(1, guidance_scale=2.0), "guidance_scale=2.0 can't be used"),
        (lambda: pipeline().inpaint(torch.zeros(1, 1, 4, 4), torch.zeros(3, 4)), r"mask has shape \(3, 4\)"),
        (lambda: pipeline()(2, latents=torch.full((2, 1, 4, 4), math.nan)), "not finite"),
    ],
)
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_weights_that_are_not_finite_are_named():
    made = pipeline()
    with torch.no_grad():
        next(made.energy_model.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match=r"The energy_model has \d+ weights that are not finite"):
        made(1, num_inference_steps=2)
    with pytest.raises(ValueError, match="not finite"):
        made.energy(torch.zeros(1, 1, 4, 4))
