"""Classes by number or by name, by one rule for the command line and for Python:

- a text is the name of a class, if a class has that name. If none has, a text of digits is a number: classes are
  numbered from 0. Where every name is made of digits, a text is always a name;
- an integer is always a number, be it Python's, NumPy's, or that of a tensor or array.

The command line gives texts, so `2` there is Python's "2". Where digits could mean two classes, a warning says which
one was taken. Floats and bools are no classes.
"""

import logging
import unicodedata
from collections.abc import Sequence
from typing import Any

ALL = "all"
"""The text that means every class, in the order of their numbers."""

SHOWN_NAMES = 20
"""Names that a message lists, at most."""


def class_numbers(classes: Any, num_classes: int, label_names: Sequence[str] | None = None) -> list[int]:
    """Return the numbers of classes that Python code gives.

    Args:
        classes: a class, or a list, tuple, range, tensor (B,) or array (B,) of classes, each a number or a name.
        num_classes: number of classes of the model.
        label_names: their names; None: they have none.

    Raises:
        ValueError: there is no such class, two classes have the name, or it is not a number or name.
    """
    if getattr(classes, "ndim", 0) > 1:
        raise ValueError(f"class_labels have shape {tuple(classes.shape)}; give one class for each sample, shape (B,).")
    values = classes.tolist() if hasattr(classes, "tolist") else classes  # tensors and arrays
    alone = not isinstance(values, list | tuple | range)
    values = [_scalar(value) for value in ([values] if alone else values)]
    numbers = [_class_number(value, num_classes, label_names) for value in values]
    for value, number in dict(zip(values, numbers, strict=True)).items():
        if isinstance(value, str) or (alone and isinstance(classes, int)):  # a list may come from data
            _say_which(value, number, num_classes, label_names)
    return numbers


def check_classes(num_classes: int | None, label_names: Sequence[str] | None, network: Any) -> None:
    """Refuse a number of classes that is none, that the network has fewer embeddings than, or that is not that of the
    names.

    Args:
        num_classes: number of classes of the model; None: it has none.
        label_names: their names; None: they have none.
        network: has `num_class_embeds` in its configuration, if its weights say how many classes there are.

    Raises:
        ValueError: says which number.
    """
    if num_classes is None and label_names is None:
        return
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"{num_classes=} must be a whole number from 1.")
    embeds = getattr(getattr(network, "config", None), "num_class_embeds", None)
    if embeds is not None and num_classes > embeds:
        raise ValueError(f"{num_classes=} is more than the {embeds} classes of the network, num_class_embeds.")
    if label_names is None:
        return
    if not isinstance(label_names, list | tuple) or not all(isinstance(name, str) for name in label_names):
        raise ValueError("label_names must be a list of texts.")
    if len(label_names) != num_classes:
        raise ValueError(f"{num_classes=} and {len(label_names)} label_names do not go together.")


def classes_in(text: str, num_classes: int, label_names: Sequence[str] | None = None) -> list[int]:
    """Return the numbers of the classes that a text lists, separated by commas; "all" means every class.

    A name may hold commas. It is put in double quotes where the text could be read in two ways; what is in quotes is
    always a name.

    Args:
        text: the list, as the command line gives it.
        num_classes, label_names: see `class_numbers`.

    Raises:
        ValueError: as `class_numbers`, the list holds nothing between two commas, or it can be read in two ways.
    """
    names = _names(label_names)
    if text.strip() == ALL:
        if ALL in names:
            raise ValueError(f"'{ALL}' means every class, and here it is a name, too: for that class give '\"{ALL}\"'.")
        return list(range(num_classes))
    pieces = _pieces(text)
    readings = _readings(pieces, num_classes, label_names)
    if not readings:
        for piece in pieces:
            _read_piece(piece, num_classes, label_names)  # raises
    if len(readings) > 1:
        first, second = (", ".join(f'"{names[n]}"' if names else str(n) for n in numbers) for numbers, _ in readings)
        raise ValueError(f"{text!r} can be read as {first} or as {second}: put names with commas in double quotes.")
    numbers, texts = readings[0]
    for number, part in dict(zip(numbers, texts, strict=True)).items():
        _say_which(part.strip(), number, num_classes, label_names)
    return numbers


def class_text(number: int, label_names: Sequence[str] | None = None) -> str:
    """Return a text that `classes_in` reads as this class alone: its number, or its name where that means another.

    Where two classes have one name of digits, no text means one of them, and "all" is returned.
    """
    count = len(label_names) if label_names else number + 1
    name = _names(label_names)[number] if label_names else str(number)
    for text in (str(number), name, f'"{name}"'):
        try:
            if _only_reading(text, count, label_names) == [number]:
                return text
        except ValueError:
            continue
    return ALL


def _only_reading(text: str, num_classes: int, label_names: Sequence[str] | None) -> list[int]:
    readings = [] if text == ALL else _readings(_pieces(text), num_classes, label_names)
    return readings[0][0] if len(readings) == 1 else []


def names_of_classes(num_classes: int | None, label_names: Sequence[str] | None) -> list[str]:
    """Return the names of all classes, their numbers where they have none; [] without classes."""
    return list(label_names or map(str, range(num_classes or 0)))


def _names(label_names: Sequence[str] | None) -> list[str]:
    return [str(name) for name in label_names or ()]


