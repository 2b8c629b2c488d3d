"""Any torch module as a pipeline's network: called as it is, saved as weights and shape, put back by its user."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

import hfgen
from hfgen.models.torch_model import TorchModel
from tests.helpers import hub_server
from tests.helpers.fuzz import time_limit
from tests.helpers.toys import ROOT


class Net(nn.Module):
    """A network of points with a buffer and a tied weight."""

    def __init__(self, width=16):
        super().__init__()
        self.head, self.tail = nn.Linear(3, width), nn.Linear(width, 2)
        self.again = self.tail
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x, timestep):
        time = (timestep.to(x.dtype) / 1000)[:, None]
        return self.scale * self.tail(torch.tanh(self.head(torch.cat([x, time], 1))))


def net(seed=0, **options):
    torch.manual_seed(seed)
    module = Net(**options)
    module.scale.fill_(0.25)
    return module


def pipeline_of(network, **options):
    pipeline = hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler(), **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def samples(pipeline):
    return pipeline(3, generator=torch.Generator().manual_seed(0), num_inference_steps=3).samples


def test_it_is_the_module():
    module, x, t = net(), torch.randn(4, 2), torch.arange(4.0)
    model = TorchModel(module, (2,))
    assert torch.equal(model(x, timestep=t), module(x, t))
    assert [id(p) for p in model.parameters()] == [id(p) for p in module.parameters()]
    assert model.sample_shape == (2,) and TorchModel(net()).sample_shape is None
    assert model.config.num_class_embeds is None and TorchModel(net(), (2,), 4).config.num_class_embeds == 4


def test_a_saved_folder_holds_weights_and_arguments_and_load_puts_them_back(tmp_path):
    model = TorchModel(net(), (2,), num_class_embeds=4)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["sample_shape"], config["num_class_embeds"]) == ([2], 4)
    loaded = TorchModel.load(net(seed=9), tmp_path)
    assert loaded.sample_shape == (2,) and loaded.config.num_class_embeds == 4 and not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert loaded.module.again is loaded.module.tail  # tied as before


@pytest.mark.parametrize("item", [(2,), (2, 1, 1)])
def test_a_pipeline_with_it_is_saved_and_loaded(tmp_path, item):
    class Shaped(Net):
        def forward(self, x, timestep):
            return super().forward(x.flatten(1), timestep).view_as(x)

    torch.manual_seed(0)
    module = Shaped()
    pipeline = pipeline_of(TorchModel(module, item))
    pipeline.save_pretrained(tmp_path)
    denoiser = TorchModel.load(Shaped(), tmp_path / "denoiser")
    loaded = hfgen.HFGenPipeline.from_pretrained(tmp_path, denoiser=denoiser)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.sample_shape == item and samples(loaded).shape == (3, *item)
    assert torch.equal(samples(loaded), samples(pipeline))


def test_a_fresh_process_that_has_the_class_draws_the_same_bits(tmp_path):
    pipeline = pipeline_of(TorchModel(net(), (2,)))
    pipeline.save_pretrained(tmp_path / "mine")
    code = """
import sys, torch
from hfgen import HFGenPipeline, TorchModel
from tests.models.test_torch_model import Net, samples
denoiser = TorchModel.load(Net(), sys.argv[1] + "/denoiser")
pipeline = HFGenPipeline.from_pretrained(sys.argv[1], denoiser=denoiser)
torch.save(samples(pipeline), sys.argv[1] + "/samples.pt")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "mine")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.equal(torch.load(tmp_path / "mine" / "samples.pt"), samples(pipeline))


def test_it_can_not_be_loaded_without_the_module_and_the_message_says_how(tmp_path):
    pipeline_of(TorchModel(net(), (2,))).save_pretrained(tmp_path)
    fix = f'denoiser=hfgen.TorchModel.load(Net(), "{tmp_path}/denoiser")'
    with pytest.raises(ValueError, match=re.escape(fix)):
        hfgen.HFGenPipeline.from_pretrained(tmp_path)


