"""Normalizing flows: inverses both ways, log-determinants, densities that integrate to one, caches and masks."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import hfgen
from hfgen.distributions.densities import dequantised, flow_log_prob
from hfgen.models.coupling_flow import Squeeze
from hfgen.models.elementwise import build_elementwise
from hfgen.models.flow_layers import (
    ActNorm,
    ChannelHalves,
    ChannelPermutation,
    Checkerboard,
    ConvConditioner,
    Coupling,
    DiagonalScale,
    InvertibleConvolution,
    MLPConditioner,
    ViTConditioner,
)
from hfgen.models.layers import attention, matmul_attention, patch_side
from hfgen.models.token_transformer import TokenTransformer
from hfgen.trainer.sharded import units, unshardable

MAPS = ("additive", "affine", "logistic_mixture", "spline")
SMALL = {"layers_per_level": 4, "hidden_channels": 16, "network_depth": 1, "components": 3}
COUPLINGS = {
    "nice": {"elementwise": "additive", "diagonal_scale": True, "num_levels": 1, "network": "mlp"},
    "realnvp": {"masks": "both", "actnorm": True},
    "glow": {"mixing": "convolution", "actnorm": True},
    "jet": {"network": "vit", "squeeze": 2, "num_levels": 1, "mixing": "permutation"},
    "flow++": {"elementwise": "logistic_mixture", "masks": "checkerboard", "split_prior": "standard"},
    "spline": {"elementwise": "spline", "mixing": "permutation"},
}
TRANSFORMERS = {
    "tarflow": {"num_blocks": 2},
    "mixture": {"num_blocks": 2, "elementwise": "logistic_mixture", "head_size": 24},
    "spline": {"num_blocks": 3, "elementwise": "spline", "head_size": 24},
}


def scattered(module, std=0.1):
    """The module with random weights, so that all of them matter."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.double()


def coupling(name, size=4, channels=1, **options):
    return hfgen.CouplingFlowModel(size, channels, **{**SMALL, **COUPLINGS[name], **options})


def transformer(name, size=4, channels=1, **options):
    small = {"layers_per_block": 2, "hidden_size": 32, "num_attention_heads": 2, "components": 3}
    return hfgen.TransformerFlowModel(size, channels, **{**small, **TRANSFORMERS[name], **options})


def models(**options):
    made = {name: coupling(name, **options) for name in COUPLINGS}
    return made | {f"transformer-{name}": transformer(name, **options) for name in TRANSFORMERS}


def log_determinants(function, x):
    """log|det| of autograd's Jacobian of each item."""

    def jacobian(i):
        return torch.autograd.functional.jacobian(lambda v: function(v[None], i)[0].flatten(), x[i]).flatten(1)

    return torch.stack([torch.linalg.slogdet(jacobian(i).double())[1] for i in range(len(x))])


# --- layers -----------------------------------------------------------------------------------------------------------


def layers():
    halves, board = ChannelHalves((4, 4, 4), True), Checkerboard((4, 4, 4), False)
    affine = build_elementwise("affine", 2)
    return {
        "actnorm": ActNorm(4),
        "scale": DiagonalScale((4, 4, 4)),
        "permutation": ChannelPermutation(4),
        "convolution": InvertibleConvolution(4),
        "squeeze": Squeeze(2),
        "conv": Coupling(halves, affine, ConvConditioner(halves.kept, 4, 8, 1, None)),
        "mlp": Coupling(board, affine, MLPConditioner(board.kept, 8, 8, 2, None)),
        "vit": Coupling(halves, affine, ViTConditioner(halves.kept, 4, 32, 1, None)),
    }


@pytest.mark.parametrize("name", layers())
def test_layers_are_inverted_and_know_their_determinants(name):
    layer = scattered(layers()[name], 0.3)
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    y, log_det = layer(x)
    assert log_det.shape == (2,)
    torch.testing.assert_close(layer.inverse(y), x)
    torch.testing.assert_close(log_det, log_determinants(lambda v, i: layer(v)[0], x))


def test_the_rotation_of_a_new_convolution_keeps_volumes():
    torch.manual_seed(1)
    layer = InvertibleConvolution(6)
    x = torch.randn(3, 6, 2, 2)
    y, log_det = layer(x)
    torch.testing.assert_close(y.square().sum(1), x.square().sum(1))
    torch.testing.assert_close(log_det, torch.zeros(3), atol=1e-5, rtol=0)


