"""Checkpoints that are whole or absent.

A checkpoint is written to a temporary folder and synced to disk. `manifest.json` lists its files with sizes and hashes.
Only then is the folder renamed to `checkpoint-N`. Older checkpoints are removed last, and renamed before their files
are deleted. So each `checkpoint-N` is complete at any moment, whatever interrupts the process, and a failed save leaves
the previous one intact. Loading refuses files that do not match the manifest, and runs that can't continue exactly.
"""

import contextlib
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
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from ..console.notes import tell
from ..disk.files import WriteError, read_json, sync_to_disk
from ..disk.kinds import count, entry, listed, number, optional
from ..disk.reading import read_object
from ..options import EFFECTIVE_BATCH, TrainArgs
from ..options import resumable as resumable_options
from .engine import Engine
from .plan import STATE as PLAN

_MANIFEST = "manifest.json"
_STATE = "state.json"
_SAVING, _REMOVING = ".saving-", ".removing-"
PENDING = listed(lambda row: isinstance(row, list) and len(row) == 3)
"""Kind of the values of a log that were not yet written."""
STATE = {
    "step": count,
    "config": entry({}),
    "log": optional(entry({"seconds": number, "pending": PENDING}, frozenset({"seconds", "pending"}))),
    "plan": optional(PLAN),
}
"""What state.json holds, besides what a caller of `save` gives."""
FORMER = {"optimizer": "adamw", "batches_per_step": 1}
"""Entries that configurations of older checkpoints lack, with the values that all of them were trained with."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, of another run or can't be written; the message names it and the fix."""


def save(
    engine: Engine,
    root: Path,
    step: int,
    modules: Mapping[str, Any],
    state: Mapping[str, Any],
    limit: int | None = None,
) -> Path:
    """Write `root/checkpoint-{step}` and remove all but the newest `limit` checkpoints. Every process must call this.

    The engine writes networks, optimisers and `modules`: averages, an objective's state, buffers. `state` becomes JSON.

    Raises:
        CheckpointError: the disk is full or can't be written; earlier checkpoints are untouched.
    """
    final, draft = root / f"checkpoint-{step}", root / f"{_SAVING}checkpoint-{step}"
    accelerator = engine.accelerator
    try:
        if accelerator.is_main_process:
            _clear(root)
            draft.mkdir(parents=True)
        accelerator.wait_for_everyone()
        engine.save(draft, modules)
        if accelerator.is_main_process:
            (draft / _STATE).write_text(json.dumps({"step": step, **state}, indent=2))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _seal(draft)
            _publish(draft, final, limit)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # what a full disk raises, by library
        earlier = checkpoints(root)
        newest = f"The checkpoint before it is intact: {earlier[-1]}." if earlier else "There is no earlier checkpoint."
        shutil.rmtree(draft, ignore_errors=True)
        failed = WriteError(final, error)
        advice = f"{failed.advice}; the same command then continues from the newest checkpoint."
        raise CheckpointError(f"{final} can't be written: {failed.reason}. {newest} {advice}") from error
    accelerator.wait_for_everyone()
    return final


def _publish(draft: Path, final: Path, limit: int | None) -> None:
    """Rename a sealed draft to its final name, then remove the oldest checkpoints beyond `limit`.

    One that can't be removed is said and left: the new checkpoint is whole.
    """
    former = _set_aside(final) if final.exists() else None
    try:
        os.replace(draft, final)
    except OSError:
        if former is not None:
            os.replace(former, final)
        raise
    sync_to_disk(final.parent)
    old = checkpoints(final.parent)[:-limit] if limit else []
    try:
        for folder in [_set_aside(folder) for folder in old] + ([] if former is None else [former]):
            shutil.rmtree(folder)
    except OSError as error:
        tell(f"older checkpoints than {final} can't be removed ({error.strerror or error}); they take up space.")


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint that is to be removed, so that a half-deleted folder is never taken for a checkpoint."""
    renamed = folder.with_name(f"{_REMOVING}{folder.name}")
    os.replace(folder, renamed)
    return renamed


def _clear(root: Path) -> None:
    """Remove the partial folders of runs that were killed while saving or removing."""
    for prefix in (_SAVING, _REMOVING):
        for folder in root.glob(f"{prefix}checkpoint-*"):
            shutil.rmtree(folder)


def clear(root: Path) -> None:
    """Remove what killed runs left of checkpoints that they were saving or removing. What can't be removed stays: it is
    in nobody's way."""
    with contextlib.suppress(OSError):
        _clear(root)


