"""Whatever a user has as data: which items come out, with which labels, and how anything else is refused."""

import re

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hfgen.data.batches import Batches
from hfgen.data.convert import as_items
from hfgen.data.images import ImageData
from hfgen.data.tensors import EndlessData, MappedData, TensorData
from hfgen.options import DataArgs

X, LABELS = torch.arange(12.0).view(4, 3), torch.tensor([0, 1, 1, 0])
PIXELS = torch.arange(4 * 3 * 2 * 5).remainder(256).to(torch.uint8).view(4, 3, 2, 5)


@pytest.fixture(autouse=True)
def brisk(monkeypatch):
    """datasets pauses for 5 s whenever a stream of several files ends."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def pictures():
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in PIXELS]


def images_of_the_hub(labels=True):
    """Images as a data set of the `datasets` library, with classes."""
    import datasets

    columns, features = {"picture": pictures()}, {"picture": datasets.Image()}
    if labels:
        columns["label"], features["label"] = LABELS.tolist(), datasets.ClassLabel(names=["cat", "dog"])
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def numbers(**columns):
    import datasets

    return datasets.Dataset.from_dict(columns)


def read(data, *rows):
    """These rows as the networks get them."""
    return data.finish(data.read(torch.tensor(rows)), 0, 0)


# --- what there is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        X,
        X.numpy(),
        X.double().numpy(),
        X.clone().requires_grad_(),
        {"x": X},
        {"x": X.tolist()},
        {"x": X, "labels": LABELS, "observation": 2 * X},
        TensorDataset(X),
        TensorDataset(X, LABELS),
        list(X),
        [{"x": row, "observation": 2 * row} for row in X],
    ],
    ids=lambda source: type(source).__name__,
)
def test_numbers_in_any_container_are_the_same_items(source):
    data = as_items(source)
    assert data.item_shape == (3,) and len(data) == 4 and data.unit == "items"
    batch = read(data, 2, 0)
    assert torch.equal(batch["x"], X[[2, 0]]) and batch["x"].dtype == torch.float32
    assert not batch["x"].requires_grad
    assert "labels" not in batch or (data.num_classes == 2 and torch.equal(batch["labels"], LABELS[[2, 0]]))
    assert "observation" not in batch or torch.equal(batch["observation"], 2 * X[[2, 0]])


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", ["tensor", "tensors", "pictures", "hub"])
def test_images_in_any_container_are_the_same_images(kind, labels):
    pairs = zip(pictures(), LABELS.tolist(), strict=True)
    source = {
        "tensor": PIXELS,
        "tensors": {"x": PIXELS} | ({"labels": LABELS} if labels else {}),
        "pictures": list(pairs) if labels else pictures(),
        "hub": images_of_the_hub(labels),
    }[kind]
    data = as_items(source)
    assert (data.unit, data.item_shape, data.value_range) == ("images", (3, 2, 5), (-1.0, 1.0))
    batch = read(data, 3, 1)
    torch.testing.assert_close(batch["x"].double(), PIXELS[[3, 1]].double() / 127.5 - 1, rtol=0, atol=1e-7)
    if labels and kind != "tensor":
        assert torch.equal(batch["labels"], LABELS[[3, 1]])
        assert data.label_names == (["cat", "dog"] if kind == "hub" else ["0", "1"])
    else:
        assert batch.keys() == {"x"} and data.num_classes is None


def test_images_with_more_than_labels_keep_it():
    data = as_items({"x": PIXELS, "coarse": PIXELS[..., :1, :1]})
    assert isinstance(data, TensorData) and data.unit == "images"
    assert torch.equal(read(data, 1)["coarse"], PIXELS[1:2, :, :1, :1])


def test_images_in_memory_can_be_mirrored():
    data = as_items(PIXELS, DataArgs(random_flip=True))
    batch = next(Batches(data, 12, seed=0).iterate())["x"]
    plain = next(Batches(as_items(PIXELS), 12, seed=0).iterate())["x"]
    mirrored = [torch.equal(one, other.flip(-1)) for one, other in zip(batch, plain, strict=True)]
    same = [torch.equal(one, other) for one, other in zip(batch, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and any(mirrored) and any(same)


def test_names_and_folders_are_those_of_the_command_line(tmp_path):
    for index, image in enumerate(pictures()):
        folder = tmp_path / "images" / ("cat", "dog")[int(LABELS[index])]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index}.png")
    args = DataArgs(cache_dir=str(tmp_path / "cache"))
    for source in (tmp_path / "images", str(tmp_path / "images")):
        data = as_items(source, args)
        assert isinstance(data, ImageData) and data.label_names == ["cat", "dog"] and len(data) == 4
    small = as_items(tmp_path / "images", DataArgs(cache_dir=args.cache_dir, resolution=2, channels=1))
    assert small.item_shape == (1, 2, 2)
    assert as_items("digits").item_shape == (1, 8, 8)


def test_images_of_the_hub_take_options_of_images():
    data = as_items(images_of_the_hub(), DataArgs(resolution=2, label_column="none"))
    assert data.item_shape == (3, 2, 2) and data.num_classes is None
    assert as_items(images_of_the_hub(), DataArgs(max_train_samples=2)).images.shape[0] == 2


def test_a_stream_of_images_of_the_hub_is_streamed():
    data = as_items(images_of_the_hub().to_iterable_dataset())
    assert data.streaming and data.item_shape == (3, 2, 5) and data.label_names == ["cat", "dog"]
    batch = next(Batches(data, 4, seed=0).iterate())
    levels = {tuple(image.flatten().tolist()) for image in ((batch["x"] + 1) * 127.5).round().to(torch.uint8)}
    assert levels == {tuple(image.flatten().tolist()) for image in PIXELS}


def test_columns_of_numbers_of_the_hub():
    import datasets

    one = as_items(numbers(signal=X.tolist()))
    assert isinstance(one, TensorData) and torch.equal(read(one, 1)["x"], X[1:2]) and one.num_classes is None
    several = as_items(numbers(x=X.tolist(), mask=[[1, 0, 0]] * 4, note=["a", "b", "c", "d"]))
    assert read(several, 0).keys() == {"x", "mask"}
    labelled = numbers(x=X.tolist(), label=LABELS.tolist())
    assert as_items(labelled).label_names == ["0", "1"] and torch.equal(
        read(as_items(labelled), 1)["labels"], LABELS[1:2]
    )
    named = labelled.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    assert as_items(named).label_names == ["cat", "dog"]
    assert as_items(named.rename_column("x", "signal")).item_shape == (3,)  # the only column besides the labels
    words = as_items(numbers(x=X.tolist(), kind=["b", "a", "a", "b"]), DataArgs(label_column="kind"))
    assert words.label_names == ["a", "b"] and torch.equal(read(words, 0)["labels"], torch.tensor([1]))
    assert as_items(labelled, DataArgs(label_column="none")).num_classes is None


def test_a_data_set_of_hfgen_is_returned_as_it_is():
    endless = EndlessData(lambda count, generator: {"x": torch.zeros(count)}, ())
    for data in (TensorData({"x": X}), MappedData(list(X)), as_items("digits"), endless):
        assert as_items(data) is data


# --- refusals ---------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    """A stream that states its length."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter(X)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DataLoader(TensorDataset(X), 2), "DataLoader is no data set. Give its data set, `.dataset`: batches are made"),
        (Stream(), "Stream is no data set. Give a name, tensors, or something with len and [index]."),
        ((row for row in X), "generator is no data set. Give a name, tensors"),
        (None, "NoneType is no data set"),
        (3, "int is no data set"),
    ],
)
def test_other_types_are_refused_with_what_to_give(source, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        as_items(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (X[:0], "at least 1; these are {'x': 0}"),
        ({"y": X}, 'need "x"'),
        ({"x": ["a", "b"]}, "'x' is list, not numbers of one shape"),
        ({"x": [[1.0], [1.0, 2.0]]}, "'x' is list, not numbers of one shape"),
        (torch.full((4, 2), torch.nan), "x has 8 values that are not finite. Remove or replace them."),
        (PIXELS[:, 0], "Images need (C, H, W) with 1, 3 or 4 channels"),
        (PIXELS.permute(0, 2, 3, 1), "move them by x.movedim(-1, -3)"),
        ({"x": PIXELS, "labels": LABELS.float()}, "labels need int64 numbers"),
        (
            lambda: numbers(x=[[1.0], [1.0, 2.0]]),
            "Pad sequences of different lengths, and mark padding with False in a",
        ),
        (
            lambda: numbers(a=X.tolist(), b=X.tolist()),
            'Name the column of items "x"; columns of numbers',
        ),
        (lambda: numbers(text=["a", "b"]), "each, are: none"),
        (lambda: numbers(x=X.tolist()).to_iterable_dataset(), "A streamed data set is read for its images"),
        (lambda: images_of_the_hub().select([]), "has no image that can be decoded"),
        ("/no/such/folder", "--dataset /no/such/folder does not exist. A data set can be"),
    ],
)
def test_data_without_items_are_refused_with_the_fix(source, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_items(source() if callable(source) else source)


def test_a_data_set_of_several_splits_is_refused_by_their_names():
    import datasets

    splits = datasets.DatasetDict({"train": numbers(x=X.tolist()), "test": numbers(x=X.tolist())})
    with pytest.raises(ValueError, match=re.escape("splits train, test. Give one of them: data['train'].")):
        as_items(splits)


@pytest.mark.parametrize(
    ("source", "options", "name"),
    [
        (X, {"resolution": 32}, "resolution=32"),
        (X, {"random_flip": True}, "random_flip=True"),
        (PIXELS, {"channels": 1}, "channels=1"),
        (TensorDataset(X), {"max_train_samples": 2}, "max_train_samples=2"),
        (TensorData({"x": X}), {"center_crop": False}, "center_crop=False"),
        (lambda: numbers(x=X.tolist()), {"resolution": 32}, "resolution=32"),
        (images_of_the_hub, {"dataset_split": "test"}, "dataset_split='test'"),
    ],
)
def test_options_without_effect_on_the_data_are_refused(source, options, name):
    with pytest.raises(ValueError, match=re.escape(f"{name} does nothing with data of type ")):
        as_items(source() if callable(source) else source, DataArgs(**options))
    as_items(source() if callable(source) else source, DataArgs(dataloader_num_workers=0))
