"""Laws of the priors: they are torch's and scikit-learn's mixtures, and their samples have that distribution."""

import re
import warnings

import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import distributions
from torch.testing import assert_close

from hfgen.families.fit_mixture import fit_mixture
from hfgen.models.autoencoder import MLPAutoencoderModel
from hfgen.models.priors import GaussianMixturePriorModel, VampPriorModel
from hfgen.utils.seeds import seed_of

SHAPE = (2, 1, 3)


def mixture(covariance="full", components=3, shape=SHAPE, dtype=torch.float64):
    """A mixture whose components differ in weight, mean and shape."""
    generator = torch.Generator().manual_seed(0)
    prior = GaussianMixturePriorModel(shape, components, covariance).to(dtype)
    prior.weights.copy_(torch.rand(components, generator=generator).softmax(0))
    prior.means.copy_(2 * torch.randn(prior.means.shape, generator=generator))
    spread = torch.randn(prior.scale_tril.shape, generator=generator)
    prior.scale_tril.copy_(
        spread.exp()
        if covariance == "diag"
        else spread.tril(-1) + torch.diag_embed(spread.diagonal(dim1=1, dim2=2).exp())
    )
    return prior


def torchs(prior):
    """torch's distribution of flat latents (B, D)."""
    weights = distributions.Categorical(prior.weights)
    if prior.config.covariance == "full":
        components = distributions.MultivariateNormal(prior.means, scale_tril=prior.scale_tril)
    else:
        components = distributions.Independent(distributions.Normal(prior.means, prior.scale_tril), 1)
    return distributions.MixtureSameFamily(weights, components)


def latents(count=50, shape=SHAPE, seed=1, dtype=torch.float64):
    return 2 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_mixture_is_torchs(covariance):
    prior, z = mixture(covariance), latents()
    assert_close(prior.log_prob(z), torchs(prior).log_prob(z.flatten(1)))
    assert torch.equal(prior(z, None), prior.log_prob(z))
    low = prior.to(torch.bfloat16)
    assert low.log_prob(z).dtype == torch.float32 and low.sample(2).dtype == torch.float32


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 1, 3), (2, 3, 2, 2)])
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_latents_of_any_shape_have_one_number_each(covariance, shape):
    prior, z = mixture(covariance, shape=shape), latents(8, shape)
    assert_close(prior.log_prob(z), torchs(prior).log_prob(z.flatten(1)))
    assert prior.sample(3).shape == (3, *shape)


def test_latents_of_another_shape_are_refused():
    prior = mixture("diag", shape=(4, 3))
    for shape in ((8, 12), (8, 3, 4), (2, 8, 4, 3), (8, 1)):
        with pytest.raises(ValueError, match=re.escape(f"latents have shape {shape}; this prior takes (B, 4, 3)")):
            prior.log_prob(torch.zeros(shape))
    prior, autoencoder = vamp()
    with pytest.raises(ValueError, match=re.escape("latents have shape (8, 3); the encoder's are (B, 3, 1, 1)")):
        prior(latents(8, (3,)), autoencoder.encode)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_new_mixture_is_the_standard_normal(covariance):
    z = latents()
    for components in (1, 4):
        prior = GaussianMixturePriorModel(SHAPE, components, covariance).double()
        assert_close(prior.log_prob(z), distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1).double())


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_samples_have_the_moments_of_the_mixture(covariance):
    prior, count = mixture(covariance), 200_000
    z = prior.sample(count, torch.Generator().manual_seed(0)).flatten(1)
    scale = prior.scale_tril if covariance == "full" else torch.diag_embed(prior.scale_tril)
    mean = prior.weights @ prior.means
    second = torch.einsum(
        "m,mij->ij", prior.weights, scale @ scale.mT + prior.means.unsqueeze(2) * prior.means.unsqueeze(1)
    )
    errors = z.var(0).sqrt() / count**0.5
    assert ((z.mean(0) - mean).abs() < 5 * errors).all()
    assert_close(z.T @ z / count, second, rtol=0.02, atol=0.02 * second.diagonal().max().item())


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_latent_with_its_generator_is_the_same_alone_and_in_any_batch(covariance):
    prior = mixture(covariance, dtype=torch.float32)
    generators = lambda seeds: [torch.Generator().manual_seed(seed) for seed in seeds]  # noqa: E731
    batch = prior.sample(5, generators(range(5)))
    assert batch.shape == (5, *SHAPE)
    for seed in range(5):
        assert torch.equal(prior.sample(1, generators([seed])), batch[seed : seed + 1])
    assert torch.equal(prior.sample(2, generators([3, 1])), batch[[3, 1]])
    with pytest.raises(ValueError, match="2 generators for 3 latents"):
        prior.sample(3, generators(range(2)))


def test_temperature_is_the_spread_of_each_component():
    prior, seed = mixture(), lambda: torch.Generator().manual_seed(0)
    cold, warm, hot = (prior.sample(50, seed(), temperature=t).flatten(1) for t in (0.0, 1.0, 2.0))
    assert (torch.cdist(cold, prior.means).min(1).values == 0).all()
    assert_close(hot - warm, warm - cold)


def test_components_are_drawn_by_their_weights():
    prior = mixture("diag")
    z = prior.sample(50_000, torch.Generator().manual_seed(0), temperature=0.0).flatten(1)
    share = torch.bincount(torch.cdist(z, prior.means).argmin(1), minlength=3) / 50_000
    assert_close(share.double(), prior.weights, rtol=0, atol=0.01)


