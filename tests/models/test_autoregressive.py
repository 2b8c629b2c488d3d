"""Autoregressive networks: probabilities that sum to one, numbers that see those before them alone, a cache that
changes no bit, and samples with the probabilities that the network states."""

import itertools
import math

import numpy as np
import pytest
import torch

from hfgen.models.autoregressive_transformer import AutoregressiveTransformerModel
from hfgen.models.conditionals import Categorical, GaussianMixture
from hfgen.models.continuous_transformer import ContinuousTransformerModel
from hfgen.models.dit import DiTModel
from hfgen.models.masked_autoregressive import MaskedAutoregressiveModel
from hfgen.models.token_transformer import ROWS

D = 10
SETTINGS = {
    "fvsbn": {"architecture": "fvsbn"},
    "made": {"architecture": "made", "hidden_size": 13},
    "made, two layers, three orders": {"hidden_size": 13, "num_layers": 2, "num_orders": 3},
    "nade": {"architecture": "nade", "hidden_size": 7},
}


def random_weights(network, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def masked(classes=None, **options):
    return random_weights(MaskedAutoregressiveModel(sample_shape=(D,), num_class_embeds=classes, **options)).double()


def transformer(seed=0, scale=0.5, **options):
    shape = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "head_size": 24, **options}
    return random_weights(AutoregressiveTransformerModel(**shape), seed, scale)


def all_binary(size):
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=size)), dtype=torch.float64)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("classes", [None, 3])
def test_probabilities_of_all_items_sum_to_one(name, classes):
    network, items = masked(classes, **SETTINGS[name]), all_binary(D)
    labels = None if classes is None else torch.ones(len(items), dtype=torch.long)
    log_prob = network(items, labels).log_prob
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert log_prob.std() > 0.5  # weights that make a difference


def test_probabilities_of_symbols_sum_to_one():
    network = random_weights(MaskedAutoregressiveModel("made", (4,), levels=3, hidden_size=9)).double()
    items = torch.tensor(list(itertools.product(range(3), repeat=4)))
    assert network(items).log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"sample_size": (2, 5), "patch_size": 1},
        {"sample_size": (2, 4), "patch_size": 2},  # a patch is one of 16 symbols
        {"sample_size": (1, 2), "patch_size": 1, "levels": 33},
        {"sample_size": (1, 2), "in_channels": 2, "levels": 5, "patch_size": 1},
        {"sample_size": (2, 5), "patch_size": 1, "num_class_embeds": 2},
    ],
)
def test_probabilities_of_all_images_sum_to_one(options):
    network, levels = transformer(**options).double(), options.get("levels", 2)
    pixels = math.prod(network.sample_shape)
    items = torch.tensor(list(itertools.product(range(levels), repeat=pixels))).view(-1, *network.sample_shape)
    labels = torch.ones(len(items), dtype=torch.long) if "num_class_embeds" in options else None
    log_prob = network(items, labels).log_prob
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert log_prob.std() > 0.1


def test_a_patch_of_many_symbols_has_a_head_and_probabilities_that_sum_to_one(monkeypatch):
    monkeypatch.setattr("hfgen.models.autoregressive_transformer.MOST_SYMBOLS", 4)
    network = transformer(sample_size=(2, 4), patch_size=2).double()
    assert network.head is not None
    assert network.noise_shape == (2, 4)
    items = torch.tensor(list(itertools.product(range(2), repeat=8))).view(-1, 1, 2, 4)
    assert network(items).log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_density_of_real_numbers_integrates_to_one():
    network = random_weights(
        MaskedAutoregressiveModel("nade", (2,), levels=None, hidden_size=5, components=3), scale=0.7
    ).double()
    axis = torch.linspace(-25, 25, 501, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    total = network(points).log_prob.exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", [*SETTINGS, "rnade"])
def test_parameters_of_a_number_do_not_depend_on_it_nor_on_later_ones(name):
    options = {"architecture": "nade", "levels": None, "components": 2, "hidden_size": 5}
    network = masked(**SETTINGS.get(name, options))
    x = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for order, ranks in enumerate(network.ranks):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, k=order: network.network(v[None], None, network.ranks[k])[0], x
        )
        size = jacobian.abs().sum(1)  # (i, j): of the parameters of number i by number j
        before = ranks[None, :] < ranks[:, None]
        assert (size[~before] == 0).all()
        connected = size[before] > 0
        assert connected.float().mean() > (0.6 if "made" in name else 0.999)  # a rectifier may be off


