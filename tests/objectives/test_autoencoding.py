"""Laws of the likelihood corner: bounds bound, gradients are those of the bound, and a run is the same however cut."""

import copy
import itertools
import math

import pytest
import torch
from torch import distributions
from torch.func import functional_call
from torch.testing import assert_close

from hfgen.distributions.bounds import kl_to_standard_normal, log_mean_exp, log_ratio, log_weights
from hfgen.distributions.likelihoods import LIKELIHOODS, build_likelihood
from hfgen.models.autoencoder import MLPAutoencoderModel
from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior
from hfgen.models.build_autoencoder import build_autoencoder
from hfgen.models.priors import GaussianMixturePriorModel, VampPriorModel
from hfgen.models.vq import VQAutoencoderModel
from hfgen.objectives.autoencoding import ELBO, IWAE, Reconstruction, VectorQuantized
from hfgen.objectives.base import Step
from tests.helpers.cuts import check_micro_batches, check_resume
from tests.helpers.processes import run_in_two_processes
from tests.helpers.toys import run, weights

LATENT, SIGMA = 3, 0.4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(batch=4, side=3, seed=1):
    levels = torch.randint(0, 256, (batch, 1, side, side), generator=torch.Generator().manual_seed(seed))
    return (levels / 127.5 - 1).double()


def autoencoding(model, hidden=(6,), prior=None, side=3):
    """A small one in float64 with every parameter moved."""
    torch.manual_seed(0)
    network = AutoencoderWithPrior(
        MLPAutoencoderModel(side, 1, model.channels(1), hidden, LATENT, "tanh"), prior
    ).double()
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(0.5 * normal(*parameter.shape, seed=i))
    return network


def loss_of(objective, network, x, step=None):
    return objective.loss("autoencoder", {"autoencoder": network}, {"x": x}, step or Step(5))


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_kl_is_torchs():
    mean, log_variance = normal(4, 3, 2, 1), normal(4, 3, 2, 1, seed=1)
    q = distributions.Normal(mean, (log_variance / 2).exp())
    p = distributions.Normal(torch.zeros_like(mean), 1.0)
    assert_close(kl_to_standard_normal(mean, log_variance), distributions.kl_divergence(q, p))


def test_the_ratio_of_prior_and_posterior_is_torchs():
    mean, log_variance, z = normal(4, 3, 2, 1), normal(4, 3, 2, 1, seed=1), normal(4, 5, 3, 2, 1, seed=2)
    q = distributions.Normal(mean.unsqueeze(1), (log_variance / 2).exp().unsqueeze(1))
    normal_prior = distributions.Normal(0.0, 1.0).log_prob(z).flatten(2).sum(2)
    expected = normal_prior - q.log_prob(z).flatten(2).sum(2)
    assert_close(log_ratio(z, mean, log_variance, None), expected)
    assert_close(log_ratio(z, mean, log_variance, normal_prior), expected)


def exact(network):
    """log p(x) and the posterior p(z | x) of a linear decoder, p(x | z) = N(W z + b, sigma^2), as functions of x."""
    w, b = network.autoencoder.decoder[0].weight, network.autoencoder.decoder[0].bias
    marginal = distributions.MultivariateNormal(b, w @ w.T + SIGMA**2 * torch.eye(len(b)).double())
    covariance = torch.linalg.inv(torch.eye(LATENT).double() + w.T @ w / SIGMA**2)

    def posterior(x):
        return distributions.MultivariateNormal((x.flatten(1) - b) @ w @ covariance / SIGMA**2, covariance)

    return lambda x: marginal.log_prob(x.flatten(1)), posterior


def linear():
    return autoencoding(build_likelihood("gaussian", SIGMA), hidden=())


@torch.no_grad()
def optimal():
    """Its q(z | x) is the posterior, which is diagonal where the columns of W are orthogonal."""
    network = linear()
    encoder, decoder = network.autoencoder.encoder[0], network.autoencoder.decoder[0]
    w = decoder.weight.copy_(torch.linalg.qr(decoder.weight).Q * torch.tensor([2.0, 1.0, 0.3]))
    variance = 1 / (1 + w.square().sum(0) / SIGMA**2)
    slope = variance.unsqueeze(1) * w.T / SIGMA**2
    encoder.weight.copy_(torch.cat([slope, torch.zeros_like(slope)]))
    encoder.bias.copy_(torch.cat([-slope @ decoder.bias, variance.log()]))
    return network


