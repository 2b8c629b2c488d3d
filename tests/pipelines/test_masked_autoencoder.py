"""The pipeline of masked autoencoders: features, reconstructions, masks, saving; it draws nothing, and says so."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import hfgen
from hfgen.commands import attention, evaluate, sample


def pipeline(**options):
    """A pipeline of 8 x 8 images of a channel, all of whose parameters are random."""
    network = hfgen.MaskedAutoencoderModel(8, 1, 2, 16, 1, 2, 8, 1, 2)
    for number, parameter in enumerate(network.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    made = hfgen.MAEPipeline(network, **options)
    made.set_progress_bar_config(disable=True)
    return made


def images(count=3, seed=0):
    return 2 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) - 1


def test_features_are_the_mean_of_the_encoders_tokens():
    model, x = pipeline(), images()
    tokens = model.encode(x, pooled=False)
    assert tokens.shape == (3, 16, 16)
    assert_close(model.encode(x), tokens.sum(1) / 16)
    assert_close(model(x).features, model.encode(x))
    assert model(x, return_dict=False)[0].shape == (3, 16)
    levels = ((x + 1) * 127.5).round().to(torch.uint8)
    assert_close(model.encode(levels.squeeze(1).unsqueeze(-1).numpy()), model.encode(levels / 127.5 - 1))


def test_features_of_an_image_do_not_depend_on_the_batch(monkeypatch):
    model, x = pipeline(), images(5)
    whole = model.encode(x)
    monkeypatch.setattr("hfgen.pipelines.masked_autoencoder.BATCH", 2)
    assert_close(model.encode(x), whole)
    assert_close(model.encode(x[3:4]), whole[3:4])


@pytest.mark.parametrize(("ratio", "hidden"), [(None, 12), (0.5, 8), (0.0625, 1)])
def test_the_mask_hides_the_share(ratio, hidden):
    model = pipeline()
    mask = model.mask(7, ratio, seed=2)
    assert mask.shape == (7, 1, 8, 8) and mask.dtype == torch.bool
    assert (mask.flatten(1).sum(1) == 4 * hidden).all()
    blocks = mask.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3)  # (B, 4, 4, 4)
    assert (blocks.all(3) == blocks.any(3)).all()  # whole patches


def test_visible_pixels_stay_and_hidden_ones_are_not_looked_at():
    model, x = pipeline(), images()
    mask, made = model.mask(3, seed=4), model.reconstruct(x, seed=4)
    assert torch.equal(made[~mask], x[~mask]) and not (made == x)[mask].any()
    assert made.abs().max() <= 1
    other = torch.where(mask, images(seed=9), x)
    assert torch.equal(model.reconstruct(other, seed=4), made)
    seen = torch.where(mask, x, images(seed=9))
    assert not torch.equal(model.reconstruct(seen, seed=4)[mask], made[mask])


def test_image_i_has_the_mask_of_seed_plus_i():
    model, x = pipeline(), images(1).expand(3, -1, -1, -1)
    made = model.reconstruct(x, seed=5)
    assert_close(model.reconstruct(x[:1], seed=6), made[1:2])
    assert torch.equal(model.mask(1, seed=7), model.mask(3, seed=5)[2:])
    assert not torch.equal(model.mask(1, seed=5), model.mask(1, seed=6))
    assert torch.equal(made, model.reconstruct(x, seed=5))


def test_normalised_targets_get_the_moments_of_the_image():
    """A network that predicts 0 makes the mean of each hidden patch, and one that predicts 1 a deviation more."""
    model, x = pipeline(normalised_targets=True), 0.5 * images()
    model.autoencoder.output.weight.data.zero_()
    hidden = model.mask(3, seed=1).numpy()
    patches = x.numpy().reshape(3, 4, 2, 4, 2)
    mean, variance = (f(patches.astype(float), axis=(2, 4), keepdims=True) for f in (np.mean, np.var))
    for value in (0.0, 1.0):
        model.autoencoder.output.bias.data.fill_(value)
        expected = np.broadcast_to(mean + value * np.sqrt(variance + 1e-6), patches.shape).reshape(3, 1, 8, 8)
        np.testing.assert_allclose(model.reconstruct(x, seed=1).numpy()[hidden], expected[hidden], atol=1e-5)


def test_a_saved_pipeline_has_the_same_bits(tmp_path):
    model, x = pipeline(mask_ratio=0.5, normalised_targets=True), images()
    model.save_pretrained(tmp_path)
    loaded = hfgen.HFGenPipeline.from_pretrained(tmp_path)
    assert type(loaded) is hfgen.MAEPipeline
    assert (loaded.config.mask_ratio, loaded.config.normalised_targets) == (0.5, True)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded.encode(x), model.encode(x))
    assert torch.equal(loaded.reconstruct(x, seed=3), model.reconstruct(x, seed=3))


def test_other_images_and_numbers_are_refused():
    model = pipeline()
    with pytest.raises(ValueError, match=r"images have shape \(1, 1, 4, 4\); this model needs \(B, 1, 8, 8\)"):
        model.encode(torch.zeros(1, 1, 4, 4))
    for ratio in (0.0, 0.01, 1.0):
        with pytest.raises(ValueError, match=f"mask_ratio={ratio} hides"):
            model.reconstruct(images(), ratio)
    for seed in (-1, 2**31):
        with pytest.raises(ValueError, match=f"seed {seed} of a sample"):
            model.reconstruct(images(), seed=seed)
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        model.mask(0)
    with pytest.raises(ValueError, match=r"has no encode and no decode and no grid\. Give a MaskedAutoencoderModel"):
        hfgen.MAEPipeline(hfgen.WordVectorsModel(2, 4))
    model.autoencoder.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"The autoencoder has 16 weights that are not finite, in norm\.weight"):
        model.encode(images())


INSTEAD = r"MAEPipeline draws no samples\. .*encode\(images\).*hfgen train diffusion or hfgen train vae"


def test_sampling_is_refused_with_what_to_use_instead(tmp_path):
    with pytest.raises(ValueError, match=INSTEAD):
        pipeline()()
    pipeline().save_pretrained(tmp_path / "mae")
    for command in (sample, evaluate, attention):
        with pytest.raises(ValueError, match=INSTEAD):
            command.main([str(tmp_path / "mae")])
