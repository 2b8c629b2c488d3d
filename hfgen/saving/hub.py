"""Pushing of a saved folder to the Hub: all that others need to use and judge the model, and nothing private."""

import contextlib
import fnmatch
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Collection, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from hfgen import __version__

from ..console.notes import tell
from ..disk.reading import check_regular, read_text
from ..disk.yaml_files import YAML_BYTES, parse_yaml, yaml_text
from ..registry import PIPELINES, resolve
from .card import brief_card, name_repository
from .errors import ADAPTER
from .folders import read_json
from .portable import MARK
from .saved import holds_adapter, was_cut_off
from .secrets import refuse_secrets

PUSHED = (
    "README.md",
    "LICENSE*",
    "config.yaml",
    "metrics.json",
    "metrics.jsonl",
    "model_index.json",
    *(f"{folder}*.{kind}" for folder in ("", "samples/") for kind in ("png", "gif", "jpg", "webp")),
)
"""Files that are pushed beside the components of the index: card, configuration, metrics, pictures.

Nothing else is pushed: no links, optimiser states, checkpoints, log files, hidden files, pickles or code of others."""

COMPONENT_FILES = (
    *(f"{name}config.json" for name in ("", "scheduler_", "generation_", "preprocessor_", "tokenizer_")),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *(f"{stem}*.safetensors{kind}" for stem in ("diffusion_pytorch_model", "model") for kind in ("", ".index*.json")),
)
"""Files of a component, as diffusers and transformers name them."""

PATH_OPTIONS = ("output_dir", "cache_dir", "resume_from_checkpoint", "text")
"""Options of a run that always hold paths of this machine."""

PUSH_OPTIONS = {"push_to_hub": False, "push_every": 0, "hub_model_id": None, "hub_private_repo": False}
"""Options of pushing and their values in the pushed configuration: a repeated run must not push to the same place."""

SOURCE_FILES = re.compile(r"(?:[^/]+/)?hfgen_\w+_[0-9a-f]{8}\.py")
"""Names of generated source files."""

NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
"""Names of classes, modules and packages in an index."""

RUN_FOLDERS = ("best", "logs", "samples", "checkpoints", "plans", "rows", "probes")
"""Folders of a run beside its pipeline, which are no components."""