def corners(count):
    """Noise (B, 2 d, d, 1, 1) over which the mean of any quadratic function is its expectation."""
    eye = math.sqrt(LATENT) * torch.eye(LATENT).double()
    return torch.cat([eye, -eye]).view(1, 2 * LATENT, LATENT, 1, 1).expand(count, -1, -1, -1, -1)


@torch.no_grad()
def weights_of(network, x, noise):
    coded = network(x, noise)
    moments = coded.latents, coded.mean, coded.log_variance
    return log_weights(build_likelihood("gaussian", SIGMA), x, coded.decoded, *moments, coded.log_prior)


@torch.no_grad()
def test_elbo_is_log_p_less_the_divergence_of_the_posteriors():
    network, x = linear(), images()
    log_p, posterior = exact(network)
    q = network.autoencoder.encode(x).latent_dist
    law = distributions.MultivariateNormal(q.mean.flatten(1), torch.diag_embed(q.var.flatten(1)))
    elbo = weights_of(network, x, corners(len(x))).mean(1)
    assert_close(elbo, log_p(x) - distributions.kl_divergence(law, posterior(x)))
    assert (elbo < log_p(x)).all()


@torch.no_grad()
def test_at_the_optimum_every_weight_is_log_p():
    network, x, model = optimal(), images(), build_likelihood("gaussian", SIGMA)
    expected = exact(network)[0](x)
    each = weights_of(network, x, normal(len(x), 7, LATENT, 1, 1))
    assert_close(each, expected.unsqueeze(1).expand(-1, 7))
    assert_close(loss_of(IWAE(model, (LATENT, 1, 1), 5), network, x).logs["bound"], expected.mean())


@torch.no_grad()
def test_elbo_is_log_p_at_the_optimum():
    """On average over noise, for KL is that of the distributions and the likelihood that of a sample."""
    network, x, model = optimal(), images(2000), build_likelihood("gaussian", SIGMA)
    got, expected = loss_of(ELBO(model, (LATENT, 1, 1)), network, x).logs["elbo"], exact(network)[0](x).mean()
    assert got == pytest.approx(expected.item(), abs=0.1)


@torch.no_grad()
def test_importance_samples_come_nearer_to_log_p_from_below():
    network, x = linear(), images(16)
    for parameter in network.autoencoder.encoder.parameters():
        parameter.mul_(0.1)  # near the prior, which covers the posterior
    network.autoencoder.decoder[0].weight.mul_(0.4)
    each, log_p = weights_of(network, x, normal(16, 4096, LATENT, 1, 1)), exact(network)[0](x).mean().item()
    bounds = [log_mean_exp(each.unflatten(1, (-1, k))).mean().item() for k in (1, 4, 16, 64, 256, 4096)]
    assert bounds == sorted(bounds) and bounds[0] < log_p - 1
    assert bounds[-1] == pytest.approx(log_p, abs=0.05)


def test_the_bound_grows_with_every_sample():
    """The mean of log-mean-exp over all subsets of k of any eight weights grows with k (Burda et al., theorem 1)."""
    each = 3 * normal(8)
    means = [
        torch.stack([log_mean_exp(torch.stack(some)) for some in itertools.combinations(each, k)]).mean()
        for k in range(1, 9)
    ]
    assert_close(means[0], each.mean())
    assert all(a < b for a, b in itertools.pairwise(means)) and means[-1] < each.max()


