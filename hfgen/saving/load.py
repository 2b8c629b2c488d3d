"""Loading of a pipeline from a folder or a repository without running or fetching code."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ModelMixin, SchedulerMixin

from ..console.text import escaped, with_article
from ..registry import COMPONENTS, PIPELINES, resolve
from . import text_components
from .errors import INDEX, one_line_errors
from .folders import check_network, read_json
from .option_types import check_option_types
from .saved import refuse_adapter
from .transformers_classes import TRANSFORMERS

NEVER_FETCHED = ("*.py", "*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl", "*.pickle", "checkpoint-*", "logs/*")
"""Code, pickles and what a run leaves: never downloaded, whatever else matches."""


def read_index(source: str, hub: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the pipeline's folder and its index. From the Hub only the index is fetched.

    Classes of ours are named as hfgen's, whatever file the index says they come from.

    Args:
        source: a folder, or the name of a repository.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` of huggingface_hub.

    Raises:
        ValueError: there is no such folder or repository, or no pipeline in it.
        OSError: the Hub can't be reached and the cache does not hold it.
    """
    file = Path(source, INDEX)
    if os.path.isdir(source):
        if not file.exists():
            refuse_adapter(Path(source))
            raise ValueError(f"{source} is not a saved pipeline: there is no {INDEX} in it.")
    else:
        from huggingface_hub import hf_hub_download

        with one_line_errors(source):
            file = Path(hf_hub_download(source, INDEX, **hub))
    return file.parent, with_our_classes(read_json(file))


def with_our_classes(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return an index whose entries for classes of ours name hfgen, whatever file they name."""
    index = dict(index)
    for key, value in index.items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
            if key == "_class_name":
                index[key] = value[1]
            elif value[0] != "diffusers" and value[1] in COMPONENTS:
                index[key] = ["hfgen", value[1]]
    return index


def pipeline_class(index: Mapping[str, Any], source: str, front: type) -> type:
    """Return the pipeline class that an index names: `front` if it has this name, else one of the registry.

    Raises:
        ValueError: hfgen does not know the class, or it is no subclass of `front`.
    """
    name = index.get("_class_name")
    if name == front.__name__ and front.__name__ not in PIPELINES:  # one's own subclass, whose code is at hand
        return front
    if not isinstance(name, str) or name not in PIPELINES:
        raise ValueError(
            f"{source} holds {with_article(escaped(name)[:200])}. The families hfgen can load are: "
            f"{', '.join(PIPELINES)}."
        )
    cls = resolve(name)
    if not issubclass(cls, front):
        raise ValueError(
            f"{source} holds {with_article(name)}, not {with_article(front.__name__)}. "
            "HFGenPipeline.from_pretrained loads both."
        )
    return cls


def component_classes(cls: type, index: Mapping[str, Any], source: str, options: dict[str, Any]) -> dict[str, type]:
    """Return the classes of the components to load by name.

    They are the required components that `options` does not replace, and optional ones requested with `name=True`, or
    that the class loads wherever they were saved.
    Options of optional components are changed to what diffusers expects: none for one that is loaded, else None.

    Raises:
        ValueError: an optional component is requested that was not saved, or a class is not allowed.
    """
    for name in cls._optional_components:
        there = index.get(name) not in (None, [], [None, None])  # what else it may be, `component_class` refuses
        value = options.pop(name, True if there and name in cls._loaded_components else None)
        if value is True and not there:
            raise ValueError(f"{source} was saved without its {name}. Leave {name}=True out.")
        if value is not True:
            options[name] = None if value is False else value
    names = [name for name in cls._get_signature_keys(cls)[0] if name not in options]
    return {name: component_class(index.get(name), name, source) for name in names}


def component_class(entry: Any, key: str, source: str) -> type:
    """Return the class that an index names for a component: one of ours, a network or scheduler of diffusers, or a
    text encoder or tokenizer of transformers.

    Raises:
        ValueError: it is none of these.
    """
    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    cls = None
    if isinstance(name, str) and library == "hfgen" and name in COMPONENTS:
        cls = resolve(name)
    elif isinstance(name, str) and library == "diffusers":
        cls = getattr(diffusers, name, None)
    elif isinstance(name, str) and library == "transformers" and name in TRANSFORMERS:
        return text_components.transformers_class(name)
    if name == "TorchModel":
        raise ValueError(
            f"{source} has an own module as {key}, whose code is not there. Make the module, here Net(), and give it: "
            f'from_pretrained("{source}", {key}=hfgen.TorchModel.load(Net(), "{source}/{key}")).'
        )
    if not (isinstance(cls, type) and issubclass(cls, ModelMixin | SchedulerMixin)):
        raise ValueError(
            f"{source} has {escaped(entry)[:200]} as {key}, which is no network or scheduler of hfgen or diffusers, "
            "and no text encoder or tokenizer that hfgen loads from transformers."
        )
    return cls


def fetch(source: str, commit: str, components: Collection[str], variant: str | None, hub: Mapping[str, Any]) -> Path:
    """Download the components of one commit of a repository: configurations, tokenizers and safetensors, nothing else.

    Returns the folder.
    """
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*model.safetensors", "*model-?????-of-?????.safetensors"]
    patterns += [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"] if variant else []
    files = [INDEX, *(f"{name}/{pattern}" for name in components for pattern in patterns)]
    options = {**hub, "revision": commit, "allow_patterns": files, "ignore_patterns": list(NEVER_FETCHED)}
    with one_line_errors(source):
        return Path(snapshot_download(source, **options))


def check(folder: Path, classes: Mapping[str, type], variant: str | None) -> None:
    """Refuse components whose files hfgen does not trust; see `hfgen.saving.folders` and `text_components`.

    Raises:
        ValueError: says which file, and why.
        OSError: a file is missing.
    """
    for name, cls in classes.items():
        if issubclass(cls, ModelMixin):
            check_network(folder / name, cls, variant)
        elif issubclass(cls, SchedulerMixin):
            path = folder / name / cls.config_name
            check_option_types(path, read_json(path), cls)
        else:
            text_components.check(folder / name, cls, variant)


@contextlib.contextmanager
def without_code(folder: Path, classes: Mapping[str, type]) -> Iterator[Path]:
    """Give a folder in which diffusers and transformers find no code: the folder itself, or links to its files.

    diffusers takes some files for the code of an installed class, and transformers follows more files than hfgen
    allows.
    """
    ours = {name: cls for name, cls in classes.items() if issubclass(cls, ModelMixin | SchedulerMixin)}
    code = [Path("None.py"), *(Path(name, f"{library}.py") for name in ours for library in ("hfgen", "diffusers"))]
    if ours.keys() == classes.keys() and not any((folder / name).exists() for name in code):
        yield folder
        return
    with tempfile.TemporaryDirectory() as home:
        Path(home, INDEX).symlink_to((folder / INDEX).resolve())
        for name, cls in classes.items():
            if name not in ours:
                text_components.link_files(folder / name, Path(home, name), cls)
            elif (folder / name).is_dir():
                ignore = shutil.ignore_patterns("*.py")
                shutil.copytree(folder.resolve() / name, Path(home, name), ignore=ignore, copy_function=os.symlink)
        yield Path(home)
