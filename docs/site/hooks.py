"""What mkdocs does not do by itself: the reference of all public names, and links to files outside of docs/."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LINK = re.compile(r"\]\(\.\./([\w./-]+)\)")
"""A link from a page to a file or a folder of the repository."""

MARK = "<!-- the public names -->"


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside of docs/ that pages link to, as they are, and of folders the names in them."""
    linked = {name for page in files.documentation_pages() for name in LINK.findall(page.content_string)}
    for name in sorted(linked):
        files.append(File.generated(config, f"sources/{name}.txt", content=text_of(ROOT / name)))
    return files


def text_of(path: Path) -> str:
    """Return the text of a file, or the names in a folder, one a line."""
    if path.is_dir():
        return "".join(f"{each.name}\n" for each in sorted(path.iterdir()) if not each.name.startswith((".", "__")))
    return path.read_text(encoding="utf-8")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links to these files, and write the reference where its mark stands."""
    depth = "../" * page.file.src_uri.count("/")
    markdown = LINK.sub(lambda link: f"]({depth}sources/{link[1]}.txt)", markdown)
    return markdown.replace(MARK, "\n".join(reference())) if MARK in markdown else markdown


def reference() -> Iterator[str]:
    """Yield the lines of the reference: each public name of hfgen under the room where it is defined."""
    from hfgen.registry import EXPORTS

    rooms: dict[str, list[str]] = {}
    for name, module in sorted(EXPORTS.items()):
        if module.startswith("hfgen."):
            rooms.setdefault(module.split(".")[1], []).append(identifier(name, module))
    for room, identifiers in sorted(rooms.items()):
        yield f"\n## {room}\n"
        yield from (f"::: {each}\n" for each in identifiers)


def identifier(name: str, module: str) -> str:
    """Return the path of a public name in the checkout, where pipelines/ lies beside hfgen/."""
    return f"{module.removeprefix('hfgen.') if module.startswith('hfgen.pipelines.') else module}.{name}"
