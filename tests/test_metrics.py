"""Distances against float64 NumPy, feature networks and their names."""

import numpy as np
import pytest
import scipy.linalg
import torch

from hfgen.args import DataArgs
from hfgen.data import load_images
from hfgen.metrics import distances, features

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


@pytest.mark.parametrize("name", features.BUILT_IN)
def test_built_in_features(name: str) -> None:
    network = features.load_features(name)
    path = features.WEIGHTS / f"{name}.safetensors"
    images = torch.rand(3, *SHAPES[name], generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = network(images)
    assert path.stat().st_size <= 2**20
    assert found.shape == (3, network.num_features) and found.dtype == torch.float64
    assert network.both(images)[0].shape == (3, 10)
    torch.testing.assert_close(network(images[1:2]), found[1:2], rtol=1e-4, atol=1e-5)  # no image sees another
    assert network.revision == features.revision_of(path) and len(network.revision) == 12
    assert network.metric_name() == f"Frechet distance ({name}-cnn, {network.revision})"
    assert network.about["accuracy"] > {"digits": 0.98, "mnist": 0.99, "cifar10": 0.6}[name]


def test_the_digits_classifier_knows_digits_held_out() -> None:
    data, network = load_images(DataArgs()), features.load_features("digits")
    held = torch.arange(0, len(data), 5)  # training.classifier left them out
    logits, found = network.both(data.images[held].float() / 127.5 - 1)
    assert (logits.argmax(1) == data.labels[held]).double().mean().item() == pytest.approx(
        network.about["accuracy"], abs=5e-5
    )
    assert 0.5 < found.var(0).mean().item() < 2  # standardised on the training images


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
    kid = {"subsets": 2, "subset_size": 100}
    assert parts.compute(**kid) == pytest.approx(whole.compute(**kid), rel=1e-5)
    assert set(whole.compute(**kid)) == {network.metric_name(), network.metric_name("kernel distance")}
