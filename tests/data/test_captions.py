"""Captions: of a column, of files beside images, of lines of JSON; each image has its own, whatever is left out."""

import json
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data.images import load_images
from hfgen.options import CaptionDataArgs, DataArgs
from tests.data.test_image_folder import png

TEXTS = ["a cat", "two dogs", "a cat", ""]


def folder_of(path, names=("a.png", "in/b.png", "in/c.png", "d.png"), texts=TEXTS):
    """A folder of images of values 0, 1, ..., with a file of text beside each for which there is a text."""
    for value, name in enumerate(names):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(value))
        if texts[value] is not None:
            file.with_suffix(".txt").write_text(f"{texts[value]}\n", encoding="utf-8")
    return path


def captions_of(dataset, **options):
    """{value of an image: its caption}."""
    data = load_images(CaptionDataArgs(dataset=str(dataset), **options))
    batch = data.read(torch.arange(len(data)))
    texts = [data.caption_texts[number] for number in batch["captions"].tolist()]
    assert len(set(data.caption_texts)) == len(data.caption_texts)
    return dict(zip(batch["x"][:, 0, 0, 0].tolist(), texts, strict=True))


EXPECTED = dict(enumerate(TEXTS))


def test_files_beside_images_are_captions_where_captions_are_wanted(tmp_path, capsys):
    folder = folder_of(tmp_path / "a b's")
    assert captions_of(folder) == EXPECTED
    assert "skipped" not in capsys.readouterr().err
    plain = load_images(DataArgs(dataset=str(folder)))
    assert plain.captions is None and set(plain.read(torch.tensor([0]))) == {"x"}
    said = capsys.readouterr().err
    assert "4 files skipped" in said and "4 texts beside images are captions" in said
    assert "...." not in said


def test_captions_of_an_archive(tmp_path):
    folder = folder_of(tmp_path / "images")
    for kind, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        with tarfile.open(tmp_path / f"shard.{kind}", mode) as archive:
            archive.add(folder, ".")
        assert captions_of(tmp_path / f"shard.{kind}") == EXPECTED


@pytest.mark.parametrize("key", [None, "says"])
def test_lines_of_json_name_images_below_their_folder(tmp_path, key):
    folder = folder_of(tmp_path / "images", texts=[None] * 4)
    lines = {"a.png": TEXTS[0], "d.png": TEXTS[3]}, {"b.png": TEXTS[1], "c.png": TEXTS[2], "gone.png": "no image"}
    for place, named in zip((folder, folder / "in"), lines, strict=True):
        rows = [json.dumps({"file_name": name, key or "text": text, "size": 3}) for name, text in named.items()]
        (place / "captions.jsonl").write_text("\n\n".join(rows), encoding="utf-8")
    assert captions_of(folder, **({} if key is None else {"caption_column": key})) == EXPECTED


def test_a_table_of_the_datasets_library_has_a_column_of_captions(tmp_path):
    folder = folder_of(tmp_path, ("a.png", "b.png"), [None] * 2)
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": "two"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert captions_of(folder) == {0: "one", 1: "two"}


def test_a_split_has_its_own_captions(tmp_path):
    names = ("train/a.png", "train/b.png", "test/a.png", "test/b.png")
    folder = folder_of(tmp_path, names, ["one", "two", "three", None])
    assert captions_of(folder) == {0: "one", 1: "two"}
    with pytest.raises(ValueError, match=r"1 of 2 images have no caption: test/b\.png is the first\. Add test/b\.txt"):
        captions_of(folder, dataset_split="test")


def rows_of(captions, kind=None, name="caption", **more):
    """A table of images of values 0, 1, ... with a column of captions."""
    images = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in range(len(captions))]
    columns = {"image": images, name: captions, **more}
    features = {"image": datasets.Image(), name: kind or datasets.Value("string")}
    features |= {key: datasets.Value("string") for key in more}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize(
    ("name", "more", "given"),
    [
        ("anything", {}, None),
        ("text", {"title": list("abcd")}, None),
        ("caption", {"text": list("abcd")}, None),
        ("title", {"text": list("abcd")}, "title"),
    ],
)
def test_the_column_is_named_or_guessed(tmp_path, name, more, given):
    rows_of(TEXTS, name=name, **more).to_parquet(tmp_path / "x.parquet")
    assert captions_of(tmp_path / "x.parquet", caption_column=given) == EXPECTED


