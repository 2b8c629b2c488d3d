"""The house's laws: who imports whom, how long things are, what no file says."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from hfgen.registry import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "diffusers", "transformers", "datasets", "accelerate")
KINDS = {"epsilon", "v_prediction", "flow_prediction"}
FAMILY = re.compile(
    r"diffusion|denois|(?<!work)flow|vae|gan$|gan_|vq|ddpm|ddim|autoregress|energy|elbo|adversar|critic|discriminat|"
    r"encoder|decoder|teacher|student",
    re.IGNORECASE,
)


@cache
def tree() -> list[Path]:
    """The project's files: git's and new ones that git does not ignore, or without git all but hidden and made ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        files = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        files = []
    return sorted(files) or [path for path in sorted(ROOT.rglob("*")) if path.is_file() and not made(path)]


def made(path: Path) -> bool:
    """Whether this file was made by a build or a run."""
    parts = path.relative_to(ROOT).parts
    return parts[0] in ("build", "dist", "outputs") or any(
        part.endswith(".egg-info") or part == "__pycache__" or (part.startswith(".") and part != ".ci")
        for part in parts
    )


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def named(path: Path) -> str:
    """hfgen/models/dit.py -> models/dit, pipelines/base.py -> pipelines/base, hfgen/models/__init__.py -> models."""
    name = str(path.relative_to(ROOT).with_suffix("").as_posix()).removeprefix("hfgen/")
    return name.removesuffix("__init__").rstrip("/") or "hfgen"


SHIMS = tuple(ROOT / "hfgen" / room / "__init__.py" for room in ("pipelines", "training"))
FILES = [
    path
    for path in tree()
    if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in ("hfgen", "pipelines", "training")
]
MODULES = {named(path): path for path in FILES if path not in SHIMS}
each_module = pytest.mark.parametrize("module", sorted(MODULES))


@cache
def law() -> dict[str, tuple[str, ...] | None]:
    """CONTRIBUTING.md's table: room -> what it may import besides itself; None is anything."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", text.split("## Import law")[1].split("\n## ")[0], re.MULTILINE)
    quoted = re.compile(r"`([^`]+)`")
    return {
        room: None if may.startswith("anything") else tuple(quoted.findall(may))
        for rooms, may in rows
        for room in quoted.findall(rooms)
    }


def imported(module: str) -> Iterator[str]:
    """What a module imports from hfgen, named as in MODULES; the name itself where there is no such module."""
    parts = ["hfgen"] if module == "hfgen" else ["hfgen", *module.split("/")]
    package = parts if MODULES[module].name == "__init__.py" else parts[:-1]
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.Import):
            names = [alias.name.replace(".", "/") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            within = node.module.split(".") if node.module else []
            names = ["/".join([*above, *within, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            if name.split("/")[0] in ("pipelines", "training"):
                yield f"top-level {name}"
            if name.split("/")[0] == "hfgen" and name != "hfgen/__version__":
                name = name.removeprefix("hfgen/")
                while name not in MODULES and "/" in name:
                    name = name.rpartition("/")[0]
                yield name if name in MODULES else "hfgen"


def may_import(module: str, target: str) -> bool:
    """Whether the law lets `module` import `target`."""
    room = module.split("/")[0]
    row = law()[module] if module in law() else law().get(f"{room}/*", ("no such row",))
    if row is None:
        return not target.startswith(("top-level", "training/")) or target == module
    allowed = row if module in law() else (*row, room)
    return any(target == name or target.startswith(f"{name}/") for name in allowed)


@each_module
def test_imports_obey_the_law(module: str) -> None:
    if module == "hfgen":
        assert set(imported(module)) == {"registry"}
        return
    assert module in law() or f"{module.split('/')[0]}/*" in law(), f"{module} has no row in CONTRIBUTING.md's table"
    assert not {target for target in imported(module) if not may_import(module, target)}


def test_the_law_is_read() -> None:
    assert law()["trainer/*"] == ("objectives/base", "options", "console", "disk", "utils")
    assert law()["registry"] == ()
    assert law()["cli"] is None
    assert "models/dit" in set(imported("models/build_denoiser"))
    assert "paths" in set(imported("objectives/denoising"))
    assert not may_import("trainer/loop", "objectives/denoising")
    assert not may_import("objectives/denoising", "hfgen")
    assert not may_import("models/dit", "trainer/loop")
    assert not may_import("disk/files", "utils/pictures")
    assert not may_import("families/run", "training/train_vae")


def test_the_law_is_short() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Import law")[1].split("\n## ")[0]
    assert len(re.findall(r"^\| `.* \|$", table, re.MULTILINE)) <= 15
    assert [room for room, row in law().items() if row is None or "hfgen" in row] == [
        *("families/*", "explain/*", "compare/*", "commands/*", "cli", "training/*")
    ]


def test_no_modules_import_each_other() -> None:
    graph = {module: {target for target in imported(module) if target in MODULES} - {module} for module in MODULES}
    left = dict(graph)
    while leaves := [module for module, targets in left.items() if not targets & set(left)]:
        for module in leaves:
            del left[module]
    rooms = {module for module in left if MODULES[module].name != "__init__.py"}
    assert not rooms, f"a circle of imports among {sorted(rooms)}"


def test_nobody_imports_by_a_string_what_the_law_forbids(monkeypatch) -> None:
    """Lazy imports are imports: below the last row of the table, importlib is the registry's alone."""
    users = {
        module
        for module in MODULES
        for node in ast.walk(parsed(MODULES[module]))
        if (isinstance(node, ast.Attribute | ast.Name) and last_name(node) in ("import_module", "__import__"))
    }
    bottom = {module for module in users if law().get(module, law().get(f"{module.split('/')[0]}/*")) is not None}
    assert bottom == {"registry"}


