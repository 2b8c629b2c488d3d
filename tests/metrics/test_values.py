"""Metrics against brute force and SciPy where the simple cases are silent: ties, oblong images, unequal directions."""

import dataclasses
import inspect
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy import special, stats
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from hfgen.metrics import distances, modes, neighbours, pixels
from hfgen.metrics.detection import auroc
from hfgen.metrics.feature_network import FeatureNetwork, ImageSet
from hfgen.metrics.measures import MEASURES, Comparison, check_counts
from hfgen.metrics.straightness import straightness


def integers(count, high, seed, width=2):
    """Features on a small lattice, so that many distances are equal."""
    return torch.randint(0, high, (count, width), generator=torch.Generator().manual_seed(seed)).double()


def test_ties_of_memorisation_count_half_as_in_the_mann_whitney_statistic():
    train, held, fake = integers(40, 12, 0), integers(60, 16, 1), integers(50, 14, 2)
    nearest = [np.sqrt(((x.numpy()[:, None] - train.numpy()[None]) ** 2).sum(-1)).min(1) for x in (fake, held)]
    a, b = (np.round(x, 9) for x in nearest)
    statistic = stats.mannwhitneyu(b, a).statistic  # pairs where the held-out one is farther, ties count half
    assert (a[:, None] == b[None]).mean() > 0.1
    assert neighbours.memorisation(fake, train, held)["nearer"] == pytest.approx(statistic / (50 * 60), abs=1e-12)


def test_of_the_same_images_half_are_nearer():
    train, held = integers(40, 12, 0), integers(60, 16, 1)
    assert neighbours.memorisation(held, train, held) == pytest.approx({"ratio": 1, "nearer": 0.5})


def test_nearest_neighbours_of_equal_rows_have_distance_zero_and_are_all_found():
    b = integers(30, 3, 0)
    distance, index = neighbours.nearest_neighbours(b, b, 3)
    across = np.sqrt(((b.numpy()[:, None] - b.numpy()[None]) ** 2).sum(-1))
    np.testing.assert_allclose(distance, np.sort(across, 1)[:, :3], atol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(across, index.numpy(), 1), distance, atol=1e-12)


