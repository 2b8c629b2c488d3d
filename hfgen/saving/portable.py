"""A class and all that it uses of hfgen as one source file, for people who have diffusers and not hfgen.

diffusers takes a component's class from a single file in the component's folder. The file therefore holds the modules
that the class's module imports from hfgen, and from its own package where a family is defined elsewhere, in the order
in which they need each other, then the module itself. Imports from these are left out, and all other imports are at the
top. Sources are read and joined, never run. A class that could not work in such a file is refused here.
"""

import ast
import hashlib
import importlib.util
import inspect
import re
import symtable
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hfgen import __version__

PACKAGES = frozenset({"torch", "diffusers", "transformers", "numpy", "PIL", *sys.stdlib_module_names})
"""Packages that a shipped file may import."""

LATE = frozenset({"scipy", "peft", "safetensors", "huggingface_hub"})
"""Packages that only its functions may import, when they are called. diffusers' own schedulers and pipelines do the
same with the first two, and needs the others itself."""

_FILE = """# SPDX-License-Identifier: Apache-2.0
#
# {name}, for diffusers where hfgen is not installed. hfgen {version} wrote this file when the pipeline was saved, and
# never reads it: with hfgen installed, HFGenPipeline.from_pretrained uses the installed class. It holds, in this order:
#
{modules}
#
# Licence: Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0

{imports}

# diffusers runs this file again in the same module whenever it loads it. Definitions are therefore kept: existing
# objects must remain instances of these classes.
if "{name}" not in globals():
{body}
"""
MARK = _FILE.partition("\n")[0] + "\n#\n"
"""First lines of every shipped file."""


class NotPortableError(ValueError):
    """A class can't be shipped as one file; says why, and where."""


class Standin(NamedTuple):
    """The replacement of a module that can't be shipped.

    Args:
        module: the module that is shipped instead.
        bases: class of the replaced module -> bases of its subclasses in a shipped file, comma-separated names.
        imports: module -> name of a base that is imported from it.
    """

    module: str
    bases: Mapping[str, str]
    imports: Mapping[str, str]


class ShippedFile(NamedTuple):
    """A source file: its text, and its name without `.py`. The name holds a hash of the text."""

    stem: str
    text: str


class _Source(NamedTuple):
    """A module: its docstring, its code without docstring and imports, its names, and its imports."""

    doc: str
    code: str
    defined: set[str]
    external: dict[str, str]  # local name -> import statement
    internal: dict[str, list[ast.alias]]  # module that is shipped too -> names


def one_file(name: str, module: str, standins: Mapping[str, Standin] | None = None) -> ShippedFile:
    """Return the source file for a class.

    Args:
        name: of the class.
        module: that defines it.
        standins: module -> its replacement.

    Raises:
        NotPortableError: two modules define the same name, or one imports what a shipped file may not.
    """
    standins = standins or {}
    sources: dict[str, _Source] = {}
    _collect(module, sources, standins)
    if name not in sources[module].defined:
        raise NotPortableError(f"{module} defines no {name}.")
    imports = _imports(sources, [standin for standin in standins.values() if standin.module in sources])
    sections = [_section(key, source, sources, standins) for key, source in sources.items()]
    body = _indented("\n\n\n".join(sections), module)
    modules = "\n".join(f"#     {key}" for key in sources)
    text = _FILE.format(name=name, version=__version__, modules=modules, imports=imports, body=body)
    _check(text, module)
    digest = hashlib.sha256(f"{imports}\n{body}".encode()).hexdigest()[:8]
    return ShippedFile(f"hfgen_{name}_{digest}", text)


def _collect(module: str, sources: dict[str, _Source], standins: Mapping[str, Standin]) -> None:
    """Add the module to `sources`, after the modules that it imports."""
    source = _read(module, standins)
    for imported in source.internal:
        target = standins[imported].module if imported in standins else imported
        if target not in sources and target != module:
            _collect(target, sources, standins)
    sources[module] = source


