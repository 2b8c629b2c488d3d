"""Guides: exact tilts of Gaussians on every path, classifiers, worse networks, and forms of guidance by classes."""

import math
from types import SimpleNamespace

import pytest
import torch
from hfgen.pipelines.guidance import GuidedPrediction

import hfgen
from hfgen import Autoguidance, ClassifierGuidance, EnergyGuidance, ProjectedGuidance
from hfgen.paths import path_from_config
from hfgen.registry import PATHS
from hfgen.schedulers.table import scales
from tests.helpers.gaussian import Gaussian, ideal_pipeline

DATA = Gaussian(0.6, 0.4)
STIFFNESS, CENTRE = 4.0, -0.2
"""U(x_0) = STIFFNESS / 2 (x_0 - CENTRE)^2 for each pixel."""

TILTED_VARIANCE = 1 / (1 / 0.16 + STIFFNESS)
TILTED_MEAN = TILTED_VARIANCE * (0.6 / 0.16 + STIFFNESS * CENTRE)
CASES = [
    ("straight", "flow_prediction", "heun", 30),
    ("straight", "sample", "euler", 100),
    ("vp", "epsilon", "dpmsolver++", 30),
    ("vp", "v_prediction", "ddpm", 200),
    ("cosine", "sample", "ddim", 100),
    ("ve", "epsilon", "heun", 40),
    ("vp", "score", "heun", 30),
]


def exact_potential(path_name, scale=1.0):
    """-log E[exp(-scale U(x_0)) | x_t], in closed form: the tilt of the data at time t."""
    path = path_from_config(PATHS[path_name])

    def potential(x, t):
        alpha, sigma, _ = scales(path, float(t))
        open_variance = 1 / (1 / 0.16 + (alpha / sigma) ** 2)
        mean = DATA.x_0(x.double(), alpha, sigma)
        return ((mean - CENTRE).square() / (2 * (open_variance + 1 / (scale * STIFFNESS)))).flatten(1).sum(1)

    return potential


def moments(pipeline, steps, count=300, **options):
    images = pipeline(
        count,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **options,
    ).images.double()
    return float(images.mean()), float(images.var())


@pytest.mark.parametrize(("path", "kind", "scheduler", "steps"), CASES)
def test_the_exact_potential_tilts_mean_and_variance_exactly(path, kind, scheduler, steps):
    pipeline = ideal_pipeline(DATA, path, kind)
    pipeline.use_scheduler(scheduler)
    mean, variance = moments(pipeline, steps, guidance=[EnergyGuidance(exact_potential(path), on="x_t")])
    assert mean == pytest.approx(TILTED_MEAN, abs=0.02)  # 4,800 values, and the error of the steps
    assert variance == pytest.approx(TILTED_VARIANCE, rel=0.12)


def test_scales_and_several_guides_add_up():
    """A guide of scale 2, two guides of scale 1, and one of twice the potential are the same."""
    pipeline = ideal_pipeline(DATA, "vp", "epsilon")
    pipeline.use_scheduler("ddim")
    potential = exact_potential("vp")
    ways = (
        [EnergyGuidance(potential, 2.0, on="x_t")],
        [EnergyGuidance(potential, on="x_t")] * 2,
        [EnergyGuidance(lambda x, t: 2 * potential(x, t), on="x_t")],
    )
    first, *others = [moments(pipeline, 10, 4, guidance=guidance) for guidance in ways]
    assert all(other == pytest.approx(first) for other in others)
    assert moments(pipeline, 10, 4, guidance=[EnergyGuidance(potential, 0.0)]) == moments(pipeline, 10, 4)


