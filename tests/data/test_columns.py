"""Which columns hold the images and the class labels."""

import io
import logging

import datasets
import numpy as np
import pytest
from PIL import Image

from hfgen.data.images import load_images
from hfgen.options import DataArgs

IMAGE, BYTES, WHOLE = datasets.Image(), datasets.Value("binary"), datasets.Value("int64")
CLASSES = datasets.ClassLabel(names=["even", "odd"])


def picture(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def load(tmp_path, columns, types, **options):
    """Load a file of these columns; a column of images holds the grey level of each row."""
    cells = {
        name: [picture(v) if types[name] in (IMAGE, BYTES) else v for v in values] for name, values in columns.items()
    }
    cells = {
        name: [{"bytes": v, "path": None} for v in values] if types[name] == IMAGE else values
        for name, values in cells.items()
    }
    path = tmp_path / "data.parquet"
    datasets.Dataset.from_dict(cells, features=datasets.Features(types)).to_parquet(str(path))
    return load_images(DataArgs(dataset=str(path), cache_dir=str(tmp_path / "cache"), **options))


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["conditioning_image", "image"], "image"),
        (["mask", "img", "depth"], "img"),
        (["Image", "thumbnail"], "Image"),
        (["img", "image"], "image"),
        (["scan"], "scan"),
        (["conditioning_image"], "conditioning_image"),
    ],
)
def test_the_image_is_the_column_of_that_name(tmp_path, caplog, columns, chosen):
    level = {name: 10 + 20 * i for i, name in enumerate(columns)}
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path, {name: [level[name]] * 2 for name in columns}, dict.fromkeys(columns, IMAGE))
    assert data.images.unique().tolist() == [level[chosen]]
    others = ", ".join(name for name in columns if name != chosen)
    said = [f"Column '{chosen}' holds the images. Others: {others}; see --image_column."]
    assert [record.getMessage() for record in caplog.records] == (said if others else [])


def test_a_column_of_the_type_of_images_comes_before_one_of_bytes(tmp_path, caplog):
    types = {"image": BYTES, "scan": IMAGE}
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path, {"image": [1], "scan": [2]}, types)
    assert data.images.unique().tolist() == [2] and "Others: image" in caplog.text
    assert load(tmp_path, {"image": [1], "scan": [2]}, types, image_column="image").images.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"left": IMAGE, "right": IMAGE}, "columns left, right may hold the images; .* --image_column left"),
        (
            {"image": IMAGE, "hand": CLASSES, "eye": CLASSES},
            "columns hand, eye may hold the labels; .* --label_column hand, or --label_column none",
        ),
    ],
)
def test_what_no_name_decides_is_refused(tmp_path, types, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {name: [0, 1] for name in types}, types)
    named = {"image_column": "right"} if "right" in types else {"label_column": "eye"}
    assert len(load(tmp_path, {name: [0, 1] for name in types}, types, **named)) == 2


@pytest.mark.parametrize(
    ("labels", "names", "others"),
    [
        ({"target": (WHOLE, [90, 80]), "kind": (CLASSES, [1, 0])}, ["even", "odd"], "target"),
        ({"label": (WHOLE, [90, 80]), "kind": (CLASSES, [1, 0])}, ["even", "odd"], "label"),
        ({"coarse_label": (CLASSES, [0, 0]), "fine_label": (CLASSES, [1, 0])}, ["even", "odd"], "coarse_label"),
        ({"target": (WHOLE, [7, 3])}, ["3", "7"], ""),
        ({"Label": (WHOLE, [7, 3])}, ["3", "7"], ""),
        ({"label": (datasets.Value("string"), ["b", "a"])}, ["a", "b"], ""),
        ({"label": (datasets.Value("bool"), [True, False])}, ["False", "True"], ""),
        ({"label": (datasets.Value("int8"), [1, -1])}, ["-1", "1"], ""),
        ({"age": (WHOLE, [7, 3])}, None, ""),
    ],
)
def test_labels_are_a_class_label_before_anything_else(tmp_path, caplog, labels, names, others):
    types = {"image": IMAGE} | {name: kind for name, (kind, _) in labels.items()}
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path, {"image": [0, 1]} | {name: values for name, (_, values) in labels.items()}, types)
    assert data.label_names == names
    assert names is None or data.labels.tolist() == [1, 0]
    assert (f"Others: {others}; see --label_column" in caplog.text) == bool(others)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_no_classes(tmp_path, caplog, dtype):
    columns, types = {"image": [0, 1], "label": [1.0, 0.0]}, {"image": IMAGE, "label": datasets.Value(dtype)}
    with pytest.raises(ValueError, match=f"--label_column label holds floats \\({dtype}\\), and classes are whole"):
        load(tmp_path, columns, types, label_column="label")
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, columns, types).num_classes is None
    assert "No class labels: label" in caplog.text


@pytest.mark.parametrize("values", [[0, -1, 1], [2, -1, 2], [1, None, 0]])
def test_rows_without_a_label_are_refused(tmp_path, values):
    columns, types = {"image": [0, 1, 2], "label": values}, {"image": IMAGE, "label": WHOLE}
    with pytest.raises(ValueError, match=r"1 rows have no label .* \(row 1 is the first, with (-1|None)\)"):
        load(tmp_path, columns, types)
    assert load(tmp_path, columns, types, label_column="none").num_classes is None