def test_partitions_divide_and_join():
    x = torch.arange(3 * 4 * 6).view(1, 3, 4, 6)
    for partition in (Checkerboard((3, 4, 6), True), Checkerboard((3, 4, 6), False), ChannelHalves((3, 4, 6), True)):
        kept, changed = partition.parts(x)
        assert kept.shape[1:] == tuple(partition.kept) and changed.shape[1:] == tuple(partition.changed)
        assert torch.equal(partition.whole(kept, changed), x)
    board = Checkerboard((1, 2, 2), False).parts(torch.tensor([[[[0, 1], [2, 3]]]]))[0]
    assert board.flatten().tolist() == [0, 3]


def test_actnorm_is_initialised_once_and_stays_so_when_loaded(tmp_path):
    torch.manual_seed(0)
    flow = coupling("glow")
    flow.initialise(5 + 3 * torch.randn(64, 1, 4, 4))
    first = next(layer for layer in flow.modules() if isinstance(layer, ActNorm))
    y = first(Squeeze(2)(5 + 3 * torch.randn(512, 1, 4, 4))[0])[0].detach()
    assert float(y.mean().abs()) < 0.1 and abs(float(y.std()) - 1) < 0.1
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.save_pretrained(tmp_path)
    for network in (flow, hfgen.CouplingFlowModel.from_pretrained(tmp_path)):
        network.initialise(torch.randn(8, 1, 4, 4))
        network.train()(torch.randn(8, 1, 4, 4))
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_actnorm_without_initialisation_is_the_identity():
    x = torch.randn(2, 3, 4, 4)
    y, log_det = ActNorm(3)(x)
    assert torch.equal(y, x) and not log_det.any()


# --- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models())
def test_models_are_inverted_and_know_their_determinants(name):
    model = scattered(models(num_class_embeds=3)[name])
    x, labels = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 2])
    z, log_det = model(x, labels, return_dict=False)
    assert z.shape == x.shape and log_det.shape == (2,)
    with torch.no_grad():
        torch.testing.assert_close(model.inverse(z, labels), x)
    torch.testing.assert_close(log_det, log_determinants(lambda v, i: model(v, labels[i : i + 1]).latents, x))
    alone = model(x[:1], labels[:1])
    torch.testing.assert_close(alone.log_det, log_det[:1])
    assert not torch.allclose(model(x, labels.flip(0)).latents, z)  # classes matter


@pytest.mark.parametrize("name", ("glow", "jet", "transformer-tarflow", "transformer-mixture"))
def test_determinants_are_in_float32_under_bfloat16(name):
    """A Jacobian is triangular whatever the precision of the networks; rounding in backward passes is what remains."""
    model = scattered(models()[name]).float()
    x = torch.randn(2, 1, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
        expected = log_determinants(lambda v, i: model(v).latents, x)
        assert output.log_det.dtype == output.latents.dtype == torch.float32
    torch.testing.assert_close(output.log_det.double(), expected, atol=0.05, rtol=0.01)
    half = model.bfloat16()(x)
    assert half.log_det.dtype == torch.float32 and half.latents.isfinite().all()


def test_nice_has_the_sum_of_its_scales_as_determinant():
    model = scattered(coupling("nice"))
    log_det = model(torch.randn(4, 1, 4, 4, dtype=torch.float64)).log_det
    torch.testing.assert_close(log_det, model.scale.log_scale.sum().expand(4))


@pytest.mark.parametrize("elementwise", MAPS)
@pytest.mark.parametrize("kind", ("coupling", "transformer"))
def test_densities_integrate_to_one(kind, elementwise):
    """By quadrature over the plane: vectors of two numbers, as images (2, 1, 1) or (1, 1, 2)."""
    options = {"elementwise": elementwise, "components": 3}
    if kind == "coupling":
        shape, extra = (2, 1, 1), {"num_levels": 1, "squeeze": 1, "network": "mlp", "diagonal_scale": True}
        model = hfgen.CouplingFlowModel(1, 2, layers_per_level=3, hidden_channels=16, **extra, **options)
    else:
        shape, extra = (1, 1, 2), {"patch_size": 1, "num_blocks": 2, "layers_per_block": 1, "hidden_size": 16}
        model = hfgen.TransformerFlowModel((1, 2), 1, num_attention_heads=1, **extra, **options)
    reach, step = (80, 0.4) if elementwise == "logistic_mixture" else (12, 0.1)  # its tails are exponential
    model, side = scattered(model, 0.2), torch.arange(-reach, reach, step, dtype=torch.float64)
    with torch.no_grad():
        density = flow_log_prob(model(torch.cartesian_prod(side, side).view(-1, *shape))).exp()
    assert abs(float(density.sum()) * step**2 - 1) < 1e-3


def digits():
    """Digits of 4 x 4 pixels in [-1, 1], (1797, 1, 4, 4)."""
    x = torch.tensor(load_digits().images, dtype=torch.float32)[:, None]
    return ((nn.functional.avg_pool2d(x, 2) * 255 / 16).round() / 127.5) - 1


def test_more_tokens_than_numbers_in_one_are_inverted():
    """36 tokens of 4 numbers: the cache is as long as the sequence."""
    model = scattered(transformer("tarflow", 12, patch_size=2, num_blocks=1, layers_per_block=1))
    x = torch.randn(2, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.inverse(model(x).latents), x, atol=1e-5, rtol=0)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("flow++", "transformer-tarflow")]


