"""Text from data for people: names of classes, metrics, files and repositories, in whatever reads them.

Such a text may hold anything: escapes that move a terminal's cursor, letters that turn the direction of reading, lines
of Markdown, tags of HTML, separators of paths. `escaped` is the one function that makes it harmless and legible.
"""

import hashlib
import html
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

MOST = 4000
"""Characters of a text that are shown, at most."""

UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of Unicode without a shape: controls, marks of direction, surrogates, unassigned, other line ends."""

JOINERS = "\u200c\u200d"
"""Marks without a shape that some languages and pictures are spelt with; they change what is beside them alone."""

MARKDOWN = re.compile(
    r"[\\`*\[\]<>|~$&@!]"  # code, emphasis, links, tags, cells, mathematics, entities, mentions, pictures
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis; between letters it is one
    r"|(?<=https)(?=://)|(?<=http)(?=://)|(?<=ftp)(?=://)|(?<=www)(?=\.)"  # addresses that become links by themselves
)
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names of devices on Windows."""

LONGEST_NAME = 80
"""Bytes of the name of a file, at most."""

Place = Literal["line", "markdown", "html", "plot", "file"]
"""Where a text goes: a line of a terminal, a log or a picture; Markdown; HTML; matplotlib; the name of a file."""


def escaped(text: Any, place: Place = "line") -> str:
    """Return a text from data, in one line, as it can be shown in a place without meaning anything there.

    What has no shape is shown as in Python, such as \\x1b for the escape of terminals; of a very long text the
    beginning is shown. Two texts have one name of a file only if they are equal.

    Args:
        text: the text, or anything with one.
        place: see `Place`.
    """
    return _PLACES[place](str(text))


def _line(text: str) -> str:
    shown = text if len(text) <= MOST else f"{text[:MOST]}... ({len(text):,} characters)"
    return "".join(map(_visible, shown))


def _visible(letter: str) -> str:
    if letter in JOINERS or unicodedata.category(letter) not in UNSEEN:
        return letter
    return letter.encode("unicode_escape").decode()


def _markdown(text: str) -> str:
    shown = MARKDOWN.sub(lambda match: f"\\{match[0]}", _line(text).strip())
    return re.sub(r"^(\d*)([.)#+=-])(?=[.)#+=-]*(?:\s|$))", r"\1\\\2", shown)  # beginnings of headings and lists


def _html(text: str) -> str:
    return html.escape(_line(text), quote=True)


def _plot(text: str) -> str:
    """matplotlib reads what is between dollars as TeX."""
    return _line(text).replace("$", r"\$")


def _file(text: str) -> str:
    name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).lstrip(".-")
    name = "".join(letter for letter in name if unicodedata.category(letter) not in UNSEEN)
    stem, dot, ending = name.rpartition(".")
    stem, ending = (stem, dot + ending) if stem and len(ending) <= 8 else (name, "")
    stem = stem.encode()[: LONGEST_NAME - len(ending.encode())].decode(errors="ignore").rstrip(". ")
    if stem and stem + ending == text and not RESERVED.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{stem or 'name'}-{digest}{ending}"


_PLACES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"line": _line, "markdown": _markdown, "html": _html, "plot": _plot, "file": _file}
)


def printable(text: str) -> str:
    """Return a message of several lines whose words may come from data, for a terminal: line ends stay."""
    return "\n".join(map(_line_of_message, text.split("\n")))


def _line_of_message(text: str) -> str:
    return "".join(letter if letter == "\t" else _visible(letter) for letter in text)


def fence(code: str) -> str:
    """Return code as a block of Markdown, behind a fence that is longer than any in the code."""
    longest = max(map(len, re.findall(r"`{3,}", code)), default=2)
    mark = "`" * (longest + 1)
    return f"{mark}\n{printable(code)}\n{mark}"


def escaped_texts(values: Any) -> Any:
    """Return nested lists and objects with every text and every key as `escaped` shows it in a line."""
    if isinstance(values, Mapping):
        return {escaped(key): escaped_texts(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [escaped_texts(value) for value in values]
    return escaped(values) if isinstance(values, str) else values


SPELT_WITH_A_VOWEL = re.compile(r"[AEFHILMNORSX](?![aeiouy])(?=[A-Z0-9]|$)|[AEIOaeio]|u(?!ni|s)|U(?!ni|s|[A-Z])")
"""Beginnings of names that are spoken with a vowel first: VQ is spelt vee, MLP em, UNet you."""


def with_article(name: Any) -> str:
    """Return the name of a class or a kind after "a" or "an": "an ARPipeline", "a VAEPipeline"."""
    return f"{'an' if SPELT_WITH_A_VOWEL.match(str(name)) else 'a'} {name}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, its type if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def listed(names: Sequence[Any], most: int) -> str:
    """Return names in a line, escaped, of many the first: "a, b, c, ..."."""
    return ", ".join(map(escaped, names[:most])) + (", ..." if len(names) > most else "")


def sentence(text: str) -> str:
    """Return a text with a dot at its end, unless it ends in dots."""
    return text if text.endswith("...") else f"{text}."


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return in what two records differ, "seed is 0 there and 1 here; ..."; empty if they are the same."""
    names = sorted(name for name in {**there, **here} if there.get(name) != here.get(name))
    return "; ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in names)


def shell_text(words: Iterable[object]) -> str:
    """Return words as a command line of a shell, in one line, without letters that have no shape."""
    return " ".join(map(_shell_word, map(str, words)))


def _shell_word(word: str) -> str:
    if "".join(map(_visible, word)) == word:
        return shlex.quote(word)
    parts = [f"\\{letter}" if letter in "'\\" else _visible(letter) for letter in word]
    return f"$'{''.join(parts)}'"  # which bash, zsh and ksh read


def quoted(text: str) -> str:
    """Return a text as a literal of Python in double quotes, without letters that have no shape."""
    parts = [f"\\{letter}" if letter in '"\\' else _visible(letter) for letter in text]
    return f'"{"".join(parts)}"'
