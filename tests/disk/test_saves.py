"""Files that belong together: a reader never gets files of two saves, wherever a save was cut off."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from hfgen import HFGenPipeline, cli
from hfgen.disk import files as whole_files
from hfgen.disk import saves
from hfgen.disk.files import WriteError
from hfgen.saving.hub import files_to_push
from hfgen.saving.saved import holds_pipeline
from tests.evaluation.test_evaluate import small_pipeline
from tests.helpers.full_disk import FailingDisk
from tests.helpers.kills import forked, status_of

INDEX = "index.json"


def save_weights(folder, value, shards):
    """Save an index and weights in this number of files."""
    parts = [f"w-{i:05d}-of-{shards:05d}" for i in range(1, shards + 1)] if shards > 1 else ["w"]
    with saves.replacing_files(folder, "weights", INDEX) as draft:
        (draft / "net").mkdir()
        for name in parts:
            save_file({"x": torch.full((2,), value)}, draft / "net" / f"{name}.safetensors")
        if shards > 1:
            (draft / "net" / "w.safetensors.index.json").write_text("{}")
        (draft / INDEX).write_text(json.dumps(value))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(folder):
    """Return what a reader of the files finds, without hidden ones and those of the user."""
    found = contents(folder) if folder.exists() else {}
    return {name: data for name, data in found.items() if name[0] != "." and name != "other.txt"}


def dies_at(count, act, log):
    """Run `act` in a fork that ends, as by `kill -9`, before change number `count` of the names of files."""

    def run():
        left = [count]

        def counted(real):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return real(*args, **kwargs)

            return call

        for name in ("replace", "rename", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        act()

    return status_of(forked(run, log))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_disk_that_fails_at_any_write_leaves_a_whole_save(tmp_path, code, lasting, monkeypatch):
    """A full disk lets names be changed, so nothing is replaced; others leave the former files, or all new ones."""
    monkeypatch.setattr(saves, "PATIENCE", 0.01)
    save_weights(tmp_path / "run", 1.0, 2)
    (tmp_path / "run" / "other.txt").write_text("stays")
    former, place = shown(tmp_path / "run"), tmp_path / "run"
    shutil.copytree(place, tmp_path / "kept")
    with FailingDisk(tmp_path, 0, code) as disk:
        save_weights(place, 2.0, 1)
    new = shown(place)
    for at in range(1, disk.count + 1):
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "kept", place)
        disk, error = FailingDisk(place, at, code, lasting), None
        with disk:
            try:
                save_weights(place, 2.0, 1)
            except WriteError as failure:
                error = failure
        assert disk.only_removals if error is None else "run can't be written" in str(error), disk.places[at - 1]
        assert error is not None or shown(place) == new
        with saves.whole_folder(place, "weights", INDEX) as whole:
            assert shown(whole) in ([former] if code == errno.ENOSPC else [former, new]), disk.places[at - 1]
        assert not list(place.glob(".*.part*")) or lasting or disk.only_removals
        save_weights(place, 3.0, 1)
        assert contents(place).keys() == {INDEX, "net/w.safetensors", "other.txt"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("shards", [(2, 1), (1, 3), (2, 3), (0, 2)])
def test_no_kill_mixes_the_files_of_two_saves(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(saves, "PATIENCE", 0.01)
    before, after = shards
    for name, value, count in (("former", 1.0, before), ("new", 2.0, after)):
        if count:
            save_weights(tmp_path / name, value, count)
    former, new = shown(tmp_path / "former"), shown(tmp_path / "new")
    outcomes, status, at = [], 9, 0
    while status == 9:
        place = tmp_path / f"run-{at}"
        if before:
            shutil.copytree(tmp_path / "former", place)
        place.mkdir(exist_ok=True)
        (place / "other.txt").write_text("stays")
        status = dies_at(at, lambda place=place: save_weights(place, 2.0, after), tmp_path / "log.txt")
        with saves.whole_folder(place, "weights", INDEX) as whole:
            outcomes.append(shown(whole))
        if (place / INDEX).exists():  # what a reader that knows only the index finds
            assert shown(place) == outcomes[-1]
        save_weights(place, 2.0, after)
        assert shown(place) == new and (place / "other.txt").read_text() == "stays"
        assert not [name for name in os.listdir(place) if name[0] == "." and not name.endswith(".part")]
        at += 1
    assert status == 0 and at > 5
    kinds = [outcome == new for outcome in outcomes]
    assert all(outcome in (former, new) for outcome in outcomes) and kinds == sorted(kinds)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_pipeline_that_was_saved_over_another_one_is_one_of_the_two(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saves, "PATIENCE", 0.01)
    first, second = small_pipeline(), small_pipeline()
    torch.nn.init.ones_(second.denoiser.get_parameter(next(iter(first.denoiser.state_dict()))))
    first.save_pretrained(tmp_path / "first")
    weights = [pipeline.denoiser.state_dict() for pipeline in (first, second)]

    def which(pipeline):
        """Return 0 or 1, or -1 for a mix."""
        state = pipeline.denoiser.state_dict()
        return next((i for i, each in enumerate(weights) if all(torch.equal(each[k], state[k]) for k in each)), -1)

    seen, status, at = [], 9, 0
    while status == 9:
        place = tmp_path / f"run-{at}"
        shutil.copytree(tmp_path / "first", place)
        status = dies_at(at, lambda place=place: second.save_pretrained(place), tmp_path / "log.txt")
        assert holds_pipeline(place)
        seen.append(which(HFGenPipeline.from_pretrained(place)))
        if not (place / "model_index.json").exists():
            assert "the last save was cut off" in capsys.readouterr().err
            with pytest.raises(ValueError, match=r"cut off\. Save it again, then push"):
                files_to_push(place)
        at += 1
    assert status == 0 and seen == sorted(seen) and set(seen) == {0, 1}


def test_what_is_left_of_a_save_leads_nowhere_else(tmp_path, monkeypatch):
    """The folder may be a stranger's."""
    monkeypatch.setattr(saves, "PATIENCE", 0.01)
    for number, names in enumerate((["../x"], ["/etc/passwd"], "x", [3], None, ["a/../../x"], ["gone"])):
        left = tmp_path / str(number) / ".weights-1.new"
        left.mkdir(parents=True)
        whole_files.write_json(left / saves.LIST, {"files": names})
        with (
            pytest.raises(ValueError, match=r"lists no files|lacks gone"),
            saves.whole_folder(left.parent, "weights", INDEX),
        ):
            pass