def test_distances_of_equal_and_of_nearly_equal_rows_have_all_digits():
    """A matrix product leaves about 1e-8 of the norm between equal rows, and of a small difference nothing."""
    a = torch.randn(200, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = a + 3e-8 * torch.randn(200, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    equal, small = (torch.cat(list(neighbours.distance_rows(a, b))) for b in (a, near))
    assert equal.diagonal().eq(0).all() and (equal + torch.eye(200)).gt(0).all()
    np.testing.assert_allclose(small.diagonal(), np.linalg.norm((a - near).numpy(), axis=1), rtol=1e-6)
    np.testing.assert_allclose(small, cdist(a.numpy(), near.numpy()), rtol=1e-6)


def test_the_smallest_subset_of_a_kernel_distance_has_two_samples():
    """Of two equal pairs: the kernel of the pair, minus the mean over all four."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    value, deviation = distances.kernel_distance(x, x, subsets=3, subset_size=2)
    assert value == pytest.approx(2 * 1 - 2 * (2 * 1.5**3 + 2) / 4) and deviation == pytest.approx(0, abs=1e-12)


def test_the_fewest_samples_of_neighbours():
    """Two points a distance of 5 apart; and k + 1 = 2 samples, whose balls reach to each other."""
    pair = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert neighbours.diversity(pair) == pytest.approx(5)
    inside = neighbours.prdc(pair, pair + torch.tensor([0.5, 0.5]), k=1)
    assert inside == {"precision": 1, "recall": 1, "density": pytest.approx(1.5), "coverage": 1}
    for measure in (lambda: neighbours.diversity(pair[:1]), lambda: neighbours.prdc(pair, pair[:1], k=1)):
        with pytest.raises(ValueError, match="too few"):
            measure()


def brute_spectrum(x):
    """Mean of |FFT|^2 / (H W) over the frequencies whose length rounds to r, by sums of cosines and sines."""
    height, width = x.shape[2:]
    rows, cols = np.arange(height), np.arange(width)
    power = {}
    for u in range(-((height - 1) // 2), height // 2 + 1):
        for v in range(-((width - 1) // 2), width // 2 + 1):
            wave = np.exp(-2j * np.pi * (u * rows[:, None] / height + v * cols[None] / width))
            value = np.abs((x * wave).sum((2, 3))) ** 2 / (height * width)
            power.setdefault(round(math.hypot(u, v)), []).append(value.mean())
    return [np.mean(power[r]) for r in range(min(height, width) // 2 + 1)]


@pytest.mark.parametrize("shape", [(3, 1, 6, 10), (2, 3, 9, 4), (2, 1, 5, 7), (4, 2, 8, 8)])
def test_spectra_of_oblong_images_are_their_sums(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(pixels.radial_spectrum(x, batch_size=2), brute_spectrum(x.numpy()), rtol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(12, 20), (20, 12)])
def test_a_wave_along_either_side_has_its_own_frequency(height, width):
    rows, cols = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    for wave in (torch.cos(2 * torch.pi * 3 * rows).expand(height, width), torch.cos(2 * torch.pi * 3 * cols)):
        assert pixels.radial_spectrum(wave.expand(1, 1, height, width)).argmax() == 3


def test_white_noise_has_its_variance_at_every_frequency():
    noise = 0.3 * torch.randn(400, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(pixels.radial_spectrum(noise), 0.09, rtol=0.1)


def test_a_difference_of_spectra_is_seen_through_rounding_noise():
    """Power v against none: 10 log10(v + r) / r with the variance r of rounding to 256 levels in [-1, 1]."""
    flat = torch.zeros(50, 1, 8, 8)
    levels = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    rounding = (levels - ((levels + 1) * 127.5).round() / 127.5 + 1).var().item()
    impulse = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    impulse[0, 0, 0, 0] = 0.1  # the same power, 0.01 / 64, at each frequency
    expected = 10 * math.log10(0.01 / 64 / rounding + 1)
    assert pixels.spectrum_distance(flat[:1].double(), impulse) == pytest.approx(expected, rel=1e-3)
    assert pixels.spectrum_distance(impulse, flat[:1].double()) == pytest.approx(expected, rel=1e-3)


def test_divergences_have_a_direction():
    """SciPy's sum of relative entropies. Reverse KL is of the generated shares from the real ones."""
    p, q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.1, 0.3, 0.6]).double()
    assert modes.kl_divergence(p, q) == pytest.approx(special.rel_entr(p.numpy(), q.numpy()).sum())
    assert modes.kl_divergence(q, p) == pytest.approx(special.rel_entr(q.numpy(), p.numpy()).sum())
    assert abs(modes.kl_divergence(p, q) - modes.kl_divergence(q, p)) > 0.05


def test_the_reverse_kl_of_classes_punishes_what_is_not_in_the_data():
    """Of the smoothed shares (n + 1/2) / (N + K/2), generated against real, in that order."""

    def scores(counts):
        return torch.nn.functional.one_hot(torch.arange(3).repeat_interleave(torch.tensor(counts)), 3).double()

    real, fake = [50, 49, 1], [10, 10, 180]
    value = modes.class_coverage(scores(real), scores(fake))["reverse_kl"]
    q, p = ((np.array(counts) + 0.5) / (sum(counts) + 1.5) for counts in (fake, real))
    assert value == pytest.approx(stats.entropy(q, p))
    assert abs(value - stats.entropy(p, q)) > 0.1
    assert modes.class_coverage(scores(fake), scores(real))["reverse_kl"] == pytest.approx(stats.entropy(p, q))


