"""Folders and archives of images: every image counts, whatever files and folders are called and what lies beside."""

import io
import os
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from hfgen.data import image_folder
from hfgen.data.built_in import BUILT_IN
from hfgen.data.image_folder import list_folder
from hfgen.data.images import load_images
from hfgen.data.tables import deciding_tables
from hfgen.options import DataArgs
from tests.helpers.fuzz import time_limit


def png(value):
    """The bytes of a grey PNG of 4 × 4 pixels with this value."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(folder, *places):
    """Write an image of value i to the place number i, and text to names without the ending of an image."""
    for value, place in enumerate(places):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value) if path.suffix.lower() in (".png", ".jpg") else b"text")
    return folder


def load(folder, **options):
    """(value -> class name or None, note) of the images that are read."""
    data = load_images(DataArgs(dataset=str(folder), **options))
    names = data.label_names
    labels = data.labels.tolist() if names else [None] * len(data)
    values = data.images.flatten(1)[:, 0].tolist()
    return {value: names[label] if names else None for value, label in zip(values, labels, strict=True)}


def test_all_images_of_a_flat_folder_count_whatever_they_are_called(tmp_path):
    names = ["train-station.png", "test.png", "val_1.png", "[x].png", "a b.PNG", "é.png", "x.jpg"]
    assert load(write(tmp_path, *names)) == dict.fromkeys(range(7))


STRAY = ("metadata.csv", "metadata.jsonl", "old.parquet", "cache.arrow")


@pytest.mark.parametrize("table", STRAY)
@pytest.mark.parametrize("place", ["a", "a/deep", "train", "b/train"])
def test_a_table_deep_in_a_folder_of_images_decides_nothing(tmp_path, capsys, table, place):
    folder = write(tmp_path / "x", "a/0.png", "b/1.png", "b/2.png")
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place / table).write_bytes(b"file_name,label\n0.png,1\n")
    assert len(load(folder)) == 3
    note = capsys.readouterr().err
    assert f"3 images, 2 classes, 1 file skipped: {place}/{table}" in note
    assert f"tables below a folder of images are not read: {place}/{table}." in note


def table(folder, *names):
    """A table of the images of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *(f"{name},1" for name in names)]) + "\n")


def test_a_table_at_the_top_or_of_the_splits_decides(tmp_path, capsys):
    table(write(tmp_path / "top", "0.png", "a/1.png", "a/2.png"), "0.png")
    assert deciding_tables(tmp_path / "top") == [tmp_path / "top" / "metadata.csv"]
    for name in ("train", "Test"):
        table(write(tmp_path / "splits", f"{name}/0.png") / name, "0.png")
    assert [path.parent.name for path in deciding_tables(tmp_path / "splits")] == ["Test", "train"]
    write(tmp_path / "splits", "plane/0.png")  # now train is a class
    assert not deciding_tables(tmp_path / "splits")
    for place in ("data", "mnist/deep", "train"):  # as repositories of the Hub lie on a disk
        (tmp_path / "hub" / place).mkdir(parents=True)
        (tmp_path / "hub" / place / "train-00000.parquet").touch()
    assert len(deciding_tables(tmp_path / "hub")) == 3
    (tmp_path / "hub" / "mnist" / "a.zip").touch()
    assert not deciding_tables(tmp_path / "hub")


def test_a_card_that_names_tables_decides(tmp_path):
    folder = write(tmp_path / "x", "a/0.png")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Some images\n")
    assert not deciding_tables(folder)
    (folder / "README.md").write_text("---\n\ta: [\n---\n")  # which other programs may read
    assert not deciding_tables(folder) and len(load(folder)) == 1
    (folder / "README.md").write_text("---\nconfigs: [{data_files: a/*.parquet}]\n---\n")
    assert deciding_tables(folder) == [folder / "README.md"]


