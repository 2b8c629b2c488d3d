"""Splits of a data set by their names, parts such as `train[:80%]`, and sums of them."""

import re
from collections.abc import Mapping
from typing import Any

from ..options import DataArgs


def refuse_configuration(args: DataArgs) -> None:
    """Raise ValueError if a configuration is asked for of data that have none."""
    if args.dataset_config_name is not None:
        raise ValueError(
            f"--dataset_config_name {args.dataset_config_name}: {args.dataset} has no configurations. Leave it out."
        )


def named_parts(spec: str) -> list[tuple[str, str]]:
    """Return the terms of a sum of splits as (name, the part in brackets or "")."""
    terms = [re.fullmatch(r"(.*?)(\[[^\[\]]*\])?", term.strip(), re.DOTALL) for term in spec.split("+")]
    return [(term[1].strip(), term[2] or "") for term in terms]


def take_part(splits: Mapping[str, Any], args: DataArgs, name: str) -> Any:
    """Return the rows that `dataset_split` takes of splits: one, a part such as 'train[:80%]', or a sum of such."""
    import datasets

    refuse_configuration(args)
    try:
        wanted = [(args.dataset_split, "")] if args.dataset_split in splits else named_parts(args.dataset_split)
        numbers = {split: f"split{number}" for number, split in enumerate(splits)}  # datasets reads words alone
        spec = "+".join(numbers[name] + part for name, part in wanted)
        lengths = {numbers[split]: len(rows) for split, rows in splits.items()}
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (KeyError, ValueError):
        parts = []
    if not parts:
        first, them = next(iter(splits)), "them" if len(splits) > 1 else "it"
        raise ValueError(
            f"{name} has no split '{args.dataset_split}', only {', '.join(map(repr, splits))} and parts of {them} such "
            f"as '{first}[:{max(1, len(splits[first]) - 297)}]'."
        )
    if all(part.from_ >= part.to for part in parts):
        raise ValueError(f"{name}: '{args.dataset_split}' takes none of its {sum(lengths.values()):,} rows.")
    named = {numbers[split]: rows for split, rows in splits.items()}
    rows = datasets.concatenate_datasets([named[part.splitname].select(range(part.from_, part.to)) for part in parts])
    return rows.to_iterable_dataset() if args.streaming else rows
