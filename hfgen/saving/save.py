"""Saving: an index that diffusers can follow with and without hfgen, and the source files that it names."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ..disk.files import write_text
from ..registry import COMPONENTS, PIPELINES
from .portable import MARK, ShippedFile, Standin, one_file

STANDINS = {
    "hfgen.pipelines.base": Standin(
        module="hfgen.pipelines.parts",
        bases={"HFGenPipeline": "PipelineParts, DiffusionPipeline"},
        imports={"diffusers": "DiffusionPipeline"},
    ),
}
"""A shipped pipeline has diffusers' base and what all of ours share. Our way to load and push is not shipped."""

FOLDER_OPTIONS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
"""Options that diffusers and transformers write about the folder a component was loaded from."""


@cache
def shipped(name: str) -> ShippedFile | None:
    """Return the source file for a class of hfgen's registry, or None for any other name."""
    module = {**COMPONENTS, **PIPELINES}.get(name)
    return None if module is None else one_file(name, module, STANDINS)


def make_portable(folder: Path, components: Iterable[str]) -> None:
    """Make a folder that diffusers has just saved one that it can load without hfgen.

    The index names a source file for each class of ours, which is put where diffusers looks for it: the pipeline's in
    the folder, a component's in its own. Names of this machine are taken out.
    """
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    for key, name in {**{key: _class_of(index.get(key)) for key in components}, "": index["_class_name"]}.items():
        if (file := shipped(name)) is None or (key and index[key][0] != COMPONENTS[name]):
            continue  # a class of diffusers, transformers or the user's own: nothing of ours to ship
        write_text(folder / key / f"{file.stem}.py", file.text)
        index[key or "_class_name"] = [file.stem, name]
    for key in index.keys() - {*components, "_class_name"}:
        if isinstance(index[key], list) and index[key]:  # on the Hub diffusers takes every list for a component
            index[key] = {str(i): value for i, value in enumerate(index[key])}
    configs: dict[Path, dict[str, Any]] = {path: index}
    for file in (folder / key / name for key in components for name in ("config.json", "tokenizer_config.json")):
        if file.is_file():
            configs[file] = json.loads(file.read_text(encoding="utf-8"))
    for file, config in configs.items():
        text = json.dumps(
            {key: value for key, value in config.items() if key not in FOLDER_OPTIONS}, indent=2, sort_keys=True
        )
        write_text(file, text + "\n")


def remove_former_sources(folder: Path, components: Iterable[str]) -> None:
    """Remove source files of an earlier save that the index of a folder no longer names."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    places = {"_class_name": folder, **{key: folder / key for key in components}}
    named = {place / f"{index[key][0]}.py" for key, place in places.items() if isinstance(index.get(key), list)}
    for old in (path for place in places.values() for path in place.glob("hfgen_*.py")):
        if old not in named and old.read_text(encoding="utf-8", errors="replace").startswith(MARK):
            old.unlink()


def _class_of(entry: Any) -> str | None:
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None