def test_names_of_classes_are_captions_on_request(tmp_path):
    kind = datasets.ClassLabel(names=["a cat", "two dogs"])
    rows_of([0, 1, 0], kind, "label").to_parquet(tmp_path / "x.parquet")
    assert captions_of(tmp_path / "x.parquet", caption_column="label") == {0: "a cat", 1: "two dogs", 2: "a cat"}
    with pytest.raises(ValueError, match=r"has no captions.*--caption_column.*label"):
        captions_of(tmp_path / "x.parquet")


@pytest.mark.parametrize("budget", [4.0, 0.0])
def test_a_corrupt_image_takes_its_caption_with_it(tmp_path, budget):
    folder = folder_of(tmp_path)
    (folder / "in" / "b.png").write_bytes(b"damaged")
    found = captions_of(folder, skip_corrupt=True, cache_budget=budget)
    assert found == {value: text for value, text in EXPECTED.items() if value != 1}
    assert captions_of(folder_of(tmp_path), max_train_samples=2, cache_budget=budget) == {0: "a cat", 3: ""}


def test_other_captions_are_other_data(tmp_path):
    prints = set()
    for text in ("two dogs", "two cats"):
        folder = folder_of(tmp_path / text, texts=["a", text, "b", "c"])
        prints.add(load_images(CaptionDataArgs(dataset=str(folder))).fingerprint)
        prints.add(load_images(CaptionDataArgs(dataset=str(folder), cache_budget=0.0)).fingerprint)
    prints.add(load_images(DataArgs(dataset=str(folder))).fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no captions: no column of texts"),
        ({"a.txt": b"\xff\xfe\xff"}, r"a\.txt"),
        ({"a.txt": b"x", "m.jsonl": b"{}"}, r"both in .*a\.txt and in .*m\.jsonl"),
        ({"m.jsonl": b"{"}, r"m\.jsonl, line 1 is no JSON"),
        ({"m.jsonl": b"3"}, r"line 1 has no keys; it needs 'file_name'"),
        ({"m.jsonl": b'{"file_name": "a.png", "says": "x"}'}, "line 1 has file_name, says; it needs.*--caption_column"),
        ({"m.jsonl": b'{"file_name": "a.png", "text": 3}'}, "line 1 has file_name, text; it needs"),
        (
            {"m.jsonl": b'{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png", "text": "y"}'},
            r"line 2: a\.png has another caption",
        ),
        ({"m.jsonl": b'{"file_name": "b.png", "text": "x"}'}, r"1 of 1 images have no caption: a\.png.*a line for it"),
    ],
)
def test_what_is_no_caption_is_refused_by_name(tmp_path, files, message):
    (tmp_path / "a.png").write_bytes(png(0))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        captions_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_column_of_captions_in_files_is_refused(tmp_path):
    """They have no columns, so the option would do nothing."""
    folder = folder_of(tmp_path)
    with pytest.raises(ValueError, match=r"--caption_column says does nothing with captions in files, as .*a\.txt"):
        captions_of(folder, caption_column="says")
    assert captions_of(folder, caption_column="caption") == EXPECTED
    classes = folder_of(tmp_path / "classes", ("x/a.png", "x/b.png", "y/c.png", "y/d.png"))
    assert captions_of(classes, caption_column="label") == {0: "x", 1: "x", 2: "y", 3: "y"}


def test_a_row_without_a_caption_is_refused(tmp_path):
    rows_of(["a", None, None]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"2 rows have no caption in column 'caption' \(row 1 is the first\)"):
        captions_of(tmp_path / "x.parquet")
    rows_of(["a"], name="one", two=["b"]).to_parquet(tmp_path / "y.parquet")
    with pytest.raises(ValueError, match=r"one, two may hold the captions; no name says which.*--caption_column one"):
        captions_of(tmp_path / "y.parquet")
