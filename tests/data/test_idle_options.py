"""Options of data that do nothing for the images at hand are refused, or it is said."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import hfgen
from hfgen import cli
from hfgen.commands import attention
from hfgen.data.images import load_images
from hfgen.data.tensors import as_tensor
from hfgen.data.training_data import choose_data, levels_of, record_of
from hfgen.demo.studio import Studio
from hfgen.evaluation.judged import load_alike
from hfgen.options import DataArgs
from tests.data.test_findings import notes_of, save
from tests.saving import test_portable as portable

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
DEEP = np.full((8, 8), 4095, np.uint16)


def colour_png(values):
    """Return a PNG in colour of 16 bits, which Pillow can't write: values uint16 (H, W, 3)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def load(folder, **options):
    return load_images(DataArgs(dataset=str(folder), **options))


@pytest.mark.parametrize("cache", [4.0, 0.0])
def test_levels_of_images_of_8_bits_are_refused(tmp_path, cache):
    for number in range(3):
        save(tmp_path / "photos" / f"{number}.png", GREY)
    with pytest.raises(ValueError, match=r"--levels 4095 .*photos has none, but .*0\.png.*Leave the option out"):
        load(tmp_path / "photos", levels=4095, cache_budget=cache)


@pytest.mark.parametrize("cache", [4.0, 0.0])
def test_levels_of_some_images_leave_the_others_as_they_are_by_name(tmp_path, capsys, cache):
    save(tmp_path / "mixed" / "eight.png", GREY)
    save(tmp_path / "mixed" / "sixteen.png", DEEP)
    data = load(tmp_path / "mixed", levels=4095, cache_budget=cache)
    assert torch.equal(data[0][0][0], torch.from_numpy(GREY)) and data[1][0].unique().tolist() == [255]
    (said,) = [note for note in notes_of(capsys) if "--levels" in note]
    assert "eight.png" in said and "sixteen.png" not in said and "stay as they are" in said


def test_one_deep_image_among_many_without_a_cache_is_found(tmp_path, capsys):
    """It is none of the 64 that are looked at: every second of 128 is."""
    for number in range(128):
        save(tmp_path / "mixed" / f"{number:03d}.png", DEEP if number == 77 else GREY)
    load(tmp_path / "mixed", levels=4095, cache_budget=0.0)
    assert any("stay as they are" in note for note in notes_of(capsys))


def test_a_stream_says_what_its_first_image_is(tmp_path, capsys):
    save(tmp_path / "photos" / "a.png", GREY)
    load(tmp_path / "photos", levels=4095, streaming=True)
    assert any("the first image is none" in note and "--levels 4095" in note for note in notes_of(capsys))


@pytest.mark.parametrize("cache", [4.0, 0.0])
def test_colour_of_16_bits_that_uses_few_is_said_and_takes_no_levels(tmp_path, capsys, cache):
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "dark.png").write_bytes(colour_png(np.full((4, 4, 3), 4095, np.uint16)))
    data = load(folder, cache_budget=cache)
    assert data[0][0].unique().tolist() == [15]
    (said,) = [note for note in notes_of(capsys) if "16 bits" in note]
    assert "4,095 (12 bits)" in said and "Scale them beforehand" in said
    with pytest.raises(ValueError, match="--levels 4095 is for grey images of 16 bits"):
        load(folder, levels=4095, cache_budget=cache)
    (folder / "dark.png").write_bytes(colour_png(np.full((4, 4, 3), 65535, np.uint16)))
    load(folder, cache_budget=cache)
    assert not any("16 bits" in note for note in notes_of(capsys))


def test_levels_that_a_pipeline_was_trained_with_are_no_error_for_other_images(tmp_path, capsys):
    """But where they are asked for again, they are one."""
    save(tmp_path / "scans" / "a.png", DEEP)
    save(tmp_path / "photos" / "a.png", GREY)
    args = DataArgs(dataset=str(tmp_path / "scans"), levels=4095)
    record = record_of(args, load_images(args))
    other = {"dataset": str(tmp_path / "photos")}
    choice = choose_data(record, str(tmp_path), other)
    assert choice.args.levels == 4095 and not choice.own
    data = load_images(choice.args, own=choice.own)
    assert torch.equal(data[0][0][0], torch.from_numpy(GREY))
    assert any("--levels 4095" in note and "stay as they are" in note for note in notes_of(capsys))
    choice = choose_data(record, str(tmp_path), {**other, "levels": 4095})
    with pytest.raises(ValueError, match="has none"):
        load_images(choice.args, own=choice.own)
    judged, _ = load_alike(str(tmp_path / "photos"), None, args, data)  # drawn images, beside scans
    assert torch.equal(judged[0][0][0], torch.from_numpy(GREY))


