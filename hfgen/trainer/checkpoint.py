"""Checkpoints that are whole or absent.

A checkpoint is written to a temporary folder, synced to disk, listed with sizes and hashes in `manifest.json` and only
then renamed to `checkpoint-N`; older ones are removed after that, renamed before their files go. Whatever happens in
between, each `checkpoint-N` is complete and the one before the newest still stands. What does not match its manifest is
refused by name, and so is a run that could not go on exactly from what was saved.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..options import EFFECTIVE_BATCH, TrainArgs
from ..options import resumable as resumable_options
from .state import SERVED

_MANIFEST = "manifest.json"
_STATE = "state.json"
_SAVING, _REMOVING = ".saving-", ".removing-"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, another run's or can't be written; the message names it and what to do."""


def save(
    accelerator: Accelerator,
    root: Path,
    step: int,
    modules: Mapping[str, Any],
    state: Mapping[str, Any],
    limit: int | None = None,
) -> Path:
    """Write `root/checkpoint-{step}` (to be called by every process) and keep the newest `limit`.

    accelerate saves what was prepared (networks, optimisers, loss scaler, sharded or not). Beside it are `modules`, a
    safetensors file each, named by their keys, and `state` as JSON.

    Raises:
        CheckpointError: the disk is full or can't be written; earlier checkpoints are untouched.
    """
    final, draft = root / f"checkpoint-{step}", root / f"{_SAVING}checkpoint-{step}"
    try:
        if accelerator.is_main_process:
            _clear(root)
            draft.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(draft))
        if accelerator.is_main_process:
            for stem, module in modules.items():
                tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
                save_file(tensors, draft / f"{stem}.safetensors")
            (draft / _STATE).write_text(json.dumps({"step": step, **state}, indent=2))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _seal(draft)
            _publish(draft, final, limit)
    except (OSError, RuntimeError, SafetensorError) as error:  # Python's, torch's and safetensors' for a full disk
        here = checkpoints(root)
        kept = f"What was saved before stands: {here[-1]}." if here else "None was saved before."
        shutil.rmtree(draft, ignore_errors=True)
        advice = "Make room, and the same command goes on from the newest checkpoint."
        raise CheckpointError(f"{final} can't be written: {error}. {kept} {advice}") from error
    accelerator.wait_for_everyone()
    return final


def _publish(draft: Path, final: Path, limit: int | None) -> None:
    """Give a sealed draft its name, and only then remove what is too old."""
    if final.exists():
        _remove(final)
    os.replace(draft, final)
    _sync(final.parent)
    for old in checkpoints(final.parent)[:-limit] if limit else []:
        _remove(old)


def _remove(folder: Path) -> None:
    """A checkpoint loses its name before it loses files, so that no part of one is ever taken for one."""
    doomed = folder.with_name(f"{_REMOVING}{folder.name}")
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def _clear(root: Path) -> None:
    """Remove what runs that were killed while saving or removing have left."""
    for prefix in (_SAVING, _REMOVING):
        for left in root.glob(f"{prefix}checkpoint-*"):
            shutil.rmtree(left)


