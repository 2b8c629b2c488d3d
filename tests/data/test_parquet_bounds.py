"""Parquet files that are small, and stand for very much."""

import gzip
import io
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from hfgen.data import parquet_bounds
from hfgen.data.images import load_images
from hfgen.data.parquet_bounds import check_parquet
from hfgen.data.sources import open_rows
from hfgen.options import DataArgs
from tests.helpers.fuzz import time_limit
from tests.helpers.hub_server import Hub, Repo, environment
from tests.helpers.toys import ROOT

MEBIBYTE = 1 << 20
IMAGE = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


def nested(levels):
    kind = pyarrow.int64()
    for _ in range(levels):
        kind = pyarrow.struct({"a": kind})
    return pyarrow.array([None], kind)


def repeated(count, size=MEBIBYTE, kind=None):
    """An image column with one value, which the file holds once."""
    values = pyarrow.array([b"\0" * size], kind)
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), values)
    return pyarrow.table({"image": column})


def lists(count):
    """Numbers that the file holds once."""
    numbers = pyarrow.array([7], pyarrow.int64()).take(pyarrow.array([0] * count))
    return pyarrow.table({"x": pyarrow.ListArray.from_arrays(pyarrow.array([0, count], pyarrow.int32()), numbers)})


BOMBS = {
    "one image": (repeated(30_000), {}),
    "deep": (pyarrow.table({"a": nested(80)}), {}),
    "very deep": (pyarrow.table({"a": nested(99)}), {}),
    "numbers": (lists(3 * MEBIBYTE), {}),
    "of one length": (repeated(32, kind=pyarrow.binary(MEBIBYTE)), {}),
    "a long cell": (repeated(300, 12 * MEBIBYTE), {}),
    "prefixes": (
        pyarrow.table({"a": [b"x" * MEBIBYTE] * 64}),
        {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}},
    ),
}


@pytest.fixture
def little(monkeypatch):
    """A machine with little memory, and less patience."""
    monkeypatch.setattr(parquet_bounds, "memory", lambda: 64 * MEBIBYTE)
    monkeypatch.setattr(parquet_bounds, "MOST_CELL", 8 * MEBIBYTE)
    monkeypatch.setattr(parquet_bounds, "MOST_TIMES", 1)


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_stands_for_too_much_is_refused_by_name(name, little, tmp_path):
    table, options = BOMBS[name]
    path = tmp_path / "data" / "train.parquet"
    path.parent.mkdir()
    pyarrow.parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, **options)
    assert path.stat().st_size < MEBIBYTE
    for dataset in (path, path.parent):
        with time_limit(5), pytest.raises(ValueError, match=r"train\.parquet is not read: "):
            load_images(DataArgs(dataset=str(dataset), cache_dir=str(tmp_path / "cache")))


@pytest.mark.parametrize(
    "table",
    [
        repeated(9),
        lists(999),
        pyarrow.table({"image": pyarrow.array([{"bytes": bytes([i]) * 9999, "path": None} for i in range(99)], IMAGE)}),
        pyarrow.table({"text": [None, "a", "a"] * 99, "words": [["b", "b"], [], None] * 99}),
        pyarrow.table({"nothing": pyarrow.nulls(9)}),
    ],
    ids=["repeated", "lists", "images", "texts", "nothing"],
)
def test_files_of_a_usual_size_pass(table, little, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_bounds, "USUAL_BYTES", 64 * MEBIBYTE)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    check_parquet([tmp_path / "a.parquet"])


def test_what_is_counted_is_what_is_decoded(little, tmp_path):
    values = pyarrow.array([bytes([i]) * size for i, size in enumerate((9, 3 * MEBIBYTE, 99))])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 2, 1, 0, 2, 1] * 50, pyarrow.int32()), values)
    pyarrow.parquet.write_table(pyarrow.table({"image": column}), tmp_path / "a.parquet")
    chunk = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0)
    assert parquet_bounds._repeated(tmp_path / "a.parquet", 0, chunk, 1 << 40) == 300 * 3 * MEBIBYTE  # at most
    most = 100 * (9 + 99 + 3 * MEBIBYTE)
    assert parquet_bounds._repeated(tmp_path / "a.parquet", 0, chunk, most) == most


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\xff" * 99 + b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet is not read: "):
        check_parquet([tmp_path / "a.parquet"])


