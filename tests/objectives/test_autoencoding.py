"""Laws of the likelihood corner: bounds against exact likelihoods, gradients against finite differences, and runs that
do not depend on how they are cut."""

import copy
import itertools
import math
from types import SimpleNamespace

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
from hfgen.objectives import autoencoding
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


def small_autoencoder(model, hidden=(6,), prior=None, side=3):
    """Return a small autoencoder in float64, all of whose parameters are random."""
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


def exact_likelihood(network):
    """Return functions of x that compute log p(x) and the posterior p(z | x) of a linear decoder.

    p(x | z) = N(W z + b, sigma^2).
    """
    w, b = network.autoencoder.decoder[0].weight, network.autoencoder.decoder[0].bias
    marginal = distributions.MultivariateNormal(b, w @ w.T + SIGMA**2 * torch.eye(len(b)).double())
    covariance = torch.linalg.inv(torch.eye(LATENT).double() + w.T @ w / SIGMA**2)

    def posterior(x):
        return distributions.MultivariateNormal((x.flatten(1) - b) @ w @ covariance / SIGMA**2, covariance)

    return lambda x: marginal.log_prob(x.flatten(1)), posterior


def linear_autoencoder():
    return small_autoencoder(build_likelihood("gaussian", SIGMA), hidden=())


@torch.no_grad()
def optimal_autoencoder():
    """Return a linear autoencoder whose q(z | x) is the posterior, diagonal because the columns of W are orthogonal."""
    network = linear_autoencoder()
    encoder, decoder = network.autoencoder.encoder[0], network.autoencoder.decoder[0]
    w = decoder.weight.copy_(torch.linalg.qr(decoder.weight).Q * torch.tensor([2.0, 1.0, 0.3]))
    variance = 1 / (1 + w.square().sum(0) / SIGMA**2)
    slope = variance.unsqueeze(1) * w.T / SIGMA**2
    encoder.weight.copy_(torch.cat([slope, torch.zeros_like(slope)]))
    encoder.bias.copy_(torch.cat([-slope @ decoder.bias, variance.log()]))
    return network


def quadrature_noise(count):
    """Return noise (B, 2 d, d, 1, 1) over which the mean of any quadratic function is its expectation."""
    eye = math.sqrt(LATENT) * torch.eye(LATENT).double()
    return torch.cat([eye, -eye]).view(1, 2 * LATENT, LATENT, 1, 1).expand(count, -1, -1, -1, -1)


@torch.no_grad()
def weights_of(network, x, noise):
    output = network(x, noise)
    moments = output.latents, output.mean, output.log_variance
    return log_weights(build_likelihood("gaussian", SIGMA), x, output.decoded, *moments, output.log_prior)


@torch.no_grad()
def test_elbo_is_log_p_minus_the_divergence_of_the_posteriors():
    network, x = linear_autoencoder(), images()
    log_p, posterior = exact_likelihood(network)
    q = network.autoencoder.encode(x).latent_dist
    normal_q = distributions.MultivariateNormal(q.mean.flatten(1), torch.diag_embed(q.var.flatten(1)))
    elbo = weights_of(network, x, quadrature_noise(len(x))).mean(1)
    assert_close(elbo, log_p(x) - distributions.kl_divergence(normal_q, posterior(x)))
    assert (elbo < log_p(x)).all()


@torch.no_grad()
def test_at_the_optimum_every_weight_is_log_p():
    network, x, model = optimal_autoencoder(), images(), build_likelihood("gaussian", SIGMA)
    expected = exact_likelihood(network)[0](x)
    weights = weights_of(network, x, normal(len(x), 7, LATENT, 1, 1))
    assert_close(weights, expected.unsqueeze(1).expand(-1, 7))
    assert_close(loss_of(IWAE(model, (LATENT, 1, 1), 5), network, x).logs["bound"], expected.mean())


@torch.no_grad()
def test_elbo_is_log_p_at_the_optimum():
    """On average over noise: KL is exact, and the likelihood is that of one sample."""
    network, x, model = optimal_autoencoder(), images(2000), build_likelihood("gaussian", SIGMA)
    elbo = loss_of(ELBO(model, (LATENT, 1, 1)), network, x).logs["elbo"]
    assert elbo == pytest.approx(exact_likelihood(network)[0](x).mean().item(), abs=0.1)