def test_one_image_and_one_point_are_enough_for_classes_and_modes():
    one, other = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert modes.class_coverage(one, one) == {"classes": 1, "covered": 1, "reverse_kl": 0}
    missed = modes.class_coverage(one, other)  # shares (1/4, 3/4) against (3/4, 1/4) with half an image in each
    assert missed == {"classes": 1, "covered": 0, "reverse_kl": pytest.approx(math.log(3) / 2)}
    assert modes.modes(one, one, 1.0) == {"covered": 1, "high_quality": 1, "reverse_kl": 0}
    with pytest.raises(ValueError, match="too few"):
        modes.class_coverage(one[:0], one)


def test_straightness_of_a_broken_line_is_its_integral():
    """One turn half-way: velocities 1 and 3 around their mean 2 leave (1 + 1)/2 per dimension that moves."""
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    broken = torch.where(times < 0.5, times, 0.5 + 3 * (times - 0.5))
    bent = torch.stack([broken, 2 * times], 1)[:, None]  # (9, 1, 2): the second dimension is straight
    assert straightness(bent).tolist() == pytest.approx([0.5])
    with pytest.raises(ValueError, match="two Euler steps"):
        straightness(bent[:2])
    assert straightness(bent[[0, 4, 8]]).tolist() == pytest.approx([0.5])


