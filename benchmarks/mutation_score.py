"""Mutation score: the share of one-token changes of the mathematics that the tests notice.

    python benchmarks/mutation_score.py --room paths --count 100 --seed 0 --output_dir outputs/mutation

A mutant is hfgen with one change: an operator, a number, a comparison, a removed call or statement, two swapped
arguments. Mutants are drawn at random. Each runs, in a copy of the checkout, the tests that execute its line, the
quickest first. It is killed if one of them fails or hangs. `equivalent_mutants.json` lists the mutants that compute the
same thing, with the reason; they do not count. Prints the score of each room, and each survivor as a diff.

A run goes on where the last one stopped: `<room>.jsonl` holds a row for each mutant, and `--retry_survivors` tries
those again that no test had noticed. The tests of a room's own folders are recorded, once for each version. A hundred
mutants take about ten minutes, on one core.

Of libraries for this, mutmut 3 changes no module level (here the tables of prediction kinds, losses and weights) and no
decorated function; cosmic-ray starts the interpreter and imports torch anew for each mutant, and runs all tests.
"""

import argparse
import ast
import compileall
import contextlib
import hashlib
import importlib
import itertools
import json
import math
import os
import py_compile
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = [
    *("augmented_flow", "calibration", "conditionals", "continuous_transformer", "coupling_flow", "elementwise"),
    *("fixed_point", "flow_layers", "flow_prior", "interval", "lipschitz", "priors", "residual_determinants"),
    *("residual_flow", "transformer_flow", "variance_head", "vq"),
]
PIPELINES = [
    *("anomaly", "autoregressive", "energy", "energy_terms", "guidance", "guides", "inversion", "latent_denoising"),
    *("latents", "normalizing_flow", "sampling", "vae", "word_vectors"),
]
ROOMS = {
    "paths": ["hfgen/paths.py"],
    "objectives": ["hfgen/objectives/*.py"],
    "schedulers": ["hfgen/schedulers/*.py"],
    "likelihoods": ["hfgen/distributions/*.py"],
    "metrics": [f"hfgen/metrics/{name}.py" for name in ("detection", "distances", "measures", "modes", "neighbours")]
    + [f"hfgen/metrics/{name}.py" for name in ("perceptual", "pixels", "straightness")],
    "networks": [f"hfgen/models/{name}.py" for name in NETWORKS],
    "pipelines": [f"pipelines/{name}.py" for name in PIPELINES],
}
"""Room -> the files of its mathematics."""

TESTS = {
    "paths": ["tests/test_paths*.py"],
    "likelihoods": ["tests/distributions/test_*.py"],
    **{room: [f"tests/{room}/test_*.py"] for room in ("objectives", "schedulers")},
    "metrics": ["tests/metrics/test_*.py", "tests/evaluation/test_agreement.py"],
    "networks": [f"tests/models/test_{name}.py" for name in ("*flow*", "autoencoders", "autoregressive", "continuous")]
    + [
        f"tests/models/test_{name}.py" for name in ("calibration", "defaults", "elementwise", "priors", "variance_head")
    ],
    "pipelines": ["tests/pipelines/test_*.py", "tests/families/test_anomaly.py"],
}
"""Room -> the tests that may notice its mutants."""