@torch.no_grad()
def test_more_importance_samples_approach_log_p_from_below():
    network, x = linear_autoencoder(), images(16)
    for parameter in network.autoencoder.encoder.parameters():
        parameter.mul_(0.1)  # near the prior, which covers the posterior
    network.autoencoder.decoder[0].weight.mul_(0.4)
    weights, log_p = weights_of(network, x, normal(16, 4096, LATENT, 1, 1)), exact_likelihood(network)[0](x)
    log_p = log_p.mean().item()
    bounds = [log_mean_exp(weights.unflatten(1, (-1, k))).mean().item() for k in (1, 4, 16, 64, 256, 4096)]
    assert bounds == sorted(bounds) and bounds[0] < log_p - 1
    assert bounds[-1] == pytest.approx(log_p, abs=0.05)


def test_the_bound_grows_with_every_sample():
    """The mean of log-mean-exp over all subsets of k of any eight weights grows with k (Burda et al., theorem 1)."""
    weights = 3 * normal(8)
    means = [
        torch.stack([log_mean_exp(torch.stack(subset)) for subset in itertools.combinations(weights, k)]).mean()
        for k in range(1, 9)
    ]
    assert_close(means[0], weights.mean())
    assert all(a < b for a, b in itertools.pairwise(means)) and means[-1] < weights.max()


# --- ELBO and IWAE as losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_elbo_is_its_formula(name):
    model, x, step = build_likelihood(name), images(), Step(5, seed=3)
    network, objective = small_autoencoder(model), ELBO(model, (LATENT, 1, 1), beta=0.7)
    loss = loss_of(objective, network, x, step)
    prepared = model.prepare(x, lambda like: step.uniform("binarize", like))
    q = network.autoencoder.encode(prepared).latent_dist
    noise = step.randn("latent", torch.empty(4, 1, LATENT, 1, 1, dtype=torch.float64))[:, 0]
    likelihood = model.log_prob(network.autoencoder.decode(q.mean + q.std * noise).sample, prepared).mean()
    kl = q.kl().mean()  # diffusers'
    assert_close(loss.value, (0.7 * kl - likelihood) / 9)
    expected = {"loss": loss.value, "elbo": likelihood - kl, "reconstruction": likelihood, "kl": kl}
    assert_close(loss.logs, {key: value.detach() for key, value in expected.items()})


def test_iwae_with_one_sample_is_elbo_with_kl_at_the_sample():
    """The gradients are equal, too."""
    model, x = build_likelihood("gaussian", SIGMA), images()
    network = small_autoencoder(model, prior=GaussianMixturePriorModel((LATENT, 1, 1)))
    losses = [
        loss_of(objective, network, x) for objective in (ELBO(model, (LATENT, 1, 1)), IWAE(model, (LATENT, 1, 1), 1))
    ]
    assert_close(losses[0].value, losses[1].value)
    assert_close(losses[1].logs["bound"], losses[0].logs["elbo"])
    assert_close(losses[1].logs["bound"], losses[1].logs["elbo"])
    gradients = [torch.autograd.grad(loss.value, list(network.parameters())) for loss in losses]
    assert_close(*gradients)


def test_a_standard_normal_mixture_is_the_default_prior():
    model, x = build_likelihood("gaussian", SIGMA), images()
    mixture = small_autoencoder(model, prior=GaussianMixturePriorModel((LATENT, 1, 1)))
    objective = IWAE(model, (LATENT, 1, 1), 4)
    assert_close(loss_of(objective, mixture, x).value, loss_of(objective, small_autoencoder(model), x).value)