@pytest.mark.parametrize("folder", ["scans [v2]", "a*b", "{x}", "train", "it's", "metadata", "data"])
def test_the_path_of_the_folder_does_not_matter(tmp_path, folder):
    assert load(write(tmp_path / folder, "a/0.png", "b/1.png")) == {0: "a", 1: "b"}


def test_classes_are_the_first_level_with_several_folders(tmp_path):
    write(tmp_path / "several", "train/0.png", "dogs/deep/er/1.png", ".cats/2.png", "__birds__/3.png", "10/4.png")
    assert load(tmp_path / "several") == {0: "train", 1: "dogs", 2: ".cats", 3: "__birds__", 4: "10"}
    assert load(write(tmp_path / "wrapped", "images/b/0.png", "images/a/1.png")) == {0: "b", 1: "a"}
    assert load(write(tmp_path / "one", "only/0.png", "only/1.png")) == {0: None, 1: None}
    assert load(write(tmp_path / "mixed", "a/0.png", "b/1.png", "2.png")) == dict.fromkeys(range(3))  # 2 has no class


def test_names_of_digits_are_in_the_order_of_numbers(tmp_path):
    found = list_folder(write(tmp_path, "10/0.png", "2/1.png", "33/2.png")).split("train")
    assert list(found.names) == ["2", "10", "33"] and sorted(found.labels) == [0, 1, 2]


def test_splits_are_folders_at_the_top_if_nothing_else_is_there(tmp_path):
    folder = write(tmp_path, "train/a/0.png", "train/b/1.png", "val/b/2.png", "Test/a/3.png", "readme.txt")
    assert load(folder) == {0: "a", 1: "b"}
    assert load(folder, dataset_split="validation") == load(folder, dataset_split="val") == {2: "b"}
    assert load(folder, dataset_split="test") == load(folder, dataset_split="Test") == {3: "a"}
    # The number of a class is the same in each split, also where a class is missing.
    assert list_folder(folder).split("validation").labels == [1]
    with pytest.raises(ValueError, match=r"no split 'val2', only train, validation, test"):
        load(folder, dataset_split="val2")
    (folder / "other").mkdir()
    (folder / "other" / "4.png").write_bytes(png(4))
    assert load(folder) == {0: "train", 1: "train", 2: "val", 3: "Test", 4: "other"}  # then they are classes
    assert load(folder, dataset_split="other") == {4: None}  # unless asked for


def test_a_part_of_a_split_may_be_taken(tmp_path):
    folder = write(tmp_path, *[f"{i}.png" for i in range(10)])
    assert list(load(folder, dataset_split="train[:30%]")) == [0, 1, 2]
    with pytest.raises(ValueError, match="only train"):
        load(folder, dataset_split="test")


def test_splits_may_be_added(tmp_path):
    folder = write(tmp_path, "train/a/0.png", "train/b/1.png", "test/a/2.png", "test/b/3.png")
    assert load(folder, dataset_split="train+test") == {0: "a", 1: "b", 2: "a", 3: "b"}
    assert load(folder, dataset_split="test[1:]+train[:50%]") == {3: "b", 0: "a"}
    assert list(load(folder, dataset_split="test[1:]+train[:50%]")) == [3, 0]
    with pytest.raises(ValueError, match="no split 'valid', only train, test"):
        load(folder, dataset_split="train+valid")


@pytest.mark.parametrize("name", ["my cat", "it's", "a-b", "[v2]", "a+b", "a[:1]", "ü.x"])
def test_a_folder_of_any_name_is_a_split_if_asked_for(tmp_path, name):
    folder = write(tmp_path / "all", "other/0.png", f"{name}/1.png", f"{name}/2.png")
    assert load(folder, dataset_split=name) == {1: None, 2: None}
    if "+" not in name:
        assert load(folder, dataset_split=f"{name}[1:]") == {2: None}
        assert list(load(folder, dataset_split=f"other + {name}[50%:]")) == [0, 2]
    with pytest.raises(ValueError, match=r"takes none|no split"):
        load(folder, dataset_split="split0")


