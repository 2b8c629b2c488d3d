"""Laws of the network with two clocks, and of the text autoencoder: shapes, what depends on what, sizes."""

import pytest
import torch
from torch.testing import assert_close

from hfgen.models.text_autoencoder import TextAutoencoderModel
from hfgen.models.unidiffuser import UniDiffuserModel
from hfgen.models.unidiffuser_unet import UniDiffuserUNetModel


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturb(network):
    for number, parameter in enumerate(network.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    return network.eval()


def transformer(**options):
    return UniDiffuserModel((4, 8), 2, 3, 4, 2, 8, 3, 2, **options)


def unet(**options):
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "attention_levels": (False, True)}
    sizes |= {"attention_head_dim": 8, "norm_num_groups": 4, "hidden_size": 8, "num_layers": 2}
    return UniDiffuserUNetModel((4, 8), 2, 3, 4, 1, num_attention_heads=2, **{**sizes, **options})


both_networks = pytest.mark.parametrize("two_clocks", [transformer, unet])


def inputs(batch=2):
    return normal(batch, 2, 4, 8), torch.tensor(300.0), normal(batch, 3, 4, seed=1), torch.tensor(700.0)


def test_a_new_network_predicts_0():
    output = transformer()(*inputs())
    assert output.sample.shape == (2, 2, 4, 8) and output.text.shape == (2, 3, 4)
    assert not output.sample.any() and not output.text.any()
    assert not unet()(*inputs()).text.any()


def test_images_of_any_size_have_a_prediction_of_their_size():
    """The cells that the transformer sees cover the image; sides need not be multiples of theirs."""
    sizes = {"block_out_channels": (8, 16), "attention_levels": (False, True), "attention_head_dim": 8}
    network = UniDiffuserUNetModel((7, 9), 1, 3, 4, **sizes, norm_num_groups=4, hidden_size=8, num_attention_heads=2)
    output = network(normal(2, 1, 7, 9), 1.0, normal(2, 3, 4), 2.0)
    assert output.sample.shape == (2, 1, 7, 9) and network.positions.shape == (1, 2 + 3 + 2 * 3, 8)


@both_networks
@pytest.mark.parametrize("changed", range(4))
def test_both_predictions_depend_on_both_kinds_and_both_times(changed, two_clocks):
    network, before = perturb(two_clocks()), list(inputs())
    after = list(before)
    after[changed] = before[changed] + 1
    first, second = network(*before), network(*after)
    assert ((first.sample - second.sample).abs().amax((1, 2, 3)) > 1e-4).all()
    assert ((first.text - second.text).abs().amax((1, 2)) > 1e-4).all()


@both_networks
def test_the_times_of_items_are_their_own(two_clocks):
    network, (x, _, z, _) = perturb(two_clocks()), inputs()
    t, s = torch.tensor([10.0, 900.0]), torch.tensor([500.0, 1.0])
    both = network(x, t, z, s)
    for row in range(2):
        alone = network(x[row : row + 1], t[row], z[row : row + 1], s[row])
        assert_close(alone.sample[0], both.sample[row])
        assert_close(alone.text[0], both.text[row])


@both_networks
def test_memory_saved_changes_no_gradient(two_clocks):
    gradients = []
    for saves in (False, True):
        network = perturb(two_clocks()).train()
        if saves:
            network.enable_gradient_checkpointing()
        output = network(*inputs())
        (output.sample.square().sum() + output.text.square().sum()).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert_close(first, second)


@both_networks
def test_what_does_not_fit_is_refused(two_clocks):
    network, (x, t, z, s) = two_clocks(), inputs()
    with pytest.raises(ValueError, match=r"sample has shape \(2, 2, 4, 4\); this network takes \('B', 2, 4, 8\)"):
        network(x[..., :4], t, z, s)
    with pytest.raises(ValueError, match=r"text has shape \(2, 2, 4\)"):
        network(x, t, z[:, :2], s)
    with pytest.raises(ValueError, match="hidden_size=9 must be a multiple of 2"):
        UniDiffuserModel(8, 1, 2, 4, 2, 9, 1, 3)
    with pytest.raises(ValueError, match="hidden_size=9 must be a multiple of 2"):
        unet(hidden_size=9)


# --- the text autoencoder ---------------------------------------------------------------------------------------------


def texts():
    return perturb(TextAutoencoderModel(20, 5, 2, 4, 8, 1, 2))


def test_a_latent_has_mean_0_and_variance_1():
    latents = texts().encode(torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]), torch.ones(2, 5))
    assert latents.shape == (2, 2, 4)
    assert_close(latents.mean(-1), torch.zeros(2, 2), atol=1e-5, rtol=0)
    assert_close(latents.var(-1, correction=0), torch.ones(2, 2), atol=1e-3, rtol=0)


def test_padding_tells_nothing_and_tokens_do():
    network, mask = texts(), torch.tensor([[1, 1, 1, 0, 0]])
    first = network.encode(torch.tensor([[1, 2, 3, 0, 0]]), mask)
    assert torch.equal(first, network.encode(torch.tensor([[1, 2, 3, 9, 4]]), mask))
    assert not torch.allclose(first, network.encode(torch.tensor([[1, 2, 4, 0, 0]]), mask), atol=1e-3)
    assert not torch.allclose(first, network.encode(torch.tensor([[2, 1, 3, 0, 0]]), mask), atol=1e-3)


def test_the_decoder_reads_latents_alone_and_noise_is_added_to_them():
    network, ids, mask = texts(), torch.tensor([[1, 2, 3, 0, 0]]), torch.ones(1, 5)
    noise = normal(1, 2, 4)
    output = network(ids, mask, noise)
    assert output.logits.shape == (1, 5, 20)
    assert_close(output.logits, network.decode(output.latents + noise))
    assert_close(network(ids, mask).logits, network.decode(network.encode(ids, mask)))
    with pytest.raises(ValueError, match="latent_channels=1 must be at least 2"):
        TextAutoencoderModel(20, 5, 2, 1, 8, 1, 2)
