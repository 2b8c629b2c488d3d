"""Laws of the masked autoencoder: what is hidden changes nothing, shares of masks, places of tokens, sizes."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hfgen.models.build_masked_autoencoder import build_masked_autoencoder
from hfgen.models.masked_autoencoder import MaskedAutoencoderModel
from hfgen.models.patches import hidden_patches, patch_moments, visible_count, visible_patches

SHAPES = [((8, 8), 1, 2), ((6, 12), 3, 3), ((4, 4), 2, 1)]
"""Sizes of images, their channels, and sides of patches."""


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(size=(8, 8), channels=1, patch=2, **options):
    """A network all of whose parameters are random."""
    network = MaskedAutoencoderModel(size, channels, patch, 16, 2, 2, 8, 1, 2, **options)
    for number, parameter in enumerate(network.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    return network.eval()


def masks(network, count=3, ratio=0.75, seed=1):
    numbers = torch.rand(count, network.grid.length, generator=torch.Generator().manual_seed(seed))
    return visible_patches(numbers, ratio)


def pixels(network, visible):
    """Which pixels are hidden, (B, 1, H, W), by a loop over the patches."""
    height, width = network.sample_shape[1:]
    side, result = network.config.patch_size, torch.ones(len(visible), 1, height, width, dtype=torch.bool)
    for row, numbers in enumerate(visible.tolist()):
        for number in numbers:
            top, left = (number // (width // side)) * side, (number % (width // side)) * side
            result[row, :, top : top + side, left : left + side] = False
    return result


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "ratio", "hidden"), [(16, 0.75, 12), (49, 0.75, 37), (196, 0.75, 147), (10, 0.9, 9)]
)
def test_the_share_of_hidden_patches_is_exact(length, ratio, hidden):
    numbers = torch.rand(200, length, generator=torch.Generator().manual_seed(0))
    visible = visible_patches(numbers, ratio)
    assert visible.shape == (200, length - hidden) and visible_count(length, ratio) == length - hidden
    mask = hidden_patches(visible, length)
    assert (mask.sum(1) == hidden).all()
    assert (visible[:, 1:] > visible[:, :-1]).all()  # each once, in the order of the patches
    shown = 1 - mask.double().mean(0)  # each patch is visible as often as any other, within 5 standard errors
    assert (shown - (length - hidden) / length).abs().max() < 5 * 0.5 / 200**0.5


@pytest.mark.parametrize(("length", "ratio"), [(4, 0.1), (4, 0.9), (1, 0.5)])
def test_a_share_that_hides_nothing_or_everything_is_refused(length, ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio={ratio} hides \d of {length} patches"):
        visible_count(length, ratio)


def test_moments_of_a_patch_are_numpys():
    patches = normal(2, 3, 5).double()
    mean, deviation = patch_moments(patches)
    assert_close(mean[..., 0].numpy(), patches.numpy().mean(2))
    assert_close(deviation[..., 0].numpy(), np.sqrt(patches.numpy().var(2) + 1e-6))
    assert float(patch_moments(torch.ones(1, 1, 4))[1]) == pytest.approx(1e-3)


# --- what is hidden ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "channels", "patch"), SHAPES)
def test_hidden_pixels_change_neither_tokens_nor_predictions(size, channels, patch):
    network = small(size, channels, patch)
    x, visible = normal(3, channels, *size), masks(small(size, channels, patch))
    hidden = pixels(network, visible)
    other = torch.where(hidden, 1e4 * normal(*x.shape, seed=5), x)
    assert torch.equal(network.encode(x, visible), network.encode(other, visible))
    assert torch.equal(network(x, visible).sample, network(other, visible).sample)
    seen = torch.where(hidden, x, normal(*x.shape, seed=5))  # what is visible counts
    assert not torch.equal(network.encode(x, visible), network.encode(seen, visible))


@pytest.mark.parametrize(("size", "channels", "patch"), SHAPES)
def test_gradients_reach_visible_pixels_alone(size, channels, patch):
    network, x = small(size, channels, patch), normal(3, channels, *size).requires_grad_()
    visible = masks(network)
    (gradient,) = torch.autograd.grad(network(x, visible).sample.square().sum(), x)
    hidden = pixels(network, visible).expand_as(gradient)
    assert (gradient[hidden] == 0).all() and (gradient[~hidden] != 0).all()


def test_the_encoder_sees_visible_tokens_alone():
    network, seen = small(), []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    network(normal(2, 1, 8, 8), masks(network, 2))
    assert seen == [4, 4]


# --- places -----------------------------------------------------------------------------------------------------------


def test_all_patches_visible_is_no_mask():
    network, x = small(), normal(2, 1, 8, 8)
    everything = torch.arange(16).expand(2, 16)
    assert_close(network.encode(x, everything), network.encode(x))
    assert_close(network(x, everything).sample, network(x).sample)


def test_the_order_of_the_visible_patches_does_not_matter():
    network, x = small(), normal(2, 1, 8, 8)
    visible, order = masks(network, 2), torch.tensor([2, 0, 3, 1])
    assert_close(network.encode(x, visible[:, order]), network.encode(x, visible)[:, order])
    assert_close(network(x, visible[:, order]).sample, network(x, visible).sample)


def test_the_place_of_a_patch_matters():
    network, x = small(), torch.zeros(1, 1, 8, 8)  # all patches are alike
    first, second = (network.encode(x, torch.tensor([[number]])) for number in (0, 5))
    assert (first - second).abs().max() > 1e-3
    made = network.decode(first, torch.tensor([[0]])), network.decode(first, torch.tensor([[5]]))
    assert (made[0] - made[1]).abs().max() > 1e-3


def test_a_token_goes_to_its_own_patch():
    """Of a decoder without attention between patches, the prediction of a patch depends on its token alone."""
    network = small()
    for block in network.decoder_blocks:
        block.attention.out.weight.data.zero_()
    visible, x = torch.tensor([[3, 7]]), normal(1, 1, 8, 8)
    tokens = network.encode(x, visible)
    changed = tokens.clone()
    changed[:, 1] += 1
    before, after = (network.decode(each, visible) for each in (tokens, changed))
    different = (before != after)[0, 0]
    assert different[2:4, 6:8].all() and int(different.sum()) == 4  # patch 7 of 4 x 4: row 1, column 3


# --- networks ---------------------------------------------------------------------------------------------------------


def test_memory_saved_changes_no_gradient():
    gradients = []
    for saves in (False, True):
        network = small().train()
        if saves:
            network.enable_gradient_checkpointing()
        network(normal(2, 1, 8, 8), masks(network, 2)).sample.square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert_close(first, second)


@pytest.mark.parametrize(("size", "millions"), [("xs", 0.5), ("s", 2.2), ("m", 6.9), ("l", 23)])
def test_sizes_have_the_documented_parameters(size, millions):
    with torch.device("meta"):
        network = build_masked_autoencoder(size, 32, 3)
    assert network.num_parameters() / 1e6 == pytest.approx(millions, rel=0.06)


@pytest.mark.parametrize(
    ("resolution", "patch"), [(8, 2), (28, 4), (32, 4), (64, 8), (224, 14), (256, 16), ((8, 12), 2), (7, 1), (9, 3)]
)
def test_the_default_patch_is_the_smallest_with_few_of_them(resolution, patch):
    with torch.device("meta"):
        assert build_masked_autoencoder("xs", resolution, 1).config.patch_size == patch


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="are not tiled by patch_size=3"):
        build_masked_autoencoder("xs", 8, 1, 3)
    with pytest.raises(ValueError, match="size='huge' is not known"):
        build_masked_autoencoder("huge", 8, 1)
    with pytest.raises(ValueError, match=r"hidden_size=10 must be a multiple of 4 .* 2 attention heads, such as 8"):
        MaskedAutoencoderModel(8, 1, 2, 10, 1, 2)
    with pytest.raises(ValueError, match="decoder_hidden_size=8 must be"):
        MaskedAutoencoderModel(8, 1, 2, 16, 1, 2, 8, 1, 3)
    with pytest.raises(ValueError, match=r"sample has shape \(1, 1, 4, 4\); this network takes \(1, 8, 8\)"):
        small()(torch.zeros(1, 1, 4, 4))
