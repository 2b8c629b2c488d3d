"""`hfgen push`: share a trained pipeline on the Hub, or list the files that would be shared."""

import dataclasses
from pathlib import Path

from ..options import Options, argument, option, parse, parser


@dataclasses.dataclass
class PushOptions(Options):
    """Pushing"""

    folder: str = argument("folder of a trained pipeline, or of an adapter")
    repo: str = argument("repository on the Hub: name, or owner/name", path=False)
    hub_private_repo: bool = option(False, "make a new repository private", former=("private",))
    hub_token: str | None = option(
        None, "token with write access; better: `hf auth login`, or HF_TOKEN in the environment", former=("token",)
    )
    revision: str | None = option(None, "branch to push to; default: main")
    dry_run: bool = option(False, "list files and sizes, and push nothing")


def main(argv: list[str] | None = None) -> None:
    """Push the pipeline of a folder, or list its files and their sizes."""
    description = "Push a pipeline with its card, pictures, metrics and configuration; other files of a run stay."
    example = "hfgen push outputs/quickstart someone/digits --dry_run"
    command = parser("hfgen push", description, example, PushOptions, config=False)
    (options,) = parse(command, argv, PushOptions)

    from ..saving import hub

    folder = Path(options.folder)
    if not options.dry_run:
        print(
            "Pushed to", hub.push(folder, options.repo, options.hub_private_repo, options.hub_token, options.revision)
        )
        return
    files = hub.files_to_push(folder, options.repo)
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(sizes.values()):>14,}  bytes in {len(sizes)} files would be pushed to {options.repo}")
