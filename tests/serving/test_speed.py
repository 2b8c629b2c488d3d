"""Faster networks draw what the network draws, up to what they round, and what would not help is refused."""

import importlib.util

import pytest
import torch

import hfgen
from hfgen.serving.jobs import Draw
from hfgen.serving.revision import revision_of
from hfgen.serving.speed import compile_networks, linear_weights, quantize
from tests.saving import test_portable as portable

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def transformer(**options):
    sizes = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "patch_size": 2, "num_class_embeds": 3}
    return hfgen.DenoisingPipeline(portable.network("DiTModel", **sizes, **options), hfgen.RectifiedFlowScheduler(), 2)


def convolutions():
    network = hfgen.build_denoiser("patch_unet", "xs", 8, 1, None)
    return hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler())


def test_linear_weights_are_those_of_linear_layers():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(2, 7, bias=False))
    assert linear_weights(layers) == 15 + 14


@needs_torchao
def test_weights_of_8_bits_are_within_half_a_step():
    """A row with largest magnitude m has 127 steps on each side: no weight moves by more than m / 254."""
    plain, rounded = transformer(), transformer()
    rounded.denoiser.load_state_dict(plain.denoiser.state_dict())
    quantize(rounded)
    after = dict(rounded.denoiser.named_modules())
    changed = 0
    for name, layer in plain.denoiser.named_modules():
        if isinstance(layer, torch.nn.Linear):
            moved = (after[name].weight.dequantize() - layer.weight).abs()
            assert (moved <= layer.weight.abs().amax(1, keepdim=True) / 254 * 1.02 + 1e-8).all(), name
            changed += int((moved > 0).sum())
    assert changed > 100
    assert revision_of(rounded) != revision_of(plain)


@needs_torchao
def test_a_pipeline_of_8_bits_draws_nearly_the_same():
    plain, rounded = transformer(), transformer()
    rounded.denoiser.load_state_dict(plain.denoiser.state_dict())
    quantize(rounded)
    a, b = (one(4, generator=torch.Generator().manual_seed(0), output_type="pt").images for one in (plain, rounded))
    assert 0 < (a - b).abs().max() < 0.05


def test_convolutions_are_refused_with_their_share():
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("without torchao, that is what is refused")
    with pytest.raises(ValueError, match=r"would change \d+% of the weights of DenoisingPipeline.*bfloat16"):
        quantize(convolutions())


def test_without_torchao_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'hfgen\[int8\]'"):
        quantize(transformer())


def test_compiled_networks_keep_their_weights_and_samples():
    """The backend `eager` traces as any other does, and needs no compiler."""
    pipeline = transformer()
    before = pipeline(3, generator=torch.Generator().manual_seed(1), output_type="pt").images
    names, revision = list(pipeline.denoiser.state_dict()), revision_of(pipeline)
    pipeline.denoiser.compile(backend="eager")
    assert list(pipeline.denoiser.state_dict()) == names and revision_of(pipeline) == revision
    after = pipeline(3, generator=torch.Generator().manual_seed(1), output_type="pt").images
    assert torch.allclose(before, after, atol=1e-5)


def test_all_networks_are_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    sizes = portable.AUTOENCODERS["MLPAutoencoderModel"]
    autoencoder = portable.network("MLPAutoencoderModel", **sizes)
    compile_networks(hfgen.VAEPipeline(autoencoder, hfgen.GaussianMixturePriorModel((3, 1, 1), 2)))
    compile_networks(transformer())
    assert sorted(compiled) == ["DiTModel", "GaussianMixturePriorModel", "MLPAutoencoderModel"]


def test_compiled_batches_of_any_size_share_two_forms():
    """After `warm` no size that is asked for compiles again."""
    from hfgen.web.models import model_of
    from hfgen.web.trial import warm

    torch._dynamo.reset()
    pipeline, counts = transformer(), []

    def backend(graph, inputs):
        counts.append(len(inputs))
        return graph.forward

    pipeline.denoiser.compile(backend=backend)
    model = model_of("digits", pipeline)
    warm(model, 8)
    before = len(counts)
    for size in (1, 2, 3, 5, 7, 8):
        job = Draw(pipeline, 0, size, model.example)
        job.run([job])
    assert before == len(counts) > 0
