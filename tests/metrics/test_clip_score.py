"""CLIP scores by a small model with random weights: against the logits of transformers' own model; refusals."""

import json

import pytest
import torch

import hfgen
from tests.helpers.text import tokenizer

TEXTS = ["a cat", "b", "cat cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP model whose images are 8 x 8."""
    from transformers import CLIPConfig, CLIPModel

    folder, words = tmp_path_factory.mktemp("clip") / "tiny", tokenizer()
    torch.manual_seed(0)
    shared = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 6}
    text = {**shared, "vocab_size": len(words), **ids}
    vision = {**shared, "image_size": 8, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    words.save_pretrained(folder)
    form = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "crop_size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(form))
    return folder


def images(count=3, channels=3):
    return 2 * torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0)) - 1


def test_scores_are_the_cosines_of_the_whole_model(folder):
    """transformers' model gives exp(logit_scale) cos for all pairs in one pass."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    tokens = tokenizer()(TEXTS, padding=True, return_tensors="pt")
    pixels = ((images() + 1) / 2 - 0.5) / 0.25
    with torch.no_grad():
        logits = model(**tokens, pixel_values=pixels).logits_per_image / model.logit_scale.exp()
    found = hfgen.ClipScore(str(folder)).scores(images(), TEXTS)
    torch.testing.assert_close(found, 100 * logits.diag().double().clamp(min=0), atol=1e-3, rtol=1e-4)
    assert found.shape == (3,) and float(found.min()) >= 0 and float(found.max()) <= 100


def test_a_pair_has_the_same_score_alone_and_grey_is_a_colour(folder, monkeypatch):
    score = hfgen.ClipScore(str(folder))
    whole = score.scores(images(), TEXTS)
    monkeypatch.setattr("hfgen.metrics.clip_score.BATCH", 2)
    torch.testing.assert_close(score.scores(images(), TEXTS), whole, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(score.scores(images()[1:2], TEXTS[1]), whole[1:2], atol=1e-3, rtol=1e-4)
    grey = images(channels=1)
    torch.testing.assert_close(score.scores(grey, TEXTS), score.scores(grey.expand(-1, 3, -1, -1), TEXTS))


def test_the_measurement_is_the_mean_by_the_models_name(folder):
    score = hfgen.ClipScore(str(folder))
    found = score.measure(images(), TEXTS)
    assert found.value == pytest.approx(float(score.scores(images(), TEXTS).mean()))
    assert found.metric == f"CLIP score (tiny, {score.encoder.revision})" and found.better == "higher"


def test_refusals(folder, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    score = hfgen.ClipScore(str(folder))
    with pytest.raises(ValueError, match="3 images and 2 texts: give a text for each"):
        score.scores(images(), TEXTS[:2])
    with pytest.raises(ValueError, match="0 images and 0 texts"):
        score.scores(images(0), [])
    with pytest.raises(ValueError, match="can't be used as an image encoder"):
        hfgen.ClipScore(str(tmp_path / "nothing"))
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    Dinov2Model(Dinov2Config(**vision)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text((folder / "preprocessor_config.json").read_text())
    with pytest.raises(ValueError, match="holds a Dinov2Model, which embeds no texts"):
        hfgen.ClipScore(str(tmp_path))