def test_files_beside_the_images_are_named_and_ignored(tmp_path, capsys):
    names = [f"{i}.{kind}" for i in range(3) for kind in ("png", "txt", "json")]
    assert len(load(write(tmp_path, *names, "classes.txt", "notes.csv", "._0.png"))) == 3
    note = capsys.readouterr().err
    assert "3 images, no classes, 9 files skipped: ._0.png, 0.json, 0.txt, ..." in note


def test_links_inside_are_followed_once(tmp_path):
    outside = write(tmp_path / "outside", "0.png", "1.png")
    folder = write(tmp_path / "data", "b/2.png")
    (folder / "a").symlink_to(outside)
    (folder / "b" / "linked.png").symlink_to(outside / "0.png")
    (folder / "b" / "up").symlink_to(folder)  # without end
    (folder / "b" / "broken.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "b" / "pipe.png")
    found = list_folder(folder).split("train")
    assert [str(file.place) for file in found.files] == ["a/0.png", "a/1.png", "b/2.png", "b/linked.png"]
    assert "4 images, 2 classes, 2 files skipped: b/broken.png, b/pipe.png" in found.summary


def test_what_hfgen_has_not_finished_writing_is_no_data(tmp_path):
    write(tmp_path, "0.png", ".samples-1.new/1.png", ".samples.12-3.part/2.png", ".000003.12-3.part.png", ".new/4.png")
    assert load(tmp_path) == dict.fromkeys((0, 4))


def test_archives_are_read_where_they_lie(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a/0.png", png(0))
        archive.writestr("b/1.png", png(1))
        archive.writestr("../../b/2.png", png(2))  # no way out
        archive.writestr("__MACOSX/a/._0.png", b"x")
    assert load(tmp_path / "some.zip") == {0: "a", 1: "b", 2: "b"}
    write(tmp_path, "c/3.png")
    found = list_folder(tmp_path).split("train")
    assert (list(found.names), sorted(found.labels)) == (["a", "b", "c"], [0, 1, 1, 2])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "some.zip").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"cut\.tar can't be read as an archive"):
        load(tmp_path)