def checkpoints(root: Path) -> list[Path]:
    """The folders `checkpoint-N` in `root`, oldest first."""
    found = [p for p in root.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """N of a folder `checkpoint-N`."""
    return int(folder.name.split("-")[1])


def find(root: Path, resume: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means: `latest`, a folder or its name in `root`, or `none`.

    Raises:
        CheckpointError: a folder that isn't there, or one that would have two runs mixed in `root`: `none`, or another
            than the newest, where there are checkpoints.
    """
    here = checkpoints(root)
    if resume == "latest":
        return here[-1] if here else None
    if resume == "none":
        if here:
            raise CheckpointError(
                f"{root} holds {here[-1].name} of an earlier run, but --resume_from_checkpoint none asks for a new "
                "one. Choose another --output_dir, or remove the folder."
            )
        return None
    folder = next((path for path in (Path(resume), root / resume) if path.is_dir()), None)
    if folder is None:
        names = ", ".join(p.name for p in here) or "none"
        raise CheckpointError(
            f"--resume_from_checkpoint {resume}: there is no such folder. In {root} there are: {names}."
        )
    if here and folder.resolve() != here[-1].resolve():
        raise CheckpointError(
            f"{root} holds {here[-1].name}, and a run from {folder} would mix with it. Give --resume_from_checkpoint "
            f"latest to go on from {here[-1].name}, or another --output_dir to go on from {folder}."
        )
    return folder


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: naming the first file that is missing, cut short or changed.
    """
    path = folder / _MANIFEST
    advice = f"Remove {folder} to go on from the checkpoint before it, or restore the file."
    try:
        manifest = {name: (size, digest) for name, (size, digest) in json.loads(path.read_text()).items()}
        if not {_STATE} <= manifest.keys() or any(Path(name).is_absolute() or ".." in name for name in manifest):
            raise ValueError(f"it lists no {_STATE}, or files outside the folder")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is missing or unreadable ({error}). {advice}") from None
    for name, (size, digest) in manifest.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing. {advice}")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes instead of {size}. {advice}")
        if _digest(file) != digest:
            raise CheckpointError(f"{file} does not have the contents that were saved. {advice}")


def load(
    accelerator: Accelerator,
    folder: Path,
    modules: Mapping[str, Any],
    config: Mapping[str, Any],
    resumable: Collection[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Restore what `save` wrote into the prepared objects and `modules`.

    Returns the saved state, and a line "name: old -> new" for each option that differs and is resumable: see `compare`.

    Raises:
        CheckpointError: a file is missing or damaged, or was saved by another run than one with options `config`.
    """
    verify(folder)
    try:
        state = json.loads((folder / _STATE).read_text())
        changed = compare(state["config"], config, resumable)
        accelerator.load_state(str(folder))
        for stem, module in modules.items():
            file = folder / f"{stem}.safetensors"
            if stem.startswith(SERVED) and not file.is_file():  # saved by hfgen 0.1, which did not keep them
                changed.append(f"buffers of {stem.removeprefix(SERVED)}: not in the checkpoint, so as they were loaded")
                continue
            module.load_state_dict(load_file(file))
    except Exception as error:  # of many types: each part has its own for state of another shape
        raise CheckpointError(
            f"{folder} does not fit this run: {error}\nUse the options that it was made with (in its {_STATE}), "
            "or another --output_dir for a new run."
        ) from error
    return state, changed


def compare(saved: Mapping[str, Any], present: Mapping[str, Any], resumable: Collection[str] = ()) -> list[str]:
    """Return the differences between the configuration of a checkpoint and the present one, as "name: old -> new".

    Entries that only one of them has can't be compared and are left out.

    Args:
        saved, present: configurations; nested mappings are compared entry by entry.
        resumable: names of entries that a resumed run may change, besides the resumable options of `TrainArgs` and
            `versions`. The parts of the effective batch may change as long as their product does not.

    Raises:
        ValueError: lists the differences in all other entries, which would make it another run.
    """
    differ = {name: (old, new) for name, old, new in _differences(saved, present)}
    lines = {name: f"{name}: {old} -> {new}" for name, (old, new) in differ.items()}
    batch = [math.prod(config.get(name, 1) for name in EFFECTIVE_BATCH) for config in (saved, present)]
    free = {*resumable_options(TrainArgs), *resumable, "versions", *(EFFECTIVE_BATCH if batch[0] == batch[1] else ())}
    if refused := [line for name, line in lines.items() if name.split("/")[0] not in free]:
        raise ValueError("; ".join(refused))
    return list(lines.values())


def _differences(saved: Any, present: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, Mapping) and isinstance(present, Mapping):
        for key in [key for key in saved if key in present]:
            yield from _differences(saved[key], present[key], f"{name}/{key}" if name else key)
    elif saved != present:
        yield name, saved, present


def _seal(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {str(p.relative_to(folder)): (p.stat().st_size, _digest(p)) for p in files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2))
    for path in [*files, folder / _MANIFEST, folder]:
        _sync(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
