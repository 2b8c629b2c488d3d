"""The columns of images and of class labels in a data set of the `datasets` library.

An option names a column, or it is guessed by a rule: the type of a column counts first, then its name. Where the rule
leaves several columns, that is an error which lists them. What was chosen is said, and what else there was.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..console.text import escaped
from ..options import DataArgs
from .label_options import MISSING, PartialLabelDataArgs

logger = logging.getLogger(__name__)

IMAGE_NAMES = ("image", "images", "img", "picture", "photo", "pixel_values", "pixels", "jpg", "jpeg", "png", "bytes")
"""Names that decide between columns of one type, best first. Upper and lower case are the same."""

LABEL_NAMES = ("label", "labels", "class", "fine_label", "cls", "target")
"""The same for class labels."""

NO_LABELS = "none"

Fits = Callable[[Any], bool]
"""Whether a column's type is one of a kind."""


def find_columns(features: Any, args: DataArgs) -> tuple[str, str | None]:
    """Return the columns of images and of labels that the options name, else guesses, see `_guess`.

    Columns of the type Image come before columns of bytes. The column of labels is None if there is none.

    Raises:
        ValueError: the options name a column that is missing or of the wrong type, or none or several columns look like
            images; lists the columns.
    """
    image = named_or_guessed(features, args, "image_column", [_is_image, _is_bytes], IMAGE_NAMES)
    if image is None:
        raise ValueError(
            f"No column of '{args.dataset}' looks like images; give --image_column. {list_columns(features)}"
        )
    return image, find_labels(features, args)


def find_labels(features: Any, args: DataArgs) -> str | None:
    """Return the column of labels that the options name, else a guess, see `_guess`, or None.

    Columns of the type ClassLabel come before whole numbers, texts and bools, which need a name of `LABEL_NAMES`.

    Raises:
        ValueError: the options name a column that is missing or of the wrong type, or several columns look like labels;
            lists the columns.
    """
    if args.label_column == NO_LABELS and NO_LABELS not in features:
        return None
    column = args.label_column
    if column in features and str(getattr(features[column], "dtype", "")).startswith("float"):
        raise ValueError(
            f"--label_column {column} holds floats ({features[column].dtype}), and classes are whole numbers, texts or "
            "a ClassLabel. If all values are whole, convert the column: "
            f"rows.cast_column('{column}', datasets.Value('int64'))."
        )
    found = named_or_guessed(features, args, "label_column", [is_class_label, _is_value], LABEL_NAMES)
    if found is None and (left := [name for name in features if name.lower() in LABEL_NAMES]):
        listed = escaped(", ".join(f"{name}: {features[name]}" for name in left))
        logger.warning("No class labels: %s is of a type that does not hold classes.", listed)
    return found


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image)


def _is_bytes(feature: Any) -> bool:
    return "bytes" in feature if isinstance(feature, dict) else "binary" in str(getattr(feature, "dtype", ""))


def is_class_label(feature: Any) -> bool:
    """Return whether a column is of the type ClassLabel."""
    import datasets

    return isinstance(feature, datasets.ClassLabel)


def _is_value(feature: Any) -> bool:
    import datasets

    kinds = ("int", "uint", "string", "large_string", "bool")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def named_or_guessed(
    features: Any, args: DataArgs, option: str, kinds: list[Fits], names: tuple[str, ...]
) -> str | None:
    """Return the column that an option names, else a guess, see `_guess`, or None.

    Raises:
        ValueError: the option names a column that is missing or of none of the types, or several are left.
    """
    column, kind = getattr(args, option), option.removesuffix("_column")
    if column is None:
        column, others = _guess(features, option, kinds, names)
        if others:
            names = escaped(column), kind, ", ".join(map(escaped, others)), option
            logger.warning("Column '%s' holds the %ss. Others: %s; see --%s.", *names)
        elif column is not None:
            logger.info("Column '%s' holds the %ss.", escaped(column), kind)
        return column
    if column not in features or not any(fits(features[column]) for fits in kinds):
        raise ValueError(f"--{option} {column} is not a column of {kind}s. {list_columns(features)}")
    return column


def _guess(features: Any, option: str, kinds: list[Fits], names: tuple[str, ...]) -> tuple[str | None, list[str]]:
    """Return a column, or None, and the other columns that could have been meant.

    Only columns of the first type that a column has count. If they are several, or of the last type, a name of `names`
    decides, the first one that a column has.

    Raises:
        ValueError: several columns are left.
    """
    first, *rest = [[name for name, feature in features.items() if fits(feature)] for fits in kinds]
    named = [name for known in names for name in features if name.lower() == known]
    likely = [name for name in named if name in first] or (first if len(first) == 1 else [])
    possible = [name for name in named if any(name in columns for columns in rest)]
    if not likely and first:
        fix = f"Name one: --{option} {first[0]}" + (f", or --{option} {NO_LABELS}" if option == "label_column" else "")
        kind = option.removesuffix("_column")
        raise ValueError(f"Each of the columns {', '.join(first)} may hold the {kind}s; no name says which. {fix}.")
    candidates = [*likely, *possible]
    if not candidates:
        return None, []
    others = [name for name in (*first, *possible) if name != candidates[0]]
    return candidates[0], list(dict.fromkeys(others))


def list_columns(features: Any) -> str:
    """Return the end of a message: the columns there are, with their types."""
    return "Columns: " + ", ".join(escaped(f"{name}: {feature}") for name, feature in features.items())


def read_labels(rows: Any, column: str, args: DataArgs) -> tuple[Tensor | None, list[str] | None]:
    """Return labels int64 (N,), None for a stream, and the names of the classes.

    The names are those of a ClassLabel, else the sorted values, so that whole numbers may have gaps. A column without
    any label gives (None, None), unless an option names it. With `PartialLabelDataArgs` a missing label is `MISSING`.

    Raises:
        ValueError: some rows have no label and may not, as -1 says, too, unless all values are -1 and 1; two classes
            have one name; or a stream does not name its classes.
    """
    names = getattr(rows.features[column], "names", None)
    if names and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Column '{column}' names two of its classes {twice!r}. Give each class its own name.")
    if args.streaming:
        if names is None:
            fix = f"Drop --streaming, or ignore labels with --label_column {NO_LABELS}."
            raise ValueError(f"The stream does not name the classes in its column '{column}'. {fix}")
        return None, names
    values = rows[column][:]
    classes = list(range(len(names))) if names else sorted(set(values) - {None})
    if classes and classes[0] == -1 and set(classes) != {-1, 1}:
        classes.remove(-1)  # by custom the label of rows without a label
    number = {value: index for index, value in enumerate(classes)}
    missing = [row for row, value in enumerate(values) if value not in number]
    if len(missing) == len(values) and args.label_column is None:  # as in test splits on the Hub
        logger.warning("Column '%s' has no label in any row, so the images have no classes.", escaped(column))
        return None, None
    if missing and not isinstance(args, PartialLabelDataArgs):
        raise ValueError(
            f"{len(missing)} rows have no label in column '{column}' (row {missing[0]} is the first, with "
            f"{values[missing[0]]}). Remove them, or ignore labels with --label_column {NO_LABELS}. A family that has "
            "the option --num_labels takes them as they are."
        )
    return torch.tensor([number.get(value, MISSING) for value in values]), names or [str(value) for value in classes]
