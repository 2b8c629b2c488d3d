"""One rule for classes by number and by name, on the command line and in Python."""

import dataclasses
import logging
import unicodedata

import numpy as np
import pytest
import torch
from hfgen.pipelines.classes import class_numbers, class_text, classes_in
from hfgen.pipelines.inputs import labels_of

from hfgen.commands.sample import SampleOptions, _wanted

ANIMALS = ["cat", "Dog", "owl"]


@pytest.mark.parametrize(
    "names", [["1", "2", "3"], ["10", "2", "33"], ["2", "0", "1"], ["cat", "7", "owl"], ["a", "a,b", "b"], None]
)
def test_all_is_every_class_once(names):
    assert classes_in("all", 3, names) == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "text", "number"),
    [
        (["1", "2", "3"], "2", 1),
        (["1", "2", "3"], "3", 2),
        (["10", "2", "33"], "2", 1),
        (["10", "2", "33"], "33", 2),
        (["0", "1", "2"], "2", 2),
        (["cat", "7", "owl"], "7", 1),
        (["cat", "7", "owl"], "1", 1),
        (["cat", "2", "owl"], "2", 1),
        (None, "2", 2),
        (None, "02", 2),
        (["-1", "1"], "-1", 0),
        (["a b", "ü", "c, d"], "a b", 0),
        (["a b", "ü", "c, d"], unicodedata.normalize("NFD", "ü"), 1),
        (["a b", "ü", "c, d"], "c, d", 2),
        ([" cat ", "dog"], "cat", 0),
    ],
)
def test_the_command_line_and_python_read_a_text_alike(names, text, number):
    count = len(names or "123")
    assert classes_in(text, count, names) == class_numbers(text, count, names) == [number]
    assert classes_in(f'"{text}"', count, names) == [number] if names and text in names else True
    config = type("Config", (dict,), {"__getattr__": dict.__getitem__})(num_classes=count, label_names=names)
    pipeline = type("Pipeline", (), {"config": config})
    given = dataclasses.replace(SampleOptions("folder", num_samples=2), class_labels=text)
    assert _wanted(given, pipeline).values == labels_of(text, 2, count, names)[1].tolist() == [number] * 2


@pytest.mark.parametrize(
    "two",
    [
        2,
        np.int64(2),
        np.uint8(2),
        torch.tensor(2),
        torch.tensor(2, dtype=torch.uint8),
        torch.tensor([2]),
        np.array(2),
        np.array([2]),
        [np.int32(2)],
        [torch.tensor(2)],
        (2,),
        range(2, 3),
        "Owl".lower(),
        np.array("owl"),
        np.array(["owl"]),
        np.array(["owl"], dtype=object),
        ["owl"],
    ],
)
def test_an_integer_is_a_number_in_any_form(two):
    count, labels = labels_of(two, 3, 3, ANIMALS)
    assert count == 3 and labels.tolist() == [2, 2, 2] and labels.dtype == torch.int64
    digits = two if not isinstance(np.asarray(two).flat[0], str) else 2
    assert class_numbers(digits, 3, ["1", "2", "3"]) == [2]  # not the class of this name