# --- measures and their conditions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("high", [3, 30, 10_000])
def test_auroc_is_scikit_learns_also_with_ties(high):
    normal, anomalous = (integers(count, high, seed, 1)[:, 0] for count, seed in ((40, 0), (25, 1)))
    labels = np.repeat([0, 1], [40, 25])
    expected = roc_auc_score(labels, np.concatenate([normal, anomalous + high // 4]))
    assert auroc(normal, anomalous + high // 4) == pytest.approx(expected)
    assert auroc(normal, normal) == 0.5
    assert auroc(torch.zeros(3), torch.ones(1)) == 1 and auroc(torch.ones(1), torch.zeros(3)) == 0


@pytest.mark.parametrize(
    ("normal", "anomalous"), [([], [1.0]), ([1.0], []), ([1.0, math.nan], [1.0]), ([1.0], [math.nan])]
)
def test_auroc_of_no_scores_is_refused(normal, anomalous):
    with pytest.raises(ValueError, match="both sides need one or more"):
        auroc(torch.tensor(normal), torch.tensor(anomalous))


def scored_sets(*counts, width=4):
    """Image sets of one network with random features and scores."""
    network = FeatureNetwork("small", "0" * 12, torch.nn.Identity(), width, 1, 8, scores=True)
    sets = []
    for seed, count in enumerate(counts):
        random = torch.Generator().manual_seed(seed)
        pictures = torch.randint(0, 256, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
        features = torch.randn(count, width, generator=random, dtype=torch.float64)
        sets.append(ImageSet(network.label, pictures, features, features * 2))
    return network, *sets


def test_measures_have_their_numbers_names_and_directions():
    network, real, fake, train, held = scored_sets(60, 50, 45, 40)
    comparison = Comparison(network, real, fake, train, held, neighbours=3, subset_size=20, repeats=30, seed=4)
    measures = {name: measure for name, measure in MEASURES.items() if name != "class_agreement"}  # needs classes
    found = {name: {m.metric: m for m in measure(comparison)} for name, measure in measures.items()}
    label = f"(small, {'0' * 12})"
    (frechet,) = found["frechet"].values()
    assert frechet.value == distances.frechet_distance(real.features, fake.features) and frechet.better == "lower"
    error = distances.bootstrap(lambda x: distances.frechet_distance(real.features, x), fake.features, 30, 4)
    assert frechet.interval == pytest.approx((max(0, frechet.value - 1.96 * error), frechet.value + 1.96 * error))
    (kernel,) = found["kernel_distance"].values()
    expected = distances.kernel_distance(real.features, fake.features, subset_size=20, seed=4)
    assert (kernel.value, kernel.deviation) == pytest.approx(expected) and kernel.better == "lower"
    (score,) = found["classifier_score"].values()
    assert (score.value, score.deviation) == distances.classifier_score(fake.logits, seed=4)
    assert score.better == "higher"
    values = neighbours.prdc(real.features, fake.features, 3)
    assert {m.metric: m.value for m in found["precision_recall"].values()} == {
        f"{key}, k = 3 {label}": value for key, value in values.items()
    }
    spread = [np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(x.features.numpy(), 2)])
              for x in (fake, real)]  # fmt: skip
    (diverse,) = found["diversity"].values()
    assert diverse.value == pytest.approx(spread[0] / spread[1], rel=1e-6) and diverse.better == "1"
    copies = neighbours.memorisation(fake.features, train.features, held.features)
    assert [m.value for m in found["memorisation"].values()] == [copies["ratio"], copies["nearer"]]
    assert [m.better for m in found["memorisation"].values()] == ["1", "0.5"]
    assert [m.value for m in found["spectrum"].values()] == [
        pixels.spectrum_distance(*(x.images.float() / 127.5 - 1 for x in (real, fake)))
    ]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_diversity_against_real_images_does_not_depend_on_the_scale(scale):
    network, real, fake = scored_sets(20, 20)
    scaled = [dataclasses.replace(images, features=images.features * scale) for images in (real, fake)]
    (one,), (other,) = (MEASURES["diversity"](Comparison(network, *pair)) for pair in ((real, fake), scaled))
    assert other.value == pytest.approx(one.value) and other.better == "1"
    with pytest.raises(ValueError, match="All real images have the same features"):
        MEASURES["diversity"](Comparison(network, dataclasses.replace(real, features=torch.ones(20, 4)), fake))


def test_features_are_refused_where_squared_distances_would_overflow():
    """Opposite corners of a cube of width 2 b are 4 b^2 d apart, in squares; a quarter of the largest float is left."""
    corners = torch.tensor([[1.0] * 4, [-1.0] * 4, [1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    bound = math.sqrt(sys.float_info.max / 4) / 4
    assert neighbours.diversity(corners * 0.98 * bound) == pytest.approx(0.98 * bound * (4 + 8**0.5 * 2) / 3, rel=1e-9)
    with pytest.raises(ValueError, match="overflow"):
        neighbours.diversity(corners * 1.02 * bound)


def test_an_interval_of_a_distance_has_fifty_repeats_and_is_never_below_zero():
    network, real, fake = scored_sets(60, 60)
    (frechet,) = MEASURES["frechet"](Comparison(network, real, fake))
    error = distances.bootstrap(lambda x: distances.frechet_distance(real.features, x), fake.features, 50, 0)
    assert frechet.interval[1] == pytest.approx(frechet.value + 1.96 * error)
    (same,) = MEASURES["frechet"](Comparison(network, real, real))
    assert same.value == 0 == same.interval[0] < same.interval[1]


def test_without_repeats_there_is_no_interval():
    network, real, fake = scored_sets(30, 30)
    (frechet,) = MEASURES["frechet"](Comparison(network, real, fake, repeats=0))
    assert frechet.interval is None
    with pytest.raises(ValueError, match="at least 2"):
        distances.bootstrap(lambda x: 0.0, fake.features, 1)
    assert distances.bootstrap(lambda x: 0.0, fake.features, 2) == 0


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("frechet", 5),
        ("kernel_distance", 30),
        ("classifier_score", 20),
        ("precision_recall", 4),
        ("diversity", 2),
        ("spectrum", 1),
    ],
)
def test_each_measure_has_its_least_number_of_images(name, least):
    network, _ = scored_sets(2)
    for counts in ((least, 1000), (1000, least)):
        assert check_counts([name], network, *counts, 3, 30) is None
    if least > 1:
        for counts in ((least - 1, 1000), (1000, least - 1)):
            with pytest.raises(ValueError, match=f"{name} with features of small needs {least} images"):
                check_counts([name], network, *counts, 3, 30)


def test_modes_need_a_tenth_of_their_share():
    """Of 100 points one mode in two has 50: five near it cover it, four do not."""
    centres = torch.tensor([[0.0], [10.0]])
    for near, covered in ((4, 1), (5, 2)):
        points = torch.cat([torch.zeros(100 - near, 1), torch.full((near, 1), 10.0)])
        assert modes.modes(points, centres, 1.0)["covered"] == covered
    edge = modes.modes(torch.tensor([[1.0], [9.0], [8.9]]), centres, 1.0)
    assert edge["high_quality"] == pytest.approx(2 / 3)
    assert modes.shares(torch.tensor([0, 2, 2, 2]), 4).tolist() == [0.25, 0, 0.75, 0]


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1.0, 2.0**30), (2.0**-1040, 0.0), (2.0**500, 0.0)])
def test_modes_of_any_scale_and_far_from_the_origin(scale, offset):
    """Against differences without a matrix product; binary fractions, so that scaling and moving is exact."""
    generator = torch.Generator().manual_seed(0)
    points, centres = (torch.randint(2**14, (n, 3), generator=generator).double() / 1024 for n in (60, 40))
    distance, mode = (points[:, None] - centres).square().sum(2).sqrt().min(1)
    share = np.bincount(mode.numpy(), minlength=40) / 60
    found = modes.modes(points * scale + offset, centres * scale + offset, 3.0 * scale)
    assert found["reverse_kl"] == pytest.approx(stats.entropy(share, np.full(40, 1 / 40)))
    assert found["high_quality"] == pytest.approx(float((distance <= 3).double().mean()))
    with pytest.raises(ValueError, match="overflow"):
        modes.modes(points * 1e160, centres * 1e160, 1.0)


@pytest.mark.parametrize("points", [torch.zeros(0, 2), torch.zeros(3, 1), torch.zeros(3)])
def test_points_that_fit_no_centres_are_refused(points):
    with pytest.raises(ValueError, match="must be"):
        modes.modes(points, torch.zeros(2, 2), 1.0)


def test_masses_that_nearly_sum_to_one_are_distributions():
    p = torch.tensor([0.5, 0.5 + 5e-7])
    assert modes.kl_divergence(p, torch.tensor([0.5, 0.5])) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two distributions"):
        modes.kl_divergence(torch.tensor([0.5, 0.5 + 1e-5]), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="two distributions"):
        modes.kl_divergence(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.25, 0.25]))


