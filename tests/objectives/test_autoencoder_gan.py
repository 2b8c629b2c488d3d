"""Autoencoders with a discriminator: losses and weights by hand, runs that do not depend on how they are cut, and the
front door."""

import copy
import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from hfgen import HFGenPipeline, VAEPipeline, VQPipeline, cli
from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.data.summary import sample
from hfgen.distributions.likelihoods import build_likelihood
from hfgen.families.vae.options import PriorArgs
from hfgen.families.vqgan.options import CriticArgs, VQGANNetworkArgs, VQGANTrainArgs
from hfgen.families.vqgan.recipe import make_inner_recipe, with_critic
from hfgen.metrics.distances import frechet_distance
from hfgen.metrics.feature_network import FeatureNetwork
from hfgen.metrics.features import load_features
from hfgen.metrics.perceptual import NORM_FLOOR, PerceptualDistance, perceptual_distance
from hfgen.models.autoencoder import MLPAutoencoderModel
from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior
from hfgen.models.build_autoencoder import build_autoencoder
from hfgen.models.build_gan import build_gan
from hfgen.models.priors import GaussianMixturePriorModel
from hfgen.models.vq import VQAutoencoderModel
from hfgen.objectives.autoencoder_gan import AutoencoderGAN, adaptive_weight, last_weight
from hfgen.objectives.autoencoding import ELBO, IWAE, AutoencoderObjective, Reconstruction, VectorQuantized
from hfgen.objectives.base import Step
from hfgen.objectives.penalties import R1, R2, Control
from hfgen.options import DataArgs
from hfgen.training import train_vqgan
from tests.helpers.cuts import check_micro_batches, check_resume
from tests.helpers.doors import check_refusal, run_door
from tests.helpers.processes import run_in_two_processes
from tests.helpers.toys import rows, run, weights

LATENT, SIGMA, SHAPE = 3, 0.4, (3, 1, 1)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(batch=4, side=8, seed=1):
    levels = torch.randint(0, 256, (batch, 1, side, side), generator=torch.Generator().manual_seed(seed))
    return (levels / 127.5 - 1).double()


class SmallDiscriminator(nn.Module):
    """A discriminator of two layers with the call of those in `hfgen.models.discriminators`."""

    def __init__(self, pixels=64, width=5):
        super().__init__()
        self.hidden, self.head = nn.Linear(pixels, width), nn.Linear(width, 1)

    def forward(self, x):
        h = self.hidden(x.flatten(1)).tanh()
        return SimpleNamespace(logits=self.head(h).squeeze(1), features=h[:, :, None, None])


class BlurDistance(nn.Module):
    """A perceptual distance: the squared difference of means over 2 x 2 pixels."""

    def forward(self, x, y):
        return (F.avg_pool2d(x, 2) - F.avg_pool2d(y, 2)).square().mean((1, 2, 3))


def vq(dtype=torch.float64):
    torch.manual_seed(0)
    network = VQAutoencoderModel(8, 1, 1, (8,), 1, 4, 16).to(dtype).train()
    return network, VectorQuantized(build_likelihood("gaussian", SIGMA), 0.7)


def vae(dtype=torch.float64, prior_samples=True, likelihood="gaussian", **options):
    torch.manual_seed(0)
    model = build_likelihood(likelihood, SIGMA)
    network = AutoencoderWithPrior(MLPAutoencoderModel(8, 1, model.channels(1), (16,), LATENT)).to(dtype).train()
    return network, ELBO(model, SHAPE, 0.5, prior_samples=prior_samples, **options)


KINDS = {
    "vq": vq,
    "vae": lambda: vae(prior_samples=False),
    "vae-gan": vae,
    "binary": lambda: vae(prior_samples=False, likelihood="bernoulli"),
}


def inner_and_networks(kind):
    """Return the inner objective and the three networks."""
    network, inner = KINDS[kind]()
    torch.manual_seed(1)
    return inner, {"autoencoder": network, "discriminator": SmallDiscriminator().double(), "perceptual": BlurDistance()}


