"""Samples that show the class that was asked for, by a judge that names itself; data that are no test of a model."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hfgen import DenoisingPipeline, DiTModel, RectifiedFlowScheduler, cli
from hfgen.data.images import load_images
from hfgen.data.training_data import record_of
from hfgen.evaluation.evaluate import measure
from hfgen.evaluation.options import EvaluateOptions
from hfgen.metrics.feature_network import FeatureNetwork, ImageSet
from hfgen.metrics.measures import Comparison, measure_agreement
from hfgen.options import DataArgs
from hfgen.saving.card import write_card

FEW = {"features": "mnist", "num_samples": 20, "num_inference_steps": 1, "device": "cpu"}


def pipeline_of(size: int, classes: int | None = 10, **data: str) -> DenoisingPipeline:
    """A pipeline with random weights, which says that it was trained on the data."""
    torch.manual_seed(0)
    shape = {"sample_size": size, "in_channels": 1, "out_channels": 1, "hidden_size": 32, "num_layers": 1}
    labels = None if classes is None else classes + 1
    denoiser = DiTModel(**shape, num_attention_heads=2, num_class_embeds=labels)
    pipeline = DenoisingPipeline(denoiser, RectifiedFlowScheduler(), classes)
    if data:
        args = DataArgs(**data)
        pipeline.training_data = record_of(args, load_images(args))
    return pipeline


@pytest.fixture
def saved(tmp_path: Path):
    """Return a function that saves a pipeline with its card and returns the folder."""

    def save(*args, **data) -> str:
        pipeline_of(*args, **data).save_pretrained(tmp_path / "run")
        write_card(tmp_path / "run", "M", "S", "batch_size=4", {"data": "digits"}, "hfgen train", [], "digits")
        return str(tmp_path / "run")

    return save


def images(scores: list[list[float]], labels: list[int]) -> ImageSet:
    logits = torch.tensor(scores, dtype=torch.float64)
    return ImageSet("judge, 0", torch.zeros(len(logits), 1, 2, 2), logits, logits, torch.tensor(labels))


def test_agreement_is_the_share_of_requested_classes_that_are_recognised() -> None:
    one, two, three = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]
    network = FeatureNetwork("judge", "0", nn.Identity(), 3, None, None, scores=True)
    real, fake = images([one, two, three], [0, 1, 1]), images([one, one, two, three], [0, 1, 1, 2])
    samples, reference = measure_agreement(Comparison(network, real, fake))
    assert (samples.metric, samples.value, samples.better) == ("class agreement (judge, 0)", 0.75, "higher")
    assert (reference.metric, reference.value) == ("class agreement of real images (judge, 0)", pytest.approx(2 / 3))
    assert 0 <= samples.interval[0] < 0.75 < samples.interval[1] <= 1
    (all_right, _) = measure_agreement(
        Comparison(network, real, dataclasses.replace(fake, labels=torch.tensor([0, 0, 1, 2])))
    )
    assert (all_right.value, all_right.interval) == (1.0, (1.0, 1.0))


def test_the_command_prints_both_with_the_name_of_the_judge(saved, capsys) -> None:
    folder = saved(28, dataset="mnist5k")
    words = "--dataset_split test --num_samples 200 --num_inference_steps 1 --device cpu --metrics class_agreement"
    cli.main(["evaluate", folder, *words.split(), "--features", "mnist"])
    out = capsys.readouterr().out
    assert "class agreement (mnist-cnn, " in out and "class agreement of real images (mnist-cnn, " in out
    samples, real = json.loads((Path(folder) / "metrics.json").read_text())["evaluation"]
    assert samples["value"] < 0.5 < 0.97 < real["value"]  # noise is no digit; the judge knows real ones
    assert samples["protocol"]["split"] == "test" and samples["protocol"]["generated images"] == 200


def test_of_several_networks_the_classifier_judges(saved) -> None:
    result = measure(EvaluateOptions(saved(8, dataset="digits"), "class_agreement", **{**FEW, "features": "auto"}))
    assert ["digits-cnn" in each.metric for each in result.measurements] == [True, True]


@pytest.mark.parametrize(
    ("pipeline", "data", "message"),
    [
        ((28, None), {"dataset": "mnist5k"}, "class_agreement needs a pipeline that knows classes"),
        ((28, 10), {"dataset": "mnist5k", "label_column": "none"}, "needs labels of mnist5k"),
        ((28, 7), {"dataset": "mnist5k"}, "a judge of the pipeline's 7 classes, and the feature network tells 10"),
    ],
)
def test_what_can_have_no_agreement_is_refused_before_anything_is_drawn(
    saved, pipeline, data, message, monkeypatch
) -> None:
    monkeypatch.setattr(DenoisingPipeline, "__call__", lambda self, generator=None: pytest.fail("samples were drawn"))
    with pytest.raises(ValueError, match=message):
        measure(EvaluateOptions(saved(*pipeline), "class_agreement", **FEW), data)


def test_a_folder_of_images_was_asked_for_nothing(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("L", (28, 28)).save(tmp_path / "images" / f"{number}.png")
    with pytest.raises(ValueError, match="class_agreement needs a pipeline"):
        measure(
            EvaluateOptions(str(tmp_path / "images"), "class_agreement", features="mnist", device="cpu"),
            {"dataset": "mnist5k"},
        )


# Data that are no test


def parquet_of(path: Path, *parts: tuple[str, list[int]]) -> Path:
    """A data set of rows of splits of mnist5k, under another name."""
    import datasets

    from hfgen.data.built_in import mnist5k

    rows = mnist5k()
    datasets.concatenate_datasets([rows[split].select(chosen) for split, chosen in parts]).to_parquet(path)
    return path


def test_images_of_the_training_under_another_name_are_no_test(saved, tmp_path: Path) -> None:
    folder, options = saved(28, dataset="mnist5k"), {"metrics": "spectrum", **FEW}
    leaked = parquet_of(tmp_path / "whole.parquet", ("test", [*range(30)]), ("train", [0, 5, 99]))
    with pytest.raises(ValueError, match=r"3 of the 33 real images of .*whole.* trained on \(mnist5k, split train\)"):
        measure(EvaluateOptions(folder, **{**options, "num_reference": 33}), {"dataset": str(leaked)})
    unseen = parquet_of(tmp_path / "unseen.parquet", ("test", [*range(30)]))
    assert measure(EvaluateOptions(folder, **options), {"dataset": str(unseen)}).entries
    for split in ("train", "test"):  # the images of the training are measured where one asks for them by their name
        assert measure(EvaluateOptions(folder, **options), {"dataset_split": split}).entries


def test_a_model_of_the_other_images_may_be_measured_on_them(saved, tmp_path: Path) -> None:
    folder, options = saved(28, dataset="mnist5k", dataset_split="train[:50]"), {"metrics": "spectrum", **FEW}
    other = parquet_of(tmp_path / "other.parquet", ("train", [*range(50, 90)]))
    assert measure(EvaluateOptions(folder, **options), {"dataset": str(other)}).entries
    with pytest.raises(ValueError, match="among those that the pipeline was trained on"):
        seen = parquet_of(tmp_path / "seen.parquet", ("train", [49]))
        measure(EvaluateOptions(folder, **options), {"dataset": str(seen)})
