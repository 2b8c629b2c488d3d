"""Filters of samples: copies of training images are found, unseen images are not; unwanted classes."""

import numpy as np
import pytest
import torch
from PIL import Image

import hfgen
from hfgen.evaluation.filter_options import FilterOptions
from hfgen.evaluation.filters import MemorisationFilter, UnwantedClassFilter, load_filters
from hfgen.metrics.features import load_features
from hfgen.options import DataArgs
from hfgen.serving.filters import FilteredError, judged
from tests.saving import test_portable as portable

UNSEEN = "train[1200:]"


@pytest.fixture(scope="module")
def digits():
    """Split -> (PIL images, labels)."""
    found = {}
    for split, part in (("train", "train[:1200]"), ("test", UNSEEN)):
        data = hfgen.load_images(DataArgs(dataset="digits", dataset_split=part))
        levels, labels = data.pixels(torch.arange(len(data)))
        found[split] = ([Image.fromarray(x[0].numpy()) for x in levels], labels)
    return found


@pytest.fixture(scope="module")
def pipeline():
    """A model of 8 x 8 digits that says it was trained on them."""
    made = portable.denoising()["DiTModel-straight"]
    made.training_data = {
        **{"source": "built-in", "dataset": "digits", "dataset_split": "train[:1200]", "resolution": None},
        **{"center_crop": True, "channels": 1, "background": "white", "fingerprint": "x"},
    }
    return made


def options(**given):
    return FilterOptions(**given)


def test_p_values_are_those_of_a_count_by_hand():
    network = load_features("digits")
    train, held_out = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    found = MemorisationFilter(network, train, held_out, 0.25)
    p = found.p_values(torch.tensor([0.5, 1.0, 1.5, 2.0, 4.9, 9.0], dtype=torch.float64))
    assert p.tolist() == [1 / 4, 2 / 4, 2 / 4, 3 / 4, 3 / 4, 1.0]
    with pytest.raises(ValueError, match=r"A rate of 0\.2 needs at least 4 held-out images, and there are 3\."):
        MemorisationFilter(network, train, held_out, 0.2)
    with pytest.raises(ValueError, match=r"More than 25\.00% of the held-out images are training images"):
        MemorisationFilter(network, train, torch.zeros(3, 2), 0.25)
    with pytest.raises(ValueError, match=r"rate=1\.0 must be between 0 and 1"):
        MemorisationFilter(network, train, held_out, 1.0)


def test_copies_are_found_and_of_unseen_images_no_more_than_the_rate(digits, pipeline, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (memorised,) = load_filters(options(memorised="flag", memorised_rate=0.05, held_out_split=UNSEEN), pipeline, "mine")
    assert not memorised.refuses
    copies = memorised.judge(digits["train"][0][:200])
    assert all(copies) and "from training image" in copies[0]
    brighter = [image.point(lambda level: min(255, round(level * 1.02))) for image in digits["train"][0][:200]]
    assert np.mean([reason is not None for reason in memorised.judge(brighter)]) > 0.9  # copies in another file
    unseen, _ = digits["test"]
    half = MemorisationFilter(memorised.network, memorised.train, memorised.network(_x(unseen[::2])), 0.05)
    assert np.mean([reason is not None for reason in half.judge(unseen[1::2])]) < 0.1
    noise = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    assert not any(memorised.judge([Image.fromarray(x) for x in noise]))


def _x(images):
    return torch.stack([torch.from_numpy(np.array(image))[None] for image in images]).float() / 127.5 - 1


def test_the_classes_that_are_not_wanted_are_found(digits, pipeline):
    images, labels = digits["test"]
    (unwanted,) = load_filters(options(unwanted_classes="3,8"), pipeline, "mine")
    found = np.array([reason is not None for reason in unwanted.judge(images)])
    truth = np.isin(labels.numpy(), [3, 8])
    assert unwanted.refuses and (found == truth).mean() > 0.95
    assert any("unwanted class, 8 (probability" in reason for reason in unwanted.judge(images) if reason)


def test_probabilities_of_unwanted_classes_count_together():
    shares = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]])
    judge = UnwantedClassFilter(lambda images: shares, [1, 2], ["a", "b", "c"], 0.8)
    first, second = judge.judge(["x", "y"])
    assert first == "a classifier takes it for an unwanted class, c (probability 0.80)" and second is None
    with pytest.raises(ValueError, match=r"threshold=0\.0 must be above 0"):
        UnwantedClassFilter(lambda images: shares, [1], ["a", "b"], 0.0)


def test_a_classifier_of_a_folder_judges_by_its_names(tmp_path):
    network = portable.network("DiTModel", hidden_size=16, num_layers=1, num_attention_heads=2, patch_size=2)
    model = hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler())
    classifier = hfgen.NoisyClassifierPipeline(
        hfgen.NoisyClassifierModel(8, 1, 3), hfgen.RectifiedFlowScheduler(), 3, ["cat", "dog", "owl"]
    )
    classifier.save_pretrained(tmp_path / "judge")
    given = options(unwanted_classes="dog", unwanted_classifier=str(tmp_path / "judge"), unwanted_probability=1e-9)
    (unwanted,) = load_filters(given, model, "mine")
    assert "unwanted class, dog" in unwanted.judge([Image.new("L", (8, 8))])[0]
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds a DenoisingPipeline\. Give a classifier"):
        load_filters(options(unwanted_classes="1", unwanted_classifier=str(tmp_path / "model")), model, "mine")


def test_what_can_not_be_judged_is_refused_before_it_is_served(pipeline):
    plain = portable.denoising()["DiTModel-straight"]
    with pytest.raises(ValueError, match="does not say what data it comes from"):
        load_filters(options(memorised="refuse"), plain, "nowhere")
    assert load_filters(options(), plain, "nowhere") == []


class Judge:
    def __init__(self, name, found, refuses):
        self.name, self.found, self.refuses = name, found, refuses

    def judge(self, images):
        return ["bad" if i in self.found else None for i in range(len(images))]


def test_flags_are_returned_and_refusals_raised_with_the_image():
    flags = judged([Judge("a", {1}, False), Judge("b", {0, 1}, False)], ["x", "y"], ["seed 5", "seed 6"])
    assert [(flag.number, flag.filter) for flag in flags] == [(1, "a"), (0, "b"), (1, "b")]
    with pytest.raises(FilteredError, match=r"^Refused by a filter\. seed 6: bad$") as error:
        judged([Judge("a", {0}, False), Judge("b", {1}, True)], ["x", "y"], ["seed 5", "seed 6"])
    assert error.value.filters == ("b",)
