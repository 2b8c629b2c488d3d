"""A saved pipeline's folder: an index that diffusers can follow with and without hfgen, and the code it names."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ..registry import COMPONENTS, PIPELINES
from .portable import MARK, ShippedFile, Standin, one_file

STANDINS = {
    "hfgen.pipelines.base": Standin(
        module="hfgen.pipelines.parts",
        bases={"HFGenPipeline": "PipelineParts, DiffusionPipeline"},
        imports={"diffusers": "DiffusionPipeline"},
    ),
}
"""A shipped pipeline is diffusers' with what all of ours share; how hfgen loads and pushes stays behind."""


@cache
def shipped(name: str) -> ShippedFile | None:
    """The source file for a class of hfgen's registry; None for any other name."""
    module = {**COMPONENTS, **PIPELINES}.get(name)
    return None if module is None else one_file(name, module, STANDINS)


def make_portable(folder: Path, components: Iterable[str]) -> None:
    """Make a folder that diffusers has just saved one that it can load without hfgen.

    The index names, for each class of ours, a source file that is put where diffusers looks for it: the pipeline's in
    the folder, a component's in its own. What names this machine is taken out, and files that an earlier save shipped
    and that the index no longer names are removed.
    """
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    keep = set()
    for key, name in {**{key: _class_of(index.get(key)) for key in components}, "": index["_class_name"]}.items():
        if (file := shipped(name)) is None or (key and index[key][0].split(".")[0] != "hfgen"):
            continue  # diffusers' own, or the user's: nothing of ours to ship
        target = folder / key / f"{file.stem}.py"
        target.write_text(file.text, encoding="utf-8")
        keep.add(target)
        index[key or "_class_name"] = [file.stem, name]
    for old in [*folder.glob("hfgen_*.py"), *(p for key in components for p in (folder / key).glob("hfgen_*.py"))]:
        if old not in keep and old.read_text(encoding="utf-8", errors="replace").startswith(MARK):
            old.unlink()
    for key in index.keys() - {*components, "_class_name"}:
        if isinstance(index[key], list) and index[key]:  # on the Hub diffusers takes every list for a component
            index[key] = {str(i): value for i, value in enumerate(index[key])}
    written: dict[Path, dict[str, Any]] = {path: index}
    for key in components:
        if (file := folder / key / "config.json").is_file():
            written[file] = json.loads(file.read_text(encoding="utf-8"))
    for file, config in written.items():
        config.pop("_name_or_path", None)  # the folder it was loaded from means nothing on another machine
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _class_of(entry: Any) -> str | None:
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None