class LeakyClamp(torch.autograd.Function):
    """Clamp to [-1, 1], and pass a tenth of the gradient outside."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx, grad):
        return torch.where(ctx.saved_tensors[0].abs() > 1, 0.1 * grad, grad)


def expected_terms(kind, network, x, step):
    """Compute regulariser, -log p / dimensions, reconstructions, and samples or None from first principles."""
    if kind == "vq":
        output = network(x)
        fit = (output.sample - x).square().mean() / (2 * SIGMA**2) + math.log(SIGMA * math.sqrt(2 * math.pi))
        regulariser = 0.7 * F.mse_loss(output.latents, output.quantized.detach())
        return regulariser, fit, LeakyClamp.apply(output.sample), None
    inputs = x
    if kind == "binary":
        inputs = torch.where(step.uniform("binarize", x) < (x + 1) / 2, 1.0, -1.0).double()
    q = network.autoencoder.encode(inputs).latent_dist
    z = q.mean + q.std * step.randn("latent", x.new_empty(len(x), 1, *SHAPE))[:, 0]
    regulariser, params = 0.5 * q.kl().mean() / 64, network.autoencoder.decode(z).sample
    if kind == "binary":
        fit = F.binary_cross_entropy_with_logits(params, (inputs + 1) / 2)
        return regulariser, fit, params.sigmoid() * 2 - 1, None
    fit = (params - x).square().mean() / (2 * SIGMA**2) + math.log(SIGMA * math.sqrt(2 * math.pi))
    z = step.randn("prior", x.new_empty(len(x), *SHAPE))
    samples = LeakyClamp.apply(network.autoencoder.decode(z).sample) if kind == "vae-gan" else None
    return regulariser, fit, LeakyClamp.apply(params), samples


def gradients(value, network):
    return torch.autograd.grad(value, list(network.parameters()), retain_graph=True)


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adversarial", ["hinge", "relativistic"])
def test_the_autoencoders_gradient_is_that_of_its_formula_and_the_discriminator_has_none(kind, adversarial):
    inner, networks = inner_and_networks(kind)
    x, step = images(), Step(5, seed=3)
    objective = AutoencoderGAN(inner, adversarial, 0.3, 0, 1.5, 2.0, 0.8)
    copied, discriminator = copy.deepcopy(networks["autoencoder"]), networks["discriminator"].requires_grad_(False)
    loss = objective.loss("autoencoder", networks, {"x": x}, step)
    loss_gradients = gradients(loss.value, networks["autoencoder"])
    assert all(p.grad is None for p in discriminator.parameters())

    regulariser, pixels, reconstructions, samples = expected_terms(kind, copied, x, step)
    real, fake = discriminator(x), discriminator(reconstructions)
    scores = [fake.logits] if samples is None else [fake.logits, discriminator(samples).logits]
    if adversarial == "hinge":
        generator_loss = -torch.stack([each.mean() for each in scores]).mean()
    else:
        generator_loss = torch.stack([torch.log1p((real.logits - each).exp()).mean() for each in scores]).mean()
    blur = BlurDistance()(x, reconstructions).mean()
    feature_loss = (fake.features - real.features).square().mean() / 2
    fit = 1.5 * pixels + 2 * blur + 0.8 * feature_loss
    kernel = [p for p in copied.decoder.parameters() if p.ndim > 1][-1]
    norms = [torch.autograd.grad(v, kernel, retain_graph=True)[0].square().sum().sqrt() for v in (fit, generator_loss)]
    scale = norms[0] / (norms[1] + 1e-6)
    value = fit + regulariser + 0.3 * scale.detach() * generator_loss
    assert_close(loss.value, value)
    assert_close(loss_gradients, gradients(value, copied))
    expected = {"adversarial": generator_loss, "adaptive_weight": scale, "perceptual": blur, "features": feature_loss}
    for name, log in {**expected, "loss": value}.items():
        assert_close(loss.logs[name], log.detach())
    assert not any(log.requires_grad for log in loss.logs.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adversarial", ["hinge", "relativistic"])
def test_the_discriminators_gradient_is_that_of_its_formula_and_the_autoencoder_has_none(kind, adversarial):
    inner, networks = inner_and_networks(kind)
    x, step = images(), Step(5, seed=3, turn=1)
    network, discriminator = networks["autoencoder"], networks["discriminator"]
    before = weights({"": network})
    loss = AutoencoderGAN(inner, adversarial).loss("discriminator", networks, {"x": x}, step)
    loss.value.backward()
    assert all(p.grad is None for p in network.parameters()) and network.training
    assert all(torch.equal(before[key], value) for key, value in weights({"": network}).items())  # codebook, too

    network.eval()
    fakes = [fake for fake in expected_terms(kind, network, x, step)[2:] if fake is not None]
    fakes = [discriminator(fake.detach()).logits for fake in fakes]
    real, values = discriminator(x).logits, []
    for fake in fakes:
        hinge = (1 - real).relu() + (1 + fake).relu()
        values.append((hinge if adversarial == "hinge" else torch.log1p((fake - real).exp())).mean())
    value = sum(values) / len(values)
    assert_close(loss.value, value)
    assert_close([p.grad for p in discriminator.parameters()], list(gradients(value, discriminator)))
    boundary = 0 if adversarial == "hinge" else fakes[0]
    assert_close(loss.logs["accuracy_real"].double(), (real > boundary).double().mean())
    assert_close(loss.logs["loss"], value.detach())


def test_penalties_are_part_of_the_discriminators_loss():
    """R1 and R2 of a linear discriminator are half the square of its slope, at any image."""
    inner, networks = inner_and_networks("vae-gan")
    slope = nn.Parameter(normal(64))
    networks["discriminator"] = lambda x: SimpleNamespace(logits=x.flatten(1) @ slope, features=x)
    values = [
        AutoencoderGAN(inner, penalties=penalties).loss("discriminator", networks, {"x": images()}, Step(6, turn=1))
        for penalties in ((), (R1(0.5), R2(2.0, 3)), (R1(0.5, 4),))
    ]
    half = slope.square().sum() / 2
    assert_close(values[1].value - values[0].value, 0.5 * half + 6 * half)
    assert_close(values[1].logs["r1"], (0.5 * half).detach())
    assert_close(values[2].value, values[0].value)  # not active in this step
    gradient = torch.autograd.grad(values[1].value - values[0].value, slope)[0]
    assert_close(gradient, 6.5 * slope.detach())
    with pytest.raises(ValueError, match="Control is for generators of noise"):
        AutoencoderGAN(inner, penalties=[Control(1.0)])


def test_a_codebook_changes_in_the_turn_of_the_autoencoder_only():
    inner, networks = inner_and_networks("vq")
    for player in AutoencoderGAN(inner).players:
        AutoencoderGAN(inner).loss(player, networks, {"x": images()}, Step(0))
    assert networks["autoencoder"].codebook.updates == 1


def test_the_adaptive_weight_by_hand():
    """For a linear decoder y = W z + b and a linear discriminator a . y, gradients in W are outer products."""
    torch.manual_seed(0)
    model, x = build_likelihood("gaussian", SIGMA), images(4, 3) / 4
    network = AutoencoderWithPrior(MLPAutoencoderModel(3, 1, 1, (), LATENT)).double()
    with torch.no_grad():
        network.autoencoder.decoder[0].weight.mul_(0.1)  # no output is clamped
    a = normal(9)
    discriminator = lambda y: SimpleNamespace(logits=y.flatten(1) @ a, features=y)  # noqa: E731
    networks = {"autoencoder": network, "discriminator": discriminator}
    loss = AutoencoderGAN(Reconstruction(model), "hinge", 0.5).loss("autoencoder", networks, {"x": x}, Step(0))
    z = network.autoencoder.encode(x).latent_dist.mean.flatten(1)
    error = (network.autoencoder.decode(z[:, :, None, None]).sample - x).flatten(1)
    fit = (error.T @ z / (4 * 9 * SIGMA**2)).norm()
    adversarial = torch.outer(a, z.mean(0)).norm()
    assert_close(loss.logs["adaptive_weight"], (fit / (adversarial + 1e-6)).detach())
    assert 1e-3 < loss.logs["adaptive_weight"] < 1e3
    plain = AutoencoderGAN(Reconstruction(model), "hinge", 0.5, adaptive=False)
    loss = plain.loss("autoencoder", networks, {"x": x}, Step(0))
    inner = Reconstruction(model).loss("autoencoder", {"autoencoder": network}, {"x": x}, Step(0)).value
    assert loss.logs["adaptive_weight"] == 1
    assert_close(loss.value, inner + 0.5 * loss.logs["adversarial"])


def test_the_adaptive_weight_is_bounded_if_the_adversarial_gradient_vanishes():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert_close(adaptive_weight((2 * w).sum(), (w * 1e-9).sum(), w).item(), 1e4)
    assert adaptive_weight((2 * w).sum(), 0 * w.sum(), w) == 1e4


def test_graphs_that_are_differentiated_twice_are_not_compiled():
    def backend(*_):
        raise AssertionError("compiled")

    inner, networks = inner_and_networks("vae")
    compiled = {name: torch.compile(network, backend=backend) for name, network in networks.items()}
    compiled["perceptual"] = networks["perceptual"]
    losses = [
        AutoencoderGAN(inner).loss("autoencoder", each, {"x": images()}, Step(0)) for each in (networks, compiled)
    ]
    assert_close(losses[0].value, losses[1].value)
    with pytest.raises(Exception, match="compiled"):
        AutoencoderGAN(inner, adaptive=False).loss("autoencoder", compiled, {"x": images()}, Step(0))


@pytest.mark.parametrize("architecture", ["mlp", "conv", "kl", "vq", "vqmodel"])
def test_the_last_weight_is_that_of_the_output_layer(architecture):
    """Scaling it and the last bias scales the output."""
    network = build_autoencoder(architecture, "s", 8, 1, 2).eval()
    part = network if architecture in ("vq", "vqmodel") else AutoencoderWithPrior(network)
    x, kernel = images(2).float(), last_weight(part)
    with torch.no_grad():
        before = network(x).sample
        bias = [p for p in network.decoder.parameters() if p.ndim == 1 and len(p) in (2, 2 * 64)][-1]
        for p in (kernel, bias):
            p.mul_(3)
        assert_close(network(x).sample, 3 * before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_before_its_start_the_discriminator_has_no_turn_and_changes_nothing(kind):
    inner, networks = inner_and_networks(kind)
    twin, x, step = copy.deepcopy(networks["autoencoder"]), images(), Step(7)
    objective = AutoencoderGAN(inner, start_step=8, feature_matching=0.5)
    loss = objective.loss("autoencoder", networks, {"x": x}, step)
    assert_close(loss.value, inner.loss("autoencoder", {"autoencoder": twin}, {"x": x}, step).value)
    assert "adversarial" not in loss.logs
    assert objective.turns(7) == ("autoencoder",) and objective.turns(8) == objective.players
    for player, name in (("autoencoder", "adversarial"), ("discriminator", "score_real")):
        assert name in objective.loss(player, networks, {"x": x}, Step(8)).logs


def test_objectives_return_the_terms_of_their_loss():
    x = images()
    for kind in KINDS:
        network, inner = KINDS[kind]()
        terms = inner.terms(copy.deepcopy(network), x, Step(3))
        loss = inner.loss("autoencoder", {"autoencoder": network}, {"x": x}, Step(3))
        assert_close(terms.reconstruction_loss + terms.regulariser, loss.value)
        assert_close(loss.logs, {"loss": loss.value.detach(), **{name: v.detach() for name, v in terms.logs.items()}})
        regulariser, fit, reconstructions, samples = expected_terms(kind, KINDS[kind]()[0], x, Step(3))
        assert_close((terms.reconstruction_loss, terms.regulariser), (fit, regulariser), check_dtype=False)
        assert_close(inner.likelihood.mean(terms.params), reconstructions)
        assert (terms.sample_params is None) == (samples is None)
    assert not issubclass(IWAE, AutoencoderObjective)  # it has K reconstructions per item


def test_samples_are_of_the_standard_normal_only():
    network, inner = vae()
    network.prior = GaussianMixturePriorModel(SHAPE).double()
    with pytest.raises(ValueError, match="prior_samples=True is for the standard normal prior"):
        inner.terms(network, images(), Step(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial": "hinges"}, "'hinges' is not known"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"start_step": -1}, "start_step=-1"),
        ({"perceptual": -0.5}, "perceptual=-0.5"),
        ({"pixels": math.nan}, "pixels=nan"),
        ({"pixels": 0.0}, "pixels=0.0, perceptual=0.0 and, from step 0 on, feature_matching=0.0: no term compares"),
        (
            {"pixels": 0.0, "feature_matching": 1.0, "start_step": 9},
            "no term compares reconstructions with images from",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderGAN(vq()[1], **options)
    AutoencoderGAN(vq()[1], pixels=0, feature_matching=1)


# --- the perceptual distance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_the_perceptual_distance_compares_normed_maps(name):
    features = load_features(name)
    shape = (3, features.in_channels, features.image_size, features.image_size)
    x, y = (torch.rand(shape, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2))
    y.requires_grad_()
    distance = perceptual_distance("auto", shape[1], shape[2:])
    stages, hooks = [], []
    trunk = list(distance.network.trunk)
    for layer, after in itertools.pairwise(trunk):
        if isinstance(after, nn.MaxPool2d | nn.Flatten):
            hooks.append(layer.register_forward_hook(lambda module, inputs, out: stages.append(out.double())))
    distance.network(x), distance.network(y)
    for hook in hooks:
        hook.remove()
    count, total = len(stages) // 2, 0
    assert count == sum(isinstance(layer, nn.MaxPool2d) for layer in trunk) + 1
    for a, b in zip(stages[:count], stages[count:], strict=True):
        a, b = (m / (m.square().sum(1, keepdim=True) + NORM_FLOOR).sqrt() for m in (a, b))
        total = total + (a - b).square().sum(1).mean((1, 2)) / count
    values = distance(x, y)
    assert_close(values.double(), total, rtol=1e-4, atol=1e-6)
    assert values.shape == (3,) and (values > 0.01).all() and distance(x, x).abs().max() == 0
    assert torch.autograd.grad(values.sum(), y)[0].abs().sum() > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_other_networks_compare_their_features():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    distance = PerceptualDistance(FeatureNetwork("linear", "0", linear, 6, 1, 8))
    x, y = images(2).float(), images(2, seed=2).float()
    f, g = linear(x), linear(y)
    norms = (f.square().sum(1) + NORM_FLOOR).sqrt(), (g.square().sum(1) + NORM_FLOOR).sqrt()
    assert_close(distance(x, y), (f / norms[0][:, None] - g / norms[1][:, None]).square().sum(1))


def test_features_without_gradient_or_for_other_images_are_refused():
    with pytest.raises(ValueError, match="rounds images to 8 bits"):
        PerceptualDistance(FeatureNetwork("inception", "0", nn.Identity(), 6, None, None, standard=True))
    with pytest.raises(ValueError, match="mnist-cnn takes images of 1 channel"):
        perceptual_distance("mnist", 1, (8, 8))


# --- runs -------------------------------------------------------------------------------------------------------------


def vae_gan():
    """Return small networks and an objective, both without statistics of a micro-batch (codebook, adaptive weight)."""
    network, inner = vae(torch.float32, warmup_steps=3)
    torch.manual_seed(1)
    networks = {"autoencoder": network, "discriminator": build_gan("dcgan", "xs", 8, 1, norm="none")[1]}
    return networks, AutoencoderGAN(inner, "hinge", 0.1, 2, 1.0, 0.0, 0.5, adaptive=False, penalties=[R1(0.1)])


def vq_gan():
    network, inner = vq(torch.float32)
    torch.manual_seed(1)
    networks = {"autoencoder": network, "discriminator": build_gan("dcgan", "xs", 8, 1)[1]}
    return {**networks, "perceptual": perceptual_distance("digits", 1, (8, 8))}, AutoencoderGAN(
        inner, "hinge", 0.1, 2, 1, 1
    )


RUNS = {"vae_gan": vae_gan, "vq_gan": vq_gan}


@pytest.mark.parametrize("place", [(1, 0, 1), (3, 1, 1)], ids=["before its start", "in its turn"])
@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, kind, place):
    """The interruption is before the discriminator's first turn, or in one of its turns."""
    check_resume(tmp_path, RUNS[kind], place)
    names = {path.name for path in (tmp_path / "whole" / "checkpoint-6").iterdir()}
    assert {"model.safetensors", "model_1.safetensors", "ema_discriminator.safetensors"} <= names


