"""Networks that see texture, ladders of known damage, and the number that two networks give together."""

import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file

from hfgen.commands import train_texture
from hfgen.data.images import load_images
from hfgen.metrics import damage, distances, features, measures
from hfgen.metrics.damage import LADDERS, RealImages
from hfgen.metrics.feature_network import FeatureNetwork, network_facts
from hfgen.metrics.perceptual import perceptual_distance
from hfgen.metrics.texture import Denoiser, TextureNetwork
from hfgen.options import DataArgs

BY_NAME = {ladder.name: ladder for ladder in LADDERS}
TEXTURES = {f"{name}-texture": shape for name, shape in features.BUILT_IN.items()}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def eight_bits(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTURES)
def test_a_shipped_texture_network(name: str) -> None:
    network, path = features.load_features(name), features.WEIGHTS / f"{name}.safetensors"
    images = random(3, *TEXTURES[name])
    logits, vectors = network.logits_and_features(images)
    assert path.stat().st_size <= 500_000
    assert logits is None and not network.scores and vectors.shape == (3, 64)
    torch.testing.assert_close(network(images[1:2]), vectors[1:2], rtol=1e-4, atol=1e-4)  # no image sees another
    assert network.metric_name() == f"Frechet distance ({name}, {features.file_digest(path)})"
    assert 0 < network.about["denoising_error"] < 0.5  # of the estimate 0 it is 1
    assert {"max_train_steps", "seed", "widths"} <= json.loads(network.about["recipe"]).keys()


