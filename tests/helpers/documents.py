"""Blocks of code, commands and links of Markdown documents."""

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("hfgen", "accelerate", "torchrun", "python", "make", "bash", "git", "hf", "pip", ".venv-test/bin/python")
"""First words of lines that are commands of a shell."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code: the line where it begins, and its text. `language` is None for an indented one."""

    line: int
    language: str | None
    text: str

    @property
    def kind(self) -> str:
        """Return "python", "shell", or "text" for anything else."""
        first = self.text.split()[:1]
        if first and (first[0] in PROGRAMS or first[0] == "..."):
            return "shell"
        if self.language not in (None, "python"):
            return "text"
        try:
            ast.parse(self.text)
        except SyntaxError:
            assert self.language is None, f"line {self.line}: no Python"
            return "text"
        return "python"


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the blocks of a document: fenced ones, and those indented by four spaces after an empty line."""
    lines, start = text.splitlines(), 0
    while start < len(lines):
        end = start + 1
        fence = re.fullmatch(r"```(\w*)", lines[start])
        if fence:
            while lines[end] != "```":
                end += 1
            yield Block(start + 2, fence[1] or "text", "\n".join(lines[start + 1 : end]) + "\n")
            end += 1
        elif lines[start].startswith("    ") and (start == 0 or not lines[start - 1].strip()):
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield Block(start + 1, None, "\n".join(line[4:] for line in lines[start:end]).rstrip() + "\n")
        start = end


def prose_of(text: str) -> str:
    """Return a document without its blocks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<=\n\n)(?:    .*\n)+", "", text)


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a block of a shell, as words.

    A line that ends with a backslash goes on in the next one, and what follows # is a comment. `...` stands for the
    words of the command before; in the middle of a command it stands for options that are left out.
    """
    before: list[str] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            words = before + words[1:] if words[0] == "..." else [word for word in words if word != "..."]
            before = words
            yield words


def inline_commands(text: str) -> Iterator[list[str]]:
    """Yield the commands `hfgen ...` in the prose of a document that have options, as words."""
    for span in re.findall(r"`(hfgen [^`]+)`", prose_of(text)):
        words = shlex.split(" ".join(span.split()))
        if any(word.startswith("--") for word in words) and "..." not in words:
            yield words


def links_of(text: str) -> Iterator[str]:
    """Yield the targets of the links and pictures of a document."""
    yield from re.findall(r"\]\(([^)\s]+)\)", prose_of(text))


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths_of(text: str) -> Iterator[str]:
    """Yield what a document names of the repository's files, in prose, code and commands."""
    rooms = "hfgen|training|pipelines|tests|benchmarks|docs|notebooks|examples"
    yield from re.findall(rf"(?<![\w./-])((?:{rooms})/[\w./<>*-]*[\w/>*])", text)
