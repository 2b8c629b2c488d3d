"""Files that belong together, as those of a pipeline: a reader has all of one save, or is told that there are none.

No file system changes many names at once. So the files of a save are first written to a folder of their own beside
the former ones, which then gets its name, `.pipeline-2.new` for a second save. From there on, first the former files
are removed, then the new ones are moved in, so that files of two saves never lie side by side. A file that is
removed first and moved last, as an index, says by being there that all others are. A save that was cut off in between
is whole in both places together: `whole_folder` reads it, and the next save replaces it.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError

from ..console.notes import tell
from .files import DRAFT, WriteError, draft_of, require_writable, sync_to_disk, write_json
from .lock import exclusive
from .reading import read_object

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
"""A part of weights that are saved in several files; the first group is the name of the whole."""

SAVE = re.compile(r"\.(.+)-(\d{1,9})\.new", re.DOTALL)
"""Folders of saves: what is saved, and the number of the save."""

PATIENCE = 0.5
"""Seconds after which a save whose files are not all moved counts as cut off."""

LIST = ".files.json"
"""File in the folder of a save that lists all files of the save."""


@contextlib.contextmanager
def replacing_files(folder: Path, name: str, last: str | None = None, sync: bool = True) -> Iterator[Path]:
    """Yield an empty temporary folder; after the block its files replace those of the same names in `folder`.

    All are on disk before the first one is replaced. Other files in the folder stay, but for parts of weights that were
    saved in another number of files before.

    Args:
        folder: the folder.
        name: of what is saved. Saves of other names are other files.
        last: the file that is there only if all others are.
        sync: flush the files to disk first; not worth the time for many pictures.

    Raises:
        WriteError: a file can't be written. Before the first former file is removed, all of them are there; after it,
            `whole_folder` has the new ones.
        FolderInUseError: another process saves there.
    """
    folder = Path(os.path.realpath(folder))
    draft, made = draft_of(folder / name), not folder.exists()
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        files = [path.relative_to(draft) for path in draft.rglob("*") if path.is_file()]
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            if (folder / file).exists():
                require_writable(folder / file)
            if sync:
                sync_to_disk(draft / file)
        write_json(draft / LIST, {"files": sorted(file.as_posix() for file in files)})
        with exclusive(folder / name):
            _replace(folder, name, draft, sorted(files, key=lambda file: (str(file) == last, str(file))))
    except WriteError as error:
        raise WriteError(folder, error.__cause__ or error) from error
    except (OSError, SafetensorError) as error:
        raise WriteError(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds files, unless nothing was saved
            if made:
                folder.rmdir()


def _replace(folder: Path, name: str, draft: Path, files: list[Path]) -> None:
    """Move files from `draft` into `folder`, in this order, after all former ones are removed in the reverse one."""
    former = _saves(folder, name)
    save = folder / f".{name}-{max(former, default=0) + 1}.new"
    os.replace(draft, save)
    sync_to_disk(folder)
    for path in former.values():
        shutil.rmtree(path)
    for file in reversed(files):
        (folder / file).unlink(missing_ok=True)
    for file in files:
        _remove_former_parts(folder / file, {folder / each for each in files})
    for file in files:
        os.replace(save / file, folder / file)
    shutil.rmtree(save, ignore_errors=True)  # what is left of it says nothing beside the last file


def _saves(folder: Path, name: str) -> dict[int, Path]:
    """Return the folders of saves that were cut off, by their numbers in ascending order."""
    found = ((SAVE.fullmatch(path.name), path) for path in folder.glob(f".{name}-*.new"))
    return dict(sorted((int(match[2]), path) for match, path in found if match and path.is_dir()))


def is_unfinished(name: str) -> bool:
    """Return whether this is the name of what hfgen has not finished writing: no data of anybody."""
    return bool(DRAFT.fullmatch(name) or SAVE.fullmatch(name))


def _remove_former_parts(weights: Path, new: set[Path]) -> None:
    """Remove the files of an earlier save of these weights, which had more files or fewer."""
    if weights.suffix != ".safetensors":
        return
    whole = _whole_of(weights)
    name, *variant = whole.split(".")
    former = [path for path in weights.parent.glob(f"{name}*.safetensors") if _whole_of(path) == whole]
    former.append(weights.with_name(".".join([name, "safetensors", "index", *variant, "json"])))
    for path in former:
        if path not in new:
            path.unlink(missing_ok=True)


def _whole_of(weights: Path) -> str:
    part = SHARD.fullmatch(weights.name)
    return part[1] if part else weights.stem


def is_cut_off(folder: Path, name: str, last: str) -> bool:
    """Return whether the newest save was cut off while its files were moved: `last` is only in the save's folder.

    Another process may be moving them at this moment, which takes no second.
    """
    end = time.monotonic() + PATIENCE
    while not (folder / last).exists() and _saves(folder, name):
        if time.monotonic() > end:
            return True
        time.sleep(PATIENCE / 10)
    return False


@contextlib.contextmanager
def whole_folder(folder: Path, name: str, last: str) -> Iterator[Path]:
    """Yield a folder with the files of the newest save: the folder itself, or links if that save was cut off.

    Nothing is written to the folder, which may be a stranger's.

    Args:
        folder, name, last: as for `replacing_files`.

    Raises:
        ValueError: what is left of a save that was cut off is damaged.
        OSError: it can't be read.
    """
    if not is_cut_off(folder, name, last):
        yield folder
        return
    save = list(_saves(folder, name).values())[-1]
    files = read_object(save / LIST).get("files")
    if not isinstance(files, list) or not all(map(_is_inside, files)):
        raise ValueError(f"{save / LIST} lists no files of a save. Remove {save}, and save {folder} again.")
    tell(f"{folder}: the last save was cut off. What it has not yet moved is read from {save.name}.")
    with tempfile.TemporaryDirectory() as home:
        for file in files:
            place = next((place for place in (save / file, folder / file) if place.exists()), None)
            if place is None:
                raise ValueError(f"{folder} was cut off while it was saved, and lacks {file}. Save it again.")
            Path(home, file).parent.mkdir(parents=True, exist_ok=True)
            Path(home, file).symlink_to(place.resolve())
        yield Path(home)


def _is_inside(name: object) -> bool:
    """Return whether this is the name of a file in a folder or below it."""
    return isinstance(name, str) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
