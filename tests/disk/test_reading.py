"""Files that a stranger may have written: regular ones, up to a limit, of a bounded depth, in bounded time."""

import os
import time

import pytest

from hfgen.disk.reading import read_bytes, read_object, read_text
from hfgen.disk.yaml_files import YAML_DEPTH, read_yaml
from tests.helpers.fuzz import BOMB, time_limit


@pytest.fixture(autouse=True)
def soon():
    """Nothing here takes more than seconds of this process's time."""
    start = time.process_time()
    with time_limit(2):
        yield
    assert time.process_time() - start < 2


@pytest.fixture(params=["pipe", "zeros", "folder", "loop"])
def special(request, tmp_path):
    """A name of something that is no regular file."""
    path = tmp_path / "special"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if request.param == "zeros" else path)
    return path


@pytest.mark.parametrize("read", [read_bytes, read_text, read_object, read_yaml])
def test_only_regular_files_are_read(special, read):
    with pytest.raises((ValueError, OSError), match="special"):
        read(special)


def test_links_to_regular_files_are_read(tmp_path):
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "config.json").symlink_to(tmp_path / "blob")
    assert read_object(tmp_path / "config.json") == {}


def test_no_more_than_the_limit_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b" " * 11)
    assert read_bytes(path, 11) == b" " * 11
    with pytest.raises(ValueError, match=r"a\.json has 11 bytes; no such file has more than 10"):
        read_bytes(path, 10)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a":' * 65 + "1" + "}" * 65, "nests more than 64 levels"),
        ('{"a":' * 9000 + "1" + "}" * 9000, "(?:nests more than|is not valid JSON)"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"a": ' + "9" * 9999 + "}", "is not valid JSON"),
        ("[1]", "holds no JSON object"),
        ("\udcff", "is no text in UTF-8"),
    ],
)
def test_strange_json_is_refused_by_name(tmp_path, text, why):
    path = tmp_path / "a.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"a\.json.*{why}"):
        read_object(path)


def test_sixty_four_levels_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a":' * 63 + "1" + "}" * 63)
    assert read_object(tmp_path / "a.json")["a"]["a"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "stands for more than 20,000 values"),
        ("a: &a [1, *a]", r"has the alias \*a for what holds it"),
        ("[" * 10_000, "nests more than"),
        ("- " * (YAML_DEPTH + 1) + "x", "nests more than"),
        ("seed: 1\nsize: 2\nseed: 3", "line 3: 'seed' is there twice"),
        ("a: {b: 1, b: 2}", "'b' is there twice"),
        ("!!python/object/apply:os.system [true]", "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
        ("a: !!timestamp 2001-99-99", "not valid YAML"),
        ("!!timestamp 1", "not valid YAML"),
        ("!!float a", "not valid YAML"),
        ("a: b: c", "line 1: not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("--- a\n--- b", "not valid YAML"),
        ("a: \udcff", "is no text in UTF-8"),
        ("a: " + "x" * (1 << 18), "no such file has more than"),
    ],
)
def test_strange_yaml_is_refused_by_name(tmp_path, text, why):
    path = tmp_path / "a.yaml"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"a\.yaml.*{why}"):
        read_yaml(path)


def test_ordinary_yaml_may_have_aliases(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &size [1, 2]\nb: *size\nc: null\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, 2], "b": [1, 2], "c": None}
