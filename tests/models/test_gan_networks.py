"""Laws of generators and discriminators: calls, sizes, classes, spectra, initial weights."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from hfgen.models.build_gan import SIZES, build_gan
from hfgen.models.discriminators import (
    DCGANDiscriminatorModel,
    MLPDiscriminatorModel,
    ProjectionHead,
    ResidualDiscriminatorModel,
    ResNetDiscriminatorModel,
)
from hfgen.models.gan_layers import GAIN, DownsampleBlock, InvertedBottleneck
from hfgen.models.generators import (
    ConditionalBatchNorm2d,
    DCGANGeneratorModel,
    MLPGeneratorModel,
    ResidualGeneratorModel,
    ResNetGeneratorModel,
)

RESIDUAL = {"block_out_channels": (8, 16), "group_channels": 4, "hidden_dim": 12}
GENERATORS = {
    "mlp": lambda **o: MLPGeneratorModel(hidden_dims=(8, 16), **o),
    "dcgan": lambda **o: DCGANGeneratorModel(block_out_channels=(8, 16), **o),
    "resnet": lambda **o: ResNetGeneratorModel(block_out_channels=(8, 16), **o),
    "residual": lambda **o: ResidualGeneratorModel(**{**RESIDUAL, **o}),
}
DISCRIMINATORS = {
    "mlp": lambda **o: MLPDiscriminatorModel(hidden_dims=(16, 8), **o),
    "dcgan": lambda **o: DCGANDiscriminatorModel(block_out_channels=(8, 16), **{"norm": "none", **o}),
    "resnet": lambda **o: ResNetDiscriminatorModel(block_out_channels=(8, 16), **o),
    "residual": lambda **o: ResidualDiscriminatorModel(**{**RESIDUAL, **o}),
}
ARCHITECTURES = tuple(GENERATORS)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def perturb(network):
    """Move every parameter of a network, so that none is zero or one, and return the network."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def pair_of(architecture, size=8, channels=2, classes=None, **options):
    torch.manual_seed(0)
    shared = {"sample_size": size, "num_class_embeds": classes}
    generator = GENERATORS[architecture](out_channels=channels, latent_channels=5, **shared)
    return perturb(generator), perturb(DISCRIMINATORS[architecture](in_channels=channels, **shared, **options))


