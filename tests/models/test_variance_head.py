"""Heads of variances and embeddings of intervals, at weights where their values are known."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hfgen.models.interval import IntervalEmbedding, check_two_times
from hfgen.models.variance_head import HeadBlock, VarianceHeadModel

PATCHES = {"sample_size": (5, 7), "in_channels": 1, "patch_size": 2, "hidden_channels": 8, "norm_num_groups": 2}


def silu(x):
    return x / (1 + np.exp(-x))


def waves(times, count, scale=1.0):
    """Cosines and then sines of the angles t scale 10000^(-i / (count / 2))."""
    angles = np.outer(times, scale * 10000.0 ** (-np.arange(count // 2) / (count // 2)))
    return np.concatenate([np.cos(angles), np.sin(angles)], 1)


def centre(conv, matrix):
    """Make a convolution the product with a matrix at each pixel."""
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[..., 1, 1] = torch.as_tensor(matrix, dtype=conv.weight.dtype)


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_a_new_head_says_one_everywhere():
    x, prediction = drawn((2, 1, 5, 7), (2, 1, 5, 7))
    head = VarianceHeadModel(**PATCHES)
    assert torch.equal(head(x, prediction, 10).sample, torch.ones(2, 1, 5, 7))
    assert torch.equal(head(x, prediction, 10, return_dict=False)[0], torch.ones(2, 1, 5, 7))
    assert head.sample_shape == (1, 5, 7)


@pytest.mark.parametrize(("log", "value"), [(-1.5, math.exp(-1.5)), (7.0, math.exp(6)), (-30.0, math.exp(-18))])
def test_variances_are_between_the_bounds(log, value):
    head = VarianceHeadModel(**PATCHES)
    head.level.bias.data.fill_(log)
    assert_close(
        head(*drawn((2, 1, 5, 7), (2, 1, 5, 7)), 10).sample, torch.full((2, 1, 5, 7), value), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("input_", [0, 1])
def test_the_head_sees_input_and_output_at_their_pixels(input_):
    """Convolutions that pass the pixels through, and blocks that change nothing, leave silu of one of the two."""
    head = VarianceHeadModel(**PATCHES)
    centre(head.conv_in, torch.eye(8))
    centre(head.conv_out, torch.eye(8)[4 * input_ : 4 * input_ + 4])
    for parameter in head.modulation.parameters():
        parameter.data.zero_()
    inputs = drawn((2, 1, 5, 7), (2, 1, 5, 7))
    output = head(*inputs, 10).sample.detach().double().numpy()
    np.testing.assert_allclose(output, np.exp(silu(inputs[input_].double().numpy())), rtol=1e-5)


def test_the_level_depends_on_each_time_by_its_waves():
    head = VarianceHeadModel(**PATCHES)
    head.level.weight.data.copy_(drawn((1, 8))[0])
    times = np.array([3.0, 700.0])
    hidden = waves(times, 8)
    for layer in (head.time_embedding.linear_1, head.time_embedding.linear_2):
        hidden = silu(hidden @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy())
    log = hidden @ head.level.weight.detach().double().numpy()[0]
    output = head(*drawn((2, 1, 5, 7), (2, 1, 5, 7)), torch.tensor(times)).sample.detach().double().numpy()
    np.testing.assert_allclose(output, np.broadcast_to(np.exp(log)[:, None, None, None], output.shape), rtol=1e-4)


def test_a_modulation_by_time_shifts_the_channels():
    """Behind convolutions that pass through, each hidden channel is shifted by its own value."""
    head = VarianceHeadModel(**PATCHES)
    shift = drawn((8,))[0]
    centre(head.conv_in, torch.eye(8))
    centre(head.conv_out, torch.eye(8)[:4])
    head.modulation.weight.data.zero_()
    head.modulation.bias.data.copy_(shift)
    zero = torch.zeros(1, 1, 4, 4)
    output = head(zero, zero, 10).sample.detach().double().numpy()[0, 0]
    cell = np.exp(silu(shift[:4].double().numpy())).reshape(2, 2)  # a patch holds its pixels row by row
    np.testing.assert_allclose(output, np.tile(cell, (2, 2)), rtol=1e-5)


def test_a_block_adds_what_numpy_computes():
    block = HeadBlock(4, 2)
    new, x, time, first, second = HeadBlock(4, 2), *drawn((2, 4, 3, 3), (2, 4), (4, 4), (4, 4))
    assert torch.equal(new(x, time), x)  # a new block is the identity
    centre(block.first, first)
    centre(block.second, second)
    with torch.no_grad():
        output = block(x, time).double().numpy()
    x, time, first, second = (value.double().numpy() for value in (x, time, first, second))
    groups = x.reshape(2, 2, 18)
    normed = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    weight, bias = (p.detach().double().numpy() for p in block.modulation.parameters())
    scale, shift = np.split(time @ weight.T + bias, 2, 1)
    inner = np.einsum("oc,bchw->bohw", first, silu(normed.reshape(x.shape)))
    inner = silu(inner * (1 + scale)[..., None, None] + shift[..., None, None])
    np.testing.assert_allclose(output, x + np.einsum("oc,bchw->bohw", second, inner), rtol=1e-4, atol=1e-5)


def test_an_interval_is_embedded_by_the_waves_of_its_length():
    embedding, times = IntervalEmbedding(4), torch.tensor([900.0, 250.0])
    assert not embedding(times, 100.0).any()  # whatever the length
    final = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    embedding.embedding.linear_2.weight.data.copy_(final)
    embedding.embedding.linear_2.bias.data.fill_(0.5)

    def expected(lengths):
        first = embedding.embedding.linear_1
        inner = waves(lengths, 256, 0.02) @ first.weight.detach().double().numpy().T
        return silu(inner + first.bias.detach().double().numpy()) @ final.double().numpy().T + 0.5

    for r, lengths in ((None, [0.0, 0.0]), (50.0, [850.0, 200.0]), (torch.tensor([900.0, 50.0]), [0.0, 200.0])):
        output = embedding(times, r).detach().double().numpy()
        np.testing.assert_allclose(output, expected(lengths), rtol=1e-4, atol=1e-5)
    embedding.reset()
    assert not embedding(times, 100.0).any()


def test_a_second_time_needs_a_network_of_two():
    check_two_times(None, False)
    check_two_times(0.0, True)
    with pytest.raises(ValueError, match="two_times=False"):
        check_two_times(0.0, False)