OPERATORS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.Pow: ("**", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
    ast.Lt: ("<", "<=", ">"), ast.LtE: ("<=", "<", ">="), ast.Gt: (">", ">=", "<"), ast.GtE: (">=", ">", "<="),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
"""Operator -> its token, and what it is changed to."""

PAIRS = [("mean", "sum"), ("min", "max"), ("amin", "amax"), ("ceil", "floor"), ("any", "all"), ("randn", "rand")]
SWAPS = {**dict(PAIRS), **{b: a for a, b in PAIRS}}
REMOVABLE = {"square", "sqrt", "exp", "log", "abs", "clamp", "relu", "round", "diff", "detach", "softmax", "norm"}
"""Methods x.f(...) that are also replaced by x."""

NAMES = ("file", "place", "before", "after")
"""What names a mutant, see `Mutant.facts`."""

MODULES = {"torch", "math", "np"}
SYMMETRIC = {"maximum", "minimum", "hypot", "min", "max", "zip", "isinstance", "ValueError"}


class Mutant(NamedTuple):
    """A change of the bytes start:end of a file.

    Attributes:
        place: the function or class around it.
        lines: sets of lines whose execution means that the change is executed, the best first. Of a constant these
            are the lines that name it.
    """

    path: str
    place: str
    start: int
    end: int
    new: str
    line: int
    lines: tuple[frozenset[int], ...]

    def apply(self, source: bytes) -> bytes:
        """Return the changed source."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def facts(self, source: bytes) -> dict[str, str]:
        """Return place and lines before and after: what names the mutant, wherever the lines move."""
        first, last = source.rfind(b"\n", 0, self.start) + 1, source.find(b"\n", self.end)
        after = source[first : self.start] + self.new.encode() + source[self.end : last]
        return {
            "file": self.path,
            "place": self.place,
            "before": source[first:last].decode().strip(),
            "after": after.decode().strip(),
        }


class Mutations(ast.NodeVisitor):
    """All mutants of one file, in `found`. Annotations, decorators and the words of messages are not changed."""

    def __init__(self, path: str, source: bytes):
        self.path, self.source, self.found = path, source, []
        self.starts = [0, *(i + 1 for i, byte in enumerate(source) if byte == 10)]
        self.header: frozenset[int] = frozenset()  # lines of the innermost statement
        self.place, self.in_function, self.at_import = "", False, True

    def visit(self, node: ast.AST) -> None:
        """Visit a node, with the lines of its statement in `header`.

        What is computed `at_import`, such as a constant or the default of an argument, is computed in whichever test
        imports the file first. It matters to those that execute the header: the lines that name the constant, or the
        body of the function.
        """
        outer = self.header, self.place, self.in_function, self.at_import
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            self.place = f"{self.place}.{node.name}".strip(".")
            self.in_function |= isinstance(node, ast.FunctionDef)
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            first = min(line.lineno for line in [node, *getattr(node, "decorator_list", [])])
            self.header = frozenset(range(first, body[0].lineno if body else node.end_lineno + 1))
            if isinstance(node, ast.FunctionDef):
                self.header = frozenset(range(body[0].lineno, node.end_lineno + 1))
                self.at_import = False
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and not self.in_function:
                self.header = self.uses(node)
        for start, end, new in itertools.chain(*(change(node) for change in self.changes(node))):
            line = self.source.count(b"\n", 0, start) + 1
            own = frozenset(range(line, line + self.source.count(b"\n", start, end) + 1))
            lines = (self.header,) if self.at_import else (own, self.header)
            self.found.append(Mutant(self.path, self.place, start, end, new, line, lines))
        if not isinstance(node, (ast.Raise, ast.JoinedStr)):
            skipped = {"annotation", "returns", "decorator_list"}
            at_import = self.at_import
            for name, value in ast.iter_fields(node):
                self.at_import = at_import or isinstance(node, ast.arguments)
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST) and name not in skipped:
                        self.visit(child)
        self.header, self.place, self.in_function, self.at_import = outer

    def uses(self, node: Any) -> frozenset[int]:
        """Return the lines that name what a statement assigns."""
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        words = [set(re.findall(r"\w+", line)) for line in self.source.decode().splitlines()]
        return frozenset(number for number, found in enumerate(words, 1) if found & names)

    def changes(self, node: ast.AST) -> list[Any]:
        """Return the functions node -> (start, end, new text) that apply to a node of this kind."""
        kinds = {
            ast.BinOp: [self.operator], ast.BoolOp: [self.operator], ast.Compare: [self.operator],
            ast.UnaryOp: [self.sign], ast.Constant: [self.constant], ast.Call: [self.call, self.arguments],
            ast.Expr: [self.statement], ast.AugAssign: [self.statement], ast.Raise: [self.statement],
            ast.Assign: [self.statement],
        }  # fmt: skip
        return kinds.get(type(node), [])

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return the offsets of the first byte of a node and of the byte after it."""
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def operator(self, node: Any) -> Iterator[tuple[int, int, str]]:
        """Change an operator, which stands between two operands."""
        operands = {
            ast.BinOp: lambda: ([node.left, node.right], [node.op]),
            ast.BoolOp: lambda: (node.values, [node.op] * (len(node.values) - 1)),
            ast.Compare: lambda: ([node.left, *node.comparators], node.ops),
        }
        values, operators = operands[type(node)]()
        for (left, right), op in zip(itertools.pairwise(values), operators, strict=True):
            token, *others = OPERATORS.get(type(op), ("",))
            start = self.source.find(token.encode(), self.span(left)[1], self.span(right)[0])
            yield from ((start, start + len(token), other) for other in others)

    def sign(self, node: ast.UnaryOp) -> Iterator[tuple[int, int, str]]:
        """Remove a minus, a `not` or a `~`."""
        start = self.span(node)[0]
        yield start, start + {ast.USub: 1, ast.Not: 4, ast.Invert: 1}[type(node.op)], ""

    def constant(self, node: ast.Constant) -> Iterator[tuple[int, int, str]]:
        """Negate a truth value, and change a number."""
        if isinstance(node.value, bool):
            yield *self.span(node), str(not node.value)
        elif isinstance(node.value, (int, float)):
            yield from ((*self.span(node), repr(value)) for value in sorted({node.value + 1, node.value * 2 or 1}))

    def call(self, node: ast.Call) -> Iterator[tuple[int, int, str]]:
        """Remove a method call, or call its counterpart."""
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        end = self.span(node.func)[1]
        if name in SWAPS:
            yield end - len(name), end, SWAPS[name]
        of_module = isinstance(getattr(node.func, "value", None), ast.Name) and node.func.value.id in MODULES
        if name in REMOVABLE and isinstance(node.func, ast.Attribute) and not of_module:
            yield self.span(node.func.value)[1], self.span(node)[1], ""

    def arguments(self, node: ast.Call) -> Iterator[tuple[int, int, str]]:
        """Swap the first two arguments."""
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if len(node.args) < 2 or name in SYMMETRIC or any(isinstance(arg, ast.Starred) for arg in node.args[:2]):
            return
        (a, b), (c, d) = (self.span(arg) for arg in node.args[:2])
        first, between, second = self.source[a:b], self.source[b:c], self.source[c:d]
        if first != second:
            yield a, d, (second + between + first).decode()

    def statement(self, node: Any) -> Iterator[tuple[int, int, str]]:
        """Remove a call whose result is not used, an error, or the new value of a name."""
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call):
            return
        if isinstance(node, ast.Assign):
            targets = {name.id for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)}
            if not targets <= {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}:
                return
        yield *self.span(node), "pass"


