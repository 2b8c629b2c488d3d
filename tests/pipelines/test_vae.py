"""Pipelines of autoencoders: bounds against closed forms, latents, codes, saving, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin, VQModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from hfgen.pipelines.latents import interpolate_latents
from PIL import Image
from torch.testing import assert_close

import hfgen
from hfgen import HFGenPipeline, VAEPipeline, VQPipeline, build_autoencoder, cli
from hfgen.distributions.likelihoods import build_likelihood
from hfgen.models.priors import GaussianMixturePriorModel

SIGMA = 0.4
EXACT = {"rtol": 0, "atol": 0}


class LinearGaussian(ModelMixin, ConfigMixin):
    """p(z) = N(0, I), p(x | z) = N(W z + b, SIGMA^2 I) on 2 x 2 pixels, with q(z | x) of the posterior's mean and the
    variances that it would have, were W's columns orthogonal; with `slant` 0 they are, and q is the posterior."""

    @register_to_config
    def __init__(self, slant: float = 0.0, sample_size: int = 2, in_channels: int = 1, out_channels: int = 1):
        super().__init__()
        columns = torch.tensor([[0.5, 0.3], [0.5, -0.3], [-0.5, 0.3 + slant], [-0.5, -0.3]])
        self.weight = torch.nn.Parameter(columns)
        self.bias = torch.nn.Parameter(torch.tensor([0.1, -0.2, 0.3, 0.0]))

    @property
    def precision(self):
        return torch.eye(2).to(self.weight) + self.weight.T @ self.weight / SIGMA**2

    def encode(self, x):
        mean = torch.linalg.solve(self.precision, self.weight.T @ (x.flatten(1) - self.bias).T / SIGMA**2).T
        log_variance = -self.precision.diagonal().log().expand_as(mean)
        moments = torch.cat([mean, log_variance], 1)[:, :, None, None]
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, z):
        return DecoderOutput(sample=(z.flatten(1) @ self.weight.T + self.bias).view(-1, 1, 2, 2))


def toy(slant=0.0, dtype=torch.float64, prior=None):
    """(pipeline, function that gives log p(x) exactly)."""
    network = LinearGaussian(slant)
    prior = prior or GaussianMixturePriorModel((2, 1, 1))
    pipeline = VAEPipeline(network, prior, "gaussian", SIGMA).to(dtype)
    pipeline.set_progress_bar_config(disable=True)

    def exact(x):
        weight, bias = network.weight.detach().double(), network.bias.detach().double()
        means = prior.means.double() @ weight.T + bias
        spread = prior.scale_tril.double() @ prior.scale_tril.double().mT
        noise = SIGMA**2 * torch.eye(4, dtype=torch.float64)
        each = torch.distributions.MultivariateNormal(means, weight @ spread @ weight.T + noise)
        return (each.log_prob(x.double().flatten(1).unsqueeze(1)) + prior.weights.double().log()).logsumexp(1)

    return pipeline, exact


