"""Every network that takes or makes items states their shape, from its configuration alone."""

import json
import subprocess
import sys

import pytest
import torch

import hfgen
from hfgen.registry import NETWORKS
from hfgen.saving.portable import one_file

WITHOUT_ITEMS = {
    *("CalibrationModel", "FlowPriorModel", "GaussianMixturePriorModel", "TextAutoencoderModel", "WordVectorsModel"),
}
"""Networks of scores, of latents and of words."""

TRANSFORMER = {"patch_size": 1, "hidden_size": 8, "num_layers": 1, "num_attention_heads": 2}
DENOISERS = {
    "DiTModel": TRANSFORMER,
    "UViTModel": TRANSFORMER,
    "UniDiffuserModel": TRANSFORMER,
    "UniDiffuserUNetModel": {
        **{"block_out_channels": (8,), "attention_levels": (False,), "norm_num_groups": 4, "attention_head_dim": 8},
        **{"hidden_size": 8, "num_layers": 1, "num_attention_heads": 2},
    },
    "PatchUNet2DModel": {
        "block_out_channels": (8,),
        "attention_levels": (False,),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    },
}
BESIDE_DENOISERS = ("NoisyClassifierModel", "VarianceHeadModel")
WITHOUT_OUT_CHANNELS = ("MaskedAutoencoderModel", "UniDiffuserModel", "UniDiffuserUNetModel")
TRANSFORMERS = ("AutoregressiveTransformerModel", "ContinuousTransformerModel")
CLASSES = sorted(set(NETWORKS) - WITHOUT_ITEMS)


def build(name, sample_size, channels):
    """A network of this class for items of this size, with its other options small or default."""
    if name == "AugmentedFlowModel":
        return hfgen.AugmentedFlowModel("CouplingFlowModel", {"sample_size": sample_size, "in_channels": channels + 1})
    if name == "EnergyModel":
        inner = {"sample_size": sample_size, "in_channels": channels, "out_channels": channels}
        return hfgen.EnergyModel("PatchUNet2DModel", {**inner, **DENOISERS["PatchUNet2DModel"]})
    if name == "MaskedAutoregressiveModel":
        sides = sample_size if isinstance(sample_size, tuple) else (sample_size, sample_size)
        return hfgen.MaskedAutoregressiveModel(sample_shape=(channels, *sides), hidden_size=8)
    options = {"in_channels": channels, "out_channels": channels, **DENOISERS.get(name, {})}
    if "Discriminator" in name or "Flow" in name or name in (*TRANSFORMERS, *BESIDE_DENOISERS, *WITHOUT_OUT_CHANNELS):
        options.pop("out_channels")
    if "Generator" in name:
        options.pop("in_channels")
    return getattr(hfgen, name)(sample_size=sample_size, **options)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("sample_size", "side"), [(8, (8, 8)), ((8, 12), (8, 12))])
@pytest.mark.parametrize("name", CLASSES)
def test_the_shape_is_channels_height_width(name, sample_size, side, device):
    with torch.device(device):
        network = build(name, sample_size, 3)
    assert network.sample_shape == (3, *side)
    assert {parameter.device.type for parameter in network.parameters()} == {device}


@pytest.mark.parametrize("name", CLASSES)
def test_items_have_that_shape(name):
    network = build(name, (8, 12), 3).eval()
    x = torch.zeros(2, *network.sample_shape)
    if "Generator" in name:
        assert network(torch.zeros(2, network.config.latent_channels)).sample.shape == x.shape
    elif "Discriminator" in name:
        assert network(x).logits.shape == (2,)
    elif name == "AugmentedFlowModel":
        assert network(x).latents.shape[2:] == x.shape[2:]
    elif "Flow" in name:
        assert network(x).latents.shape == x.shape
    elif name == "NoisyClassifierModel":
        assert network(x, torch.zeros(2)).logits.shape == (2, 10)
    elif name == "VarianceHeadModel":
        assert network(x, x, torch.zeros(2)).sample.shape == x.shape
    elif name == "EnergyModel":
        assert network.score(x).shape == x.shape
    elif name == "ContinuousTransformerModel":
        tokens = network(x, torch.zeros_like(x), torch.zeros(2, network.length)).sample
        assert tokens.numel() == x.numel()
    elif "Autoregressive" in name:
        assert network(x).log_prob.shape == (2,)
    else:
        time = (torch.zeros(2),) if name in DENOISERS else ()
        if name.startswith("UniDiffuser"):  # beside latents of texts at a time of their own
            time += (torch.zeros(2, *network.text_shape), torch.zeros(2))
        assert network(x, *time).sample.shape == x.shape


def test_a_denoiser_with_learned_variances_states_the_shape_of_its_items():
    network = hfgen.DiTModel(sample_size=8, in_channels=3, out_channels=6, **DENOISERS["DiTModel"])
    assert network.sample_shape == (3, 8, 8)


def test_it_is_there_where_hfgen_is_not(tmp_path):
    """The shipped source file of each class, imported by a process that cannot import hfgen."""
    for name in CLASSES:
        (tmp_path / f"{name}.py").write_text(one_file(name, NETWORKS[name]).text, encoding="utf-8")
        build(name, (8, 12), 3).save_config(tmp_path / name)
    code = f"""
import importlib, json, sys
sys.path[:] = [{str(tmp_path)!r}] + [path for path in sys.path if path]
sys.modules["hfgen"] = None
shapes = {{}}
for name in {CLASSES!r}:
    kind = getattr(importlib.import_module(name), name)
    shapes[name] = kind.from_config(kind.load_config({str(tmp_path)!r} + "/" + name)).sample_shape
print(json.dumps(shapes))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert output.returncode == 0, output.stderr
    assert json.loads(output.stdout.splitlines()[-1]) == {name: [3, 8, 12] for name in CLASSES}
