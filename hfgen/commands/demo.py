"""`hfgen demo`: a page in the browser that draws with a trained pipeline, here or as a Space of the Hub."""

import dataclasses
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Literal

from ..options import AnyOf, Options, argument, option, parse, parser, refuse_idle
from ..utils.devices import cast, place
from ..utils.ranges import ABOVE_0, Range
from .serve import PORT, named_source

EXAMPLE = "hfgen demo outputs/quickstart --port 7860"
GRADIO = "6.0"
"""Version of gradio that a Space gets where it is made without gradio."""


@dataclasses.dataclass
class DemoOptions(Options):
    """Demo"""

    pipeline: str = argument("folder of a trained pipeline, or its repository on the Hub; perhaps NAME=SOURCE")
    host: str = option("localhost", "address to serve at; 0.0.0.0: every one of this machine")
    port: int = option(7860, "port to serve at; 0: the first that is free from 7860 on", range=PORT)
    share: bool = option(
        False, "make a public address on gradio's servers, through which everyone can use this machine"
    )
    max_batch: int = option(16, "images at a time", range=Range(1, 64, whole=True))
    timeout: float = option(600.0, "seconds until an answer, at most", range=ABOVE_0)
    space: str | None = option(
        None, "write the files of a Space: to a folder, or to the Hub as hf://spaces/OWNER/NAME", path=True
    )
    hub_private_repo: bool = option(False, "make a new Space private", only_with=AnyOf(("space",)))
    dry_run: bool = option(
        False, "list the files of the Space and their sizes, and write nothing", only_with=AnyOf(("space",))
    )
    device: str | None = option(None, "cpu, cuda, mps; default: the best there is")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "precision of the networks")


def main(argv: list[str] | None = None) -> None:
    """Show the page until a signal comes, or write a Space.

    Raises:
        ValueError: gradio is missing, or the pipeline draws no images.
        OSError: the address is in use, or a file can't be read or written.
    """
    description = "Draw with a trained pipeline on a page in the browser, or write the files of a Space that does."
    command = parser("hfgen demo", description, EXAMPLE, DemoOptions, config=False)
    (options,) = parse(command, argv, DemoOptions)
    refuse_idle(options)
    name, source = named_source(options.pipeline)
    if options.space is not None:
        _write_space(options, name, source)
        return
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("hfgen demo needs gradio. Install it: pip install 'hfgen[demo]'")
    _show(options, name, source)


def _show(options: DemoOptions, name: str, source: str) -> None:
    """Show the page until a signal comes."""
    import hfgen

    from ..demo.studio import Studio

    pipeline = place(hfgen.HFGenPipeline.from_pretrained(source), options.device)
    if options.dtype != "float32":
        cast(pipeline, options.dtype)
    with Studio(pipeline, name, options.max_batch, options.timeout) as studio:
        from ..demo.page import launch_options, page_of

        page = page_of(studio)
        where = {"server_name": options.host, "server_port": options.port or None, "share": options.share}
        _, address, public = page.launch(**where, **launch_options(studio), prevent_thread_lock=True, quiet=True)
        print(f"{name}: {type(pipeline).__name__}, revision {studio.model.revision}")
        print(f"Serving at {public or address}", flush=True)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)


def _write_space(options: DemoOptions, name: str, source: str) -> None:
    """List the files of a Space, write them into a folder, or push them."""
    from ..demo.space import HUB, check_repo, push_space, sizes_of, space_files, write_space

    on_hub = options.space.startswith(HUB)
    repo = check_repo(options.space.removeprefix(HUB)) if on_hub else None
    if options.hub_private_repo and not on_hub:
        raise ValueError(
            f"--hub_private_repo is for a Space on the Hub, and --space {options.space} is a folder. Leave it out."
        )
    if Path(options.space).is_file():
        raise ValueError(f"--space {options.space} is a file. Give a folder, or {HUB}OWNER/NAME.")
    try:
        version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        version = GRADIO
    files = space_files(source, name, version)
    sizes = sizes_of(files)
    if options.dry_run:
        for file, size in sizes.items():
            print(f"{size:>14,}  {file}")
        print(f"{sum(sizes.values()):>14,}  bytes in {len(sizes)} files would be written to {options.space}")
    elif repo is not None:
        print("Pushed to", push_space(files, repo, options.hub_private_repo))
    else:
        write_space(files, Path(options.space))
        print(f"{len(sizes)} files in {options.space}. Try them: cd {options.space} && python app.py")
