"""Damaged folders: whatever a folder claims, loading it ends in a documented error, soon and without much memory."""

import io
import json
import logging
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file

import hfgen
from hfgen import HFGenPipeline
from hfgen.saving.folders import check_network, read_json, shapes_of
from tests.helpers.fuzz import MEBIBYTES, fuzz, peak_mebibytes, time_limit
from tests.helpers.fuzz_subjects import quiet, subjects, unet

FIXTURES = Path(__file__).parents[1] / "fixtures"
WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"


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


# --- what libraries say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["\x1b[31mred", "\u202edlrow", "a\nerror: b", "x" * 1_000_000])
def test_what_libraries_say_of_unknown_options_is_short_and_harmless(saved, tmp_path, name, monkeypatch, request):
    place = "denoiser/config.json"
    folder, said = shutil.copytree(saved, tmp_path / "copy"), io.StringIO()
    config = json.loads((folder / place).read_text())
    (folder / place).write_text(json.dumps({**config, name: name}))
    logger, handler = logging.getLogger("diffusers"), logging.StreamHandler(said)
    monkeypatch.setattr(logger.manager, "disable", logging.NOTSET)
    former = diffusers_logging.get_verbosity()  # a benchmark that a test imports keeps diffusers quiet
    request.addfinalizer(lambda: diffusers_logging.set_verbosity(former))
    diffusers_logging.set_verbosity_warning()
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
    assert torch.equal(draw(HFGenPipeline.from_pretrained(folder)), draw(HFGenPipeline.from_pretrained(saved)))
    text = said.getvalue()
    assert "not expected" in text and len(text) < 10_000
    assert all(letter == "\n" or letter.isprintable() for letter in text) and text.count("\n") < 5
    assert not handler.filters


# --- fuzz -------------------------------------------------------------------------------------------------------------

IN_CI = (
    *("DenoisingPipeline-unet", "DenoisingPipeline-DiTModel-straight", "GANPipeline-resnet", "VAEPipeline-mlp"),
    *("VAEPipeline-grid", "VQPipeline-vq", "AnomalyPipeline-density", "TextSequencePipeline"),
    *(
        "data: images",
        "data: archive.zip",
        "data: webdataset",
        "data: parquet",
        "data: save_to_disk",
        "data: metadata.csv",
    ),
    *("yaml", "report", "metrics"),
)
"""What is changed in CI; `python -m tests.helpers.fuzz` changes everything."""