def test_the_discriminator_stays_as_it_was_until_its_start(tmp_path):
    networks, objective = vq_gan()
    before = copy.deepcopy(networks["discriminator"]).state_dict()
    _, result = run(tmp_path, objective=objective, networks=networks, max_train_steps=2, logging_steps=1)
    for network in (networks["discriminator"], result.networks["discriminator"]):
        after = network.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)  # statistics of a batch norm as well
    names = [{name for name in row if name.startswith("discriminator/")} for row in rows(tmp_path)]
    assert names == [{"discriminator/lr"}] * 2


def test_the_discriminators_first_update_is_adams_first_step(tmp_path, recwarn):
    """At step 3 of 6 it is lr g / (|g| + eps), where g is clipped to norm 1 and lr is that of step 3."""
    networks, objective = vae_gan()
    objective.start_step = 3
    first, discriminator = copy.deepcopy(networks), copy.deepcopy(networks["discriminator"])
    options = {"checkpointing_steps": 1, "checkpoints_total_limit": 6, "lr_scheduler": "linear"}
    run(tmp_path, objective=objective, networks=networks, **options)
    saved = [load_file(tmp_path / f"checkpoint-{number}" / "model_1.safetensors") for number in (1, 2, 3, 4)]
    before = discriminator.state_dict()
    assert all(torch.equal(before[key], each[key]) for each in saved[:3] for key in before)

    for number, updates in ((3, []), (4, [1]), (6, [3])):
        state = torch.load(tmp_path / f"checkpoint-{number}" / "optimizer_1.bin")["state"]
        assert sorted({int(entry["step"]) for entry in state.values()}) == updates
        average = load_file(tmp_path / f"checkpoint-{number}" / "ema_discriminator.safetensors")
        assert average["updates"] == sum(updates)

    first["autoencoder"].load_state_dict(load_file(tmp_path / "checkpoint-4" / "model.safetensors"))
    stream = Batches(load_images(DataArgs(max_train_samples=24)), 8, 0).iterate(3)
    loss = objective.loss("discriminator", {**first, "discriminator": discriminator}, next(stream), Step(3, turn=1))
    loss.value.backward()
    nn.utils.clip_grad_norm_(discriminator.parameters(), 1.0)
    rate = 1e-3 * (6 - 3) / (6 - 2)
    updates = {name: rate * p.grad / (p.grad.abs() + 1e-8) for name, p in discriminator.named_parameters()}
    assert max(update.abs().max() for update in updates.values()) > 0.9 * rate
    assert_close({name: before[name] - saved[3][name] for name in updates}, updates, rtol=0, atol=1e-6)
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