def functions(module: str) -> Iterator[tuple[str, int]]:
    """Each function of a module with its number of lines, docstring left out."""
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, lines


@each_module
def test_functions_and_files_are_short(module: str) -> None:
    limit = 400
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= limit
    assert not [(name, lines) for name, lines in functions(module) if lines > 45]


def test_rooms_are_where_a_newcomer_looks() -> None:
    root = {path.name for path in (ROOT / "hfgen").glob("*.py")}
    assert root == {"__init__.py", "registry.py", "paths.py", "options.py", "cli.py"}
    doors = {family.door.rpartition(".")[2] for family in FAMILIES.values()}
    assert {path.stem for path in (ROOT / "training").glob("*.py")} == {"__init__", *doors}
    for family in FAMILIES:
        assert (ROOT / "hfgen" / "families" / family / "options.py").is_file()
    rooms = {path.name for path in (ROOT / "hfgen").iterdir() if (path / "__init__.py").is_file()}
    tested = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").is_file()}
    assert tested - {"helpers"} <= rooms and rooms - tested <= {"training"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_door_shows_its_model_in_sixty_lines(family: str) -> None:
    door = ROOT / "training" / f"{FAMILIES[family].door.rpartition('.')[2]}.py"
    text = door.read_text(encoding="utf-8")
    assert text.count("\n") <= 60
    for part in ("networks=", "objective=", "pipeline=", "preview="):
        assert part in text, part
    others = [path.read_text(encoding="utf-8") for path in (ROOT / "training").glob("*.py") if path != door]
    lines = [line for line in text.splitlines() if len(line.strip()) > 40]
    frame = re.compile(r"^(from|import)|^    from|def main|parsed = parse|_args, |Parse options")
    own = [line for line in lines if not frame.search(line)]
    shared = [line for line in own if any(line in other for other in others)]
    assert len(shared) <= len(own) // 2, shared


@each_module
def test_what_is_public_has_a_docstring(module: str) -> None:
    tree = parsed(MODULES[module])
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert not [node.name for node in public if not ast.get_docstring(node)]
    assert ast.get_docstring(tree) or not tree.body


def last_name(node: ast.expr) -> str:
    """The last name of an expression: config.prediction_type and config["prediction_type"] -> prediction_type."""
    if isinstance(node, ast.Subscript):
        return last_name(node.slice)
    return getattr(node, "attr", None) or getattr(node, "id", None) or str(getattr(node, "value", ""))


def strings(node: ast.expr) -> set[str]:
    """The strings that an expression spells out, by itself or in a tuple, list or set."""
    parts = getattr(node, "elts", [node])
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


@each_module
def test_nobody_branches_on_a_prediction_kind(module: str) -> None:
    found = []
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            said, names = set().union(*map(strings, sides)), {last_name(side) for side in sides}
            if said & KINDS or (said and names & {"prediction", "prediction_type"}):
                found.append(node.lineno)
        elif isinstance(node, ast.MatchValue) and strings(node.value) & KINDS:
            found.append(node.value.lineno)
    assert not found, f"lines {found} compare a prediction kind with a string: use its row"


def test_the_trainer_knows_no_family() -> None:
    found = set()
    tree = parsed(MODULES["trainer/loop"])
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None) or ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            name = node.value
        if name in ("isinstance", "issubclass") or FAMILY.search(name):
            found.add(name)
    assert not found


@each_module
def test_nothing_can_load_code(module: str) -> None:
    never = {"pickle", "cloudpickle", "register_for_checkpointing", "trust_remote_code", "exec", "eval"}
    found = set()
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.name for alias in node.names} | {getattr(node, "module", None)}
        elif isinstance(node, ast.Attribute | ast.Name):
            found.add(node.id if isinstance(node, ast.Name) else node.attr.replace("eval", ".eval"))
        elif isinstance(node, ast.keyword):
            found.add(node.arg)
    assert not found & never  # register_for_checkpointing: accelerate would unpickle without weights_only