@pytest.mark.parametrize("options", [{"patch_size": 1}, {"patch_size": 2}, {"patch_size": 2, "levels": 11}])
def test_parameters_of_a_token_do_not_depend_on_it_nor_on_later_ones(options):
    """Checked by change: a symbol of another value changes no parameter of its own token nor of earlier ones."""
    network = transformer(sample_size=4, num_layers=1, **options).double()
    tokens, numbers = network.noise_shape
    count = network.conditional.count
    symbols = torch.randint(0, count, (1, tokens, numbers), generator=torch.Generator().manual_seed(2))
    base = network(network._image(symbols)).params
    for n, j in itertools.product(range(tokens), range(numbers)):
        changed = symbols.clone()
        changed[0, n, j] = (changed[0, n, j] + 1) % count
        moved = (network(network._image(changed)).params != base).any(-1)[0].flatten()  # (N S,)
        place = n * numbers + j
        assert not moved[: place + 1].any()
        assert moved[place + 1 :].all()


def test_parameter_counts_are_those_of_the_texts():
    def count(**options):
        network = MaskedAutoregressiveModel(sample_shape=(784,), **options)
        return sum(parameter.numel() for parameter in network.parameters())

    d, h, k = 784, 500, 5
    assert count(architecture="fvsbn") == d * (d + 1) // 2 == 307_720  # sum of i from 1 to d
    assert count(architecture="nade", hidden_size=h) == 2 * d * h + h + d == 785_284
    assert count(architecture="made", hidden_size=h) == 2 * d * h + h + d
    rnade = count(architecture="nade", hidden_size=h, levels=None, components=k)
    assert rnade == d * h + h + 3 * k * d * (h + 1)


def test_a_belief_network_is_a_logistic_regression_of_each_number():
    network, x = masked(architecture="fvsbn"), (all_binary(D)[::37] + 1) / 2
    alpha, bias = np.zeros((D, D)), network.network.bias.detach().numpy()[:, 0]
    rows = iter(network.network.weight.detach().numpy()[0])
    for i in range(D):
        for j in range(i):
            alpha[i, j] = next(rows)
    white = 1 / (1 + np.exp(-(x.numpy() @ alpha.T + bias)))
    expected = np.log(np.where(x.numpy() == 1, white, 1 - white)).sum(1)
    np.testing.assert_allclose(network(2 * x - 1).log_prob.detach().numpy(), expected, atol=1e-9)


def test_running_sums_of_nade_are_the_naive_products():
    """O(d hidden) and O(d^2 hidden)."""
    network, x = masked(architecture="nade", hidden_size=7), (all_binary(D)[::41] + 1) / 2
    core = network.network
    for i, params in enumerate(network.network(x, None, network.ranks[0]).unbind(1)):
        hidden = (core.hidden_bias + x[:, :i] @ core.input[:i]).sigmoid()
        torch.testing.assert_close(params, hidden @ core.output[i].T + core.bias[i])


