"""Damaged and hostile files: folders of every family, data sets and configurations, changed at random.

    python -m tests.helpers.fuzz --cases 10000 --seed 0

Whatever a file claims, reading it ends in what docs/hub.md promises: something usable, or a ValueError or OSError with
a message; within seconds and without much memory. Each case is drawn from (seed, number), so that one can be repeated:
`--only 4711`.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hfgen.options import Options, option, parse_or_exit, parser
from hfgen.utils.ranges import AT_LEAST_0, COUNT, SEED

SECONDS = 5.0
"""Time of a case: one to the promise, the rest to a busy machine."""

MEBIBYTES = 200
"""Memory that all cases of a run may add."""

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**24, 2**24 + 1, 2**31, 2**63, -(2**40), 10**6, 10**30),
    *(0.0, -0.5, 0.5, 2.5, 1e-300, 1e8, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "0", "../..", "/etc/passwd", "/dev/zero", "file:///etc/passwd", "http://127.0.0.1:1/x", "hfgen"),
    *("DiTModel", "\x00", "\x1b[2J", "\u202e", "é" * 99, "a" * 5000),
    *([], [None], ["hfgen"], ["hfgen", "DiTModel"], ["diffusers", "AutoModel"], ["os", "system"], [[1]], [1] * 5000),
    *({}, {"": 0}, {"0": "a"}, {"weight_map": {}}, {"a": {"b": {"c": []}}}),
)
NAMES = (
    *("_class_name", "quantization_config", "auto_map", "num_layers", "num_train_timesteps", "trained_betas"),
    *("path", "sample_size", "num_classes", "label_names", "_training_data", "dtype", "data_files", "*", ""),
)
PLACES = ("/dev/zero", "/dev/null", "/etc/passwd", "nowhere", ".", "/dev/stdin")
"""Where a link in the place of a file leads."""


def mutated(values: Any, chance: random.Random) -> Any:
    """The object with one to three entries changed, removed, added, or moved."""
    for _ in range(chance.randint(1, 3)):
        place = chance.choice([values, *(v for v in _parts(values) if isinstance(v, dict | list) and v)])
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            continue
        key = chance.choice([*keys, chance.choice(NAMES)] if isinstance(place, dict) else keys)
        kind = chance.random()
        if kind < 0.15 and isinstance(place, dict) and key in place and len(place) > 1:
            del place[key]
        elif kind < 0.3 and isinstance(place, dict):
            place[key] = copy.deepcopy(chance.choice(list(place.values())))
        elif kind < 0.45 and isinstance(place, dict) and isinstance(place.get(key), int | float):
            place[key] = chance.choice(
                [place[key] * 1000, -place[key], place[key] + 1, float(place[key]), str(place[key])]
            )
        else:
            place[key] = copy.deepcopy(chance.choice(VALUES))
    return values


def _parts(values: Any) -> list[Any]:
    return list(values.values()) if isinstance(values, dict) else list(values)


def scrambled(content: bytes, chance: random.Random) -> bytes:
    """The bytes with some flipped, cut off, repeated or inserted."""
    content = bytearray(content)
    kind = chance.randint(0, 3)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(content) or 1)
        if kind == 0 and content:
            content[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            content[place:place] = chance.choice([b"[" * 5000, b"\xff\xfe", b"}", b"\x00" * 9, b'"', b"9" * 5000])
        else:
            content[place:place] = content[: chance.randrange(len(content) or 1)]
    return bytes(content)


def with_other_weights(content: bytes, chance: random.Random) -> bytes:
    """A file of safetensors with one number that is not finite, or one tensor of another dtype or length."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    name = chance.choice([name for name in header if name != "__metadata__"])
    start, end = header[name]["data_offsets"]
    if chance.random() < 0.5 and header[name]["dtype"] == "F32" and end > start:
        place = chance.randrange(start, end, 4)
        body[place : place + 4] = struct.pack("<f", chance.choice([float("nan"), float("inf"), -float("inf"), 1e38]))
    else:
        header[name]["dtype"] = chance.choice(["I32", "U32", "F64", "BF16", "F8_E4M3", "BOOL", "I64"])
        if chance.random() < 0.5 and header[name]["shape"]:
            header[name]["shape"] = [2 * header[name]["shape"][0], *header[name]["shape"][1:]]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def damaged(name: str, content: bytes, chance: random.Random) -> bytes:
    """A file's content after an accident or an attack; its name says of what kind it is."""
    if chance.random() < 0.3:
        return scrambled(content, chance)
    if name.endswith(".safetensors"):
        if chance.random() < 0.5:
            return with_other_weights(content, chance)
        (length,) = struct.unpack("<Q", content[:8])
        header = json.dumps(mutated(json.loads(content[8 : 8 + length]), chance)).encode()
        claimed = chance.choice([len(header)] * 4 + [0, len(header) + 1, 2**40, 2**64 - 1])
        return struct.pack("<Q", claimed) + header + content[8 + length :]
    if name.endswith(".json"):
        return json.dumps(mutated(json.loads(content), chance)).encode()
    if name.endswith((".yaml", ".md")):
        return yaml_of(content, chance)
    if name.endswith((".csv", ".jsonl", ".cls", ".txt")):
        return content.replace(*chance.choice(SWAPS)) if chance.random() < 0.8 else scrambled(content, chance)
    return scrambled(content, chance)


