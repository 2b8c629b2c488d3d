"""Data of strangers: tables and cards lead to files of their data set and nowhere else."""

import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hfgen.data.border import Border, border_of_hub, check_card, check_files
from hfgen.data.images import load_images
from hfgen.options import DataArgs
from tests.helpers.fuzz import time_limit
from tests.helpers.fuzz_subjects import images, rows, saved


@pytest.fixture
def home(tmp_path):
    """A folder beside one with a secret picture, and links from one to the other."""
    for name in ("data", "secret"):
        (tmp_path / name).mkdir()
    name, content, _ = next(images())
    (tmp_path / "data" / name).write_bytes(content)
    (tmp_path / "secret" / name).write_bytes(content)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "data" / "inside").mkdir()
    (tmp_path / "data" / "inside" / "link.png").symlink_to(tmp_path / "data" / name)
    return tmp_path


def write_table(path: Path, *paths: str) -> None:
    """A parquet file whose cells name these paths instead of holding images."""
    table = rows()
    cells = pyarrow.array(
        [{"bytes": None, "path": place} for place in paths],
        pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
    )
    labels = pyarrow.array([0] * len(paths), pyarrow.int64())
    metadata = table.features.arrow_schema.metadata
    columns = pyarrow.table({"image": cells, "label": labels}).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(columns, path)


def load(dataset, tmp_path, **options):
    return load_images(DataArgs(dataset=str(dataset), cache_dir=str(tmp_path / "cache"), resolution=8, **options))


OUTSIDE = ("{home}/secret/a0.png", "../secret/a0.png", "inside/../../secret/a0.png", "link/a0.png", "~/a0.png")
ADDRESSES = (
    *("file://{home}/secret/a0.png", "http://127.0.0.1:9/a0.png", "https://127.0.0.1:9/a0.png", "hf://datasets/a/b/c"),
    *("zip://a0.png::{home}/secret/a.zip", "local://{home}/secret/a0.png", "simplecache::file://{home}/secret/a0.png"),
    *("data:image/png;base64,AAAA", "memory://a", "ftp://127.0.0.1/a"),
)


@pytest.mark.parametrize("place", [*OUTSIDE, *ADDRESSES])
@pytest.mark.parametrize("skip", [False, True])
def test_cells_name_no_file_outside(home, tmp_path, place, skip):
    write_table(home / "data" / "train.parquet", place.format(home=home))
    for dataset in (home / "data", home / "data" / "train.parquet"):
        with pytest.raises(ValueError, match=r"(?:lies outside of the data set|can't be decoded|no image that can be)"):
            load(dataset, tmp_path, skip_corrupt=skip)


def test_cells_name_files_of_the_data_set(home, tmp_path, monkeypatch):
    write_table(home / "data" / "train.parquet", "a0.png", "inside/link.png", str(home / "data" / "a0.png"))
    monkeypatch.chdir("/")
    assert len(load(home / "data", tmp_path)) == 3
    assert len(load(home / "data" / "train.parquet", tmp_path)) == 3


LEAVING = ("/etc/passwd", "../secret/*", "a/../../secret/*", "http://127.0.0.1:9/a.csv", "~/*", "C:/a.csv")
FILES = {
    "one": lambda place: {"data_files": place},
    "several": lambda place: {"data_files": ["*.parquet", place]},
    "split": lambda place: {"data_files": [{"split": "train", "path": place}]},
    "splits": lambda place: {"data_files": [{"split": "train", "path": ["*.parquet", place]}]},
    "folder": lambda place: {"data_dir": place},
}


@pytest.mark.parametrize("place", LEAVING)
@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_cards_lead_nowhere_else(place, files, card):
    text = json.dumps({"configs": [{"config_name": "default", **FILES[files](place)}]})
    with pytest.raises(ValueError, match=rf"{card}.*outside of the data set"):
        check_card(f"---\n{text}\n---\n" if card.endswith(".md") else text, card)


@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_the_card_of_a_folder_is_checked_before_it_is_followed(home, tmp_path, card):
    rows().to_parquet(home / "data" / "train.parquet")
    text = json.dumps({"configs": [{"config_name": "default", "data_files": "/etc/passwd"}]})
    (home / "data" / card).write_text(f"---\n{text}\n---\n" if card.endswith(".md") else text)
    with pytest.raises(ValueError, match=rf"{card} has data_files: '/etc/passwd', which lies outside"):
        load(home / "data", tmp_path)


