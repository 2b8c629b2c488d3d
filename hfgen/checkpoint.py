"""Checkpoints that are whole or absent.

A checkpoint is written to a temporary folder, synced to disk, listed with sizes and hashes in `manifest.json` and only
then renamed to `checkpoint-N`; older ones are removed after that. Whatever happens in between, `checkpoint-N` is
complete and the one before it still stands. What does not match its manifest is refused by name.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

_MANIFEST = "manifest.json"
_STATE = "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint is missing or damaged; the message names the file and what to do."""


def save(
    accelerator: Accelerator,
    root: Path,
    step: int,
    averages: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    limit: int | None = None,
) -> Path:
    """Write `root/checkpoint-{step}` (to be called by every process) and keep the newest `limit`.

    accelerate saves what was prepared (networks, optimisers, loss scaler, sharded or not); `averages` are saved as
    safetensors beside it, `state` as JSON.

    Raises:
        OSError: the disk is full or can't be written; earlier checkpoints are untouched.
    """
    final, draft = root / f"checkpoint-{step}", root / f".saving-checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(draft))
    if accelerator.is_main_process:
        for name, average in averages.items():
            tensors = {key: value.contiguous() for key, value in average.state_dict().items()}
            save_file(tensors, draft / f"ema_{name}.safetensors")
        (draft / _STATE).write_text(json.dumps({"step": step, **state}, indent=2))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _seal(draft)
        shutil.rmtree(final, ignore_errors=True)  # the same step saved again
        os.replace(draft, final)
        _sync(root)
        for old in checkpoints(root)[: -limit if limit else None] if limit else []:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def checkpoints(root: Path) -> list[Path]:
    """The folders `checkpoint-N` in `root`, oldest first."""
    found = [p for p in root.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def find(root: Path, resume: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means: `latest`, a folder or its name in `root`, or `none`.

    Raises:
        CheckpointError: a folder that isn't there, or `none` with checkpoints that the run would mix with.
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
    for folder in (Path(resume), root / resume):
        if folder.is_dir():
            return folder
    names = ", ".join(p.name for p in here) or "none"
    raise CheckpointError(f"--resume_from_checkpoint {resume}: there is no such folder. In {root} there are: {names}.")


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: naming the first file that is missing, cut short or changed.
    """
    path = folder / _MANIFEST
    advice = f"Remove {folder} to go on from the checkpoint before it, or restore the file."
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or unreadable ({error}). {advice}") from None
    for name, (size, digest) in manifest.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing. {advice}")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes instead of {size}. {advice}")
        if _digest(file) != digest:
            raise CheckpointError(f"{file} does not have the contents that were saved. {advice}")


def load(accelerator: Accelerator, folder: Path, averages: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Restore what `save` wrote into the prepared objects and `averages`; returns the state.

    Raises:
        CheckpointError: a file is missing or damaged, or was saved by a run of another shape.
    """
    verify(folder)
    try:
        accelerator.load_state(str(folder))
        for name, average in averages.items():
            average.load_state_dict(load_file(folder / f"ema_{name}.safetensors"))
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise CheckpointError(
            f"{folder} does not fit this run: {error}\nUse the options that it was made with (in its {_STATE}), "
            "or another --output_dir for a new run."
        ) from error
    return json.loads((folder / _STATE).read_text())


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
