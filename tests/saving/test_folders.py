"""Damaged folders: whatever a folder claims, loading it ends in a documented error, soon and without much memory."""

import copy
import json
import random
import resource
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch

import hfgen
from hfgen import HFGenPipeline
from hfgen.saving.folders import check_network, read_json, shapes_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"
FILES = ("model_index.json", "denoiser/config.json", "scheduler/scheduler_config.json", WEIGHTS)


def tiny():
    """A pipeline of a few kB, all of whose outputs matter."""
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 1, "mlp_ratio": 1.0}
    network = hfgen.DiTModel(sample_size=4, in_channels=1, out_channels=1, num_class_embeds=3, **size)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    scheduler = hfgen.DDIMScheduler.from_config({"path": "straight", "prediction_type": "flow_prediction"})
    return hfgen.DenoisingPipeline(network, scheduler, 2, ["cat", "dog"])


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4)
    return pipeline(class_labels="dog", latents=noise, num_inference_steps=3, output_type="latent").images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    tiny().save_pretrained(folder)
    return folder


# --- old releases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted(FIXTURES.iterdir()), ids=lambda folder: folder.name)
def test_folders_of_earlier_releases_keep_loading(folder):
    """One folder a release, as it was fetched from a repository then; `expected.json` is what it drew."""
    pipeline = HFGenPipeline.from_pretrained(folder)
    expected = torch.tensor(json.loads((folder / "expected.json").read_text()))
    torch.testing.assert_close(draw(pipeline), expected, rtol=1e-4, atol=1e-5)  # matrix products differ by machine


def test_there_is_a_folder_of_this_release():
    assert (FIXTURES / hfgen.__version__ / "model_index.json").is_file()


# --- fuzz -------------------------------------------------------------------------------------------------------------

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**40), 10**30, 0.0, -0.5, 1e-300, 1e308),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "x",
        "0",
        "../..",
        "/etc/passwd",
        "hfgen",
        "DiTModel",
        "\x00",
        "é" * 99,
    ),
    *([], [None], ["hfgen"], ["hfgen", "DiTModel"], ["diffusers", "AutoModel"], ["os", "system"], [[1]], [1] * 5000),
    *({}, {"": 0}, {"0": "a"}, {"weight_map": {}}, {"a": {"b": {"c": []}}}),
)
NAMES = (
    "_class_name",
    "quantization_config",
    "auto_map",
    "num_layers",
    "num_train_timesteps",
    "trained_betas",
    "path",
    "",
)


def mutated(values, chance):
    """The object with one to three entries changed, removed, added, or moved."""
    for _ in range(chance.randint(1, 3)):
        place = chance.choice([values, *(v for v in values.values() if isinstance(v, dict | list) and v)])
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = chance.choice([*keys, chance.choice(NAMES)] if isinstance(place, dict) else keys)
        kind = chance.random()
        if kind < 0.15 and isinstance(place, dict) and key in place and len(place) > 1:
            del place[key]
        elif kind < 0.3 and isinstance(place, dict):
            place[key] = copy.deepcopy(chance.choice(list(place.values())))
        elif kind < 0.45 and isinstance(place, dict) and isinstance(place.get(key), int | float):
            place[key] = chance.choice(
                [place[key] * 1000, -place[key], place[key] + 1, float(place[key]), str(place[key])]
            )
        else:
            place[key] = copy.deepcopy(chance.choice(VALUES))
    return values