@pytest.mark.parametrize(("cases", "seed"), [(150, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_as_documented(tmp_path, cases, seed):
    wrong = []
    with quiet():
        found = subjects()
        chosen = found if cases > 1000 else {name: found[name] for name in IN_CI}
        before = peak_mebibytes()
        counts = fuzz(chosen, tmp_path, range(cases), seed, lambda *what: wrong.append(what))
    assert not wrong, wrong[:5]
    assert counts["refused"] > cases / 2  # changes do matter
    assert peak_mebibytes() - before < MEBIBYTES


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
        ("model_index.json", {"_class_name": ["pipeline", "Evil"]}, "holds an Evil"),
    ],
)
def test_claims_that_can_not_be_true_are_refused(folder, file, values, why):
    change(folder / file, **values)
    with pytest.raises(ValueError, match=why):
        HFGenPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("model_index.json", {"_class_name": "\x1b[31m"}),
        ("model_index.json", {"_class_name": "x" * 100_000}),
        ("model_index.json", {"denoiser": "\x1b]0;me\x07"}),
        ("model_index.json", {"scheduler": "x" * 100_000}),
        ("model_index.json", {"label_names": "\x9b2J"}),
        ("denoiser/config.json", {"\x1b[2J" + "x" * 100_000: 1e300}),
        ("denoiser/config.json", {"sample_size": ["\u202e"]}),
    ],
)
def test_what_a_folder_says_moves_no_cursor_in_an_error_of_python_and_is_short(folder, file, values):
    change(folder / file, **values)
    with pytest.raises(ValueError) as caught:
        HFGenPipeline.from_pretrained(folder)
    text = str(caught.value)
    assert str(folder) in text and len(text) < 1500
    assert not [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf")]


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


HUGE = "which is out of all bounds"


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("denoiser/config.json", {"sample_size": 10**6}, HUGE),
        ("denoiser/config.json", {"sample_size": [4, 10**6]}, HUGE),
        ("denoiser/config.json", {"sample_size": 0}, "must be at least 1"),
        ("denoiser/config.json", {"norm_num_groups": -1}, "norm_num_groups=-1 must be a number that is not negative"),
        ("denoiser/config.json", {"norm_num_groups": True}, "a number or a text, not a truth value"),
        ("denoiser/config.json", {"norm_num_groups": 4.5}, "must be a whole number"),
        ("denoiser/config.json", {"norm_eps": float("nan")}, "which is no finite number"),
        ("denoiser/config.json", {"norm_eps": 1e30}, HUGE),
        ("denoiser/config.json", {"dropout": "half"}, "a number or a truth value, not a text"),
        ("denoiser/config.json", {"attention_head_dim": 10**40}, HUGE),
        ("denoiser/config.json", {"downsample_padding": []}, "downsample_padding"),
        ("denoiser/config.json", {"downsample_padding": [[1]]}, "downsample_padding"),
        ("scheduler/scheduler_config.json", {"beta_start": float("inf")}, "which is no finite number"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "must be at least 1"),
        ("scheduler/scheduler_config.json", {"solver_order": True}, "not a truth value"),
        ("model_index.json", {"num_classes": -1}, "num_classes"),
        ("model_index.json", {"variance_head": 7}, "has 7 as variance_head"),
        ("model_index.json", {"variance_head": "a"}, "has a as variance_head"),
        ("model_index.json", {"num_classes": 0}, "num_classes=0 must be a whole number from 1"),
        ("model_index.json", {"num_classes": 2**24}, "more than the 3 classes of the network"),
        ("model_index.json", {"num_classes": True}, "num_classes"),
        ("model_index.json", {"label_names": {"0": "a"}}, "1 label_names do not go together"),
        ("model_index.json", {"_training_data": [1]}, "must be texts, numbers"),
    ],
)
def test_what_weights_do_not_bound_is_refused_with_the_folder(networks, tmp_path, file, values, why):
    folder = Path(shutil.copytree(networks, tmp_path / "folder"))
    change(folder / file, **values)
    with pytest.raises(ValueError, match=rf"{folder}.*{why}"):
        HFGenPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector of anomalies."""
    from tests.saving.test_portable import detecting

    folder = tmp_path_factory.mktemp("detector")
    detecting()["density"].save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"false_alarm_rate": 0}, "must be between 0 and 1"),
        ({"false_alarm_rate": None}, "must be"),
        ({"heat_scale": -1.0}, "not negative"),
        ({"num_samples": 10**6}, HUGE),
        ({"noise_seed": -1}, "not negative"),
        ({"score": ["density"]}, "must be"),
        ({"variational": {}}, "must be"),
        ({"likelihood_sigma": float("nan")}, "no finite number"),
    ],
)
def test_a_detectors_numbers_are_checked(detector, tmp_path, values, why):
    folder = Path(shutil.copytree(detector, tmp_path / "folder"))
    change(folder / "model_index.json", **values)
    with pytest.raises(ValueError, match=rf"{folder}.*{why}"):
        HFGenPipeline.from_pretrained(folder)


@pytest.mark.parametrize("size", [None, [], [4], [4, 4, 4], [[4, 4]], [4, "4"], {}, "4", [4, 0], True])
def test_sizes_have_the_structure_of_their_annotation(folder, size):
    change(folder / "denoiser" / "config.json", sample_size=size)
    with pytest.raises(ValueError, match=rf"{folder}.*sample_size"):
        HFGenPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A pipeline with a network and a scheduler of diffusers, most of whose options no weight bounds."""
    folder = tmp_path_factory.mktemp("unet")
    unet().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "file", ["model_index.json", "denoiser/config.json", "scheduler/scheduler_config.json", WEIGHTS]
)
@pytest.mark.parametrize("kind", ["pipe", "zeros", "folder"])
def test_only_regular_files_are_loaded(folder, file, kind):
    path = folder / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with time_limit(2), pytest.raises((ValueError, OSError), match=r"only regular files are read"):
        HFGenPipeline.from_pretrained(folder)


def test_links_to_files_are_loaded_as_a_cache_of_the_hub_has_them(folder, tmp_path):
    for name in ("model_index.json", WEIGHTS):
        target = tmp_path / name.replace("/", "-")
        (folder / name).rename(target)
        (folder / name).symlink_to(target)
    HFGenPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("convert", "why"),
    [
        (lambda x: x.to(torch.int32), r"holds \S+ as int32, and its configuration makes it float32"),
        (lambda x: x.to(torch.float8_e4m3fn), r"holds \S+ as F8_E4M3; hfgen reads"),
        (lambda x: torch.full_like(x, float("nan")), "not finite"),
        (lambda x: torch.full_like(x, -float("inf")), "not finite"),
        (lambda x: x.double() * 1e300, "not finite"),
    ],
)
def test_weights_are_finite_numbers_of_the_kind_that_the_network_has(folder, convert, why):
    weights = load_file(folder / WEIGHTS)
    name = "output.weight"
    save_file({**weights, name: convert(weights[name] + 1)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{folder}.*{why}"):
        HFGenPipeline.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_loaded(folder, dtype):
    save_file({name: value.to(dtype) for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    assert HFGenPipeline.from_pretrained(folder).denoiser.dtype == torch.float32


def test_scores_of_a_calibration_may_be_infinite(tmp_path):
    """-log of a probability of 0."""
    calibration = hfgen.CalibrationModel(3)
    for last, problem in ((float("inf"), None), (float("nan"), "not finite")):
        calibration.scores.copy_(torch.tensor([0.0, 1.0, last]))
        calibration.save_pretrained(tmp_path)
        if problem is None:
            check_network(tmp_path, hfgen.CalibrationModel)
        else:
            with pytest.raises(ValueError, match=problem):
                check_network(tmp_path, hfgen.CalibrationModel)


def test_no_depth_of_json_is_followed(folder):
    text = (folder / "model_index.json").read_text().rstrip().removesuffix("}")
    for depth in (65, 5000, 500_000):
        (folder / "model_index.json").write_text(text + ', "a": ' + "[" * depth + "]" * depth + "}")
        with time_limit(2), pytest.raises(ValueError, match=r"model_index\.json (?:nests more than|is not valid JSON)"):
            HFGenPipeline.from_pretrained(folder)
