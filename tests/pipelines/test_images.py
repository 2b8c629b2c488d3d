"""Images in any form become what networks take, or are refused by name."""

import logging
import math

import numpy as np
import pytest
import torch
from hfgen.pipelines.images import image_batch
from hfgen.pipelines.inputs import check_latents, noise_of
from PIL import Image
from torch.testing import assert_close

import hfgen
from hfgen.models.autoencoder_with_prior import latent_shape
from hfgen.models.calibration import CalibrationModel
from hfgen.models.vq import VQAutoencoderModel

LEVELS = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3), dtype=np.uint8)  # (B, H, W, C)
LEVELS[0, 0, :2, 0] = 0, 255
SHAPE = (3, 6, 4)
EXPECTED = torch.tensor(LEVELS.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1)


def pictures(mode="RGB"):
    return [Image.fromarray(pixels).convert(mode) for pixels in LEVELS]


@pytest.mark.parametrize(
    "images",
    [
        LEVELS,
        LEVELS[:, :, ::-1][:, :, ::-1],
        LEVELS.transpose(0, 3, 1, 2),
        torch.tensor(LEVELS),
        torch.tensor(LEVELS).permute(0, 3, 1, 2),
        LEVELS.astype(np.float32) / 127.5 - 1,
        LEVELS.transpose(0, 3, 1, 2) / 127.5 - 1,
        (LEVELS / 127.5 - 1).astype(">f4"),
        EXPECTED.float(),
        EXPECTED.permute(0, 2, 3, 1),
        (LEVELS / 127.5 - 1).tolist(),
        pictures(),
        tuple(pictures()),
        pictures("RGBA"),
        list(LEVELS),
        list(EXPECTED),
        [pictures()[0], EXPECTED[1].float()],
    ],
)
def test_all_forms_of_images_are_one(images):
    assert_close(image_batch(images, SHAPE), EXPECTED, rtol=0, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_keep_their_type_and_levels_become_float32(dtype):
    assert image_batch(EXPECTED.to(dtype), SHAPE).dtype == dtype
    assert image_batch(torch.tensor(LEVELS), SHAPE).dtype == torch.float32


def test_axes_that_fit_both_ways_are_channels_first_in_a_tensor_and_last_in_an_array():
    cube = np.arange(27, dtype=np.uint8).reshape(1, 3, 3, 3)
    assert image_batch(torch.tensor(cube), (3, 3, 3))[0, 1, 0, 2] == 11 / 127.5 - 1  # 9 + 0 + 2
    assert image_batch(cube, (3, 3, 3))[0, 1, 0, 2] == torch.tensor(7 / 127.5 - 1)  # row 0, column 2, channel 1


def grey(values, mode="L"):
    return Image.fromarray(np.array(values, dtype=np.uint16 if mode == "I;16" else np.uint8))


def with_alpha(alpha):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 255, 0, alpha))
    return image


GREEN = [[[255, 0]], [[0, 255]], [[0, 0]]]


@pytest.mark.parametrize(
    ("image", "channels", "levels"),
    [
        (grey([[0, 200]]), 1, [[[0, 200]]]),
        (grey([[0, 200]]), 3, [[[0, 200]]] * 3),
        (grey([[0, 200]]), 4, [*[[[0, 200]]] * 3, [[255, 255]]]),
        (grey([[0, 255]]).convert("1"), 1, [[[0, 255]]]),
        (grey([[0, 255]]).convert("LA"), 1, [[[0, 255]]]),
        (grey([[0, 65535]], "I;16"), 1, [[[0, 255]]]),
        (grey([[257, 1000]], "I;16"), 1, [[[1, 4]]]),  # 1000 / 257 = 3.89
        (grey([[257, 1000]], "I;16").convert("I"), 3, [[[1, 4]]] * 3),
        (with_alpha(255), 3, GREEN),
        (with_alpha(255).convert("RGB"), 4, [*GREEN, [[255, 255]]]),
        (with_alpha(100), 4, [*GREEN, [[255, 100]]]),
        (with_alpha(255).convert("RGB").convert("P"), 3, GREEN),
    ],
)
def test_modes_of_pil_that_lose_nothing_are_converted(image, channels, levels):
    shape = (channels, 1, 2)
    assert_close(image_batch(image, shape), torch.tensor([levels]) / 127.5 - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "channels", "message"),
    [
        (with_alpha(255).convert("RGB"), 1, r"images\[0\] has mode RGB, and this model's images are L: image.convert"),
        (with_alpha(255).convert("RGB").convert("P"), 1, "has mode RGB|has mode P"),
        (with_alpha(100), 3, "is partly transparent"),
        (with_alpha(100).convert("LA"), 1, "is partly transparent"),
        (with_alpha(255).convert("CMYK"), 3, "has mode CMYK"),
        (Image.fromarray(np.zeros((1, 2), np.float32)), 1, "has mode F"),
        (Image.fromarray(np.full((1, 2), -1, np.int32)), 1, "mode I with values outside 0..65535"),
        (grey([[0], [1]]), 1, r"is 1 x 2 pixels, and this model's images are 2 x 1 .*image\.resize\(\(2, 1\)\)"),
        (grey([[0, 1]]), 2, "this model's images have 2 channels. Give a tensor"),
    ],
)
def test_pil_images_that_do_not_fit_are_refused(image, channels, message):
    with pytest.raises(ValueError, match=message):
        image_batch(image, (channels, 1, 2))