def mutants_of(room: str, tree: Path) -> list[Mutant]:
    """Return all mutants of a room, in the order of its files."""
    mutants = []
    for path in sorted(path for pattern in ROOMS[room] for path in tree.glob(pattern)):
        visitor = Mutations(str(path.relative_to(tree)), path.read_bytes())
        visitor.visit(ast.parse(path.read_bytes()))
        mutants += visitor.found
    return list(dict.fromkeys(mutants))


# --- running tests ----------------------------------------------------------------------------------------------------


def sources(tree: Path) -> list[Path]:
    """Return the files of hfgen in a tree."""
    return sorted([*(tree / "hfgen").rglob("*.py"), *(tree / "pipelines").glob("*.py")])


class Recorder:
    """A pytest plugin that records which lines of the rooms each test executes, and how long it takes, also in the
    processes that it starts. A test that takes `longest` seconds on the processor is shown to no mutant."""

    def __init__(self, tree: Path, longest: float):
        self.longest, self.tests = longest, {}
        self.files = {str(path): str(path.relative_to(tree)) for path in sources(tree)}

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool:
        """Run a test while tracing."""
        from _pytest.runner import runtestprotocol

        lines: set[tuple[str, int]] = set()

        def trace(frame: Any, event: str, argument: Any) -> Any:
            file = self.files.get(frame.f_code.co_filename)
            if file is None:
                return None
            lines.add((file, frame.f_lineno))
            return trace

        def stop(number: int, frame: Any) -> None:
            raise TimeoutError

        start = sum(os.times()[:4])  # on the processor, whatever else the machine does
        signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, self.longest)
        sys.settrace(trace)
        try:
            reports = runtestprotocol(item, nextitem=nextitem, log=True)
        finally:
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = sum(os.times()[:4]) - start
        if seconds <= self.longest and all(report.passed for report in reports):
            self.tests[item.nodeid] = [seconds, sorted(lines)]
        return True