# --- ELBO and IWAE as losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_elbo_is_its_formula(name):
    model, x, step = build_likelihood(name), images(), Step(5, seed=3)
    network, objective = autoencoding(model), ELBO(model, (LATENT, 1, 1), beta=0.7)
    loss = loss_of(objective, network, x, step)
    seen = model.prepare(x, lambda like: step.uniform("binarize", like))
    q = network.autoencoder.encode(seen).latent_dist
    noise = step.randn("latent", torch.empty(4, 1, LATENT, 1, 1, dtype=torch.float64))[:, 0]
    likelihood = model.log_prob(network.autoencoder.decode(q.mean + q.std * noise).sample, seen).mean()
    kl = q.kl().mean()  # diffusers'
    assert_close(loss.value, (0.7 * kl - likelihood) / 9)
    expected = {"loss": loss.value, "elbo": likelihood - kl, "reconstruction": likelihood, "kl": kl}
    assert_close(loss.logs, {key: value.detach() for key, value in expected.items()})


def test_iwae_with_one_sample_is_elbo_with_kl_at_the_sample():
    """And so are its gradients."""
    model, x = build_likelihood("gaussian", SIGMA), images()
    network = autoencoding(model, prior=GaussianMixturePriorModel((LATENT, 1, 1)))
    losses = [
        loss_of(objective, network, x) for objective in (ELBO(model, (LATENT, 1, 1)), IWAE(model, (LATENT, 1, 1), 1))
    ]
    assert_close(losses[0].value, losses[1].value)
    assert_close(losses[1].logs["bound"], losses[0].logs["elbo"])
    assert_close(losses[1].logs["bound"], losses[1].logs["elbo"])
    for got, wanted in zip(
        *(torch.autograd.grad(loss.value, list(network.parameters())) for loss in losses), strict=True
    ):
        assert_close(got, wanted)


def test_a_standard_normal_that_is_given_is_the_one_that_is_not():
    model, x = build_likelihood("gaussian", SIGMA), images()
    given, plain = autoencoding(model, prior=GaussianMixturePriorModel((LATENT, 1, 1))), autoencoding(model)
    objective = IWAE(model, (LATENT, 1, 1), 4)
    assert_close(loss_of(objective, given, x).value, loss_of(objective, plain, x).value)


def test_kl_in_closed_form_is_what_kl_at_samples_is_on_average():
    network, x = autoencoding(build_likelihood("gaussian", SIGMA)), images()
    with torch.no_grad():
        coded = network(x, normal(4, 50_000, LATENT, 1, 1))
        each = -log_ratio(coded.latents, coded.mean, coded.log_variance, None)
        assert_close(
            each.mean(1), kl_to_standard_normal(coded.mean, coded.log_variance).flatten(1).sum(1), rtol=0.02, atol=0.02
        )


@pytest.mark.parametrize("prior", ["normal", "vamp"])
@pytest.mark.parametrize("kind", ["elbo", "free bits", "iwae", "reconstruction"])
def test_gradients_are_finite_differences(kind, prior):
    """Of the whole loss, in every parameter, with the step's noise held."""
    if (kind, prior) == ("free bits", "vamp"):
        return
    model, x = build_likelihood("gaussian_learned"), images(2, 2)
    network = autoencoding(model, (3,), VampPriorModel(2, 1, 2) if prior == "vamp" else None, side=2)
    objective = {
        "elbo": ELBO(model, (LATENT, 1, 1), 0.5),
        "free bits": ELBO(model, (LATENT, 1, 1), free_bits=0.3),
        "iwae": IWAE(model, (LATENT, 1, 1), 3),
        "reconstruction": Reconstruction(model, "gaussian"),
    }[kind]
    names, values = zip(*network.named_parameters(), strict=True)

    def of(*parameters):
        swapped = lambda *args: functional_call(network, dict(zip(names, parameters, strict=True)), args)  # noqa: E731
        return loss_of(objective, swapped, x).value

    assert torch.autograd.gradcheck(of, tuple(value.detach().requires_grad_() for value in values))


def test_beta_warms_up_linearly():
    objective = ELBO(build_likelihood("bernoulli"), (LATENT, 1, 1), beta=4.0, warmup_steps=8)
    assert [objective.beta_at(number) for number in (0, 2, 4, 8, 100)] == [0, 1, 2, 4, 4]
    network, x = autoencoding(build_likelihood("bernoulli")), images()
    loss = loss_of(objective, network, x, Step(2))
    assert_close(loss.value.detach(), (1 * loss.logs["kl"] - loss.logs["reconstruction"]) / 9)
    assert ELBO(build_likelihood("bernoulli"), (LATENT, 1, 1), beta=0).beta_at(0) == 0


