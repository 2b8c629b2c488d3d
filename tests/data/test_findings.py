"""Grey images of 16 bits, animations and very large images are read as documented, and said."""

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data import summary
from hfgen.data.images import ImageData, load_images
from hfgen.data.summary import describe, preview
from hfgen.options import DataArgs


def save(path, values):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)


def notes_of(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]


@pytest.mark.parametrize("white", [255, 1023, 4095, 65535])
def test_levels_are_the_nearest_of_256(tmp_path, white):
    values = np.linspace(0, white, 64).astype(np.uint16).reshape(8, 8)
    save(tmp_path / "photos" / "a.png", values)
    data = load_images(DataArgs(dataset=str(tmp_path / "photos"), levels=white))
    exact = values.astype(np.float64) / white * 255
    assert np.abs(data.images[0, 0].numpy() - exact).max() <= 0.5 + 1e-9
    assert data.images.max() == 255


@pytest.mark.parametrize("cache", [4.0, 0.0])
def test_few_bits_are_said_and_the_option_is_named(tmp_path, capsys, cache):
    for number in range(3):
        save(tmp_path / "scans" / f"{number}.png", np.full((4, 4), 3000 + number, np.uint16))
    args = DataArgs(dataset=str(tmp_path / "scans"), cache_budget=cache)
    load_images(args)
    (said,) = [note for note in notes_of(capsys) if "16-bit" in note]
    assert "3,002 (12 bits)" in said and "--levels 4095" in said
    load_images(DataArgs(dataset=str(tmp_path / "scans"), levels=4095, cache_budget=cache))
    assert not any("16-bit" in note for note in notes_of(capsys))


def test_full_range_and_eight_bits_are_not_remarked_on(tmp_path, capsys):
    save(tmp_path / "full" / "a.png", np.array([[0, 65535]], np.uint16))
    save(tmp_path / "eight" / "a.png", np.array([[0, 200]], np.uint8))
    for name in ("full", "eight"):
        load_images(DataArgs(dataset=str(tmp_path / name)))
    assert not any("16-bit" in note for note in notes_of(capsys))


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_a_value_above_white_is_an_error_that_names_the_image(tmp_path, skip_corrupt):
    save(tmp_path / "scans" / "dark.png", np.full((4, 4), 10, np.uint16))
    save(tmp_path / "scans" / "light.png", np.full((4, 4), 5000, np.uint16))
    with pytest.raises(ValueError, match=r"light\.png.*5,000.*--levels 4095"):
        load_images(DataArgs(dataset=str(tmp_path / "scans"), levels=4095, skip_corrupt=skip_corrupt))


def test_the_record_of_a_training_and_the_fingerprint_depend_on_levels(tmp_path):
    from hfgen.data.training_data import describe, record_of

    save(tmp_path / "scans" / "a.png", np.full((4, 4), 1000, np.uint16))
    args = [DataArgs(dataset=str(tmp_path / "scans"), levels=levels) for levels in (None, 4095)]
    plain, white = map(load_images, args)
    assert plain.fingerprint != white.fingerprint
    assert "16-bit value 4095 as white" in describe(record_of(args[1], white))["prepared"]


def test_animations_are_read_by_their_first_frame_and_named(tmp_path, capsys):
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (40, 200)]
    for name in ("a.gif", "b.png", "c.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "d.png")
    data = load_images(DataArgs(dataset=str(tmp_path)))
    (said,) = [note for note in notes_of(capsys) if "first frames" in note]
    assert "3 animations" in said and all(name in said for name in ("a.gif", "b.png", "c.tiff"))
    assert "d.png" not in said
    assert data.images[:3].unique().tolist() == [40] and data.images[3].unique().tolist() == [200]


def test_very_large_images_are_named(tmp_path, capsys, monkeypatch):
    save(tmp_path / "photos" / "large.png", np.zeros((30, 50), np.uint8))
    save(tmp_path / "photos" / "small.png", np.zeros((10, 10), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    load_images(DataArgs(dataset=str(tmp_path / "photos"), resolution=8))
    (said,) = [note for note in notes_of(capsys) if "very large" in note]
    assert "large.png) has 50 × 30 pixels" in said and "small.png" not in said


@pytest.mark.parametrize("level", range(0, 256, 5))
def test_images_of_one_colour_have_no_deviation(level):
    """A difference of rounded squares may be negative."""
    for count in (64, 231, 784):
        data = ImageData("flat", None, None, images=torch.full((1, 1, 1, count), level, dtype=torch.uint8))
        facts = dict(describe(data))
        assert (facts["mean"], facts["deviation"]) == (f"{level / 255:.4f}", "0.0000")


def test_deviations_are_those_of_numpy():
    images = torch.randint(256, (5, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    facts = dict(describe(ImageData("noise", None, None, channels=3, images=images)))
    wanted = (images.numpy() / 255).transpose(1, 0, 2, 3).reshape(3, -1).std(axis=1)
    assert facts["deviation"] == ", ".join(f"{value:.4f}" for value in wanted)


def test_a_preview_of_very_large_images_shows_fewer_and_says_so(tmp_path, monkeypatch, capsys):
    data = ImageData("large", None, None, images=torch.zeros(3, 1, 10, 10, dtype=torch.uint8))
    preview(data, tmp_path / "all.png")
    assert not capsys.readouterr().err
    monkeypatch.setattr(summary, "MOST_PIXELS", 250)
    preview(data, tmp_path / "two.png")
    assert "the grid shows only 2" in capsys.readouterr().err
    widths = [Image.open(tmp_path / f"{name}.png").width for name in ("all", "two")]
    assert widths == [1 + 3 * (170 + 1), 1 + 2 * (250 + 1)]  # 17 and 25 times as wide, and gaps
