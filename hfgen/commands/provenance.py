"""`hfgen provenance`: what image files say about the model that drew them."""

import dataclasses
import json

from ..console.text import escaped
from ..options import Options, argument, option, parse, parser

EXAMPLE = "hfgen provenance outputs/quickstart/samples.png"
NONE = "no provenance: the file does not say what made it"


@dataclasses.dataclass
class ProvenanceOptions(Options):
    """Provenance"""

    images: list[str] = argument("image files", path=True)  # noqa: RUF009 - it returns a field; Ruff sees a list
    json: bool = option(False, "print JSON, an object for each file")


def main(argv: list[str] | None = None) -> None:
    """Print a table for each file, or JSON.

    Raises:
        ValueError, OSError: a file that can't be read.
    """
    description = (
        "Read what image files say about their origin: model, revision, seed, scheduler, steps, version, and whether "
        "they are declared as generated. Anyone can write or remove such entries: they are no proof."
    )
    command = parser("hfgen provenance", description, EXAMPLE, ProvenanceOptions, config=False)
    (options,) = parse(command, argv, ProvenanceOptions)

    from ..utils.provenance import read_provenance

    found = {path: read_provenance(path) for path in options.images}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for path, entries in found.items():
        print(escaped(path) + (":" if entries else f": {NONE}"))
        for name, text in entries.items():
            print(f"  {name + ':':21} {escaped(text)}")