EPSILON = 1e-5
"""Adam's epsilon. With a smaller one, rounding errors of gradients near 0 would become steps."""


def test_four_micro_batches_of_two_are_a_batch_of_eight(tmp_path):
    check_micro_batches(tmp_path, vae_gan, rel=1e-3, abs=1e-5, adam_epsilon=EPSILON)


TWO = """
import sys, torch
from tests.objectives.test_autoencoder_gan import EPSILON, vae_gan, vq_gan
from tests.helpers.toys import run, weights
networks, objective = vae_gan()
options = {"train_batch_size": 4, "adam_epsilon": EPSILON}
networks, result = run(f"{sys.argv[1]}/run", objective=objective, networks=networks, **options)
torch.save(weights(networks), f"{sys.argv[1]}/{torch.distributed.get_rank()}.pt")
networks, objective = vq_gan()
run(f"{sys.argv[1]}/vq", objective=objective, networks=networks, train_batch_size=4)
"""


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    """Weights are equal if no term depends on the micro-batch. With adaptive weights the run finishes."""
    run_in_two_processes(TWO, tmp_path)
    networks, objective = vae_gan()
    alone, _ = run(tmp_path / "alone", objective=objective, networks=networks, adam_epsilon=EPSILON)
    for rank in (0, 1):
        assert_close(torch.load(tmp_path / f"{rank}.pt"), weights(alone), rtol=0, atol=1e-5)
    for a, b in zip(rows(tmp_path / "run"), rows(tmp_path / "alone"), strict=True):
        assert {key: pytest.approx(a[key], rel=1e-3, abs=1e-4) for key in a} == b


