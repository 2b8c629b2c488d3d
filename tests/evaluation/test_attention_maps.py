"""Attention maps: the weights are the softmax of the forward pass's own q and k, and recording changes no bits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from PIL import Image
from torch import nn

import hfgen
from hfgen import cli
from hfgen.commands import attention
from hfgen.commands.attention import AttentionOptions, _pipeline, pick_layers, pick_steps, trace
from hfgen.commands.attention_picture import parse_pixel
from hfgen.evaluation.attention_maps import AttentionMap, attention_weights, capture, enlarge
from hfgen.models.attention import ImageAttention


def dit():
    network = hfgen.DiTModel(8, 1, 1, 2, 24, 3, 3)
    for parameter in network.parameters():  # it starts at zero, which would attend evenly
        nn.init.normal_(parameter, std=0.2)
    return network


def unet():
    blocks = {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
    sizes = {"block_out_channels": (16, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks, **sizes)


def patch_unet():
    return hfgen.PatchUNet2DModel((10, 6), 1, 1, 2, (16, 16), 1, (True, False), 4, 4)


def with_processor(processor):
    network = unet()
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(processor())
    return network


NETWORKS = {
    "dit": (dit, (8, 8), 3, (4, 4)),
    "unet": (unet, (8, 8), 4, (8, 8)),
    "unet, image attention": (lambda: with_processor(ImageAttention), (8, 8), 4, (8, 8)),
    "unet, written out": (lambda: with_processor(AttnProcessor), (8, 8), 4, (8, 8)),
    "patch unet": (patch_unet, (10, 6), 4, (6, 4)),
}
"""Name -> (function that builds it, (H, W) of its images, number of its attentions, grid of the first)."""
each_network = pytest.mark.parametrize("name", NETWORKS)


def example(name, dtype=torch.float32):
    """Return (network, noisy images, times, number of attentions, grid of the first)."""
    torch.manual_seed(0)
    build, size, count, positions = NETWORKS[name]
    network = build().eval().to(dtype)
    return network, torch.randn(2, 1, *size, dtype=dtype), torch.tensor([900.0, 50.0]), count, positions


def queries_and_keys(network):
    """Record (q, k) of each attention by hooks on its projections: {layer: {"q", "k"}}, (B, heads, N, d) float64."""
    projections = {}

    def record(name, part, heads):
        def hook(module, args, output):
            parts = output.chunk(3, -1)[:2] if part is None else [output]
            split = [x.unflatten(-1, (heads, -1)).transpose(1, 2).double().numpy() for x in parts]
            projections.setdefault(name, {}).update(zip("qk" if part is None else part, split, strict=True))

        return hook

    for name, module in network.named_modules():
        if isinstance(module, Attention):
            module.to_q.register_forward_hook(record(name, "q", module.heads))
            module.to_k.register_forward_hook(record(name, "k", module.heads))
        elif hasattr(module, "qkv"):
            module.qkv.register_forward_hook(record(name, None, module.num_heads))
    return projections


def softmax(q, k):
    """In float64 by NumPy."""
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@each_network
@torch.no_grad()
def test_weights_are_the_softmax_of_the_networks_own_q_and_k(name):
    network, x, t, count, positions = example(name)
    projections = queries_and_keys(network)
    with capture(network, x.shape[-2:]) as maps:
        network(x, t)
    assert [each.layer for each in maps] == list(projections) and len(maps) == count
    assert maps[0].grid == positions
    for each in maps:
        q, k = projections[each.layer]["q"], projections[each.layer]["k"]
        expected = softmax(q, k)
        assert expected.std() > 1e-3 / expected.shape[-1]  # not even, or nothing would be tested
        np.testing.assert_allclose(each.weights.double().numpy(), expected, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(each.weights.sum(-1).numpy(), 1, atol=1e-6)


@each_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_outputs_are_the_same_bits_with_and_without(name, dtype):
    network, x, t, count, _ = example(name, dtype)
    before = network(x, t).sample
    with capture(network, x.shape[-2:]) as maps:
        during = network(x, t).sample
    after = network(x, t).sample
    assert torch.equal(before, during) and torch.equal(before, after)
    assert len(maps) == count
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_gradients_are_the_same_bits_with_and_without():
    network, x, t, *_ = example("dit")
    gradients = []
    for recording in (False, True):
        network.zero_grad()
        if recording:
            with capture(network, (8, 8)):
                network(x, t).sample.square().mean().backward()
        else:
            network(x, t).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_maps_are_selected_by_layer_and_evaluation():
    network, x, t, *_ = example("dit")
    with capture(network, (8, 8), lambda layer, call: "blocks.1" in layer and call != 1) as maps:
        for _ in range(3):
            network(x, t)
    assert [(each.layer, each.call) for each in maps] == [("blocks.1.attention", 0), ("blocks.1.attention", 2)]


@torch.no_grad()
def test_hooks_are_removed_after_an_error_and_nothing_is_recorded_outside():
    network, x, t, *_ = example("dit")
    with pytest.raises(ValueError, match="not tiled"), capture(network, (8, 8)) as maps:
        network(x[..., :7], t)
    network(x, t)
    assert maps == [] and not network.blocks[0]._forward_hooks


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": "bool"}, {"attn_mask": "float"}, {"enable_gqa": True}],
)
def test_weights_times_values_are_scaled_dot_product_attention(options):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 3)
    if options.get("enable_gqa"):
        k, v = k[:, :2], v[:, :2]
    if "attn_mask" in options:
        mask = torch.rand(5, 5) + torch.eye(5)
        options = {"attn_mask": mask > 0.5 if options["attn_mask"] == "bool" else mask}
    weights = attention_weights(q, k, v, **options)
    values = v.repeat_interleave(2, 1) if options.get("enable_gqa") else v
    torch.testing.assert_close(weights @ values, F.scaled_dot_product_attention(q, k, v, **options))


def test_attention_to_text_is_no_map_of_an_image():
    block = Attention(8, cross_attention_dim=6, heads=2, dim_head=4, processor=AttnProcessor2_0())
    with torch.no_grad(), capture(block, (4, 4)) as maps:
        block(torch.randn(1, 16, 8), encoder_hidden_states=torch.randn(1, 5, 6))
    assert maps[0].weights.shape == (1, 2, 16, 5) and maps[0].grid is None


def test_a_token_after_the_other_is_no_map_of_an_image():
    """A flow keeps the keys of earlier tokens: the first one is alone, and is no image of one position."""
    sizes = {"num_blocks": 1, "layers_per_block": 1, "hidden_size": 32, "num_attention_heads": 2, "head_size": 16}
    flow = hfgen.TransformerFlowModel((4, 8), 1, **sizes)
    with torch.no_grad(), capture(flow, (4, 8)) as maps:
        flow.inverse(torch.randn(1, 1, 4, 8))
    assert maps and all(each.grid is None for each in maps)


def small_flow(image_size=(4, 8), **options):
    torch.manual_seed(0)
    sizes = {"num_blocks": 2, "layers_per_block": 1, "hidden_size": 32, "num_attention_heads": 2}
    flow = hfgen.TransformerFlowModel(image_size, 1, **sizes, **options)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    return flow


def test_positions_that_a_flow_sees_backwards_are_put_in_order():
    """A causal token sees itself and what comes before: in every other block, that is what comes after."""
    flow = small_flow()
    with torch.no_grad(), capture(flow, (4, 8)) as maps:
        flow(torch.randn(1, 1, 4, 8))
    first, second = (each.weights for each in maps)
    assert [each.grid for each in maps] == [(2, 4), (2, 4)]
    earlier = torch.ones(8, 8).tril().bool()
    assert torch.equal(first > 0, earlier.expand_as(first)) and torch.equal(second > 0, earlier.mT.expand_as(second))


@pytest.mark.parametrize("size", [(2, 6), (6, 6), (10, 6), (6, 18)])
def test_positions_that_pad_a_sequence_are_left_out(size):
    """Causal transformers add positions behind an image's, up to a number that computes with the same bits."""
    flow, (height, width) = small_flow(image_size=size), size
    x = torch.randn(1, 1, height, width)
    with capture(flow, size) as padded, torch.no_grad():
        flow(x)
    with capture(flow, size) as exact:  # with gradients nothing is added
        flow(x)
    for ours, theirs in zip(padded, exact, strict=True):
        assert ours.grid == theirs.grid == (height // 2, width // 2)
        torch.testing.assert_close(ours.weights, theirs.weights)
        torch.testing.assert_close(ours.weights.sum(-1), torch.ones(1, 2, height * width // 4))


def test_summaries_of_a_map():
    even, one = torch.full((4, 4), 0.25), torch.eye(4)
    weights = torch.stack([even, one])[None]  # (1, 2 heads, 4, 4)
    attention = AttentionMap("x", 0, weights, (2, 2))
    torch.testing.assert_close(attention.perplexity(), torch.tensor([[4.0, 1.0]]))
    torch.testing.assert_close(attention.perplexity(0, 1), torch.tensor([[4.0, 1.0]]))
    torch.testing.assert_close(attention.query_mean(), torch.full((1, 2, 4), 0.25))
    assert attention.from_query(1, 0)[0, 1].tolist() == [0, 0, 1, 0]


def test_heat_is_enlarged_to_the_extent_of_the_grid():
    heat = torch.arange(6.0)
    whole = enlarge(heat, (2, 3), (4, 6), (4, 6))
    assert whole.tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
    padded = enlarge(heat, (2, 3), (4, 6), (3, 5))  # the network saw a row and a column more
    torch.testing.assert_close(padded, whole[:3, :5])


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of pipelines: a DiT with classes, a padded U-Net, diffusers' own, one without attention, and a flow."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    network = hfgen.DiTModel(8, 1, 1, 2, 24, 3, 3, num_class_embeds=4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    scheduler = hfgen.RectifiedFlowScheduler(path="straight", prediction_type="flow_prediction")
    hfgen.DenoisingPipeline(network, scheduler, 3, ["a", "b", "c"]).save_pretrained(folder / "dit")
    hfgen.DenoisingPipeline(patch_unet(), scheduler).save_pretrained(folder / "patch")
    DDPMPipeline(unet(), DDPMScheduler(20)).save_pretrained(folder / "theirs")
    prior = hfgen.GaussianMixturePriorModel((2, 1, 1))
    autoencoder = hfgen.MLPAutoencoderModel(8, 1, 1, (16,), 2)
    hfgen.VAEPipeline(autoencoder, prior).save_pretrained(folder / "vae")
    flow = hfgen.NormalizingFlowPipeline(small_flow(num_class_embeds=3), 2, ["a", "b"])
    flow.save_pretrained(folder / "flow")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / "x.png")
    return folder


def run(capsys, *words):
    """Run `hfgen attention words`: (exit status, standard output, error output)."""
    status = 0
    try:
        cli.main(["attention", *map(str, words), "--device", "cpu"])
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.parametrize(
    ("folder", "words", "layers"),
    [
        ("dit", ["--num_inference_steps", "3"], "3 of 3"),
        ("dit", ["--num_inference_steps", "3", "--class_labels", "b", "--layer", "1, blocks.2", "--heads"], "2 of 3"),
        ("dit", ["--num_inference_steps", "4", "--image", "x.png", "--query", "7,7", "--step", "2,4"], "3 of 3"),
        ("patch", ["--num_inference_steps", "2", "--query", "9,5"], "4 of 4"),
        ("theirs", ["--num_inference_steps", "2", "--layer", "down"], "1 of 4"),
        ("flow", ["--class_labels", "b", "--query", "3,1"], "2 of 2"),
        ("flow", ["--image", "x.png"], "2 of 2"),
    ],
)
def test_pictures_of_pipelines(saved, tmp_path, capsys, folder, words, layers):
    target = tmp_path / "new" / "a.png"
    words = [saved / word if word == "x.png" else word for word in words]
    status, out, err = run(capsys, saved / folder, *words, "--output", target)
    assert status == 0, err
    assert f"{layers} layers (*) in {target}" in out
    pixels = np.array(Image.open(target).convert("RGB")).astype(int)
    assert ((pixels[..., 0] - pixels[..., 1]) > 50).sum() > 1000  # there is heat
    chosen = int(layers.split()[0]) * (3 if "--heads" in words else 1)
    panel = {"dit": 112, "patch": 66, "theirs": 112, "flow": 112}[folder]
    assert pixels.shape[1] == max(700, 132 + (1 + chosen) * (panel + 8))


@pytest.mark.parametrize("crop", [True, False])
def test_an_image_is_prepared_as_the_training_images_were(tmp_path, capsys, crop):
    """A red image with an alpha of 0 on its left, against Pillow's own steps."""
    network = hfgen.DiTModel(8, 3, 3, 2, 24, 1, 3)
    pipeline = hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler())
    pipeline.training_data = {"center_crop": crop, "background": "blue"}
    pixels = np.full((20, 30, 4), (255, 0, 0, 255), np.uint8)
    pixels[:, :10, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = Image.new("RGB", (30, 20), "blue")
    image.paste("red", (10, 0, 30, 20))
    expected = np.array((image.crop((5, 0, 25, 20)) if crop else image).resize((8, 8), Image.Resampling.LANCZOS))
    read = attention._read(str(tmp_path / "x.png"), pipeline)
    assert np.array_equal(((read + 1) * 127.5).round().numpy()[0], expected.transpose(2, 0, 1))
    assert ("cropped at the centre" if crop else "squeezed") in capsys.readouterr().err


def test_the_same_call_draws_the_same_picture(saved, tmp_path, capsys):
    pictures = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(capsys, saved / "dit", "--num_inference_steps", "2", "--seed", seed, "--output", tmp_path / f"{name}.png")
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_given_image_is_denoised_from_the_noise_of_each_step(saved):
    """x_t = (1 - t) x + t eps on the straight path, whatever the network predicts."""
    options = AttentionOptions(str(saved / "dit"), image=str(saved / "x.png"), num_inference_steps=5, device="cpu")
    result = trace(_pipeline(options), options)
    x = result.image
    assert x.shape == (1, 8, 8) and x.min() >= -1 and x.max() <= 1
    first = result.inputs[0][1]
    for title, x_t in result.inputs:
        t = float(title.split("t = ")[1])
        torch.testing.assert_close(x_t, (1 - t) * x + t * first, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("folder", "words", "message"),
    [
        ("vae", [], "its MLPAutoencoderModel has no attention, so there is nothing to draw. Transformers have"),
        (
            "vae",
            ["--num_inference_steps", "3"],
            "--num_inference_steps: a VAEPipeline generates in one pass. Leave it out.",
        ),
        (
            "dit",
            ["--num_inference_steps", "3", "--step", "4"],
            "--step '4': '4' is no step from 1 to 3; see --num_inference_steps.",
        ),
        (
            "dit",
            ["--num_inference_steps", "2", "--layer", "up"],
            "--layer 'up' is none of the 3 layers: blocks.0.attention, blocks.1",
        ),
        ("dit", ["--num_inference_steps", "2", "--query", "8,0"], "--query '8,0': give row,column, from 0,0 to 7,7."),
        ("dit", ["--num_inference_steps", "2", "--class_labels", "z"], "class 'z' is not known"),
        ("dit", ["--num_inference_steps", "2", "--image", "model_index.json"], "can't be read as an image"),
        ("dit", ["--layers", "2"], "did you mean --layer?"),
    ],
)
def test_refusals_name_value_and_fix(saved, tmp_path, capsys, folder, words, message):
    words = [saved / "dit" / word if word.endswith(".json") else word for word in words]
    status, _, err = run(capsys, saved / folder, *words, "--output", tmp_path / "a.png")
    assert status == 2 and message in err
    assert not (tmp_path / "a.png").exists()


def test_choices():
    assert (
        pick_steps(None, 20) == [0, 5, 10, 14, 19] and pick_steps(None, 1) == [0] and pick_steps(None, 3) == [0, 1, 2]
    )
    assert pick_steps("3, 1", 3) == [0, 2]
    layers = ["down.0", "mid", "up.0", "up.1"]
    assert pick_layers(layers, None) == layers
    assert pick_layers(layers, "up,1") == ["down.0", "up.0", "up.1"]
    assert parse_pixel("0, 3", (2, 4)) == (0, 3)
    with pytest.raises(ValueError, match="--query"):
        parse_pixel("1", (2, 4))