SWAPS = (
    *((b".png", place) for place in (b".eps", b"", b".png/../../../../etc/passwd", b"\x00")),
    *((b"a", b"../../../../etc/passwd"), (b"a", b"/etc/passwd"), (b"a", b"file:///etc/passwd"), (b"\n", b"\n\n")),
    *((b",", b""), (b'"', b""), (b"{", b"{" * 5000), (b"file_name", b"name"), (b"0", b"-1"), (b"0", b"nan")),
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DOCUMENTS = (
    *(
        BOMB,
        "[" * 9999,
        "- " * 9999,
        "a: &a [*a]",
        "!!python/object/apply:os.system [true]",
        "? [a]\n: b",
        "\t",
        "%",
        "&",
    ),
    *("a: b: c", "--- a\n--- b", "seed: 1\nseed: 2", "seed: [1]", "seed: {a: 1}", "null", "[]", "x" * 300_000, "\x00"),
    *(
        "%",
        "&",
        "@",
        "2001-99-99",
        "a: 0x",
        "a: 1e999",
        "!!float a",
        "!!binary x",
        "!!timestamp 1",
        "<<: 1",
        "<<: [a, b]",
        "*a",
    ),
    *("configs: [{config_name: a, data_files: /etc/passwd}]", "configs: [{config_name: a, data_files: ../*}]"),
)


def yaml_of(content: bytes, chance: random.Random) -> bytes:
    """A YAML file, or a card with one on top, with hostile values, or a hostile document in its place."""
    import yaml

    marks = b"---\n" if content.startswith(b"---") else b""
    if chance.random() < 0.4:
        return marks + chance.choice(DOCUMENTS).encode() + b"\n" + marks
    front, _, rest = content.removeprefix(marks).partition(b"\n---\n") if marks else (content, b"", b"")
    values = mutated(yaml.safe_load(front), chance)
    return marks + yaml.safe_dump(values).encode(errors="surrogatepass") + marks + rest


def replaced(path: Path, chance: random.Random) -> None:
    """Put something that is no regular file in the place of a file."""
    path.unlink()
    kind = chance.randrange(4)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(chance.choice(PLACES))


class Subject(NamedTuple):
    """What is read: `make(folder)` writes it, `read(folder)` reads it, `use(result)` uses what was read, `files` are
    the names of the files to change."""

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    use: Callable[[Any], None]
    files: Callable[[str], bool] = lambda name: not name.endswith(".py")


class Hang(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Hang` after so many seconds, also while a file is opened."""

    def stop(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 20 * seconds)  # of the clock; the process's own time counts, see `outcome`
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(subject: Subject, folder: Path) -> str:
    """Read a changed folder: "used", "refused", "refused in use", or what went wrong, which starts with "WRONG"."""
    start, stage = time.process_time(), "refused"
    try:
        with time_limit(SECONDS):
            result = subject.read(folder)
            stage = "refused in use"
            subject.use(result)
            stage = "used"
    except (ValueError, OSError) as error:
        if not str(error).strip():
            stage = f"WRONG: {type(error).__name__} without a message"
    except Hang:
        stage = "WRONG: hangs"
    except SystemExit as stop:
        stage = stage if stop.code == 2 else f"WRONG: exit {stop.code}"
    except BaseException as error:
        stage = f"WRONG: {stage}: {type(error).__name__}: {str(error)[:300]}"
    if time.process_time() - start > SECONDS:
        stage = f"WRONG: took {time.process_time() - start:.0f} s"
    return stage


def change(home: Path, files: list[str], chance: random.Random) -> str:
    """Change one file of a folder, or put something in its place; return its name."""
    name = chance.choice(files)
    if chance.random() < 0.05:
        replaced(home / name, chance)
    else:
        content = (home / name).read_bytes()
        (home / name).write_bytes(damaged(name, content, chance))
    return name


def fuzz(subjects: dict[str, Subject], home: Path, cases: range, seed: int, tell: Callable[..., None]) -> Counter:
    """Read so many changed folders; return how often each outcome was. `tell(case, subject, file, outcome)` gets what
    went wrong."""
    sound: dict[str, list[str]] = {}
    for name, subject in subjects.items():
        subject.make(home / name)
        found = sorted(path.relative_to(home / name).as_posix() for path in (home / name).rglob("*") if path.is_file())
        sound[name] = list(filter(subject.files, found))
        if (first := outcome(subject, home / name)) != "used":
            raise AssertionError(f"{name}, unchanged: {first}")
    counts: Counter = Counter()
    for case in cases:
        chance = random.Random(f"{seed}/{case}")
        name = chance.choice(sorted(subjects))
        folder = home / "changed"
        shutil.copytree(home / name, folder, symlinks=True)
        file = change(folder, sound[name], chance)
        (home / "case").write_text(f"{seed} {case} {name} {file}\n")  # of a process that dies
        counts[result := outcome(subjects[name], folder)] += 1
        if result.startswith("WRONG"):
            tell(case, name, file, result)
            keep = home / "wrong" / f"{seed}-{case}"
            shutil.copytree(folder, keep, symlinks=True, copy_function=_copy)
        shutil.rmtree(folder)
    return counts


def _copy(source: str, target: str) -> None:
    if Path(source).is_file():
        shutil.copy2(source, target)


def peak_mebibytes() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@dataclasses.dataclass
class FuzzOptions(Options):
    """Fuzzing"""

    cases: int = option(10_000, "number of changed files", range=COUNT)
    start: int = option(0, "number of the first one", range=AT_LEAST_0)
    seed: int = option(0, "seed of the changes", range=SEED)
    only: int | None = option(None, "this one alone", range=AT_LEAST_0)
    match: str = option("", "change what has this in its name alone")


def main(argv: list[str] | None = None) -> None:
    """Run many cases, print what went wrong and the counts; status 1 if something did."""
    example = "python -m tests.helpers.fuzz --cases 1000 --seed 1"
    command = parser("tests.helpers.fuzz", "Change files at random, and read them.", example, FuzzOptions, config=False)
    (options,) = parse_or_exit(command, argv, FuzzOptions)
    from tests.helpers.fuzz_subjects import quiet, subjects

    start, count = (options.start, options.cases) if options.only is None else (options.only, 1)
    cases = range(start, start + count)
    chosen = {name: subject for name, subject in subjects().items() if options.match in name}
    home = Path(tempfile.mkdtemp(prefix="hfgen-fuzz-"))
    with quiet():  # whose standard output is not this one
        tell = functools.partial(print, sep="\t", flush=True, file=sys.__stdout__)
        counts = fuzz(chosen, home, cases, options.seed, tell)
    for result, count in counts.most_common():
        print(f"{count:>7,}  {result}")
    print(f"{peak_mebibytes():,.0f} MiB at most; seed {options.seed}, cases {cases.start} to {cases.stop - 1}")
    wrong = any(result.startswith("WRONG") for result in counts)
    print(f"wrong folders are kept in {home / 'wrong'}") if wrong else shutil.rmtree(home)
    raise SystemExit(int(wrong))


if __name__ == "__main__":
    main()