@pytest.mark.parametrize("levels", [0, 70000, "white", True, 4.5])
def test_a_record_of_nonsense_is_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        levels_of({"levels": levels})
    assert levels_of({"levels": 4095}) == 4095 and levels_of(None) is levels_of({}) is None


def test_an_image_for_attention_is_read_with_the_levels_of_the_training(tmp_path):
    pipeline = hfgen.DenoisingPipeline(hfgen.DiTModel(8, 1, 1, 2, 24, 1, 3), hfgen.RectifiedFlowScheduler())
    save(tmp_path / "a.png", DEEP)
    for levels, expected in ((None, 16 / 127.5 - 1), (4095, 1.0)):
        pipeline.training_data = {"center_crop": True, "background": "white", "levels": levels}
        read = attention._read(str(tmp_path / "a.png"), pipeline)
        torch.testing.assert_close(read, torch.full((1, 1, 8, 8), expected))


def test_grey_images_of_16_bits_keep_their_range_as_tensors_and_in_the_demo():
    values = np.array([[0, 257, 32896, 65535]] * 4, np.uint16)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        assert as_tensor(image)[0, 0].tolist() == [0, 1, 128, 255]
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "patch_size": 2}
    with Studio(
        hfgen.DenoisingPipeline(portable.network("DiTModel", **sizes), hfgen.RectifiedFlowScheduler()), "a"
    ) as studio:
        channels, height, width = studio.model.shape
        fitted = np.asarray(studio.fitted(Image.fromarray(np.full((height, width), 32896, np.uint16))))
    assert set(fitted.reshape(-1)[:: max(1, channels)].tolist()) == {128}


def test_an_uncropped_image_of_its_own_size_is_said(tmp_path, capsys):
    save(tmp_path / "photos" / "a.png", GREY)
    load(tmp_path / "photos", center_crop=False)
    assert any("--no_center_crop does nothing without --resolution" in note for note in notes_of(capsys))
    load(tmp_path / "photos", center_crop=False, resolution=4)
    assert not any("--no_center_crop" in note for note in notes_of(capsys))


@pytest.mark.parametrize("kind", ["folder", "parquet", "digits"])
def test_a_configuration_of_data_that_have_none_is_refused(tmp_path, kind):
    import datasets

    save(tmp_path / "photos" / "a.png", GREY)
    place = {"folder": tmp_path / "photos", "parquet": tmp_path / "rows.parquet", "digits": "digits"}[kind]
    if kind == "parquet":
        datasets.Dataset.from_dict({"image": [Image.fromarray(GREY)]}).to_parquet(place)
    with pytest.raises(ValueError, match=r"--dataset_config_name small: .* has no configurations"):
        load(place, dataset_config_name="small", cache_dir=str(tmp_path / "cache"))


def data_command(capsys, *words):
    """Run `hfgen data`: (status, output, standard error)."""
    status = 0
    try:
        cli.main(["data", *map(str, words)])
    except SystemExit as stop:
        status = stop.code or 0
    return status, *capsys.readouterr()


def test_hfgen_data_refuses_and_says_what_does_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "photos" / "a.png", GREY)
    status, _, error = data_command(capsys, "photos", "--dataset", "digits")
    assert status == 2 and "Two data sets are named: photos, and --dataset digits" in error
    assert data_command(capsys, "photos", "--dataset", "photos")[0] == 0
    status, _, error = data_command(capsys, "photos", "--levels", "1023")
    assert status == 2 and error.splitlines()[-1].startswith("error: --levels 1023 is for grey images of 16 bits")
    status, _, error = data_command(capsys, "photos", "--streaming", "--cache_budget", "2")
    assert status == 2 and "--cache_budget 2.0 does nothing with --streaming" in error
    status, _, error = data_command(capsys, "photos", "--random_flip")
    assert status == 0 and "--random_flip is for training" in error
