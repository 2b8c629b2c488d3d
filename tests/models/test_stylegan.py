"""Laws of style-based networks: demodulation, equalised rates, filters, noise, styles of layers, deviation."""

import math

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from accelerate.utils import convert_to_fp32
from torch.testing import assert_close

from hfgen.models.build_stylegan import build_stylegan
from hfgen.models.generators import upsample
from hfgen.models.style_layers import (
    EqualisedConv2d,
    EqualisedLinear,
    MinibatchDeviation,
    ModulatedConv2d,
    activation,
    demodulation,
    fir_halve,
    normalise,
)
from hfgen.models.stylegan import StyleDiscriminatorModel, StyleGeneratorModel


def noise_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator_of(size=8, channels=2, classes=None, **options):
    """A small generator whose noise strengths, biases and constants all matter."""
    torch.manual_seed(0)
    options = {"block_out_channels": (6, 8), "latent_channels": 5, "style_dim": 7, "mapping_layers": 2, **options}
    model = StyleGeneratorModel(sample_size=size, out_channels=channels, num_class_embeds=classes, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("noise_strength", "bias")):
                parameter += 0.3 * torch.randn(parameter.shape)
    return model


# --- layers -----------------------------------------------------------------------------------------------------------


def test_demodulated_weights_have_unit_norm_for_each_output_map():
    weight, scales = noise_of(5, 3, 3, 3).double(), noise_of(4, 3, seed=1).double()
    factors = demodulation(weight, scales)
    for image in range(4):
        for output in range(5):
            w = np.array([[[weight[output, i, a, b].item() * scales[image, i].item() for b in range(3)]
                           for a in range(3)] for i in range(3)])  # fmt: skip
            assert abs(np.linalg.norm(w * factors[image, output].item()) - 1) < 1e-6


@pytest.mark.parametrize("demodulate", [True, False])
def test_a_modulated_convolution_is_that_of_each_image_with_its_own_weights(demodulate):
    torch.manual_seed(0)
    layer = ModulatedConv2d(3, 5, 3, 4, demodulate).double()
    x, style = noise_of(2, 3, 6, 7).double(), noise_of(2, 4, seed=1).double()
    found = layer(x, style)
    for image in range(2):
        scales = layer.affine.weight @ style[image] / 2 + layer.affine.bias  # fan-in 4
        weight = layer.weight * scales[:, None, None] / math.sqrt(27)
        if demodulate:
            weight = weight / weight.flatten(1).norm(dim=1)[:, None, None, None]
        assert_close(found[image : image + 1], F.conv2d(x[image : image + 1], weight, padding=1), rtol=1e-6, atol=1e-6)
    assert layer.affine.bias.eq(1).all()  # scales are 1 on average


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_an_equalised_rate_is_the_scale_of_he_and_learns_at_its_speed(rate):
    torch.manual_seed(0)
    layer, x = EqualisedLinear(400, 300, rate), noise_of(200, 400, seed=9)
    weight, bias = layer.used()
    assert abs(weight.std().item() * math.sqrt(400) - 1) < 0.02  # N(0, 1 / fan-in): He's with the activation's gain
    assert abs(activation(layer(x)).square().mean().item() - 1) < 0.05
    assert_close(layer(x), x @ weight.T + bias)
    before = weight.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    layer(x).sum().backward()
    optimizer.step()
    moved = (layer.used()[0] - before).abs() * math.sqrt(400)
    assert_close(moved, torch.full_like(moved, 0.1 * rate), rtol=0.02, atol=0)  # with Adam's epsilon
    assert_close(layer.used()[1].abs(), torch.full((300,), 0.1 * rate), rtol=1e-3, atol=1e-6)
    conv = EqualisedConv2d(20, 30, 3)
    assert abs(conv.used()[0].std().item() * math.sqrt(180) - 1) < 0.03


def test_doubling_and_halving_are_the_fir_filter_of_scipy():
    taps, image = np.array([1.0, 3, 3, 1]), noise_of(6, 10).double()
    edge = np.pad(image.numpy(), 2, mode="edge")
    for axis in (0, 1):
        edge = scipy.signal.upfirdn(taps / 4, edge, up=2, axis=axis)
    crop = (edge.shape[0] - 12) // 2, (edge.shape[1] - 20) // 2
    doubled = upsample(image[None, None], "bilinear")[0, 0].numpy()
    np.testing.assert_allclose(doubled, edge[crop[0] : crop[0] + 12, crop[1] : crop[1] + 20], atol=1e-12)
    halved = fir_halve(image[None, None])[0, 0].numpy()
    inner = image.numpy()
    for axis in (0, 1):
        inner = scipy.signal.upfirdn(taps / 8, inner, down=2, axis=axis)  # output i reads the inputs 2 i - 3 to 2 i
    np.testing.assert_allclose(halved[1:-1, 1:-1], scipy_inner(image.numpy(), taps / 8), atol=1e-12)
    assert_close(fir_halve(torch.ones(1, 1, 4, 6)), torch.ones(1, 1, 2, 3))