def test_shards_of_webdataset_have_their_classes(tmp_path):
    for shard, items in (("00000", ((0, 7), (1, 10))), ("00001", ((2, 7),))):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as archive:
            for value, label in items:
                for name, content in ((f"{value:04}.png", png(value)), (f"{value:04}.cls", str(label).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    assert load(tmp_path) == {0: "7", 1: "10", 2: "7"}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_built_in_data_set_does_not_hide_a_folder(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, "0.png", "1.png")
    assert len(load(name)) == len(load(f"./{name}")) == 2
    assert f"not the built-in {name}" in capsys.readouterr().err


def test_what_datasets_saved_is_read(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    columns = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    rows = datasets.Dataset.from_dict(columns, features=features)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, test=rows.select([3])).save_to_disk(tmp_path / "two")
    assert load(tmp_path / "one") == load(tmp_path / "two") == {0: "x", 1: "y", 2: "x", 3: "y"}
    assert load(tmp_path / "two", dataset_split="test") == {3: "y"}
    assert load(tmp_path / "one", dataset_split="train[:2]") == {0: "x", 1: "y"}
    with pytest.raises(ValueError, match="no split 'dev', only 'train', 'test' and parts"):
        load(tmp_path / "two", dataset_split="dev")


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images \(2 other files\)"):
        load(write(tmp_path, "a.txt", "b.pdf"))


def test_links_to_other_folders_of_the_data_count_and_circles_end(tmp_path, monkeypatch):
    folder = write(tmp_path / "data", "train/a/0.png", "train/b/1.png")
    (folder / "val").symlink_to(folder / "train")
    assert load(folder, dataset_split="validation") == load(folder) == {0: "a", 1: "b"}
    circle = write(tmp_path / "circle", "a/0.png", "b/1.png")
    (circle / "a" / "to_b").symlink_to(circle / "b")
    (circle / "b" / "to_a").symlink_to(circle / "a")
    (circle / "b" / "beyond").symlink_to(tmp_path)  # a folder that holds this one
    found = [str(file.place) for file in list_folder(circle).split("train").files if "beyond" not in str(file.place)]
    assert found == ["a/0.png", "a/to_b/1.png", "b/1.png", "b/to_a/0.png"]
    monkeypatch.setattr(image_folder, "VISITS", 1)
    with pytest.raises(ValueError, match=r"Links in .* lead to .* more than 1 times"):
        list_folder(folder).split("train")


def test_a_folder_that_cannot_be_read_is_no_empty_folder(tmp_path, monkeypatch):
    write(tmp_path, "a/0.png", "b/1.png")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="b'"):
        list_folder(tmp_path).split("train")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_of_more_than_memory_is_refused_by_name(tmp_path, monkeypatch, kind):
    """Contents of a compressed tar archive are held; of others they are read whenever they are needed."""
    add(tmp_path / f"bomb.{kind}", {"a.png": png(0), "b.png": bytes(5000), "c.txt": bytes(9000)})
    assert len(list_folder(tmp_path).split("train").files) == 2
    monkeypatch.setattr(image_folder, "LARGEST", 4999)
    with pytest.raises(ValueError, match=rf"bomb\.{kind}: b\.png has more than 4,999 bytes"):
        list_folder(tmp_path).split("train")
    monkeypatch.setattr(image_folder, "memory", lambda: 4 * 5000)  # each fits, both do not
    monkeypatch.setattr(image_folder, "LARGEST", 1 << 30)
    if kind != "tar.gz":
        assert len(list_folder(tmp_path).split("train").files) == 2
        return
    with pytest.raises(ValueError, match=r"b\.png has more than what a quarter of the memory holds"):
        list_folder(tmp_path).split("train")


def add(path, files):
    """Write an archive of names with contents; a text is a link to another name."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.LNKTYPE if name < "c" else tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def test_links_in_an_archive_are_images_too(tmp_path):
    add(tmp_path / "x.tar", {"a/0.png": png(0), "b/1.png": "a/0.png", "c/2.png": "../a/0.png", "c/3.png": "nothing"})
    assert [str(file.place) for file in list_folder(tmp_path).split("train").files] == ["a/0.png", "b/1.png", "c/2.png"]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_links_in_loops_and_chains_of_links_in_an_archive(tmp_path, ending):
    """A loop leads to nothing; a chain as far as Linux follows one; many links to one file take no time."""
    chain = {f"d{i:03}.png": f"d{i + 1:03}.png" for i in range(60)}
    many = {f"e{i:04}.png": "a.png" for i in range(3000)}
    loops = {"c0.png": "c0.png", "c1.png": "c2.png", "c2.png": "c1.png", "c3.png": "../../c3.png", "c4.png": "/a.png"}
    add(tmp_path / f"x.{ending}", {"a.png": png(0), "b.png": "b.png", **loops, **chain, "d060.png": "a.png", **many})
    with time_limit(1):
        found = [str(file.place) for file in list_folder(tmp_path).split("train").files]
    assert found == ["a.png", *(f"d{i:03}.png" for i in range(21, 61)), *many]


def test_a_folder_or_a_broken_link_is_no_table(tmp_path):
    (tmp_path / "a.parquet").mkdir()
    (tmp_path / "metadata.csv").symlink_to("nowhere")
    (tmp_path / "0.png").write_bytes(png(0))
    assert not deciding_tables(tmp_path) and len(load(tmp_path)) == 1


def test_an_empty_class_is_named(tmp_path):
    add(tmp_path / "x.tar", {"0.png": png(0), "0.cls": b" \n"})
    with pytest.raises(ValueError, match=r"0\.cls holds no class: it is empty"):
        list_folder(tmp_path).split("train")


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_archive_is_not_taken_for_a_short_one(tmp_path, cut):
    add(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(4)})
    content = bytearray((tmp_path / "x.tar").read_bytes())
    content[1044:1064] = b"U" * 20  # in the header of the second file
    (tmp_path / "x.tar").write_bytes(content[: 1224 if cut else None])
    with pytest.raises(
        ValueError, match=r"x\.tar can't be read as an archive: (bad checksum|truncated header), after 1,024 bytes"
    ):
        list_folder(tmp_path).split("train")


def test_names_and_classes_that_are_no_text_are_named(tmp_path):
    add(tmp_path / "x.tar", {"0.png": png(0), "0.cls": b"\xff"})
    with pytest.raises(ValueError, match=r"0\.cls holds no class as text"):
        list_folder(tmp_path).split("train")
    folder = os.path.join(os.fsencode(tmp_path), b"y", b"\xff")
    os.makedirs(folder)
    with open(os.path.join(folder, b"0.png"), "wb") as file:
        file.write(png(0))
    with pytest.raises(ValueError, match=r"is not UTF-8\. Rename"):
        list_folder(tmp_path / "y").split("train")


@pytest.mark.parametrize("split", ["train[10:20]", "train[:0]", "train[2:1]"])
def test_a_part_without_rows_is_refused_by_name(tmp_path, split):
    with pytest.raises(ValueError, match=r"takes none of its 3 rows"):
        load(write(tmp_path, "0.png", "1.png", "2.png"), dataset_split=split)


@pytest.mark.parametrize("side", [16385, 1000000, 10**12])
def test_a_resolution_that_no_memory_holds_is_refused_before_data_are_read(side):
    with pytest.raises(ValueError, match=r"resolution.*from 1 to 16384"):
        DataArgs(dataset="nowhere", resolution=side)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_of_files_of_one_name_in_an_archive_the_last_counts_as_after_unpacking(tmp_path, kind):
    """`tar -r` and `zip` programs append a changed file, and leave the former one where it is."""
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, value in (("a/0.png", 1), ("b/0.png", 2), ("a/0.png", 3)):
                archive.writestr(name, png(value))
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name, value in (("a/0.png", 1), ("b/0.png", 2), ("./a/0.png", 3)):
                info = tarfile.TarInfo(name)
                info.size = len(png(value))
                archive.addfile(info, io.BytesIO(png(value)))
    assert load(path) == {3: "a", 2: "b"}
    assert "2 images, 2 classes, 1 file skipped: a/0.png" in list_folder(path).split("train").summary


def test_an_archive_with_backslashes_of_windows_has_its_folders(tmp_path):
    """.NET before 4.6.1 and some other programs write them; a program of Unix means a name with a backslash."""
    for system, classes in ((0, {0: "a", 1: "b"}), (3, {0: None, 1: None})):
        with zipfile.ZipFile(tmp_path / f"{system}.zip", "w") as archive:
            for name, content in (("a\\", b""), ("a\\0.png", png(0)), ("b\\1.png", png(1))):
                info = zipfile.ZipInfo(name)
                info.create_system = system
                archive.writestr(info, content)
        assert load(tmp_path / f"{system}.zip") == classes


def test_what_is_no_file_in_an_archive_is_skipped_by_name(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        kinds = {"p.png": tarfile.FIFOTYPE, "d.png": tarfile.CHRTYPE, "n.png": tarfile.SYMTYPE, "f": tarfile.DIRTYPE}
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("0.png")
        info.size = len(png(0))
        archive.addfile(info, io.BytesIO(png(0)))
    assert list_folder(tmp_path / "x.tar").split("train").summary == (
        "1 image, no classes, 3 files skipped: d.png, n.png, p.png"
    )


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_pipe_is_no_archive(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=r"--dataset .*x\..* has no known format"):
        load(tmp_path / name)