def test_a_card_of_the_data_set_itself_is_followed(home, tmp_path):
    rows().to_parquet(home / "data" / "inside" / "some.parquet")
    files = [{"split": "train", "path": "inside/*.parquet"}]
    text = json.dumps({"configs": [{"config_name": "a", "data_files": files}]})
    (home / "data" / "README.md").write_text(f"---\n{text}\n---\n# Data\n")
    assert len(load(home / "data", tmp_path)) == 6


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("state.json", lambda state: state.update(_data_files=[{"filename": "../other/data-00000-of-00001.arrow"}])),
        ("state.json", lambda state: state.update(_data_files=[{"filename": "/etc/passwd"}])),
        ("state.json", lambda state: state.update(_data_files={})),
        ("dataset_dict.json", lambda state: state.update(splits=["../other"])),
    ],
)
def test_lists_of_save_to_disk_name_files_beside_them(tmp_path, file, change):
    for name in ("data", "other"):
        saved(tmp_path / name)
    path = tmp_path / "data" / file
    state = json.loads(path.read_text()) if path.exists() else {}
    change(state)
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=rf"{file}.*(?:only files beside it are read|is damaged)"):
        load(tmp_path / "data", tmp_path)


def test_damaged_arrow_files_are_refused(tmp_path):
    """An offset beyond the end leads pyarrow out of the memory, and the process ends."""
    saved(tmp_path / "data")
    (path,) = (tmp_path / "data").glob("*.arrow")
    content = path.read_bytes()
    table = pyarrow.ipc.open_stream(content).read_all()
    offset = table["image"].chunk(0).field("bytes").buffers()[1].to_pybytes()[4:12]
    assert content.count(offset) == 1
    path.write_bytes(content.replace(offset, b"\xff\xff\xff\x7f" * 2))
    with pytest.raises(ValueError, match=r"\.arrow is damaged"):
        load(tmp_path / "data", tmp_path)


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml", "metadata.csv", "a.parquet", "a.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "zeros"])
def test_tables_are_regular_files(home, tmp_path, name, kind):
    rows().to_parquet(home / "data" / "train.parquet")
    path = home / "data" / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with time_limit(3), pytest.raises(ValueError, match="only regular files are read"):
        load(home / "data", tmp_path)


def test_the_border_of_a_data_set_on_the_hub(tmp_path):
    border = border_of_hub("someone/digits", str(tmp_path))
    held = "hf://datasets/someone/digits@main/a.png"
    assert border.place(held) == held and border.place(f"zip://b.png::{held}")
    assert border.place(str(tmp_path / "downloads" / "a.png"))
    for place in (
        "hf://datasets/someone/digits2@main/a.png",
        "hf://datasets/someone/digits@main/../../other/a.png",
        "hf://datasets/someone/digits@main/%2e%2e%2fx/..%2Fa.png",
        "hf://someone/digits/a.png",
        "https://example.org/datasets/someone/digits/resolve/a.png",
        "/etc/passwd",
        "zip://x::/etc/passwd",
        str(tmp_path / "other"),
    ):
        with pytest.raises(ValueError, match="outside of the data set"):
            border.place(place)
    check_files({"train": [held]}, border)
    with pytest.raises(ValueError, match="outside of the data set"):
        check_files({"train": [held, "/etc/passwd"]}, border)


def test_cards_without_places_are_cards():
    for text in ("# Data\n", "", "---\nlicense: mit\n---\n", "---\n---\n", "no\n---\nconfigs: /\n---\n"):
        check_card(text, "README.md")


def test_rows_of_the_caller_may_name_any_file(home):
    import datasets

    path = str(home / "secret" / "a0.png")
    given = datasets.Dataset.from_dict({"image": [path]}).cast_column("image", datasets.Image())
    assert len(load_images(DataArgs(), given)) == 1
    with pytest.raises(ValueError, match="outside"):
        load_images(DataArgs(), given, Border("data", (str(home / "data"),)))


def test_a_folder_that_is_judged_has_a_border(home, tmp_path):
    from hfgen.evaluation.judged import load_alike

    write_table(home / "data" / "train.parquet", str(home / "secret" / "a0.png"))
    real = load(shutil.copytree(home / "secret", tmp_path / "real"), tmp_path)
    with pytest.raises(ValueError, match="outside of the data set"):
        load_alike(str(home / "data"), None, DataArgs(), real)