def normal(*shape, seed=2, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- shapes and calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 28, (30, 26), (5, 9)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@each_architecture
def test_any_size_and_number_of_channels_fits(architecture, channels, size):
    generator, discriminator = pair_of(architecture, size, channels)
    height, width = (size, size) if isinstance(size, int) else size
    sample = generator(normal(3, 5)).sample
    assert sample.shape == (3, channels, height, width)
    output = discriminator(sample)
    assert output.logits.shape == (3,) and output.features.shape[0] == 3 and output.features.ndim == 4
    assert torch.equal(generator(normal(3, 5), return_dict=False)[0], sample)
    assert all(map(torch.equal, discriminator(sample, return_dict=False), (output.logits, output.features)))


@each_architecture
def test_every_pixel_is_made_and_judged(architecture):
    generator, discriminator = (network.eval() for network in pair_of(architecture, (7, 9)))
    samples = generator(normal(64, 5)).sample
    assert (samples.std(0) > 0).all() and (architecture == "residual" or samples.abs().max() <= 1)
    x = samples.detach().requires_grad_()
    discriminator(x).logits.sum().backward()
    assert (x.grad.abs().amax(0) > 0).all()


@each_architecture
def test_networks_are_built_without_memory(architecture):
    with torch.device("meta"):
        generator, discriminator = pair_of(architecture, (12, 9), 3, classes=4, spectral_norm=True)
        y = torch.zeros(2, dtype=torch.long)
        assert generator.eval()(torch.zeros(2, 5), y).sample.shape == (2, 3, 12, 9)
        assert discriminator.eval()(torch.zeros(2, 3, 12, 9), y).logits.shape == (2,)


@each_architecture
def test_each_image_is_made_and_judged_by_itself(architecture):
    generator, discriminator = (network.double().eval() for network in pair_of(architecture, classes=3))
    z, y = normal(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    samples = generator(z, y).sample
    assert_close(generator(z[2:3], y[2:3]).sample, samples[2:3])
    assert_close(discriminator.train()(samples[2:3], y[2:3]).logits, discriminator(samples, y).logits[2:3])


@each_architecture
def test_everything_learns(architecture):
    """DistributedDataParallel waits for the gradient of every parameter."""
    for spectral_norm in (False, True):
        generator, discriminator = pair_of(architecture, classes=2, spectral_norm=spectral_norm)
        y = torch.tensor([0, 1, 0, 1])
        discriminator(generator(normal(4, 5), y).sample, y).logits.square().mean().backward()
        for network in (generator, discriminator):
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@each_architecture
def test_gradients_of_gradients_are_right(architecture):
    """R1 and gradient penalties differentiate the gradient of a score."""
    _, discriminator = pair_of(architecture, classes=2)
    discriminator.double()
    x, y = normal(2, 2, 8, 8, dtype=torch.float64).requires_grad_(), torch.tensor([0, 1])

    def penalty():
        (slope,) = torch.autograd.grad(discriminator(x, y).logits.sum(), x, create_graph=True)
        return slope.square().sum()

    parameters = list(discriminator.parameters())
    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    assert sum(g is not None and bool(g.any()) for g in gradients) >= len(parameters) // 3
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction, base = normal(*parameter.shape, dtype=torch.float64), parameter.detach().clone()
        with torch.no_grad():
            ends = []
            for side in (1, -1):
                parameter.copy_(base + side * 1e-6 * direction)
                with torch.enable_grad():
                    ends.append(penalty().item())
            parameter.copy_(base)
        expected = 0.0 if gradient is None else (gradient * direction).sum().item()
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(expected, rel=1e-4, abs=1e-4)


@each_architecture
def test_a_saved_network_is_the_same_bit_for_bit(tmp_path, architecture):
    for spectral_norm in (False, True):
        networks = pair_of(architecture, (9, 7), classes=3, spectral_norm=spectral_norm)
        y = torch.tensor([0, 1, 2])
        for network, x in zip(networks, (normal(3, 5), normal(3, 2, 9, 7)), strict=True):
            network(x, y)  # moves running statistics and power iterations
            network.eval().save_pretrained(tmp_path)
            again = type(network).from_pretrained(tmp_path)
            assert again.state_dict().keys() == network.state_dict().keys()
            assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())
            outputs = again(x, y, return_dict=False)[0], network(x, y, return_dict=False)[0]
            if spectral_norm:  # the largest singular value depends on where in memory a weight lies, in the last bit
                assert_close(*outputs)
            else:
                assert torch.equal(*outputs)


def test_wrong_inputs_are_refused_by_name():
    generator, discriminator = pair_of("mlp")
    with pytest.raises(ValueError, match=r"latents have shape \(2, 4\); this generator takes \(B, 5\)"):
        generator(normal(2, 4))
    with pytest.raises(ValueError, match=r"latents have shape \(2, 5, 1, 1\)"):
        generator(normal(2, 5, 1, 1))
    with pytest.raises(ValueError, match=r"images have shape \(2, 2, 8, 9\); this discriminator takes \(B, 2, 8, 8\)"):
        discriminator(normal(2, 2, 8, 9))
    for network, x in ((generator, normal(2, 5)), (discriminator, normal(2, 2, 8, 8))):
        with pytest.raises(ValueError, match="without classes"):
            network(x, torch.tensor([0, 1]))
    for network, x in zip(pair_of("mlp", classes=2), (normal(2, 5), normal(2, 2, 8, 8)), strict=True):
        with pytest.raises(ValueError, match="class_labels are needed"):
            network(x)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_mlps_are_their_layers_and_make_points():
    generator = MLPGeneratorModel(1, 2, 3, (4, 5), "none").double()
    discriminator = MLPDiscriminatorModel(1, 2, (5, 4)).double()
    x = z = normal(6, 3, dtype=torch.float64) * 10
    layers = [layer for layer in generator.layers if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [4, 5, 2]
    for layer in layers[:-1]:
        x = layer(x)
        x = torch.maximum(x, 0.2 * x)
    points = generator(z).sample
    assert_close(points.flatten(1), layers[-1](x))
    h = points.flatten(1)
    for layer in (layer for layer in discriminator.layers if isinstance(layer, nn.Linear)):
        h = layer(h)
        h = torch.maximum(h, 0.2 * h)
    output = discriminator(points)
    assert_close(output.features.flatten(1), h)
    assert_close(output.logits, discriminator.head.score(h).squeeze(1))


def test_dcgan_is_its_layers():
    generator, discriminator = pair_of("dcgan", 8, 1, norm="batch")
    z = normal(6, 5)
    maps = [type(layer).__name__ for layer in generator.layers]
    assert maps == ["BatchNorm2d", "ReLU", "ConvTranspose2d"] * 2 + ["Tanh"]
    maps = [type(layer).__name__ for layer in discriminator.layers]
    assert maps == ["Conv2d", "LeakyReLU", "Conv2d", "BatchNorm2d", "LeakyReLU"]
    norm1, _, up1, norm2, _, up2, _ = generator.layers
    x = F.linear(z, generator.project.weight).view(6, 16, 2, 2)
    for norm, up in ((norm1, up1), (norm2, up2)):
        x = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True).relu()
        x = F.conv_transpose2d(x, up.weight, stride=2, padding=1)
    assert_close(generator(z).sample, x.tanh())
    fresh = DCGANGeneratorModel(28, 1, 64, (64, 128))
    for layer in (fresh.project, *(layer for layer in fresh.layers if isinstance(layer, nn.ConvTranspose2d))):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1) and abs(layer.weight.mean()) < 2e-3
    assert fresh.layers[0].weight.mean().item() == pytest.approx(1, abs=0.01)