def test_kl_in_closed_form_is_the_mean_of_kl_at_samples():
    network, x = small_autoencoder(build_likelihood("gaussian", SIGMA)), images()
    with torch.no_grad():
        output = network(x, normal(4, 50_000, LATENT, 1, 1))
        estimates = -log_ratio(output.latents, output.mean, output.log_variance, None)
        exact = kl_to_standard_normal(output.mean, output.log_variance).flatten(1).sum(1)
        assert_close(estimates.mean(1), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("prior", ["normal", "vamp"])
@pytest.mark.parametrize("kind", ["elbo", "free bits", "iwae", "reconstruction"])
def test_gradients_are_finite_differences(kind, prior):
    """Compare the gradient of the loss in every parameter, with the same noise."""
    if (kind, prior) == ("free bits", "vamp"):
        return
    model, x = build_likelihood("gaussian_learned"), images(2, 2)
    network = small_autoencoder(model, (3,), VampPriorModel(2, 1, 2) if prior == "vamp" else None, side=2)
    objective = {
        "elbo": ELBO(model, (LATENT, 1, 1), 0.5),
        "free bits": ELBO(model, (LATENT, 1, 1), free_bits=0.3),
        "iwae": IWAE(model, (LATENT, 1, 1), 3),
        "reconstruction": Reconstruction(model, "gaussian"),
    }[kind]
    names, values = zip(*network.named_parameters(), strict=True)

    def loss(*parameters):
        call = lambda *args: functional_call(network, dict(zip(names, parameters, strict=True)), args)  # noqa: E731
        return loss_of(objective, call, x).value

    assert torch.autograd.gradcheck(loss, tuple(value.detach().requires_grad_() for value in values))


def test_beta_warms_up_linearly():
    objective = ELBO(build_likelihood("bernoulli"), (LATENT, 1, 1), beta=4.0, warmup_steps=8)
    assert [objective.beta_at(number) for number in (0, 2, 4, 8, 100)] == [0, 1, 2, 4, 4]
    network, x = small_autoencoder(build_likelihood("bernoulli")), images()
    loss = loss_of(objective, network, x, Step(2))
    assert_close(loss.value.detach(), (1 * loss.logs["kl"] - loss.logs["reconstruction"]) / 9)
    assert ELBO(build_likelihood("bernoulli"), (LATENT, 1, 1), beta=0).beta_at(0) == 0


def test_free_bits_are_the_least_kl_of_each_dimension_in_the_loss():
    model, x = build_likelihood("gaussian", SIGMA), images()
    network = small_autoencoder(model)
    kls = kl_to_standard_normal(*network(x)[:2]).mean(0)  # (d, 1, 1)
    free = kls.median().item()  # some dimensions are above, some below
    loss = loss_of(ELBO(model, (LATENT, 1, 1), free_bits=free), network, x)
    regulariser = loss.value.detach() * 9 + loss.logs["reconstruction"]
    assert_close(regulariser, sum(max(free, value) for value in kls.flatten().tolist()) * torch.ones(()).double())
    assert_close(loss.logs["kl"], kls.sum().detach())
    with pytest.raises(ValueError, match=r"free_bits=0\.1 is for the standard normal"):
        mixture = small_autoencoder(model, prior=GaussianMixturePriorModel((LATENT, 1, 1)))
        loss_of(ELBO(model, (LATENT, 1, 1), free_bits=0.1), mixture, x)


def test_bounds_work_on_grids_of_latents():
    """The network is diffusers' AutoencoderKL."""
    model = build_likelihood("gaussian")
    network = AutoencoderWithPrior(build_autoencoder("kl", "s", 8, 1, 1))
    for objective in (ELBO(model, network.latent_shape), IWAE(model, network.latent_shape, 2), Reconstruction(model)):
        loss = loss_of(objective, network, images(2, 8).float())
        assert loss.value.isfinite() and all(
            value.ndim == 0 and not value.requires_grad for value in loss.logs.values()
        )


# --- items of any shape -----------------------------------------------------------------------------------------------


class ItemAutoencoder(torch.nn.Module):
    """A linear autoencoder of items of any shape with latents (3,), and the call of diffusers' AutoencoderKL."""

    def __init__(self, shape):
        super().__init__()
        self.shape, size = shape, math.prod(shape)
        self.encoder = torch.nn.Linear(size, 2 * LATENT, dtype=torch.float64)
        self.decoder = torch.nn.Linear(LATENT, size, dtype=torch.float64)
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters()):
                parameter.copy_(0.3 * normal(*parameter.shape, seed=i))

    def encode(self, x):
        mean, logvar = self.encoder(x.flatten(1)).chunk(2, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, logvar=logvar, std=(logvar / 2).exp()))

    def decode(self, z):
        return SimpleNamespace(sample=self.decoder(z).unflatten(1, self.shape))


@pytest.mark.parametrize("shape", [(5,), (2, 4), (3, 2, 2)])
def test_objectives_take_items_of_any_shape(shape):
    """Vectors (D,), sequences (D, T) and images against the closed forms of Gaussians; latents are vectors."""
    network, model = AutoencoderWithPrior(ItemAutoencoder(shape)), build_likelihood("gaussian", SIGMA)
    x, step, size = normal(4, *shape, seed=9).tanh(), Step(5), math.prod(shape)
    mean, log_variance = network.autoencoder.encoder(x.flatten(1)).chunk(2, 1)

    def log_likelihood(z):  # (B, K, d) -> (B, K)
        error = network.autoencoder.decoder(z) - x.flatten(1).unsqueeze(1)
        return -error.square().sum(2) / (2 * SIGMA**2) - size * math.log(SIGMA * math.sqrt(2 * math.pi))

    q = distributions.Normal(mean.unsqueeze(1), (log_variance / 2).exp().unsqueeze(1))
    p = distributions.Normal(torch.zeros(LATENT).double(), 1.0)
    z = q.mean + q.stddev * step.randn("latent", x.new_empty(4, 6, LATENT))
    weights = log_likelihood(z) + p.log_prob(z).sum(2) - q.log_prob(z).sum(2)
    bound = (weights.logsumexp(1) - math.log(6)).mean()
    assert_close(loss_of(IWAE(model, (LATENT,), 6), network, x, step).value, -bound / size)

    z = q.mean + q.stddev * step.randn("latent", x.new_empty(4, 1, LATENT))
    kl = distributions.kl_divergence(q, p).sum(2).mean()
    elbo = ELBO(model, (LATENT,), beta=0.5, prior_samples=True)
    assert_close(loss_of(elbo, network, x, step).value, (0.5 * kl - log_likelihood(z).mean()) / size)
    samples = network.autoencoder.decode(step.randn("prior", x.new_empty(4, LATENT))).sample
    assert_close(elbo.terms(network, x, step).sample_params, samples)
    plain = Reconstruction(model)
    assert_close(loss_of(plain, network, x, step).value, -log_likelihood(q.mean).mean() / size)


