"""What is judged is prepared as what it is judged against, and samples follow the classes of the reference."""

import io
import itertools
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data.images import load_images
from hfgen.evaluation.evaluate import measure
from hfgen.evaluation.options import EvaluateOptions
from hfgen.evaluation.reference import matching_labels
from hfgen.evaluation.samples import PipelineSamples
from hfgen.metrics.neighbours import distance_rows, prdc
from hfgen.options import DataArgs


def draw_images(folder: Path, count: int) -> Path:
    """Save images of six kinds and of different sizes: grey, RGB, JPEG, RGBA, 16 bits, grey with alpha."""
    generator = np.random.default_rng(len(folder.name))
    for i in range(count):
        grey = generator.integers(0, 256, (20 + i % 7, 40 - i % 5), dtype=np.uint8)
        colour = np.stack([grey, grey // 2, 255 - grey], 2)
        kinds = [
            grey,
            colour,
            colour,
            np.dstack([colour, grey]),
            grey.astype(np.uint16) * 257,
            np.stack([grey, grey], 2),
        ]
        path = folder / "abc"[i % 3] / f"{i:03d}.{'jpg' if i % 6 == 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(kinds[i % 6]).save(path)
    (folder / "a" / "damaged.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the splits train and test, with 70 and 80 images; the second lacks a class."""
    folder = tmp_path_factory.mktemp("home") / "real"
    draw_images(folder / "train", 70)
    draw_images(folder / "test", 120)
    shutil.rmtree(folder / "test" / "b")
    return folder


def check_equal(target: Path, home: Path, given: DataArgs, **options: object) -> None:
    """Check that distances are exactly 0, precision and recall exactly 1."""
    settings = {"num_samples": 200, "bootstrap": 0, "device": "cpu", "reference_cache": str(home / "cache")}
    settings |= {"metrics": "frechet,prdc,spectrum", "features": "digits"}
    result = measure(EvaluateOptions(str(target), **{**settings, **options}), given)
    values = {each.metric.split(",")[0].split(" (")[0]: each.value for each in result.measurements}
    assert (values["Frechet distance"], values["spectrum distance"]) == (0, 0), given
    assert (values["precision"], values["recall"], values["coverage"]) == (1, 1, 1), given


def test_a_folder_against_a_copy_of_itself_is_perfect_under_every_option(real: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(real, tmp_path / "copy")
    shared = {"dataset": str(real), "resolution": 8, "channels": 1, "skip_corrupt": True}
    changes = itertools.product((True, False), ("white", "#ff0000"))
    cases = [{"center_crop": crop, "background": background} for crop, background in changes]
    cases += [{"cache_budget": 0.0}, {"random_flip": True}, {"label_column": "none"}, {"max_train_samples": 67}]
    cases += [{"dataset_split": split} for split in ("test", "test[:85%]")]
    for case in cases:
        check_equal(copy, tmp_path, DataArgs(**{**shared, **case}))
    check_equal(copy, tmp_path, DataArgs(**shared), num_samples=66, neighbours=1)
    check_equal(copy, tmp_path, DataArgs(**{**shared, "resolution": 32, "channels": None}), features="cifar10")


def test_a_split_of_the_folder_can_be_named(real: Path, tmp_path: Path) -> None:
    given = DataArgs(str(real), dataset_split="test", resolution=8, channels=1, skip_corrupt=True)
    options = {"num_samples": 200, "bootstrap": 0, "device": "cpu", "reference_cache": str(tmp_path)}
    entry = measure(EvaluateOptions(str(real), "spectrum", target_split="train", **options), given).entries[0]
    assert entry["value"] > 0
    assert (entry["protocol"]["split"], entry["protocol"]["their split"]) == ("test", "train")


def test_the_column_of_images_is_the_same(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def cells() -> list[dict]:
        files = [io.BytesIO() for _ in range(70)]
        for file in files:
            Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(file, "PNG")
        return [{"bytes": file.getvalue(), "path": None} for file in files]

    features = datasets.Features({"image": datasets.Image(), "other": datasets.Image()})
    (tmp_path / "rows").mkdir()
    rows = datasets.Dataset.from_dict({"image": cells(), "other": cells()}, features=features)
    rows.to_parquet(str(tmp_path / "rows" / "train.parquet"))
    for column in ("image", "other"):
        check_equal(tmp_path / "rows", tmp_path, DataArgs(str(tmp_path / "rows"), image_column=column))


def test_images_of_another_shape_are_refused(real: Path, tmp_path: Path) -> None:
    for name, size in (("real", (8, 8)), ("judged", (8, 9))):
        for i in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", size, i).save(tmp_path / name / f"{i}.png")
    options = EvaluateOptions(str(tmp_path / "judged"), "spectrum", device="cpu", reference_cache=str(tmp_path))
    with pytest.raises(ValueError, match=r"The real images have 1 channel\(s\) and 8 x 8 pixels, not .* 9 x 8 pixels"):
        measure(options, DataArgs(str(tmp_path / "real")))


def test_equal_features_have_distance_0_and_are_in_balls_of_radius_0() -> None:
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(20, 64, dtype=torch.float64, generator=generator)
    features = few.repeat(15, 1)  # each of 15 equal rows has its fifth neighbour at distance 0
    values = prdc(features, features)
    assert (values["precision"], values["recall"]) == (1, 1)
    far = features + 1000
    brute = (far[:, None] - far[None]).square().sum(-1).sqrt()
    distances = torch.cat(list(distance_rows(far, far)))
    assert torch.equal(distances == 0, brute == 0)
    torch.testing.assert_close(distances, brute, rtol=1e-6, atol=0)


# --- classes ----------------------------------------------------------------------------------------------------------


def reference(folder: Path, **counts: int) -> Path:
    """Save black images in a folder for each class."""
    for name, count in counts.items():
        for i in range(count):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(folder / name / f"{i}.png")
    return folder


def samples(data, count: int, names: list[str] | None, num_classes: int | None = None) -> PipelineSamples:
    """Samples of a pipeline that has these classes and nothing else."""
    config = {"num_classes": num_classes or len(names), "label_names": names}
    pipeline = type("Pipeline", (), {"config": config, "components": {}, "scheduler": None})()
    return PipelineSamples(pipeline, EvaluateOptions("x", num_samples=count), data)


@pytest.mark.parametrize("count", [10, 7, 23, 3])
def test_classes_are_those_of_the_reference_by_name_in_its_proportions(tmp_path: Path, count: int) -> None:
    data = load_images(DataArgs(str(reference(tmp_path / "test", b=7, d=3))))
    drawn = samples(data, count, ["a", "b", "c", "d"])
    rows = torch.randperm(10, generator=torch.Generator().manual_seed(count))
    labels = drawn.labels(rows)
    sizes = Counter(labels)
    assert sizes.keys() <= {1, 3} and sum(sizes.values()) == count
    for label, share in ((1, 0.7), (3, 0.3)):
        assert abs(sizes[label] - share * count) < 1
    if count >= 10:
        assert [{"b": 1, "d": 3}[data.label_names[data.labels[row]]] for row in rows] == labels[:10]
    assert drawn.protocol()["labels"] == "as in the reference"


def test_a_reference_without_labels_or_with_foreign_ones(tmp_path: Path) -> None:
    plain = load_images(DataArgs(str(reference(tmp_path / "test", b=2, d=3)), label_column="none"))
    drawn = samples(plain, 5, ["a", "b", "c"])
    assert drawn.labels(torch.arange(5)) == [0, 1, 2, 0, 1]
    assert drawn.protocol()["labels"] == "all classes in turn"
    foreign = load_images(DataArgs(str(tmp_path / "test")))
    with pytest.raises(ValueError, match=r"test has images of class d, and the pipeline has the classes a, b, c"):
        samples(foreign, 5, ["a", "b", "c"]).labels(torch.arange(5))
    assert samples(foreign, 5, None, 2).labels(torch.arange(5)) == foreign.labels.tolist()
    with pytest.raises(ValueError, match="3 classes without names"):
        samples(foreign, 5, None, 3).labels(torch.arange(5))


def test_real_images_are_measured_under_the_class_of_their_name(tmp_path: Path) -> None:
    data = load_images(DataArgs(str(reference(tmp_path / "test", b=2, d=3))))
    drawn, told = samples(data, 5, ["a", "b", "c", "d"]), []

    def bits_per_dim(images, class_labels=None, generator=None):
        told.extend(class_labels.tolist())
        return torch.ones(len(images))

    drawn.pipeline.bits_per_dim = bits_per_dim
    drawn.measure("bits_per_dimension", data, "test", torch.tensor([4, 0, 3, 1, 2]))
    assert told == [3, 1, 3, 1, 3]


def test_labels_keep_the_order_of_the_reference_and_its_exact_counts() -> None:
    labels = torch.tensor([0, 0, 0, 2, 0, 2, 5, 0, 0, 2])
    assert matching_labels(labels, 20) == labels.tolist() * 2
    for count in range(1, 31):
        sizes = Counter(matching_labels(labels, count))
        for label, share in ((0, 0.6), (2, 0.3), (5, 0.1)):
            assert abs(sizes[label] - share * count) < 1