def test_a_residual_block_without_norm_starts_as_the_identity_and_its_convolution_is_grouped():
    block, x = InvertedBottleneck(8, 2, 4, 1), normal(3, 8, 5, 5)
    assert torch.equal(block(x), x)
    assert block.conv2.groups == 4 and block.conv2.weight.shape == (16, 4, 3, 3)
    assert block.conv3.bias is None and not block.conv1.bias.any()
    perturb(block).double()
    h = F.leaky_relu(F.conv2d(x.double(), block.conv1.weight, block.conv1.bias), 0.2)
    parts = [
        F.conv2d(h[:, i : i + 4], block.conv2.weight[i : i + 4], block.conv2.bias[i : i + 4], padding=1)
        for i in range(0, 16, 4)
    ]
    h = F.leaky_relu(torch.cat(parts, 1), 0.2)
    assert_close(block(x.double()), x.double() + F.conv2d(h, block.conv3.weight))
    with pytest.raises(ValueError, match="group_channels=5 must divide expansion x width = 2 x 8 = 16"):
        InvertedBottleneck(8, 2, 5, 1)


def test_halving_is_average_pooling():
    for dtype in (torch.float64, torch.bfloat16):
        x = normal(3, 4, 10, 6).to(dtype)
        assert_close(DownsampleBlock()(x), F.avg_pool2d(x, 2))


@pytest.mark.parametrize("blocks", [1, 16])
def test_a_leaky_relu_and_a_fresh_convolution_keep_the_size_but_for_fixup(blocks):
    block, x = InvertedBottleneck(64, 4, 256, blocks), normal(8, 64, 16, 16)
    h = F.leaky_relu(x, 0.2) * GAIN
    assert h.square().mean().item() == pytest.approx(1, rel=0.02)
    expected = GAIN**2 * blocks**-0.5  # of weights N(0, (GAIN L^-1/4)^2 / fan-in)
    assert block.conv1(x).square().mean().item() == pytest.approx(expected, rel=0.05)


def test_residual_networks_are_linear_between_and_beside_their_blocks():
    """At the start, when blocks are the identity."""
    shared = {"sample_size": 4, "patch_size": 1, "hidden_dim": 6}
    generator = GENERATORS["residual"](out_channels=1, latent_channels=5, **shared).double()
    discriminator = DISCRIMINATORS["residual"](in_channels=1, **shared).double()
    z, mapping, project = 5 * normal(3, 5, dtype=torch.float64), generator.mapping, generator.project
    x = project(F.leaky_relu(mapping(z), 0.2)).view(3, 16, 2, 2)
    x = F.interpolate(generator.narrow[0](x), scale_factor=2, mode="bilinear")
    x = generator.conv_out(x)
    beyond = x - x.clamp(-1, 1)
    assert beyond.any() and (beyond == 0).any()
    assert_close(generator(z).sample, x.clamp(-1, 1) + 0.1 * beyond)
    images = normal(3, 1, 4, 4, dtype=torch.float64)
    conv_in, _, _, widen, _ = discriminator.layers
    output = discriminator(images)
    assert_close(output.features, widen(F.avg_pool2d(conv_in(images), 2)))
    h = F.leaky_relu(discriminator.pool[1](output.features.flatten(1)), 0.2)
    assert_close(output.logits, discriminator.head.score(h).squeeze(1))


