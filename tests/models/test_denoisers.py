"""Laws of the denoisers: initial output, dependence on inputs, exact saving, images of any size."""

import re
import subprocess
import sys
import textwrap
from itertools import cycle

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch.testing import assert_close

from hfgen.models import build_denoiser as factory
from hfgen.models import dit, layers, patch_unet, uvit
from hfgen.models.build_denoiser import build_denoiser
from hfgen.models.dit import DiTBlock, DiTModel
from hfgen.models.patch_unet import PatchUNet2DModel
from hfgen.models.patches import sin_cos_positions
from hfgen.models.token_layers import UViTBlock, through_long_skips
from hfgen.models.uvit import UViTModel

ARCHITECTURES = ("unet", "patch_unet", "dit", "uvit")
MILLIONS = {  # those of the docstring of `build_denoiser`
    "unet": {"xs": (0.6, 1.1), "s": (2.1, 3.2), "m": (8.7, 11.7), "l": (35, 40)},
    "patch_unet": {"xs": (0.7, 1.1), "s": (2.1, 3.0), "m": (9.2, 10.3), "l": (36, 40)},
    "dit": {"xs": (0.7, 0.9), "s": (2.9, 3.2), "m": (9.7, 10.3), "l": (32, 33)},
    "uvit": {"xs": (0.6, 0.8), "s": (2.3, 2.7), "m": (9.4, 10), "l": (32, 34)},
}


