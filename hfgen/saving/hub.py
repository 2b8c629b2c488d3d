"""Pushing a finished folder to the Hub: what others need to use and judge the model, and nothing private."""

import contextlib
import fnmatch
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hfgen import __version__

from .card import brief_card, naming
from .portable import MARK

PUSHED = (
    "README.md",
    "LICENSE*",
    "config.yaml",
    "metrics.json",
    "metrics.jsonl",
    "model_index.json",
    *(f"{folder}*.{kind}" for folder in ("", "samples/") for kind in ("png", "gif", "jpg", "webp")),
)
"""What is pushed beside the components that the index names: card, configuration, figures, pictures.

Anything else stays: optimiser states, checkpoints, log files, hidden files, pickles, code that hfgen did not write."""

LOCAL = ("output_dir", "cache_dir", "resume_from_checkpoint")
"""Options whose values are always names of this machine."""

OWN = {"push_to_hub": False, "push_every": 0, "hub_model_id": None, "hub_private_repo": False}
"""Options that would push the run of whoever repeats it to where this one went, and what they become."""

SHIPPED = re.compile(r"(?:[^/]+/)?hfgen_\w+_[0-9a-f]{8}\.py")
"""Names of generated source files."""

TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


def versions() -> dict[str, str]:
    """Versions of what a run depends on, and the machine, to be kept with its results."""
    names = ("torch", "diffusers", "accelerate", "datasets", "transformers", "huggingface_hub")
    found = {"hfgen": __version__, "python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def to_push(folder: Path, repo: str | None = None) -> dict[str, Path | bytes]:
    """What a push would upload, by its name in the repository: a file, or what is pushed in its place.

    The card names the repository in its examples, and the configuration no folder of this machine.

    Raises:
        ValueError: the folder holds no pipeline, or a file that would be pushed holds an access token.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds no pipeline (no model_index.json); train one first.")
    wanted = _wanted(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    names = sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    chosen = [name for name in names if any(_matches(name, pattern) for pattern in wanted)]
    found: dict[str, Path | bytes] = {name: folder / name for name in chosen if _is_ours(folder / name)}
    for name, path in found.items():
        if not name.endswith((".safetensors", ".png", ".gif", ".jpg", ".webp")) and TOKEN.search(path.read_bytes()):
            raise ValueError(f"{folder / name} holds what looks like an access token. Take it out, then push.")
    if "README.md" in found:
        found["README.md"] = naming(found["README.md"].read_text(encoding="utf-8"), repo or folder.name).encode()
    if "config.yaml" in found:
        found["config.yaml"] = for_others(found["config.yaml"].read_text(encoding="utf-8")).encode()
    return found


def _wanted(index: Mapping[str, Any]) -> list[str]:
    """Patterns of what is pushed with this index."""
    entries = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    parts = {key: entry[0] for key, entry in entries.items() if all(isinstance(part, str) for part in entry)}
    code = [f"{'' if key == '_class_name' else f'{key}/'}{stem}.py" for key, stem in parts.items()]
    return [*PUSHED, *code, *(f"{key}/*.{kind}" for key in parts for kind in ("json", "safetensors"))]


def _matches(name: str, pattern: str) -> bool:
    """Whether a name in the repository fits; `*` stays within a folder, and hidden files never fit."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _is_ours(path: Path) -> bool:
    """Whether a file may be pushed as it is: code only where it was generated."""
    return path.suffix != ".py" or path.read_text(encoding="utf-8", errors="replace").startswith(MARK)


def for_others(config: str) -> str:
    """A saved configuration as others may use it: places of this machine cut to their last name, nothing pushed."""
    import yaml

    values = yaml.safe_load(config)
    for key, value in values.items() if isinstance(values, dict) else ():
        local = isinstance(value, str) and (value.startswith(("/", "~", "./", "../")) or Path(value).exists())
        if local or (key in LOCAL and value):
            values[key] = Path(value).name
    values = {key: OWN.get(key, value) for key, value in values.items()} if isinstance(values, dict) else values
    return yaml.safe_dump(values, sort_keys=False)


def push(
    folder: Path,
    repo: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload pipeline",
) -> str:
    """Make the repository if need be and upload the pipeline's folder in one commit; returns the repository's address.

    A card that is in the repository stays when the folder has none, and gets a short one when neither has. Nothing new
    is no commit. Source files that an earlier push shipped and that are no longer named are deleted.

    Args:
        folder: what `save_pretrained` or a training run wrote.
        repo: the repository; default: the folder's name, for the token's owner.
        private: whether a new repository is private.
        token: default: the one that `hf auth login` saved.
        revision: a branch, made if need be.
        create_pr: propose the change instead of making it.
        commit_message: the commit's.

    Raises:
        ValueError: the folder holds no pipeline, or the Hub refused, for instance for want of a token.
        OSError: the Hub can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo = repo or folder.resolve().name
    to_push(folder, repo)  # refuses before anything is created
    api = HfApi(token=token)
    with _explained(repo):
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(made.repo_id, revision=revision))
        files = to_push(folder, made.repo_id)
        if "README.md" not in {*files, *there}:
            files["README.md"] = brief_card(made.repo_id, "samples.png" in files).encode()
        changes: list[Any] = [CommitOperationAdd(name, _content(file)) for name, file in files.items()]
        old = [name for name in there - files.keys() if SHIPPED.fullmatch(name)]
        changes += [CommitOperationDelete(name) for name in sorted(old)]
        api.create_commit(
            made.repo_id, changes, commit_message=commit_message, revision=revision, create_pr=create_pr or None
        )
    return str(made)


def _content(file: Path | bytes) -> str | bytes:
    return file if isinstance(file, bytes) else str(file)


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    """What the Hub's client raises in a push, in one line."""
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
        raise OSError(f"The push to {repo} failed: {reason}. What was there is as it was; push again.") from error
    except (transport, RuntimeError) as error:  # a RuntimeError is how a failed upload of a large file is told
        reason = str(error).splitlines()[0].rstrip(".")
        raise OSError(f"The push to {repo} was cut off: {reason}. What was there is as it was; push again.") from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n")