def checkpoints(root: Path) -> list[Path]:
    """Return the folders `checkpoint-N` in `root`, oldest first."""
    folders = [p for p in root.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    """Return N of a folder `checkpoint-N`."""
    return int(folder.name.split("-")[1])


def find(root: Path, resume: str) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint` names, None for a new run.

    Args:
        root: the output folder of the run.
        resume: `latest`, a folder or its name in `root`, or `none`.

    Raises:
        CheckpointError: there is no such folder; or `root` has checkpoints, and `resume` is `none` or not the newest of
            them, so that two runs would mix.
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
            f"latest to continue from {here[-1].name}, or another --output_dir to continue from {folder}."
        )
    return folder


def saved_config(root: Path, resume: str) -> dict[str, Any] | None:
    """Return the configuration in the checkpoint that a run goes on from; None if there is none that can be read."""
    try:
        folder = find(root, resume)
        config = None if folder is None else read_object(folder / _STATE).get("config")
    except (CheckpointError, OSError, ValueError, RecursionError):  # `load` says what is wrong
        return None
    return config if isinstance(config, dict) else None


def of_all_processes(folder: Path | None, accelerator: Accelerator) -> Path | None:
    """Return the checkpoint that the main process has found: other nodes may see a disk as it was a minute before.

    Raises:
        CheckpointError: this process does not see it at all.
    """
    if accelerator.num_processes == 1:
        return folder
    (found,) = broadcast_object_list([folder])
    if found is not None and not found.is_dir():
        raise CheckpointError(
            f"{found} is not on the disk of process {accelerator.process_index}. Put --output_dir on a disk that all "
            "nodes share."
        )
    return found


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: names the first file that is missing, truncated or changed.
    """
    path = folder / _MANIFEST
    advice = f"Remove {folder} to continue from the checkpoint before it, or restore the file."
    try:
        manifest = {name: (size, digest) for name, (size, digest) in read_object(path).items()}
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
            raise CheckpointError(f"{file} was changed after it was saved: its hash differs. {advice}")


def load(
    engine: Engine,
    folder: Path,
    modules: Mapping[str, Any],
    config: Mapping[str, Any],
    resumable: Collection[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Restore what `save` wrote into what the engine has prepared and into `modules`.

    Args:
        engine: has prepared the same networks as the run that was saved.
        folder: the checkpoint.
        modules: as for `save`.
        config: the present configuration.
        resumable: names of its entries that a resumed run may change: see `compare`.

    Returns:
        The saved state, and a line "name: old -> new" for each change of the configuration.

    Raises:
        CheckpointError: a file is missing or damaged, or the configuration is that of another run.
    """
    verify(folder)
    try:
        state = read_json(folder / _STATE, "", STATE)
        changed = compare(state["config"], config, resumable)
        changed += engine.load(folder, modules)
    except Exception as error:  # each part raises its own type for a state of another shape
        raise CheckpointError(
            f"{folder} does not fit this run: {error}\nUse the options that it was saved with (in its {_STATE}), "
            "or another --output_dir for a new run."
        ) from error
    return state, changed


def compare(saved: Mapping[str, Any], present: Mapping[str, Any], resumable: Collection[str] = ()) -> list[str]:
    """Return the differences between the configuration of a checkpoint and the present one, as "name: old -> new".

    Entries that only one of them has can't be compared and are left out, except that an older checkpoint was trained
    with the values FORMER.

    Args:
        saved, present: configurations; nested mappings are compared entry by entry.
        resumable: names of entries that a resumed run may change, besides the resumable options of `TrainArgs`,
            `versions` and `random_streams`. The parts of the effective batch may change as long as their product does
            not.

    Raises:
        ValueError: lists the differences in all other entries, which would make it another run.
    """
    saved = {**FORMER, **saved}
    lines = {name: f"{name}: {old} -> {new}" for name, old, new in _differences(saved, present)}
    batch = [math.prod(config.get(name, 1) for name in EFFECTIVE_BATCH) for config in (saved, present)]
    free = {
        *resumable_options(TrainArgs),
        *resumable,
        "versions",
        "random_streams",
        *(EFFECTIVE_BATCH if batch[0] == batch[1] else ()),
    }
    if refused := [line for name, line in lines.items() if name.split("/")[0] not in free]:
        raise ValueError("; ".join(refused))
    return list(lines.values())


def _differences(saved: Any, present: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, saved value, present value) of entries that differ; names of nested entries are "outer/inner"."""
    if isinstance(saved, Mapping) and isinstance(present, Mapping):
        for key in [key for key in saved if key in present]:
            yield from _differences(saved[key], present[key], f"{name}/{key}" if name else key)
    elif saved != present:
        yield name, saved, present


def _seal(folder: Path) -> None:
    """Write the manifest of a folder and sync all its files to disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {str(p.relative_to(folder)): (p.stat().st_size, _digest(p)) for p in files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2))
    for path in [*files, folder / _MANIFEST, folder]:
        sync_to_disk(path)


def _digest(path: Path) -> str:
    """Return the BLAKE2b hash of a file in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