def test_a_potential_of_the_estimate_guides_too_strongly_by_a_known_factor():
    """U(E[x_0 | x_t]) in place of -log E[exp(-U)]: 1/k for V + 1/k, so more at early times; a linear one is exact."""
    pipeline = ideal_pipeline(DATA, "straight", "flow_prediction")
    pipeline.use_scheduler("heun")

    def quadratic(x, t):
        return STIFFNESS / 2 * (x - CENTRE).square().flatten(1).sum(1)

    mean, variance = moments(pipeline, 40, guidance=[EnergyGuidance(quadratic)])
    assert mean < TILTED_MEAN - 0.03 and variance < 0.9 * TILTED_VARIANCE
    late = moments(pipeline, 40, guidance=[EnergyGuidance(quadratic, interval=(0.0, 0.3))])
    assert mean < late[0] < 0.6
    mean, variance = moments(pipeline, 40, guidance=[EnergyGuidance(lambda x, t: 2.0 * x.flatten(1).sum(1))])
    assert mean == pytest.approx(0.6 - 0.16 * 2.0, abs=0.02)
    assert variance == pytest.approx(0.16, rel=0.1)


def test_guides_count_inside_their_interval_alone():
    seen = []
    pipeline = ideal_pipeline(DATA, "straight", "flow_prediction")
    pipeline.use_scheduler("euler")

    def potential(x, t):
        seen.append(float(t))
        return x.flatten(1).sum(1)

    pipeline(2, num_inference_steps=10, guidance=[EnergyGuidance(potential, 0.1, (0.25, 0.75))], output_type="latent")
    assert seen == pytest.approx([0.7, 0.6, 0.5, 0.4, 0.3], abs=1e-6)


# --- classifiers ------------------------------------------------------------------------------------------------------


class Bayes(torch.nn.Module):
    """p(class | x_t) of two Gaussians with equal shares, from x_t as the network sees it."""

    def __init__(self, path, means=(-0.5, 0.5), std=0.3):
        super().__init__()
        self.path, self.means, self.std = path, means, std

    def forward(self, x, timestep):
        time = self.path.time_of(timestep.double()[0])
        point = self.path(time)
        x = x.double() / float(self.path.input_scale(time))
        variance = float(point.alpha) ** 2 * self.std**2 + float(point.sigma) ** 2
        away = [(x - float(point.alpha) * mean).square().flatten(1).sum(1) for mean in self.means]
        return SimpleNamespace(logits=-torch.stack(away, 1) / (2 * variance))


class TwoGaussians:
    """Both classes together: all pixels of an image are of one class."""

    def x_0(self, x, alpha, sigma):
        variance = alpha**2 * 0.09 + sigma**2
        away = torch.stack([(x - alpha * mean).square().flatten(1).sum(1) for mean in (-0.5, 0.5)], -1)
        share = torch.softmax(-away / (2 * variance), -1)  # (B, 2)
        centre = (share @ torch.tensor([-0.5, 0.5], dtype=x.dtype))[:, None]
        return centre + alpha * 0.09 / variance * (x - alpha * centre)


@pytest.mark.parametrize(("path", "kind"), [("vp", "epsilon"), ("straight", "flow_prediction"), ("ve", "sample")])
def test_a_classifier_makes_a_model_without_classes_draw_one(path, kind):
    pipeline = ideal_pipeline(TwoGaussians(), path, kind)
    pipeline.use_scheduler("heun")
    classifier = Bayes(path_from_config(PATHS[path]))
    for label, wanted in ((0, -0.5), (1, 0.5)):
        mean, variance = moments(
            pipeline, 40, 100, guidance=[ClassifierGuidance(classifier, label, interval=(0.0, 1.0))]
        )
        assert mean == pytest.approx(wanted, abs=0.04)
        assert variance == pytest.approx(0.09, rel=0.15)
    images = pipeline(
        4, num_inference_steps=20, guidance=[ClassifierGuidance(classifier, [0, 1, 0, 1])], output_type="latent"
    ).images
    assert (images.mean((1, 2, 3)) > 0).tolist() == [False, True, False, True]