def test_impossible_mixtures_are_refused():
    with pytest.raises(ValueError, match="covariance='tied'"):
        GaussianMixturePriorModel(SHAPE, 1, "tied")
    with pytest.raises(ValueError, match="num_components=0"):
        GaussianMixturePriorModel(SHAPE, 0)
    with pytest.raises(ValueError, match="num_pseudo_inputs=0"):
        VampPriorModel(8, 1, 0)


# --- fitted -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_fitted_mixture_is_scikit_learns(covariance):
    z = mixture("full").sample(2000, torch.Generator().manual_seed(0))
    prior = fit_mixture(z, 3, seed=5, covariance=covariance)
    start = seed_of("mixture", 5) % 2**32
    theirs = GaussianMixture(3, covariance_type=covariance, init_params="k-means++", max_iter=200, random_state=start)
    theirs.fit(z.flatten(1).numpy())
    expected = torch.from_numpy(theirs.score_samples(z.flatten(1).numpy()))
    assert_close(prior.log_prob(z).double(), expected, rtol=1e-4, atol=1e-4)
    assert prior.weights.sum() == pytest.approx(1, abs=1e-6) and prior.config.covariance == covariance


def test_a_fitted_mixture_is_as_likely_as_the_truth():
    """Maximum likelihood: at least as likely as the truth on the fitted latents, and nearly so on new ones."""
    truth = mixture("full")
    data, more = (truth.sample(5000, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    fitted = fit_mixture(data, 3, seed=0)
    assert fitted.log_prob(data).mean() > truth.log_prob(data).mean() - 1e-3
    assert fitted.log_prob(more).mean() > truth.log_prob(more).mean() - 0.05


def test_latents_that_can_not_be_fitted_are_refused():
    with pytest.raises(ValueError, match="6 dimensions can't be fitted to 6 latents"):
        fit_mixture(latents(6), 1)
    with pytest.raises(ValueError, match="num_components=30"):
        fit_mixture(latents(20), 30)
    with pytest.raises(ValueError, match="not finite"):
        fit_mixture(latents(20).log(), 1)


# --- of pseudo-inputs -------------------------------------------------------------------------------------------------


def vamp():
    torch.manual_seed(0)
    autoencoder = MLPAutoencoderModel(4, 2, 2, (16,), 3).double()
    return VampPriorModel(4, 2, 5).double(), autoencoder


def test_pseudo_inputs_begin_as_noise_of_half_the_range_of_images():
    """Deviation 1/2: nearly all of them are images in [-1, 1]."""
    torch.manual_seed(1)
    begun = VampPriorModel(8, 1, 400).pseudo_inputs.detach()
    assert begun.shape == (400, 1, 8, 8)
    assert float(begun.std()) == pytest.approx(0.5, rel=0.02) and float(begun.mean()) == pytest.approx(0, abs=0.02)


def test_vamp_prior_is_the_mixture_of_the_posteriors_of_its_pseudo_inputs():
    prior, autoencoder = vamp()
    z = latents(shape=(3, 1, 1))
    posterior = autoencoder.encode(prior.pseudo_inputs.clamp(-1, 1)).latent_dist
    components = distributions.Independent(distributions.Normal(posterior.mean.flatten(1), posterior.std.flatten(1)), 1)
    expected = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(5).double()), components)
    assert_close(prior(z, autoencoder.encode), expected.log_prob(z.flatten(1)))
    assert_close(prior.as_mixture(autoencoder.encode).log_prob(z), prior(z, autoencoder.encode))


def test_pseudo_inputs_and_the_encoder_learn_from_the_prior():
    prior, autoencoder = vamp()
    prior(latents(shape=(3, 1, 1)), autoencoder.encode).sum().backward()
    assert prior.pseudo_inputs.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in autoencoder.encoder.parameters())


def test_pixels_beyond_their_bounds_learn_what_leads_back():
    prior, autoencoder = vamp()
    prior.pseudo_inputs.data.mul_(3)
    inside = prior.pseudo_inputs.detach().clamp(-1, 1).requires_grad_()
    moments = autoencoder.encode(inside).latent_dist
    gradient = torch.autograd.grad((moments.mean + moments.logvar).square().sum(), inside)[0]
    mean, log_variance = prior._moments(autoencoder.encode)
    (mean + log_variance).square().sum().backward()
    low, high = prior.pseudo_inputs < -1, prior.pseudo_inputs > 1
    outward = (low & (gradient > 0)) | (high & (gradient < 0))  # descent would lead further away
    assert outward.any() and (low & (gradient < 0)).any() and (high & (gradient > 0)).any() and (~low & ~high).any()
    assert_close(prior.pseudo_inputs.grad, gradient.masked_fill(outward, 0))


def test_pseudo_inputs_start_from_images_of_their_number_and_shape():
    prior, autoencoder = vamp()
    images = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    mixture = prior.start_from(images).as_mixture(autoencoder.encode)
    posterior = autoencoder.encode(images).latent_dist
    assert_close(mixture.means, posterior.mean.flatten(1))
    assert_close(mixture.scale_tril, posterior.std.flatten(1))
    assert prior.pseudo_inputs.requires_grad and dict(prior.config)["num_pseudo_inputs"] == 5
    for wrong in (images[:4], images[:, :1], images[:, :, :3]):
        with pytest.raises(ValueError, match=r"can't be the start of 5 pseudo-inputs \(2, 4, 4\)"):
            prior.start_from(wrong)
    assert torch.equal(prior.pseudo_inputs, images)


# --- saved ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mixture, lambda: mixture("diag"), lambda: vamp()[0]], ids=["full", "diag", "vamp"])
def test_a_saved_prior_is_the_same(tmp_path, make):
    prior = make()
    prior.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = type(prior).from_pretrained(tmp_path, torch_dtype=torch.float64)
    state = prior.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
