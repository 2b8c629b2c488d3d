"""Denoisers under texts: each sees all of its own text, nothing of padding, and nothing of other texts."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.testing import assert_close

import hfgen
from hfgen.models.build_denoiser import build_denoiser
from hfgen.models.layers import attention
from hfgen.models.text_denoiser import TextDenoiser
from hfgen.models.text_tokens import encoded, lengths_of, tokens_of
from tests.helpers.text import text_encoder, text_encoders, tokenizer, tokenizers
from tests.models.test_denoisers import ARCHITECTURES, images, perturb

WIDTH, LENGTH = 12, 5
TIMES = torch.tensor([3.0, 500.0, 999.0])


def texts(seed=4):
    """States and mask of three texts of 2, 5 and 4 tokens."""
    states = torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(LENGTH) < torch.tensor([2, 5, 4])[:, None]).long()
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def build(architecture, **options):
    torch.manual_seed(0)
    return perturb(build_denoiser(architecture, "xs", 8, 1, text_channels=WIDTH, **options))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request):
    return build(request.param)


def test_every_token_counts_and_padding_does_not(network):
    x, told = images(3, 1), texts()
    with torch.no_grad():
        base = network(x, TIMES, **told).sample
        for token in range(LENGTH):
            states = told["encoder_hidden_states"].clone()
            states[:, token] += 1 + torch.arange(WIDTH) / WIDTH
            moved = (network(x, TIMES, **{**told, "encoder_hidden_states": states}).sample - base).abs().amax((1, 2, 3))
            assert ((moved > 1e-6) == told["encoder_attention_mask"][:, token].bool()).all()
        longer = {name: torch.cat([value, torch.zeros_like(value)], 1) for name, value in told.items()}
        assert_close(network(x, TIMES, **longer).sample, base, rtol=1e-4, atol=1e-5)
        whole = {"encoder_hidden_states": told["encoder_hidden_states"]}
        ones = {"encoder_attention_mask": torch.ones_like(told["encoder_attention_mask"])}
        assert_close(network(x, TIMES, **whole).sample, network(x, TIMES, **whole, **ones).sample, rtol=1e-5, atol=1e-6)


def test_images_of_a_batch_see_their_own_text_alone(network):
    x, told = images(3, 1), texts()
    with torch.no_grad():
        whole = network(x, TIMES, **told).sample
        for i in range(3):
            own = {name: value[i : i + 1] for name, value in told.items()}
            assert_close(network(x[i : i + 1], TIMES[i], **own).sample, whole[i : i + 1], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_and_bfloat16(network):
    def gradients():
        network.zero_grad()
        network(images(3, 1), TIMES, **texts()).sample.square().sum().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}

    plain = gradients()
    network.enable_gradient_checkpointing()
    for name, grad in gradients().items():
        assert grad.abs().max() > 0
        assert_close(grad, plain[name], rtol=1e-4, atol=1e-5)
    network.disable_gradient_checkpointing()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        low = network(images(3, 1), TIMES, **texts()).sample.float()
        with torch.autocast("cpu", enabled=False):
            assert_close(low, network(images(3, 1), TIMES, **texts()).sample, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("architecture", ["patch_unet", "dit", "uvit"])
def test_a_text_that_does_not_fit_is_refused(architecture):
    network = build(architecture)
    with pytest.raises(ValueError, match="encoder_hidden_states are needed: the network has text_channels=12"):
        network(images(3, 1), TIMES)
    with pytest.raises(ValueError, match=r"\(3, 5, 11\); this network needs \(B, L, 12\)"):
        network(images(3, 1), TIMES, encoder_hidden_states=torch.zeros(3, 5, 11))
    with pytest.raises(ValueError, match="takes no text"):
        build_denoiser(architecture, "xs", 8, 1)(images(3, 1), TIMES, **texts())


@pytest.mark.parametrize("architecture", ["patch_unet", "uvit"])
def test_forward_mode_goes_through_texts(architecture):
    network = build(architecture, two_times=True).double()
    x, direction = images(3, 1).double(), images(3, 1, seed=2).double()
    told = {name: value.double() if value.is_floating_point() else value for name, value in texts().items()}

    def output(x):
        return network(x, TIMES.double(), r_timestep=TIMES.double() / 2, **told).sample

    _, derivative = torch.func.jvp(output, (x,), (direction,))
    h = 1e-5
    assert_close(derivative, (output(x + h * direction) - output(x - h * direction)) / (2 * h), rtol=1e-5, atol=1e-7)


def test_our_processors_change_no_output_of_the_unet_of_diffusers():
    ours = build("unet")
    assert type(ours) is UNet2DConditionModel
    theirs = UNet2DConditionModel.from_config(ours.config).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert_close(
            ours(images(3, 1), TIMES, **texts()).sample, theirs(images(3, 1), TIMES, **texts()).sample, rtol=1e-4,
            atol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_to_visible_keys_is_attention_to_these_alone(dtype, causal):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 6, 8).to(dtype) for _ in range(3))
    visible = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 0, 0]]).bool()
    found = attention(query, key, value, causal, visible=visible).float()
    for row in range(2):
        for position in range(6):
            seen = visible[row] & (torch.arange(6) <= (position if causal else 5))
            scores = (query[row, :, position, None] * key[row][:, seen]).float().sum(-1) / 8**0.5
            expected = (scores.softmax(-1)[..., None] * value[row][:, seen].float()).sum(1)
            assert_close(found[row, :, position], expected, rtol=2e-2, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)


# --- tokens and states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CLIPTextModel", "T5EncoderModel", "BertModel", "SiglipTextModel", "LlamaModel"])
def test_what_is_told_of_a_text_does_not_depend_on_others(name):
    encoder = text_encoders()[name]
    many = encoded(tokenizer(), encoder, ["a cat", "", "dog"], 6)
    assert many["encoder_hidden_states"].shape[:2] == (3, 6)
    for row, text in enumerate(["a cat", "", "dog"]):
        alone = encoded(tokenizer(), encoder, [text], 6)
        for key, value in alone.items():
            assert_close(value, many[key][row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", tokenizers())
def test_an_empty_text_is_attended_to_and_a_long_one_is_cut(name):
    tokens = tokenizers()[name]
    made = tokens_of(tokens, ["", "cat " * 9], 6)
    assert made["attention_mask"][0, 0] == 1 and made["input_ids"].shape == (2, 6)
    assert lengths_of(tokens, ["cat " * 9])[0] > 6
    tokens.pad_token = None
    with pytest.raises(ValueError, match=f"{name} has no token for padding"):
        tokens_of(tokens, [""], 6)


def test_a_denoiser_with_its_encoder_is_told_of_token_ids():
    torch.manual_seed(0)
    encoder, denoiser = text_encoder(), perturb(build_denoiser("uvit", "xs", 8, 1, text_channels=8))
    both, x = TextDenoiser(encoder, denoiser), images(3, 1)
    tokens = tokens_of(tokenizer(), ["a cat", "dog", ""], 6)
    told = encoded(tokenizer(), encoder, ["a cat", "dog", ""], 6)
    output = both(x, TIMES, **tokens).sample
    assert_close(output, denoiser(x, TIMES, **told).sample)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


# --- the condition ----------------------------------------------------------------------------------------------------


def test_captions_are_rows_of_tables_and_drop_to_the_null_text():
    tables = {"a": torch.arange(12.0).reshape(4, 3), "b": torch.arange(4)}
    condition = hfgen.CaptionCondition(tables, {"a": -torch.ones(1, 3), "b": torch.tensor([9])})
    kwargs = condition.kwargs({"captions": torch.tensor([2, 0, 2])})
    assert_close(kwargs["a"][:, 0], torch.tensor([6.0, 0.0, 6.0]))
    dropped = condition.dropped(kwargs, torch.tensor([True, False, False]))
    assert dropped["b"].tolist() == [9, 0, 2] and dropped["a"][0].tolist() == [-1.0] * 3
    assert condition.with_null(kwargs)["b"].tolist() == [2, 0, 2, 9, 9, 9]
    with pytest.raises(ValueError, match='no "captions", only x'):
        condition.kwargs({"x": torch.zeros(2)})
    with pytest.raises(ValueError, match="do not go together"):
        hfgen.CaptionCondition(tables, {"a": torch.zeros(1, 2), "b": torch.tensor([9])})