def test_numbers_without_options_have_the_published_protocol():
    """KID over 100 subsets of 1000 (Binkowski et al.), the score over 10 parts (Salimans et al.), k = 5 (Naeem)."""

    def defaults(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    assert defaults(distances.kernel_distance) == {"subsets": 100, "subset_size": 1000, "seed": 0}
    assert defaults(distances.classifier_score) == {"splits": 10, "seed": 0}
    assert defaults(distances.bootstrap) == {"repeats": 50, "seed": 0}
    assert defaults(neighbours.prdc) == {"k": 5}
    assert defaults(Comparison) == {
        "train": None, "held_out": None, "neighbours": 5, "subset_size": 1000, "repeats": 50, "seed": 0
    }  # fmt: skip


def test_the_classifier_score_is_the_mean_over_its_parts():
    """With the same scores in every part, each part has the score of the whole, and the parts do not deviate."""
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(60, 1)
    chances = special.softmax(logits.numpy(), 1)
    score = math.exp(np.mean([stats.entropy(row, chances.mean(0)) for row in chances]))
    value, deviation = distances.classifier_score(logits, splits=1)
    assert value == pytest.approx(score, rel=1e-9) and deviation == 0
    parts = [distances.classifier_score(logits, splits=4, seed=seed) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2] and parts[0][1] > 0
    assert parts[0][0] == pytest.approx(score, rel=0.02)
    assert distances.classifier_score(logits) == distances.classifier_score(logits, splits=10)
    with pytest.raises(ValueError, match="it needs 8 or more"):
        distances.classifier_score(logits[:7], splits=4)