def test_classifiers_refuse_what_does_not_fit():
    pipeline = ideal_pipeline(DATA, "vp", "epsilon")
    classifier = Bayes(path_from_config(PATHS["vp"]))
    with pytest.raises(ValueError, match=r"2 class_labels of the classifier for 3 samples"):
        pipeline(3, num_inference_steps=2, guidance=[ClassifierGuidance(classifier, [0, 1])])
    with pytest.raises(ValueError, match=r"class_labels=\[2\] of the classifier must be from 0 to 1"):
        pipeline(1, num_inference_steps=2, guidance=[ClassifierGuidance(classifier, 2)])
    network = hfgen.NoisyClassifierModel(4, 1, 2, 1, (8,), 4)
    straight = hfgen.NoisyClassifierPipeline(network, hfgen.RectifiedFlowScheduler(), 2, ["a", "b"])
    with pytest.raises(ValueError, match=r"on the path 'straight', and the model draws \(1, 4, 4\) on 'discrete'"):
        pipeline(1, num_inference_steps=2, guidance=[ClassifierGuidance(straight, "b")])
    with pytest.raises(ValueError, match="'c'"):
        ClassifierGuidance(straight, "c")
    assert ClassifierGuidance(straight, "b").class_numbers == [1]


# --- worse models, and forms of guidance by classes -------------------------------------------------------------------


def test_autoguidance_leads_away_from_a_worse_model_of_any_prediction():
    good, bad = ideal_pipeline(DATA, "vp", "epsilon"), ideal_pipeline(Gaussian(0.6, 0.8), "vp", "v_prediction")
    same = ideal_pipeline(Gaussian(0.6, 0.8), "vp", "epsilon")
    good.use_scheduler("ddim")
    plain, away = moments(good, 20), moments(good, 20, guidance=[Autoguidance(bad, 1.5)])
    assert away[1] < 0.9 * plain[1] and away[0] == pytest.approx(plain[0], abs=0.03)
    assert moments(good, 20, guidance=[Autoguidance(same.denoiser, 1.5)]) == pytest.approx(away, rel=1e-4)
    assert moments(good, 20, guidance=[Autoguidance(bad, 1.0)]) == plain
    assert moments(good, 20, guidance=[Autoguidance(good, 3.0)]) == pytest.approx(plain, rel=1e-4)
    with pytest.raises(ValueError, match=r"bad model draws \(1, 4, 4\) on the path 'straight'"):
        good(1, guidance=[Autoguidance(ideal_pipeline(DATA))])


def prediction_of(path, kind, scale=1.0, **options):
    """The guided output at one state of a pipeline with two classes, and those of class 1 and of no class."""
    pipeline = ideal_pipeline([Gaussian(-0.5, 0.3), Gaussian(0.4, 0.2), Gaussian(0.0, 0.6)], path, kind)
    pipeline.register_to_config(num_classes=2)
    kwargs = {"class_labels": torch.ones(5, dtype=torch.long)}
    form = {"guidance": (), "method": "cfg", "rescale": 0.0, "shape": (1, 4, 4), **options}
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = pipeline.scheduler.path.timestep(torch.tensor(0.4, dtype=torch.float64))
    output = GuidedPrediction(pipeline.denoiser, pipeline.scheduler, pipeline.condition, kwargs, **form)(x, t, scale)
    given, free = (pipeline.denoiser(x, t.expand(5), torch.full((5,), k)).sample for k in (1, 2))
    return pipeline, x, output, given, free


def test_rescale_is_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    for share in (0.3, 1.0):
        _, _, output, given, free = prediction_of("vp", "v_prediction", 3.0, rescale=share)
        torch.testing.assert_close(output, rescale_noise_cfg(free + 3.0 * (given - free), given, share))
    _, _, output, given, _ = prediction_of("vp", "v_prediction", 3.0, rescale=1.0)
    torch.testing.assert_close(output.std((1, 2, 3)), given.std((1, 2, 3)))