def perturb(network, scale=0.05):
    """Move every parameter of a network, so that no weight or gate is zero. Return it in evaluation mode."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def small(architecture, side=8, channels=3, num_classes=4):
    torch.manual_seed(0)
    return perturb(build_denoiser(architecture, "xs", side, channels, num_classes))


def images(batch=3, channels=3, height=8, width=None, seed=1):
    return torch.randn(batch, channels, height, width or height, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request):
    return small(request.param)


# --- layers -----------------------------------------------------------------------------------------------------------


def heads(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("function", [layers.attention, layers.matmul_attention])
def test_attention_is_a_softmax_average(function):
    query, key, value = heads(torch.float64)
    q, k, v = (x.detach().numpy() for x in (query, key, value))
    weights = np.exp(np.einsum("bhnd,bhmd->bhnm", q, k) / np.sqrt(8))
    expected = np.einsum("bhnm,bhmd->bhnd", weights / weights.sum(-1, keepdims=True), v)
    assert_close(function(query, key, value).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_written_out_and_fused_attention_agree_and_so_do_their_gradients():
    fused, written = heads(), heads()
    a = torch.nn.functional.scaled_dot_product_attention(*fused)
    b = layers.matmul_attention(*written)
    assert_close(a, b, rtol=1e-6, atol=1e-6)
    a.square().sum().backward()
    b.square().sum().backward()
    for x, y in zip(fused, written, strict=True):
        assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


def test_attention_is_written_out_where_that_is_faster(monkeypatch):
    calls = []
    monkeypatch.setattr(layers, "matmul_attention", lambda *qkv: calls.append(qkv))
    layers.attention(*heads())
    assert not calls
    layers.attention(*heads(torch.bfloat16))
    assert len(calls) == 1
    monkeypatch.setattr(layers, "MAX_MATMUL_KEYS", 6)
    layers.attention(*heads(torch.bfloat16))
    assert len(calls) == 1


# --- the transformer --------------------------------------------------------------------------------------------------


def test_positions_are_the_sin_cos_table():
    height, width, channels = 3, 5, 24
    table = np.zeros((height * width, channels))
    for row in range(height):
        for column in range(width):
            for i in range(6):
                w = 1 / 10000 ** (i / 6)
                cell = table[row * width + column]
                cell[[i, 6 + i]] = np.sin(column * w), np.cos(column * w)
                cell[[12 + i, 18 + i]] = np.sin(row * w), np.cos(row * w)
    assert_close(sin_cos_positions(height, width, channels).double().numpy(), table, rtol=0, atol=1e-6)


def test_a_new_transformer_draws_zero_and_its_blocks_do_nothing():
    network = build_denoiser("dit", "xs", 8, 3, 4)
    output = network(images(), 500, torch.tensor([0, 1, 4])).sample
    assert torch.equal(output, torch.zeros_like(output))
    tokens, condition = torch.randn(2, 7, 96), torch.randn(2, 96)
    for block in network.blocks:
        assert torch.equal(block(tokens, condition), tokens)


def test_a_block_does_not_know_the_order_of_tokens():
    block = perturb(DiTBlock(32, 2, 4.0, 0.0))
    tokens, condition, order = torch.randn(2, 9, 32), torch.randn(2, 32), torch.randperm(9)
    assert_close(block(tokens[:, order], condition), block(tokens, condition)[:, order], rtol=1e-5, atol=1e-5)


def test_without_blocks_a_patch_depends_on_itself_alone():
    network = perturb(DiTModel(sample_size=(8, 12), patch_size=4, hidden_size=32, num_layers=0, num_attention_heads=1))
    before = images(1, 3, 8, 12)
    after = before.clone()
    after[0, 1, 5, 9] += 1  # in the patch of rows 4..7 and columns 8..11
    changed = (network(after, 0).sample - network(before, 0).sample).abs().amax((0, 1)) > 0
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[4:, 8:] = True
    assert torch.equal(changed, expected)


def test_transformer_equals_that_of_diffusers():
    theirs = perturb(
        DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=3, out_channels=2, num_layers=2, sample_size=8,
            patch_size=2, num_embeds_ada_norm=4, norm_eps=1e-6,
        )
    )  # fmt: skip
    first = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:  # each of theirs embeds time and class by itself; ours do it once
        block.norm1.emb = first
    ours = DiTModel(8, 3, 2, 2, hidden_size=32, num_layers=2, num_attention_heads=2, num_class_embeds=5).eval()
    ours.time_proj.downscale_freq_shift = 1  # the paper's code has 0

    def channels_first(rows):
        """Theirs holds a patch as (row, column, channel), ours as (channel, row, column)."""
        return rows.unflatten(0, (4, 2)).transpose(0, 1).flatten(0, 1)

    state = {
        "patch_embedding.weight": theirs.pos_embed.proj.weight.flatten(1),
        "patch_embedding.bias": theirs.pos_embed.proj.bias,
        "class_embedding.weight": first.class_embedder.embedding_table.weight,
        **{f"time_embedding.{k}": v for k, v in first.timestep_embedder.state_dict().items()},
        **{f"output_modulation.1.{k}": v for k, v in theirs.proj_out_1.state_dict().items()},
        **{f"output.{k}": channels_first(v) for k, v in theirs.proj_out_2.state_dict().items()},
    }  # fmt: skip
    for i, block in enumerate(theirs.transformer_blocks):
        for kind in ("weight", "bias"):
            qkv = [getattr(getattr(block.attn1, name), kind) for name in ("to_q", "to_k", "to_v")]
            state[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(qkv)
            state[f"blocks.{i}.attention.out.{kind}"] = getattr(block.attn1.to_out[0], kind)
            state[f"blocks.{i}.modulation.1.{kind}"] = getattr(block.norm1.linear, kind)
            state[f"blocks.{i}.mlp.0.{kind}"] = getattr(block.ff.net[0].proj, kind)
            state[f"blocks.{i}.mlp.2.{kind}"] = getattr(block.ff.net[2], kind)
    ours.load_state_dict(state)
    labels, times = torch.tensor([0, 3, 4]), torch.tensor([0, 17, 999])
    expected = theirs(images(), timestep=times, class_labels=labels).sample
    assert_close(ours(images(), times, labels).sample, expected, rtol=1e-5, atol=1e-5)


# --- the transformer with long skips ----------------------------------------------------------------------------------


TINY_UVIT = {"in_channels": 1, "out_channels": 1, "patch_size": 4, "hidden_size": 16, "num_attention_heads": 2}


def test_a_new_u_vit_draws_zero_and_its_skip_may_be_ignored():
    network = build_denoiser("uvit", "xs", 8, 3, 4)
    assert not network(images(), 500, torch.tensor([0, 1, 4])).sample.any()
    block = perturb(UViTBlock(16, 2, 4.0, 0.0, skip=True))
    with torch.no_grad():
        block.skip.weight.copy_(torch.eye(16, 32))  # the path itself, and nothing of the skip
        block.skip.bias.zero_()
    plain = UViTBlock(16, 2, 4.0, 0.0, skip=False).eval()
    plain.load_state_dict({name: value for name, value in block.state_dict().items() if "skip" not in name})
    tokens, skip = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    assert_close(block(tokens, skip=skip), plain(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 5, 6])
def test_long_skips_join_the_first_block_to_the_last(layers):
    """Where all blocks between are cut out, the last block still sees the first one: by the skip alone."""
    network = perturb(UViTModel(8, num_layers=layers, **TINY_UVIT))
    assert [block.skip is not None for block in network.blocks] == [n >= layers - layers // 2 for n in range(layers)]
    seen = {}
    for number, block in enumerate(network.blocks):
        block.register_forward_hook(lambda _, given, output, number=number: seen.update({number: (output, given[2])}))
    network(images(2, 1), 20)
    for number in range(layers // 2):
        assert seen[layers - 1 - number][1] is seen[number][0]


def test_without_long_skips_the_blocks_are_a_plain_transformer():
    network = perturb(UViTModel(8, num_layers=5, long_skips=False, **TINY_UVIT))
    joined = UViTModel(8, num_layers=5, **TINY_UVIT)
    assert joined.num_parameters() - network.num_parameters() == 2 * (2 * 16 * 16 + 16)
    x = torch.randn(2, 5, 16)
    expected = x
    for block in network.blocks:
        expected = block(expected)
    assert torch.equal(through_long_skips(network, x), expected)


def test_time_class_and_patches_are_tokens_with_positions():
    network = UViTModel((8, 12), num_layers=1, num_class_embeds=3, **TINY_UVIT).eval()
    seen = []
    network.blocks[0].register_forward_hook(lambda _, given, output: seen.append(given[0]))
    x, labels = images(2, 1, 8, 12), torch.tensor([0, 2])
    network(x, torch.tensor([3.0, 70.0]), labels)
    (tokens,) = seen
    assert tokens.shape == (2, 2 + 2 * 3, 16)
    assert_close(tokens[:, 1] - network.positions[0, 1], network.class_embedding.weight[labels])
    patch = x[:, 0, 4:, 8:].reshape(2, 16)  # of the second row and the third column
    assert_close(tokens[:, -1] - network.positions[0, -1], network.patch_embedding(patch))


# --- the patch U-Net --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_scale_shift", ["default", "scale_shift"])
def test_patch_unet_with_patches_of_one_is_the_unet(time_scale_shift):
    shared = {
        "block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 16, "norm_num_groups": 8,
        "num_class_embeds": 5, "resnet_time_scale_shift": time_scale_shift,
    }  # fmt: skip
    ours = perturb(PatchUNet2DModel(patch_size=1, attention_levels=(False, True), **shared))
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    theirs = UNet2DModel(attn_norm_num_groups=8, **blocks, **shared).eval()
    theirs.load_state_dict(ours.unet.state_dict())
    x, t, y = images(), torch.tensor([1.5, 20.0, 999.0]), torch.tensor([0, 1, 4])
    assert torch.equal(ours(x, t, y).sample, theirs(x, t, y).sample)


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (1, 3), (16, 8)])
def test_patching_and_padding_undo_themselves(size):
    class Same(torch.nn.Module):
        def forward(self, sample, timestep, class_labels, return_dict):
            assert sample.shape[-2] % 2 == sample.shape[-1] % 2 == 0 and sample.shape[1] == 12
            return (sample,)

    network = PatchUNet2DModel(8, block_out_channels=(32, 32), attention_levels=(False, False))
    network.unet = Same()
    x = images(2, 3, *size)
    assert torch.equal(network(x, 0).sample, x)


def test_patch_unet_in_bfloat16_stays_near_float32():
    network, x = small("patch_unet", 8), images()
    expected = network(x, 100, torch.tensor([0, 1, 2])).sample
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(network(x, 100, torch.tensor([0, 1, 2])).sample.float(), expected, rtol=0.05, atol=0.15)


# --- every network ----------------------------------------------------------------------------------------------------


def test_images_of_a_batch_do_not_see_each_other(network):
    x, t, y = images(4), torch.tensor([3.0, 200.5, 500.0, 999.0]), torch.tensor([0, 1, 2, 4])
    whole = network(x, t, y).sample
    for i in range(4):
        assert_close(network(x[i : i + 1], t[i], y[i : i + 1]).sample, whole[i : i + 1], rtol=1e-4, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(network(x[order], t[order], y[order]).sample, whole[order], rtol=1e-4, atol=1e-5)


def test_a_time_is_a_number_or_a_tensor_for_one_or_all(network):
    x, y = images(), torch.tensor([0, 1, 2])
    expected = network(x, torch.full((3,), 20), y).sample
    for same in (20, torch.tensor(20), torch.tensor([20]), torch.tensor(20.0), torch.full((3,), 20.0)):
        assert torch.equal(network(x, same, y).sample, expected)
    if not isinstance(network, UNet2DModel):  # which cuts it to 20
        assert not torch.equal(network(x, 20.9, y).sample, expected)
        assert torch.equal(network(x, 20.9, y).sample, network(x, torch.full((3,), 20.9), y).sample)


def test_class_and_time_change_what_is_drawn(network):
    x = images()
    base = network(x, 20, torch.tensor([0, 1, 2])).sample
    other = network(x, 20, torch.tensor([0, 1, 4])).sample
    assert torch.equal(base[:2], other[:2]) and (base[2] - other[2]).abs().max() > 1e-4
    assert (network(x, 700, torch.tensor([0, 1, 2])).sample - base).abs().max() > 1e-4


def test_labels_have_to_match_the_network(network):
    with pytest.raises(ValueError, match="class_labels"):
        network(images(), 20)
    assert network.config.num_class_embeds == 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_without_classes_takes_no_labels(architecture):
    network = build_denoiser(architecture, "xs", 8, 1)
    assert network(images(2, 1), 0).sample.shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="class"):
        network(images(2, 1), 0, torch.tensor([0, 0]))


def test_a_tuple_on_request(network):
    arguments = images(), 20, torch.tensor([0, 1, 2])
    (output,) = network(*arguments, return_dict=False)
    assert torch.equal(output, network(*arguments).sample)


def test_gradient_checkpointing_changes_no_gradient(network):
    def gradients():
        network.zero_grad()
        network(images(), 20, torch.tensor([0, 1, 2])).sample.square().sum().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}

    plain = gradients()
    network.enable_gradient_checkpointing()
    checkpointed = gradients()
    network.disable_gradient_checkpointing()
    assert all(grad.abs().max() > 0 for grad in plain.values())
    for name, grad in plain.items():
        assert_close(checkpointed[name], grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_in_bfloat16(architecture):
    network = small(architecture).to(torch.bfloat16)
    output = network(images().bfloat16(), torch.tensor([1.0, 500.0, 999.0]), torch.tensor([0, 1, 2])).sample
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


@pytest.mark.parametrize("architecture", ["patch_unet", "dit", "uvit"])
def test_stock_pipelines_take_them(architecture):
    pipeline = DDPMPipeline(build_denoiser(architecture, "xs", 8, 1), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize("module", [dit, patch_unet, uvit])
def test_a_component_is_found_by_its_base(module):
    """Loading a pipeline looks for the base class in the component's own module and folder name."""
    import diffusers

    assert issubclass(module.ModelMixin, diffusers.ModelMixin)
    assert not hasattr(diffusers.pipelines, module.__name__.split(".")[-2])