def test_a_save_waits_for_another_one_in_the_folder_and_finds_its_files(tmp_path):
    with saves.replacing_files(tmp_path, "weights") as first:
        (first / "a.txt").write_text("1")
        with saves.replacing_files(tmp_path, "networks") as second:  # of another name: nothing in common
            (second / "b.txt").write_text("2")
    assert contents(tmp_path) == {"a.txt": b"1", "b.txt": b"2"}


def test_samples_of_a_second_call_never_lie_beside_those_of_the_first(tmp_path, capsys):
    small_pipeline().save_pretrained(tmp_path / "run")

    def draw(place, *words):
        few = ["--num_inference_steps", "1", "--device", "cpu"]
        cli.main(["sample", str(tmp_path / "run"), *few, "--output_dir", str(place), *words])
        return contents(place)

    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "mine.png").write_text("stays")
    first = draw(tmp_path / "first", "--num_samples", "3")
    second = {**draw(tmp_path / "second", "--num_samples", "3", "--seed", "9"), "mine.png": b"stays"}
    assert len(first) == len(second) == 4 and not capsys.readouterr().err
    kinds = []
    for at in (4, 6, 7, 8, 9, 10):
        place = shutil.copytree(tmp_path / "first", tmp_path / str(at))
        dies_at(at, lambda place=place: draw(place, "--num_samples", "3", "--seed", "9"), tmp_path / "log.txt")
        left = shown(place)
        kinds.append([all(files[name] == data for name, data in left.items()) for files in (first, second)])
        assert any(kinds[-1]) and left["mine.png"] == b"stays"
        assert draw(place, "--num_samples", "3", "--seed", "9") == second
    assert [True, False] in kinds and [False, True] in kinds
    assert draw(tmp_path / "first", "--num_samples", "2", "--seed", "9")["000002.png"] == first["000002.png"]
    assert "also holds images of another call, which stay: 000002.png." in capsys.readouterr().err


def test_a_folder_that_does_not_fit_is_refused_with_nothing_changed(tmp_path):
    save_weights(tmp_path, 1.0, 1)
    (tmp_path / "net" / "w.safetensors").chmod(0o444)
    before = contents(tmp_path)
    with pytest.raises(WriteError, match="the file is read-only"):
        save_weights(tmp_path, 2.0, 1)
    assert contents(tmp_path) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "net").write_text("a file of the user")
    with pytest.raises(WriteError, match="Give another place"):
        save_weights(tmp_path / "other", 2.0, 1)
    assert contents(tmp_path / "other") == {"net": b"a file of the user"}