def scipy_inner(image, taps):
    """The valid convolution with taps along both axes, every other value."""
    for axis in (0, 1):
        image = np.apply_along_axis(lambda row: np.convolve(row, taps, "valid")[1::2], axis, image)
    return image


def test_the_deviation_is_that_of_each_group_of_images():
    x = noise_of(6, 2, 3, 4).double()
    found = MinibatchDeviation(4)(x)  # 4 does not divide 6, so groups have 3 images: 0, 2, 4 and 1, 3, 5
    assert found.shape == (6, 3, 3, 4) and torch.equal(found[:, :2], x)
    for image in range(6):
        group = x[image % 2 :: 2].numpy()
        expected = group.std(axis=0).mean()
        assert_close(found[image, 2], torch.full((3, 4), expected).double(), rtol=1e-6, atol=1e-6)
    assert MinibatchDeviation(4)(x[:1])[0, 2].abs().max() <= 1e-4
    assert_close(normalise(x.flatten(1)).square().mean(1), torch.ones(6).double())


# --- generator --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, (8, 13), 28, (30, 17)])
def test_images_have_any_size_and_channels(size):
    for patch in (1, 2):
        generator, discriminator = build_stylegan("xs", size, 3, 4, num_classes=2, patch_size=patch)
        labels = torch.tensor([0, 1])
        images = generator(noise_of(2, 4), labels, noise=noise_of(2, generator.noise_size)).sample
        assert tuple(images.shape[1:]) == generator.sample_shape == discriminator.sample_shape
        assert discriminator(images, labels).logits.shape == (2,)
        side = min(generator.constant.shape[2:])
        assert 4 <= side <= 8


def test_without_noise_or_with_strength_0_images_depend_on_latents_alone():
    model, z = generator_of(), noise_of(3, 5)
    quiet = model(z).sample
    loud = model(z, noise=noise_of(3, model.noise_size)).sample
    assert (quiet - loud).abs().max() > 0.01
    assert torch.equal(model(z, noise=torch.zeros(3, model.noise_size)).sample, quiet)
    for layer in model.layers:
        torch.nn.init.zeros_(layer.noise_strength)
    for seed in range(2):
        assert torch.equal(model(z, noise=noise_of(3, model.noise_size, seed=seed)).sample, quiet)


def test_each_layer_has_its_own_noise_map():
    model, z = generator_of(), noise_of(1, 5)
    start = 0
    assert model.noise_shapes == [(4, 4), (8, 8), (8, 8)] and model.noise_size == 16 + 64 + 64
    for i, shape in enumerate(model.noise_shapes):
        noise = torch.zeros(1, model.noise_size)
        noise[:, start : start + math.prod(shape)] = 1.0
        start += math.prod(shape)
        others = generator_of()
        torch.nn.init.zeros_(others.layers[i].noise_strength)
        assert not torch.equal(model(z, noise=noise).sample, model(z).sample)
        assert torch.equal(others(z, noise=noise).sample, others(z).sample)


def test_styles_of_latents_make_the_same_images_and_mixing_a_latent_with_itself_changes_nothing():
    model, z, other = generator_of(classes=3), noise_of(4, 5), noise_of(4, 5, seed=1)
    labels = torch.tensor([0, 1, 2, 0])
    output = model(z, labels)
    assert output.styles.shape == (4, 4, 7) and model.num_layers == 4
    assert torch.equal(model(styles=output.styles).sample, output.sample)
    only = model(z, labels, synthesis=False)
    assert only.sample is None and torch.equal(only.styles, output.styles)
    assert torch.equal(model(z, labels, mixed=z, crossover=torch.tensor([0, 1, 2, 4])).sample, output.sample)
    mixed = model(z, labels, mixed=other, crossover=torch.tensor([0, 1, 3, 4])).styles
    second = model(other, labels).styles
    for image, place in enumerate((0, 1, 3, 4)):
        assert torch.equal(mixed[image, :place], output.styles[image, :place])
        assert torch.equal(mixed[image, place:], second[image, place:])