def versions() -> dict[str, str]:
    """Return the versions of Python, of the packages that a run depends on, and of the platform."""
    names = ("torch", "diffusers", "accelerate", "datasets", "transformers", "huggingface_hub", "peft")
    installed = {"hfgen": __version__, "python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in names:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def files_to_push(folder: Path, repo: str | None = None) -> dict[str, Path | bytes]:
    """Return what a push uploads by its name in the repository: a file, or other content for a changed one.

    In the card the examples name the repository. In the configuration paths of this machine are cut.

    Args:
        folder: of a saved pipeline, or of an adapter.
        repo: name of the repository; default: the folder's name.

    Raises:
        ValueError: the folder holds neither, its index is a link, or a file that would be pushed seems to hold an
            access token or a key, in its text or its metadata; names the file and the place.
    """
    if repo is not None:
        _check_name(repo)
    if was_cut_off(folder):
        raise ValueError(f"{folder}: the last save of this pipeline was cut off. Save it again, then push.")
    main = folder / (ADAPTER if holds_adapter(folder) else "model_index.json")
    if not main.exists():
        raise ValueError(f"{folder} holds no pipeline (no model_index.json); train one first.")
    if main.is_symlink():
        raise ValueError(f"{folder} holds links to files elsewhere, which are never pushed. Push a copy: cp -rL.")
    patterns = [*PUSHED, ADAPTER] if main.name == ADAPTER else _patterns(read_json(main), main)
    names = sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
    links = [name for name in names if _is_linked(folder, name)]
    if links:
        listed = ", ".join(f"{Path(name).name} in {(folder / name).parent}" for name in links)
        tell(f"links are not pushed: {listed}.")
    names = [name for name in names if name not in links and _may_be_pushed(folder / name)]
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    for name in names:
        refuse_secrets(folder / name)
    if "README.md" in files:
        card = read_text(files["README.md"])
        files["README.md"] = name_repository(card, repo or folder.name).encode()
    if "config.yaml" in files:
        files["config.yaml"] = shareable_config(read_text(files["config.yaml"], YAML_BYTES)).encode()
    return files


def adapter_base(file: Path) -> str:
    """Return the base that an adapter's file names, `the pipeline that it was trained for` if it names none."""
    from safetensors import safe_open

    check_regular(file)
    with safe_open(file, framework="pt") as opened, contextlib.suppress(ValueError, RecursionError, AttributeError):
        base = json.loads((opened.metadata() or {}).get("hfgen", "{}")).get("base")
        if isinstance(base, str):
            return base
    return "the pipeline that it was trained for"


def _patterns(index: Mapping[str, Any], path: Path) -> list[str]:
    """Return patterns of the files that are pushed with this index: only its components have any, by plain names.

    Says which entries are none.
    """
    cls = index.get("_class_name")
    cls = cls[1] if isinstance(cls, list) and len(cls) == 2 else cls
    known = signature(resolve(cls).__init__).parameters if isinstance(cls, str) and cls in PIPELINES else None
    entries = {key: value for key, value in index.items() if isinstance(value, list) and value != [None, None]}
    parts = {key: entry for key, entry in entries.items() if _is_component(key, entry, known)}
    if others := sorted(entries.keys() - parts.keys()):
        listed = ", ".join(repr(key[:60]) for key in others[:10])
        tell(f"what {path} lists as {listed} is no component, and is not pushed.")
    code = [f"{'' if key == '_class_name' else f'{key}/'}{entry[0]}.py" for key, entry in parts.items()]
    folders = [key for key in parts if key not in ("_class_name", *RUN_FOLDERS)]
    return [*PUSHED, *code, *(f"{key}/{file}" for key in folders for file in COMPONENT_FILES)]


def _is_component(key: str, entry: Any, known: Collection[str] | None) -> bool:
    """Return whether an entry of an index is the class of a component: one of `known`, if the pipeline's are known."""
    named = len(entry) == 2 and all(isinstance(part, str) and NAME.fullmatch(part) for part in entry)
    return named and NAME.fullmatch(key) is not None and (known is None or key == "_class_name" or key in known)


def _is_linked(folder: Path, name: str) -> bool:
    """Return whether a file, or a folder on the way to it, is a link."""
    path = folder / name
    return any(part.is_symlink() for part in (path, *path.parents[: name.count("/")]))


def _matches(name: str, pattern: str) -> bool:
    """Return whether a name fits a pattern. `*` does not cross folders, and hidden files never fit."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _may_be_pushed(path: Path) -> bool:
    """Return whether a file is no code, or code that hfgen generated."""
    return path.suffix != ".py" or path.read_text(encoding="utf-8", errors="replace").startswith(MARK)


def shareable_config(config: str) -> str:
    """Return a saved configuration for others: paths of this machine are cut to their last name, pushing is off."""
    values = parse_yaml(config, "config.yaml")
    if not isinstance(values, dict):
        return yaml_text(values)
    for key, value in values.items():
        is_path = isinstance(value, str) and (value.startswith(("/", "~", "./", "../")) or os.path.exists(value))
        if is_path or (key in PATH_OPTIONS and value):
            values[key] = Path(value).name
    return yaml_text({key: PUSH_OPTIONS.get(key, value) for key, value in values.items()})


def push(
    folder: Path,
    repo: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload pipeline",
) -> str:
    """Upload the pipeline's folder to a repository in one commit, and return the repository's address.

    The repository is made if there is none. If the folder has no card, that of the repository stays, and if neither has
    one, a short card is written. If nothing changed there is no commit. Source files of an earlier push that the index
    no longer names are deleted.

    Args:
        folder: of a saved pipeline, an adapter, or a finished training run.
        repo: name of the repository; default: the folder's name, for the token's owner.
        private: whether a new repository is private.
        token: default: the one that `hf auth login` saved.
        revision: a branch; it is made if there is none.
        create_pr: open a pull request instead of committing to the branch.
        commit_message: of the commit.

    Raises:
        ValueError: the folder holds no pipeline, or the Hub refused, for instance for lack of a token.
        OSError: the Hub can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo = repo or folder.resolve().name
    files_to_push(folder, repo)  # refuses before anything is created
    api = HfApi(token=token)
    with _one_line_errors(repo):
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        remote = set(api.list_repo_files(url.repo_id, revision=revision))
        files = files_to_push(folder, url.repo_id)
        if "README.md" not in {*files, *remote}:
            base = adapter_base(folder / ADAPTER) if ADAPTER in files else None
            files["README.md"] = brief_card(url.repo_id, "samples.png" in files, base).encode()
        changes: list[Any] = [CommitOperationAdd(name, _content(file)) for name, file in files.items()]
        old = [name for name in remote - files.keys() if SOURCE_FILES.fullmatch(name)]
        changes += [CommitOperationDelete(name) for name in sorted(old)]
        api.create_commit(
            url.repo_id, changes, commit_message=commit_message, revision=revision, create_pr=create_pr or None
        )
    return str(url)


def _check_name(repo: str) -> None:
    """Raise ValueError for a name that the Hub accepts for no repository."""
    from huggingface_hub.utils import validate_repo_id

    with _one_line_errors(repo):
        validate_repo_id(repo)


def _content(file: Path | bytes) -> str | bytes:
    return file if isinstance(file, bytes) else str(file)


@contextlib.contextmanager
def _one_line_errors(repo: str) -> Iterator[None]:
    """Turn errors of the Hub's client in a push into a ValueError or OSError of one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    transport = HfHubHTTPError.__bases__[0]  # of whatever HTTP library this release of the client is built on
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo!r} can't be a repository's name: {error}") from error
    except HfHubHTTPError as error:
        reason, status = error.server_message or str(error).splitlines()[0], error.response.status_code
        if status in (401, 403):
            reason = f"{reason.rstrip('.')}. Log in with `hf auth login`, or give a token that may write."
        if status < 500:
            raise ValueError(f"The Hub refused the push to {repo}: {reason}") from error
        raise OSError(f"The push to {repo} failed: {reason}. The repository is unchanged; push again.") from error
    except (transport, RuntimeError) as error:  # the client raises RuntimeError if the upload of a large file fails
        reason = str(error).splitlines()[0].rstrip(".")
        raise OSError(f"The push to {repo} was cut off: {reason}. The repository is unchanged; push again.") from error