def in_a_child(
    tree: Path, words: Sequence[str], seconds: int, record: Path | None = None, longest: float = math.inf
) -> int:
    """Run pytest in a fork of this process, which has imported the libraries. Return its exit status.

    Args:
        tree: the copy of the checkout.
        words: arguments of pytest.
        seconds: time on the processor after which it is stopped; the status is then -SIGXCPU. At ten times this time
            by the clock it is killed; the status is then -SIGKILL.
        record: the file for what a `Recorder` records; None: nothing is recorded.
        longest: seconds of a test that is recorded.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os._exit(_run_pytest(tree, words, record, longest))
    deadline = time.monotonic() + 10 * seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.02)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(ended[1])


def _run_pytest(tree: Path, words: Sequence[str], record: Path | None, longest: float) -> int:
    import pytest

    recorder = Recorder(tree, longest)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "--assert=plain", *words]
    status = pytest.main(options, [recorder] if record else [])
    if record:
        libraries = [
            name
            for name in sys.modules
            if name.split(".")[0] not in ("hfgen", "pipelines", "training", "tests", "__main__")
        ]
        record.write_text(json.dumps({"libraries": libraries, "tests": recorder.tests}))
    return int(status)


def recorded(patterns: Sequence[str], tree: Path, folder: Path, longest: float) -> dict[str, list]:
    """Return for each test of some files its duration and lines, and import the libraries of these tests.

    Each file of tests is recorded once for its text and that of hfgen.
    """
    source = b"".join(path.read_bytes() for path in sources(tree))
    tests: dict[str, list] = {}
    for file in sorted({file for pattern in patterns for file in tree.glob(pattern)}):
        digest = hashlib.sha256(source + file.read_bytes()).hexdigest()[:16]
        record = folder / "recorded" / f"{file.stem}-{digest}-{longest:g}.json"
        if not record.exists():
            print(f"Recording {file.relative_to(tree)}", flush=True)
            record.parent.mkdir(parents=True, exist_ok=True)
            in_a_child(tree, [str(file.relative_to(tree)), "-k", "not two_processes"], 3600, record, longest)
        rows = json.loads(record.read_text())
        for name in rows["libraries"]:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        tests |= rows["tests"]
    return tests


def tests_for(
    mutant: Mutant, tests: dict[str, list], by_line: dict[tuple[str, int], set[str]], longest: float
) -> list[str]:
    """Return the tests that execute the change, the quickest first, of `longest` seconds in all; of what runs at
    import, those that use it and then others."""

    def shown(names: set[str]) -> list[str]:
        """Return the quickest of some tests."""
        quickest = sorted(names, key=lambda test: tests[test][0])
        total = itertools.accumulate(tests[test][0] for test in quickest)
        return [test for test, seconds in zip(quickest, total, strict=True) if seconds <= longest]

    ranges = [set().union(*(by_line.get((mutant.path, line), set()) for line in lines)) for lines in mutant.lines]
    chosen = shown(next((names for names in ranges if names), set()))
    if len(mutant.lines) == 1:  # a test may read a default or an attribute where no line of the file does
        chosen += shown(set(tests).difference(chosen))
    return chosen


# --- the score --------------------------------------------------------------------------------------------------------


def judge(mutant: Mutant, tree: Path, names: list[str], seconds: float) -> str:
    """Return "killed", "hangs", "survived", or "no program" for what can't be compiled."""
    path = tree / mutant.path
    source = path.read_bytes()
    changed = mutant.apply(source)
    try:
        compile(changed, mutant.path, "exec")
    except (SyntaxError, ValueError):
        return "no program"
    if not names:
        return "survived"
    path.write_bytes(changed)
    try:
        status = in_a_child(tree, ["-x", *names], 20 + int(3 * seconds))
    finally:
        path.write_bytes(source)
    return {0: "survived", -signal.SIGXCPU: "hangs", -signal.SIGKILL: "hangs"}.get(status, "killed")