@pytest.mark.parametrize("name", ("glow", "transformer-mixture", *SLOW))
def test_trained_flows_are_inverted_both_ways_without_a_number_that_is_not_finite(name):
    torch.manual_seed(0)
    model, data = models()[name], digits()
    if name == "glow":
        model.initialise(data)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for step in range(80):
        x = data[torch.randint(len(data), (128,), generator=torch.Generator().manual_seed(step))]
        loss = -flow_log_prob(model(dequantised(x, torch.rand(x.shape)))).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 10
    with torch.no_grad():
        x = dequantised(data[:500], torch.rand(500, 1, 4, 4))
        assert (model.inverse(model(x).latents) - x).abs().max() < 1e-4
        z = torch.randn(10_000, 1, 4, 4)
        samples = model.inverse(z)
        again = model(samples).latents
    assert samples.isfinite().all() and again.isfinite().all()
    assert (again - z).abs().quantile(0.999) < 2e-2  # in steep places of the map rounding counts


def test_latents_far_from_those_of_data_do_not_overflow():
    """Steep maps with random parameters, and latents of 100 standard deviations."""
    model = scattered(coupling("flow++", layers_per_level=12, elementwise="logistic_mixture"), 0.5).float()
    with torch.no_grad():
        x = model.inverse(100 * torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
        assert x.isfinite().all() and model(x).latents.isfinite().all()


# --- the transformer --------------------------------------------------------------------------------------------------


def test_causal_attention_sees_no_later_key():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 8).unbind()
    whole = attention(query, key, value, causal=True)
    for n in range(5):
        alone = matmul_attention(query[:, :, n : n + 1], key[:, :, : n + 1], value[:, :, : n + 1])
        torch.testing.assert_close(whole[:, :, n : n + 1], alone)
    torch.testing.assert_close(attention(query[:, :, 3:], key, value, causal=True), whole[:, :, 3:])
    low = attention(*(part.bfloat16() for part in (query, key, value)), causal=True)
    torch.testing.assert_close(low.float(), whole, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("pieces", ([1] * 6, [2, 3, 1], [6]))
def test_outputs_with_a_cache_are_those_without(pieces):
    torch.manual_seed(0)
    network, x = TokenTransformer(2, 32, 4), torch.randn(3, 6, 32)
    with torch.no_grad():
        whole, cache, start, parts = network(x), network.cache(3, 6, x), 0, []
        for count in pieces:
            network(torch.randn(3, count, 32), start, cache)  # is written over
            parts.append(network(x[:, start : start + count], start, cache))
            start += count
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
        changed = x.clone()
        changed[:, 4:] += 1
        torch.testing.assert_close(network(changed)[:, :4], whole[:, :4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_segments_and_enough_iterations_give_the_exact_inverse(name):
    model, z = scattered(transformer(name), 0.2), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        exact = model.inverse(z)
        for segments in (1, 3):
            torch.testing.assert_close(model.inverse(z, num_segments=segments), exact, atol=1e-5, rtol=1e-5)
        one, few = (model.inverse(z, num_segments=1, num_iterations=n) for n in (1, 3))
    assert (few - exact).abs().mean() < (one - exact).abs().mean()


def test_guidance_goes_from_the_null_class_beyond_the_class():
    model, z = scattered(transformer("mixture", num_class_embeds=3), 0.2), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        torch.testing.assert_close(model.inverse(z, labels, 0.0), model.inverse(z, torch.tensor([2, 2])))
        given = model.inverse(z, labels)
        torch.testing.assert_close(model.inverse(z, labels, 1 + 1e-9), given, atol=1e-6, rtol=1e-6)
        assert (model.inverse(z, labels, 3.0) - given).abs().max() > 0.1


def test_numbers_of_a_token_see_earlier_ones_alone():
    model = scattered(transformer("mixture", num_blocks=1), 0.3)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    tokens = model.patches.tokens(x)
    jacobian = torch.autograd.functional.jacobian(lambda t: model.blocks[0](t)[0].flatten(), tokens).flatten(1)
    assert not jacobian.triu(1).any() and jacobian[1:4, 0].all()


# --- what is refused, and how flows are built -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sample_size": 7}, "squeeze=2 do not tile"),
        ({"num_levels": 4}, "squeeze=2 do not tile"),
        ({"masks": "checkers"}, "masks='checkers' is not known"),
        ({"squeeze": 1, "in_channels": 1, "num_levels": 1}, "can't be divided"),
        ({"squeeze": 1, "masks": "checkerboard", "sample_size": (8, 5), "num_levels": 1}, "no checkerboard"),
        ({"network_depth": 0}, "at least 1"),
    ],
)
def test_impossible_couplings_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        hfgen.CouplingFlowModel(**{"sample_size": 8, "hidden_channels": 8, **options})


def test_impossible_transformers_and_calls_are_refused():
    for options, words in (
        ({"patch_size": 3}, "not tiled"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads=5"),
        ({"patch_size": 1, "head_size": 4}, "at least 2"),
        ({"num_blocks": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            transformer("tarflow", **options)
    model, z = transformer("tarflow"), torch.randn(1, 1, 4, 4)
    for options in ({"num_segments": 17}, {"num_segments": 0}, {"num_iterations": 0}):
        with pytest.raises(ValueError, match=r"num_segments=.+ must be from 1 to 4, |num_iterations=0 must be at"):
            model.inverse(z, **options)
    with pytest.raises(ValueError, match="needs class_labels"):
        model.inverse(z, guidance_scale=2.0)
    for name, value in {"num_segments": 2, "num_iterations": 0, "guidance_scale": 2.0}.items():
        with pytest.raises(ValueError, match=f"^{name}={value}: a coupling flow is inverted in one pass"):
            coupling("glow").inverse(z, **{name: value})
    with pytest.raises(ValueError, match="without classes"):
        model(z, torch.tensor([0]))


@pytest.mark.parametrize("name", ("transformer", "glow", "realnvp", "nice", "jet", "residual", "implicit"))
def test_flows_are_built_for_common_sizes(name):
    with torch.device("meta"):
        for side, channels in ((8, 1), (28, 1), (32, 3), (64, 3)):
            network = hfgen.build_flow(name, "xs", side, channels, num_classes=10)
            assert network.sample_shape == (channels, side, side) and network.config.num_class_embeds == 11
        small, large = (sum(p.numel() for p in hfgen.build_flow(name, s, 32, 3).parameters()) for s in ("xs", "s"))
    assert small < large


@pytest.mark.parametrize("name", ("transformer", "glow"))
def test_mixtures_of_new_flows_are_fitted_to_data_and_those_of_trained_ones_stay(name):
    torch.manual_seed(0)
    model, x = hfgen.build_flow(name, "xs", 4, 1, elementwise="logistic_mixture"), digits()
    x = dequantised(x, torch.rand(x.shape))
    with torch.no_grad():
        before = flow_log_prob(model(x)).mean()
        model.initialise(x)
        assert flow_log_prob(model(x)).mean() > before + 10
        state = {key: value.clone() for key, value in model.state_dict().items()}
        for module in model.modules():
            if hasattr(module, "output"):
                module.output.weight.fill_(1e-3)  # as if it were trained
        model.initialise(2 * x)
    for key, value in model.state_dict().items():
        assert key.endswith("output.weight") or torch.equal(value, state[key])


def test_a_residual_flow_has_no_map_of_single_numbers():
    with pytest.raises(ValueError, match="elementwise='affine': residual flows have no maps"):
        hfgen.build_flow("residual", "xs", 8, 1, elementwise="affine")
    with torch.device("meta"):
        assert hfgen.build_flow("implicit", "xs", 8, 1).noise_shape is None
        assert hfgen.build_flow("residual", "xs", 28, 1).noise_shape == (6, 785)


def test_patches_tile_images_into_few_tokens():
    assert [patch_side(side, side, 64) for side in (1, 7, 8, 28, 32, 64)] == [1, 1, 1, 4, 4, 8]
    assert patch_side(8, 8, 64, 2) == 2 and patch_side(11, 11, 64) == 1


@pytest.mark.parametrize("name", models())
def test_what_sharding_gathers_as_a_whole_is_called_as_a_whole(name):
    """A part whose `forward` never runs would never be gathered."""
    model, called = models()[name], set()
    parts = list(units(model))
    for part in parts:
        part.register_forward_hook(lambda part, args, output: called.add(part))
    model(torch.randn(1, 1, 4, 4))
    assert parts and called == set(parts) and unshardable(model) is None


def test_gradient_checkpointing_changes_no_gradient():
    for model in (coupling("glow"), transformer("tarflow")):
        scattered(model)
        x, gradients = torch.randn(2, 1, 4, 4, dtype=torch.float64), []
        for enable in (model.disable_gradient_checkpointing, model.enable_gradient_checkpointing):
            enable()
            model.zero_grad()
            flow_log_prob(model(x)).sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        torch.testing.assert_close(*gradients)