def test_metadata_that_end_a_process_are_refused(tmp_path):
    """A file of images in whose metadata a byte is changed: pyarrow ends the process that looks at its columns."""
    (tmp_path / "train.parquet").write_bytes((ROOT / "tests/data/damaged_columns.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"train\.parquet is not read: its metadata are damaged: "):
        load_images(DataArgs(dataset=str(tmp_path), cache_dir=str(tmp_path / "cache")))


def test_the_file_that_is_damaged_is_named_among_sound_ones(tmp_path):
    sound = tmp_path / "sound.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), sound)
    check_parquet([sound, sound])
    with pytest.raises(ValueError, match=r"damaged_columns\.parquet is not read"):
        check_parquet([sound, ROOT / "tests/data/damaged_columns.parquet", sound])


CARD = "---\nconfigs: [{config_name: default, data_files: %s}]\n---\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train.geoparquet", r"train\.geoparquet is not read: "),
        ("train.gpq", r"train\.gpq is not read: "),
        ("train.parquet.gz", r"train\.parquet\.gz is not read: "),
        ("train.h5", r"of the format hdf5, which is not read; the known ones: parquet, arrow, csv"),
        ("train.eval", r"of the format eval, which is not read"),
    ],
)
def test_a_table_is_bounded_whatever_it_is_called(name, message, little, tmp_path):
    """The card names the table, so that the `datasets` library chooses the reader."""
    path = tmp_path / "data" / name
    path.parent.mkdir()
    table, options = BOMBS["one image"]
    pyarrow.parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, **options)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    (path.parent / "README.md").write_text(CARD % name)
    for streaming in (False, True):
        with time_limit(5), pytest.raises(ValueError, match=message):
            open_rows(DataArgs(dataset=str(path.parent), cache_dir=str(tmp_path / "cache"), streaming=streaming))


READ = """
import sys
from hfgen.data import parquet_bounds
from hfgen.data.sources import open_rows
from hfgen.options import DataArgs

parquet_bounds.memory = lambda: 64 << 20
for name in ("sound", "bomb", "damaged", "short", "later"):
    for streaming in (False, True):
        try:
            rows = open_rows(DataArgs(dataset=f"someone/{name}", cache_dir=sys.argv[1], streaming=streaming))
            print(name, streaming, sum(1 for _ in rows), "rows")
        except ValueError as error:
            print(name, streaming, str(error).splitlines()[0])
"""
"""Reads data sets of the Hub, whole and as streams."""


def test_tables_of_the_hub_are_bounded_as_those_of_a_folder(tmp_path):
    """A sound one, one that decodes to too much, damaged and cut ones, and one whose second table is too much."""
    table, options = BOMBS["one image"]
    files = {}
    for name, rows, more in (("sound", pyarrow.table({"image": [b"a", b"b"]}), {}), ("bomb", table, options)):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(rows, buffer, compression="zstd", dictionary_pagesize_limit=1 << 30, **more)
        files[name] = {"train.parquet": buffer.getvalue()}
    files["damaged"] = {"train.parquet": (ROOT / "tests/data/damaged_columns.parquet").read_bytes()}
    files["short"] = {"train.parquet": b"PAR1" + b"\xff" * 4 + b"PAR1"}
    files["later"] = {f"train-{i}.parquet": files[name]["train.parquet"] for i, name in enumerate(("sound", "bomb"))}
    with Hub() as hub:
        for name, content in files.items():
            hub.repos[f"someone/{name}"] = Repo()
            hub.repos[f"someone/{name}"].add("main", {"README.md": b"# Data\n", **content})
        command = [sys.executable, "-c", READ, str(tmp_path / "cache")]
        variables = environment(hub, tmp_path, str(ROOT))
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["sound False 2 rows", "sound True 2 rows"], (lines, done.stderr)
    assert len(lines) == 10 and all("parquet is not read: " in line for line in lines[2:]), lines
    assert all("decodes to" in line for line in lines[2:4] + lines[8:]) and "hf://" in lines[9]
