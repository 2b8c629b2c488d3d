"""`hfgen recipes`: the recipes that come with hfgen, what they train, and what was measured of them."""

import textwrap

from ..command_line.recipes import Recipe, recipes
from ..options import parse_words, parser
from .suggestions import unknown

EXAMPLE = "hfgen recipes mnist"


def main(argv: list[str] | None = None) -> None:
    """Print all recipes, or one with its command, its file and its options.

    Raises:
        ValueError: an unknown name.
    """
    description = "List the recipes that come with hfgen: what they train, measured time, memory and quality."
    command = parser("hfgen recipes", description, EXAMPLE, config=False)
    command.add_argument("name", nargs="?", type=str, default=None, help="show this one, with its options")
    name, known = parse_words(command, argv).name, recipes()
    if name is None:
        print("\n\n".join(describe(recipe) for recipe in known.values()))
        return
    if name not in known:
        raise ValueError(unknown("recipe", name, known))
    recipe = known[name]
    print(f"{describe(recipe)}\n  file:    {recipe.path}\n\n{options_of(recipe)}", end="")


def describe(recipe: Recipe) -> str:
    """Return the lines about a recipe."""
    lines = [recipe.name, *_wrapped(recipe.text, "  ")]
    for name, fact in {**recipe.facts, "command": recipe.command}.items():
        lines += _wrapped(f"{name + ':':9}{fact}", "  ", " " * 9)
    return "\n".join(lines)


def options_of(recipe: Recipe) -> str:
    """Return the lines of the file after its header."""
    lines = recipe.path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))


def _wrapped(text: str, indent: str, hanging: str = "") -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent + hanging, break_on_hyphens=False)