def test_free_bits_charge_each_dimension_for_at_least_so_many():
    model, x = build_likelihood("gaussian", SIGMA), images()
    network = autoencoding(model)
    each = kl_to_standard_normal(*(part for part in network(x)[:2])).mean(0)  # (d, 1, 1)
    free = each.median().item()  # some dimensions are above, some below
    loss = loss_of(ELBO(model, (LATENT, 1, 1), free_bits=free), network, x)
    charged = loss.value.detach() * 9 + loss.logs["reconstruction"]
    assert_close(charged, sum(max(free, value) for value in each.flatten().tolist()) * torch.ones(()).double())
    assert_close(loss.logs["kl"], each.sum().detach())
    with pytest.raises(ValueError, match=r"free_bits=0\.1 is for the standard normal"):
        given = autoencoding(model, prior=GaussianMixturePriorModel((LATENT, 1, 1)))
        loss_of(ELBO(model, (LATENT, 1, 1), free_bits=0.1), given, x)


def test_bounds_work_on_grids_of_latents():
    """diffusers' AutoencoderKL."""
    model = build_likelihood("gaussian")
    network = AutoencoderWithPrior(build_autoencoder("kl", "s", 8, 1, 1))
    for objective in (ELBO(model, network.latent_shape), IWAE(model, network.latent_shape, 2), Reconstruction(model)):
        loss = loss_of(objective, network, images(2, 8).float())
        assert loss.value.isfinite() and all(
            value.ndim == 0 and not value.requires_grad for value in loss.logs.values()
        )


# --- corruption and codes ---------------------------------------------------------------------------------------------


