"""Hidden features of denoisers: against the network's own parts, the path by its formula, and refusals."""

import pytest
import torch
from hfgen.pipelines.hidden_features import hidden_features
from torch.testing import assert_close

import hfgen
from hfgen.models.hidden_layers import middle_layer
from hfgen.registry import PATHS


def denoiser(name="DiTModel", **options):
    torch.manual_seed(0)
    shared = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    if name == "PatchUNet2DModel":
        options |= {
            "block_out_channels": (8,),
            "attention_levels": (False,),
            "norm_num_groups": 4,
            "attention_head_dim": 8,
        }
    else:
        options |= {"patch_size": 2, "hidden_size": 8, "num_layers": 3, "num_attention_heads": 2}
    network = getattr(hfgen, name)(**shared, **options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def pipeline(network, path="straight", **options):
    scheduler = hfgen.RectifiedFlowScheduler() if path == "straight" else hfgen.DDIMScheduler.from_config(PATHS[path])
    return hfgen.DenoisingPipeline(network, scheduler, **options)


def images(count=3):
    return 2 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1


def noise(count=3, seed=0):
    draws = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]
    return torch.stack(draws)


def test_they_are_the_mean_of_a_blocks_output_on_the_path():
    network, x = denoiser(), images()
    found = {}
    network.blocks[1].register_forward_hook(lambda module, args, output: found.update(output=output))
    features = hidden_features(pipeline(network), x, time=0.25, seed=4)
    with torch.no_grad():
        network(0.75 * x + 0.25 * noise(seed=4), torch.tensor(250.0))
    assert_close(features, found["output"].mean(1))
    assert features.shape == (3, 8)
    assert_close(hidden_features(pipeline(network), x, "blocks.1", 0.25, 4), features)
    assert not torch.allclose(hidden_features(pipeline(network), x, "blocks.0", 0.25, 4), features)


def test_a_path_of_time_steps_has_the_nearest_later_one():
    network, x = denoiser("UViTModel"), images()
    alphas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)
    features, found = hidden_features(pipeline(network, "vp"), x, time=0.0501), {}
    network.blocks[1].register_forward_hook(lambda module, args, output: found.update(output=output))
    expected = []
    for step in (49, 50, 51):
        alpha = alphas[step]
        network(float(alpha.sqrt()) * x + float((1 - alpha).sqrt()) * noise(), torch.tensor(step))
        expected.append(found["output"].mean(1))
    errors = [float((each - features).detach().abs().max()) for each in expected]
    assert min(errors) < 1e-5


def test_the_middle_of_a_unet_is_a_map():
    network = denoiser("PatchUNet2DModel")
    assert middle_layer(network).endswith("mid_block")
    assert hidden_features(pipeline(network), images()).shape == (3, 8)
    with pytest.raises(ValueError, match="Linear has no mid_block and no blocks"):
        middle_layer(torch.nn.Linear(1, 1))


def test_an_image_has_the_same_features_alone_and_in_a_batch():
    model, x = pipeline(denoiser()), images(5)
    whole = hidden_features(model, x, seed=3)
    assert_close(hidden_features(model, x, seed=3, batch_size=2), whole)
    assert_close(hidden_features(model, x[2:3], seed=5), whole[2:3])
    assert not model.denoiser.blocks[1]._forward_hooks


def test_a_model_with_classes_is_told_none():
    network, x = denoiser(num_class_embeds=4), images()
    features = hidden_features(pipeline(network, num_classes=3), x, time=0.5)
    network.class_embedding.weight.data[:3] += 1  # of the classes
    assert torch.equal(hidden_features(pipeline(network, num_classes=3), x, time=0.5), features)
    network.class_embedding.weight.data[3] += 1
    assert not torch.equal(hidden_features(pipeline(network, num_classes=3), x, time=0.5), features)
    with pytest.raises(ValueError, match="This model needs class_labels"):
        hidden_features(pipeline(denoiser(num_class_embeds=3), num_classes=3), x)


def test_refusals():
    model, x = pipeline(denoiser()), images()
    with pytest.raises(ValueError, match=r"layer='blocks.9' is not known. Choose one of: .*blocks.0"):
        hidden_features(model, x, "blocks.9")
    with pytest.raises(ValueError, match="output of 'time_embedding' is no map"):
        hidden_features(model, x, "time_embedding")
    with pytest.raises(ValueError, match=r"time=1\.5 must be from 0 to 1"):
        hidden_features(model, x, time=1.5)
    with pytest.raises(ValueError, match=r"MAEPipeline has no denoiser\. Call its encode"):
        hidden_features(hfgen.MAEPipeline(hfgen.MaskedAutoencoderModel(8, 1, 2, 8, 1, 2, 8, 1, 2)), x)