WRITERS = {"save_file", "save_model", "savez", "to_csv", "rename"}
WITH_OWNER = {f"{owner}.{name}" for owner in ("json", "yaml", "torch", "np") for name in ("dump", "save")}
RAW = {
    "disk/files": "the one place for a file",
    "disk/saves": "the one place for files that belong together",
    "disk/lock": "the name of the writer, which nothing but a message needs",
    "disk/yaml_files": "YAML as a text, and no file",
    "console/notes": "a standard stream",
    "trainer/engine": "into the draft of a checkpoint",
    "trainer/sharded": "into the draft of a checkpoint",
    "trainer/checkpoint": "a whole folder is sealed, synced and renamed",
    "models/torch_model": "is saved without hfgen too; `HFGenPipeline.save_pretrained` gives it a temporary folder",
    "families/best_checkpoint": "renames whole folders",
    "families/rollback": "renames whole folders",
    "compare/jobs": "appends what a process prints, for people",
}
"""Modules that write to files by themselves, with the reason. All others do so through `hfgen.disk.files`."""


def raw_writes(tree: ast.Module) -> Iterator[str]:
    """Calls that write to a file, but not to the temporary name (`draft`) or the buffer in memory (`buffer`)."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, whole = last_name(node.func), ast.unparse(node.func)
        words = [value.value for value in ast.walk(node) if isinstance(value, ast.Constant)]
        opens = name == "open" and any(re.fullmatch(r"[wax]b?\+?|r\+b?|rb\+", str(word)) for word in words)
        method = isinstance(node.func, ast.Attribute) and name in ("write_text", "write_bytes")
        saves = (
            name == "save" and "." in whole and whole.split(".")[-2] not in ("preview", "reconstructions", "checkpoint")
        )
        if opens or method or saves or name in WRITERS or whole in WITH_OWNER or whole in ("os.replace", "os.rename"):
            target = " ".join(ast.unparse(value) for value in [*node.args, *(key.value for key in node.keywords)])
            if not re.search(r"\b(draft|buffer)\b", target):
                yield f"line {node.lineno}: {whole}"


def defined_twice(tree: ast.Module) -> Iterator[str]:
    """Functions and classes that a later one of the same name in the same body replaces; Ruff sees none of a class."""
    for body in (node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)):
        seen: set[str] = set()
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list:
                if node.name in seen:
                    yield f"line {node.lineno}: {node.name}"
                seen.add(node.name)


@each_module
def test_nothing_is_defined_twice(module: str) -> None:
    assert not list(defined_twice(parsed(MODULES[module])))


def test_the_law_of_definitions_sees() -> None:
    code = "class A:\n    def f(self): ...\n    def g(self): ...\n    def f(self): ...\n"
    assert list(defined_twice(ast.parse(code))) == ["line 4: f"]


@each_module
def test_files_are_written_whole(module: str) -> None:
    found = list(raw_writes(parsed(MODULES[module])))
    assert bool(found) == (module in RAW), found or f"{module} writes nothing by itself any more: take it out of RAW"


@pytest.mark.parametrize(
    "code",
    [
        "path.write_text(text)",
        "open(path, 'w').write(text)",
        "path.open('ab')",
        "json.dump(values, file)",
        "torch.save(state, path)",
        "picture.save(folder / name)",
        "save_file(tensors, path)",
        "os.replace(a, b)",
        "np.save(path, x)",
    ],
)
def test_the_law_of_whole_files_sees(code: str) -> None:
    assert list(raw_writes(ast.parse(code)))
    assert not list(raw_writes(ast.parse("write_text(path, text); open(path); torch.save(x, draft); a.replace(b, c)")))


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the project."""
    for path in tree():
        try:
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


@pytest.mark.parametrize(
    "never",
    [
        pytest.param(r"(?<![\w.:/-])/(?:home|root|Users|work)/\w", id="path of one machine"),
        pytest.param(r"(?<![\w.-])/opt/(?:venv|wheels)", id="folder of one machine"),
        pytest.param(r"py(?:pi\.org|thonhosted)|registry\.(?:npm)", id="host of a registry"),
        pytest.param(r"\bTO(?:DO)\b|\bFIX(?:ME)\b|\bXX(?:X)\b", id="note to self"),
    ],
)
def test_no_file_says(never: str) -> None:
    assert not [f"{path}: {match[0]}" for path, text in texts() for match in re.finditer(never, text)]


def test_ruff_is_one_version() -> None:
    hook = re.search(r"ruff-pre-commit\s+rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    pinned = re.search(r"^ruff==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert hook[1] == pinned[1]


def test_help_imports_no_torch() -> None:
    code = f"""
import runpy, sys
sys.argv = ["hfgen", "--help"]
try:
    runpy.run_module("hfgen.cli", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
    assert result.stdout.splitlines()[-1] == "imported:"
