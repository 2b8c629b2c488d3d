"""A class and all that it needs of hfgen as one source file, for people who have diffusers and no hfgen.

diffusers takes a component's class from a single file in the component's folder, so what the class's module imports of
hfgen is put in front of it: modules in the order in which they need each other, hfgen's own imports taken out, all
other imports gathered at the top. Sources are read and joined, never run. What could not work there is refused here.
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
"""What a shipped file may import."""

LATE = frozenset({"scipy"})
"""What functions in it may import besides, when they are called: diffusers' own schedulers do the same."""

_FILE = """# SPDX-License-Identifier: Apache-2.0
#
# {name}, for diffusers where hfgen is not installed. hfgen {version} wrote this file when the pipeline was saved, and
# never reads it: with hfgen installed, HFGenPipeline.from_pretrained uses the installed class. It holds, in this order:
#
{modules}
#
# Licence: Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0

{imports}

# diffusers runs this file again in the same module whenever it loads it. What is defined stays as it is: objects that
# were made before must remain instances of these classes.
if "{name}" not in globals():
{body}
"""
MARK = _FILE.partition("\n")[0] + "\n#\n"
"""How every shipped file begins."""


class NotPortableError(ValueError):
    """A class can't be shipped as one file; says why, and where."""


class Standin(NamedTuple):
    """What is shipped in place of a module that can't be.

    Args:
        module: the module to inline instead.
        bases: class -> the bases (names, comma-separated) that its subclasses get in its place.
        imports: module -> name, what those bases have to be imported from.
    """

    module: str
    bases: Mapping[str, str]
    imports: Mapping[str, str]


class ShippedFile(NamedTuple):
    """A source file: its name without `.py`, which is unique to its contents, and its text."""

    stem: str
    text: str


class _Source(NamedTuple):
    """A module: its docstring, its code without docstring and imports, its names, and its imports."""

    doc: str
    code: str
    defined: set[str]
    external: dict[str, str]  # local name -> import statement
    internal: dict[str, list[ast.alias]]  # module of hfgen -> names


def one_file(name: str, module: str, standins: Mapping[str, Standin] | None = None) -> ShippedFile:
    """The source file for the class `name` of `module`; `standins` says what is shipped in place of which module.

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
    listed = "\n".join(f"#     {key}" for key in sources)
    text = _FILE.format(name=name, version=__version__, modules=listed, imports=imports, body=body)
    _check(text, module)
    digest = hashlib.sha256(f"{imports}\n{body}".encode()).hexdigest()[:8]
    return ShippedFile(f"hfgen_{name}_{digest}", text)


def _collect(module: str, sources: dict[str, _Source], standins: Mapping[str, Standin]) -> None:
    """Put the module, and before it what it needs, into `sources`."""
    source = _read(module, standins)
    for needed in source.internal:
        target = standins[needed].module if needed in standins else needed
        if target not in sources and target != module:
            _collect(target, sources, standins)
    sources[module] = source


def _read(module: str, standins: Mapping[str, Standin]) -> _Source:
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
            if origin.split(".")[0] == "hfgen":
                if node not in top or isinstance(node, ast.Import):
                    raise NotPortableError(
                        f"{module}, line {node.lineno}: a shipped module imports names of hfgen, on top."
                    )
                internal.setdefault(origin, []).extend(node.names)
            elif origin.split(".")[0] not in (PACKAGES if node in top else PACKAGES | LATE):
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
    """The module that an import statement names."""
    if isinstance(node, ast.Import):
        return node.names[0].name
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _statements(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Each name that an import binds, and a statement that binds it alone."""
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
    """In `lines`, give subclasses of what is not shipped the bases that are; any other use of it is refused."""
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
    """All imports of other packages. Refuses a name that would mean two things in one file."""
    owners: dict[str, str] = {}
    extra = {name: f"from {module} import {name}" for s in standins for module, name in s.imports.items()}
    found = [("", _Source("", "", set(), extra, {})), *sources.items()]
    for module, source in found:
        for name, what in [*source.external.items(), *((name, f"{module}.{name}") for name in source.defined)]:
            if owners.setdefault(name, what) != what:
                raise NotPortableError(
                    f"{name} would mean both {owners[name]!r} and {what!r} in one file; rename one of them."
                )
    statements = {statement for _, source in found for statement in source.external.values()}
    return "\n".join(sorted(statements, key=lambda s: (s.startswith("from"), s)))


def _section(module: str, source: _Source, sources: Mapping[str, _Source], standins: Mapping[str, Standin]) -> str:
    """The module's part of the file: a heading, what its docstring says, names it gives others' things, its code."""
    heading = f"# --- {module} ".ljust(116, "-")
    comment = "\n".join(f"# {line}".rstrip() for line in source.doc.splitlines())
    inherited = {base for standin in standins.values() for base in standin.bases}
    known = set().union(*(other.defined for other in sources.values()))
    renamed = []
    for needed, aliases in source.internal.items():
        for alias in aliases:
            if alias.name not in known | inherited or (alias.asname and alias.name in inherited):
                raise NotPortableError(f"{module} imports {alias.name} of {needed}, which is no name defined there.")
            if alias.asname:
                renamed.append(f"{alias.asname} = {alias.name}\n")
    return f"{heading}\n{comment}\n\n{''.join(renamed)}{source.code}"


def _indented(code: str, module: str) -> str:
    """The code, four spaces deeper and the same as before."""
    deeper = textwrap.indent(code, "    ")
    if _meaning(ast.parse(f"if True:\n{deeper}").body[0].body) != _meaning(ast.parse(code).body):
        raise NotPortableError(f"{module} needs a module with a string over several lines, which can't be indented.")
    return deeper


def _meaning(body: list[ast.stmt]) -> str:
    """The syntax tree as text, in which docstrings are the same however deep they are indented."""
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = inspect.cleandoc(node.value.value)
    return ast.dump(ast.Module(body, []))


def _check(text: str, module: str) -> None:
    """Look at the file as diffusers does, which takes any line that looks like an import for one."""
    named = re.findall(r"^\s*import\s+(\S+)\s*$", text, re.MULTILINE)
    named += re.findall(r"^\s*from\s+(\S+)\s+import", text, re.MULTILINE)
    for name in named:
        if name.split(".")[0] not in PACKAGES | LATE:
            raise NotPortableError(f"{module}: a line in the file reads as an import of {name!r}; reword it.")