@pytest.mark.parametrize("name", SETTINGS)
def test_drawing_number_by_number_has_the_parameters_of_one_pass(name):
    network = masked(**SETTINGS[name])
    u = torch.rand(6, D, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = network.draw(u)
    x0 = x.double()
    for k in range(len(network.ranks)):
        full = network.network(x0, None, network.ranks[k])
        for i, params in network.network.one_by_one(x0, None, network.ranks[k]):
            torch.testing.assert_close(params, full[:, i])


@pytest.mark.parametrize("name", ["made, two layers, three orders", "nade"])
def test_frequencies_of_samples_are_the_probabilities(name):
    """A chi-squared test of the three first numbers, whose 8 cases have probabilities by brute force."""
    network = random_weights(MaskedAutoregressiveModel(sample_shape=(3,), **SETTINGS[name])).double()
    expected = network(all_binary(3)).log_prob.exp()
    u = torch.rand(20_000, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    drawn = network.draw(u)
    counts = torch.bincount((drawn * torch.tensor([4, 2, 1])).sum(1), minlength=8)
    statistic = ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum()
    assert statistic < 24.3  # 0.1 % of chi-squared with 7 degrees of freedom


def test_the_samples_of_a_transformer_are_those_of_a_known_markov_chain():
    """Weights that make each token depend on the one to its left alone: a chain of three states."""
    network = transformer(sample_size=(1, 6), levels=3, patch_size=1, hidden_size=4, num_attention_heads=1)
    chain = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.transformer.norm.weight.fill_(1)
        for state in range(3):  # the left neighbour has the first rows of the table
            network.embedding.weight[state, state] = 1.0
        network.embedding.weight[-1, 3] = 0.25  # each of the four outside, at the first position
        inputs = torch.stack([_features_after(network, state) for state in range(3)])
        inputs = torch.cat([inputs, torch.ones(3, 1)], 1)
        solved = torch.linalg.lstsq(inputs.double(), chain.log().double()).solution
        network.output.weight.copy_(solved[:-1].T)
        network.output.bias.copy_(solved[-1])
    u = torch.rand(6000, 6, 1, generator=torch.Generator().manual_seed(5))
    drawn = network.draw(u).symbols[:, 0, 0]
    pairs = torch.zeros(3, 3)
    for now, after in itertools.pairwise(drawn.T):
        pairs += torch.bincount(3 * now + after, minlength=9).view(3, 3)
    expected = pairs.sum(1, keepdim=True) * chain
    assert ((pairs - expected) ** 2 / expected).sum() < 22.5  # 0.1 % of chi-squared with 6 degrees of freedom


def _features_after(network, state):
    """Return the normalised output at a position whose left neighbour has this state."""
    tokens = torch.full((1, 6, 1), state)
    return network._contexts(tokens, None)[0, 1]


CACHED = {
    "patches": {"sample_size": 14, "patch_size": 2},
    "pixels of 256 levels": {"sample_size": 5, "levels": 256, "patch_size": 1},
    "patches of 256 levels": {"sample_size": 6, "levels": 256, "patch_size": 2},
    "colours": {"sample_size": 3, "in_channels": 3, "levels": 256, "patch_size": 1},
    "one token": {"sample_size": 2, "patch_size": 2},
    "65 codes": {"sample_size": (5, 13), "levels": 512, "patch_size": 1},
}


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_cache_changes_no_bit(name, count, scale):
    network = transformer(num_class_embeds=4, hidden_size=32, **CACHED[name])
    u = torch.rand(count, *network.noise_shape, generator=torch.Generator().manual_seed(6))
    labels = torch.arange(count) % 3
    cached, plain = (network.draw(u, labels, scale, use_cache=cache, return_params=True) for cache in (True, False))
    assert torch.equal(cached.symbols, plain.symbols)
    assert torch.equal(cached.params, plain.params)
    if scale == 1.0:
        with torch.no_grad():
            full = network(cached.symbols, labels).params
        torch.testing.assert_close(cached.params, full)
        if network.head is None and count * network.noise_shape[0] >= ROWS:
            assert torch.equal(cached.params, full)
    alone = network.draw(u[:1], labels[:1], scale, return_params=True)
    assert torch.equal(alone.params, cached.params[:1])


def test_guidance_is_the_line_through_both_parameters():
    network = transformer(sample_size=4, patch_size=2, num_class_embeds=4).double()
    u, labels = torch.rand(4, *network.noise_shape, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    drawn = network.draw(u, labels, 3.0, return_params=True)
    given = network(drawn.symbols, labels).params
    free = network(drawn.symbols, torch.full((4,), 3)).params
    torch.testing.assert_close(drawn.params, free + 3 * (given - free))


def test_guidance_of_a_shared_estimator_is_that_of_its_parameters():
    network = masked(4, **SETTINGS["nade"])
    u, labels = torch.rand(4, D, 1, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    drawn = network.draw(u, labels, 3.0)
    given, free = network(drawn, labels).params, network(drawn, torch.full((4,), 3)).params
    white = (free + 3 * (given - free))[:, :, 0, 0].sigmoid()
    assert torch.equal(drawn, (u[..., 0] >= 1 - white).long())
    plain = network.draw(u, labels)
    assert torch.equal(plain, (u[..., 0] >= 1 - network(plain, labels).params[:, :, 0, 0].sigmoid()).long())


@pytest.mark.parametrize("patch", [1, 2])
def test_known_tokens_are_kept_and_the_others_follow_them(patch):
    network = transformer(sample_size=4, patch_size=patch)
    u = torch.rand(5, *network.noise_shape, generator=torch.Generator().manual_seed(7))
    first = network.draw(u).symbols
    count = network.tokens_above(2)
    again = network.draw(u, known=first, num_known=count).symbols
    assert torch.equal(again, first)
    other = network.draw(1 - u, known=first, num_known=count).symbols
    assert torch.equal(other[:, :, :2], first[:, :, :2])
    assert not torch.equal(other, first)
    all_known = network.draw(u, known=first, num_known=network.noise_shape[0]).symbols
    assert torch.equal(all_known, first)


def test_levels_of_images_are_the_symbols():
    network = transformer(sample_size=4, levels=256, patch_size=2)
    symbols = torch.randint(0, 256, (3, 1, 4, 4))
    assert torch.equal(network(symbols / 127.5 - 1).log_prob, network(symbols).log_prob)
    assert torch.equal(network._image(network._tokens(symbols)), symbols)


def test_quantiles_of_symbols():
    rows = Categorical(3, 3)
    params = torch.tensor([0.2, 0.3, 0.5]).log().expand(5, 3)
    assert rows.draw(params, torch.tensor([0.0, 0.19, 0.21, 0.51, 0.999999]), 1.0).tolist() == [0, 0, 1, 2, 2]
    assert rows.draw(params, torch.zeros(5), 0).tolist() == [2] * 5
    cold = rows.draw(params, torch.full((5,), 0.12), 0.5)  # 0.04, 0.09, 0.25 of 0.38
    assert cold.tolist() == [1] * 5
    certain = torch.tensor([[-1e9, 0.0, -1e9]])
    assert rows.draw(certain, torch.tensor([0.0]), 1.0).item() == 1  # a probability of 0 is never drawn


def test_quantiles_of_mixtures_of_normal_distributions():
    from scipy.stats import norm

    mixture = GaussianMixture(2)
    params = torch.tensor([math.log(0.3), math.log(0.7), -1.0, 2.0, math.log(0.5), 0.0], dtype=torch.float64)
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    scale = math.exp(7 * math.tanh(math.log(0.5) / 7))
    x = mixture.draw(params.expand(9, 6), u, 1.0).numpy()
    np.testing.assert_allclose(0.3 * norm.cdf(x, -1, scale) + 0.7 * norm.cdf(x, 2, 1), u, atol=1e-9)
    expected = np.log(0.3 * norm.pdf(x, -1, scale) + 0.7 * norm.pdf(x, 2, 1))
    np.testing.assert_allclose(mixture.log_prob(params.expand(9, 6), torch.tensor(x)), expected, atol=1e-9)
    assert mixture.draw(params[None], u[:1], 0).item() == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"architecture": "pixelcnn"}, "pixelcnn"),
        ({"architecture": "nade", "num_orders": 2}, "num_orders=2"),
        ({"architecture": "fvsbn", "num_layers": 2}, "num_layers=2"),
        ({"components": 3}, "components=3"),
        ({"levels": 1}, "levels=1"),
        ({"sample_shape": (1,)}, "here 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        MaskedAutoregressiveModel(**{"sample_shape": (D,), **options})


def test_transformers_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="patch_size=3"):
        AutoregressiveTransformerModel(sample_size=4, patch_size=3)
    with pytest.raises(ValueError, match="levels=1"):
        AutoregressiveTransformerModel(levels=1)
    for network in (AutoregressiveTransformerModel, DiTModel):
        with pytest.raises(ValueError, match="patch_size=0 must be at least 1"):
            network(sample_size=4, patch_size=0)
    network = transformer(sample_size=4)
    with pytest.raises(ValueError, match="3 rows"):
        network.tokens_above(3)
    with pytest.raises(ValueError, match="guidance_scale=2"):
        network.draw(torch.rand(1, *network.noise_shape), guidance_scale=2.0)


@pytest.mark.parametrize("kind", ["symbols", "continuous"])
def test_gradients_are_the_same_in_the_memory_of_a_block(kind):
    """What autograd keeps of three layers more is an activation each, not those inside a block."""
    sizes = {"sample_size": 8, "in_channels": 1, "patch_size": 2, "hidden_size": 32, "num_attention_heads": 2}
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if kind == "symbols":
        make, call = AutoregressiveTransformerModel, (x,)
    else:
        make, call = ContinuousTransformerModel, (x, torch.randn(4, 1, 8, 8), torch.full((4, 16), 0.5))

    def gradients(layers, again):
        network, sizes_of = make(**sizes, num_layers=layers), []
        random_weights(network, scale=0.1)
        if again:
            network.enable_gradient_checkpointing()
        pack = lambda tensor: sizes_of.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = network(*call)
        value = out.log_prob if kind == "symbols" else (out.sample - out.target).square()
        value.mean().backward()
        return [parameter.grad for parameter in network.parameters()], sum(sizes_of)

    plain, again = gradients(4, False), gradients(4, True)
    for mine, other in zip(plain[0], again[0], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
    token = 4 * 16 * 32
    assert gradients(7, True)[1] - again[1] <= 3 * token < 3 * 8 * token < gradients(7, False)[1] - plain[1]