def test_components_are_white_and_do_not_depend_on_the_scale_of_a_statistic() -> None:
    torch.manual_seed(0)
    texture, statistics = TextureNetwork(1, 8, (3, 3, 3, 3), num_features=6), random(500, 24).double()
    statistics = statistics @ random(24, 24, seed=1).double() + 3
    results = []
    for scale in (1.0, torch.logspace(-2, 2, 24, dtype=torch.float64)):
        texture.fit_components(statistics * scale)
        vectors = (statistics * scale).float() @ texture.components.weight.T + texture.components.bias
        torch.testing.assert_close(vectors.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
        torch.testing.assert_close(vectors.T.cov(), torch.eye(6), atol=1e-2, rtol=0)
        results.append(vectors)
    torch.testing.assert_close(results[0].abs(), results[1].abs(), atol=2e-2, rtol=0)  # a component may change its sign


def test_statistics_are_means_and_deviations_of_each_layer() -> None:
    torch.manual_seed(0)
    texture, images = TextureNetwork(2, 6, (3, 4, 5, 6), num_features=2), random(2, 2, 6, 6)
    maps = texture.maps(images)
    assert [tuple(m.shape) for m in maps] == [(2, 3, 6, 6), (2, 4, 6, 6), (2, 5, 3, 3), (2, 6, 3, 3)]
    second = maps[1].flatten(2).double()
    deviation = (second - second.mean(2, keepdim=True)).square().mean(2).sqrt()
    statistics = texture.statistics(images).double()
    torch.testing.assert_close(statistics[:, 6:14], torch.cat([second.mean(2), deviation], 1), atol=1e-6, rtol=1e-5)
    assert texture.statistics(torch.zeros(1, 2, 6, 6)).isfinite().all()


def test_a_texture_network_refuses_what_it_can_not_be() -> None:
    for words in ({"image_size": 7}, {"widths": (3, 3, 3)}, {"widths": (3, 3, 3, 3), "num_features": 25}):
        with pytest.raises(ValueError, match="must be even"):
            TextureNetwork(**{"in_channels": 1, "image_size": 8, **words})
    with pytest.raises(ValueError, match="fewer than 64 independent components"):
        TextureNetwork(1, 8).fit_components(random(40, 304))


def test_a_denoiser_learns_what_noise_is() -> None:
    images, args = load_images(DataArgs()).images[:200], train_texture.TextureArgs(max_train_steps=30)
    torch.manual_seed(0)
    denoiser = Denoiser(TextureNetwork(1, 8))
    before = train_texture.denoising_error(denoiser, images)
    train_texture.fit(denoiser, images, args)
    assert before > 0.95 and train_texture.denoising_error(denoiser, images) < 0.9
    clean = random(20_000, 1, 1, 1)
    noisy, noise = train_texture.noisy(clean, torch.Generator().manual_seed(0))
    levels = ((noisy - clean) / noise).flatten()
    assert 0.0499 < levels.min() < 0.06 and 0.9 < levels.max() < 1.001
    assert levels.median().item() == pytest.approx(math.sqrt(0.05), rel=0.05) and noise.std() == pytest.approx(1, 0.02)


def test_a_texture_network_is_trained_saved_and_loaded(tmp_path, capsys: pytest.CaptureFixture) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        train_texture.main(["--name", "small", "--max_train_steps", "2", "--output", str(file)])
    first, second = map(load_file, files)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert files[0].read_bytes() == files[1].read_bytes()  # also the facts, whatever order the library gives them
    network = features._domain_network(files[0])
    assert network.name == "small" and f"{network.about['denoising_error']:.4f}" in capsys.readouterr().out
    train = load_images(DataArgs()).images[torch.arange(1797) % 5 != 0]
    vectors = network.describe(train).features
    torch.testing.assert_close(vectors.T.cov(), torch.eye(64, dtype=torch.float64), atol=5e-2, rtol=0)
    assert {key.split(".")[0] for key in first} == {"layers", "components"}  # the second half is not kept


def test_a_texture_network_perceives_as_well() -> None:
    distance, images = perceptual_distance("digits-texture", 1, (8, 8)), random(2, 1, 8, 8)
    assert len(distance.maps(images)) == 4 and distance(images, images).tolist() == [0, 0]
    assert perceptual_distance("auto", 1, (8, 8)).label == features.load_features("digits").label


# --- several networks -------------------------------------------------------------------------------------------------


def test_several_networks_are_named_once_each() -> None:
    names = [network.name for network in features.choose_features("digits-texture, digits", 1, (8, 8))]
    assert names == ["digits-texture", "digits-cnn"]
    for wrong in ("digits,digits", "digits,", ",", ""):
        with pytest.raises(ValueError, match="each network once"):
            features.choose_features(wrong, 1, (8, 8))
    with pytest.raises(ValueError, match="'nothing' are not known"):
        features.choose_features("digits,nothing", 1, (8, 8))
    networks = features.choose_features("auto", 1, (8, 8))
    assert network_facts(networks)["features"] == "digits-cnn; digits-texture"
    assert network_facts(networks)["resize"] == "none"


def test_the_geometric_mean() -> None:
    mean = distances.geometric_mean
    assert mean([4.0]) == pytest.approx(4) and mean([2.0, 8.0]) == pytest.approx(4) and mean([0.0, 8.0]) == 0
    assert mean([1e-300, 1e300]) == pytest.approx(1)
    for wrong in ([], [1.0, -1e-9], [math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="finite numbers of 0 or more"):
            mean(wrong)


class Scaled(torch.nn.Module):
    """Pixels times a number."""

    def __init__(self, scale: float, slope: float):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale), requires_grad=False)
        self.slope = slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) + self.slope * images.flatten(1).roll(1, 1)) * self.scale


def joint_of(fake: torch.Tensor, real: torch.Tensor, *scales: float) -> float:
    networks = [FeatureNetwork(f"n{i}", "0", Scaled(s, i), 4, None, None) for i, s in enumerate(scales)]
    comparisons = [measures.Comparison(n, n.describe(real), n.describe(fake), repeats=0) for n in networks]
    rows = measures.measure_all(["frechet"], comparisons)
    assert [len(those) for _, those in rows] == ([1, 1, 2] if len(scales) == 2 else [1])
    return rows[-1][0].value


def test_the_order_does_not_depend_on_the_scale_of_a_networks_features() -> None:
    real = eight_bits(50, 1, 2, 2)
    sets = [(real.float() * share).round().to(torch.uint8).roll(1, 3) for share in (0.9, 0.5, 0.8, 0.2)]
    first, second = ([joint_of(fake, real, *scales) for fake in sets] for scales in ((1.0, 1.0), (1.0, 100.0)))
    assert [b / a for a, b in zip(first, second, strict=True)] == pytest.approx([100] * 4, rel=1e-4)
    assert joint_of(real, real, 1.0, 1.0) == 0
    alone = [joint_of(fake, real, 3.0) for fake in sets]
    assert sorted(range(4), key=alone.__getitem__) == [0, 2, 1, 3]


