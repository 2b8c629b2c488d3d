"""Laws of data: the order of samples, pixels, sources of images, and refusals of bad input."""

import copy
import io
import itertools
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data import sources
from hfgen.data.batches import Batches
from hfgen.data.built_in import MNIST5K
from hfgen.data.images import ImageData, load_images
from hfgen.data.sources import CorruptImageError, Decoder
from hfgen.data.summary import describe, preview, sample
from hfgen.options import DataArgs

ROOT = Path(__file__).parents[2]
MNIST = ROOT.parent / "shared" / "data" / "mnist"
WHITE, RED = (255, 255, 255), (255, 0, 0)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """Remove the pause of 5 s that `datasets` makes when a stream of several files ends."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture
def load(tmp_path):
    """Return `load_images` for a data set and options, with a cache folder of the test."""
    return lambda dataset, **options: load_images(
        DataArgs(dataset=str(dataset), **{"cache_dir": str(tmp_path / "cache"), **options})
    )


def encode(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(count, height=6, width=6, channels=3):
    """Return images that all differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)
    return [Image.fromarray(image.squeeze(-1) if channels == 1 else image) for image in pixels]


def write_parquet(path, cells, labels=None, names=("even", "odd"), typed=True, column="image"):
    """Write a parquet file of image cells (PIL images, bytes or dicts) and labels, by default with the Hub's types."""
    import datasets

    cells = [encode(cell) if isinstance(cell, Image.Image) else cell for cell in cells]
    if typed:
        cells = [{"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for cell in cells]
    features = datasets.Features({column: datasets.Image() if typed else datasets.Value("binary")})
    columns = {column: cells}
    if labels is not None:
        columns["label"] = labels
        features["label"] = datasets.ClassLabel(names=list(names)) if typed else datasets.Value("string")
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
    return path


def numbered(count):
    """Return `count` images in memory, each labelled with its row."""
    images = torch.arange(count * 12).remainder(251).to(torch.uint8).view(count, 1, 3, 4)
    names = [str(row) for row in range(count)]
    return ImageData(
        "numbered",
        None,
        Decoder("image", shape=(1, 3, 4)),
        images=images,
        labels=torch.arange(count),
        label_names=names,
    )


def with_flips(data):
    """Return the same data, mirrored at random."""
    data = copy.copy(data)
    data.random_flip = True
    return data


def take(batches, start, count):
    return list(itertools.islice(batches.iterate(start), count))


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def pixels(data):
    """Return all images (N, C, H, W), read one by one."""
    return torch.stack([data[row][0] for row in range(len(data))])


# The order of the data


@pytest.mark.parametrize(("world", "batch", "accumulation"), [(2, 4, 1), (1, 2, 4), (2, 2, 2), (4, 1, 2)])
def test_samples_do_not_depend_on_how_a_batch_is_cut(world, batch, accumulation):
    data = with_flips(numbered(11))
    whole = take(Batches(data, 8, 3), 0, 5)
    ranks = [take(Batches(data, batch, 3, rank, world), 0, 5 * accumulation) for rank in range(world)]
    for step, expected in enumerate(whole):
        numbers = range(step * accumulation, (step + 1) * accumulation)
        cut = [ranks[rank][number] for number in numbers for rank in range(world)]
        assert_same([expected], [{key: torch.cat([part[key] for part in cut]) for key in expected}])


@pytest.mark.parametrize("start", [0, 1, 3, 4, 17])
def test_a_resumed_stream_is_the_tail_of_the_uninterrupted_one(start):
    batches = Batches(with_flips(numbered(10)), 3, seed=1)
    assert_same(take(batches, start, 4), take(batches, 0, start + 4)[start:])


@pytest.mark.parametrize("batch", [1, 7, 25])
def test_each_epoch_holds_each_sample_once_in_an_order_of_its_own(batch):
    labels = torch.cat([part["labels"] for part in take(Batches(numbered(10), batch, 0), 0, 60 // batch + 1)])
    epochs = labels[:60].view(6, 10)
    assert_same(list(epochs.sort(dim=1).values), [torch.arange(10)] * 6)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 6
    other = torch.cat([part["labels"] for part in take(Batches(numbered(10), 10, 1), 0, 6)])
    assert not torch.equal(other, labels[:60])


def test_epochs_are_counted_in_batches_of_all_processes():
    assert Batches(numbered(10), 2, 0, world=2).batches_per_epoch == 2.5


def test_pixels_are_the_same_after_conversion_to_minus_one_to_one_and_back():
    data = ImageData(
        "levels",
        None,
        Decoder("image", shape=(1, 16, 16)),
        images=torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16),
    )
    (batch,) = take(Batches(data, 1, 0), 0, 1)
    assert batch["x"].dtype == torch.float32 and set(batch) == {"x"}
    assert (batch["x"].min(), batch["x"].max()) == (-1, 1)
    torch.testing.assert_close(((batch["x"] + 1) * 127.5).round().to(torch.uint8), data.images)


def test_half_of_the_images_are_mirrored_left_to_right():
    data = numbered(200)
    (batch,) = take(Batches(with_flips(data), 2000, 0), 0, 1)
    images = data.images[batch["labels"]] / 127.5 - 1
    unchanged = (batch["x"] == images).flatten(1).all(1)
    mirrored = (batch["x"] == images.flip(-1)).flatten(1).all(1)
    assert (unchanged ^ mirrored).all()
    assert 900 < mirrored.sum() < 1100
    assert_same([numbered(200).images], [data.images])  # the cache does not change


def test_the_global_random_state_does_not_change(load, tmp_path):
    before = torch.get_rng_state()
    take(Batches(with_flips(load(write_parquet(tmp_path / "a.parquet", noise(4)), cache_budget=0)), 2, 0), 0, 3)
    torch.testing.assert_close(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_batches_of_the_cache(load, tmp_path, workers):
    path = write_parquet(tmp_path / "a.parquet", noise(7), [row % 2 for row in range(7)])
    cached, decoded = load(path), load(path, cache_budget=0)
    assert cached.images is not None and decoded.images is None
    assert cached.fingerprint == decoded.fingerprint and len(cached) == len(decoded)
    assert "in memory" in cached.storage and "--cache_budget 0" in decoded.storage
    assert_same([pixels(cached)], [pixels(decoded)])
    expected = take(Batches(with_flips(cached), 3, 5), 0, 9)
    batches = Batches(with_flips(decoded), 3, 5, num_workers=workers)
    assert_same(take(batches, 0, 9), expected)
    assert_same(take(batches, 4, 5), expected[4:])


def test_data_for_workers_can_be_pickled(load, tmp_path):
    data = load(write_parquet(tmp_path / "a.parquet", noise(3)), cache_budget=0)
    assert_same([pixels(pickle.loads(pickle.dumps(data)))], [pixels(data)])


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"num_workers": -1}, {"rank": 1}, {"rank": -1}], ids=lambda o: next(iter(o))
)
def test_batches_refuse_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        Batches(numbered(3), **{"batch_size": 1, "seed": 0, **options})
    with pytest.raises(ValueError, match="start=-1"):
        Batches(numbered(3), 1, 0).iterate(-1)


# Pixels


def palette_png(colours, alpha=None):
    image = Image.new("P", (len(colours), 1))
    image.putpalette([value for colour in colours for value in colour])
    image.putdata(range(len(colours)))
    return encode(image, **({} if alpha is None else {"transparency": bytes(alpha)}))


def png_row(mode, *values):
    """Return a PNG that is one pixel high."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return encode(image)


SIXTEEN = encode(Image.fromarray(np.array([[0, 128, 129, 257, 65535]], np.uint16)))
CONVERSIONS = {
    "grey": (png_row("L", 0, 7, 255), {}, [[0, 7, 255]]),
    "1 bit": (png_row("1", 0, 255), {}, [[0, 255]]),
    "16 bits become v / 257, rounded": (SIXTEEN, {}, [[0, 0, 1, 1, 255]]),
    "grey to RGB": (png_row("L", 7), {"channels": 3}, [[7], [7], [7]]),
    "grey to RGBA": (png_row("L", 7), {"channels": 4}, [[7], [7], [7], [255]]),
    "RGB": (png_row("RGB", (1, 2, 3)), {}, [[1], [2], [3]]),
    "RGB to grey: 299 R + 587 G + 114 B": (
        png_row("RGB", RED, (0, 255, 0), (0, 0, 255)),
        {"channels": 1},
        [[76, 150, 29]],
    ),
    "RGBA on white": (
        png_row("RGBA", (0, 0, 0, 0), (9, 8, 7, 255), (0, 0, 0, 128)),
        {},
        [[255, 9, 127], [255, 8, 127], [255, 7, 127]],
    ),
    "RGBA on black": (
        png_row("RGBA", (9, 8, 7, 0), (200, 100, 0, 51)),
        {"background": (0, 0, 0)},
        [[0, 40], [0, 20], [0, 0]],
    ),
    "RGBA on a colour": (png_row("RGBA", (0, 0, 0, 0)), {"background": (1, 2, 3)}, [[1], [2], [3]]),
    "RGBA with 4 channels": (png_row("RGBA", (9, 8, 7, 6)), {"channels": 4}, [[9], [8], [7], [6]]),
    "grey with alpha is grey on white": (png_row("LA", (0, 0), (7, 255)), {}, [[255, 7]]),
    "grey with alpha is red on red": (png_row("LA", (0, 0), (7, 255)), {"background": RED}, [[255, 7], [0, 7], [0, 7]]),
    "palette": (palette_png([(1, 2, 3), (4, 5, 6)]), {}, [[1, 4], [2, 5], [3, 6]]),
    "transparent palette": (palette_png([(1, 2, 3), (4, 5, 6)], [0, 255]), {}, [[255, 4], [255, 5], [255, 6]]),
    "CMYK": (encode(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF"), {}, [[0], [255], [255]]),
}


@pytest.mark.parametrize(("file", "options", "expected"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_every_kind_of_pixel(file, options, expected):
    image = Decoder("image", **options)({"bytes": file, "path": None}, "row 0")
    assert image.dtype == np.uint8
    assert image[:, 0].tolist() == expected


@pytest.mark.parametrize("image", [Image.new("F", (1, 1), 0.5), Image.new("I", (1, 1), 70000)], ids=["F", "I"])
def test_pixels_of_unknown_range_are_refused(image):
    with pytest.raises(CorruptImageError, match=f"row 3 .*mode {image.mode} .*not supported"):
        Decoder("image")(encode(image, "TIFF"), "row 3")


def test_images_are_rotated_as_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees, clockwise
    image = Decoder("image")(encode(noise(1, 2, 3)[0], exif=exif), "row 0")
    upright = np.rot90(np.asarray(noise(1, 2, 3)[0]), -1)
    np.testing.assert_array_equal(image, upright.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 9), (10, 4)])
def test_the_centre_is_cropped_without_resampling_if_a_side_fits(height, width):
    (picture,) = noise(1, height, width)
    top, left = (height - 4) // 2, (width - 4) // 2
    image = Decoder("image", resolution=4)(encode(picture), "row 0")
    np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(picture)[top : top + 4, left : left + 4])


def test_squeezing_keeps_borders_and_cropping_does_not():
    stripes = np.zeros((8, 24), np.uint8)
    stripes[:, :8] = 255
    file = encode(Image.fromarray(stripes))
    cropped = Decoder("image", resolution=6)(file, "row 0")
    squeezed = Decoder("image", resolution=6, center_crop=False)(file, "row 0")
    assert cropped.shape == squeezed.shape == (1, 6, 6)
    assert not cropped.any()
    assert (squeezed[..., 0] > 240).all() and (squeezed[..., 3:] < 16).all()


def test_resizing_is_antialiased_and_keeps_flat_colour():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.ptp(Decoder("image", resolution=8)(encode(Image.fromarray(checks)), "row 0")[:, 1:-1, 1:-1]) <= 2
    assert (
        Decoder("image", resolution=5)(png_row("RGB", *[(9, 99, 199)] * 3), "row 0") == [[[9]], [[99]], [[199]]]
    ).all()


def test_grey_data_have_one_channel_unless_an_image_is_in_colour(load, tmp_path):
    grey, colour = noise(70, channels=1), noise(1)
    assert load(write_parquet(tmp_path / "grey.parquet", grey)).channels == 1
    mixed = write_parquet(tmp_path / "mixed.parquet", grey + colour)
    cached, decoded, tight = (load(mixed, cache_budget=budget) for budget in (1, 0, 71 * 36 / 2**30))
    assert cached.channels == decoded.channels == tight.channels == 3
    assert cached.images is not None and decoded.images is tight.images is None  # 71 images fit in grey, not in colour
    assert_same([pixels(cached)] * 2, [pixels(decoded), pixels(tight)])
    torch.testing.assert_close(cached[5][0], torch.from_numpy(np.asarray(grey[5]).copy()).expand(3, -1, -1))
    with pytest.raises(ValueError, match=r"sample \d+ .*is in colour.*--channels 3"):
        take(Batches(load(mixed, streaming=True), 71, 0), 0, 1)


# Sources of images


def test_mnist5k(load):
    train, test = load("mnist5k"), load("mnist5k", dataset_split="test")
    for data, share in ((train, 400), (test, 100)):
        assert (data.item_shape, data.label_names) == ((1, 28, 28), [str(digit) for digit in range(10)])
        assert torch.bincount(data.labels).tolist() == [share] * 10
        assert torch.bincount(data.labels[: share * 5]).min() > share / 3  # a part of it has every digit
    distinct = {image.numpy().tobytes() for data in (train, test) for image in data.images}
    assert len(distinct) == 5000
    assert len(load("mnist5k", dataset_split="train[:7]+test[-2:]")) == 9
    with pytest.raises(ValueError, match=r"'mnist5k' has no split 'val', only 'train', 'test' and parts"):
        load("mnist5k", dataset_split="val")


def test_mnist5k_says_whose_it_is():
    from pyarrow import parquet

    for split in ("train", "test"):
        metadata = parquet.read_schema(MNIST5K / f"{split}.parquet").metadata
        assert b"LeCun" in metadata[b"copyright"] and b"Cortes" in metadata[b"copyright"]
        assert b"CC BY-SA 3.0" in metadata[b"license"] and metadata[b"changes"]
    assert sum(path.stat().st_size for path in MNIST5K.iterdir()) < 1.5e6


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not here")
def test_mnist5k_is_of_the_test_split_of_mnist(load):
    """The classifier `mnist-cnn` has seen the train split, and judges models of these images."""
    whole = load(MNIST, dataset_split="test")
    labels = {image.numpy().tobytes(): int(label) for image, label in zip(whole.images, whole.labels, strict=True)}
    for split in ("train", "test"):
        data = load("mnist5k", dataset_split=split)
        for image, label in zip(data.images, data.labels, strict=True):
            assert labels[image.numpy().tobytes()] == label


def test_digits(load):
    from sklearn.datasets import load_digits

    data, source = load("digits"), load_digits()
    assert (len(data), data.resolution, data.channels, data.num_classes) == (1797, 8, 1, 10)
    torch.testing.assert_close(data.images[:, 0] / 255 * 16, torch.tensor(source.images).float(), rtol=0, atol=0.032)
    assert data.images.max() == 255 and data.labels.tolist() == source.target.tolist()
    assert data[-1][1] == source.target[-1]
    with pytest.raises(ValueError, match="'digits' has no split 'test'"):
        load("digits", dataset_split="test")
    with pytest.raises(IndexError, match="1797"):
        data[1797]


def test_a_folder_of_images_with_a_folder_per_class(load, tmp_path):
    for index, picture in enumerate(noise(6, 5, 7)):
        path = tmp_path / "pets" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    data = load(tmp_path / "pets")
    assert (data.name, len(data), data.resolution, data.label_names) == ("pets", 6, (5, 7), ["cat", "dog"])
    items = {(label, image.permute(1, 2, 0).numpy().tobytes()) for image, label in data}
    assert items == {(index % 2, picture.tobytes()) for index, picture in enumerate(noise(6, 5, 7))}
    assert load(tmp_path / "pets" / "cat").num_classes is None


def test_parquet_in_the_layout_of_the_hub(load, tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", noise(5), [0, 1, 0, 1, 0])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", noise(2), [1, 1])
    train, test = load(tmp_path / "data"), load(tmp_path / "data", dataset_split="test")
    assert (len(train), len(test), train.label_names) == (5, 2, ["even", "odd"])
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0, 1, 0], [1, 1])
    assert len(load(tmp_path / "data", max_train_samples=3)) == 3
    assert len(load(tmp_path / "data", max_train_samples=30)) == 5
    with pytest.raises(ValueError, match=r"'validation'(.|\n)*train(.|\n)*test"):
        load(tmp_path / "data", dataset_split="validation")


def test_a_parquet_file_with_columns_of_bytes_and_strings(load, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", noise(4), ["b", "c", "a", "b"], typed=False)
    data = load(path, max_train_samples=2)
    assert (data.label_names, data.labels.tolist()) == (["a", "b", "c"], [1, 2])
    torch.testing.assert_close(data[0][0], torch.from_numpy(np.asarray(noise(1)[0]).copy()).permute(2, 0, 1))
    assert load(path, label_column="none").num_classes is None


def test_columns_are_found_by_type_or_by_option(load, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", noise(2), [0, 1], column="scan")
    assert load(path).num_classes == load(path, image_column="scan", label_column="label").num_classes == 2
    for option, wrong in itertools.product(("image_column", "label_column"), ("nothing", "swapped")):
        name = wrong if wrong == "nothing" else {"image_column": "label", "label_column": "scan"}[option]
        with pytest.raises(ValueError, match=f"--{option} {name} is not .*Columns: scan: Image.*, label: ClassLabel"):
            load(path, **{option: name})
    with pytest.raises(ValueError, match=r"--image_column.*Columns: blob"):
        load(write_parquet(tmp_path / "b.parquet", noise(1), typed=False, column="blob"))
    assert len(load(tmp_path / "b.parquet", image_column="blob")) == 1


def test_missing_labels(load, tmp_path):
    some = write_parquet(tmp_path / "some.parquet", noise(3), [0, -1, 1])
    with pytest.raises(ValueError, match=r"row 1 .*--label_column none"):
        load(some)
    with pytest.raises(ValueError, match="--label_column none"):
        take(Batches(load(some, streaming=True), 3, 0), 0, 1)
    assert load(some, label_column="none").label_names is None
    assert load(write_parquet(tmp_path / "all.parquet", noise(2), [-1, -1])).labels is None


@pytest.mark.parametrize("name", ["/nothing/here", "nobody/nothing", "../up/down", "nothing here"])
def test_a_data_set_that_does_not_exist(load, name):
    with pytest.raises(ValueError, match=rf"(?s){re.escape(name)}.*Hub id.*folder.*parquet.*digits"):
        load(name)


def test_a_file_or_folder_without_images(load, tmp_path):
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "broken.parquet").write_text("words")
    (tmp_path / "empty").mkdir()
    for name in ("notes.txt", "broken.parquet", "empty"):
        with pytest.raises(ValueError, match=f"{name}(.|\n)*parquet file"):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("resolution", 0),
        ("max_train_samples", 0),
        ("cache_budget", -1.0),
        ("cache_budget", float("nan")),
        ("dataloader_num_workers", -1),
        ("channels", 2),
        ("background", "whiteish"),
        ("background", "#12345678"),
    ],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"--{option} {value}"):
        load_images(DataArgs(**{option: value}))


# Corrupt images, and images of different sizes


def test_images_of_two_sizes(load, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", noise(3, 6, 4) + noise(1, 5, 4))
    match = r"row 3 \(column image\) is 4 × 5 pixels, row 0 \(column image\) is 4 × 6 pixels.*--resolution"
    with pytest.raises(ValueError, match=match):
        load(path)
    with pytest.raises(ValueError, match=match):
        take(Batches(load(path, cache_budget=0), 4, 0), 0, 1)
    assert load(path, resolution=4).resolution == 4


@pytest.fixture
def damaged(tmp_path):
    """Return a folder of six images, of which numbers 0 and 3 are damaged."""
    for index, picture in enumerate(noise(6)):
        path = tmp_path / "damaged" / ("first", "second")[index // 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture)[: 80 if index in (0, 3) else None])
    return tmp_path / "damaged"


def test_a_corrupt_image_is_named(load, damaged, tmp_path):
    with pytest.raises(CorruptImageError, match=r"(?s)row 0 \(file .*0\.png\) can't be decoded.*--skip_corrupt"):
        load(damaged)
    path = write_parquet(tmp_path / "a.parquet", [*noise(2), None, b"no image"])
    with pytest.raises(CorruptImageError, match=r"row 2 \(column image\) can't be decoded: the cell is empty"):
        load(path)
    with pytest.raises(ValueError, match=r"row [23] \(column image\)"):  # whichever is read first
        take(Batches(load(path, cache_budget=0), 4, 0, num_workers=1), 0, 1)


def test_a_lack_of_memory_is_no_corrupt_image(load, damaged, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(sources.ImageOps, "exif_transpose", fail)
    for skip in (False, True):
        with pytest.raises(MemoryError, match=r"row 0 \(file .*0\.png\) does not fit into memory while it is decoded"):
            load(damaged, skip_corrupt=skip)


def test_corrupt_images_are_left_out_of_the_cache_and_counted(load, damaged):
    data = load(damaged, skip_corrupt=True)
    assert (len(data), data.num_skipped, data.labels.tolist()) == (4, 2, [0, 0, 1, 1])
    intact = [np.asarray(picture) for row, picture in enumerate(noise(6)) if row not in (0, 3)]
    np.testing.assert_array_equal(data.images.permute(0, 2, 3, 1), np.stack(intact))


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_replaced_by_the_next_in_workers_and_counted_once(load, damaged, workers):
    data = load(damaged, skip_corrupt=True, cache_budget=0)
    pictures = torch.from_numpy(np.stack([np.asarray(noise(6)[row]) for row in (1, 1, 2, 4, 4, 5)])).permute(0, 3, 1, 2)
    order = [batch["x"] for batch in take(Batches(data, 6, 0, num_workers=workers), 0, 3)]
    assert data.num_skipped == 2
    assert_same([pixels(data)], [pictures])
    expected = (pictures / 127.5 - 1).flatten(1).tolist()
    assert sorted(order[2].flatten(1).tolist()) == sorted(expected)


def test_a_data_set_of_corrupt_images_alone(load, tmp_path):
    with pytest.raises(ValueError, match=r"no image that can be decoded \(2 tried\)"):
        load(write_parquet(tmp_path / "a.parquet", [b"no", b"image"]), skip_corrupt=True)


# Streams


@pytest.fixture
def shards(tmp_path):
    """Return a folder with thirteen labelled images in two parquet files."""
    pictures, labels = noise(13), [row % 2 for row in range(13)]
    write_parquet(tmp_path / "shards" / "train-00000-of-00002.parquet", pictures[:6], labels[:6])
    write_parquet(tmp_path / "shards" / "train-00001-of-00002.parquet", pictures[6:], labels[6:])
    return tmp_path / "shards"


def item_keys(batches):
    """Return (label, bytes of the image) for all items of micro-batches, in order: values to compare and sort."""
    return [
        (label, image.numpy().tobytes())
        for batch in batches
        for image, label in zip(batch["x"], batch["labels"].tolist(), strict=True)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_each_image_once_per_epoch_and_resumes_exactly(load, shards, workers):
    stream, stored = load(shards, streaming=True), load(shards)
    assert (stream.resolution, stream.channels, stream.label_names) == (6, 3, ["even", "odd"])
    batches = Batches(stream, 4, 0, num_workers=workers)
    assert batches.batches_per_epoch is None
    order = item_keys(take(batches, 0, 10))
    expected = sorted(item_keys(take(Batches(stored, 13, 0), 0, 1)))
    assert sorted(order[:13]) == sorted(order[13:26]) == expected
    assert order[:13] != order[13:26]
    assert order == item_keys(take(Batches(stream, 4, 0), 0, 10))
    mirrored = Batches(with_flips(stream), 4, 0, num_workers=workers)
    assert_same(take(mirrored, 4, 6), take(mirrored, 0, 10)[4:])


def test_ranks_share_a_stream(load, shards):
    stream = load(shards, streaming=True)
    ranks = [item_keys(take(Batches(stream, 1, 0, rank, 2), 0, count)) for rank, count in ((0, 6), (1, 6))]
    assert len(set(ranks[0] + ranks[1])) == 12
    few = load(shards, streaming=True, max_train_samples=1)
    with pytest.raises(ValueError, match="no rows for rank 1 of 2"):
        take(Batches(few, 1, 0, 1, 2), 0, 1)


def test_a_streamed_folder_of_images(load, damaged):
    with pytest.raises(CorruptImageError, match=r"sample 0 \(file .*png\)"):
        load(damaged, streaming=True)
    stream = load(damaged, streaming=True, skip_corrupt=True)
    batches = Batches(stream, 6, 0)
    different = {image.numpy().tobytes() for image in take(batches, 0, 1)[0]["x"]}
    assert len(different) == 4 and stream.num_skipped >= 2
    assert_same(take(batches, 1, 2), take(batches, 0, 3)[1:])


def test_the_limits_of_a_stream(load, shards, tmp_path):
    stream = load(shards, streaming=True)
    for function in (len, lambda data: data[0]):
        with pytest.raises(TypeError, match="length is not known"):
            function(stream)
    with pytest.raises(ValueError, match=r"(?s)'validation'.*train"):
        load(shards, streaming=True, dataset_split="validation")
    words = write_parquet(tmp_path / "words.parquet", noise(2), ["a", "b"], typed=False)
    with pytest.raises(ValueError, match=r"does not name the classes.*--label_column none"):
        load(words, streaming=True)
    assert load(words, streaming=True, label_column="none").num_classes is None
    assert len(take(Batches(load("digits", streaming=True, max_train_samples=3), 6, 0), 0, 1)[0]["labels"]) == 6


# Fingerprints and descriptions


def test_the_fingerprint_depends_on_the_content_of_a_data_set_not_on_its_place(load, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", noise(4), [0, 1, 0, 1])
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(path, tmp_path / "elsewhere" / "b.parquet")
    same = {load(file, cache_dir=str(tmp_path / str(n))).fingerprint for n, file in enumerate((path, copy))}
    others = [
        load(path, **options).fingerprint
        for options in (
            {"resolution": 5},
            {"resolution": 5, "center_crop": False},
            {"channels": 1},
            {"background": "black"},
            {"max_train_samples": 3},
            {"label_column": "none"},
        )
    ]
    others += [load(write_parquet(tmp_path / "c.parquet", noise(5)[1:], [0, 1, 0, 1])).fingerprint]
    others += [load(write_parquet(tmp_path / "d.parquet", noise(4), [0, 1, 1, 1])).fingerprint]
    others += [load(path, streaming=True).fingerprint, load(path, streaming=True, max_train_samples=2).fingerprint]
    assert len(same) == 1 and len(same.union(others)) == 11
    assert re.fullmatch("[0-9a-f]{16}", same.pop())


def test_the_fingerprint_is_the_same_in_another_process(load):
    code = (
        "from hfgen.options import DataArgs; from hfgen.data.images import load_images; "
        "print(load_images(DataArgs(max_train_samples=20)).fingerprint)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert process.stdout.strip() == load("digits", max_train_samples=20).fingerprint


def test_description(load, tmp_path):
    white, black = Image.new("L", (3, 2), 255), Image.new("L", (3, 2))
    facts = dict(describe(load(write_parquet(tmp_path / "a.parquet", [white, black, black, black], [0, 1, 1, 1]))))
    assert facts["images"] == "4" and facts["height × width"] == "2 × 3" and facts["channels"] == "1 (grey)"
    assert facts["classes"] == "2: even (1), odd (3)"
    assert (facts["mean"], facts["deviation"]) == ("0.2500", "0.4330")
    streamed = dict(describe(load(tmp_path / "a.parquet", streaming=True, label_column="none")))
    assert streamed["images"] == "not known: streamed" and streamed["classes"] == "none"


def test_preview_enlarges_small_images_by_a_whole_factor(load, tmp_path):
    path = preview(load("digits", max_train_samples=40), tmp_path / "new" / "grid.png", rows=3, cols=5)
    with Image.open(path) as grid:
        assert grid.size == (5 * (8 * 12 + 1) + 1, 3 * (8 * 12 + 1) + 1)  # a line of one pixel between images
        first = np.asarray(grid.convert("L"))[1::12, 1::12][:8, :8]
    images, _ = sample(load("digits", max_train_samples=40), 15)
    np.testing.assert_array_equal(first, images[0, 0])
    transparent = load(write_parquet(tmp_path / "a.parquet", [Image.new("RGBA", (600, 9))] * 2), channels=4)
    with Image.open(preview(transparent, tmp_path / "grid.png")) as grid:
        assert grid.size == (1203, 11) and grid.getpixel((300, 5)) == WHITE
    with pytest.raises(ValueError, match="rows=0"):
        preview(transparent, tmp_path / "grid.png", rows=0)


@pytest.mark.skipif(not MNIST.exists(), reason="MNIST is not beside the checkout")
def test_mnist(load):
    data = load(MNIST, dataset_split="test", max_train_samples=1000)
    assert (len(data), data.resolution, data.channels, data.num_classes) == (1000, 28, 1, 10)
    assert data.labels.bincount().min() > 50
    assert abs(data.images.float().mean() / 255 - 0.13) < 0.01