def _scalar(value: Any) -> Any:
    """Return a number of NumPy, or a tensor or array of one number, as Python's."""
    return value.tolist() if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 0 else value


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _class_number(value: Any, num_classes: int, label_names: Sequence[str] | None) -> int:
    """Return the number of the class that a number or name means."""
    if isinstance(value, str):
        return _number_of_text(value, num_classes, label_names)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(
            f"class {value!r} is not known: classes are whole numbers of an integer type, or names, not "
            f"{type(value).__name__}. {_known(num_classes, label_names)}"
        )
    if not 0 <= value < num_classes:
        raise ValueError(f"class {value!r} is not known: {_known(num_classes, label_names)}")
    return value


def _number_of_text(text: str, num_classes: int, label_names: Sequence[str] | None) -> int:
    """Return the number of the class of this name, else of this number in digits."""
    names, word = _names(label_names), text.strip()
    found = [number for number, name in enumerate(names) if name == text]
    found = found or [number for number, name in enumerate(names) if _canonical(name) == _canonical(text)]
    if len(found) > 1:
        raise ValueError(f"{len(found)} classes are named {text!r}: {', '.join(map(str, found))}. Give a number.")
    if found:
        return _class_number(found[0], num_classes, label_names)
    if names and all(map(_is_digits, names)):
        raise ValueError(
            f"class {text!r} is not known: all names here are digits, so that digits are read as a name. "
            f"Give one of {_listed_names(names)}; in Python, an integer is the number of a class."
        )
    if _is_digits(word):
        return _class_number(int(word), num_classes, label_names)
    alike = [name for name in names if _canonical(name).casefold() == _canonical(text).casefold()]
    hint = f" Did you mean {alike[0]!r}?" if alike else ""
    raise ValueError(f"class {text!r} is not known: {_known(num_classes, label_names)}{hint}")


def _canonical(text: str) -> str:
    """Return a name as it looks: without spaces around it, and é as one character however it is written."""
    return unicodedata.normalize("NFC", text).strip()


def _known(num_classes: int, label_names: Sequence[str] | None) -> str:
    """Return the part of a message that says which classes there are."""
    names = _names(label_names)
    return f"give a number from 0 to {num_classes - 1}{f', or one of {_listed_names(names)}' if names else ''}."


def _listed_names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{', '.join(names[:SHOWN_NAMES])}{more}"


def _say_which(value: int | str, number: int, num_classes: int, label_names: Sequence[str] | None) -> None:
    """Warn where digits name one class and number another, and say which one was taken."""
    names, digits = _names(label_names), str(value)
    if not _is_digits(digits) or digits not in names or int(digits) >= num_classes:
        return
    if names.index(digits) == int(digits):
        return
    other = names[int(digits)] if int(digits) < len(names) else ""
    by_name = f"the class named {digits!r}, number {names.index(digits)}"
    by_number = f"class number {digits}, named {other!r}"
    taken, left = (by_name, by_number) if isinstance(value, str) else (by_number, by_name)
    logging.getLogger(__name__).warning("class %r is %s; it is not %s.", value, taken, left)


def _pieces(text: str) -> list[tuple[str, bool]]:
    """Split a text at its commas. Returns (piece, whether it was in double quotes)."""
    pieces, start = [], 0
    while start <= len(text):
        end = text.find(",", start)
        lead = start + len(text[start:]) - len(text[start:].lstrip())
        quote = text.find('"', lead + 1) if text[lead : lead + 1] == '"' else -1
        rest = text[quote + 1 :].lstrip() if quote >= 0 else "x"
        if not rest or rest.startswith(","):
            pieces.append((text[lead + 1 : quote], True))
            end = len(text) - len(rest) if rest else -1
        else:
            pieces.append((text[start : None if end < 0 else end], False))
        start = len(text) + 1 if end < 0 else end + 1
    return pieces


def _read_piece(piece: tuple[str, bool], num_classes: int, label_names: Sequence[str] | None) -> int:
    """Return the number of the class that one piece means."""
    text, quoted = piece
    if quoted and _canonical(text) not in map(_canonical, _names(label_names)):
        raise ValueError(f"no class is named {text!r}: {_known(num_classes, label_names)}")
    if not quoted and not text.strip():
        raise ValueError(f"an empty text is no class: {_known(num_classes, label_names)}")
    return _number_of_text(text if quoted else text.strip(), num_classes, label_names)


def _readings(
    pieces: list[tuple[str, bool]], num_classes: int, label_names: Sequence[str] | None
) -> list[tuple[list[int], list[str]]]:
    """Return up to two ways to read the pieces, each as the numbers of classes and their texts."""
    names = [_canonical(name) for name in _names(label_names)]
    longest = 1 + max((name.count(",") for name in names), default=0)
    ways: list[list[tuple[list[int], list[str]]]] = [[] for _ in pieces] + [[([], [])]]
    for start in reversed(range(len(pieces))):
        for end in range(start + 1, min(start + longest, len(pieces)) + 1):
            part = pieces[start:end]
            text = ",".join(piece for piece, _ in part)
            if len(part) > 1 and (any(quoted for _, quoted in part) or _canonical(text) not in names):
                continue
            try:
                number = _read_piece(part[0] if len(part) == 1 else (text, True), num_classes, label_names)
            except ValueError:
                continue
            ways[start] += [([number, *numbers], [text, *texts]) for numbers, texts in ways[end]]
        ways[start] = ways[start][:2]
    return ways[0]