def test_conditional_batch_norm_is_torchs_for_each_class():
    norm, x = ConditionalBatchNorm2d(4, 3), normal(6, 4, 5, 5) * 3 + 1
    plain, y = nn.BatchNorm2d(4), torch.tensor([0, 1, 2, 2, 1, 0])
    assert_close(norm(x, y), plain(x))  # gains 1, shifts 0
    assert_close(norm.norm.running_var, plain.running_var)
    perturb(norm)
    for training in (True, False):
        norm.train(training)
        for label in range(3):
            same = torch.full((6,), label)
            gain, shift = norm.gain.weight[label], norm.shift.weight[label]
            mean, variance = norm.norm.running_mean.clone(), norm.norm.running_var.clone()
            expected = F.batch_norm(x, mean, variance, gain, shift, training=training)
            mixed = norm(x, y) if not training else None
            assert_close(norm(x, same), expected)
            if mixed is not None:
                assert_close(mixed[y == label], expected[y == label])
    alone = ConditionalBatchNorm2d(4, None)
    assert torch.equal(alone(x, None), nn.BatchNorm2d(4)(x))
    assert alone.norm.affine and alone.gain is None


def test_the_projection_is_what_the_hand_computes():
    head = ProjectionHead(2, 3)
    with torch.no_grad():
        head.score.weight.copy_(torch.tensor([[2.0, -1.0]]))
        head.score.bias.fill_(0.5)
        head.classes.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 2.0]]))
    h, y = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]), torch.tensor([0, 1, 2])
    # 2 - 2 + .5 + 1,  6 + 1 + .5 - 3,  1 - 4 + .5 - .5 + 8
    assert torch.equal(head(h, y), torch.tensor([1.5, 4.5, 5.0]))
    plain = ProjectionHead(2, None)
    assert_close(plain(h, None), h @ plain.score.weight[0] + plain.score.bias)


@each_architecture
def test_the_projection_uses_the_pooled_features(architecture):
    _, discriminator = pair_of(architecture, classes=3)
    x, y = normal(4, 2, 8, 8), torch.tensor([0, 2, 1, 1])
    output, other = discriminator(x, y), discriminator(x, (y + 1) % 3)
    h = {
        "mlp": lambda f: f.flatten(1),
        "dcgan": lambda f: f.flatten(1),
        "resnet": lambda f: f.sum((2, 3)),
        "residual": lambda f: F.leaky_relu(discriminator.pool[1](f.flatten(1)), 0.2),
    }[architecture](output.features)
    v = discriminator.head.classes.weight
    assert_close(output.logits - other.logits, ((v[y] - v[(y + 1) % 3]) * h).sum(1), rtol=1e-4, atol=1e-5)


@each_architecture
def test_classes_change_what_is_made_and_how_it_is_judged(architecture):
    generator, discriminator = (network.eval() for network in pair_of(architecture, classes=3))
    z, x = normal(1, 5).expand(3, 5), normal(1, 2, 8, 8).expand(3, 2, 8, 8)
    for output in (generator(z, torch.arange(3)).sample.flatten(1), discriminator(x, torch.arange(3)).logits[:, None]):
        distances = torch.cdist(output, output) + torch.eye(3)
        assert (distances > 1e-3).all()


# --- spectral norm ----------------------------------------------------------------------------------------------------


@each_architecture
def test_weights_have_spectral_norm_one(architecture):
    torch.manual_seed(0)
    options = {"in_channels": 2, "sample_size": 8, "num_class_embeds": 3, "spectral_norm": True}
    discriminator = DISCRIMINATORS[architecture](**options)
    layers = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    for layer in layers:
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(7)
    for _ in range(30):  # power iterations
        discriminator(normal(2, 2, 8, 8), torch.tensor([0, 1]))
    discriminator.eval()
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
    plain = DISCRIMINATORS[architecture](**{**options, "spectral_norm": False})
    assert len(layers) == sum(isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding) for m in plain.modules())
    assert not any("parametrizations" in key for key in plain.state_dict())


