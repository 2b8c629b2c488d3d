"""Laws of data that need not be images: order, ranks, resume, fingerprints, workers, shapes and refusals."""

import itertools
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from hfgen.data.batches import Batches, RepeatedBatches
from hfgen.data.tensors import EndlessData, MappedData, TensorData, as_tensor
from hfgen.utils.seeds import generator_of

COUNT = 10
SHAPES = [(), (3,), (4, 2), (2, 3, 4)]
"""Item shapes: a number, a vector, a sequence, a volume."""


def numbered(shape=(3,), count=COUNT):
    """Tensors whose item r has the value r everywhere, labelled r mod 3, with its number under another key."""
    rows = torch.arange(count)
    x = rows.float().reshape(-1, *[1] * len(shape)).expand(count, *shape).contiguous()
    return {"x": x, "labels": rows % 3, "row": rows}


class Elements(torch.utils.data.Dataset):
    """The same items, one by one."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors["x"])

    def __getitem__(self, index):
        return {name: value[index] for name, value in self.tensors.items()}


def draw(count, generator):
    return {"x": torch.randn(count, 4, 2, generator=generator), "time": torch.rand(count, generator=generator)}


def take(batches, start, count):
    return list(itertools.islice(batches.iterate(start), count))


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def positions(seed, count, start, stop):
    """Rows at the positions [start, stop) of the documented order: one permutation after another, seeded by epoch."""
    epochs = range(stop // count + 1)
    generators = [generator_of("order", seed, epoch) for epoch in epochs]
    return torch.cat([torch.randperm(count, generator=generator) for generator in generators])[start:stop]


DATA = {
    "tensors": lambda: TensorData(numbered((4, 2))),
    "elements": lambda: MappedData(Elements(numbered((4, 2)))),
    "endless": lambda: EndlessData(draw, (4, 2)),
}


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensors", "elements"])
@pytest.mark.parametrize("batch_size", [1, 3, 25])
def test_batches_follow_the_documented_permutations(name, batch_size):
    batches = take(Batches(DATA[name](), batch_size, seed=5), 0, 7)
    rows = torch.cat([batch["row"] for batch in batches])
    assert torch.equal(rows, positions(5, COUNT, 0, 7 * batch_size))
    for batch in batches:
        assert torch.equal(batch["x"], numbered((4, 2))["x"][batch["row"]])
        assert torch.equal(batch["labels"], batch["row"] % 3)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(("world", "batch_size", "accumulation"), [(1, 4, 3), (2, 2, 3), (3, 4, 1), (2, 3, 2)])
def test_ranks_and_accumulation_cut_one_stream(name, world, batch_size, accumulation):
    """Micro-batches, interleaved by rank, are the batches of one process with the effective batch."""
    whole = take(Batches(DATA[name](), world * batch_size * accumulation, seed=1), 0, 3)
    ranks = [take(Batches(DATA[name](), batch_size, 1, rank, world), 0, 3 * accumulation) for rank in range(world)]
    micro_batches = [batch for together in zip(*ranks, strict=True) for batch in together]
    if name == "endless":  # each micro-batch number has a draw of its own, which ranks share
        whole = take(Batches(DATA[name](), world * batch_size, seed=1), 0, 3 * accumulation)
    for key in whole[0]:
        streams = [torch.cat([batch[key] for batch in batches]) for batches in (whole, micro_batches)]
        assert_close(*streams, rtol=0, atol=0)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("start", [1, 4, 23, 1000])
def test_a_resumed_stream_is_the_tail_of_the_whole(name, start):
    batches = Batches(DATA[name](), 3, seed=2, rank=1, world=2)
    assert_same(take(batches, start, 4), take(batches, 0, start + 4)[start:])


@pytest.mark.parametrize("name", DATA)
def test_the_global_random_state_is_neither_read_nor_changed(name):
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), take(Batches(DATA[name](), 3, seed=2), 0, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert_same(take(Batches(DATA[name](), 3, seed=2), 0, 3), first)
    assert not torch.equal(take(Batches(DATA[name](), 3, seed=3), 0, 1)[0]["x"], first[0]["x"])


def test_an_endless_batch_is_a_function_of_seed_and_number():
    third = take(Batches(EndlessData(draw, (4, 2), stream="points"), 5, seed=7), 3, 1)[0]
    assert_close(third, draw(5, generator_of("items", 7, "points", 3)), rtol=0, atol=0)


def test_repeated_batches_are_the_first_ones_for_ever():
    batches = Batches(DATA["tensors"](), 4, seed=0)
    first, repeated = take(batches, 0, 2), RepeatedBatches(batches, 2)
    assert_same(take(repeated, 3, 4), [first[1], first[0], first[1], first[0]])
    names = ("batch_size", "batches_per_epoch", "fingerprint", "unit")
    assert [getattr(repeated, name) for name in names] == [getattr(batches, name) for name in names]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_what_this_process_reads(workers):
    """Elements of any kind, read by worker processes in the order of one process, from anywhere."""
    batches = [Batches(DATA["elements"](), 3, seed=4, num_workers=number) for number in (0, workers)]
    assert_same(take(batches[1], 5, 6), take(batches[0], 5, 6))


# --- items ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TensorData, lambda tensors: MappedData(Elements(tensors))])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_items_have_any_shape(kind, shape):
    data = kind(numbered(shape))
    assert data.item_shape == shape and len(data) == COUNT
    assert (data.unit, data.value_range, data.num_classes, data.label_names) == ("items", None, 3, ["0", "1", "2"])
    assert data.description.endswith(f"10 items of shape {shape}")
    batch = take(Batches(data, 4, seed=0), 0, 1)[0]
    assert batch["x"].shape == (4, *shape) and batch["x"].dtype == torch.float32
    assert Batches(data, 4, seed=0).batches_per_epoch == 2.5


def test_pixels_of_images_become_minus_one_to_one():
    """uint8 items are images (C, H, W): k becomes k / 127.5 - 1, and other tensors stay as they are."""
    pixels = torch.arange(256).to(torch.uint8).reshape(4, 1, 8, 8)
    tensors = {"x": pixels, "coarse": pixels[:, :, ::4, ::4].contiguous()}
    for data in (TensorData(tensors), MappedData(Elements(tensors))):
        assert (data.unit, data.value_range, data.num_classes) == ("images", (-1.0, 1.0), None)
        batch = next(Batches(data, 4, seed=0).iterate())
        rows = positions(0, 4, 0, 4)
        assert_close(batch["x"].double(), pixels[rows].double() / 127.5 - 1, rtol=0, atol=1e-7)
        assert torch.equal(batch["coarse"], tensors["coarse"][rows])


def test_elements_may_be_tensors_pairs_mappings_arrays_and_pictures():
    x, labels = torch.arange(6.0).view(3, 2), torch.tensor([1, 0, 1])
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    for data, num_classes in (
        (list(x), None),
        (TensorDataset(x), None),  # tuples of one
        (TensorDataset(x, labels), 2),
        ([(row.numpy(), int(label)) for row, label in zip(x, labels, strict=True)], 2),
        ([{"x": row.double().numpy(), "labels": label} for row, label in zip(x, labels, strict=True)], 2),
    ):
        data = MappedData(data)
        batch = data.read(torch.tensor([2, 0]))
        assert_close(batch["x"], x[[2, 0]], rtol=0, atol=0)
        assert data.num_classes == num_classes
        assert num_classes is None or torch.equal(batch["labels"], labels[[2, 0]])
    for mode, shape in (("RGB", (3, 2, 4)), ("L", (1, 2, 4)), ("RGBA", (4, 2, 4)), ("P", (3, 2, 4)), ("1", (3, 2, 4))):
        data = MappedData([(picture.convert(mode), 0), (picture.convert(mode), 1)])
        assert data.item_shape == shape and data.unit == "images" and data.num_classes == 2
    pixels = MappedData([picture]).read(torch.tensor([0]))["x"][0]
    assert torch.equal(pixels, torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))


def test_a_data_set_that_names_its_classes_is_not_read_for_them():
    class Named(Elements):
        classes, reads = ("cat", "dog", "owl", "bee"), 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    named = Named(numbered())
    data = MappedData(named)
    assert data.label_names == ["cat", "dog", "owl", "bee"] and named.reads == 1


def test_numbers_are_single_precision_unless_a_tensor_says_otherwise():
    for value in (np.ones(2), [1.0, 2.0], 0.5, np.float64(1.0)):
        assert as_tensor(value).dtype == torch.float32
    assert as_tensor(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
    assert as_tensor(np.ones(2, dtype=np.float16)).dtype == torch.float16
    assert as_tensor(3).dtype == as_tensor(np.int64(3)).dtype == torch.int64
    assert not as_tensor(torch.ones(2, requires_grad=True)).requires_grad


# --- fingerprints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TensorData, lambda tensors: MappedData(Elements(tensors))])
@pytest.mark.parametrize("name", ["x", "labels", "row"])
def test_a_fingerprint_changes_with_any_bit(kind, name):
    """One bit of one number of any tensor, and it is the same for equal data."""
    plain = kind(numbered()).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", plain) and plain == kind(numbered()).fingerprint
    changed = numbered()
    changed[name][-1] = torch.nextafter(changed[name][-1], torch.tensor(99.0)) if name == "x" else 1
    assert kind(changed).fingerprint != plain
    assert kind({**numbered(), "more": torch.zeros(COUNT)}).fingerprint != plain
    assert kind({key: value[:-1] for key, value in numbered().items()}).fingerprint != plain


def test_a_fingerprint_may_be_given():
    assert TensorData(numbered(), fingerprint="pairs of a teacher").fingerprint == "pairs of a teacher"
    assert Batches(TensorData(numbered(), fingerprint="a"), 2, seed=0).fingerprint == "a"
    assert EndlessData(draw, (4, 2), "moons").fingerprint == "endless moons"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"y": torch.zeros(3)}, """need "x" and others of the same length, at least 1; these are {'y': 3}"""),
        ({"x": torch.zeros(0, 2)}, "at least 1; these are {'x': 0}"),
        ({"x": torch.zeros(3), "mask": torch.zeros(2)}, "{'x': 3, 'mask': 2}"),
        (
            {"x": torch.zeros(3), "labels": torch.zeros(3)},
            "torch.float32, (3,). Give anything that is no class",
        ),
        ({"x": torch.zeros(3), "labels": torch.tensor([0, -1, 1])}, "int64 numbers (N,) from 0 on"),
        ({"x": torch.zeros(3), "labels": torch.zeros(3, 2).long()}, "torch.int64, (3, 2)"),
        ({"x": torch.zeros(3, 8, 8).byte()}, "shape (8, 8). Images need (C, H, W) with 1, 3 or 4 channels"),
        ({"x": torch.zeros(3, 8, 8, 3).byte()}, "x.movedim(-1, -3)"),
    ],
)
def test_tensors_that_make_no_data_set_are_refused(tensors, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TensorData(tensors)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([], "list has no elements"),
        ([{"pixels": 1.0}], 'Element 0 of list has no "x", only pixels. Name what the model learns "x".'),
        (["abc"], "'x' of element 0 of list is str, not numbers of one shape"),
        ([(1.0, 2, 3)], 'Element 0 of list has 3 parts. Give a pair (x, label), or a mapping with the key "x"'),
        ([(1.0, 0.5)], "labels need int64 numbers"),
        ([torch.zeros(8, 8).byte()], "Images need (C, H, W)"),
    ],
)
def test_elements_that_make_no_items_are_refused(elements, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MappedData(elements)


@pytest.mark.parametrize(
    "elements",
    [
        [torch.zeros(2), torch.zeros(3)],
        [{"x": torch.zeros(2), "mask": torch.ones(2)}, {"x": torch.zeros(2)}],
        [Image.new("L", (4, 4)), Image.new("RGB", (4, 4))],
    ],
)
def test_elements_that_do_not_fit_together_are_refused_with_the_fix(elements):
    with pytest.raises(ValueError, match=r'Elements of list do not fit together: .*; pad shorter ones, .* in a "mask"'):
        MappedData(elements).read(torch.tensor([0, 1]))


def test_more_classes_than_names_are_refused():
    with pytest.raises(ValueError, match="labels go up to 2, but there are 2 label_names"):
        TensorData(numbered(), label_names=["even", "odd"])
    assert TensorData(numbered(), label_names=list("abcd")).num_classes == 4


def test_endless_data_have_no_length():
    data = EndlessData(draw, (4, 2), "moons", "points")
    with pytest.raises(TypeError, match="moons has no length: its points are drawn for ever"):
        len(data)
    assert Batches(data, 2, seed=0).batches_per_epoch is None and data.streaming
    assert data.description == "moons, drawn anew, of shape (4, 2)"


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"rank": 2}, {"rank": -1}, {"num_workers": -1}])
def test_batches_refuse_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=r"batch_size=.* must be at least 1"):
        Batches(DATA["tensors"](), **{"batch_size": 1, "seed": 0, "world": 2, **options})
    with pytest.raises(ValueError, match="start=-1 must be at least 0"):
        Batches(DATA["tensors"](), 1, 0).iterate(-1)