def test_the_joint_interval_repeats_the_same_images_in_both_networks() -> None:
    network = FeatureNetwork("n", "0", Scaled(1.0, 0.5), 4, None, None)
    twin = FeatureNetwork("m", "0", Scaled(10.0, 0.5), 4, None, None)
    real, fake = eight_bits(60, 1, 2, 2), eight_bits(80, 1, 2, 2)[60:].repeat(3, 1, 1, 1)
    one, other = (measures.Comparison(n, n.describe(real), n.describe(fake), repeats=20) for n in (network, twin))
    single, joint = measures.measure_frechet(one)[0], measures.measure_joint([one, other])
    assert joint.value == pytest.approx(10 * single.value, rel=1e-5)
    assert joint.interval == pytest.approx([10 * end for end in single.interval], rel=1e-4)


def test_classes_are_measured_by_the_networks_that_have_some() -> None:
    networks = features.choose_features("auto", 1, (8, 8))
    images = load_images(DataArgs()).images
    comparisons = [measures.Comparison(n, n.describe(images[:90]), n.describe(images[90:180])) for n in networks]
    names = ["class_coverage", "spectrum", "diversity"]
    rows = measures.measure_all(names, comparisons)
    assert [those[0].network.name for _, those in rows] == ["digits-cnn"] * 4 + ["digits-texture"]
    measures.check_networks(names, networks, 90, 90, 5, 50)
    with pytest.raises(ValueError, match="digits-texture has no classes"):
        measures.check_networks(names, networks[1:], 90, 90, 5, 50)
    with pytest.raises(ValueError, match="needs 65 images"):
        measures.check_networks(["frechet"], networks, 90, 64, 5, 50)


# --- ladders of damage ------------------------------------------------------------------------------------------------


def real_images(count: int = 40, channels: int = 1, side: int = 28) -> RealImages:
    return RealImages(eight_bits(count, channels, side, side), torch.arange(count) % 10)


def test_blur_keeps_flat_images_and_spreads_a_point_as_a_gaussian() -> None:
    flat = RealImages(torch.full((2, 3, 8, 8), 77, dtype=torch.uint8), torch.zeros(2))
    assert torch.equal(damage.blurred(flat, 2, 1.3), flat.images)
    point = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    point[..., 10, 10] = 255
    row = damage.blurred(RealImages(point, torch.zeros(1)), 1, 1.0)[0, 0, 10].double()
    expected = [255 / (2 * math.pi) * math.exp(-(x**2) / 2) for x in range(4)]
    assert row[10:14].tolist() == pytest.approx(expected, abs=0.8) and torch.equal(row, row.flip(0))


def test_noise_and_checkerboard_have_their_strength() -> None:
    grey = RealImages(torch.full((50, 1, 20, 20), 128, dtype=torch.uint8), torch.zeros(50))
    assert (damage.noisy(grey, 50, 0.2).double() / 127.5).std().item() == pytest.approx(0.2, rel=0.03)
    board = damage.checkered(grey, 1, 0.2)[0, 0].int() - 128
    assert board[0, :4].tolist() == [26, -26, 26, -26] and torch.equal(board, -board.roll(1, 0))  # 25.5 rounds to even
    assert board.abs().unique().tolist() in ([25, 26], [26])


def test_erased_lines_have_the_ground_colour_and_those_of_a_weaker_step() -> None:
    real = real_images(side=28)
    steps = BY_NAME["dropped strokes"].rungs(real, 40)
    ground = real.images.flatten(2).median(2).values[:, :, None, None]
    before = torch.zeros_like(real.images, dtype=torch.bool)
    for number, images in zip((1, 2, 3, 4, 6), steps, strict=True):
        same = images == ground
        assert (same | (images == real.images)).all() and (same | ~before).all()
        changed = (images != real.images).flatten(1).double().mean(1)
        assert (changed > 0.06).all() and (changed <= number * 2 / 28).all()
        before = images != real.images


