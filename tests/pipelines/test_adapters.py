"""Low-rank adapters of a denoiser: loading, weights, sums, fusing, classes of their own, and refusals."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DModel
from hfgen.pipelines.adapter_file import ADAPTER, is_adaptable
from hfgen.pipelines.adapter_layers import adapted_layers, inject_factors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import hfgen
from hfgen.models.class_rows import ClassRows, class_table

SMALL = {
    "patch_unet": lambda classes: hfgen.PatchUNet2DModel(
        *(8, 1, 1),
        block_out_channels=(8, 16),
        attention_levels=(False, True),
        norm_num_groups=4,
        attention_head_dim=8,
        layers_per_block=1,
        num_class_embeds=classes,
    ),
    "dit": lambda classes: hfgen.DiTModel(
        *(8, 1, 1), hidden_size=16, num_layers=1, num_attention_heads=2, num_class_embeds=classes
    ),
    "unet": lambda classes: UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4},
        **{"block_out_channels": (8, 16), "attention_head_dim": 8, "num_class_embeds": classes},
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
}
"""Networks of every architecture of the factory."""


def base(kind="patch_unet", names=("a", "b"), **options):
    """A pipeline with a network, all of whose outputs matter, always the same."""
    torch.manual_seed(0)
    network = SMALL[kind](None if names is None else len(names) + 1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    scheduler = hfgen.RectifiedFlowScheduler.from_config({"path": "straight", **options})
    return hfgen.DenoisingPipeline(network, scheduler, names and len(names), names and list(names))


def outputs(pipeline, label=0):
    """What the network says of some images of a class."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = {} if pipeline.config.num_classes is None else {"class_labels": torch.full((2,), label)}
    with torch.no_grad():
        return pipeline.denoiser(x, torch.tensor(300.0), **labels).sample