def scrambled(content, chance):
    """The bytes with some flipped, cut off, repeated or inserted."""
    content = bytearray(content)
    kind = chance.randint(0, 3)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(content) or 1)
        if kind == 0 and content:
            content[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            content[place:place] = chance.choice([b"[" * 5000, b"\xff\xfe", b"}", b"\x00" * 9, b'"', b"9" * 5000])
        else:
            content[place:place] = content[: chance.randrange(len(content) or 1)]
    return bytes(content)


def damaged(name, content, chance):
    """A file's content after an accident or an attack."""
    if chance.random() < 0.3:
        return scrambled(content, chance)
    if name != WEIGHTS:
        return json.dumps(mutated(json.loads(content), chance)).encode()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(mutated(json.loads(content[8 : 8 + length]), chance)).encode()
    claimed = chance.choice([len(header)] * 4 + [0, len(header) + 1, 2**40, 2**64 - 1])
    return struct.pack("<Q", claimed) + header + content[8 + length :]


def fuzz(saved, folder, cases, seed):
    """Load that many damaged folders; what did not end as documented, and how many were sound in spite of all."""
    shutil.copytree(saved, folder)
    sound = {name: (saved / name).read_bytes() for name in FILES}
    wrong, loaded = [], 0
    for case in range(cases):
        chance = random.Random(f"{seed}/{case}")
        name = chance.choice(FILES)
        content = damaged(name, sound[name], chance)
        (folder / name).write_bytes(content)
        start = time.process_time()
        try:
            HFGenPipeline.from_pretrained(folder)
            loaded += 1
        except (ValueError, OSError) as error:
            if not str(error).strip():
                wrong.append((case, name, "no message"))
        except Exception as error:
            wrong.append((case, name, f"{type(error).__name__}: {error}", content[:300]))
        if time.process_time() - start > 5:  # one to the promise, the rest to a busy machine
            wrong.append((case, name, "took too long", content[:300]))
        (folder / name).write_bytes(sound[name])
    return wrong, loaded


@pytest.mark.parametrize(("cases", "seed"), [(500, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)])
def test_damaged_folders_are_refused_as_documented(saved, tmp_path, cases, seed, caplog):
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    HFGenPipeline.from_pretrained(saved)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        wrong, loaded = fuzz(saved, tmp_path / "damaged", cases, seed)
    finally:
        diffusers.utils.logging.set_verbosity_warning()
        diffusers.utils.logging.enable_progress_bar()
    assert not wrong, wrong[:5]
    assert loaded < cases / 2  # changes do matter
    unit = 1 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 2**32 else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 200 << 20


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "folder"))


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("denoiser/config.json", {"num_layers": 10_000_000}, "more than 21 parameters, and the weights have no more"),
        (
            "denoiser/config.json",
            {"num_layers": 2},
            r"do not belong together\. blocks\.1\..* \[.*\] and has none at all",
        ),
        ("denoiser/config.json", {"hidden_size": 16}, "do not belong together"),
        ("denoiser/config.json", {"hidden_size": 2**40}, "hidden_size=1099511627776, which is out of all bounds"),
        ("denoiser/config.json", {"hidden_size": "wide"}, r"config\.json describes no DiTModel"),
        ("denoiser/config.json", {"quantization_config": {}}, "quantised weights"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**6}, "out of all bounds"),
        ("scheduler/scheduler_config.json", {"prediction_type": "guess"}, "prediction_type='guess' is not known"),
        ("model_index.json", {"denoiser": ["diffusers", "AutoModel"]}, "no network or scheduler of hfgen or diffusers"),
        ("model_index.json", {"_class_name": ["pipeline", "Evil"]}, "holds a Evil"),
    ],
)
def test_claims_that_can_not_be_true_are_refused(folder, file, values, why):
    change(folder / file, **values)
    with pytest.raises(ValueError, match=why):
        HFGenPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../evil.safetensors", "/tmp/evil.safetensors", 3])
def test_shards_lie_beside_their_list_and_are_safetensors(folder, name):
    (folder / "denoiser" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"output.weight": name}})
    )
    with pytest.raises(ValueError, match="only safetensors beside it are read"):
        HFGenPipeline.from_pretrained(folder)


def test_long_and_strange_json_is_refused(tmp_path):
    path = tmp_path / "a.json"
    for text, why in {
        "[" * 99999: "not valid JSON",
        "[]": "no JSON object",
        '{"a": ' + "9" * 9999: "not valid JSON",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=why):
            read_json(path)
    path.write_bytes(b" " * (5 << 20))
    with pytest.raises(ValueError, match="no such file has more than 4194304"):
        read_json(path)


def test_a_sound_network_passes_and_is_not_built(folder):
    shapes = shapes_of(folder / "denoiser")
    built = {name: list(value.shape) for name, value in tiny().denoiser.state_dict().items()}
    assert shapes == built
    check_network(folder / "denoiser", hfgen.DiTModel)
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.safetensors; no other weights are read"):
        shapes_of(folder)
