"""Files that are whole or absent, whatever the disk does, and rows that outlive a cut line."""

import contextlib
import errno
import json
import os
import stat

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from hfgen.disk import files, kinds
from hfgen.disk.lock import LOCK, WRITER, FolderInUseError, FolderLock, exclusive
from tests.helpers.full_disk import FailingDisk

CODES = [errno.ENOSPC, errno.EROFS, errno.EIO]


def save_tensor(path):
    with files.replacing(path) as draft:
        save_file({"x": torch.ones(3)}, draft)


WRITERS = {
    "text": lambda path: files.write_text(path, "new"),
    "json": lambda path: files.write_json(path, {"new": 1}),
    "rows": lambda path: files.write_rows(path, [{"new": 1}, {"newer": 2}]),
    "picture": lambda path: files.write_picture(path, Image.new("RGB", (8, 8)), format="PNG"),
    "tensor": save_tensor,
}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", WRITERS)
def test_after_a_failure_at_any_write_the_former_file_is_there(tmp_path, name, code):
    path, write = tmp_path / "file.bin", WRITERS[name]
    with FailingDisk(tmp_path, 0, code) as disk:
        write(path)
    assert disk.count
    whole = path.read_bytes()
    path.write_bytes(b"former")
    for at in range(1, disk.count + 1):
        with (
            FailingDisk(tmp_path, at, code),
            pytest.raises(files.WriteError, match=rf"file.bin can't be written: .*{os.strerror(code)}"),
        ):
            write(path)
        left = {place.name for place in tmp_path.iterdir()} - {"file.bin"}
        assert path.read_bytes() == b"former" and (not left or code != errno.ENOSPC)  # where it can be removed
        files.remove_drafts(tmp_path)
        assert [place.name for place in tmp_path.iterdir()] == ["file.bin"]
    write(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (OSError(errno.EIO, "Input/output error", "x"), "Input/output error. Check the disk"),
        (SafetensorError("I/O error: Read-only file system (os error 30)"), "Read-only file system. Make the place"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "full disk. Free some"),
        (
            RuntimeError("[enforce fail at inline_container.cc:747] . open file failed with strerror: No space left"),
            "No space left. Check the disk",
        ),
        (
            RuntimeError("[... at a.cc:7] . open file failed with strerror: Read-only file system"),
            "Read-only file system. Make the place",
        ),
        (files.WriteError("y", OSError(errno.EROFS, "Read-only file system")), "x can't be written: Read-only file"),
        (RuntimeError("process 1 failed.\nTraceback"), "process 1 failed. Check the disk"),
        (RuntimeError(), "RuntimeError. Check the disk"),
    ],
)
def test_what_a_library_raises_is_told_in_words(cause, words):
    assert words in str(files.WriteError("x", cause))


def test_a_file_keeps_its_mode_and_its_link_and_folders_are_made(tmp_path):
    place = tmp_path / "elsewhere" / "file.txt"
    files.write_text(place, "1")
    place.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to(place)
    files.write_text(link, "2")
    assert link.is_symlink() and place.read_text() == "2" and stat.S_IMODE(place.stat().st_mode) == 0o640
    files.write_text(os.devnull, "3")  # a device is written to, and stays one
    assert not os.path.isfile(os.devnull)


def test_a_folder_or_a_read_only_file_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "fixed.json").write_text("{}")
    (tmp_path / "fixed.json").chmod(0o444)
    (tmp_path / "plain").write_text("")
    for name in ("folder", "fixed.json", "plain/file.json"):
        for act in (files.check_writable, lambda path: files.write_text(path, "x")):
            with pytest.raises(files.WriteError, match=f"{name} can't be written"):
                act(tmp_path / name)
    files.check_writable(tmp_path / "new" / "deep" / "file.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.json", "folder", "plain"]


@pytest.mark.parametrize("code", CODES)
def test_rows_that_could_not_be_written_are_written_with_the_next_one(tmp_path, code):
    path = tmp_path / "rows.jsonl"
    rows = files.GrowingRows(path)
    rows.append({"step": 1})
    for step in (2, 3):
        with FailingDisk(tmp_path, 1, code), pytest.raises(files.WriteError):
            rows.append({"step": step})
    rows.append({"step": 4})
    assert path.read_text() == "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4))
    with FailingDisk(tmp_path, 1, code), pytest.raises(files.WriteError):
        rows.append({"step": 5})
    for _ in range(2):  # a second time there is nothing to write
        rows.write()
    assert path.read_text().endswith('{"step": 4}\n{"step": 5}\n')


