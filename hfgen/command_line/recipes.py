"""Recipes: the configuration files that come with hfgen, by name, with what was measured of them. No torch here."""

import dataclasses
import re
from pathlib import Path

from .option_errors import nearest

ROOM = Path(__file__).resolve().parents[1] / "training" / "configs"
"""Their folder in an installed hfgen."""

CHECKOUT = Path(__file__).resolve().parents[2] / "training" / "configs"
"""Their folder in a checkout, whose rooms `training/` and `pipelines/` lie beside `hfgen/`."""

FACTS = ("time", "memory", "quality")
UNKNOWN = "not measured"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A configuration file of hfgen, with the facts of its header.

    Attributes:
        name: what `--config` takes.
        family: what `hfgen train` takes.
        text: what it trains.
        facts: {"time", "memory", "quality": what was measured, or "not measured"}.
        path: the file.
    """

    name: str
    family: str
    text: str
    facts: dict[str, str]
    path: Path

    @property
    def command(self) -> str:
        """Return the command line that trains it."""
        return f"hfgen train {self.family} --config {self.name}"


def recipes() -> dict[str, Recipe]:
    """Return all recipes by name."""
    folder = ROOM if ROOM.is_dir() else CHECKOUT
    return {path.stem: read_recipe(path) for path in sorted(folder.glob("*.yaml"))}


def read_recipe(path: Path) -> Recipe:
    """Read the header of a recipe: comments of the form `# time: 83 s`, which may go on in comments that are indented.

    Raises:
        ValueError: `what` or `family` is missing, or a line belongs to no entry.
    """
    entries: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        name, colon, value = line.removeprefix("# ").partition(": ")
        if line.startswith("#  ") and entries:
            last = next(reversed(entries))
            entries[last] += " " + line.removeprefix("#").strip()
        elif colon and re.fullmatch(r"\w+", name):
            entries[name] = value.strip()
        else:
            raise ValueError(f"{path}: {line!r} is no entry of a recipe's header, such as '# time: 83 s'.")
    if missing := {"family", "what"} - set(entries):
        raise ValueError(f"{path}: the header has no {' and no '.join(sorted(missing))}.")
    facts = {name: entries.get(name, UNKNOWN) for name in FACTS}
    return Recipe(path.stem, entries["family"], entries["what"], facts, path)


def configuration_file(name: str) -> Path:
    """Return the configuration file of this name: a file, else the recipe that comes with hfgen.

    A file goes first, so that `--config mnist` can't mean another file than the one that is there; a folder is none.

    Raises:
        ValueError: there is neither; the message names recipes that are spelt like it.
    """
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        return path
    known = recipes()
    if name in known:
        return known[name].path
    near = nearest(Path(name).stem, known)
    hint = f"did you mean --config {near[0]}?" if near else f"recipes of hfgen: {', '.join(known)}."
    kind = "is a folder, and no recipe has this name" if path.is_dir() else "is no file, and no recipe of hfgen"
    raise ValueError(f"--config {name} {kind}; {hint}")
