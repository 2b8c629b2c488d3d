"""Names from data, in everything that people read: one function makes them harmless, wherever they go."""

import re
import unicodedata

import pytest

from hfgen.console.text import LONGEST_NAME, UNSEEN, escaped, fence, printable, quoted, with_article

HOSTILE = (
    "\x1b[2J\x1b[31mred",
    "\x9b31m",
    "two\nlines\r\n# and a heading",
    "\u202egnp.exe\u2066",
    "a\u2028b\u0085c\u200b\ufeff\U000e0041",
    "\x00\x07\x08\x7f",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a | b | c",
    "[text](javascript:alert(1)) ![x](http://example.org/x.png)",
    "`code` **bold** __bold__ _it_ ~~gone~~ $x^2$ &lt; @someone https://example.org www.example.org",
    "# heading",
    "- item",
    "1. item",
    "===",
    "```",
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "C:\\Windows",
    "CON",
    "nul.txt",
    ".hidden",
    "-rf",
    "",
    " ",
    "a" * 10_000,
    "é" * 300,
    "\ud800",
)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["line", "markdown", "html", "plot", "file"])
def test_nothing_without_a_shape_is_left_and_all_is_one_line(name, place):
    shown = escaped(name, place)
    assert not [letter for letter in shown if unicodedata.category(letter) in UNSEEN]
    assert len(shown) < 9000 and (shown or not name.strip())


@pytest.mark.parametrize("name", HOSTILE)
def test_html_holds_no_tag(name):
    assert not re.search(r"[<>\"']", escaped(name, "html"))


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_holds_text_alone(name):
    shown = escaped(name, "markdown")
    bare = re.sub(r"\\(?:[^\w\s]|_)", "", shown)
    assert not re.search(r"[`*\[\]<>|~$&@!]|(?<![^\W_])_|_(?![^\W_])|https?://|www\.", bare)
    assert not re.match(r"(?:[#+=-]+|\d+[.)])(?:\s|$)", shown)
    parser = pytest.importorskip("markdown_it").MarkdownIt().enable(["table", "strikethrough"])
    tokens = parser.parse(f"| a | b |\n|---|---|\n| {shown} | x |\n")
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert kinds <= {"text"} and sum(token.type == "td_open" for token in tokens) == 2


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_lies_where_it_is_meant_to(name, tmp_path):
    shown = escaped(name, "file")
    assert re.fullmatch(r"[\w.-]+", shown) and len(shown.encode()) <= LONGEST_NAME + 9
    assert not shown.startswith((".", "-")) and shown.lower().split(".")[0] not in ("con", "nul")
    (tmp_path / shown).write_text("")
    assert (tmp_path / shown).parent == tmp_path and len(list(tmp_path.iterdir())) == 1


def test_names_of_files_differ_where_texts_do():
    assert len({escaped(name, "file") for name in HOSTILE}) == len(HOSTILE)
    assert escaped("a b", "file") != escaped("a_b", "file")
    assert escaped("cat-1.png", "file") == "cat-1.png"


@pytest.mark.parametrize("name", ["cat", "Frechet distance (mnist-cnn, 3.5)", "a_b", "3.25", "-0.5", "größe", "猫"])
def test_ordinary_names_stay_as_they_are(name):
    assert {escaped(name, place) for place in ("line", "markdown", "html", "plot")} == {name}


def test_matplotlib_shows_dollars():
    from matplotlib.cbook import is_math_text

    assert not is_math_text(escaped(r"$\frac{a$ and $b$", "plot"))


def test_messages_keep_their_lines():
    assert printable("a\x1b[0m\nb\tc") == "a\\x1b[0m\nb\tc"


def test_code_stays_in_its_block():
    text = fence("a\n```\n<b>\n````\n")
    mark = text.split("\n")[0]
    assert len(mark) == 5 and text.count(mark) == 2 and text.endswith(f"\n{mark}")


@pytest.mark.parametrize("name", HOSTILE[:-1])
def test_literals_of_python_are_the_text(name):
    import ast

    assert ast.literal_eval(quoted(name)) == name


def test_names_have_the_article_that_they_are_spoken_with():
    spoken = (
        "an ARPipeline, an AnomalyPipeline, an AutoencoderKL, an MLPDenoiser, an RNN, an int, an object, an unknown"
    )
    spoken += (
        ", a VAEPipeline, a VQModel, a GANPipeline, a UNet2DModel, a DenoisingPipeline, a NoneType, a uniform, a user"
    )
    spoken += ", a NormalizingFlowPipeline, a list, a FlowMap"
    for words in spoken.split(", "):
        assert with_article(words.split()[1]) == words
    assert with_article(None) == "a None"