def images(count=5, shape=(1, 2, 2), seed=3):
    """8-bit images (count, *shape) in [-1, 1]."""
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed)) / 127.5 - 1


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def small(architecture="mlp", likelihood="bernoulli", channels=1, side=8, **options):
    """A small pipeline, all of whose weights matter."""
    torch.manual_seed(0)
    shape = {
        "sample_size": side,
        "in_channels": channels,
        "out_channels": build_likelihood(likelihood).channels(channels),
    }
    if architecture == "kl":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        network = AutoencoderKL(**shape, **blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2)
        latent = (2, side // 2, side // 2)
    else:
        network = build_autoencoder(architecture, "s", side, channels, shape["out_channels"], 4)
        latent = (4, 1, 1)
    prior = GaussianMixturePriorModel(latent, 2, "diag")
    prior.means.copy_(torch.randn(prior.means.shape))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline = VAEPipeline(network, prior, likelihood, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def codes(network="vq", likelihood="gaussian"):
    """A small pipeline of codes."""
    torch.manual_seed(0)
    channels = build_likelihood(likelihood).channels(1)
    if network == "vq":
        model = build_autoencoder("vq", "s", 10, 1, channels, 4)
        model.train()(images(8, (1, 10, 10)))  # the codebook begins as latents
    else:
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "num_vq_embeddings": 32}
        model = VQModel(in_channels=1, out_channels=channels, sample_size=10, **blocks, **sizes)
        torch.nn.init.normal_(model.quantize.embedding.weight)
    return VQPipeline(model, likelihood)


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_importance_sampling_finds_the_likelihood_of_a_linear_gaussian_model():
    pipeline, exact = toy(slant=0.5, dtype=torch.float32)
    x = images()
    log_likelihood = pipeline.log_likelihood(x, num_samples=20_000, generator=seeds(*range(5)))
    assert log_likelihood.dtype == torch.float64
    assert (log_likelihood - exact(x)).abs().max() / 4 < 1e-3  # nats a dimension
    bound = pipeline.elbo(x, num_samples=20_000, generator=seeds(*range(5)))
    assert (bound < exact(x) - 0.005).all()


@pytest.mark.parametrize("samples", [1, 2, 7, 60])
def test_with_the_exact_posterior_every_sample_tells_the_likelihood(samples):
    pipeline, exact = toy()
    x = images().double()
    for measure in (pipeline.log_likelihood, pipeline.elbo):
        assert_close(measure(x, samples, torch.Generator().manual_seed(0)), exact(x), rtol=0, atol=1e-10)


def test_the_prior_that_the_pipeline_holds_is_the_one_that_counts():
    prior = GaussianMixturePriorModel((2, 1, 1), 2)
    prior.means.copy_(torch.tensor([[0.5, -0.5], [-0.3, 0.2]]))
    prior.weights.copy_(torch.tensor([0.3, 0.7]))
    prior.scale_tril.copy_(torch.tensor([[[0.9, 0.0], [0.2, 0.8]], [[1.1, 0.0], [-0.1, 0.7]]]))
    pipeline, exact = toy(prior=prior)
    x = images().double()
    log_likelihood = pipeline.log_likelihood(x, num_samples=20_000, generator=torch.Generator().manual_seed(0))
    assert_close(log_likelihood, exact(x), rtol=0, atol=0.02)


class Constant(ModelMixin, ConfigMixin):
    """A decoder that says the same of every latent, and an encoder that knows nothing."""

    @register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 1, out_channels: int = 256 * 3):
        super().__init__()
        self.says = torch.nn.Parameter(torch.zeros(out_channels))

    def encode(self, x):
        moments = torch.zeros(len(x), 2, 1, 1, device=x.device)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, z):
        shape = (len(z), -1, self.config.sample_size, self.config.sample_size)
        return DecoderOutput(sample=self.says.view(1, -1, 1, 1).expand(shape))


def test_a_decoder_that_is_uniform_over_256_levels_has_8_bits_a_dimension():
    network = Constant()
    with torch.no_grad():  # a narrow logistic on each level, all of one weight
        network.says[256:512] = torch.arange(256) / 127.5 - 1
        network.says[512:] = -20
    likelihood = {"likelihood": "discretized_logistic_mixture", "likelihood_components": 256}
    pipeline = VAEPipeline(network, GaussianMixturePriorModel((1, 1, 1)), **likelihood)
    pipeline.set_progress_bar_config(disable=True)
    bits = pipeline.bits_per_dim(images(64, (1, 4, 4)), num_samples=2)
    assert bits.mean().item() == pytest.approx(8.0, abs=2e-3)