def test_an_mlp_of_spectral_norm_one_is_lipschitz():
    torch.manual_seed(0)
    discriminator = MLPDiscriminatorModel(8, 1, (32, 16), spectral_norm=True).train()
    with torch.no_grad():
        for layer in (m for m in discriminator.modules() if isinstance(m, nn.Linear)):
            layer.parametrizations.weight.original.mul_(50)
    for _ in range(100):
        discriminator(normal(2, 1, 8, 8))
    a, b = normal(500, 1, 8, 8, seed=3), normal(500, 1, 8, 8, seed=4)
    discriminator.eval()
    with torch.no_grad():
        change = (discriminator(a).logits - discriminator(b).logits).abs()
    assert (change <= 1.001 * (a - b).flatten(1).norm(dim=1)).all() and change.max() > 1e-3


def test_copies_keep_their_spectra():
    """As a moving average does, which begins as a copy."""
    discriminator = DISCRIMINATORS["residual"](sample_size=8, spectral_norm=True)
    x = normal(2, 1, 8, 8)
    copy = deepcopy(discriminator)
    assert torch.equal(copy.eval()(x).logits, discriminator.eval()(x).logits)
    assert discriminator(x).logits.isfinite().all()


# --- built ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@each_architecture
def test_what_is_built_takes_the_images(architecture, size):
    for resolution, channels in ((28, 1), ((30, 26), 3), (8, 1), (64, 3), (4, 1)):
        with torch.device("meta"):
            generator, discriminator = build_gan(architecture, size, resolution, channels, num_classes=10)
            height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
            y, z = torch.zeros(2, dtype=torch.long), torch.zeros(2, generator.config.latent_channels)
            sample = generator(z, y).sample
            assert sample.shape == (2, channels, height, width)
            features = discriminator(sample, y).features.shape[2:]
        assert architecture == "mlp" or all(1 <= side <= 8 for side in features)
        for network in (generator, discriminator):
            assert network.config.sample_size == resolution and network.config.num_class_embeds == 10


def test_options_reach_the_networks():
    generator, discriminator = build_gan("dcgan", "xs", 28, 1, latent_channels=7, norm="none")
    assert generator.config.latent_channels == 7 and discriminator.config.norm == "none"
    assert any(isinstance(m, nn.BatchNorm2d) for m in generator.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in discriminator.modules())
    assert build_gan("dcgan", "xs", 28, 1)[1].config.norm == "batch"
    for architecture in ARCHITECTURES:
        normed = build_gan(architecture, "xs", 8, 1, spectral_norm=True)[1]
        assert normed.config.spectral_norm and not any(isinstance(m, nn.BatchNorm2d) for m in normed.modules())
    for architecture in ("residual", "resnet"):
        patches = [build_gan(architecture, "xs", side, 1)[0].config.patch_size for side in (15, 16, (64, 15))]
        assert patches == [1, 2, 1]
    depths = [len(build_gan("residual", "xs", side, 1)[0].config.block_out_channels) for side in (4, 8, 28, 32, 64)]
    assert depths == [1, 2, 2, 3, 4]


def test_larger_is_larger():
    for architecture in ARCHITECTURES:
        counts = [[sum(p.numel() for p in n.parameters()) for n in build_gan(architecture, s, 28, 1)] for s in SIZES]
        assert (np.diff(counts, axis=0) > 0).all()


def test_what_can_not_be_built_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'vit' is not known\. Choose one of: residual, dcgan, resnet, mlp"):
        build_gan("vit", "s", 28, 1)
    with pytest.raises(ValueError, match=r"size='xl' is not known\. Choose one of: xs, s, m"):
        build_gan("mlp", "xl", 28, 1)
    with pytest.raises(ValueError, match=r"norm='layer' is not known\. Choose one of: batch, none"):
        build_gan("mlp", "s", 28, 1, norm="layer")
    with pytest.raises(ValueError, match=r"can't make 3 x 28 images: sides must be at least 4"):
        build_gan("residual", "s", (3, 28), 1)
    with pytest.raises(ValueError, match="0 x 1 images: sides must be at least 1"):
        build_gan("mlp", "s", (0, 1), 1)
    for name, options in (
        ("channels", (0,)),
        ("latent_channels", (1, 0)),
        ("num_classes", (1, 5, 0)),
    ):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            build_gan("mlp", "s", 28, *options)
    with pytest.raises(ValueError, match="norm='layer' is not known"):
        DCGANDiscriminatorModel(norm="layer")
    with pytest.raises(ValueError, match="give norm='none'"):
        DCGANDiscriminatorModel(spectral_norm=True)
    with pytest.raises(ValueError, match="output_activation='relu'"):
        MLPGeneratorModel(output_activation="relu")