def test_from_a_repository_weights_are_loaded_into_the_module(tmp_path, monkeypatch):
    pipeline = pipeline_of(TorchModel(net(), (2,)))
    with hub_server.Hub() as hub:
        hub_server.use(hub, monkeypatch, tmp_path / "home")
        pipeline.push_to_hub("someone/mine", token="writer")
        hub.calls.clear()
        denoiser = TorchModel.load(net(seed=5), "someone/mine/denoiser")
        weights = ["denoiser/config.json", "denoiser/diffusion_pytorch_model.safetensors"]
        assert sorted(set(hub.fetched())) == weights
        loaded = hfgen.HFGenPipeline.from_pretrained("someone/mine", denoiser=denoiser)
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(samples(loaded), samples(pipeline))
        with pytest.raises(ValueError, match=r'TorchModel\.load\(Net\(\), "someone/mine/denoiser"\)'):
            hfgen.HFGenPipeline.from_pretrained("someone/mine")


def test_weights_of_another_module_are_refused(tmp_path):
    TorchModel(net(), (2,)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch for module\.head\.weight"):
        TorchModel.load(net(width=8), tmp_path)
    with pytest.raises(OSError, match=r"There is no folder no/such/folder, and no/such can't be read from the Hub: "):
        TorchModel.load(net(), "no/such/folder")


def planted(name, content):
    """Write a file of a saved model anew."""

    def plant(folder):
        (folder / name).write_bytes(content)

    return plant


def special(name, kind):
    """A pipe, a device or a folder in the place of a file."""

    def plant(folder):
        (folder / name).unlink()
        make = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}
        make[kind](folder / name)

    return plant


def values(**tensors):
    """Other weights."""

    def plant(folder):
        file = folder / WEIGHTS
        save_file({**load_file(file), **{f"module.{name}": value for name, value in tensors.items()}}, file)

    return plant


CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
HOSTILE = {
    **{f"{name}, {kind}": special(name, kind) for name in (CONFIG, WEIGHTS) for kind in ("pipe", "device", "folder")},
    "deep": planted(CONFIG, b'{"sample_shape": ' + b"[" * 9999),
    "long": planted(CONFIG, b'{"a": "' + b"x" * (5 << 20) + b'"}'),
    "list": planted(CONFIG, b"[]"),
    "shape": planted(CONFIG, b'{"sample_shape": [2, "x"]}'),
    "shape, text": planted(CONFIG, b'{"sample_shape": "22"}'),
    "negative": planted(CONFIG, b'{"sample_shape": [-2]}'),
    "large": planted(CONFIG, b'{"sample_shape": [99999999999]}'),
    "classes": planted(CONFIG, b'{"num_class_embeds": true}'),
    "cut": planted(WEIGHTS, b"\x10\0\0\0\0\0\0\0{"),
    "header": planted(WEIGHTS, b"\xff" * 8),
    "nan": values(**{"head.bias": torch.full((2,), torch.nan)}),
    "infinite": values(**{"head.bias": torch.full((2,), torch.inf)}),
    "whole numbers": values(**{"head.bias": torch.ones(2, dtype=torch.int64)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_of_strangers_are_bounded(name, tmp_path):
    TorchModel(net(), (2,)).save_pretrained(tmp_path)
    HOSTILE[name](tmp_path)
    with time_limit(5), pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        TorchModel.load(net(), tmp_path)


def test_infinity_that_the_module_has_itself_is_kept(tmp_path):
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    TorchModel(Masked()).save_pretrained(tmp_path)
    assert torch.equal(TorchModel.load(Masked(), tmp_path).module.mask, Masked().mask)


def test_a_network_that_does_not_state_its_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="TorchModel does not say the shape of a sample"):
        pipeline_of(TorchModel(net())).__call__(2)


def test_a_network_may_return_a_tensor_or_an_output():
    class Wrapped(Net):
        def forward(self, x, timestep):
            from types import SimpleNamespace

            return SimpleNamespace(sample=super().forward(x, timestep))

    torch.manual_seed(0)
    plain = pipeline_of(TorchModel(net(), (2,)))
    wrapped = Wrapped()
    wrapped.load_state_dict(plain.denoiser.module.state_dict())
    assert_close(samples(pipeline_of(TorchModel(wrapped, (2,)))), samples(plain), rtol=0, atol=0)


def test_weights_of_a_pipeline_whose_save_was_cut_off_are_not_loaded(tmp_path):
    TorchModel(net()).save_pretrained(tmp_path / "denoiser")
    (tmp_path / ".pipeline-1.new").mkdir()
    with pytest.raises(OSError, match=r"the last save of this pipeline was cut off\. Save it again"):
        TorchModel.load(net(), tmp_path / "denoiser")
    (tmp_path / "model_index.json").write_text("{}")  # all its files were moved
    TorchModel.load(net(), tmp_path / "denoiser")
