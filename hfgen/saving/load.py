"""From a folder or a repository to what may safely be loaded from it: nothing here runs or even fetches code."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ModelMixin, SchedulerMixin

from ..registry import COMPONENTS, PIPELINES, resolve
from .errors import INDEX, explained
from .folders import read_json

NEVER_FETCHED = ("*.py", "*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl", "*.pickle", "checkpoint-*", "logs/*")
"""Code, pickles and what a run leaves: never downloaded, whatever else matches."""


def find(source: str, hub: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Where the pipeline lies, and its index as it was written; from the Hub only the index is fetched.

    Args:
        source: a folder, or the name of a repository.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` of huggingface_hub.

    Raises:
        ValueError: there is no such folder or repository, or no pipeline in it.
        OSError: the Hub can't be reached and the cache does not hold it.
    """
    file = Path(source, INDEX)
    if os.path.isdir(source):
        if not file.is_file():
            raise ValueError(f"{source} is not a saved pipeline: there is no {INDEX} in it.")
    else:
        from huggingface_hub import hf_hub_download

        with explained(source):
            file = Path(hf_hub_download(source, INDEX, **hub))
    return file.parent, read_json(file)


def ours(index: Mapping[str, Any]) -> dict[str, Any]:
    """An index in which a component of ours, whatever file it is said to come from, is hfgen's class of that name."""
    index = dict(index)
    for key, value in index.items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
            if key == "_class_name":
                index[key] = value[1]
            elif value[0] != "diffusers" and value[1] in COMPONENTS:
                index[key] = ["hfgen", value[1]]
    return index


def family(index: Mapping[str, Any], source: str, front: type) -> type:
    """The pipeline class that an index names, where `front` is it or a base of it."""
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        raise ValueError(f"{source} holds a {name}. The families hfgen can load are: {', '.join(PIPELINES)}.")
    found = resolve(name)
    if not issubclass(found, front):
        raise ValueError(f"{source} holds a {name}, not a {front.__name__}. HFGenPipeline.from_pretrained loads both.")
    return found


def needed(family: type, index: Mapping[str, Any], source: str, options: dict[str, Any]) -> list[str]:
    """The components to load: not those that `options` has something in place of, and of optional ones those whose
    option is True, which is taken out. The others get the option None, which is diffusers' for leaving them out.

    Raises:
        ValueError: an optional one is asked for that was not saved.
    """
    for name in family._optional_components:
        asked = options.pop(name, None)
        if asked is True and not any(index.get(name) or ()):
            raise ValueError(f"{source} was saved without its {name}. Leave {name}=True out.")
        if asked is not True:
            options[name] = None if asked is False else asked
    return [key for key in family._get_signature_keys(family)[0] if key not in options]


def component(entry: Any, key: str, source: str) -> type:
    """The class of a component: one of ours, or a network or scheduler of diffusers'."""
    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    found = None
    if isinstance(name, str) and library == "hfgen" and name in COMPONENTS:
        found = resolve(name)
    elif isinstance(name, str) and library == "diffusers":
        found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin | SchedulerMixin)):
        raise ValueError(f"{source} has {entry} as {key}, which is no network or scheduler of hfgen or diffusers.")
    return found


def fetch(source: str, commit: str, components: Collection[str], variant: str | None, hub: Mapping[str, Any]) -> Path:
    """Download the components of one commit of a repository: configurations and safetensors, nothing else."""
    from huggingface_hub import snapshot_download

    files = ["*.json", "*model.safetensors", "*model-?????-of-?????.safetensors"]
    files += [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"] if variant else []
    wanted = [f"{name}/{file}" for name in components for file in files]
    asked = {**hub, "revision": commit, "allow_patterns": [INDEX, *wanted], "ignore_patterns": list(NEVER_FETCHED)}
    with explained(source):
        return Path(snapshot_download(source, **asked))


@contextlib.contextmanager
def without_code(folder: Path, components: Collection[str]) -> Iterator[Path]:
    """The folder, or where diffusers would take a file in it for the code of an installed class, links to the rest."""
    names = [Path("None.py"), *(Path(c, f"{library}.py") for c in components for library in ("hfgen", "diffusers"))]
    if not any((folder / name).exists() for name in names):
        yield folder
        return
    with tempfile.TemporaryDirectory() as bare:
        Path(bare, INDEX).symlink_to((folder / INDEX).resolve())
        for name in components:
            if (folder / name).is_dir():
                ignore = shutil.ignore_patterns("*.py")
                shutil.copytree(folder.resolve() / name, Path(bare, name), ignore=ignore, copy_function=os.symlink)
        yield Path(bare)