def test_a_photograph_is_turned_upright():
    image = grey([[0], [100]])
    image.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert_close(image_batch(image, (1, 1, 2)), torch.tensor([[[[100, 0]]]]) / 127.5 - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (EXPECTED * 127.5 + 127.5, r"values from .* to 255, not in \[-1, 1\]"),
        (EXPECTED * 2, r"not in \[-1, 1\]"),
        (EXPECTED + 0.01, r"not in \[-1, 1\]"),
        (EXPECTED.where(EXPECTED < 0.99, math.nan), "values that are not finite"),
        (EXPECTED.where(EXPECTED < 0.99, -math.inf), "values that are not finite"),
        (torch.tensor(LEVELS).long(), r"have type torch\.int64; give uint8 in 0\.\.255"),
        (torch.tensor(LEVELS) > 99, r"have type torch\.bool"),
        (EXPECTED.to(torch.complex64), r"have type torch\.complex64"),
        (LEVELS.astype(np.uint16), "have type torch.uint16|hold no numbers"),
        (LEVELS.astype(object), "hold no numbers of one shape"),
        (EXPECTED[0], r"shape \(3, 6, 4\); this model needs \(B, 3, 6, 4\)"),
        (EXPECTED[:0], r"this model needs \(B, 3, 6, 4\)"),
        (EXPECTED[:, :1], r"this model needs \(B, 3, 6, 4\)"),
        (EXPECTED.transpose(2, 3), r"shape \(2, 3, 4, 6\); this model needs \(B, 3, 6, 4\)"),
        ([], r"this model needs \(B, 3, 6, 4\)"),
        ([EXPECTED[0], EXPECTED[1, :1]], r"images\[1\] has shape \(1, 6, 4\)"),
        (["a.png"], r"images\[0\] are of type str"),
        ("a.png", "images are of type str"),
        (None, "images are of type NoneType"),
        ([[[1, [2]]]], "hold no numbers of one shape"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        image_batch(images, SHAPE)


def test_numbers_between_0_and_1_give_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        image_batch(EXPECTED, SHAPE)
        image_batch(torch.zeros(1, *SHAPE), SHAPE)
        assert not caplog.records
        bright = np.full((2, *SHAPE[1:], SHAPE[0]), 200, np.uint8)  # its range is known
        for levels in (bright, torch.tensor(bright), list(bright), [Image.fromarray(bright[0])]):
            image_batch(levels, SHAPE)
        assert not caplog.records
        image_batch((EXPECTED + 1) / 2, SHAPE)
    assert "read as pixels in [-1, 1]; if they are in [0, 1], give 2 * x - 1" in caplog.text


def test_data_in_any_range_are_taken_but_levels_as_floats_are_not():
    wide = 10 * torch.randn(4, 3, 6, 4)
    assert torch.equal(image_batch(wide, SHAPE, limit=math.inf), wide)
    with pytest.raises(ValueError, match=r"to 255, not in \[-1, 1\]"):
        image_batch(torch.tensor(LEVELS).float(), SHAPE, limit=math.inf)
    sequences = torch.randn(2, 5, 3).abs() * 99
    assert torch.equal(image_batch(sequences, (5, 3), limit=math.inf), sequences)
    with pytest.raises(ValueError, match=r"x have type torch\.uint8; give floats"):
        image_batch(sequences.byte(), (5, 3), "x", math.inf)
    with pytest.raises(ValueError, match="x are of type Image"):
        image_batch(grey([[0, 1]]), (5, 3), "x", math.inf)


# --- every method of every pipeline -----------------------------------------------------------------------------------


def one_of_each():
    """Return a small pipeline of each kind, by name."""
    torch.manual_seed(0)
    autoencoder = hfgen.build_autoencoder("conv", "s", 8, 3, 3)
    prior = hfgen.GaussianMixturePriorModel(latent_shape=latent_shape(autoencoder))
    network = hfgen.DiTModel(8, 3, 3, patch_size=4, hidden_size=8, num_layers=1, num_attention_heads=1)
    generator, _ = hfgen.build_gan("mlp", "xs", 8, 3)
    return {
        "vae": hfgen.VAEPipeline(autoencoder, prior, likelihood="gaussian"),
        "vq": hfgen.VQPipeline(VQAutoencoderModel(8, 3, 3, (8,), 1, 4, 16)),
        "denoising": hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler()),
        "gan": hfgen.GANPipeline(generator),
        "anomaly": hfgen.AnomalyPipeline(autoencoder, prior, CalibrationModel(1), score="reconstruction"),
        "flow": hfgen.NormalizingFlowPipeline(hfgen.build_flow("realnvp", "xs", 8, 3)),
    }


@pytest.fixture(scope="module")
def pipelines():
    return one_of_each()


def seed():
    return torch.Generator().manual_seed(0)


METHODS = [
    ("vae", lambda p, x: p.encode(x)),
    ("vae", lambda p, x: p.reconstruct(x)),
    ("vae", lambda p, x: p.interpolate(x, x, 2)),
    ("vae", lambda p, x: p.attribute_direction(x, x[:1] if not isinstance(x, Image.Image) else x)),
    ("vae", lambda p, x: p.change(x, torch.zeros(p.latent_shape))),
    ("vae", lambda p, x: p.traversal(x[0] if isinstance(x, list) else x[:1], [0], 2)),
    ("vae", lambda p, x: p.elbo(x, 1, seed())),
    ("vae", lambda p, x: p.log_likelihood(x, 1, seed())),
    ("vae", lambda p, x: p.bits_per_dim(x, 1, seed())),
    ("vq", lambda p, x: p.encode(x)),
    ("vq", lambda p, x: p.reconstruct(x)),
    ("vq", lambda p, x: torch.tensor(p.perplexity(x))),
    ("denoising", lambda p, x: p.log_likelihood(x, num_inference_steps=1, generator=seed())),
    ("denoising", lambda p, x: p.bits_per_dim(x, num_inference_steps=1, generator=seed())),
    ("denoising", lambda p, x: p.variational_bound(x, num_inference_steps=2, generator=seed())),
    ("gan", lambda p, x: p.project(x, steps=1)),
    ("gan", lambda p, x: p.encode(x[:1])),
    ("anomaly", lambda p, x: p.anomaly_score(x)),
    ("anomaly", lambda p, x: p.describe(x)),
    ("flow", lambda p, x: p.encode(x)),
    ("flow", lambda p, x: p.reconstruct(x)),
    ("flow", lambda p, x: p.interpolate(x, x, 2)),
    ("flow", lambda p, x: p.log_likelihood(x)),
    ("flow", lambda p, x: p.bits_per_dim(x, generator=seed())),
]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_every_method_takes_all_forms_and_refuses_what_does_not_fit(pipelines, name, method):
    pipeline = pipelines[name]
    pipeline.set_progress_bar_config(disable=True)
    levels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    floats = torch.tensor(levels / 127.5 - 1).float().permute(0, 3, 1, 2)
    expected = method(pipeline, floats)
    for images in (levels, torch.tensor(levels).permute(0, 3, 1, 2), [Image.fromarray(each) for each in levels]):
        assert_close(method(pipeline, images), expected, rtol=1e-4, atol=1e-4)
    for wrong in (floats * 127.5 + 127.5, floats.where(floats < 0.9, math.nan), floats[..., :4], floats.long()):
        with pytest.raises(ValueError, match=r"not in \[-1, 1\]|not finite|needs|has shape|have type"):
            method(pipeline, wrong)


def zeros(pipeline):
    return torch.zeros(1, *getattr(pipeline, "latent_shape", pipeline.sample_shape))


ARGUMENTS = [
    (("vae", "gan", "anomaly", "denoising", "flow"), "interpolate", {"first": "images", "second": "images"}),
    (("vae", "gan", "anomaly", "denoising", "flow"), "between", {"first": "latents", "second": "latents"}),
    (("vae", "gan", "anomaly", "flow"), "attribute_direction", {"having": "images", "lacking": "images"}),
    (("vae", "gan", "anomaly", "flow"), "traversal", {"image": "images", "reach": 3.0}),
    (("vae", "gan", "anomaly", "flow"), "change", {"images": "images", "direction": "direction", "strength": 1.0}),
    (("denoising",), "invert", {"images": "images"}),
    (("denoising", "flow"), "log_likelihood", {"x": "images"}),
    (("denoising", "flow"), "bits_per_dim", {"images": "images"}),
    (("gan",), "project", {"images": "images"}),
    (("vq", "flow"), "encode", {"images": "images"}),
    (("vae", "gan", "anomaly", "denoising", "flow"), "decode", {"latents": "latents"}),
    (("denoising",), "__call__", {"timesteps": [5.0], "guidance_interval": (0.0, 1.0)}),
    (("denoising",), "__call__", {"sigmas": [0.5], "guidance_interval": (0.0, 1.0)}),
    (("vae", "flow"), "__call__", {"temperature": 1.0, "generator": None}),
    (("vae", "gan", "denoising", "flow"), "__call__", {"latents": "latents"}),
]
"""Kinds of pipelines, a method of theirs, and good arguments; texts name those below."""


@pytest.mark.parametrize("wrong", [math.nan, "nonsense", torch.full((1, 2), math.nan), [math.inf]])
@pytest.mark.parametrize(("names", "method", "arguments"), ARGUMENTS)
def test_what_is_refused_is_called_what_the_caller_called_it(pipelines, names, method, arguments, wrong):
    """Whatever the functions below call it."""
    for pipeline in (pipelines[name] for name in names):
        pipeline.set_progress_bar_config(disable=True)
        latents = zeros(pipeline)
        values = {"images": torch.full((1, *pipeline.sample_shape), -1.0), "latents": latents, "direction": latents[0]}
        good = {name: values[x] if isinstance(x, str) else x for name, x in arguments.items()}
        for name in good:
            with pytest.raises(ValueError, match=rf"\b{name}"):
                getattr(pipeline, method)(**{**good, name: wrong})


def test_bright_levels_give_no_warning_at_a_second_look(pipelines, caplog):
    """They are floats above 0 after the first conversion, and no pixels in [0, 1]."""
    bright = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    for name in ("vae", "flow"):
        pipelines[name].attribute_direction(bright, bright)
    pipelines["vae"].interpolate(bright, bright, 2)
    pipelines["vae"].bits_per_dim(bright, 1, seed())
    pipelines["denoising"].interpolate(bright, bright, 2, num_inference_steps=4)
    assert not caplog.records


# --- latents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.full((2, 3), math.nan), "latents have 6 of 6 values that are not finite"),
        (torch.tensor([[0.0, math.inf, 1.0]] * 2), "latents have 2 of 6 values that are not finite"),
        (torch.zeros(2, 3, dtype=torch.long), r"latents have type torch\.int64; give floating-point numbers"),
        (np.zeros((2, 3), np.float32), "latents are of type ndarray; give a tensor"),
        (torch.zeros(2, 4), r"latents have shape \(2, 4\)"),
    ],
)
def test_latents_that_are_no_numbers_are_refused(latents, message):
    with pytest.raises(ValueError, match=message):
        noise_of((2, 3), latents, None, torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        check_latents(latents, (3,))


@pytest.mark.parametrize("name", ["vae", "denoising", "gan"])
def test_latents_that_are_not_finite_are_not_sampled_or_decoded(pipelines, name):
    pipeline = pipelines[name]
    shape = getattr(pipeline, "latent_shape", pipeline.sample_shape)
    wrong = torch.zeros(2, *shape).index_fill_(0, torch.tensor(1), math.nan)
    with pytest.raises(ValueError, match=r"latents have .* values that are not finite"):
        pipeline(latents=wrong, batch_size=2)
    if hasattr(pipeline, "decode"):
        for call in (lambda: pipeline.decode(wrong), lambda: pipeline.between(wrong, wrong, 2)):
            with pytest.raises(ValueError, match=r"(latents|first) have .* values that are not finite"):
                call()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 4, 4), r"not torch\.float32"),
        (torch.zeros(2, 4, 4, dtype=torch.bool), r"not torch\.bool"),
        (torch.zeros(2, 2, 2, dtype=torch.long), r"codes have shape \(2, 2, 2\); this model needs \(B, 4, 4\)"),
        (torch.full((2, 4, 4), 16), "codes are from 0 to 15; these go from 16 to 16"),
        (torch.full((2, 4, 4), -1), "codes are from 0 to 15"),
    ],
)
def test_codes_that_do_not_fit_are_refused(pipelines, codes, message):
    assert pipelines["vq"].code_shape == (4, 4)
    with pytest.raises(ValueError, match=message):
        pipelines["vq"](codes)
    with pytest.raises(ValueError, match=message):
        pipelines["vq"].decode(codes)


def test_codes_of_any_type_of_whole_numbers_are_decoded(pipelines):
    codes = torch.arange(32).view(2, 4, 4) % 16
    expected = pipelines["vq"].decode(codes)
    for same in (codes.to(torch.uint8), codes.int(), codes.numpy(), codes.tolist()):
        assert torch.equal(pipelines["vq"].decode(same), expected)