def test_a_fresh_process_loads_them_bit_for_bit(tmp_path):
    cases = {"unet": (8, 8), "patch_unet": (9, 12), "dit": (8, 12), "uvit": (8, 12)}
    for name, size in cases.items():
        network = small(name, size)
        network.save_pretrained(tmp_path / name)
        x = images(2, 3, *size)
        expected = network(x, torch.tensor([20.5, 3.0]), torch.tensor([0, 4])).sample.detach()
        torch.save((type(network).__module__, type(network).__name__, x, expected), tmp_path / f"{name}.pt")
    script = """
        import importlib, sys, torch
        for name in ("unet", "patch_unet", "dit", "uvit"):
            module, kind, x, expected = torch.load(f"{sys.argv[1]}/{name}.pt")
            network = getattr(importlib.import_module(module), kind).from_pretrained(f"{sys.argv[1]}/{name}")
            assert not network.training and all(b.device.type == "cpu" for b in network.buffers())
            with torch.no_grad():
                output = network(x, torch.tensor([20.5, 3.0]), torch.tensor([0, 4])).sample
            assert torch.equal(output, expected), name
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


# --- the factory ------------------------------------------------------------------------------------------------------


def drawn_shape(network, channels, height, width):
    """The shape of a forward pass, without computing it."""
    classes = network.config.num_class_embeds
    labels = None if classes is None else torch.zeros(2, dtype=torch.long)
    return network(torch.zeros(2, channels, height, width), torch.zeros(2), labels).sample.shape


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_factory_fits_images_or_says_which_it_would(architecture):
    refusals = []
    for channels, resolution in zip(cycle((1, 3, 4)), (4, 7, 8, 16, 27, 28, 32, 33, 64, 97, (28, 36), (9, 32))):
        height, width = layers.pair(resolution)
        with torch.device("meta"):
            try:
                network = build_denoiser(architecture, "xs", resolution, channels, num_classes=2)
                assert drawn_shape(network, channels, height, width) == (2, channels, height, width)
                continue
            except ValueError as error:
                refusals.append(resolution)
                message = str(error)
            assert f"{height} x {width}" in message and "--resolution" in message
            suggestions = re.findall(r"(\d+) x (\d+)", message.split("It can for")[1].split("(see")[0])
            assert len(suggestions) == 2
            for size in (tuple(map(int, pair)) for pair in suggestions):
                network = build_denoiser(architecture, "xs", size, channels)
                assert drawn_shape(network, channels, *size) == (2, channels, *size)
    expected = {"unet": [27, 33, 97, (9, 32)], "patch_unet": [], "dit": [97, (9, 32)], "uvit": [97, (9, 32)]}
    assert refusals == expected[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", MILLIONS["unet"])
def test_size_says_how_many_parameters_whatever_the_images(architecture, size):
    low, high = MILLIONS[architecture][size]
    with torch.device("meta"):
        for resolution in (7, 8, 16, 28, 32, 64, 256):
            network = build_denoiser(architecture, size, resolution, 3, num_classes=10)
            assert low - 0.05 < network.num_parameters() / 1e6 < high + 0.15, resolution


@pytest.mark.parametrize("architecture", ["unet", "patch_unet"])
@pytest.mark.parametrize("size", MILLIONS["unet"])
def test_u_nets_widen_downwards_and_heads_and_groups_make_up_their_widths(architecture, size):
    with torch.device("meta"):
        for resolution in (7, 8, 16, 28, 32, 64, 256):
            network = build_denoiser(architecture, size, resolution, 3)
            widths = list(network.config.block_out_channels)
            assert widths == sorted(widths)
            assert not [width for width in widths if width % network.config.norm_num_groups]
            attending = [module for module in network.modules() if isinstance(module, Attention)]
            assert attending and all(block.to_q.in_features == block.to_q.out_features for block in attending)


def test_factory_options():
    network = build_denoiser("patch_unet", "xs", 8, 1, gradient_checkpointing=True)
    assert network.is_gradient_checkpointing
    assert not build_denoiser("dit", "xs", 8, 1).is_gradient_checkpointing
    assert network.config.num_class_embeds is None and network.config.sample_size == 8
    with pytest.raises(ValueError, match=r"architecture='gan'.*unet, patch_unet, dit, uvit"):
        build_denoiser("gan", "s", 8, 1)
    with pytest.raises(ValueError, match=r"size='xxl'.*xs, s, m, l"):
        build_denoiser("dit", "xxl", 8, 1)
    assert factory.build_denoiser("unet", "xs", (8, 8), 1).config.sample_size == 8


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DiTModel(sample_size=27, patch_size=2), "27 x 27.*26 x 26 and 28 x 28"),
        (lambda: DiTModel(sample_size=(28, 30), patch_size=4), "28 x 30.*28 x 28 and 32 x 32"),
        (lambda: DiTModel(8, hidden_size=30, num_attention_heads=3), "hidden_size=30.*12 and its multiples"),
        (lambda: UViTModel(sample_size=27, patch_size=2), "27 x 27.*26 x 26 and 28 x 28"),
        (lambda: UViTModel(8, hidden_size=31, num_attention_heads=31), "hidden_size=31.*62 and its multiples"),
        (lambda: UViTModel(8, num_layers=1)(images(height=16), 0), r"\(3, 3, 16, 16\).*positions.*\(3, 8, 8\)"),
        (lambda: PatchUNet2DModel(8, attention_levels=(True,)), "attention_levels.*3 levels"),
        (lambda: small("dit", 8)(images(height=8), 0), "num_class_embeds=5.*that is 4"),
        (lambda: DiTModel(8, num_layers=1)(images(height=9), 0), "9 x 9.*8 x 8 and 10 x 10"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()
