"""What a pipeline was trained on: the record that its folder keeps, and the same images again.

A record names the data set, what was read of it and how images were prepared. It travels with the pipeline, to the Hub
too, so a local folder is recorded by its name and fingerprint alone. The path is in the `config.yaml` of the run, which
lies beside the pipeline and is not needed to load it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..disk.yaml_files import read_yaml
from ..options import DataArgs
from ..utils.arguments import argument
from .batches import Items
from .built_in import BUILT_IN
from .images import ImageData
from .sources import HUB_NAME

SELECTION = ("dataset_config_name", "dataset_split", "image_column", "label_column", "max_train_samples")
"""Options of `DataArgs` that say what is read of a data set. Another data set starts from their defaults."""

PREPARATION = ("resolution", "center_crop", "channels", "background", "levels", "skip_corrupt")
"""Options of `DataArgs` that say how images are prepared."""

SOURCES = ("built-in", "hub", "local", "python")
"""Where the data come from: the package, the Hub, a folder or file of one machine, objects of a Python program."""


@dataclasses.dataclass(frozen=True)
class DataChoice:
    """The images to use with a trained pipeline.

    Attributes:
        args: the options that load them.
        training: the options that load the images of the training, prepared in the same way; None if they are not
            known, or not here.
        notes: sentences that say where the options come from.
        fingerprint: that of the training, if these are its images; else None.
        own: whether options that may do nothing were given for these images, see `load_images`.
    """

    args: DataArgs
    training: DataArgs | None = None
    notes: tuple[str, ...] = ()
    fingerprint: str | None = None
    own: bool = True

    def check(self, data: Items) -> tuple[str, ...]:
        """Return the notes, and another one if the images are no longer those of the training."""
        if self.fingerprint in (None, data.fingerprint):
            return self.notes
        change = f"their fingerprint is {data.fingerprint}, and was {self.fingerprint}"
        return (*self.notes, f"the images of {data.name} have changed since the training: {change}.")


def record_of(args: DataArgs, data: Items) -> dict[str, Any]:
    """Return the record of a training on `data`: texts, numbers and None by name, without any path.

    Args:
        args: the options of the run. They count for images that were loaded by a name.
        data: what was trained on.

    Returns:
        `source` (one of `SOURCES`), `dataset` (its name) and `fingerprint`; for images also PREPARATION, with the
        channels that the images have; for images that were loaded by a name also SELECTION, with the columns that were
        read.
    """
    record = {"source": "python", "dataset": Path(data.name).name, "fingerprint": data.fingerprint}
    if not isinstance(data, ImageData):
        return record
    height, width = data.size
    record |= {name: getattr(args, name) for name in PREPARATION} | {"channels": data.channels}
    if not data.by_name:
        return {**record, "resolution": height if height == width else None}
    selection = {name: getattr(args, name) for name in SELECTION}
    if getattr(args, "num_labels", None) is not None:
        selection |= {"num_labels": args.num_labels, "label_seed": args.label_seed}
    selection |= {"image_column": data.image_column, "label_column": data.label_column or "none"}
    return {**record, "source": _source(args.dataset), "dataset": _portable_name(args.dataset), **selection}


def _source(dataset: str) -> str:
    if Path(dataset).expanduser().exists():
        return "local"
    return "built-in" if dataset in BUILT_IN else "hub"


def _portable_name(dataset: str) -> str:
    """Return a name of the Hub as it is, and the last part of a path."""
    return Path(dataset).expanduser().resolve().name if _source(dataset) == "local" else dataset


def describe(record: Mapping[str, Any] | None) -> dict[str, str]:
    """Return a record as rows of a card: what was read, how images were prepared, the fingerprint. No rows of None."""
    rows: dict[str, str] = {}
    if record is None:
        return rows
    if "dataset_split" in record:
        columns = [record["image_column"], *([] if record["label_column"] == "none" else [record["label_column"]])]
        parts = [f"split {record['dataset_split']}", f"column{'s' * (len(columns) > 1)} {' and '.join(columns)}"]
        if record["dataset_config_name"] is not None:
            parts.append(f"configuration {record['dataset_config_name']}")
        if record["max_train_samples"] is not None:
            parts.append(f"the first {record['max_train_samples']:,} images")
        if record.get("num_labels") is not None:
            parts.append(f"{record['num_labels']:,} labels kept (seed {record['label_seed']}), the others hidden")
        rows["read"] = ", ".join(parts)
    if record["source"] != "python":
        shape = f"the {'centre square' if record['center_crop'] else 'whole image, squeezed,'} resized to a side of"
        size = "sizes as they are" if record["resolution"] is None else f"{shape} {record['resolution']} pixels"
        rows["prepared"] = f"{size}, {record['channels']} channel(s), transparent pixels on {record['background']}"
        if record.get("levels") is not None:
            rows["prepared"] += f", 16-bit value {record['levels']} as white"
    return {**rows, "data fingerprint": record["fingerprint"]}


def levels_of(record: Mapping[str, Any] | None) -> int | None:
    """Return the value of a 16-bit image that is white by a record; None if it does not say.

    Raises:
        ValueError: it says nonsense.
    """
    levels = (record or {}).get("levels")
    try:
        return DataArgs(levels=argument("levels", levels, int | None)).levels
    except (TypeError, ValueError) as error:
        raise ValueError(f"What the pipeline says of its training data is damaged: {error}.") from None


def choose_data(
    record: Mapping[str, Any] | None, folder: str, given: DataArgs | Mapping[str, Any] | None = None
) -> DataChoice:
    """Return the images to use with a trained pipeline: those of its training, except for what is given.

    Another data set starts from the defaults of SELECTION, and another split from all its images; the preparation stays
    as in the training. A folder without a record (hfgen 0.1) is taken at the word of its run's `config.yaml`.

    Args:
        record: of the pipeline; None if it has none.
        folder: the pipeline's folder, or its name on the Hub.
        given: options of `DataArgs` by name; they win. A whole `DataArgs` gives all of them.

    Raises:
        ValueError: the data are not known or not here, or the record is damaged. Says what to give.
    """
    given = _by_name(given)
    config, origin = _config(folder), "its record"
    if record is None:
        record, origin = _record_of_config(config), "the config.yaml of its run"
    if record is None:
        if "dataset" not in given:
            raise ValueError(f"{folder} does not say what data it comes from. Name the data set: --dataset.")
        return DataChoice(DataArgs(**given), notes=(f"data: {given['dataset']}, as given",))
    record = _checked(record, folder)
    here = _locate(record, config)
    known = {name: record[name] for name in (*SELECTION, *PREPARATION) if name in record}
    training = None if here is None else DataArgs(dataset=here, **known)
    if "dataset" not in given and here is None:
        raise ValueError(_not_here(record, folder))
    same = "dataset" not in given or _same(record, given["dataset"])
    args = DataArgs(**{"dataset": here, **_kept(record, known, given, same), **given})
    if training is not None:
        common = {name: getattr(args, name) for name in (*PREPARATION, "cache_dir", "cache_budget")}
        training = dataclasses.replace(training, **common)
    compared = same and "num_labels" not in record and {name: getattr(args, name) for name in known} == known
    notes = _notes(record, folder, origin, given, same)
    own = bool({"levels", "center_crop"} & given.keys())
    return DataChoice(args, training, notes, record.get("fingerprint") if compared else None, own)


def _by_name(given: DataArgs | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options by name. Raises TypeError for a name that is no option of data."""
    values = dataclasses.asdict(given) if isinstance(given, DataArgs) else dict(given or {})
    if unknown := values.keys() - DataArgs.__dataclass_fields__.keys():
        raise TypeError(f"{', '.join(sorted(unknown))}: no option of data. See hfgen.options.DataArgs.")
    return {name: values[name] for name in DataArgs.__dataclass_fields__ if name in values}