def test_masking_needs_positions():
    network, masking = (
        AutoencoderWithPrior(ItemAutoencoder((5,))),
        Reconstruction(build_likelihood("gaussian"), "masking"),
    )
    with pytest.raises(ValueError, match=r"needs items with positions, \(B, C, ...\); x has shape \(4, 5\)"):
        loss_of(masking, network, normal(4, 5))


def test_masking_of_sequences_sets_whole_positions():
    """Items (C, T): each position is -1 in all of its channels, or as it was."""
    x = torch.rand(50, 3, 8, generator=torch.Generator().manual_seed(0))
    masked = autoencoding._CORRUPTIONS["masking"](x, 0.4, Step(0))
    black = masked.eq(-1)
    assert black.any(1).eq(black.all(1)).all() and torch.equal(masked[~black], x[~black])
    assert black.float().mean().item() == pytest.approx(0.4, abs=0.1)


# --- corruption and codes ---------------------------------------------------------------------------------------------


class InputRecorder(torch.nn.Module):
    """A wrapper of a network that keeps its last input as `x`."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, noise=None):
        self.x = x
        return self.network(x, noise)


def test_a_denoising_autoencoder_reconstructs_the_image_from_a_noisy_one():
    model, x = build_likelihood("gaussian", SIGMA), images(64, 8)
    network = InputRecorder(small_autoencoder(model, side=8))
    loss = loss_of(Reconstruction(model, "gaussian", 0.5), network, x)
    noise = (network.x - x) / 0.5
    assert noise.mean().abs() < 0.05 and noise.std() == pytest.approx(1, abs=0.05)
    expected = model.log_prob(network.network(network.x).decoded.squeeze(1), x).mean()
    assert_close(loss.value, -expected / 64)
    assert_close(loss.logs["reconstruction"], expected.detach())


def test_masking_sets_whole_pixels_to_black():
    colour = torch.rand(64, 3, 8, 8)
    network = InputRecorder(AutoencoderWithPrior(MLPAutoencoderModel(8, 3, 3, (4,), 2)))
    loss_of(Reconstruction(build_likelihood("gaussian"), "masking", 0.3), network, colour)
    masked = (network.x == -1).all(1)
    assert masked.float().mean() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(network.x, torch.where(masked.unsqueeze(1), -1.0, colour))


def test_an_autoencoder_sees_the_image_and_decodes_the_mean():
    model, x = build_likelihood("gaussian", SIGMA), images()
    network = InputRecorder(small_autoencoder(model))
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
    for build, message in (
        (lambda: ELBO(model, shape, beta=-1), "beta=-1"),
        (lambda: ELBO(model, shape, warmup_steps=-1), "warmup_steps=-1"),
        (lambda: ELBO(model, shape, free_bits=-1), "free_bits=-1"),
        (lambda: IWAE(model, shape, 0), "num_samples=0"),
        (lambda: Reconstruction(model, "blur"), "corruption='blur' is not known"),
        (lambda: Reconstruction(model, "masking", 1.5), r"strength=1\.5"),
        (lambda: VectorQuantized(model, -0.1), r"commitment=-0\.1"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


# --- runs -------------------------------------------------------------------------------------------------------------


def test_uniform_numbers_of_shards_are_slices_of_those_of_the_batch():
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


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    """The codebook is equal, too: its statistics are those of all processes."""
    run_in_two_processes(TWO, tmp_path)
    for kind in RUNS:
        networks, objective = RUNS[kind]()
        alone, _ = run(tmp_path / f"{kind}-alone", objective=objective, networks=networks)
        for rank in (0, 1):
            assert_close(torch.load(tmp_path / f"{kind}{rank}.pt"), weights(alone), rtol=0, atol=1e-5)
