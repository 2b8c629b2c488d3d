"""A demo as a Space of the Hub: its files, in a folder or pushed to a repository of its own."""

import re
from collections.abc import Mapping
from pathlib import Path

from hfgen import __version__

from ..console.text import escaped, quoted
from ..disk.saves import replacing_files
from ..disk.yaml_files import yaml_text
from ..saving.hub import files_to_push

HUB = "hf://spaces/"
"""Beginning of the name of a Space on the Hub, as huggingface_hub writes it."""

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
MODEL = "model"
"""Folder of the pipeline in a Space that holds it."""

_APP = '''"""A demo of a model, by hfgen."""

from hfgen import HFGenPipeline
from hfgen.demo.page import launch_options, page_of
from hfgen.demo.studio import Studio

studio = Studio(HFGenPipeline.from_pretrained({source}), {name})
demo = page_of(studio, {quoted_title})

if __name__ == "__main__":
    demo.launch(**launch_options(studio))
'''


def space_files(source: str, name: str, sdk_version: str) -> dict[str, Path | bytes]:
    """Return the files of a Space by their names: app.py, README.md, requirements.txt, and those of a local pipeline.

    Args:
        source: folder of a saved pipeline, which the Space then holds; or its name on the Hub, from where it loads.
        name: of the model.
        sdk_version: of gradio.

    Raises:
        ValueError: the folder holds no pipeline, or a file with a key in it.
    """
    local = Path(source).expanduser().is_dir()
    held = files_to_push(Path(source).expanduser()) if local else {}
    place, title = MODEL if local else source, f"{name}: a demo"
    app = _APP.format(source=quoted(place), name=quoted(name), quoted_title=quoted(title))
    header = {
        **{"title": escaped(title), "emoji": "\N{FRAME WITH PICTURE}", "sdk": "gradio", "sdk_version": sdk_version},
        **{"app_file": "app.py", "pinned": False, "tags": ["hfgen", "image-generation"]},
        **({} if local else {"models": [source]}),
    }
    text = (
        f"---\n{yaml_text(header)}---\n\n# {escaped(title, 'markdown')}\n\nMade by `hfgen demo --space`. Images are "
        "made by a model; each file says so.\n"
    )
    files: dict[str, Path | bytes] = {
        "app.py": app.encode(),
        "README.md": text.encode(),
        "requirements.txt": f"hfgen[demo]=={__version__}\n".encode(),
    }
    return {**files, **{f"{MODEL}/{file}": content for file, content in held.items()}}


def sizes_of(files: Mapping[str, Path | bytes]) -> dict[str, int]:
    """Return the bytes of files by their names."""
    return {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}


def write_space(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Write the files of a Space into a folder, all or none. Raises WriteError."""
    with replacing_files(folder, "the Space") as draft:
        for name, content in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            with open(draft / name, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.read_bytes())


def check_repo(repo: str) -> str:
    """Return the name of a Space, OWNER/NAME. Raises ValueError for one that is none."""
    if not NAME.fullmatch(repo):
        raise ValueError(f"{HUB}{repo} names no Space. Write {HUB}OWNER/NAME.")
    return repo


def push_space(files: Mapping[str, Path | bytes], repo: str, private: bool = False) -> str:
    """Make a Space, if there is none, and push its files; return its address.

    Raises:
        OSError: the Hub can't be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="hfgen", library_version=__version__)
    api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    changes = [CommitOperationAdd(name, content) for name, content in files.items()]
    api.create_commit(repo, changes, commit_message="A demo by hfgen", repo_type="space")
    return f"https://huggingface.co/spaces/{repo}"
