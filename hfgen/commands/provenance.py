"""`hfgen provenance`: what image files say about the model that drew them."""

import dataclasses
import json

from ..console.text import escaped
from ..options import AnyOf, Options, argument, option, parse, parser, refuse_idle

EXAMPLE = "hfgen provenance outputs/quickstart/samples.png"
NONE = "no provenance: the file does not say what made it"


@dataclasses.dataclass
class ProvenanceOptions(Options):
    """Provenance"""

    images: list[str] = argument("image files", path=True)  # noqa: RUF009 - it returns a field; Ruff sees a list
    json: bool = option(False, "print JSON, an object for each file")
    certificate: str | None = option(
        None, "sign the files first: PEM file with your certificate and those above it", path=True
    )
    key: str | None = option(None, "PEM file with its private key", only_with=AnyOf(("certificate",)), path=True)


def main(argv: list[str] | None = None) -> None:
    """Print a table for each file, or JSON.

    Raises:
        ValueError, OSError: a file that can't be read.
    """
    description = (
        "Read what image files say about their origin: model, revision, seed, scheduler, steps, version, and whether "
        "they are declared as generated. Anyone can write or remove such entries: they are no proof. A signature "
        "(C2PA, the extra hfgen[c2pa]) shows who made the entries that begin with signed_."
    )
    command = parser("hfgen provenance", description, EXAMPLE, ProvenanceOptions, config=False)
    (options,) = parse(command, argv, ProvenanceOptions)
    refuse_idle(options)
    if options.certificate is not None and options.key is None:
        raise ValueError("--certificate signs with a private key. Name its file: --key FILE.")

    from ..utils.content_credentials import read_credentials, sign_image
    from ..utils.provenance import read_provenance

    for path in options.images if options.certificate is not None else []:
        sign_image(path, options.certificate, options.key)
    found = {path: {**read_provenance(path), **read_credentials(path)} for path in options.images}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for path, entries in found.items():
        print(escaped(path) + (":" if entries else f": {NONE}"))
        for name, text in entries.items():
            print(f"  {name + ':':21} {escaped(text)}")
