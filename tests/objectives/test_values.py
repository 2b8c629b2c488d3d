"""Objectives where a formula of the code could not tell on itself: augmentations and draws that are chosen by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from hfgen.distributions.likelihoods import build_likelihood
from hfgen.objectives.adversarial import LOSSES, Adversarial, accuracies
from hfgen.objectives.augmentation import AUGMENTATIONS, augment
from hfgen.objectives.autoencoder_gan import AutoencoderGAN
from hfgen.objectives.autoencoding import Reconstruction
from hfgen.objectives.base import Step
from hfgen.objectives.denoising import Denoising
from hfgen.objectives.penalties import GradientPenalty, WeightClipping, mode_seeking
from hfgen.paths import LinearVPPath, StraightPath, VEPath


class Chosen:
    """A step whose uniform draws are chosen: the same row of numbers for each item."""

    def __init__(self, *numbers):
        self.numbers = torch.tensor(numbers)

    def uniform(self, stream, like):
        assert like.shape[1:] == self.numbers.shape
        return self.numbers.to(like).expand_as(like)


def augmented(name, images, *numbers):
    return augment(images, (name,), Chosen(*numbers), "real")


# --- augmentations ----------------------------------------------------------------------------------------------------


def test_colours_by_hand():
    """A grey and a coloured pixel. Brightness moves by -1/2 to 1/2; saturation of 0 leaves grey; contrast is around the
    mean of the image."""
    x = torch.tensor([[[0.2, 0.6]], [[0.2, 0.0]], [[0.2, 0.0]]])[None]  # (1, 3, 1, 2)
    middle = (0.5, 0.5, 0.5)
    torch.testing.assert_close(augmented("color", x, *middle), x)
    torch.testing.assert_close(augmented("color", x, 0.0, 0.5, 0.5), x - 0.5)
    torch.testing.assert_close(augmented("color", x, 0.75, 0.5, 0.5), x + 0.25)
    torch.testing.assert_close(augmented("color", x, 0.5, 0.0, 0.5), torch.full_like(x, 0.2))  # both pixels are grey
    vivid = torch.tensor([[[0.2, 1.0]], [[0.2, -0.2]], [[0.2, -0.2]]])[None]
    torch.testing.assert_close(augmented("color", x, 0.5, 1.0, 0.5), vivid)
    torch.testing.assert_close(augmented("color", x, 0.5, 0.5, 0.0), 0.2 + (x - 0.2) / 2)
    torch.testing.assert_close(augmented("color", x, 0.5, 0.5, 1.0), 0.2 + (x - 0.2) * 1.5)


@pytest.mark.parametrize(("side", "reach"), [(3, 0), (4, 1), (8, 1), (11, 1), (12, 2), (28, 4), (32, 4)])
def test_translations_reach_an_eighth_to_both_sides(side, reach):
    image = 1.0 + torch.arange(side * side).view(1, 1, side, side)
    for draw, shift in ((0.0, reach), (0.5, 0), (1 - 1e-6, -reach)):  # down and right is positive
        expected = torch.zeros_like(image)
        inside = slice(max(0, shift), side + min(0, shift)), slice(max(0, -shift), side - max(0, shift))
        expected[..., inside[0], :] = image[..., inside[1], :]
        assert torch.equal(augmented("translation", image, draw, 0.5), expected)
        assert torch.equal(augmented("translation", image.mT, 0.5, draw), expected.mT)


@pytest.mark.parametrize(
    ("side", "draw", "rows"),
    [
        (8, 0.0, (0, 2)),
        (8, 0.5, (2, 6)),
        (8, 1 - 1e-6, (6, 8)),
        (6, 0.0, (0, 2)),
        (6, 0.5, (2, 5)),
        (6, 1 - 1e-6, (4, 6)),
        (7, 0.5, (2, 6)),
    ],
)
def test_cutouts_are_squares_around_any_place(side, draw, rows):
    """A square of 4, 3 and 4 for sides of 8, 6 and 7. Its centre may lie on the border."""
    image = torch.ones(1, 2, side, side)
    half = {8: (2, 6), 6: (2, 5), 7: (2, 6)}[side]
    expected = image.clone()
    expected[..., slice(*rows), slice(*half)] = 0
    assert torch.equal(augmented("cutout", image, draw, 0.5), expected)
    assert torch.equal(augmented("cutout", image, 0.5, draw), expected.mT)


def test_augmentations_are_applied_in_their_order_with_numbers_of_their_own():
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    step, names = Step(2), tuple(AUGMENTATIONS)
    once = x
    for name in names:
        once = AUGMENTATIONS[name](once, step, f"real {name}")
    assert torch.equal(augment(x, names, step, "real"), once)
    assert not torch.equal(augment(x, names[::-1], step, "real"), once)
    assert not torch.equal(augment(x, names, step, "fake"), once)


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_a_score_at_the_boundary_counts_as_neither(name):
    row = LOSSES[name]
    edge = torch.tensor([row.boundary or 0.0] * 3)
    logs = accuracies(row, edge, edge)
    assert logs["accuracy_real"] == logs["accuracy_fake"] == 0
    logs = accuracies(row, edge + 1e-3, edge - 1e-3)
    assert logs["accuracy_real"] == logs["accuracy_fake"] == 1


def test_losses_are_least_where_their_papers_say():
    """Least squares at scores 1 and 0, hinge from 1 and -1 on, the others without end."""
    grid = torch.linspace(-3, 3, 61)
    loss = {name: row.discriminator(grid[:, None], grid[None]) for name, row in LOSSES.items()}
    real, fake = divmod(int(loss["least_squares"].argmin()), 61)
    assert (grid[real].item(), grid[fake].item()) == pytest.approx((1, 0), abs=1e-6)
    flat = (loss["hinge"] == 0).nonzero()
    assert (grid[flat[:, 0].min()].item(), grid[flat[:, 1].max()].item()) == pytest.approx((1, -1), abs=1e-6)
    for name in ("minimax", "non_saturating", "wasserstein", "relativistic"):
        assert divmod(int(loss[name].argmin()), 61) == (60, 0)
    for name, row in LOSSES.items():
        assert int(row.generator(torch.zeros(61) if row.paired else None, grid).argmin()) == (
            40 if name == "least_squares" else 60
        )


# --- penalties --------------------------------------------------------------------------------------------------------


def test_a_gradient_penalty_is_zero_for_slopes_of_one_only():
    for slope in (0.5, 1.0, 2.0):
        turn = SimpleNamespace(
            real=torch.zeros(3, 4),
            fake=torch.ones(3, 4),
            score=lambda x, slope=slope: slope * x.sum(1) / 2,  # the gradient has the norm `slope`
            step=Step(0),
        )
        assert GradientPenalty().value(turn).item() == pytest.approx((slope - 1) ** 2)
    assert GradientPenalty().weight == 10 and WeightClipping().bound == 0.01


def test_clipping_reaches_both_signs():
    network = nn.Linear(2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[-5.0, 0.005]]))
        network.bias.fill_(5.0)
        WeightClipping().apply(network)
    assert network.weight.tolist() == [[pytest.approx(-0.01), pytest.approx(0.005)]]
    assert network.bias.item() == pytest.approx(0.01)


def test_mode_seeking_of_a_collapsed_generator_is_finite():
    z, other = torch.zeros(2, 3), torch.ones(2, 3)
    same = torch.zeros(2, 4)
    assert mode_seeking(z, other, same, same).item() == pytest.approx(1e5, rel=1e-4)


# --- times and weights ------------------------------------------------------------------------------------------------


def test_times_lie_in_the_range_that_the_path_is_trained_on():
    objective = Denoising(StraightPath())
    t = torch.cat([objective.times(Step(n), 1000) for n in range(20)])
    assert 1e-3 <= t.min() < 1.5e-3 and 0.9995 < t.max() <= 1
    assert stats.kstest(t.numpy(), "uniform", (1e-3, 1 - 1e-3)).pvalue > 1e-3


def test_normal_times_have_quartiles_of_the_logistic_of_a_normal():
    objective = Denoising(StraightPath(), time_sampling="logit_normal", logit_mean=0.5, logit_std=2.0)
    t = torch.cat([objective.times(Step(n), 1000) for n in range(20)]).numpy()
    for share in (0.25, 0.5, 0.75):
        quantile = 1 / (1 + math.exp(-stats.norm(0.5, 2.0).ppf(share)))
        assert (t < 1e-3 + (1 - 1e-3) * quantile).mean() == pytest.approx(share, abs=0.015)


def test_min_snr_weights_by_hand():
    """On a VP path with alpha^2 = SNR / (1 + SNR): the error in eps weighs min(SNR, 5) / SNR."""
    path = LinearVPPath()
    for snr, expected in ((0.1, 1.0), (4.9, 1.0), (10.0, 0.5), (100.0, 0.05)):
        t = path.time(torch.tensor([math.log(snr)], dtype=torch.float64))
        weight = Denoising(path, "epsilon", weighting="min_snr").weight(t).item()
        assert weight == pytest.approx(expected, rel=1e-6)
        x_weight = Denoising(path, "sample", weighting="min_snr").weight(t).item()
        assert x_weight == pytest.approx(min(snr, 5.0), rel=1e-6)


def test_a_loss_of_one_dimension_by_hand():
    """Straight path, x_0 = 1, eps = 3, a network that says 0: (eps - x_0)^2 = 4, whatever t."""
    batch = {"x": torch.ones(5, 1), "noise": torch.full((5, 1), 3.0)}
    network = lambda x, timestep: torch.zeros_like(x)  # noqa: E731
    loss = Denoising(StraightPath()).loss("denoiser", {"denoiser": network}, batch, Step(0))
    assert loss.value.item() == pytest.approx(4)
    seen = []
    network = lambda x, timestep: seen.append((x, timestep)) or x * 0  # noqa: E731
    Denoising(StraightPath()).loss("denoiser", {"denoiser": network}, batch, Step(0))
    x, timestep = seen[0]
    np.testing.assert_allclose(x[:, 0], 1 + 2 * timestep / 1000, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_masked_item_has_the_mean_error_of_its_own_positions(count):
    """Errors 1, 4, 9, 16 at four positions of one channel, of which the first `count` are data."""
    x = torch.zeros(1, 4, 1)
    batch = {"x": x, "noise": torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1), "mask": torch.arange(4)[None] < count}
    network = lambda x, timestep: torch.zeros_like(x)  # noqa: E731
    loss = Denoising(StraightPath()).loss("denoiser", {"denoiser": network}, batch, Step(0))
    assert loss.value.item() == pytest.approx([1, 5 / 2, 14 / 3][count - 1])


def test_targets_that_a_few_times_dominate_are_those_of_twenty_medians():
    """On the VE path d sigma / dt is proportional to sigma: the largest is (sigma_max / sigma_min)^(1/2) medians."""
    for ratio, accepted in ((19.9, True), (20.2, False)):
        path = VEPath(0.1, 0.1 * ratio**2)
        if accepted:
            Denoising(path, "flow_prediction")
        else:
            with pytest.raises(ValueError, match="20 times larger"):
                Denoising(path, "flow_prediction")
        Denoising(path, "flow_prediction", weighting="sigmoid")


def test_parts_that_are_off_by_default_do_nothing():
    gaussian = build_likelihood("gaussian")
    plain = AutoencoderGAN(Reconstruction(gaussian))
    assert (plain.pixels, plain.perceptual, plain.feature_matching, plain.adaptive, plain.weight) == (1, 0, 0, True, 1)
    assert (
        plain.differentiates_twice and not AutoencoderGAN(Reconstruction(gaussian), adaptive=False).differentiates_twice
    )
    clipped = Denoising(LinearVPPath(), "sample", weighting="min_snr").weight(torch.tensor([0.01], dtype=torch.float64))
    assert clipped.item() == 5 and WeightClipping().bound == 0.01 and GradientPenalty().weight == 10


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_draws_have_the_distribution_of_their_names(shards):
    step = Step(5, shard=shards - 1, shards=shards)
    like = torch.empty(5000, 2)
    assert stats.kstest(step.randn("a", like).flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(step.uniform("b", like).flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(step.rand("c", 5000).numpy(), "uniform").pvalue > 1e-3


def test_the_diversity_of_two_items_is_the_ratio_of_two_distances():
    networks = {
        "generator": lambda z: SimpleNamespace(sample=torch.tensor([[0.0], [6.0]])),
        "discriminator": lambda x: SimpleNamespace(logits=x.sum(1)),
    }
    loss = Adversarial("hinge", 2).loss("generator", networks, {"x": torch.tensor([[1.0], [3.0]])}, Step(0))
    assert loss.logs["diversity"].item() == pytest.approx(3)


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_diversity_is_a_ratio_of_distances_of_any_size(size):
    """Generated items that are twice as far apart as the real ones."""
    real = size * torch.tensor([[0.0], [1.0], [3.0]])
    networks = {
        "generator": lambda z: SimpleNamespace(sample=2 * real + 5),
        "discriminator": lambda x: SimpleNamespace(logits=x.sum(1)),
    }
    loss = Adversarial("hinge", 2).loss("generator", networks, {"x": real}, Step(0))
    assert loss.logs["diversity"].item() == pytest.approx(2, rel=1e-3)
    loss = Adversarial("hinge", 2).loss("generator", networks, {"x": torch.ones(3, 1)}, Step(0))
    assert math.isfinite(loss.logs["diversity"].item())
    alone = {**networks, "generator": lambda z: SimpleNamespace(sample=torch.zeros(1, 1))}
    assert "diversity" not in Adversarial("hinge", 2).loss("generator", alone, {"x": torch.ones(1, 1)}, Step(0)).logs