def _kept(record: Mapping[str, Any], known: Mapping[str, Any], given: Mapping[str, Any], same: bool) -> dict[str, Any]:
    """Return the options of the record that still make sense beside those given; `same`: for the same data set."""
    kept = {name: value for name, value in known.items() if same or name in PREPARATION}
    if any(name in given and given[name] != record.get(name) for name in ("dataset_split", "dataset_config_name")):
        kept.pop("max_train_samples", None)
    return {name: value for name, value in kept.items() if name not in given}


def _same(record: Mapping[str, Any], dataset: str) -> bool:
    """Return whether `dataset` is the data set of the record, by its name."""
    return record["source"] != "python" and record["dataset"] == _portable_name(dataset)


def _notes(
    record: Mapping[str, Any], folder: str, origin: str, given: Mapping[str, Any], same: bool
) -> tuple[str, ...]:
    """Return what is taken from the record, and what is given in its place."""
    known = {name: record[name] for name in ("dataset", *SELECTION, *PREPARATION) if name in record}
    kept = _kept(record, {name: value for name, value in known.items() if value is not None}, given, same)
    if "dataset" in given:
        kept.pop("dataset", None)
    changed = {name: value for name, value in given.items() if name in known and value != known[name]}
    notes = []
    if kept:
        text = ", ".join(f"{name} {value}" for name, value in kept.items())
        notes.append(f"data as {folder} was trained on, by {origin}: {text}")
    if changed:
        text = ", ".join(f"{name} {value} (trained with {known[name]})" for name, value in changed.items())
        notes.append(f"data as given: {text}")
    return tuple(notes)


