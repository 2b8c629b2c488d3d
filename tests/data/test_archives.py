"""Archives larger than memory: each image is read where it lies, in the order of any other data set."""

import bz2
import io
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data.archives import Place, is_location, location_of, members, read_location, readable
from hfgen.data.batches import Batches
from hfgen.data.image_folder import list_folder
from hfgen.data.images import load_images
from hfgen.data.sources import CorruptImageError
from hfgen.options import DataArgs

STORED, DEFLATED, BZIP2 = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2


def image(value, side=4, kind="PNG"):
    """A grey picture of one value, as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(file, kind)
    return file.getvalue()


def pack(path, files, compression=STORED):
    """Write an archive of files by name, of the kind that its ending says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


ARCHIVES = [("x.tar", STORED), ("x.zip", STORED), ("x.zip", DEFLATED), ("x.zip", BZIP2), ("x.tar.gz", STORED)]
AS_THEY_LIE = ARCHIVES[:3]
"""Archives whose files are read by themselves."""


@pytest.mark.parametrize(("name", "compression"), ARCHIVES)
def test_every_member_is_read_as_the_library_reads_it(tmp_path, name, compression):
    files = {"a/0.png": image(0), "long" * 60 + "/é.png": image(1, 30), "empty.png": b"", "b.cls": b"7" * 1000}
    path = pack(tmp_path / name, files, compression)
    found = {name: (place, read(10**6)) for name, place, read in members(path)}
    assert {name: content for name, (_, content) in found.items()} == files
    for inner, (place, content) in found.items():
        assert (place is not None) == ((name, compression) in AS_THEY_LIE), inner
        if place is not None:
            location = location_of(path, inner, place)
            assert is_location(location) and readable(location) == f"{path}/{inner}" and not is_location(str(path))
            assert read_location(location) == content


def test_bytes_before_an_archive_shift_its_files(tmp_path):
    path = pack(tmp_path / "x.zip", {"0.png": image(3)}, DEFLATED)
    path.write_bytes(b"#!/bin/sh\n" * 10 + path.read_bytes())
    ((_, place, _),) = members(path)
    assert read_location(location_of(path, "0.png", place)) == image(3)


@pytest.mark.parametrize(("name", "compression"), ARCHIVES)
def test_tables_hold_no_contents_of_files_that_are_read_where_they_lie(tmp_path, name, compression):
    pack(tmp_path / name, {f"{i % 2}/{i}.png": image(i) for i in range(4)}, compression)
    cells = list_folder(tmp_path).split("train").rows().cast_column("image", raw())["image"]
    assert all((cell["bytes"] is None) == ((name, compression) in AS_THEY_LIE) for cell in cells)
    data = load_images(DataArgs(dataset=str(tmp_path)))
    assert data.images[:, 0, 0, 0].tolist() == [0, 2, 1, 3] and data.labels.tolist() == [0, 0, 1, 1]


def raw():
    import datasets

    return datasets.Image(decode=False)


@pytest.mark.parametrize("name", ["shard.tar", "shard.zip"])
def test_a_data_set_of_many_times_its_memory_is_read(tmp_path, name):
    """Listing and reading hold an image or two, of the twelve of 1 MB each."""
    noise = np.random.default_rng(0)
    for shard in range(3):
        files = {}
        for i in range(4):
            file = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (1000, 1000), np.uint8)).save(file, "PPM")
            files |= {f"{shard}{i}.pgm": file.getvalue(), f"{shard}{i}.cls": str(i).encode()}
        pack(tmp_path / f"{shard}-{name}", files)
    load_images(DataArgs(max_train_samples=2))  # imports
    tracemalloc.start()
    try:
        data = load_images(DataArgs(dataset=str(tmp_path), resolution=8, cache_budget=0))
        batches = Batches(data, 4, 0).iterate(0)
        shapes = {tuple(next(batches)["x"].shape) for _ in range(4)}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert shapes == {(4, 1, 8, 8)} and len(data) == 12 and data.num_classes == 4
    assert peak < 6 * 2**20


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_batches_of_unpacked_files_to_each_process_from_any_step(tmp_path, workers):
    """The order is that of every data set: a function of the position alone, for any number of processes."""
    files = {f"{i:02}.png": image(i) for i in range(13)}
    (tmp_path / "files").mkdir()
    for name, content in files.items():
        (tmp_path / "files" / name).write_bytes(content)
    (tmp_path / "shards").mkdir()
    names = list(files)
    for number, part in enumerate((names[:6], names[6:7], names[7:])):
        pack(tmp_path / "shards" / f"{number}.tar", {name: files[name] for name in part})
    plain, shards = (load_images(DataArgs(dataset=str(tmp_path / n), cache_budget=0)) for n in ("files", "shards"))
    assert not shards.in_memory and plain.fingerprint == shards.fingerprint
    whole = Batches(plain, 4, 7).iterate(0)
    wanted = torch.cat([next(whole)["x"] for _ in range(6)])
    for rank in (0, 1):
        ours = Batches(shards, 2, 7, rank, 2, num_workers=workers).iterate(3)
        for number in range(3, 6):
            place = (2 * number + rank) * 2
            torch.testing.assert_close(next(ours)["x"], wanted[place : place + 2], rtol=0, atol=0)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "compression"), AS_THEY_LIE)
def test_an_archive_that_is_cut_after_it_was_listed_is_named(tmp_path, name, compression):
    path = pack(tmp_path / name, {f"{i}.png": image(i, 40) for i in range(3)}, compression)
    data = load_images(DataArgs(dataset=str(path), cache_budget=0))
    last = list(members(path))[-1][1]
    path.write_bytes(path.read_bytes()[: last.offset + 10])
    with pytest.raises(CorruptImageError, match=rf"row 2 \(file .*{name}/2\.png\) can't be decoded: its archive is"):
        data.read(torch.tensor([2]))


def test_a_damaged_stream_of_a_zip_archive_is_named(tmp_path):
    path = pack(tmp_path / "x.zip", {f"{i}.png": image(i, 40) for i in range(3)}, DEFLATED)
    place = list(members(path))[1][1]
    content = bytearray(path.read_bytes())
    content[place.offset] = 0x07  # a block of no known type
    path.write_bytes(content)
    with pytest.raises(CorruptImageError, match=r"x\.zip/1\.png\) can't be decoded: its archive is damaged"):
        load_images(DataArgs(dataset=str(path)))


def test_a_file_that_unfolds_beyond_its_size_is_not_unfolded(tmp_path):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", DEFLATED) as archive:
        archive.writestr("0.png", bytes(10**7))
    (tmp_path / "x.zip").write_bytes(bomb.getvalue())
    ((_, place, _),) = members(tmp_path / "x.zip")
    lie = Place(place.offset, place.stored, 100, True)
    tracemalloc.start()
    with pytest.raises(ValueError, match="101 bytes instead of 100"):
        read_location(location_of(tmp_path / "x.zip", "0.png", lie))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6


def test_a_tar_archive_of_another_compression_is_read_by_its_contents(tmp_path):
    path = pack(tmp_path / "x.tar", {"0.png": image(5)})
    path.write_bytes(bz2.compress(path.read_bytes()))
    found = members(path)  # which closes the archive at its end
    name, place, read = next(found)
    assert (name, place, read(10**6)) == ("0.png", None, image(5))