def test_a_cut_last_row_is_left_out_and_said_and_another_damaged_one_named(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert files.read_rows(path) == []
    for cut in ('{"b": ', '{"b"', "{", '{"b": 2', "\x00\x00"):
        path.write_text('{"a": 1}\n' + cut)
        assert files.read_rows(path) == [{"a": 1}] and "last line was cut off" in capsys.readouterr().err
        assert files.read_rows(path, growing=True) == [{"a": 1}] and not capsys.readouterr().err
    path.write_text('{"a": 1}\n{"b": 2}')  # whole but for the end of its line
    assert files.read_rows(path) == [{"a": 1}, {"b": 2}]
    path.write_text('{"a": 1}\n{"b\n{"c": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*rows.jsonl is no JSON object.*run the same command again"):
        files.read_rows(path)


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_cut_json_file_is_named_with_what_to_do(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"plan.json holds no JSON object.*Remove it\.$"):
        files.read_json(path, "Remove it.")


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({}, "has no step"),
        ({"step": None}, "has step='None'"),
        ({"step": "1"}, "has step='1'"),
        ({"step": True}, "has step='True'"),
        ({"step": -1}, "has step='-1'"),
        ({"step": 1.5}, "has step='1.5'"),
        ({"step": 10**400}, "has step='1000"),
        ({"step": 1, "note": 3}, "has note='3'"),
    ],
)
def test_values_of_another_kind_are_named_with_file_line_and_what_to_do(tmp_path, row, wrong):
    wanted = {"step": kinds.count, "note": kinds.optional(kinds.text)}
    path = tmp_path / "rows.jsonl"
    files.write_rows(path, [{"step": 0}, row])
    with pytest.raises(files.DamagedFileError) as error:
        files.read_rows(path, wanted)
    assert str(error.value).startswith(f"line 2 of {path} {wrong}") and "Remove that line" in str(error.value)
    path.write_text(json.dumps(row))
    with pytest.raises(files.DamagedFileError) as error:
        files.read_json(path, "Remove it.", wanted)
    assert str(error.value).startswith(f"{path} {wrong}") and str(error.value).endswith("Remove it.")


def test_a_folder_in_place_of_rows_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"is no file\. Move it away"):
        files.read_rows(tmp_path)


def test_optional_writes_are_said_once_for_each_name(capsys):
    optional = files.OptionalWrites()
    for name in ("a", "a", "b"):
        with optional(name):
            raise OSError(errno.ENOSPC, "No space left on device")
    error = capsys.readouterr().err
    assert error.count("a can't be written (No space left on device)") == 1 and error.count("\n") == 2
    with pytest.raises(ValueError), optional("a"):
        raise ValueError


def test_what_a_killed_process_left_is_removed_by_the_next_writer(tmp_path):
    for name in (".metrics.12-3.part.json", "pairs/.p-0.9-1.part.safetensors", "mine/.x.1-1.part", ".lock-other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / ".pipeline.7-1.part").mkdir()
    (tmp_path / "mine" / ".lock").write_text("")  # another process may be writing there
    with FolderLock(tmp_path):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".lock", ".writer.json", ".lock-other", "mine/.lock", "mine/.x.1-1.part"}


def test_a_file_that_is_read_changed_and_written_has_one_writer(tmp_path):
    path = tmp_path / "metrics.json"
    first = exclusive(path)
    with first, pytest.raises(FolderInUseError, match=r"metrics\.json is in use"), exclusive(path, wait=0.01):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_is_written_to_and_its_error_names_it():
    with pytest.raises(files.WriteError, match="/dev/full can't be written: No space left"):
        files.write_text("/dev/full", "x")


def test_a_pipe_in_place_of_the_writers_name_is_not_waited_for(tmp_path):
    with FolderLock(tmp_path):
        (tmp_path / WRITER).unlink()
        os.mkfifo(tmp_path / WRITER)
        with pytest.raises(FolderInUseError, match="another process"):
            FolderLock(tmp_path).acquire()


def test_who_writes_is_said_through_no_link(tmp_path):
    """A stranger's folder may hold links in the places of the lock's files."""
    (tmp_path / "mine").write_text("precious")
    for name in (LOCK, WRITER):
        folder = tmp_path / name[1:]
        folder.mkdir()
        (folder / name).symlink_to(tmp_path / "mine")
        with contextlib.suppress(files.WriteError), FolderLock(folder):
            assert not (folder / name).is_symlink()
        assert (tmp_path / "mine").read_text() == "precious"


def test_a_name_of_the_writer_that_cant_be_written_is_said(tmp_path, capsys):
    (tmp_path / WRITER).mkdir()
    with FolderLock(tmp_path):
        assert "the name of who writes here, can't be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["README.md", "config.yaml", "metrics.json", "metrics.jsonl", "samples.png", "d.gif"])
def test_a_folder_whose_files_lead_outside_is_not_written_to(tmp_path, name):
    """Links in a folder, to files there and to other folders, stay usable, and so do files that are never written."""
    folder, mine = tmp_path / "run", tmp_path / "mine"
    folder.mkdir()
    (folder / "inside.json").write_text("{}")
    (folder / "alias.json").symlink_to("inside.json")
    (folder / "samples").symlink_to(tmp_path)
    (folder / "notes.txt").symlink_to(mine)
    with FolderLock(folder):
        pass
    for place in (mine, "../nowhere", "/dev/null"):
        (folder / name).symlink_to(place)
        with pytest.raises(ValueError, match=f"{name} is a link to .*, which lies outside of the folder, and would be"):
            FolderLock(folder).acquire()
        (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=f"{name} is a pipe or a device, and would be written to. Remove it"):
        FolderLock(folder).acquire()
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is a folder, where a file belongs, and would be written to"):
        FolderLock(folder).acquire()
    assert not (folder / ".lock").exists()


def test_the_name_of_a_link_says_the_format(tmp_path):
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "a.png").symlink_to(tmp_path / "target")
    files.write_picture(tmp_path / "a.png", Image.new("L", (2, 2)))
    assert (tmp_path / "target").read_bytes().startswith(b"\x89PNG") and (tmp_path / "a.png").is_symlink()
