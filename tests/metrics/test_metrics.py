"""Distances against float64 NumPy, feature networks and their names."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from hfgen.commands import train_classifier as classifier
from hfgen.data.images import load_images
from hfgen.metrics import distances, encoders, features, measures, modes, neighbours, pixels
from hfgen.metrics.classifier import DomainClassifier
from hfgen.metrics.feature_network import FeatureNetwork, ImageSet
from hfgen.metrics.names import STANDARD_NAMES
from hfgen.metrics.straightness import straightness
from hfgen.options import DataArgs

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def draws(count: int, seed: int, shift: float = 0.0, width: int = 6) -> torch.Tensor:
    """Correlated normal features (count, width)."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(width).normal(size=(width, width))
    return torch.from_numpy(rng.normal(size=(count, width)) @ mixing + shift)


def frechet_reference(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, with SciPy's matrix square root."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


def kernel_reference(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate, term by term."""
    k = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    n, m = len(a), len(b)
    same_a, same_b = (k(x, x) for x in (a, b))
    return float(
        (same_a.sum() - np.trace(same_a)) / (n * (n - 1))
        + (same_b.sum() - np.trace(same_b)) / (m * (m - 1))
        - 2 * k(a, b).mean()
    )


def test_frechet_distance_is_the_definition() -> None:
    a, b = draws(500, 0), draws(400, 1, shift=0.3)
    assert distances.frechet_distance(a, b) == pytest.approx(frechet_reference(a.numpy(), b.numpy()), rel=1e-6)
    assert distances.frechet_distance(b, a) == pytest.approx(distances.frechet_distance(a, b), rel=1e-9)


def test_frechet_distance_of_known_gaussians() -> None:
    a = draws(300, 0)
    assert distances.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert distances.frechet_distance(a, a + 2) == pytest.approx(4 * a.shape[1], rel=1e-9)  # a shift alone
    scaled = (a - a.mean(0)) * 3 + a.mean(0)
    assert distances.frechet_distance(a, scaled) == pytest.approx(4 * a.var(0).sum().item(), rel=1e-9)  # (3 - 1)^2 tr S


def test_kernel_distance_is_the_definition() -> None:
    a, b = draws(300, 0), draws(300, 1, shift=0.3)
    mean, deviation = distances.kernel_distance(a, b, subsets=1, subset_size=300)
    assert mean == pytest.approx(kernel_reference(a.numpy(), b.numpy()), rel=1e-6)
    assert deviation == 0


def test_kernel_distance_is_fixed_by_its_seed_and_leaves_the_global_generator_alone() -> None:
    a, b, state = draws(300, 0), draws(300, 1), torch.get_rng_state()
    first = distances.kernel_distance(a, b, subsets=3, subset_size=50, seed=7)
    assert first == distances.kernel_distance(a, b, subsets=3, subset_size=50, seed=7)
    assert first != distances.kernel_distance(a, b, subsets=3, subset_size=50, seed=8)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("real", "fake", "words"),
    [
        (draws(6, 0), draws(100, 1), "6 real samples are too few"),
        (draws(100, 0), draws(6, 1), "6 generated samples are too few"),
        (draws(100, 0), draws(100, 1, width=5), "not of one network"),
        (draws(100, 0), draws(100, 1) * torch.nan, "finite"),
        (draws(100, 0)[0], draws(100, 1), "matrix"),
    ],
)
def test_what_can_not_be_compared_is_refused(real: torch.Tensor, fake: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        distances.frechet_distance(real, fake)
    with pytest.raises(ValueError, match=words):
        distances.kernel_distance(real, fake, subset_size=50)


def test_frechet_distance_of_features_on_lines() -> None:
    """Covariances s u u^T and t v v^T: the trace of the root of their product is sqrt(s t) |u . v|."""
    rng = np.random.default_rng(0)
    u, v = (x / np.linalg.norm(x) for x in rng.normal(size=(2, 5)))
    along = rng.normal(size=(2, 60))
    a, b = (torch.from_numpy(np.outer(z, direction)) for z, direction in zip(along, (u, v), strict=True))
    s, t = along.var(1, ddof=1)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + s + t - 2 * np.sqrt(s * t) * abs(u @ v)
    assert distances.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert distances.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    point = torch.ones(60, 5, dtype=torch.float64)  # no variance at all
    assert distances.frechet_distance(point, 3 * point) == pytest.approx(20, rel=1e-12)
    assert distances.frechet_distance(point, a + 1) == pytest.approx((a.mean(0) ** 2).sum().item() + s, rel=1e-9)


@pytest.mark.parametrize("exponent", [-140, -60, 20, 140])
def test_measures_scale_with_the_features(exponent: int) -> None:
    scale, a, b = 10.0**exponent, draws(60, 0), draws(50, 1, shift=0.3)
    distance = distances.frechet_distance(a, b)
    assert distances.frechet_distance(a * scale, b * scale) == pytest.approx(distance * scale * scale, rel=1e-9, abs=0)
    assert neighbours.diversity(a * scale) == pytest.approx(neighbours.diversity(a) * scale, rel=1e-9, abs=0)
    assert neighbours.prdc(a * scale, b * scale) == neighbours.prdc(a, b)
    one, other = (neighbours.memorisation(b * c, a * c, draws(40, 2) * c) for c in (1, scale))
    assert other == pytest.approx(one, rel=1e-9)


MEASURES = [distances.frechet_distance, neighbours.prdc, lambda a, b: distances.kernel_distance(a, b, 2, 20)]
MEASURES += [lambda a, b: neighbours.memorisation(b, a, a + 1), lambda a, b: neighbours.diversity(b)]
MEASURES += [lambda a, b: modes.class_coverage(a, b), lambda a, b: modes.modes(b, a[:3], 1.0)]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_value_that_is_not_finite_is_named_and_never_measured(measure, bad: float) -> None:
    real, fake = draws(60, 0), draws(60, 1)
    fake[7, 3] = bad
    with pytest.raises(ValueError, match=r"1 of 60 .* finite"):
        measure(real, fake)


@pytest.mark.parametrize("measure", MEASURES[:5])
def test_features_whose_distances_overflow_are_refused(measure) -> None:
    with pytest.raises(ValueError, match=r"reach .*e\+160.*overflow"):
        measure(draws(60, 0) * 1e160, draws(60, 1) * 1e160)


def test_a_kernel_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"third power.*overflows"):
        distances.kernel_distance(draws(60, 0) * 1e60, draws(60, 1), subset_size=50)
    for options in ({"subset_size": 1}, {"subset_size": 20, "subsets": 0}):
        with pytest.raises(ValueError, match="subset_size="):
            distances.kernel_distance(draws(60, 0), draws(60, 1), **options)


def test_features_without_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"matrix \(N, d\), not \(60, 0\)"):
        distances.frechet_distance(torch.zeros(60, 0), torch.zeros(60, 0))


@pytest.mark.parametrize("name", features.BUILT_IN)
def test_built_in_features(name: str) -> None:
    network = features.load_features(name)
    path = features.WEIGHTS / f"{name}.safetensors"
    images = torch.rand(3, *SHAPES[name], generator=torch.Generator().manual_seed(0)) * 2 - 1
    vectors = network(images)
    assert path.stat().st_size <= 2**20
    assert vectors.shape == (3, network.num_features) and vectors.dtype == torch.float64
    assert network.logits_and_features(images)[0].shape == (3, 10)
    torch.testing.assert_close(network(images[1:2]), vectors[1:2], rtol=1e-4, atol=1e-5)  # no image sees another
    assert network.revision == features.file_digest(path) and len(network.revision) == 12
    assert network.metric_name() == f"Frechet distance ({name}-cnn, {network.revision})"
    assert network.about["accuracy"] > {"digits": 0.98, "mnist": 0.99, "cifar10": 0.6}[name]


def test_the_digits_classifier_knows_digits_held_out() -> None:
    data, network = load_images(DataArgs()), features.load_features("digits")
    held = torch.arange(0, len(data), 5)  # the training of that classifier left them out
    logits, vectors = network.logits_and_features(data.images[held].float() / 127.5 - 1)
    assert (logits.argmax(1) == data.labels[held]).double().mean().item() == pytest.approx(
        network.about["accuracy"], abs=5e-5
    )
    assert 0.5 < vectors.var(0).mean().item() < 2  # standardised on the training images


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32), (1, 28, 28)])
def test_images_of_another_shape_are_refused_with_the_fix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"--resolution 28|B, C, H, W"):
        features.load_features("mnist")(torch.zeros(shape))


def test_unknown_features_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'mnits' are not known"):
        features.load_features("mnits")


def test_distances_over_batches_are_those_of_all_images() -> None:
    network, images = features.load_features("digits"), load_images(DataArgs()).images.float() / 127.5 - 1
    whole, parts = distances.Distances(network), distances.Distances(network)
    for metric, size in ((whole, 900), (parts, 128)):
        for start in range(0, 900, size):
            metric.update(images[start : min(start + size, 900)], real=True)
        metric.update(images[900:], real=False)
    assert torch.equal(whole.real[:900], network(images[:900])) and len(whole.real) == 900 == len(parts.real)
    assert len(whole.fake) == len(images) - 900 and len(distances.Distances(network).real) == 0
    kid = {"subsets": 2, "subset_size": 100}
    assert parts.compute(**kid) == pytest.approx(whole.compute(**kid), rel=1e-5)
    assert set(whole.compute(**kid)) == {network.metric_name(), network.metric_name("kernel distance")}
    kernel, _ = distances.kernel_distance(whole.real, whole.fake, **kid)  # whose subsets are drawn in this order
    assert whole.compute(**kid)[network.metric_name("kernel distance")] == kernel


def test_classifier_score_is_the_definition() -> None:
    logits = draws(200, 3) * 0.5
    chances = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    marginal = chances.mean(0)
    expected = np.exp((chances * (np.log(chances) - np.log(marginal))).sum(1).mean())
    assert distances.classifier_score(logits, splits=1)[0] == pytest.approx(expected, rel=1e-6)
    sure = torch.eye(6).repeat(20, 1) * 1e3
    assert distances.classifier_score(sure, splits=1)[0] == pytest.approx(6, rel=1e-6)
    assert distances.classifier_score(torch.zeros(100, 6), splits=1)[0] == pytest.approx(1, rel=1e-9)


def prdc_reference(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """The definitions over full distance matrices. A sample on a sphere is inside for Kynkaanniemi et al. (precision,
    recall), and outside for Naeem et al. (density, coverage)."""
    between = lambda a, b: np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))  # noqa: E731
    ball_real, ball_fake = (np.sort(between(x, x), axis=1)[:, k] for x in (real, fake))
    across = between(real, fake)
    return {
        "precision": (across <= ball_real[:, None]).any(0).mean(),
        "recall": (across <= ball_fake[None]).any(1).mean(),
        "density": (across < ball_real[:, None]).sum(0).mean() / k,
        "coverage": (across.min(1) < ball_real).mean(),
    }


@pytest.mark.parametrize("k", [1, 5])
def test_precision_recall_density_coverage_are_the_definitions(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 37)  # several parts, the last not full
    real, fake = draws(120, 0), draws(90, 1, shift=0.5)
    values = neighbours.prdc(real, fake, k)
    assert values == pytest.approx(prdc_reference(real.numpy(), fake.numpy(), k), abs=1e-6)
    assert neighbours.prdc(real, real, k)["precision"] == neighbours.prdc(real, real, k)["coverage"] == 1
    far = neighbours.prdc(real, fake + 1000, k)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    with pytest.raises(ValueError, match="too few"):
        neighbours.prdc(real[:k], fake, k)


@pytest.mark.parametrize("shift", [0, 10_000])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_ties_of_whole_numbers_count_as_in_the_papers_code(k: int, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances of whole numbers are exact, so ties are ties; most samples have copies."""
    monkeypatch.setattr(neighbours, "ROWS", 37)
    rng = np.random.default_rng(k)
    for side in (2, 3, 6):
        real, fake = rng.integers(0, side, (80, 3)) + shift, rng.integers(0, side + 1, (70, 3)) + shift
        same = pytest.approx(prdc_reference(real, fake, k), rel=1e-12)
        assert neighbours.prdc(torch.from_numpy(real).double(), torch.from_numpy(fake).double(), k) == same
        assert neighbours.prdc(torch.from_numpy(real / 8), torch.from_numpy(fake / 8), k) == same


def test_a_set_against_itself_has_precision_and_recall_one_whatever_its_copies() -> None:
    copies = torch.arange(4).repeat_interleave(10)[:, None].double() + 1000.3
    values = neighbours.prdc(copies, copies, 5)
    assert values == {"precision": 1, "recall": 1, "density": 0, "coverage": 0}  # spheres of radius 0 have no inside


def test_images_that_are_not_finite_have_no_error_and_no_spectrum() -> None:
    good, bad = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    bad[2, 0, 3, 3] = torch.nan
    for call in (
        lambda: pixels.reconstruction_error(good, bad),
        lambda: pixels.spectrum_distance(good, bad),
        lambda: pixels.reconstruction_error(good[:0], good[:0]),
        lambda: straightness(torch.full((4, 2, 3), torch.nan)),
        lambda: measures.mean_measurement("error", torch.tensor([1.0, torch.inf]), "lower"),
    ):
        with pytest.raises(ValueError, match="not finite"):
            call()


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    x = draws(60, 0)
    pairs = np.sqrt(((x.numpy()[:, None] - x.numpy()[None]) ** 2).sum(-1))
    assert neighbours.diversity(x) == pytest.approx(pairs.sum() / (60 * 59), rel=1e-6)
    assert neighbours.diversity(x[:1].repeat(50, 1)) == pytest.approx(0, abs=1e-6)


def test_memorisation_tells_copies_from_new_samples() -> None:
    train, held, fresh = draws(400, 0), draws(300, 1), draws(300, 2)
    to_train = lambda x: np.sqrt(((x.numpy()[:, None] - train.numpy()[None]) ** 2).sum(-1)).min(1)  # noqa: E731
    a, b = to_train(fresh), to_train(held)
    values = neighbours.memorisation(fresh, train, held)
    assert values["nearer"] == pytest.approx((a[:, None] < b[None]).mean(), abs=1e-6)
    assert values["ratio"] == pytest.approx(np.sort(a)[149] / np.sort(b)[149], rel=1e-6)  # torch takes the lower median
    assert 0.4 < values["nearer"] < 0.6
    copies = neighbours.memorisation(train[:200], train, held)
    assert copies == {"ratio": 0, "nearer": 1}
    with pytest.raises(ValueError, match="are training images"):
        neighbours.memorisation(fresh, train, train[:100])


def test_nearest_neighbours_are_numpys() -> None:
    a, b = draws(50, 0), draws(80, 1)
    across = np.sqrt(((a.numpy()[:, None] - b.numpy()[None]) ** 2).sum(-1))
    distance, index = neighbours.nearest_neighbours(a, b, 3)
    np.testing.assert_allclose(distance, np.sort(across, 1)[:, :3], rtol=1e-6)
    np.testing.assert_array_equal(index, np.argsort(across, 1)[:, :3])


def test_reconstruction_error_is_numpys() -> None:
    x, y = (torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    errors, off = pixels.reconstruction_error(x, y), (x.double() - y.double()).numpy()
    assert errors["mse"] == pytest.approx((off**2).mean(), rel=1e-6)
    assert errors["mae"] == pytest.approx(np.abs(off).mean(), rel=1e-6)
    assert errors["psnr"] == pytest.approx(10 * np.log10(4 / (off**2).mean()), rel=1e-6)
    assert pixels.reconstruction_error(x, x) == {"mse": 0, "mae": 0, "psnr": np.inf}


def test_radial_spectrum_is_numpys_and_knows_a_wave() -> None:
    x = np.random.default_rng(0).normal(size=(5, 2, 8, 8))
    power = (np.abs(np.fft.fft2(x, norm="ortho")) ** 2).mean((0, 1))
    radius = np.hypot(np.fft.fftfreq(8, 1 / 8)[:, None], np.fft.fftfreq(8, 1 / 8)[None]).round()
    expected = [power[radius == r].mean() for r in range(5)]
    np.testing.assert_allclose(pixels.radial_spectrum(torch.from_numpy(x), batch_size=2), expected, rtol=1e-6)
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    assert pixels.radial_spectrum(wave).argmax() == 3
    noise = torch.randn(50, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert pixels.spectrum_distance(noise, 2 * noise) == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert pixels.spectrum_distance(noise, noise) == 0


def test_bootstrap_gives_the_standard_error_of_a_mean() -> None:
    x = draws(400, 0)[:, :1]
    error = distances.bootstrap(lambda rows: rows.mean().item(), x, repeats=400)
    assert error == pytest.approx(x.std().item() / 20, rel=0.15)
    assert error == distances.bootstrap(lambda rows: rows.mean().item(), x, repeats=400)


# --- networks that are not shipped ------------------------------------------------------------------------------------


@pytest.fixture(params=["dinov2", "clip"])
def encoder_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small vision transformer with random weights, saved as the Hub has it."""
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    if request.param == "dinov2":
        model = Dinov2Model(Dinov2Config(**vision))
    else:
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPConfig(text_config={**text, "vocab_size": 99}, vision_config=vision, projection_dim=16)
        model = CLIPModel(config)
    model.save_pretrained(tmp_path)
    form = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "crop_size": {"height": 28, "width": 28}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(form))
    return tmp_path


def test_a_transformer_gives_features_by_its_own_name(encoder_folder: Path) -> None:
    network = features.load_features(str(encoder_folder))
    grey = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert network(grey).shape == (2, 16) and network.num_features == 16
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)))
    assert network.resize == "bicubic, antialiased, to 28 x 28" and "FID" not in network.metric_name()
    assert network.revision == features.load_features(str(encoder_folder)).revision
    with torch.no_grad():
        next(network.network.parameters()).add_(1)
    assert encoders.weights_digest(network.network.model) != network.revision


def test_inception_gets_bytes_and_alone_is_called_fid() -> None:
    class Extractor(torch.nn.Module):
        def _torch_fidelity_forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert x.dtype == torch.uint8
            return x.flatten(1).float(), x.amax((2, 3)).float()

    logits, vectors = encoders.Inception(Extractor())(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3))
    assert vectors.tolist() == [[0, 128, 255] * 3] and logits.tolist() == [[255] * 3]
    named = FeatureNetwork("inception-v3-compat", "0" * 12, torch.nn.Identity(), 3, None, None, standard=True)
    assert [named.metric_name(kind) for kind in STANDARD_NAMES] == ["FID", "KID", "Inception Score"]


def test_inception_that_is_not_installed_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ValueError, match="Install torch-fidelity"):
        features.load_features("inception")


def test_sets_of_two_networks_are_never_compared() -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    network, x = features.load_features("digits"), draws(2, 0)
    one, other = (ImageSet(name, images, x) for name in ("a, 1", "a, 2"))
    with pytest.raises(ValueError, match="a, 2 can't be compared with those of a, 1"):
        measures.Comparison(network, one, other)


def test_too_few_images_are_refused_before_work() -> None:
    network = features.load_features("digits")
    with pytest.raises(ValueError, match="frechet with features of digits-cnn needs 65 images"):
        measures.check_counts(["frechet"], network, 1000, 64, 5, 100)
    with pytest.raises(ValueError, match=r"kernel_distance .* needs 100 images"):
        measures.check_counts(["frechet", "kernel_distance"], network, 99, 1000, 5, 100)
    names = ["frechet", "kernel_distance", "classifier_score", "precision_recall"]
    assert measures.check_counts(names, network, 100, 100, 5, 100) is None


def test_auto_features_follow_the_shape() -> None:
    pairs = [(name, f"{name}-texture") for name in SHAPES]
    assert [features.built_in_features(c, (h, w)) for c, h, w in SHAPES.values()] == pairs
    with pytest.raises(ValueError, match="--features inception"):
        features.built_in_features(3, (64, 64))


# --- training a classifier --------------------------------------------------------------------------------------------


def test_a_classifier_is_trained_saved_and_loaded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "small.safetensors"
    words = ["--name", "small", "--widths", "8,16", "--num_epochs", "6", "--train_batch_size", "64", "--shift", "0"]
    classifier.main([*words, "--output", str(output)])
    network = features._domain_network(output)
    assert network.name == "small" and network.about["accuracy"] > 0.9
    assert f"{network.about['accuracy']:.4f}" in capsys.readouterr().out


def test_augmentation_moves_each_image_by_at_most_the_shift() -> None:
    images = torch.arange(3 * 2 * 5 * 5).view(3, 2, 5, 5).float()
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(classifier.augment(images, 0, False, generator), images)
    padded = torch.nn.functional.pad(images, [1] * 4, mode="replicate")
    windows = [padded[..., y : y + 5, x : x + 5] for y in range(3) for x in range(3)]
    windows += [window.flip(-1) for window in windows]
    for moved, *candidates in zip(classifier.augment(images, 1, True, generator), *windows, strict=True):
        assert any(torch.equal(moved, candidate) for candidate in candidates)


def test_a_classifier_refuses_a_size_it_can_not_halve() -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        DomainClassifier(1, 30, 10)


# --- items of any shape -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [(5,), (7, 2), (3, 4, 4), (2, 3, 2, 2)])
def test_errors_of_reconstructions_are_means_over_all_dimensions_of_an_item(item: tuple[int, ...]) -> None:
    x, y = (torch.rand(6, *item, generator=torch.Generator().manual_seed(i)) for i in range(2))
    errors = pixels.reconstruction_error(x, y)
    assert errors["mse"] == pytest.approx(((x - y).double() ** 2).mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"Images \(6, .* differ"):
        pixels.reconstruction_error(x, y[:5])


@pytest.mark.parametrize("item", [(5,), (7, 2), (3, 4, 4)])
def test_straightness_is_per_dimension_of_an_item(item: tuple[int, ...]) -> None:
    trajectory = torch.randn(9, 4, *item, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    velocity = (trajectory[1:] - trajectory[:-1]).flatten(2) * 8
    away = (trajectory[-1] - trajectory[0]).flatten(1) - velocity
    torch.testing.assert_close(straightness(trajectory), away.square().mean(0).mean(1))
    line = trajectory[0] + torch.linspace(0, 1, 9, dtype=torch.float64).view(-1, 1, *[1] * len(item)) * trajectory[1]
    torch.testing.assert_close(straightness(line), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_shapes_that_a_measure_can_not_mean_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trajectory \(9, 4\) must be \(n \+ 1, B, ...\)"):
        straightness(torch.zeros(9, 4))
    with pytest.raises(ValueError, match=r"images \(N, C, H, W\), not \(4, 8, 8\)"):
        pixels.radial_spectrum(torch.zeros(4, 8, 8))
    with pytest.raises(ValueError, match=r"bits: values must be \(N,\), one per image, not \(4, 2\)"):
        measures.mean_measurement("bits", torch.zeros(4, 2), "lower")


def test_a_mean_has_the_normal_interval() -> None:
    values = draws(400, 0)[:, 0]
    mean = measures.mean_measurement("m", values, "lower")
    half = 1.96 * values.std().item() / 20
    assert mean.value == pytest.approx(values.mean().item())
    assert mean.interval == pytest.approx((mean.value - half, mean.value + half))
    assert measures.mean_measurement("m", values[:1], "lower").interval is None