@pytest.mark.parametrize("batch", [torch.tensor([2, 0]), np.array([2, 0]), [2, 0], ["owl", 0], ["owl", "cat"]])
def test_a_class_for_each_sample(batch):
    assert labels_of(batch, None, 3, ANIMALS)[1].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (True, "class True is not known: classes are whole numbers .* not bool"),
        (np.bool_(True), "class True is not known"),
        (torch.tensor([True]), "class True is not known"),
        (1.0, r"class 1\.0 is not known: classes are whole numbers .* not float"),
        (torch.tensor([0.0, 1.0]), r"class 0\.0 is not known"),
        (np.float32(1), r"class 1\.0 is not known"),
        (-1, "class -1 is not known: give a number from 0 to 2"),
        (3, "class 3 is not known"),
        ("3", "class 3 is not known"),
        ("-1", "class '-1' is not known"),
        ("1.0", r"class '1\.0' is not known"),
        ("²", "class '²' is not known"),
        ("9" * 5000, "is not known"),
        ("", "class '' is not known"),
        ("dog", "class 'dog' is not known: give a number from 0 to 2, or one of cat, Dog, owl. Did you mean 'Dog'?"),
        (None, "class None is not known"),
        ({1}, r"class \{1\} is not known"),
        ([[1]], r"class \[1\] is not known"),
        (torch.tensor([[1]]), r"class_labels have shape \(1, 1\)"),
        (np.array([b"cat"]), "class b'cat' is not known"),
    ],
)
def test_what_is_no_class_is_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        class_numbers(classes, 3, ANIMALS)


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (["1", "2", "3"], "0", "all names here are digits.* Give one of 1, 2, 3; in Python, an integer is"),
        (["1", "2", "3"], "1,4", "class '4' is not known"),
        (["cat", "cat", "owl"], "cat", "2 classes are named 'cat': 0, 1. Give a number"),
        (["cat", "dog", "owl"], "cat,,owl", "an empty text is no class"),
        (["cat", "dog", "owl"], "", "an empty text is no class"),
        (["cat", "dog", "owl"], 'cat,"1"', "no class is named '1'"),
        (["all", "some", "none"], "all", "'all' means every class, and here it is a name, too"),
        (["a", "a,b", "b"], "a,b", 'can be read as "a,b" or as "a", "b"|can be read as "a", "b" or as "a,b"'),
    ],
)
def test_a_list_that_can_not_be_read_is_refused(names, text, message):
    with pytest.raises(ValueError, match=message):
        classes_in(text, 3, names)


def test_a_list_on_the_command_line():
    fish = ["tench, Tinca tinca", 'the "big" one', "a", "a,b", "b"]
    assert classes_in("tench, Tinca tinca", 5, fish) == [0]
    assert classes_in('b, tench, Tinca tinca ,the "big" one', 5, fish) == [4, 0, 1]
    assert classes_in('"a,b"', 5, fish) == [3] and classes_in('"a","b"', 5, fish) == [2, 4]
    assert classes_in("0,3", 5, fish) == [0, 3] and classes_in("a,a", 5, fish) == [2, 2]
    assert classes_in("cat, Dog,owl ", 3, ANIMALS) == [0, 1, 2]
    assert classes_in('"all"', 3, ["all", "some", "none"]) == [0]


@pytest.mark.parametrize(
    "names", [None, ANIMALS, ["1", "2", "3"], ["10", "2", "33"], ["2", "1", "0"], ["a", "a,b", "b"]]
)
def test_the_text_of_a_class_means_it(names):
    for number in range(3):
        assert classes_in(class_text(number, names), 3, names) == [number]


def test_which_class_was_taken_is_said_where_digits_could_mean_two(caplog):
    names = ["1", "2", "3"]
    with caplog.at_level(logging.WARNING):
        classes_in("2", 3, names)
        class_numbers(2, 3, names)
        said = [record.getMessage() for record in caplog.records]
        assert said == [
            "class '2' is the class named '2', number 1; it is not class number 2, named '3'.",
            "class 2 is class number 2, named '3'; it is not the class named '2', number 1.",
        ]
        caplog.clear()
        class_numbers([0, 1, 2], 3, names)
        class_numbers(torch.tensor(2), 3, names)
        classes_in("3", 3, names)  # there is no class number 3
        class_numbers("2", 3, ["0", "1", "2"])
        assert not caplog.records


def test_more_classes_than_samples_are_refused():
    config = type("Config", (dict,), {"__getattr__": dict.__getitem__})(num_classes=3, label_names=None)
    pipeline = type("Pipeline", (), {"config": config})
    with pytest.raises(ValueError, match=r"2 samples are too few for 3 classes\. Give --num_samples 3"):
        _wanted(SampleOptions("folder", num_samples=2, class_labels="all"), pipeline)
    wanted = _wanted(SampleOptions("folder", num_samples=6, class_labels="all"), pipeline)
    assert wanted.values == [0, 0, 1, 1, 2, 2]
