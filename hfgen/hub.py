"""Model cards, and pushing a finished folder to the Hub."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import __version__

NEVER = (
    *("checkpoint-*", "best/*", "logs/*", "pairs/*"),
    *("*.bin", "*.pkl", "*.ckpt", "*.pt", "*.pth", "*.py", ".*", "*/.*"),
)
"""What is never pushed: optimiser states, the best pipeline on the way, log files, couplings, hidden files, pickles,
code. `*` spans folders, too."""

_CARD = """
# {title}

{summary}

![samples](samples.png)

## Use

```python
from hfgen import HFGenPipeline

pipeline = HFGenPipeline.from_pretrained("{name}")
pipeline({call}).images[0].save("sample.png")
```

{animation}
## Training

| | |
|---|---|
{table}

The command that repeats it, with [config.yaml](config.yaml) from this folder:

```
{command}
```

Losses and rates over time are in [metrics.jsonl](metrics.jsonl), the figures above in [metrics.json](metrics.json).

## Use and limits

The model draws images like those it was trained on and knows nothing else; it may repeat images of its training data.
No quality metric has been measured unless one is listed above. Check the licence of the training data before sharing.
"""


def write_card(
    folder: Path,
    title: str,
    summary: str,
    call: str,
    facts: Mapping[str, Any],
    command: str,
    tags: list[str],
    data: str,
) -> None:
    """Write the folder's README.md: a model card with valid metadata, that says what the model is and how to use it.

    Args:
        folder: where the pipeline and its pictures lie.
        title, summary: a line each.
        call: the arguments of an example call, as text.
        facts: rows of the table, in order.
        command: what repeats the training.
        tags: of the metadata, beside hfgen's own.
        data: the data set: a Hub id goes to the metadata.
    """
    from huggingface_hub import ModelCard, ModelCardData

    known = data.count("/") <= 1 and not Path(data).exists()
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["hfgen", *tags],
        datasets=[data] if known and "/" in data else None,
    )
    text = _CARD.format(
        title=title,
        summary=summary,
        name=folder.name if folder.is_absolute() else folder,
        call=call,
        animation="![from noise to images](denoising.gif)\n" if (folder / "denoising.gif").exists() else "",
        table="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        command=command,
    )
    ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}").save(folder / "README.md")


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


def to_push(folder: Path) -> list[Path]:
    """The files of a pipeline's folder that a push would upload."""
    from huggingface_hub.utils import filter_repo_objects

    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [folder / name for name in filter_repo_objects(files, ignore_patterns=list(NEVER))]


def push(folder: Path, repo: str | None, private: bool = False, token: str | None = None) -> str:
    """Create the repository if need be and upload the pipeline's folder; returns the repository's address.

    Raises:
        ValueError: the folder holds no pipeline, or the Hub refused, for instance for want of a token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds no pipeline (no model_index.json); train one first.")
    api, repo = HfApi(token=token), repo or folder.resolve().name
    try:
        name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        done = api.upload_folder(
            folder_path=folder, repo_id=name, ignore_patterns=list(NEVER), commit_message="Upload pipeline"
        )
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        if error.response.status_code in (401, 403):
            reason = f"{reason.rstrip('.')}. Log in with `hf auth login`, or give a token that may write."
        raise ValueError(f"The Hub refused the push to {repo}: {reason}") from error
    return str(done.commit_url).split("/commit/")[0]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n")
