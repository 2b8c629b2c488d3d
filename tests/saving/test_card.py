"""The card: what it says, whether its metadata are ones that the Hub takes, and what later evaluations add to it."""

import json

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image

from hfgen.saving import card as cards
from hfgen.saving import hub
from hfgen.utils import pictures
from tests.helpers.hub_server import faults

EVALUATION = [
    {"metric": "FID", "value": 12.345678, "protocol": {"samples": 10000, "network": "inception"}, "dataset": "mnist"},
    {"metric": "precision", "value": 1, "protocol": "10,000 samples, k = 3"},
    {"metric": "broken", "value": None},
    "not an entry",
]


@pytest.fixture
def folder(tmp_path):
    """A run's folder as far as cards are concerned."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("samples.png", "loss.png", "denoising.gif"):
        Image.new("L", (2, 2)).save(folder / name)
    return folder


def write(folder, **options):
    facts = {"data": "1,797 images", "time": "3 s"}
    call = {
        "title": "Digits",
        "summary": "A model.",
        "call": "batch_size=4",
        "facts": facts,
        "tags": ["rectified-flow"],
        "pictures": {"samples.png": "samples", "denoising.gif": "from noise to images"},
    }
    cards.write_card(folder, **{**call, "command": "hfgen train", "data": "ylecun/mnist", **options})
    return (folder / "README.md").read_text()


def results_of(text):
    return ModelCard(text, ignore_metadata_errors=False).data.eval_results


def test_metadata_survive_the_hubs_own_reading(folder):
    (folder / "metrics.json").write_text(json.dumps({"evaluation": EVALUATION}))
    text = write(folder, licence="mit")
    assert not faults(text)
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "diffusers",
        "unconditional-image-generation",
        "mit",
    )
    assert (
        data.tags == ["hfgen", "rectified-flow"] and data.datasets == ["ylecun/mnist"] and data.model_name == "Digits"
    )
    first, second = data.eval_results
    assert isinstance(first, EvalResult) and (first.metric_type, first.metric_value) == ("fid", 12.345678)
    assert first.metric_args == {"protocol": "samples 10000, network inception, dataset mnist"}
    assert (first.dataset_name, first.dataset_type, second.metric_name) == ("mnist", "ylecun/mnist", "precision")
    again = ModelCardData(**data.to_dict(), ignore_metadata_errors=False)
    assert again.to_yaml() == data.to_yaml()


def test_it_says_how_it_was_made_how_to_load_it_and_what_it_is_not_for(folder):
    text = write(folder)
    for sentence in (
        *("![samples](samples.png)", "](denoising.gif)", "](loss.png)", "| time | 3 s |", "hfgen train", "config.yaml"),
        *('HFGenPipeline.from_pretrained("run")', 'DiffusionPipeline.from_pretrained("run", trust_remote_code=True)'),
        *("license: unknown", "Weights: none has been chosen.", "not for decisions about people"),
    ):
        assert sentence in text
    assert "model-index" not in text and "## Results" not in text and "{" not in text.split("---")[2]


def test_a_data_set_of_this_machine_is_only_named(folder):
    text = write(folder, data=str(folder))
    assert "datasets" not in text and str(folder.parent) not in text


def test_results_are_added_to_a_card_once_and_again(folder):
    write(folder)
    for evaluation in (EVALUATION[:1], EVALUATION):
        (folder / "metrics.json").write_text(json.dumps({"evaluation": evaluation}))
        cards.add_results(folder)
        text = (folder / "README.md").read_text()
        assert text.count("## Results") == 1 and "| FID | 12.35 | samples 10000, network inception" in text
        assert not faults(text)
    assert [result.metric_name for result in results_of(text)] == ["FID", "precision"]
    assert text.index("## Use") < text.index("## Results") < text.index("## Training")
    (folder / "README.md").write_text("my own words")
    cards.add_results(folder)
    assert (folder / "README.md").read_text() == "my own words"


def test_only_its_own_examples_are_renamed(folder):
    text = write(folder)
    assert cards.name_repository(text, "me/model").count('from_pretrained("me/model"') == 2
    own = 'HFGenPipeline.from_pretrained("mine")'
    assert cards.name_repository(own, "me/model") == own
    brief = cards.brief_card("me/model", samples=True)
    assert not faults(brief) and 'from_pretrained("me/model"' in brief and "samples.png" in brief
    assert "samples.png" not in cards.brief_card("me/model", samples=False)


def test_the_stand_in_finds_faults():
    assert faults("---\nmodel-index:\n- name: x\n  results: 3\n---\n")


def test_a_configuration_keeps_values_and_loses_places(tmp_path):
    text = (
        f"dataset: {tmp_path}\noutput_dir: outputs/run\nseed: 3\nmodel: unet\nlearning_rate: 0.001\ncache_dir: null\n"
    )
    expected = (
        f"dataset: {tmp_path.name}\noutput_dir: run\nseed: 3\nmodel: unet\nlearning_rate: 0.001\ncache_dir: null\n"
    )
    assert hub.shareable_config(text) == expected
    other = "dataset: uoft-cs/cifar10\nconfig: ~/x/y.yaml\n"
    assert hub.shareable_config(other) == "dataset: uoft-cs/cifar10\nconfig: y.yaml\n"


def test_a_curve_goes_where_the_numbers_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 10 * i, "loss": 100.0 - 10 * i, "d/loss": 50.0, "lr": 1.0, "text": "x"} for i in range(11)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = pictures.read_losses(path)
    assert set(losses) == {"loss", "d/loss"} and losses["loss"][-1] == (100, 0.0)
    picture = pictures.curves({"loss": losses["loss"]}, width=380, height=240)
    blue = [(x, y) for x in range(380) for y in range(240) if picture.getpixel((x, y)) == (31, 119, 180)]
    line = [(x, y) for x, y in blue if not (x >= 220 and y <= 35)]  # the name stands in the corner
    assert min(x for x, _ in line) <= 72 and max(x for x, _ in line) >= 368  # from side to side
    for x, y in line:
        assert abs((x - 70) / 300 - (y - 10) / 200) < 0.02  # straight down
    assert pictures.read_losses(tmp_path / "none") == {}
    assert pictures.curves({"loss": [(1, 2.0)]}).size == (640, 320)


@pytest.mark.parametrize("entry", [{"value": 10**400}, {"value": True}, {"value": 1, "interval": [0, -(10**400)]}])
def test_numbers_that_no_float_holds_are_no_results(entry):
    assert not cards.is_entry({"metric": "m", **entry})
    assert cards.is_entry({"metric": "m", "value": 3, "interval": [1, 4.5]})


def test_results_of_a_long_file_are_entered(folder):
    write(folder)
    long = {"metric": "FID", "value": 2.0, "protocol": {"data": "x" * (5 << 20)}}
    (folder / "metrics.json").write_text(json.dumps({"evaluation": [long, *EVALUATION]}))
    cards.add_results(folder)
    assert "precision" in (folder / "README.md").read_text()