def test_each_row_of_styles_is_read_by_the_convolutions_that_the_generator_names():
    model = generator_of()
    styles = noise_of(1, 4, 7)
    image = model(styles=styles).sample
    for row, convolutions in enumerate(model.modulations()):
        moved = styles.clone()
        moved[:, row] += 1
        assert (model(styles=moved).sample - image).abs().max() > 1e-3
        still = generator_of()
        for conv in still.modulations()[row]:
            torch.nn.init.zeros_(conv.affine.weight)
        assert torch.equal(still(styles=moved).sample, still(styles=styles).sample)
        assert convolutions
    assert [len(each) for each in model.modulations()] == [1, 2, 1, 1]


def test_the_image_is_the_sum_of_the_doubled_images_of_the_levels():
    model, styles = generator_of(), noise_of(2, 4, 7)
    w = styles.unbind(1)
    first = model.layers[0](model.constant.expand(2, -1, -1, -1), w[0], None)
    x = model.layers[1](F.interpolate(first, scale_factor=2, mode="bilinear"), w[1], None)
    x = model.layers[2](x, w[2], None)
    low, high = model.to_image[0](first, w[1]), model.to_image[1](x, w[3])
    assert_close(model(styles=styles).sample, F.interpolate(low, scale_factor=2, mode="bilinear") + high)


def test_images_have_a_gradient_by_the_styles_of_the_output_in_mixed_precision():
    model = generator_of()
    with torch.autocast("cpu", torch.bfloat16):
        output = convert_to_fp32(model(noise_of(2, 5)))  # as accelerate does
    (gradient,) = torch.autograd.grad(output.sample.sum(), output.styles, create_graph=True)
    exact = model(noise_of(2, 5))
    (expected,) = torch.autograd.grad(exact.sample.sum(), exact.styles)
    assert_close(gradient, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    gradient.square().sum().backward()
    half = generator_of().to(torch.bfloat16)
    assert half(noise_of(2, 5).to(torch.bfloat16)).sample.dtype == torch.bfloat16


def test_what_does_not_fit_is_refused():
    model = generator_of()
    for call, message in (
        (lambda: model(), "Give latents z or styles, not both"),
        (lambda: model(noise_of(2, 5), mixed=noise_of(2, 5)), "mixed together with crossover"),
        (lambda: model(noise_of(2, 4)), r"latents have shape \(2, 4\)"),
        (lambda: model(styles=noise_of(2, 3, 7)), r"styles have shape \(2, 3, 7\)"),
        (lambda: model(noise_of(2, 5), noise=noise_of(2, 3)), r"noise has shape \(2, 3\); give \(2, 144\)"),
        (lambda: model(noise_of(2, 5), torch.tensor([0, 1])), "network without classes"),
        (lambda: build_stylegan("xs", 7, 1), "can't make 7 x 7 images"),
        (lambda: build_stylegan("xs", 8, 1, patch_size=4), "patch_size=4 leaves fewer than 4 positions"),
        (lambda: build_stylegan("xs", 8, 0), "channels=0 must be at least 1"),
        (lambda: StyleGeneratorModel(mapping_layers=0), "mapping_layers=0"),
        (lambda: StyleDiscriminatorModel(group_size=0), "group_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# --- discriminator ----------------------------------------------------------------------------------------------------


def test_features_of_an_image_do_not_depend_on_the_batch_and_its_score_does_by_the_deviation():
    torch.manual_seed(0)
    model = StyleDiscriminatorModel(8, 1, (6, 8), group_size=4).double()
    x = noise_of(4, 1, 8, 8).double()
    whole = model(x)
    for image in range(4):
        alone = model(x[image : image + 1])
        assert_close(alone.features[0], whole.features[image])
        assert not torch.allclose(alone.logits[0], whole.logits[image])
    for batch in (x[:1].repeat(4, 1, 1, 1), x[:1]):  # equal images have no deviation
        assert_close(model(batch).logits, model(x[:1]).logits.expand(len(batch)), rtol=1e-3, atol=1e-4)


def test_a_class_adds_the_product_of_its_vector_and_the_features():
    torch.manual_seed(0)
    model = StyleDiscriminatorModel(8, 1, (6, 8), num_class_embeds=3)
    x = noise_of(4, 1, 8, 8)
    h = model.pool(model(x, torch.zeros(4, dtype=torch.long)).features)
    scores = [model(x, torch.full((4,), label)).logits for label in range(3)]
    vectors = model.head.classes.weight
    assert_close(scores[1] - scores[0], h @ (vectors[1] - vectors[0]) / math.sqrt(8), rtol=1e-4, atol=1e-5)
