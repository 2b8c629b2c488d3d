"""YAML: which texts are numbers, and that what is written is read back."""

import pytest
import yaml

from hfgen.disk.yaml_files import parse_yaml, yaml_text

NUMBERS = {"10": 10, "-3": -3, "+5": 5, "0": 0, "1_000": 1000, "0x1F": 31, "0b11": 3, "1e-3": 0.001, "1E5": 1e5}
NUMBERS |= {".5": 0.5, ".5e3": 500.0, "5.": 5.0, "-1.5e+2": -150.0, "08.5": 8.5}
WORDS = {"yes": True, "off": False, "True": True, "~": None, "null": None, "": None}
TEXTS = ("1:30:00", "1:30", "-1:30", "1:30.5", "010", "0777", "09", "0o10", "2020-01-01", "12e", "1e", ".", "=", "y")
TEXTS += ("2001-12-14t21:59:43.10-05:00", "1.2.3", "0x", "infinity", "nan", "None", "1,000", "١٢")


@pytest.mark.parametrize(("text", "value"), [*NUMBERS.items(), *WORDS.items()])
def test_numbers_and_words_are_read(text, value):
    found = parse_yaml(f"a: {text}", "a.yaml")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", TEXTS)
def test_times_of_day_dates_and_leading_zeros_are_texts(text):
    assert parse_yaml(f"a: {text}", "a.yaml") == {"a": text}


@pytest.mark.parametrize(
    "text", [*TEXTS, *NUMBERS, *WORDS, "a: b", "- a", "é", "\u202e", "a\nb", " a ", "#", "<<", "!a", "*a"]
)
def test_what_is_written_is_read_back_here_and_elsewhere(text):
    values = {"text": text, "numbers": [1e-5, 1e16, float("inf"), 3, -0.0, True, None]}
    written = yaml_text(values)
    assert parse_yaml(written, "a.yaml") == yaml.safe_load(written) == values
    assert written.isascii()
