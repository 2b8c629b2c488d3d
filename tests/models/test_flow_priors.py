"""A flow as the prior of latents: its density, its samples, and bounds of an autoencoder that has it."""

import pytest
import torch
from torch import nn

import hfgen
from hfgen.objectives.base import Step

SMALL = {"num_layers": 4, "hidden_channels": 16}


def latents(count, seed=0):
    """Latents (N, 2, 1, 1) on a bent line, which no single Gaussian fits."""
    generator = torch.Generator().manual_seed(seed)
    first, noise = torch.randn(2, count, generator=generator)
    return torch.stack([first, first.square() - 1 + 0.2 * noise], 1)[:, :, None, None]


def trained():
    torch.manual_seed(0)
    prior = hfgen.FlowPriorModel((2, 1, 1), **SMALL)
    objective = hfgen.MaximumLikelihood("none", log_prob=lambda output: output)
    prior.initialise(latents(256))
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for step in range(150):
        loss = objective.loss("flow", {"flow": prior}, {"x": latents(256, step + 1)}, Step(step)).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.eval()


def test_a_flow_prior_fits_latents_that_a_gaussian_does_not():
    prior, held_out = trained(), latents(2000, 10_000)
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(2), torch.diag(torch.tensor([1.0, 2.04])))
    with torch.no_grad():
        assert prior(held_out).mean() > gaussian.log_prob(held_out.flatten(1)).mean() + 0.5
    drawn = prior.sample(4000, torch.Generator().manual_seed(0)).flatten(1)
    off = drawn[:, 1] - (drawn[:, 0].square() - 1)
    assert float(off.abs().median()) < 0.6 and drawn.isfinite().all()


def test_its_density_integrates_to_one_and_its_samples_do_not_depend_on_their_batch():
    torch.manual_seed(0)
    prior = hfgen.FlowPriorModel((1, 2, 1), **SMALL)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.2)
    side = torch.arange(-10, 10, 0.1)
    with torch.no_grad():
        density = prior(torch.cartesian_prod(side, side).view(-1, 1, 2, 1)).exp()
    assert abs(float(density.sum()) * 0.01 - 1) < 2e-3
    seeded = [torch.Generator().manual_seed(seed) for seed in range(3)]
    three, one = prior.sample(3, seeded), prior.sample(1, torch.Generator().manual_seed(1))
    torch.testing.assert_close(three[1:2], one)
    center = prior.couplings.inverse(torch.zeros(1, 2, 1, 1)).view(1, 1, 2, 1)
    torch.testing.assert_close(prior.sample(1, temperature=0.0), center)
    with pytest.raises(ValueError, match="latents have shape"):
        prior(torch.zeros(1, 2, 1, 1))


def test_an_autoencoder_has_it_as_its_prior(tmp_path):
    """A new flow prior is the standard normal up to a rotation: the bound of a VAE is that with the standard normal."""
    torch.manual_seed(0)
    autoencoder = hfgen.MLPAutoencoderModel(sample_size=4, in_channels=1, out_channels=1, latent_channels=3)
    priors = hfgen.FlowPriorModel((3, 1, 1), **SMALL), hfgen.GaussianMixturePriorModel((3, 1, 1))
    images, bounds = torch.randint(0, 2, (2, 1, 4, 4)) * 2.0 - 1, []
    for prior in priors:
        pipeline = hfgen.VAEPipeline(autoencoder, prior)
        pipeline.set_progress_bar_config(disable=True)
        bounds.append(pipeline.elbo(images, 5, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(*bounds, atol=1e-4, rtol=1e-5)
    hfgen.VAEPipeline(autoencoder, priors[0]).save_pretrained(tmp_path)
    loaded, seeded = hfgen.HFGenPipeline.from_pretrained(tmp_path), torch.Generator().manual_seed(3)
    assert loaded(batch_size=2, generator=seeded, output_type="pt").images.shape == (2, 1, 4, 4)