def check_unchanged(tree: Path, tests: dict[str, list], longest: float) -> None:
    """Raise SystemExit if the quickest tests fail without a mutation: then what fails says nothing of mutants."""
    quickest = sorted(tests, key=lambda test: tests[test][0])
    total = itertools.accumulate(tests[test][0] for test in quickest)
    names = [test for test, seconds in zip(quickest, total, strict=True) if seconds <= longest]
    if not names or in_a_child(tree, ["-x", *names], 20 + int(3 * longest)):
        raise SystemExit("Without a mutation tests fail, or none is quick enough: run them by pytest.")


def score(room: str, tree: Path, folder: Path, args: argparse.Namespace) -> None:
    """Judge `args.count` mutants of a room and print its score and its survivors."""
    tests = recorded(args.tests or TESTS[room], tree, folder, args.longest)
    file = folder / f"{room}-{args.seed}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    rows = [row for row in rows if not (args.retry_survivors and row["verdict"] == "survived")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = {tuple(row[key] for key in NAMES): row for row in rows}
    equivalent = {tuple(row[key] for key in NAMES) for row in _equivalent()}
    by_line: dict[tuple[str, int], set[str]] = {}
    for test, (_, lines) in tests.items():
        for path, line in lines:
            by_line.setdefault((path, line), set()).add(test)
    mutants = mutants_of(room, tree)
    order = sorted(range(len(mutants)), key=lambda index: hashlib.sha256(f"{args.seed} {index}".encode()).digest())
    mutants = [mutants[index] for index in order]
    check_unchanged(tree, tests, args.longest)
    judged: list[dict] = []
    excluded = 0
    for mutant in mutants:
        facts = mutant.facts((tree / mutant.path).read_bytes())
        key = tuple(facts.values())
        if len(judged) == args.count:
            break
        if key in equivalent:
            excluded += 1
            continue
        if key not in known:
            names = tests_for(mutant, tests, by_line, args.longest)
            verdict = judge(mutant, tree, names, sum(tests[test][0] for test in names))
            known[key] = {**facts, "line": mutant.line, "verdict": verdict}
            with file.open("a") as out:
                out.write(json.dumps(known[key]) + "\n")
        if known[key]["verdict"] != "no program":
            judged.append(known[key])
    survivors = [row for row in judged if row["verdict"] == "survived"]
    for row in survivors:
        print(f"\n{row['file']}:{row['line']}\n-   {row['before']}\n+   {row['after']}")
    share = 1 - len(survivors) / max(1, len(judged))
    print(
        f"\n{room}: {share:.1%} of {len(judged)} mutants killed (seed {args.seed}; {len(mutants)} in all; {excluded} "
        "equivalent ones left out)",
        flush=True,
    )


def _equivalent() -> list[dict[str, str]]:
    return json.loads((Path(__file__).parent / "equivalent_mutants.json").read_text())


def copy_checkout(tree: Path) -> None:
    """Copy the files of the checkout that git knows or would add, and compile them.

    Compiled files are checked by the hash of their source: a changed file may have the size and the time of the file
    before the change.
    """
    words = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    for name in subprocess.run(words, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for folder in ("hfgen", "pipelines", "training", "tests"):
        compileall.compile_dir(tree / folder, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)


def main() -> None:
    """Judge mutants of each room that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--room", choices=ROOMS, action="append", help="may be repeated; default: all rooms")
    parser.add_argument("--count", type=int, default=100, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--longest", type=float, default=12, help="seconds of the tests of one mutant")
    parser.add_argument("--tests", action="append", help="files of tests, in place of the room's own; may be repeated")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/mutation"))
    parser.add_argument("--retry_survivors", action="store_true", help="judge again what no test had noticed")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    folder = args.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary).resolve()
        copy_checkout(tree)
        os.environ["PYTHONPATH"] = str(tree)
        for room in args.room or ROOMS:
            score(room, tree, folder, args)


if __name__ == "__main__":
    main()