def _read(module: str, standins: Mapping[str, Standin]) -> _Source:
    """Return a module's source; refuse imports that a shipped file can't have."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
        raise NotPortableError(f"{module} has no source file.")
    text = Path(spec.origin).read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines(keepends=True)
    external: dict[str, str] = {}
    internal: dict[str, list[ast.alias]] = {}
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = _origin(node, package)
            root = origin.split(".")[0]
            if root in ("hfgen", module.split(".")[0]):
                if node not in top or isinstance(node, ast.Import):
                    raise NotPortableError(
                        f"{module}, line {node.lineno}: a shipped module imports names of {root}, on top."
                    )
                internal.setdefault(origin, []).extend(node.names)
            elif root not in (PACKAGES if node in top else PACKAGES | LATE):
                raise NotPortableError(f"{module}, line {node.lineno}: a shipped file can't count on {origin}.")
            elif node in top:
                external |= _statements(node)
    _replace_bases(tree, lines, module, internal, standins)
    doc = ast.get_docstring(tree) or ""
    for node in [*top, *(tree.body[:1] if doc else [])]:
        for number in range(node.lineno - 1, node.end_lineno):
            lines[number] = ""
    names = symtable.symtable(text, module, "exec").get_symbols()
    defined = {symbol.get_name() for symbol in names if symbol.is_assigned() and not symbol.is_imported()}
    return _Source(doc, "".join(lines).strip("\n"), defined, external, internal)


def _origin(node: ast.Import | ast.ImportFrom, package: str) -> str:
    """Return the module that an import statement names."""
    if isinstance(node, ast.Import):
        return node.names[0].name
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _statements(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Return each name that an import binds, and a statement that binds it alone."""
    start = f"from {node.module} import" if isinstance(node, ast.ImportFrom) else "import"
    return {
        alias.asname or alias.name: f"{start} {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
        for alias in node.names
    }


def _replace_bases(
    tree: ast.Module,
    lines: list[str],
    module: str,
    internal: Mapping[str, list[ast.alias]],
    standins: Mapping[str, Standin],
) -> None:
    """Replace bases that are not shipped in `lines`; refuse any other use of such a class."""
    bases = {key: value for name in internal if name in standins for key, value in standins[name].bases.items()}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    places = {base for node in classes for base in node.bases if isinstance(base, ast.Name) and base.id in bases}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in bases and node not in places:
            raise NotPortableError(f"{module}, line {node.lineno}: {node.id} is not shipped; it may only be inherited.")
    for base in sorted(places, key=lambda node: -node.col_offset):
        line = lines[base.lineno - 1].encode()
        new = bases[base.id].encode()
        lines[base.lineno - 1] = (line[: base.col_offset] + new + line[base.end_col_offset :]).decode()


def _imports(sources: Mapping[str, _Source], standins: list[Standin]) -> str:
    """Return all imports of other packages; refuse a name that would mean two things in one file."""
    owners: dict[str, str] = {}
    extra = {name: f"from {module} import {name}" for s in standins for module, name in s.imports.items()}
    modules = [("", _Source("", "", set(), extra, {})), *sources.items()]
    for module, source in modules:
        for name, owner in [*source.external.items(), *((name, f"{module}.{name}") for name in source.defined)]:
            if owners.setdefault(name, owner) != owner:
                raise NotPortableError(
                    f"{name} would mean both {owners[name]!r} and {owner!r} in one file; rename one of them."
                )
    statements = {statement for _, source in modules for statement in source.external.values()}
    return "\n".join(sorted(statements, key=lambda s: (s.startswith("from"), s)))


def _section(module: str, source: _Source, sources: Mapping[str, _Source], standins: Mapping[str, Standin]) -> str:
    """Return the module's part of the file: a heading, its docstring as a comment, its aliases, its code."""
    heading = f"# --- {module} ".ljust(116, "-")
    comment = "\n".join(f"# {line}".rstrip() for line in source.doc.splitlines())
    inherited = {base for standin in standins.values() for base in standin.bases}
    defined = set().union(*(other.defined for other in sources.values()))
    assignments = []
    for imported, aliases in source.internal.items():
        for alias in aliases:
            if alias.name not in defined | inherited or (alias.asname and alias.name in inherited):
                raise NotPortableError(f"{module} imports {alias.name} of {imported}, which is no name defined there.")
            if alias.asname:
                assignments.append(f"{alias.asname} = {alias.name}\n")
    return f"{heading}\n{comment}\n\n{''.join(assignments)}{source.code}"


def _indented(code: str, module: str) -> str:
    """Return the code four spaces deeper; refuse code whose meaning that would change."""
    indented = textwrap.indent(code, "    ")
    if _meaning(ast.parse(f"if True:\n{indented}").body[0].body) != _meaning(ast.parse(code).body):
        raise NotPortableError(f"{module} needs a module with a string over several lines, which can't be indented.")
    return indented


def _meaning(body: list[ast.stmt]) -> str:
    """Return the syntax tree as text, in which the indentation of docstrings does not count."""
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = inspect.cleandoc(node.value.value)
    return ast.dump(ast.Module(body, []))


def _check(text: str, module: str) -> None:
    """Refuse lines in which diffusers would see an import of another package: it takes docstrings for code."""
    packages = re.findall(r"^\s*import\s+(\S+)\s*$", text, re.MULTILINE)
    packages += re.findall(r"^\s*from\s+(\S+)\s+import", text, re.MULTILINE)
    for name in packages:
        if name.split(".")[0] not in PACKAGES | LATE:
            raise NotPortableError(f"{module}: a line in the file reads as an import of {name!r}; reword it.")