def test_bits_of_a_gaussian_are_those_of_its_bins():
    """Against the normal distribution of SciPy, whose first and last bins are open."""
    from scipy.stats import norm

    network = Constant(out_channels=1)
    pipeline = VAEPipeline(network, GaussianMixturePriorModel((1, 1, 1)), "gaussian", 0.5)
    pipeline.set_progress_bar_config(disable=True)
    x = images(3, (1, 4, 4))
    x[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    levels = x.double().flatten(1).numpy()
    low, high = np.where(levels == -1, -9.0, levels - 1 / 255), np.where(levels == 1, 9.0, levels + 1 / 255)
    expected = -np.log2(norm.cdf(high, scale=0.5) - norm.cdf(low, scale=0.5)).mean(1)
    np.testing.assert_allclose(pipeline.bits_per_dim(x, 3).numpy(), expected, rtol=1e-4)


def test_an_image_is_measured_the_same_alone_and_in_any_batch():
    pipeline = small(likelihood="bernoulli")
    x = images(3, (1, 8, 8))
    for name in ("log_likelihood", "elbo"):
        measure = getattr(pipeline, name)
        whole = measure(x, 55, seeds(5, 6, 7))
        assert_close(measure(x[1:2], 55, seeds(6)), whole[1:2], rtol=0, atol=1e-4)
        assert_close(measure(x, 55, seeds(5, 6, 7), batch_size=60), whole, rtol=0, atol=1e-4)
        assert not torch.equal(measure(x, 55, seeds(8, 9, 10)), whole)


def test_more_samples_are_a_tighter_bound():
    pipeline = small("conv", "gaussian")
    x = images(40, (1, 8, 8))
    values = [pipeline.elbo(x, 20, torch.Generator().manual_seed(0)).mean()]
    for count in (2, 10, 60):
        values.append(pipeline.log_likelihood(x, count, torch.Generator().manual_seed(0)).mean())
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({}, lambda p, x: p.bits_per_dim(x), "'bernoulli' models binary pixels.*discretized_logistic_mixture"),
        ({"likelihood": "gaussian"}, lambda p, x: p.bits_per_dim(0.99 * x), "256 levels"),
        ({}, lambda p, x: p.log_likelihood(x, 0), "num_samples=0"),
        ({}, lambda p, x: p.log_likelihood(x[:, :, :5]), r"shape \(2, 1, 5, 8\).*\(B, 1, 8, 8\)"),
        ({}, lambda p, x: p.log_likelihood(x, generator=seeds(1)), "1 generators for 2 samples"),
        ({"variational": False}, lambda p, x: p.log_likelihood(x), "--objective elbo or iwae"),
        ({"variational": False}, lambda p, x: p.elbo(x), "--objective elbo or iwae"),
        ({}, lambda p, x: p(num_inference_steps=5), "num_inference_steps=5.*one pass"),
        ({}, lambda p, x: p(batch_size=0), "batch_size=0"),
        ({}, lambda p, x: p(temperature=-1.0), "temperature=-1.0"),
        ({}, lambda p, x: p(latents=torch.zeros(2, 3, 1, 1)), r"latents have shape \(2, 3, 1, 1\)"),
        ({}, lambda p, x: p.decode(torch.zeros(2, 3, 1, 1)), r"needs \(B, 4, 1, 1\)"),
        ({}, lambda p, x: p(batch_size=2, generator=seeds(1)), "1 generators for 2"),
        ({}, lambda p, x: p.interpolate(x, x, steps=1), "steps=1"),
        ({}, lambda p, x: p.interpolate(x, x, kind="cubic"), "linear or spherical"),
        ({}, lambda p, x: p.traversal(x[0], dims=[4]), r"dims=\[4\] must be whole numbers from 0 to 3"),
        ({}, lambda p, x: p.change(x, torch.zeros(3, 1, 1)), "direction has shape"),
        ({}, lambda p, x: p.use_scheduler("ddim"), "VAEPipeline draws without a scheduler"),
        ({}, lambda p, x: p.call_with(guidance_scale=2.0), "takes no guidance_scale.*DenoisingPipeline"),
    ],
)
def test_what_makes_no_sense_is_refused(options, call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call(small(**options), images(2, (1, 8, 8)))


def test_an_unknown_likelihood_is_refused_at_once():
    with pytest.raises(ValueError, match="likelihood='poisson' is not known"):
        small(likelihood="bernoulli").__class__(LinearGaussian(), GaussianMixturePriorModel((2, 1, 1)), "poisson")


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_samples_have_the_moments_of_the_model():
    """Images are means of p(x | z): N(b, W W^T) where nothing is cut off."""
    pipeline, _ = toy()
    generator = torch.Generator().manual_seed(0)
    x = pipeline(40_000, temperature=0.2, generator=generator, output_type="latent").images.flatten(1)
    weight, bias = (p.detach().float() for p in pipeline.autoencoder.parameters())
    assert_close(x.mean(0), bias, rtol=0, atol=0.003)
    assert_close(x.T.cov(), 0.04 * weight @ weight.T, rtol=0, atol=0.0005)


@pytest.mark.parametrize("architecture", ["mlp", "conv", "kl"])
def test_an_image_is_drawn_the_same_alone_and_in_any_batch(architecture):
    pipeline = small(architecture)
    whole = pipeline(3, generator=seeds(5, 6, 7), output_type="latent").images
    alone = pipeline(generator=seeds(6), output_type="latent").images
    assert whole.shape == (3, 1, 8, 8) and whole.std() > 0.01
    assert_close(alone[0], whole[1], rtol=0, atol=1e-5)


def test_temperature_latents_and_forms():
    pipeline = small()
    cold = pipeline(20, temperature=0.0, generator=torch.Generator().manual_seed(0), output_type="latent").images
    centres = pipeline.decode(pipeline.prior.means.view(2, 4, 1, 1))
    distance = (cold.unsqueeze(1) - centres).flatten(2).abs().amax(2)  # (20, 2)
    assert distance.amin(1).max() < 1e-5 and distance.amax(1).min() > 1e-4
    z = torch.randn(2, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    samples = pipeline(latents=z, output_type="latent").images
    assert_close(samples, pipeline.decode(z), **EXACT)
    (tuple_of,) = pipeline(latents=z, output_type="np", return_dict=False)
    assert tuple_of.shape == (2, 8, 8, 1) and isinstance(pipeline().images[0], Image.Image)


@pytest.mark.parametrize("architecture", ["mlp", "conv", "kl"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian_learned"])
def test_saved_and_loaded_it_draws_the_same_bits(tmp_path, architecture, likelihood):
    pipeline = small(architecture, likelihood)
    pipeline.save_pretrained(tmp_path)
    loaded = HFGenPipeline.from_pretrained(tmp_path)
    assert type(loaded) is VAEPipeline and loaded.config.likelihood == likelihood and loaded.config.variational
    x = images(2, (1, 8, 8))
    for same in (
        lambda p: p(2, generator=seeds(1, 2), output_type="latent").images,
        lambda p: p.reconstruct(x),
        lambda p: p.log_likelihood(x, 3, seeds(1, 2)),
    ):
        assert torch.equal(same(pipeline), same(loaded))


def test_half_precision_draws_nearly_the_same():
    pipeline = small()
    full = pipeline(4, generator=seeds(1, 2, 3, 4), output_type="latent").images
    half = pipeline.to(torch.bfloat16)(4, generator=seeds(1, 2, 3, 4), output_type="latent").images
    assert half.dtype == torch.float32 and 0 < (full - half).abs().max() < 0.05


# --- latents ----------------------------------------------------------------------------------------------------------


def test_spherical_interpolation_keeps_the_norm_and_turns_evenly():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 6, 2, 2, generator=generator, dtype=torch.float64)
    b = b / b.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * a.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    path = interpolate_latents(a, b, 9, "spherical").flatten(2)
    norms = path.norm(dim=2)
    assert_close(norms, norms[:1].expand_as(norms), rtol=1e-12, atol=0)
    cosines = torch.cosine_similarity(path[1:], path[:-1], dim=2)
    assert_close(cosines, cosines[:1].expand_as(cosines), rtol=1e-9, atol=0)
    twice = interpolate_latents(a, 2 * b, 9, "spherical").flatten(2).norm(dim=2)
    ramp = torch.linspace(1, 2, 9, dtype=torch.float64).unsqueeze(1)
    assert_close(twice, ramp * norms, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["linear", "spherical"])
def test_an_interpolation_begins_and_ends_at_its_ends(kind):
    a, b = torch.randn(2, 4, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    b[0], b[1] = a[0], -a[1]  # on one line: joined by it
    path = interpolate_latents(a, b, 5, kind)
    assert path.shape == (5, 4, 3, 1, 1)
    assert_close(path[0], a)
    assert_close(path[-1], b)
    assert_close(path[:, :2], interpolate_latents(a, b, 5, "linear")[:, :2])


def test_an_interpolation_of_images_is_that_of_their_latents():
    pipeline = small()
    x, y = images(2, (1, 8, 8)), images(2, (1, 8, 8), seed=4)
    path = pipeline.interpolate(x, y, 3, "spherical")
    assert path.shape == (3, 2, 1, 8, 8)
    assert_close(path[0], pipeline.reconstruct(x), rtol=0, atol=1e-6)
    assert_close(path[2], pipeline.reconstruct(y), rtol=0, atol=1e-6)
    middle = interpolate_latents(pipeline.encode(x), pipeline.encode(y), 3, "spherical")[1]
    assert_close(path[1], pipeline.decode(middle), rtol=0, atol=1e-6)


def test_an_attribute_is_added_along_the_difference_of_means():
    """In a linear model the images move by W times the direction, whatever they show."""
    pipeline, _ = toy()
    having, lacking, others = images(6).double(), images(4, seed=4).double(), 0.2 * images(3, seed=5).double()
    direction = pipeline.attribute_direction(having, lacking)
    assert_close(direction, pipeline.encode(having).mean(0) - pipeline.encode(lacking).mean(0))
    move = (pipeline.autoencoder.weight @ direction.flatten()).view(1, 2, 2)
    for strength in (0.0, 0.2, -0.1):
        moved = pipeline.change(others, direction, strength) - pipeline.reconstruct(others)
        assert_close(moved, (strength * move).expand_as(moved), rtol=0, atol=1e-12)


def test_a_traversal_changes_one_dimension_a_row():
    pipeline = small()
    x = images(1, (1, 8, 8))[0]
    rows = pipeline.traversal(x, dims=[2, 0], steps=5, reach=2.0)
    assert rows.shape == (2, 5, 1, 8, 8)
    z = pipeline.encode(x[None])
    z[0, 2] = -1.0
    assert_close(rows[0, 1], pipeline.decode(z)[0], rtol=0, atol=1e-6)
    assert pipeline.traversal().shape == (4, 9, 1, 8, 8)
    assert_close(pipeline.traversal()[3, 4], pipeline.decode(torch.zeros(1, 4, 1, 1))[0], rtol=0, atol=1e-6)


def test_colour_images_and_uneven_sides():
    torch.manual_seed(0)
    network = build_autoencoder("conv", "s", (9, 14), 3, 6, 4)
    pipeline = VAEPipeline(network, GaussianMixturePriorModel((4, 1, 1)), "gaussian_learned")
    assert pipeline.sample_shape == (3, 9, 14)
    assert pipeline(2, output_type="pt").images.shape == (2, 3, 9, 14)
    assert pipeline.reconstruct(images(2, (3, 9, 14))).shape == (2, 3, 9, 14)


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["vq", "vqmodel"])
def test_codes_there_and_back_are_what_the_network_makes_of_images(tmp_path, network):
    pipeline = codes(network)
    x = images(3, (1, 10, 10))
    numbers = pipeline.encode(x)
    assert numbers.dtype == torch.int64 and numbers.ndim == 3 and numbers.unique().numel() > 1
    with torch.no_grad():
        expected = pipeline.autoencoder(x).sample.clamp(-1, 1)
    assert_close(pipeline.reconstruct(x), expected[..., :10, :10], rtol=0, atol=1e-5)
    assert_close(pipeline(codes=numbers.tolist(), output_type="latent").images, pipeline.decode(numbers), **EXACT)
    pipeline.save_pretrained(tmp_path)
    loaded = HFGenPipeline.from_pretrained(tmp_path)
    assert type(loaded) is VQPipeline and torch.equal(loaded.reconstruct(x), pipeline.reconstruct(x))


def test_perplexity_counts_codes_as_if_used_alike():
    pipeline = codes()
    x = images(5, (1, 10, 10))
    share = np.bincount(pipeline.encode(x).flatten().numpy()) / pipeline.encode(x).numel()
    expected = math.exp(-sum(p * math.log(p) for p in share if p > 0))
    assert pipeline.perplexity(x) == pytest.approx(expected) and 1 < expected <= pipeline.num_codes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(batch_size=4), "no prior over codes"),
        (lambda p: p(codes=[[[0, 1, 2], [2, 256, 3], [4, 5, 6]]]), "codes are from 0 to 255; these go from 0 to 256"),
        (lambda p: p(codes=[[[0, -1, 0], [2, 3, 0], [0, 0, 0]]]), "codes are from 0 to 255; these go from -1 to 3"),
        (lambda p: p(codes=[[0.5]]), r"whole numbers \(B, h, w\)"),
        (lambda p: p(codes=[[[0, 1, 2], [2, 3, 0], [0, 0, 0]]], batch_size=3), "batch_size=3 but there are 1 grids"),
        (lambda p: p(codes=[[[0, 1], [2, 3]]], temperature=0.5), "Leave them or codes out"),
        (lambda p: p.code_log_likelihood([[[0, 1], [2, 3]]]), "no prior over codes"),
        (lambda p: p.encode(images(1)), r"needs \(B, 1, 10, 10\)"),
    ],
)
def test_codes_that_there_are_not_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(codes())