@pytest.mark.parametrize(("path", "kind"), [("vp", "epsilon"), ("straight", "flow_prediction"), ("ve", "sample")])
def test_projection_leaves_out_what_lies_along_the_estimate(path, kind):
    from hfgen.paths import decompose

    pipeline, x, output, given, free = prediction_of(path, kind, 3.0, method="apg")
    point = pipeline.scheduler.path(torch.tensor(0.4, dtype=torch.float64))
    x_t = x / float(pipeline.scheduler.path.input_scale(torch.tensor(0.4, dtype=torch.float64)))
    guided, mine, theirs = (decompose(kind, point, x_t, value)[0].flatten(1) for value in (output, given, free))
    torch.testing.assert_close(((guided - mine) * mine).sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-6, rtol=0)
    unit = mine / mine.norm(dim=1, keepdim=True)
    change = mine - theirs
    wanted = mine + 2.0 * (change - (change * unit).sum(1, keepdim=True) * unit)
    torch.testing.assert_close(guided, wanted, rtol=1e-5, atol=1e-6)
    _, _, plain, _, _ = prediction_of(path, kind, 3.0)
    _, _, whole, _, _ = prediction_of(path, kind, 3.0, method=ProjectedGuidance(parallel=1.0))
    torch.testing.assert_close(whole, plain, rtol=1e-5, atol=1e-6)
    _, _, short, _, _ = prediction_of(path, kind, 3.0, method=ProjectedGuidance(1.0, norm_threshold=1e-3))
    near = decompose(kind, point, x_t, short)[0].flatten(1)
    torch.testing.assert_close(
        (near - mine).norm(dim=1), torch.full((5,), 2e-3, dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_momentum_belongs_to_a_call():
    pipeline = ideal_pipeline([Gaussian(-0.5, 0.3), Gaussian(0.4, 0.2)], "vp", "epsilon")
    method, calls = ProjectedGuidance(1.0, momentum=-0.5), []
    network = hfgen.DiTModel(4, 1, 1, 1, hidden_size=16, num_layers=1, num_attention_heads=1, num_class_embeds=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    pipeline = hfgen.DenoisingPipeline(network, pipeline.scheduler, 2)
    pipeline.set_progress_bar_config(disable=True)
    for _ in range(2):
        calls.append(
            pipeline(
                class_labels=[0, 1],
                num_inference_steps=4,
                guidance_scale=2.0,
                guidance_method=method,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            ).images
        )
    assert torch.equal(*calls)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: EnergyGuidance(3), "potential=3 must be a function"),
        (lambda: EnergyGuidance(len, math.nan), "scale=nan"),
        (lambda: EnergyGuidance(len, "2"), "scale='2'"),
        (lambda: EnergyGuidance(len, interval=(0.5, 0.2)), r"interval=\(0.5, 0.2\) must be two times"),
        (lambda: EnergyGuidance(len, interval=0.5), "interval=0.5 must be 2 values"),
        (lambda: EnergyGuidance(len, on="x"), "on='x' is not known"),
        (lambda: ProjectedGuidance(-1.0), r"parallel=-1.0"),
        (lambda: ProjectedGuidance(norm_threshold=-1.0), r"norm_threshold=-1.0"),
    ],
)
def test_guides_refuse_what_they_can_not_be(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"guidance": [3]}, r"guidance=\[3\] must be"),
        ({"guidance": "strong"}, "guidance='strong' must be"),
        ({"guidance_method": "best"}, r"guidance_method='best' is not known. Choose one of: cfg, apg"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale=1.5 must be from 0 to 1"),
        ({"guidance_rescale": -0.5}, r"guidance_rescale=-0.5"),
        ({"guidance": [EnergyGuidance(lambda x, t: x.sum())]}, r"returned \(\); it must return a tensor \(2,\)"),
        ({"guidance": [EnergyGuidance(lambda x, t: 1.0)]}, r"returned float"),
        ({"guidance": [EnergyGuidance(lambda x, t: torch.ones(2))]}, r"does not depend on the samples"),
    ],
)
def test_calls_refuse_guidance_that_is_none(options, named):
    with pytest.raises(ValueError, match=named):
        ideal_pipeline(DATA)(2, num_inference_steps=2, **options)


def test_a_single_guide_needs_no_list_and_flow_maps_are_not_guided():
    guide = EnergyGuidance(lambda x, t: x.flatten(1).sum(1))
    pipeline = ideal_pipeline(DATA)
    one = pipeline(2, num_inference_steps=2, guidance=guide, generator=torch.Generator().manual_seed(0)).images
    assert len(one) == 2
    network = hfgen.DiTModel(4, 1, 1, 1, hidden_size=16, num_layers=1, num_attention_heads=1, two_times=True)
    pipeline = hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler(solver="flow_map"))
    with pytest.raises(ValueError, match="flow map's steps can't be guided"):
        pipeline(1, num_inference_steps=1, guidance=guide)