# --- the front door ---------------------------------------------------------------------------------------------------

QUICK = ["--dataset_split", "train[:64]", "--held_out_split", "train[64:84]", "--train_batch_size", "8"]
FEW = ["--max_train_steps", "2", "--lr_warmup_steps", "1", "--eval_batch_size", "6", "--report_to", "none"]
FEW += ["--latent_channels", "3", "--logging_steps", "1", "--discriminator_size", "xs"]
VAE_GAN = ["--objective", "elbo", "--model", "mlp", "--prior_samples", "--feature_matching", "1", "--pixels", "0"]
VAE_GAN += ["--mixture_components", "2", "--likelihood_samples", "3", "--discriminator", "mlp"]
DOORS = {"vq": ["--commitment", "0.5", "--r1", "0.1"], "elbo": VAE_GAN}


def door(capsys, *words):
    """Run the front door in this process; return exit status, stdout and error output."""
    return run_door(train_vqgan.main, capsys, *words)


@pytest.mark.parametrize("objective", DOORS)
def test_the_front_door_leaves_the_autoencoder_with_pictures_figures_and_a_card(capsys, tmp_path, objective):
    folder = tmp_path / "run"
    status, out, errors = door(capsys, *QUICK, *FEW, *DOORS[objective], "--sample_steps", "1", "--output_dir", folder)
    assert status == 0, errors
    pipeline = HFGenPipeline.from_pretrained(folder)
    assert type(pipeline) is (VQPipeline if objective == "vq" else VAEPipeline)
    assert not (folder / "discriminator").exists() and pipeline.config.likelihood == "gaussian"
    assert (folder / "checkpoint-2" / "ema_discriminator.safetensors").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["objective"] == objective
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    names = {"autoencoder/adversarial", "autoencoder/adaptive_weight", "discriminator/accuracy_fake"}
    assert names | {"autoencoder/perceptual"} <= row.keys() and all(math.isfinite(value) for value in row.values())
    assert ("autoencoder/features" in row) == (objective == "elbo")
    card = (folder / "README.md").read_text()
    title = {"vq": "VQ-GAN", "elbo": "VAE-GAN"}[objective]
    assert f"# {title} on digits" in card and f"A {title} model" in card and "| adversarial | hinge" in card
    assert "hfgen train vqgan --config config.yaml" in card and "](reconstructions.png)" in card
    assert "reconstruction error, mse" in out and [path.name for path in (folder / "samples").iterdir()]