def test_dropped_classes_and_copies() -> None:
    real = real_images(60)
    for number, images in zip((1, 2, 3, 5, 7), BY_NAME["dropped classes"].rungs(real, 15), strict=True):
        kept = real.images[real.labels < 10 - number]
        assert all((image == kept).flatten(1).all(1).any() for image in images)
    for copies, images in zip((2, 4, 8, 16, 32), BY_NAME["copies"].rungs(real, 32), strict=True):
        _, counts = images.flatten(1).unique(dim=0, return_counts=True)
        assert counts.tolist() == [copies] * (32 // copies)
    with pytest.raises(ValueError, match="61 images are to be damaged"):
        BY_NAME["copies"].rungs(real, 61)


def climb(networks: list[FeatureNetwork], reference: torch.Tensor, real: RealImages, count: int) -> dict[str, dict]:
    """Frechet distances over the floor by ladder and network, the floor first."""
    truth = [network.describe(reference).features for network in networks]
    result: dict[str, dict] = {}
    for ladder in LADDERS:
        sets = [real.images[:count], *ladder.rungs(real, count)]
        for network, expected in zip(networks, truth, strict=True):
            values = [distances.frechet_distance(expected, network.describe(images).features) for images in sets]
            result.setdefault(ladder.name, {})[network.name] = [value / values[0] for value in values]
    return result


def rises(values: list[float]) -> bool:
    return values == sorted(set(values))


def test_digits_climb_every_ladder() -> None:
    """The texture network and the pair see every step."""
    data, networks = load_images(DataArgs()), features.choose_features("auto", 1, (8, 8))
    held = torch.arange(len(data)) % 5 == 0
    real = RealImages(data.images[held], data.labels[held])
    ladders = climb(networks, data.images[~held], real, 360)
    for name, values in ladders.items():
        shapes, texture = values["digits-cnn"], values["digits-texture"]
        assert rises(texture), (name, texture)
        assert rises([a * b for a, b in zip(shapes, texture, strict=True)]), (name, shapes, texture)
    assert ladders["blur"]["digits-texture"][3] > 3 * ladders["blur"]["digits-cnn"][3]


def strokes(count: int, seed: int) -> torch.Tensor:
    """Return images uint8 (N, 1, 28, 28) of two or three bright arcs on black, as pens draw them."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, 24)[None, :, None]
    arcs = []
    for _ in range(3):
        ends = 6 + 16 * torch.rand(count, 3, 2, generator=generator)
        start, middle, end = (ends[:, i, None] for i in range(3))
        arcs.append((1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end)
    points = torch.cat(arcs, 1)
    grid = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij"), -1).reshape(1, -1, 2)
    nearest = torch.cdist(grid.expand(count, -1, -1), points).min(2).values
    return (255 * (2.2 - nearest).clamp(0, 1)).round().to(torch.uint8).view(count, 1, 28, 28)


def test_the_mnist_network_sees_the_texture_of_drawn_strokes() -> None:
    (network,) = features.choose_features("mnist-texture", 1, (28, 28))
    real = RealImages(strokes(300, 1), torch.arange(300) % 10)
    ladders = climb([network], strokes(600, 0), real, 300)
    for name in ("blur", "noise", "checkerboard", "dropped strokes", "copies"):
        assert rises(ladders[name]["mnist-texture"]), (name, ladders[name])


DATA = os.environ.get("HFGEN_TEST_DATA")
"""A folder with the data sets mnist and cifar10, if there is one."""


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="needs HFGEN_TEST_DATA, a folder with mnist and cifar10")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_real_images_climb_every_ladder(name: str) -> None:
    train, test = (load_images(DataArgs(dataset=f"{DATA}/{name}", dataset_split=split)) for split in ("train", "test"))
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    real = RealImages(test.images[order], test.labels[order])
    networks = features.choose_features("auto", train.channels, train.size)
    for ladder, values in climb(networks, train.images[:5000], real, 2000).items():
        assert rises(values[f"{name}-texture"]) or (name, ladder) == ("cifar10", "noise"), (ladder, values)
        assert rises([a * b for a, b in zip(*values.values(), strict=True)]), (ladder, values)