class Seen(torch.nn.Module):
    """Notes what the encoder is shown."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, noise=None):
        self.x = x
        return self.network(x, noise)


def test_a_denoising_autoencoder_sees_noise_and_is_asked_for_the_image():
    model, x = build_likelihood("gaussian", SIGMA), images(64, 8)
    network = Seen(autoencoding(model, side=8))
    loss = loss_of(Reconstruction(model, "gaussian", 0.5), network, x)
    noise = (network.x - x) / 0.5
    assert noise.mean().abs() < 0.05 and noise.std() == pytest.approx(1, abs=0.05)
    expected = model.log_prob(network.network(network.x).decoded.squeeze(1), x).mean()
    assert_close(loss.value, -expected / 64)
    assert_close(loss.logs["reconstruction"], expected.detach())


def test_masking_blackens_whole_pixels():
    colour = torch.rand(64, 3, 8, 8)
    network = Seen(AutoencoderWithPrior(MLPAutoencoderModel(8, 3, 3, (4,), 2)))
    loss_of(Reconstruction(build_likelihood("gaussian"), "masking", 0.3), network, colour)
    masked = (network.x == -1).all(1)
    assert masked.float().mean() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(network.x, torch.where(masked.unsqueeze(1), -1.0, colour))


def test_an_autoencoder_sees_the_image_and_decodes_the_mean():
    model, x = build_likelihood("gaussian", SIGMA), images()
    network = Seen(autoencoding(model))
    loss = loss_of(Reconstruction(model), network, x)
    assert torch.equal(network.x, x)
    assert_close(loss.value, -model.log_prob(network.network.autoencoder(x).sample, x).mean() / 9)


def test_vector_quantisation_is_its_formula_and_the_encoder_gets_the_decoders_gradient():
    model, x = build_likelihood("gaussian", SIGMA), images(4, 8)
    torch.manual_seed(0)
    network = VQAutoencoderModel(8, 1, 1, (8,), 1, 4, 16).double().train()
    fresh = copy.deepcopy(network).eval()
    loss = loss_of(VectorQuantized(model, 0.7), network, x)
    assert network.codebook.updates == 1 and set(loss.logs) == {"loss", "reconstruction", "commitment", "perplexity"}
    output = fresh(x)
    error = (output.latents - output.quantized.detach()).square().mean()
    assert_close(loss.value, 0.7 * error - model.log_prob(output.sample, x).mean() / 64)
    plain = loss_of(VectorQuantized(model, 0.0), fresh, x).value
    latents = fresh.encode(x).latents
    through = torch.autograd.grad(plain, fresh.to_latents.weight, retain_graph=True)[0]
    codes = fresh.quantize(latents).quantized.detach().requires_grad_()
    decoded = fresh.decode(codes, force_not_quantize=True).sample
    slope = torch.autograd.grad(-model.log_prob(decoded, x).mean() / 64, codes)[0]
    assert_close(through, torch.autograd.grad((latents * slope).sum(), fresh.to_latents.weight)[0])


def test_diffusers_vq_model_learns_its_codebook_by_gradient():
    network = build_autoencoder("vqmodel", "s", 8, 1, 1)
    loss = loss_of(VectorQuantized(build_likelihood("gaussian")), network, images(2, 8).float())
    loss.value.backward()
    assert network.quantize.embedding.weight.grad.abs().sum() > 0 and "perplexity" not in loss.logs


def test_impossible_options_are_refused():
    model, shape = build_likelihood("bernoulli"), (LATENT, 1, 1)
    for make, said in (
        (lambda: ELBO(model, shape, beta=-1), "beta=-1"),
        (lambda: ELBO(model, shape, warmup_steps=-1), "warmup_steps=-1"),
        (lambda: ELBO(model, shape, free_bits=-1), "free_bits=-1"),
        (lambda: IWAE(model, shape, 0), "num_samples=0"),
        (lambda: Reconstruction(model, "blur"), "corruption='blur' is not known"),
        (lambda: Reconstruction(model, "masking", 1.5), r"strength=1\.5"),
        (lambda: VectorQuantized(model, -0.1), r"commitment=-0\.1"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


# --- runs -------------------------------------------------------------------------------------------------------------


def test_uniform_numbers_are_those_of_the_whole_batch_cut():
    like = torch.empty(8, 1, 4, 4)
    whole = Step(3, seed=1).uniform("binarize", like)
    parts = [Step(3, seed=1, shard=shard, shards=4).uniform("binarize", like[:2]) for shard in range(4)]
    assert torch.equal(torch.cat(parts), whole) and whole.min() >= 0 and whole.max() < 1
    assert not torch.equal(whole, Step(3, seed=1).uniform("corruption", like))
    assert not torch.equal(whole, Step(4, seed=1).uniform("binarize", like))


def vae(dtype=torch.float32):
    torch.manual_seed(0)
    network = AutoencoderWithPrior(MLPAutoencoderModel(8, 1, 1, (16,), LATENT)).to(dtype)
    return {"autoencoder": network}, ELBO(build_likelihood("bernoulli"), (LATENT, 1, 1), warmup_steps=3)


def vq():
    torch.manual_seed(0)
    network = VQAutoencoderModel(8, 1, 1, (8,), 1, 4, 16, revival=0.3)
    return {"autoencoder": network}, VectorQuantized(build_likelihood("gaussian"))


RUNS = {"vae": vae, "vq": vq}


@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, kind):
    check_resume(tmp_path, RUNS[kind], (3, 0, 1))


def test_four_micro_batches_of_two_are_a_batch_of_eight(tmp_path):
    check_micro_batches(tmp_path, vae, rel=1e-4, abs=1e-6)


TWO = """
import sys, torch
from tests.objectives.test_autoencoding import RUNS
from tests.helpers.toys import run, weights
for kind in RUNS:
    networks, objective = RUNS[kind]()
    networks, result = run(f"{sys.argv[1]}/{kind}", objective=objective, networks=networks, train_batch_size=4)
    torch.save(weights(networks), f"{sys.argv[1]}/{kind}{torch.distributed.get_rank()}.pt")
"""


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    """The codebook, whose statistics are of all processes, as well."""
    run_in_two_processes(TWO, tmp_path)
    for kind in RUNS:
        networks, objective = RUNS[kind]()
        alone, _ = run(tmp_path / f"{kind}-alone", objective=objective, networks=networks)
        for rank in (0, 1):
            assert_close(torch.load(tmp_path / f"{kind}{rank}.pt"), weights(alone), rtol=0, atol=1e-5)
