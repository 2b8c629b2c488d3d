"""Messages about unknown names."""

from collections.abc import Iterable

from ..command_line.option_errors import nearest


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """Return the message that refuses `name`: with the name of `names` that is spelt most like it, or with all."""
    names = list(names)
    near = nearest(name, names)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}."
    return f"no {kind} {name!r}; {hint}"