def _config(folder: str) -> dict[str, Any]:
    """Return the configuration of the run that wrote a folder, which also keeps its best pipeline in `best/`."""
    home = Path(folder)
    for path in (home / "config.yaml", *([home.resolve().parent / "config.yaml"] * (home.resolve().name == "best"))):
        if path.exists():
            try:
                values = read_yaml(path)
            except ValueError as error:
                raise ValueError(f"{error} It is damaged: repair or remove it.") from error
            return values if isinstance(values, dict) else {}
    return {}


def _record_of_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a run's configuration says of its data as a record without a fingerprint; None if it names none."""
    if not isinstance(dataset := config.get("dataset"), str):
        return None
    known = {name: config[name] for name in (*SELECTION, *PREPARATION) if name in config}
    return {"source": _source(dataset), "dataset": _portable_name(dataset), **known}


def _locate(record: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Return the name or path that loads the data set; None if it is not known here."""
    if record["source"] in ("built-in", "hub"):
        return record["dataset"]
    path = config.get("dataset")
    found = record["source"] == "local" and isinstance(path, str) and Path(path).expanduser().exists()
    return path if found and _portable_name(path) == record["dataset"] else None


def _not_here(record: Mapping[str, Any], folder: str) -> str:
    """Return the message about data that can't be found."""
    if record["source"] == "python":
        return (
            f"{folder} was trained from Python on {record['dataset']!r}, which has no name to load it by. Give a data "
            "set of such images: --dataset."
        )
    mark = f" (fingerprint {record['fingerprint']})" if "fingerprint" in record else ""
    return (
        f"{folder} was trained on the local data {record['dataset']!r}{mark}, and their path is not known here: no "
        "config.yaml beside the pipeline names it, or it has moved. Give it: --dataset PATH."
    )


def _checked(record: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return the record if it is sound.

    Raises:
        ValueError: an entry is missing or of another type, or names of the Hub are no such names.
    """
    fields = {field.name: field.type for field in dataclasses.fields(DataArgs)}
    try:
        for name in (*SELECTION, *PREPARATION):
            if name in record:
                argument(name, record[name], fields[name], choices=True)
        name, source = record.get("dataset"), record.get("source")
        if source not in SOURCES or not isinstance(name, str):
            raise ValueError(f"source={source!r} and dataset={name!r} are not known")
        if (source == "hub" and not HUB_NAME.fullmatch(name)) or name.startswith("."):
            raise ValueError(f"dataset={name!r} is no name of the Hub")
        if source == "built-in" and name not in BUILT_IN:
            raise ValueError(f"dataset={name!r} is not built in")
    except (TypeError, ValueError) as error:
        raise ValueError(f"What {folder} says of its training data is damaged: {error}. Give --dataset.") from None
    return dict(record)