# --- from the command line --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("autoencoders")
    small(likelihood="gaussian").save_pretrained(home / "vae")
    small(likelihood="bernoulli").save_pretrained(home / "binary")
    codes().save_pretrained(home / "vq")
    return home


def test_sample_draws_images_whatever_the_batch(folders, tmp_path):
    for name, size in (("whole", "5"), ("parts", "2")):
        words = ["--num_samples", "5", "--batch_size", size, "--output_dir", str(tmp_path / name), "--device", "cpu"]
        cli.main(["sample", str(folders / "vae"), *words])
    whole, parts = (
        np.stack([np.asarray(Image.open(file), int) for file in sorted((tmp_path / name).iterdir())])
        for name in ("whole", "parts")
    )
    assert whole.shape == (5, 8, 8) and np.abs(whole - parts).max() <= 1 and whole.std() > 1
    pipeline = HFGenPipeline.from_pretrained(folders / "vae")
    third = np.asarray(pipeline(generator=seeds(2)).images[0], int)
    assert np.abs(third - whole[2]).max() <= 1


@pytest.mark.parametrize(
    ("folder", "words", "message"),
    [
        ("vae", ["--num_inference_steps", "5"], "num_inference_steps=5"),
        ("vae", ["--guidance_scale", "2"], "VAEPipeline takes no guidance_scale"),
        ("vae", ["--class_labels", "3"], "trained without classes. Leave them out"),
        ("vae", ["--class_labels", "all"], "trained without classes. Leave them out"),
        ("vae", ["--scheduler", "ddim"], "draws without a scheduler"),
        ("vq", [], "no prior over codes"),
        ("vq", ["--num_inference_steps", "5"], "VQPipeline takes no num_inference_steps"),
    ],
)
def test_what_the_family_has_not_is_refused_in_one_line(folders, tmp_path, monkeypatch, capsys, folder, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", str(folders / folder), "--device", "cpu", *words])
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and last_line.startswith("error: ") and message in last_line
    assert not list(tmp_path.iterdir())


def evaluate(folder, tmp_path, *words):
    few = ["--num_samples", "80", "--bootstrap", "0", "--num_likelihood", "20", "--device", "cpu"]
    few += ["--reference_cache", str(tmp_path / "cache"), "--output", str(tmp_path / "evaluation.json")]
    cli.main(["evaluate", str(folder), "--dataset", "digits", *few, *words])


def test_evaluate_measures_it(folders, tmp_path, monkeypatch):
    import json

    evaluate(folders / "vae", tmp_path, "--metrics", "frechet,reconstruction,bpd")
    entries = json.loads((tmp_path / "evaluation.json").read_text())["evaluation"]
    values = {entry["metric"].split(" (")[0]: entry["value"] for entry in entries}
    distances = {"Frechet distance", "geometric mean of Frechet distances"}
    assert set(values) == distances | {"reconstruction error, mse", "bits per dimension"}
    assert 0 < values["reconstruction error, mse"] < 4 and values["bits per dimension"] > 1
    protocol = entries[0]["protocol"]
    assert (protocol["sampler"], protocol["evaluations"]) == ("VAEPipeline", 1)
    assert not {"solver", "guidance"} & set(protocol)
    likelihood = next(entry["protocol"] for entry in entries if entry["metric"] == "bits per dimension")
    assert likelihood["real images"] == 20
    assert likelihood["computed by"] == "VAEPipeline.bits_per_dim(num_samples=100, batch_size=800)"
    monkeypatch.setattr(VAEPipeline, "__call__", lambda *a, **k: pytest.fail("images were drawn"))
    evaluate(folders / "vae", tmp_path, "--metrics", "reconstruction")  # needs no samples
    evaluate(folders / "vq", tmp_path, "--metrics", "reconstruction", "--resolution", "10")


def test_what_can_not_be_measured_is_refused_before_anything_is_drawn(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hfgen.VAEPipeline, "__call__", lambda *_, generator=None, **k: pytest.fail("images were drawn"))
    for folder, metrics, message, side in (
        ("binary", "frechet,bpd", "'bernoulli' models binary pixels", "8"),
        ("vq", "bpd", "A VQPipeline has no bits_per_dim", "10"),
    ):
        with pytest.raises(SystemExit):
            evaluate(folders / folder, tmp_path, "--metrics", metrics, "--resolution", side)
        assert message in capsys.readouterr().err