def test_reconstructions_have_a_frechet_distance_where_there_are_enough(capsys, tmp_path):
    words = ["--dataset_split", "train[:64]", "--held_out_split", "train[64:164]", "--train_batch_size", "8", *FEW]
    assert door(capsys, *words, "--output_dir", tmp_path)[0] == 0
    entries = json.loads((tmp_path / "metrics.json").read_text())["evaluation"]
    values = [entry["value"] for entry in entries if entry["metric"].startswith("Frechet distance of recon")]
    x = sample(load_images(DataArgs(dataset_split="train[64:164]")), 100)[0] / 127.5 - 1
    reconstructions = HFGenPipeline.from_pretrained(tmp_path).reconstruct(x)
    networks = [load_features(name) for name in ("digits", "digits-texture")]
    expected = [frechet_distance(network(x), network(reconstructions)) for network in networks]
    assert values == pytest.approx(expected, rel=1e-4)


def test_options_reach_the_objective():
    options = {"adversarial": "relativistic", "adversarial_weight": 0.7, "discriminator_start": 9, "pixels": 2.0}
    options |= {
        "perceptual": 3.0,
        "feature_matching": 4.0,
        "adaptive": False,
        "prior_samples": True,
        "beta": 0.4,
        "r1": 0.6,
    }
    critic = CriticArgs("elbo", **options)
    recipe = make_inner_recipe(DataArgs(), VQGANNetworkArgs("mlp"), critic, PriorArgs(), VQGANTrainArgs())
    objective = with_critic(recipe.objective(recipe.autoencoder(8, 1)), critic)
    names = "weight", "start_step", "pixels", "perceptual", "feature_matching"
    assert [getattr(objective, name) for name in names] == [0.7, 9, 2.0, 3.0, 4.0]
    assert objective.row.paired and not objective.adaptive
    assert objective.penalties == (R1(0.6),)
    assert objective.inner.prior_samples and objective.inner.beta == 0.4 and isinstance(objective.inner, ELBO)


