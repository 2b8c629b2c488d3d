"""Text to image: prompts, negative prompts, guidance and refusals; the same bits after saving."""

import logging

import pytest
import torch
from torch.testing import assert_close

import hfgen
from hfgen.models.text_tokens import encoded
from tests.helpers.text import text_encoder, text_encoders, tokenizer
from tests.models.test_denoisers import perturb

SIZES = {"patch_size": 4, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2}


def make(null_text=True, encoder=None, **options):
    torch.manual_seed(0)
    network = perturb(hfgen.UViTModel(8, 1, 1, text_channels=8, **SIZES))
    parts = text_encoder() if encoder is None else encoder, tokenizer(), 6
    pipeline = hfgen.TextToImagePipeline(network, hfgen.RectifiedFlowScheduler(), *parts, null_text=null_text)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(count, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def draw(pipeline, *prompts, **options):
    options = {"num_inference_steps": 2, "output_type": "latent", **options}
    return pipeline(*prompts, **options).images


@pytest.fixture(scope="module")
def pipeline():
    return make()


def test_images_are_grouped_by_prompt_and_alone_what_they_are_in_a_batch(pipeline):
    latents = noise(4)
    both = draw(pipeline, ["a cat", "dog"], num_images_per_prompt=2, latents=latents)
    for row, prompt in enumerate(["a cat", "a cat", "dog", "dog"]):
        assert_close(draw(pipeline, prompt, latents=latents[row : row + 1])[0], both[row], rtol=1e-4, atol=1e-5)
    assert not torch.equal(draw(pipeline, "a cat", latents=latents[:1]), draw(pipeline, "dog", latents=latents[:1]))
    assert torch.equal(
        draw(pipeline, "dog", batch_size=4, latents=latents), draw(pipeline, ["dog"] * 4, latents=latents)
    )
    assert torch.equal(draw(pipeline, batch_size=4, latents=latents), draw(pipeline, [""] * 4, latents=latents))


def velocity(pipeline, x, text, t=1000.0):
    told = encoded(pipeline.tokenizer, pipeline.text_encoder, [text] * len(x), 6)
    return pipeline.denoiser(x, torch.full((len(x),), t), **told).sample


@torch.no_grad()
def test_guidance_leads_away_from_the_empty_text_or_a_negative_prompt(pipeline):
    x, options = noise(2), {"num_inference_steps": 1, "scheduler": "euler", "latents": noise(2)}
    for negative, scale in ((None, 3.0), ("b", 3.0), ("b", 0.0)):
        given, free = velocity(pipeline, x, "a cat"), velocity(pipeline, x, negative or "")
        guided = draw(pipeline, ["a cat"] * 2, negative, guidance_scale=scale, **options)
        assert_close(guided, x - (free + scale * (given - free)), rtol=1e-4, atol=1e-5)
    each = draw(pipeline, ["a cat", "dog"], ["b", "c"], guidance_scale=2.0, **options)
    alone = draw(pipeline, "dog", "c", guidance_scale=2.0, **{**options, "latents": x[1:]})
    assert_close(each[1:], alone, rtol=1e-4, atol=1e-5)


def test_training_and_sampling_drop_to_the_same_text(pipeline):
    condition = pipeline.condition
    kwargs = pipeline.encode_prompt(["a cat", "dog"])
    null, empty = condition.null(kwargs), encoded(tokenizer(), pipeline.text_encoder, [""], 6)
    for name, value in empty.items():
        assert_close(null[name], value.expand_as(null[name]))


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([["a"], "b"], {}, "negative_prompt does nothing at guidance_scale=1"),
        ([["a", "b"], ["c", "d", "e"]], {"guidance_scale": 2.0}, "3 negative prompts do not go with 2 prompts"),
        ([["a", "b"]], {"batch_size": 3}, "batch_size=3, and 2 prompts with num_images_per_prompt=1 make 2 images"),
        ([[]], {}, "must be a text, or a list of one or more texts"),
        ([], {"guidance_scale": 2.0}, "guidance_scale=2.0 can't be used: a prompt is needed"),
        (["a"], {"guidance_scale": float("nan")}, "guidance_scale=nan must be a finite number"),
        (["a"], {"num_images_per_prompt": 0}, "num_images_per_prompt=0 must be at least 1"),
        (["a"], {"latents": noise(2)}, "latents have shape"),
    ],
)
def test_what_does_not_fit_is_refused(pipeline, words, options, message):
    with pytest.raises(ValueError, match=message):
        draw(pipeline, *words, **options)


def test_a_model_that_never_saw_the_empty_text_is_not_asked_for_it():
    pipeline = make(null_text=False)
    assert draw(pipeline, "a cat").shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="needs a prompt: it was trained without the empty text"):
        draw(pipeline)
    with pytest.raises(ValueError, match=r"trained without the empty text. Use guidance_scale=1"):
        draw(pipeline, "a cat", guidance_scale=2.0)

    def raise_scale(pipeline, step, time, tensors):
        pipeline.guidance_scale = 3.0

    with pytest.raises(ValueError, match=r"guidance_scale=3.0 can't be used"):
        draw(pipeline, "a cat", callback_on_step_end=raise_scale)


def test_a_worse_model_needs_the_same_text_encoder(pipeline):
    worse = make()
    perturb(worse.denoiser, 0.3)
    options = {"guidance_scale": 2.0, "latents": noise(1)}
    led = draw(pipeline, "a cat", guidance=hfgen.Autoguidance(worse, 3.0), **options)
    assert not torch.equal(led, draw(pipeline, "a cat", **options)) and led.isfinite().all()
    perturb(worse.text_encoder)
    with pytest.raises(ValueError, match="text encoder with other weights"):
        draw(pipeline, "a cat", guidance=[hfgen.Autoguidance(worse, 3.0)], **options)


def test_a_prompt_that_is_cut_is_said(pipeline, caplog):
    with caplog.at_level(logging.WARNING):
        draw(pipeline, "dogs dogs")
        draw(pipeline, "a cat")
    (record,) = caplog.records
    assert record.getMessage() == "'dogs dogs' has 10 tokens, and the model reads 6 of them."


@pytest.mark.parametrize("name", ["T5EncoderModel", "SiglipTextModel"])
def test_a_saved_pipeline_draws_the_same_bits(tmp_path, name):
    pipeline = make(encoder=text_encoders()[name])
    pipeline.save_pretrained(tmp_path / "a")
    loaded = hfgen.HFGenPipeline.from_pretrained(tmp_path / "a")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is hfgen.TextToImagePipeline
    options = {"guidance_scale": 2.0, "latents": noise(2)}
    assert torch.equal(draw(loaded, ["a cat", "dog"], "b", **options), draw(pipeline, ["a cat", "dog"], "b", **options))
