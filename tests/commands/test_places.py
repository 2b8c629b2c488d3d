"""Files that commands are to write: refused before the work if they can't be written, and whole afterwards."""

import pytest

from hfgen import cli
from hfgen.commands import anomaly_score, attention, feature_training, sample, train_classifier, train_texture
from hfgen.data import images
from hfgen.explain import families
from tests.evaluation.test_evaluate import small_pipeline
from tests.helpers.shell import write_images


@pytest.fixture
def places(tmp_path):
    """A pipeline, a file, and a file that is read-only."""
    small_pipeline().save_pretrained(tmp_path / "run")
    (tmp_path / "file").write_text("")
    for name in ("fixed.png", "fixed.json", "fixed.gif"):
        (tmp_path / name).write_text("mine")
        (tmp_path / name).chmod(0o444)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "sample run --grid fixed.png",
        "sample run --grid file/grid.png",
        "sample run --output_dir file/samples",
        "sample run --output_dir file",
        "anomaly score run digits --csv file/a.csv",
        "anomaly score run digits --json fixed.json",
        "anomaly score run digits --heat_maps file/maps",
        "attention run --output fixed.png",
        "attention run --output file/a.png",
        "data digits --grid fixed.png",
        "data digits --grid file/grid.png",
        "explain --output fixed.gif",
        "explain --output file/a.html",
    ],
)
def test_a_place_that_can_not_be_written_is_refused_before_the_work(words, places, capsys, monkeypatch):
    monkeypatch.chdir(places)
    for module in (anomaly_score, attention, sample):
        monkeypatch.setattr(module, "_pipeline", lambda *_: pytest.fail("a pipeline was loaded"))
    monkeypatch.setattr(images, "load_images", lambda *_: pytest.fail("data were loaded"))
    monkeypatch.setattr(families, "FAMILIES", {})
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert words.split()[-1].split("/")[0] in error and (places / "fixed.png").read_text() == "mine"


@pytest.mark.parametrize("program", [train_classifier, train_texture])
def test_a_feature_training_is_refused_before_the_work(program, places, monkeypatch):
    monkeypatch.setattr(program, "split", lambda *_: pytest.fail("data were loaded"))
    (places / "fixed.safetensors").write_text("mine")
    (places / "fixed.safetensors").chmod(0o444)
    with pytest.raises(OSError, match=r"fixed\.safetensors can't be written: the file is read-only"):
        program.main(["--output", str(places / "fixed.safetensors")])


def test_a_feature_training_needs_classes_and_images_in_memory(places, monkeypatch):
    write_images(places / "plain" / "train", 8, 1, 2)
    write_images(places / "plain" / "test", 8, 1, 2)
    with pytest.raises(ValueError, match="plain has no classes to learn"):
        train_classifier.main(["--dataset", str(places / "plain"), "--output", str(places / "f.safetensors")])
    assert not (places / "f.safetensors").exists()
    large = images.ImageData("large", None, None, storage="decoded by workers")
    monkeypatch.setattr(images, "load_images", lambda *_: large)
    with pytest.raises(ValueError, match="plain does not fit into memory"):
        feature_training.split(str(places / "plain"))