@pytest.mark.parametrize("objective", DOORS)
def test_bfloat16_trains(capsys, tmp_path, objective):
    words = [*QUICK, *FEW, *DOORS[objective], "--mixed_precision", "bf16", "--output_dir", tmp_path]
    status, _, errors = door(capsys, *words)
    assert status == 0, errors
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert math.isfinite(row["autoencoder/loss"]) and math.isfinite(row["discriminator/loss"])


def test_a_dry_run_estimates_all_networks(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, errors = door(capsys, *QUICK, *FEW, "--output_dir", "x", "--dry_run")
    assert status == 0, errors
    assert "autoencoder parameters" in out and "discriminator parameters" in out and not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adversarial_weight", "-1"], "--adversarial_weight -1.0 must be at least 0"),
        (["--r1", "-1"], "--r1 -1.0 must be at least 0"),
        (["--pixels", "0", "--perceptual", "0"], "no term compares reconstructions with images"),
        (["--prior_samples"], "--prior_samples True does nothing with --objective vq, only with elbo"),
        ([*VAE_GAN[:5], "--prior", "vamp"], "--prior_samples draws from the standard normal"),
        (["--objective", "elbo"], "--model vq can't be trained with --objective elbo, which takes mlp or conv or kl"),
        (["--perceptual", "0", "--perceptual_features", "mnist"], "--perceptual_features mnist does nothing"),
        (["--commitment", "0.1", "--objective", "elbo", "--model", "conv"], "--commitment 0.1 does nothing"),
        (["--resolution", "2"], "can't make 2 x 2 images"),
        (["--corruption", "masking"], "--corruption is no option of hfgen train "),
    ],
)
def test_impossible_runs_are_refused_before_data_are_read(capsys, tmp_path, monkeypatch, words, message):
    check_refusal(train_vqgan.main, capsys, monkeypatch, tmp_path / "run", words, message)


def test_images_without_built_in_features_are_refused_with_the_fix(capsys, tmp_path):
    status, _, errors = door(capsys, *QUICK, *FEW, "--resolution", "12", "--output_dir", tmp_path / "run")
    assert status == 2 and "No built-in features suit images of 1 channel(s) and 12 x 12" in errors
    assert "--perceptual 0" in errors and not (tmp_path / "run").exists()


def test_help_is_of_this_family(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "vqgan", "--help"])
    text = capsys.readouterr().out
    assert "--adversarial" in text and "hfgen train vqgan --config mnist_vqgan" in text
    assert "--corruption" not in text.split()
