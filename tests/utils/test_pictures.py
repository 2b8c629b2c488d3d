"""Grids with names of classes, and time-lapses."""

import numpy as np
import pytest
from PIL import Image

from hfgen.families.finish import class_list
from hfgen.families.timelapse import MOST_FRAMES, save_timelapse
from hfgen.utils import pictures


def tiles(count, side=8):
    """Grey images; number i is of level 10 i."""
    return [Image.new("L", (side, side), 10 * i) for i in range(count)]


def split(sheet, plain):
    """A grid with labels as its column of labels and the rest, which has the width of the plain grid."""
    values = np.asarray(sheet)
    return values[:, : -plain.width], values[:, -plain.width :]


def test_labels_stand_left_of_their_rows_and_change_nothing_else():
    plain = pictures.grid(tiles(6), 2)
    names, rest = split(pictures.grid(tiles(6), 2, labels=["cat", "", "dog"]), plain)
    np.testing.assert_array_equal(rest, np.asarray(plain))
    dark = [part.min() < 128 for part in np.array_split(names, 3)]
    assert dark == [True, False, True]


@pytest.mark.parametrize("side", [1, 4, 28])
def test_rows_of_small_images_are_as_high_as_a_line(side):
    sheet = pictures.grid(tiles(200, side), 100, labels=["one", "two"])
    assert sheet.height >= 2 * pictures.LABEL_SIZE
    names = np.asarray(sheet)[:, :20]
    assert all(part.min() < 128 for part in np.array_split(names, 2))


@pytest.mark.parametrize("name", ["x" * 10_000, "a\nb\x1b[2J\u202edcba", "\x00", "汉字 שלום", "\ud800", " "])
def test_hostile_names_are_cut_and_written_in_one_line(name):
    plain = pictures.grid(tiles(2), 1)
    sheet = pictures.grid(tiles(2), 1, labels=[name, "a"])
    assert sheet.height == plain.height and sheet.width <= plain.width + pictures.LABEL_WIDTH + 8


def test_a_class_has_a_row_or_several():
    classes = [0] * 3 + [2] * 2
    sheet = pictures.class_grid(tiles(5), classes, ["cat", "cow", "dog"])
    rows = [*tiles(3), *tiles(5)[3:], None]
    assert sheet.tobytes() == pictures.grid(rows, 3, labels=["cat", "dog"]).tobytes()
    many = pictures.class_grid(tiles(25), [0] * 25, ["cat"])
    assert many.tobytes() == pictures.grid(tiles(25), 10, labels=["cat", "", ""]).tobytes()


class Data:
    def __init__(self, names):
        self.label_names, self.num_classes = names, len(names)


def test_cards_list_classes():
    assert class_list(Data(["cat", "dog"])) == "2: cat, dog"
    assert class_list(Data(["0", "1", "2"])) == "3: numbers from 0 to 2"
    assert class_list(Data([f"c{i}" for i in range(60)])).endswith("c49, ...")


def grids(folder, steps):
    """Save a grid for each step, of its own level."""
    (folder / "samples").mkdir(parents=True)
    for step in steps:
        Image.new("L", (20, 20), step % 256).save(folder / "samples" / f"step-{step:07d}.png")
    Image.new("RGB", (20, 20), "white").save(folder / "samples.png")
    return folder


def frames(path):
    """The level of each frame of an animation at its upper left corner."""
    with Image.open(path) as film:
        levels = []
        for i in range(film.n_frames):
            film.seek(i)
            levels.append(film.convert("L").getpixel((0, 0)))
        return levels


def test_a_timelapse_shows_the_grids_in_order_and_the_finished_one(tmp_path):
    folder = grids(tmp_path, [100, 20, 60])
    caption = save_timelapse(folder, 110, folder / "samples.png")
    assert caption == {"timelapse.gif": "the same noise after 20 to 110 steps"}
    assert frames(folder / "timelapse.gif") == pytest.approx([20, 60, 100, 255], abs=3)


def test_grids_of_another_training_or_size_and_cut_ones_are_left_out(tmp_path, capsys):
    folder = grids(tmp_path, [10, 20, 60, 120, 200])
    Image.new("L", (30, 20)).save(folder / "samples" / "step-0000010.png")
    cut = folder / "samples" / "step-0000060.png"
    cut.write_bytes(cut.read_bytes()[:40])
    (folder / "samples" / "step-x.png").write_text("no grid")
    save_timelapse(folder, 150, folder / "samples.png")
    assert frames(folder / "timelapse.gif") == pytest.approx([20, 120, 255], abs=3)
    assert "step-0000060.png is left out of timelapse.gif" in capsys.readouterr().err


def test_one_grid_is_no_timelapse_and_many_are_thinned(tmp_path):
    assert save_timelapse(grids(tmp_path / "one", []), 10, tmp_path / "one" / "samples.png") == {}
    other = grids(tmp_path / "other", [1, 2])  # the finished picture shows something else, as an anomaly detector's
    Image.new("RGB", (50, 20)).save(other / "samples.png")
    assert save_timelapse(other, 3, other / "samples.png") == {"timelapse.gif": "the same noise after 1 to 2 steps"}
    folder = grids(tmp_path / "many", range(1, 200))
    save_timelapse(folder, 200, folder / "samples.png")
    levels = frames(folder / "timelapse.gif")
    assert len(levels) == MOST_FRAMES and (levels[0], levels[-1]) == pytest.approx((1, 255), abs=3)


def test_a_narrow_image_is_enlarged_no_further_than_a_grid_may_be_high():
    tall = Image.new("L", (1, 20_000), 77)
    sheet = pictures.grid([tall], 1)
    assert sheet.size == (1 + 2, 20_000 + 2)
    assert pictures.grid([Image.new("L", (1, 100))], 1).size == (327 + 2, 32_700 + 2)  # 100 pixels 327 times