def saved(folder, seed, kind="patch_unet", rank=2, alpha=4.0, new=(), names=("a", "b"), only=""):
    """A folder with an adapter of the base, of random factors, as training saves it."""
    pipeline = base(kind, names)
    layers = [name for name, part in pipeline.denoiser.named_modules() if is_adaptable(part) and only in name]
    inject_factors(pipeline.denoiser, layers, rank, alpha, "default", base_model_name_or_path="someone/base")
    torch.manual_seed(seed)
    for layer in adapted_layers(pipeline.denoiser).values():
        nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    if new:
        pipeline._add_classes("default", torch.randn(len(new), class_table(pipeline.denoiser)[1].embedding_dim), new)
    pipeline.save_lora_weights(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Adapters of each base: two of it, the second with a class of its own."""
    root = tmp_path_factory.mktemp("adapters")
    return {kind: [saved(root / f"{kind}{seed}", seed, kind, new=["c"] * seed) for seed in (0, 1)] for kind in SMALL}


@pytest.mark.parametrize("kind", SMALL)
def test_off_is_the_base_bit_for_bit_and_fused_is_unfused(folders, kind):
    pipeline = base(kind)
    plain, state = outputs(pipeline), {name: value.clone() for name, value in pipeline.denoiser.state_dict().items()}
    pipeline.load_lora_weights(folders[kind][0])
    changed = outputs(pipeline)
    assert (changed - plain).abs().max() > 1e-2
    pipeline.disable_lora()
    assert torch.equal(outputs(pipeline), plain) and pipeline.get_active_adapters() == []
    pipeline.enable_lora()
    assert torch.equal(outputs(pipeline), changed)
    pipeline.set_adapters("default_0", 0.0)
    assert torch.equal(outputs(pipeline), plain)
    pipeline.set_adapters("default_0")
    pipeline.fuse_lora()
    torch.testing.assert_close(outputs(pipeline), changed, atol=1e-6, rtol=1e-6)
    assert pipeline.fused_loras == {"default_0"} and pipeline.num_fused_loras == 1
    pipeline.unfuse_lora()
    assert torch.equal(outputs(pipeline), changed) and not pipeline.fused_loras
    pipeline.unload_lora_weights()
    assert torch.equal(outputs(pipeline), plain) and pipeline.get_list_adapters() == {}
    after = pipeline.denoiser.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)


def weights_of(pipeline):
    """The weights of all layers as they act, with their adapters, in float64."""
    pipeline.denoiser.double()
    pipeline.fuse_lora()
    return {name: layer.get_base_layer().weight.clone() for name, layer in adapted_layers(pipeline.denoiser).items()}


def test_several_are_the_sum_of_their_changes_each_times_its_weight(folders):
    def act(*given):
        pipeline = base()
        for folder, name, _ in given:
            pipeline.load_lora_weights(folder, adapter_name=name)
        pipeline.set_adapters([name for _, name, _ in given], [weight for *_, weight in given])
        return weights_of(pipeline)

    first, second = ((folder, name) for folder, name in zip(folders["patch_unet"], "xy", strict=True))
    plain, one, two = act((*first, 0.0)), act((*first, 1.0)), act((*second, 1.0))
    both = act((*first, 0.5), (*second, -2.0))
    for name in plain:
        wanted = plain[name] + 0.5 * (one[name] - plain[name]) - 2.0 * (two[name] - plain[name])
        torch.testing.assert_close(both[name], wanted, atol=1e-12, rtol=1e-12)


def test_the_change_is_alpha_over_rank_times_the_product(tmp_path):
    folder = saved(tmp_path / "x", 3, "dit", rank=2, alpha=3.0, only="attention.qkv")
    pipeline, plain = base("dit"), base("dit").denoiser.get_submodule("blocks.0.attention.qkv").weight
    pipeline.load_lora_weights(folder)
    file, layer = load_file(f"{folder}/{ADAPTER}"), "denoiser.blocks.0.attention.qkv"
    change = 1.5 * file[f"{layer}.lora_B.weight"].double() @ file[f"{layer}.lora_A.weight"].double()
    found = weights_of(pipeline)["blocks.0.attention.qkv"] - plain.double()
    torch.testing.assert_close(found, change, atol=1e-12, rtol=1e-12)


def test_a_file_says_rank_alpha_layers_and_base_as_diffusers_does(folders):
    with safe_open(f"{folders['dit'][1]}/{ADAPTER}", "pt") as file:
        header = file.metadata()
        assert "denoiser.blocks.0.attention.qkv.lora_A.weight" in file.keys()  # noqa: SIM118
    config, facts = json.loads(header["lora_adapter_metadata"]), json.loads(header["hfgen"])
    assert (config["denoiser.r"], config["denoiser.lora_alpha"]) == (2, 4.0) and header["format"] == "pt"
    assert "blocks.0.attention.qkv" in config["denoiser.target_modules"]
    assert facts == {
        **{"base": "someone/base", "network": "DiTModel", "path": "straight", "prediction_type": "flow_prediction"},
        "classes": ["c"],
    }


@pytest.mark.parametrize("kind", SMALL)
def test_bits_do_not_depend_on_which_weights_learn(kind):
    """torch multiplies tensors that are not contiguous in another way where a weight needs no gradient."""
    pipeline = base(kind)
    before = outputs(pipeline, 1)
    pipeline.denoiser.requires_grad_(False)
    assert torch.equal(outputs(pipeline, 1), before)


@pytest.mark.parametrize("kind", SMALL)
def test_classes_of_adapters_come_after_the_bases_and_go_with_them(folders, tmp_path, kind):
    pipeline, third = base(kind), saved(tmp_path / "third", 2, kind, new=["d", "e"])
    plain = outputs(pipeline, 1)
    for folder, name in ((folders[kind][1], "x"), (third, "y")):
        pipeline.load_lora_weights(folder, adapter_name=name)
    assert pipeline.config.label_names == ["a", "b", "c", "d", "e"] and pipeline.null_label == 5
    rows = load_file(f"{third}/{ADAPTER}")["denoiser.class_rows"]
    assert torch.equal(class_table(pipeline.denoiser)[1].weight[3:5], rows)
    pipeline.disable_lora()
    assert torch.equal(outputs(pipeline, 1), plain)  # whatever the classes
    with pytest.raises(ValueError, match="class 'f' is not known"):
        pipeline(class_labels="f")
    assert len(pipeline(class_labels=["e", "a"], num_inference_steps=1).images) == 2
    pipeline.delete_adapters("x")
    assert pipeline.config.label_names == ["a", "b", "d", "e"] and pipeline.get_list_adapters() == {"denoiser": ["y"]}
    assert torch.equal(class_table(pipeline.denoiser)[1].weight[2:4], rows)
    pipeline.save_lora_weights(tmp_path / "again", "y")
    again, before = (load_file(f"{folder}/{ADAPTER}") for folder in (tmp_path / "again", third))
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in again)
    pipeline.delete_adapters(["y"])
    assert pipeline.config.label_names == ["a", "b"] and not isinstance(class_table(pipeline.denoiser)[1], ClassRows)
    assert torch.equal(outputs(pipeline, 1), plain)


def test_what_is_off_stays_off_when_another_one_is_deleted(folders):
    pipeline, wanted = base(), base()
    for folder, name in zip(folders["patch_unet"], "xy", strict=True):
        pipeline.load_lora_weights(folder, adapter_name=name)
    wanted.load_lora_weights(folders["patch_unet"][0])
    pipeline.set_adapters(["x", "y"])
    pipeline.disable_lora()
    pipeline.delete_adapters("y")
    assert pipeline.get_active_adapters() == [] and torch.equal(outputs(pipeline), outputs(base()))
    with pytest.raises(ValueError, match=r"No adapters are in use"):
        pipeline.fuse_lora()
    pipeline.enable_lora()
    assert pipeline.get_active_adapters() == ["x"] and torch.equal(outputs(pipeline), outputs(wanted))


def test_classes_without_names_have_none_again(folders):
    pipeline = base()
    pipeline.register_to_config(label_names=None)
    pipeline.load_lora_weights(folders["patch_unet"][1])
    assert pipeline.config.label_names == ["0", "1", "c"]
    pipeline.unload_lora_weights()
    assert pipeline.config.label_names is None and pipeline.config.num_classes == 2


def test_what_is_fused_is_saved_with_the_weights_and_classes(folders, tmp_path):
    pipeline = base()
    for folder in folders["patch_unet"]:
        pipeline.load_lora_weights(folder)
    with pytest.raises(ValueError, match=r"adapters \(default_0, default_1\), which are saved by themselves"):
        pipeline.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    changed = outputs(pipeline, 2)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    torch.testing.assert_close(outputs(pipeline, 2), changed, atol=1e-6, rtol=1e-6)
    pipeline.save_pretrained(tmp_path / "fused")
    loaded = hfgen.HFGenPipeline.from_pretrained(tmp_path / "fused")
    assert torch.equal(outputs(loaded, 2), outputs(pipeline, 2)) and loaded.config.label_names == ["a", "b", "c"]


def test_a_scale_of_fusing_is_a_factor_of_all_weights(folders):
    pipeline = base()
    pipeline.load_lora_weights(folders["patch_unet"][0])
    pipeline.set_adapters("default_0", 0.5)
    half = outputs(pipeline)
    pipeline.set_adapters("default_0", 2.0)
    pipeline.fuse_lora(lora_scale=0.25)
    torch.testing.assert_close(outputs(pipeline), half, atol=1e-6, rtol=1e-6)
    for call in (
        lambda: pipeline.fuse_lora(),
        lambda: pipeline.set_adapters("default_0"),
        lambda: pipeline.disable_lora(),
        lambda: pipeline.load_lora_weights(folders["patch_unet"][1]),
        lambda: pipeline.delete_adapters("default_0"),
    ):
        with pytest.raises(ValueError, match=r"Adapters are fused \(default_0\)"):
            call()
    pipeline.unfuse_lora()
    with pytest.raises(ValueError, match="No adapters are fused"):
        pipeline.unfuse_lora()


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda p: p.set_adapters("none"), "There is no adapter 'none'. There are: x"),
        (lambda p: p.set_adapters([]), "names of adapters, each once"),
        (lambda p: p.set_adapters(["x", "x"]), "each once"),
        (lambda p: p.set_adapters("x", float("nan")), "must be finite"),
        (lambda p: p.set_adapters("x", [1.0, 2.0]), "do not go together"),
        (lambda p: p.delete_adapters("y"), "There is no adapter 'y'"),
        (lambda p: p.fuse_lora(float("inf")), "lora_scale=inf must be a finite number"),
        (lambda p: p.save_lora_weights("nowhere", "y"), "There is no adapter 'y'"),
    ],
)
def test_calls_that_mean_nothing_are_refused(folders, call, why):
    pipeline = base()
    pipeline.load_lora_weights(folders["patch_unet"][0], adapter_name="x")
    with pytest.raises(ValueError, match=re.escape(why)):
        call(pipeline)
    for name, problem in (
        ("x", "is an adapter 'x' already"),
        ("a.b", "letters, digits"),
        ("", "letters"),
        ("keys", "torch"),
    ):
        with pytest.raises(ValueError, match=problem):
            pipeline.load_lora_weights(folders["patch_unet"][0], adapter_name=name)


def test_variances_that_were_measured_for_the_base_are_told(folders, caplog):
    pipeline = base()
    pipeline.load_lora_weights(folders["patch_unet"][0])
    assert not caplog.records
    pipeline.scheduler.register_to_config(data_variances=[[0.01, 1e-4], [1.0, 0.2]])
    pipeline.load_lora_weights(folders["patch_unet"][0])
    assert "measured for the base" in caplog.text


def test_fused_weights_that_are_not_finite_are_refused_and_put_back(folders):
    pipeline = base()
    pipeline.load_lora_weights(folders["patch_unet"][0])
    changed = outputs(pipeline)
    with pytest.raises(ValueError, match="can't be fused"):
        pipeline.fuse_lora(1e39)
    assert torch.equal(outputs(pipeline), changed)


def test_an_adapter_of_another_base_is_refused_by_name(folders, tmp_path):
    def refuse(pipeline, folder, why):
        plain, modules = outputs(pipeline), list(dict(pipeline.denoiser.named_modules()))
        with pytest.raises(ValueError, match=why):
            pipeline.load_lora_weights(folder)
        assert torch.equal(outputs(pipeline), plain) and modules == list(dict(pipeline.denoiser.named_modules()))

    wide = base("dit")
    wide.denoiser = SMALL["dit"](3)
    refuse(base(), folders["dit"][0], r"another network, a DiTModel: PatchUNet2DModel has no layer .*someone/base")
    other = hfgen.DiTModel(8, 1, 1, hidden_size=32, num_layers=1, num_attention_heads=2, num_class_embeds=3)
    refuse(
        hfgen.DenoisingPipeline(other, hfgen.RectifiedFlowScheduler(), 2),
        folders["dit"][0],
        r"the factors of .* have the shapes .* and DiTModel needs",
    )
    discrete = hfgen.DenoisingPipeline(base().denoiser, hfgen.DDIMScheduler(prediction_type="epsilon"), 2, ["a", "b"])
    refuse(discrete, folders["patch_unet"][0], "was trained with path=straight, and this pipeline has discrete")
    refuse(base(names=("a", "c")), folders["patch_unet"][1], "adds the class 'c', which this pipeline has already")
    free = saved(tmp_path / "free", 0, new=["c"])
    unconditional = base(names=None)
    with pytest.raises(ValueError, match=r"no layer|has no classes"):
        unconditional.load_lora_weights(free)


def rewritten(folder, target, change, header=None):
    """A copy of an adapter with other tensors or another header."""
    with safe_open(f"{folder}/{ADAPTER}", "pt") as file:
        metadata = {**file.metadata(), **(header or {})}
    target.mkdir()
    save_file(change(load_file(f"{folder}/{ADAPTER}")), target / ADAPTER, metadata)
    return target


FIRST = "denoiser.blocks.0.attention.qkv.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "header", "why"),
    [
        (lambda t: {**t, "denoiser.x": torch.ones(1)}, None, "'denoiser.x', which is no low-rank factor"),
        (lambda t: {**t, "unet.x.lora_A.weight": torch.ones(1, 1)}, None, "no low-rank factor of a layer of the denoi"),
        (
            lambda t: {k: v for k, v in t.items() if k != FIRST},
            None,
            "one of the two factors of blocks.0.attention.qkv",
        ),
        (lambda t: {**t, FIRST: t[FIRST] * float("nan")}, None, "no finite numbers"),
        (lambda t: {**t, FIRST: t[FIRST].long()}, None, "no finite numbers"),
        (lambda t: {**t, FIRST: t[FIRST][:, :-1].contiguous()}, None, "have the shapes"),
        (lambda t: {**t, FIRST: t[FIRST][:0].contiguous()}, None, "have the shapes"),
        (lambda t: {"denoiser.class_rows": torch.ones(1, 16)}, None, "holds no low-rank factors"),
        (lambda t: {**t, "denoiser.class_rows": torch.ones(2, 16)}, None, "one row for each of its classes"),
        (lambda t: {**t, "denoiser.class_rows": torch.ones(1, 9)}, {"hfgen": '{"classes": ["c"]}'}, "have 9 channels"),
        (lambda t: t, {"hfgen": "[1]"}, "is no object of JSON"),
        (lambda t: t, {"hfgen": "{" * 10**5}, "is no object of JSON"),
        (lambda t: t, {"hfgen": '{"base": 3}'}, "says base=3"),
        (lambda t: t, {"lora_adapter_metadata": '{"denoiser.use_dora": true}'}, "use_dora, which hfgen does not read"),
        (lambda t: t, {"lora_adapter_metadata": '{"denoiser.lora_alpha": "x"}'}, "lora_alpha='x'"),
        (lambda t: t, {"lora_adapter_metadata": '{"denoiser.lora_alpha": NaN}'}, "lora_alpha=nan"),
    ],
)
def test_a_damaged_file_is_refused_by_name_before_anything_changes(folders, tmp_path, change, header, why):
    pipeline = base("dit")
    folder = rewritten(folders["dit"][0], tmp_path / "x", change, header)
    with pytest.raises(ValueError, match=re.escape(why)):
        pipeline.load_lora_weights(folder)
    assert not adapted_layers(pipeline.denoiser)


def test_pickles_and_missing_files_are_refused(folders, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    pipeline = base()
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(pickle.dumps(Attack()))
    (tmp_path / "renamed").mkdir()
    shutil.copy(tmp_path / "pytorch_lora_weights.bin", tmp_path / "renamed" / ADAPTER)
    for source, options, why in (
        (tmp_path, {}, "there is no pytorch_lora_weights.safetensors in it; pytorch_lora_weights.bin is not read"),
        (tmp_path, {"weight_name": "pytorch_lora_weights.bin"}, "may hold pickles"),
        (tmp_path / "pytorch_lora_weights.bin", {}, "may hold pickles"),
        (tmp_path / "renamed", {}, "is damaged"),
    ):
        with pytest.raises(ValueError, match=why):
            pipeline.load_lora_weights(source, **options)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(OSError, match="nowhere"):
        pipeline.load_lora_weights("some/nowhere", local_files_only=True)


def test_a_file_of_its_own_and_tensors_are_adapters_too(folders):
    wanted = base("dit")
    wanted.load_lora_weights(folders["dit"][0])
    for source in (f"{folders['dit'][0]}/{ADAPTER}", load_file(f"{folders['dit'][0]}/{ADAPTER}")):
        pipeline = base("dit")
        pipeline.load_lora_weights(source)
        if isinstance(source, dict):  # tensors alone say no alpha: the scale is 1, not 4 / 2
            pipeline.set_adapters("default_0", 2.0)
        assert torch.equal(outputs(pipeline), outputs(wanted))


def test_layers_may_have_different_ranks(folders, tmp_path):
    tensors = load_file(f"{folders['dit'][0]}/{ADAPTER}")
    other = {
        **tensors,
        FIRST: tensors[FIRST][:1].clone(),
        FIRST.replace("_A", "_B"): tensors[FIRST.replace("_A", "_B")],
    }
    other[FIRST.replace("_A", "_B")] = other[FIRST.replace("_A", "_B")][:, :1].contiguous()
    pipeline = base("dit")
    pipeline.load_lora_weights(other)
    layer = adapted_layers(pipeline.denoiser)["blocks.0.attention.qkv"]
    assert layer.r["default_0"] == 1 and layer.scaling["default_0"] == 1.0
    assert {part.scaling["default_0"] for part in adapted_layers(pipeline.denoiser).values()} == {1.0}


PLAIN = """
import sys
sys.modules["hfgen"] = None
import torch
from diffusers import UNet2DModel
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.load_lora_weights(sys.argv[2])
images = pipeline(class_labels=[0, 2], num_inference_steps=2, output_type="latent",
                  generator=[torch.Generator().manual_seed(i) for i in range(2)]).images
torch.save(images, sys.argv[3])
"""


@pytest.mark.slow
def test_a_saved_pipeline_loads_adapters_where_hfgen_is_not_installed(folders, tmp_path):
    pipeline = base()
    pipeline.save_pretrained(tmp_path / "base")
    pipeline.load_lora_weights(folders["patch_unet"][1])
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    options = {"num_inference_steps": 2, "output_type": "latent", "generator": generators}
    images = pipeline(class_labels=[0, 2], **options).images
    command = [sys.executable, "-c", PLAIN, tmp_path / "base", folders["patch_unet"][1], tmp_path / "x.pt"]
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.equal(torch.load(tmp_path / "x.pt"), images)


def test_without_peft_one_is_told_what_to_install(folders, monkeypatch):
    pipeline = base()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'pip install "hfgen\[lora\]"'):
        pipeline.load_lora_weights(folders["patch_unet"][0])
