"""Saved folders where hfgen can't be imported: plain diffusers draws the same bits from them."""

import ast
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

import hfgen
from hfgen.registry import COMPONENTS, PIPELINES, SAMPLERS, SCHEDULERS
from hfgen.saving import hub as pushing
from hfgen.saving.portable import LATE, MARK, PACKAGES, NotPortableError, Standin, one_file
from tests.helpers.hub_server import Hub, environment, use
from tests.helpers.text import text_encoder, tokenizer

DENOISERS = {
    "DiTModel": {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2},
    "PatchUNet2DModel": {
        "block_out_channels": (8, 16),
        "attention_levels": (False, True),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    },
    "UViTModel": {"patch_size": 4, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2},
}
AUTOENCODERS = {
    "MLPAutoencoderModel": {"hidden_dims": (16,), "latent_channels": 3},
    "ConvAutoencoderModel": {"block_out_channels": (8, 8), "latent_channels": 3},
    "VQAutoencoderModel": {"block_out_channels": (8,), "latent_channels": 4, "num_vq_embeddings": 8},
}
"""Options of small networks."""


def network(name, **options):
    """A small network of this class, all of whose outputs matter."""
    torch.manual_seed(0)
    model = getattr(hfgen, name)(sample_size=8, in_channels=1, **{"out_channels": 1, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def denoising():
    """Each network, of one time and of two; each scheduler; a discrete path, whose class schedulers ask for late."""
    straight = {"path": "straight", "prediction_type": "flow_prediction"}
    discrete = {"path": "discrete", "prediction_type": "epsilon"}
    on_paths = [name for name in SCHEDULERS if hasattr(getattr(hfgen, name), "plan")]
    schedulers = {name: getattr(hfgen, name).from_config(straight) for name in on_paths}
    networks = {name: network(name, num_class_embeds=3, **options) for name, options in DENOISERS.items()}
    pairs = {f"{name}-straight": (model, schedulers["RectifiedFlowScheduler"]) for name, model in networks.items()}
    pairs |= {f"{name}-straight": (networks["DiTModel"], scheduler) for name, scheduler in schedulers.items()}
    two = {name: network(name, num_class_embeds=3, two_times=True, **options) for name, options in DENOISERS.items()}
    flow_map = hfgen.RectifiedFlowScheduler(solver="flow_map")
    pairs |= {f"{name}-flow-map": (model, flow_map) for name, model in two.items()}
    pairs["discrete"] = (networks["DiTModel"], hfgen.DPMSolverPlusPlusScheduler.from_config(discrete))
    classes = {"num_classes": 2, "label_names": ["a", "b"]}
    pipelines = {name: hfgen.DenoisingPipeline(*pair, **classes) for name, pair in pairs.items()}
    table = {"data_variances": [[0.01, 1e-4], [1.0, 0.2]], "clip_sample": True}
    measured = hfgen.DDPMScheduler.from_config({**discrete, **table, "variance_type": "analytic"}, trajectory="optimal")
    pipelines["measured"] = hfgen.DenoisingPipeline(networks["DiTModel"], measured, **classes)
    stated = hfgen.DDPMScheduler.from_config({**discrete, "variance_type": "npr"})
    head = hfgen.VarianceHeadModel(8, 1, 1, 8, 1, 4)
    pipelines["head"] = hfgen.DenoisingPipeline(networks["DiTModel"], stated, **classes, variance_head=head)
    return pipelines


def latent():
    """Each kind of autoencoder behind a denoiser of latents."""
    shared = {"sample_size": 1, "in_channels": 3, "out_channels": 3, "num_class_embeds": 3, **DENOISERS["DiTModel"]}
    denoiser, pipelines = hfgen.DiTModel(**shared, patch_size=1), {}
    for name in ("MLPAutoencoderModel", "ConvAutoencoderModel"):
        vae = network(name, **AUTOENCODERS[name])
        hfgen.state_scale(vae, hfgen.LatentScale((0.5, 0.0, -0.5), (2.0, 1.0, 0.5), 7))
        options = {"num_classes": 2, "label_names": ["a", "b"], "likelihood": "gaussian", "sample_size": [8, 8]}
        pipelines[name] = hfgen.LatentPipeline(denoiser, hfgen.RectifiedFlowScheduler(shift=2.0), vae, **options)
    return pipelines


def decoding():
    """Networks with a latent vector under each kind of prior, and one of diffusers' with a grid of them."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    sizes = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 1}
    grid = AutoencoderKL(in_channels=1, out_channels=2, sample_size=8, **blocks, **sizes)
    vectors = ("MLPAutoencoderModel", "ConvAutoencoderModel")
    mlp, conv = (network(name, out_channels=2, **AUTOENCODERS[name]) for name in vectors)
    priors = [
        hfgen.GaussianMixturePriorModel(*prior) for prior in (((3, 1, 1), 2), ((3, 1, 1), 2, "diag"), ((1, 8, 8),))
    ]
    for prior in priors:
        prior.means.copy_(torch.randn(prior.means.shape))
    bent = hfgen.FlowPriorModel((3, 1, 1), 2, 8)
    pairs = {"mlp": (mlp, priors[0]), "conv": (conv, priors[1]), "grid": (grid, priors[2]), "flow": (mlp, bent)}
    return {name: hfgen.VAEPipeline(*pair, "gaussian_learned") for name, pair in pairs.items()}


def coding():
    """Codes of the caller, with a codebook that was updated once."""
    model = network("VQAutoencoderModel", **AUTOENCODERS["VQAutoencoderModel"])
    model.train()(torch.randn(4, 1, 8, 8))
    return {"vq": hfgen.VQPipeline(model)}


def coding_with_prior():
    """The same codes with a prior, which draws them."""
    pipeline = coding()["vq"]
    sizes = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "num_class_embeds": 3}
    prior = hfgen.AutoregressiveTransformerModel(pipeline.code_shape, 1, pipeline.num_codes, 1, **sizes)
    return {"prior": hfgen.VQPipeline(pipeline.autoencoder, prior=prior, num_classes=2)}


def detecting():
    """A detector whose heat maps, p-values and decisions all say something."""
    model = network("MLPAutoencoderModel", **AUTOENCODERS["MLPAutoencoderModel"])
    prior = hfgen.GaussianMixturePriorModel((5, 1, 1), 2)
    prior.means.copy_(torch.randn(prior.means.shape))
    pipeline = hfgen.AnomalyPipeline(model, prior, hfgen.CalibrationModel())
    pipeline.calibrate(torch.rand(99, 1, 8, 8) * 2 - 1, 0.5)
    return {"density": pipeline}


def detecting_by_energy():
    """The same with an energy, which has classes."""
    energy = descending()["dot"].energy_model
    pipeline = hfgen.EnergyAnomalyPipeline(energy, hfgen.CalibrationModel(), num_classes=2, label_names=["a", "b"])
    pipeline.calibrate(torch.rand(99, 1, 8, 8) * 2 - 1, 0.5)
    return {"energy": pipeline}


def generating():
    """Each pair of a generator and a discriminator, with classes and without; a generator alone, and one of latents."""
    pairs = {
        name: hfgen.build_gan(name, "xs", 8, 1, 4, num_classes=2) for name in ("residual", "dcgan", "resnet", "mlp")
    }
    pairs |= {f"{name}-plain": hfgen.build_gan(name, "xs", 8, 1, 4, spectral_norm=True) for name in pairs}
    pairs["alone"] = (hfgen.build_gan("mlp", "xs", 8, 1, 4)[0], None)
    inside = hfgen.MLPGeneratorModel(1, 3, 4, (8,), "none")  # of the latents of an autoencoder
    pairs["latents"] = (inside, None)
    pairs["classifying"] = hfgen.build_gan("mlp", "xs", 8, 1, 4, num_classes=2)
    for network in (network for pair in pairs.values() for network in pair if network is not None):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    classes = {name: pair[0].config.num_class_embeds for name, pair in pairs.items()}
    vae = latent()["MLPAutoencoderModel"].vae
    more = {"latents": {"vae": vae, "likelihood": "bernoulli"}}
    more["classifying"] = {"classifier": hfgen.NoisyClassifierModel(8, 1, 2, 1, (8, 8), 4)}
    options = {name: {"num_classes": classes[name], **more.get(name, {})} for name in pairs}
    return {name: hfgen.GANPipeline(*pair, **options[name]) for name, pair in pairs.items()}


def styling():
    """A generator by styles with classes and a discriminator, and one without them alone."""
    pairs = {"classes": hfgen.build_stylegan("xs", 8, 1, 4, num_classes=2)}
    pairs["alone"] = (hfgen.build_stylegan("xs", (8, 13), 3, 4)[0], None)
    for network in (network for pair in pairs.values() for network in pair if network is not None):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return {
        name: hfgen.StyleGANPipeline(*pair, num_classes=pair[0].config.num_class_embeds) for name, pair in pairs.items()
    }


def flowing():
    """Each flow, with every kind of layer, of network and of elementwise map, with classes and noise."""
    sizes = {"hidden_channels": 32, "network_depth": 1, "layers_per_level": 2, "num_class_embeds": 3}
    small = {"num_blocks": 2, "layers_per_block": 1, "hidden_size": 16, "num_attention_heads": 1, "num_class_embeds": 3}
    flows = {
        "glow": hfgen.CouplingFlowModel(8, 1, mixing="convolution", actnorm=True, masks="both", **sizes),
        "jet": hfgen.CouplingFlowModel(8, 1, network="vit", mixing="permutation", elementwise="spline", **sizes),
        "nice": hfgen.CouplingFlowModel(8, 1, network="mlp", elementwise="additive", diagonal_scale=True, **sizes),
        "transformer": hfgen.TransformerFlowModel(8, 1, elementwise="logistic_mixture", head_size=8, **small),
        "implicit": hfgen.ResidualFlowModel(8, 1, 2, "implicit", squeeze=2, hidden_channels=8, num_class_embeds=3),
    }
    inside = {"sample_size": 8, "in_channels": 2, "layers_per_level": 2, "hidden_channels": 8}
    flows["augmented"] = hfgen.AugmentedFlowModel("CouplingFlowModel", inside, 1, True, num_class_embeds=3)
    torch.manual_seed(0)
    for flow in flows.values():
        for parameter in flow.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return {name: hfgen.NormalizingFlowPipeline(flow, 2, ["a", "b"], 0.1) for name, flow in flows.items()}


def predicting():
    """Each autoregressive model, with classes: symbols of patches, a head of a patch, orders, mixtures."""
    small = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "head_size": 8, "num_class_embeds": 3}
    shape, masked = (1, 4, 4), {"hidden_size": 8, "num_class_embeds": 3}
    models = {
        "patches": hfgen.AutoregressiveTransformerModel(8, 1, 2, 2, **small),
        "levels": hfgen.AutoregressiveTransformerModel(4, 1, 256, 2, **small),
        "made": hfgen.MaskedAutoregressiveModel("made", shape, num_orders=2, **masked),
        "fvsbn": hfgen.MaskedAutoregressiveModel("fvsbn", shape, **masked),
        "continuous": hfgen.ContinuousTransformerModel(4, 1, 2, 1, 16, 1, 16, 1, True, 3),
        "rnade": hfgen.MaskedAutoregressiveModel("nade", shape, None, components=2, **masked),
    }
    torch.manual_seed(0)
    for model in models.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return {name: hfgen.ARPipeline(model, 2, ["a", "b"]) for name, model in models.items()}


def descending():
    """Each energy with classes: forms, denoisers, and the schedulers that follow energies."""
    small = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    unet = {**small, "block_out_channels": [8], "attention_levels": [False], "attention_head_dim": 4}
    dit = {**small, "patch_size": 2, "hidden_size": 8, "num_layers": 1, "num_attention_heads": 1}
    inner = {"PatchUNet2DModel": {**unet, "norm_num_groups": 4, "layers_per_block": 1}, "DiTModel": dit}
    kinds = {
        "dot": ("PatchUNet2DModel", hfgen.GradientDescentScheduler(momentum=0.3, tolerance=0.01)),
        "scalar": ("DiTModel", hfgen.HamiltonianScheduler(leapfrog_steps=2)),
        "field": ("DiTModel", hfgen.LangevinScheduler(clip=1.0)),
    }
    torch.manual_seed(0)
    made = {}
    for form, (name, scheduler) in kinds.items():
        energy = hfgen.EnergyModel(name, inner[name], form, 3)
        for parameter in energy.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        made[form] = hfgen.EnergyPipeline(energy, scheduler, 2, ["a", "b"])
    made["levels"] = hfgen.EnergyPipeline(energy, hfgen.AnnealedLangevinScheduler(sigma_max=5.0), 2)
    return made


def classifying():
    """A classifier of images with noise."""
    torch.manual_seed(0)
    model = hfgen.NoisyClassifierModel(8, 1, 3, 1, (8, 8), 4)
    return {"classifier": hfgen.NoisyClassifierPipeline(model, hfgen.DDIMScheduler(), 3, ["a", "b", "c"])}


def naming():
    """Vectors of a vocabulary."""
    return {"words": hfgen.WordVectorsPipeline(hfgen.WordVectorsModel(3, 4), ["a", "b", "it's"])}


def masking():
    """A masked autoencoder."""
    torch.manual_seed(0)
    model = hfgen.MaskedAutoencoderModel(8, 1, 2, 8, 1, 2, 8, 1, 2)
    return {"masked": hfgen.MAEPipeline(model, 0.5)}


def speaking():
    """A model of images and texts with two clocks."""
    torch.manual_seed(0)
    words = tokenizer()
    texts = hfgen.TextAutoencoderModel(len(words), 6, 2, 4, 8, 1, 2)
    sizes = {"block_out_channels": (8,), "attention_levels": (True,), "attention_head_dim": 8, "norm_num_groups": 4}
    unet = hfgen.UniDiffuserUNetModel(8, 1, 2, 4, **sizes, hidden_size=8, num_layers=1, num_attention_heads=2)
    networks = {"clocks": hfgen.UniDiffuserModel(8, 1, 2, 4, 2, 8, 3, 2), "clocks of a U-Net": unet}
    for parameter in itertools.chain(*(network.parameters() for network in networks.values())):
        torch.nn.init.normal_(parameter, std=0.1)
    scheduler = hfgen.RectifiedFlowScheduler()
    return {name: hfgen.UniDiffuserPipeline(network, scheduler, texts, words) for name, network in networks.items()}


def showing():
    """Networks with texts, under a text encoder of transformers with a vocabulary."""
    parts = text_encoder(), tokenizer(), 6
    options = {name: {"text_channels": 8, **DENOISERS[name]} for name in DENOISERS}
    return {
        name: hfgen.TextToImagePipeline(network(name, **options[name]), hfgen.RectifiedFlowScheduler(), *parts)
        for name in options
    }


RAMPS = [[[[sign * row / 7 for _ in range(8)] for row in range(8)]] for sign in (-1, 1)]
CODES = [[[(i + row * column) % 8 for column in range(4)] for row in range(4)] for i in range(2)]
CASES = {
    "DenoisingPipeline": (denoising, {"class_labels": [0, 1], "guidance_scale": 2.0, "num_inference_steps": 3}),
    "LatentPipeline": (latent, {"class_labels": [0, 1], "guidance_scale": 2.0, "num_inference_steps": 3}),
    "TextToImagePipeline": (
        showing,
        {"prompt": ["a cat", "dog"], "negative_prompt": "b", "guidance_scale": 2.0, "num_inference_steps": 2},
    ),
    "GANPipeline": (generating, {"batch_size": 2, "truncation": 1.5}),
    "StyleGANPipeline": (styling, {"batch_size": 2, "truncation": 0.7}),
    "VAEPipeline": (decoding, {"batch_size": 2, "temperature": 0.9}),
    "VQPipeline": (coding, {"codes": CODES}),
    "NormalizingFlowPipeline": (flowing, {"class_labels": [0, 1], "temperature": 0.8}),
    "ARPipeline": (predicting, {"class_labels": [0, 1], "guidance_scale": 1.5, "temperature": 0.8}),
    "EnergyPipeline": (descending, {"class_labels": [0, 1], "guidance_scale": 2.0, "num_inference_steps": 2}),
    "AnomalyPipeline": (detecting, {"images": RAMPS}),
    "EnergyAnomalyPipeline": (detecting_by_energy, {"images": RAMPS}),
    "NoisyClassifierPipeline": (classifying, {"images": RAMPS}),
    "MAEPipeline": (masking, {"images": RAMPS}),
    "UniDiffuserPipeline": (
        speaking,
        {"prompt": ["a cat", "dog"], "guidance_scale": 2.0, "num_inference_steps": 2},
    ),
    "WordVectorsPipeline": (naming, {"words": ["it's", "a"]}),
}
"""Family -> what makes small pipelines of it, by name, and how they are called. Every family has a line here."""

MORE_CASES = {"VQPipeline": (coding_with_prior, {"class_labels": [0, 1], "guidance_scale": 1.5})}
"""Pipelines that are called in another way, by their family."""

WITHOUT = """
import importlib.abc, json, sys
from pathlib import Path

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hfgen":
            raise ModuleNotFoundError(f"no {name} on this machine")

sys.meta_path.insert(0, Blocker())
import torch
from diffusers import DiffusionPipeline

def draw(pipeline, call):
    pipeline.set_progress_bar_config(disable=True)
    if "images" in call or "words" in call:  # judged or looked up rather than drawn
        return torch.cat([part.double().flatten() for part in pipeline(**call, return_dict=False)])
    seeds = [torch.Generator().manual_seed(n) for n in range(2)]
    return pipeline(**call, generator=seeds, output_type="latent").images

home, places = Path(sys.argv[1]), json.loads(sys.argv[2])
first, call = None, None
for place, (name, call) in places.items():
    expected = torch.load(home / f"{name}.pt")
    try:
        DiffusionPipeline.from_pretrained(place)
        raise SystemExit(f"{place} was loaded without the flag")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    for _ in range(2):  # the second load runs the same files again in the same modules
        pipeline = DiffusionPipeline.from_pretrained(place, trust_remote_code=True)
        assert torch.equal(draw(pipeline, call), expected), place
        first = first or (pipeline, expected, call)
        if name.endswith("discrete"):
            first = (pipeline, expected, call)
assert torch.equal(draw(first[0], first[2]), first[1])
assert not [name for name in sys.modules if name.split(".")[0] == "hfgen"]
print("drawn", len(places))
"""


def drawn(pipeline, call):
    """As `draw` in WITHOUT."""
    if "images" in call or "words" in call:
        return torch.cat([part.double().flatten() for part in pipeline(**call, return_dict=False)])
    seeds = [torch.Generator().manual_seed(n) for n in range(2)]
    return pipeline(**call, generator=seeds, output_type="latent").images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder with a folder for each case and what it draws beside it, case -> how it is called)."""
    home, calls = tmp_path_factory.mktemp("saved"), {}
    for family, (make, call) in [*CASES.items(), *MORE_CASES.items()]:
        for name, pipeline in make().items():
            pipeline.set_progress_bar_config(disable=True)
            pipeline.save_pretrained(home / f"{family}-{name}")
            torch.save(drawn(pipeline, call), home / f"{family}-{name}.pt")
            calls[f"{family}-{name}"] = call
    return home, calls


def test_every_family_has_a_case_and_every_component_is_in_one(saved):
    assert set(CASES) == set(PIPELINES), "give the new family a line in CASES"
    indices = [json.loads((saved[0] / name / "model_index.json").read_text()) for name in saved[1]]
    used = {value[1] for index in indices for value in index.values() if isinstance(value, list)}
    assert used >= {*COMPONENTS, *PIPELINES}
    assert {cls for cls, _ in SAMPLERS.values()} <= set(COMPONENTS)


def test_plain_diffusers_draws_the_same_bits_from_folder_and_hub(saved, tmp_path, monkeypatch):
    home, calls = saved
    with Hub() as server:
        use(server, monkeypatch, tmp_path)
        places = {str(home / name): (name, call) for name, call in calls.items()}
        for family in CASES:
            name = next(name for name in calls if name.startswith(family))
            pushing.push(home / name, f"someone/{family}")
            places[f"someone/{family}"] = (name, calls[name])
        command = [sys.executable, "-c", WITHOUT, str(home), json.dumps(places)]
        env = environment(server, tmp_path)
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["drawn", str(len(places))]


@pytest.mark.parametrize("name", [*COMPONENTS, *PIPELINES])
def test_a_shipped_file_stands_alone(name):
    from hfgen.saving.save import shipped

    file = shipped(name)
    assert file.text.startswith(MARK) and f"hfgen {hfgen.__version__} wrote this file" in file.text
    module = {**COMPONENTS, **PIPELINES}[name]
    assert f"#     {module}\n" in file.text and "Apache-2.0" in file.text
    tree = ast.parse(file.text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    origins = {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in imports}
    assert origins <= PACKAGES | LATE and not any(getattr(node, "level", 0) for node in imports)
    families = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "DiffusionPipeline" in [getattr(base, "id", "") for base in node.bases]
    ]
    assert families == ([name] if name in PIPELINES else [])  # diffusers takes the one pipeline class that it finds


def test_names_are_unique_to_contents():
    from hfgen.saving.save import shipped

    files = [shipped(name) for name in [*COMPONENTS, *PIPELINES]]
    assert len({file.stem for file in files}) == len(files)
    assert all(file.stem.startswith("hfgen_") for file in files)
    assert shipped("UNet2DModel") is None


def test_saving_again_leaves_no_old_source_files(tmp_path):
    pipeline = denoising()["discrete"]
    pipeline.save_pretrained(tmp_path)
    old = tmp_path / "denoiser" / "hfgen_DiTModel_00000000.py"
    old.write_text(MARK + "# of another version\n")
    (tmp_path / "hfgen_mine.py").write_text("# the user's own\n")
    pipeline.scheduler = hfgen.RectifiedFlowScheduler()
    pipeline.save_pretrained(tmp_path)
    code = sorted(path.name.rsplit("_", 1)[0] for path in tmp_path.rglob("*.py"))
    assert code == ["hfgen", "hfgen_DenoisingPipeline", "hfgen_DiTModel", "hfgen_RectifiedFlowScheduler"]


def test_a_pipeline_of_diffusers_own_classes_needs_no_code(tmp_path):
    import diffusers

    torch.manual_seed(0)
    options = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
    unet = diffusers.UNet2DModel(sample_size=8, block_out_channels=(8,), **options)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is diffusers.DDPMPipeline and not list(tmp_path.rglob("*.py"))
    ours = hfgen.DenoisingPipeline(unet, diffusers.DDPMScheduler())
    ours.save_pretrained(tmp_path / "ours")
    index = json.loads((tmp_path / "ours" / "model_index.json").read_text())
    assert index["denoiser"] == ["diffusers", "UNet2DModel"] and index["scheduler"] == ["diffusers", "DDPMScheduler"]
    assert len(list((tmp_path / "ours").rglob("*.py"))) == 1


# --- what can't be shipped is refused, and says why -------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Write modules of a package hfgen.made_up."""
    folder = tmp_path / "made_up"
    folder.mkdir()
    monkeypatch.setattr(hfgen, "__path__", [*hfgen.__path__, str(tmp_path)])

    def write(**modules):
        for name, text in {"__init__": "", **modules}.items():
            Path(folder, f"{name}.py").write_text(text)

    yield write
    for name in [name for name in sys.modules if name.startswith("hfgen.made_up")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("from .b import f\ndef g(): pass\nclass A: pass\n", "g would mean both"),
        ("from .b import f\nfrom math import sin as g\nclass A: pass\n", "g would mean both"),
        ("from .b import missing\nclass A: pass\n", "imports missing of hfgen.made_up.b"),
        ("from . import b\nclass A: pass\n", "imports b of hfgen.made_up"),
        ("import hfgen.paths\nclass A: pass\n", "imports names of hfgen, on top"),
        (
            "class A:\n    def f(self):\n        from .b import f\n",
            "line 3: a shipped module imports names of hfgen, on top",
        ),
        ("import pandas\nclass A: pass\n", "line 1: a shipped file can't count on pandas"),
        ("import scipy.stats\nclass A: pass\n", "can't count on scipy"),
        ('class A:\n    """Text\n    from .ghost import spirits\n    """\n', "reads as an import of '.ghost'"),
        ('class A:\n    """Text\n    import pandas\n    """\n', "reads as an import of 'pandas'"),
        ('class A:\n    text = """one\n    two"""\n', "string over several lines"),
        ("class B: pass\n", "defines no A"),
        ("from .c import Base\nclass A(Base):\n    def f(self) -> Base: pass\n", "Base is not shipped"),
        ("from .c import Base as Other\nclass A(Other): pass\n", "imports Base of hfgen.made_up.c"),
    ],
)
def test_what_can_not_be_shipped_is_refused(package, text, why):
    package(a=text, b="def f(): pass\ndef g(): pass\n", c="class Base: pass\n", d="class Parts: pass\n")
    standin = Standin("hfgen.made_up.d", {"Base": "Parts, dict"}, {})
    with pytest.raises(NotPortableError, match=why):
        one_file("A", "hfgen.made_up.a", {"hfgen.made_up.c": standin})


def test_modules_are_joined_in_the_order_of_their_needs(package):
    package(
        a='"""First."""\nimport math\n\nfrom .b import f as g\nfrom .c import Base\n\n\nclass A(Base):\n    x = g()\n',
        b='"""Second."""\nimport math\n\nfrom .e import TWO\n\n\ndef f():\n    return math.sqrt(TWO)\n',
        c="class Base: pass\n",
        d="class Parts:\n    y = 3\n",
        e="TWO = 2.0\n",
    )
    standin = Standin("hfgen.made_up.d", {"Base": "Parts, OrderedDict"}, {"collections": "OrderedDict"})
    text = one_file("A", "hfgen.made_up.a", {"hfgen.made_up.c": standin}).text
    places = [text.index(f"# --- hfgen.made_up.{name} ") for name in ("e", "b", "d", "a")]
    assert places == sorted(places) and "made_up.c" not in text and text.count("import math") == 1
    names = {}
    exec(compile(text, "a.py", "exec"), names)
    first = names["A"]
    assert first.x == 2**0.5 and first.y == 3 and issubclass(first, dict)
    exec(compile(text, "a.py", "exec"), names)  # as diffusers does
    assert names["A"] is first


def test_a_family_of_another_package_ships_its_own_modules(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    modules = {"__init__": "", "a": "from .b import f\n\n\nclass A:\n    x = f()\n", "b": "def f():\n    return 3\n"}
    for name, text in {**modules, "c": "import elsewhere.b\n\n\nclass C: pass\n"}.items():
        Path(tmp_path, "elsewhere", f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    exec(compile(one_file("A", "elsewhere.a").text, "a.py", "exec"), names)
    assert names["A"].x == 3
    with pytest.raises(NotPortableError, match="imports names of elsewhere, on top"):
        one_file("C", "elsewhere.c")
