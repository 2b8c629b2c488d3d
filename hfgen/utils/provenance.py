"""Provenance of images: what drew them, written into their files, and read from files that may hold anything.

PNG files get text chunks `hfgen:model`, `hfgen:seed`, ... and an XMP packet with the IPTC's digital source type, by
which search engines and social networks know generated media. JPEG and WebP files get the packet alone.
"""

import copy
import dataclasses
import json
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image, PngImagePlugin

from hfgen import __version__

from ..console.text import first_line
from ..disk.files import write_picture
from .arguments import checked
from .pictures import open_image

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's term for media that a trained model made, https://cv.iptc.org/newscodes/digitalsourcetype/."""

PREFIX = "hfgen:"
"""Beginning of the keywords of text chunks."""

SOURCE_TYPE = "digital_source_type"
"""Name under which the digital source type is read."""

MOST_PIXELS = 1 << 25
"""Pixels of a file, at most, that are decoded to reach text chunks behind them."""

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
  <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
        xmlns:xmp="http://ns.adobe.com/xap/1.0/">
      <xmp:CreatorTool>hfgen {version}</xmp:CreatorTool>
      <Iptc4xmpExt:DigitalSourceType>{generated}</Iptc4xmpExt:DigitalSourceType>
    </rdf:Description>
  </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
_TYPE = re.compile(rb"""DigitalSourceType(?:\s*=\s*["']|\s*>|\s[^<>]{0,40}resource\s*=\s*["'])\s*([^"'<>\s]{1,200})""")
"""A digital source type in a packet: an attribute, an element, or an element with a resource."""

_STEPS: Any = weakref.WeakKeyDictionary()
"""Scheduler of a pipeline -> name of the one in its place, or None -> its steps. Some take long to compute a grid."""

PLAIN = str | int | float | bool | list | dict | None


@checked
@dataclasses.dataclass(frozen=True)
class Provenance:
    """What drew an image.

    Attributes:
        model: name of the model, without the folders of a machine.
        revision: digest of what it computes with, see `hfgen.serving.revision`.
        seed: of the image; of a picture of several "0 to 15"; None where nothing was drawn.
        scheduler: that led from noise to the image; None for families without one.
        steps: of the scheduler.
        action: what the model did: `generate`, `reconstruct`, `interpolate`.
        call: further arguments of the call as JSON, such as classes, a prompt and guidance.
        version: of hfgen.
    """

    model: str
    revision: str | None = None
    seed: int | str | None = None
    scheduler: str | None = None
    steps: int | None = None
    action: str = "generate"
    call: str | None = None
    version: str = __version__

    def texts(self) -> dict[str, str]:
        """Return what is known, as texts by name."""
        return {name: str(value) for name, value in dataclasses.asdict(self).items() if value is not None}

    def options(self, kind: str) -> dict[str, Any]:
        """Return the options of Pillow's `save` that write it into a file of a format, {} where nothing can be."""
        packet = _PACKET.format(version=self.version, generated=GENERATED)
        if kind in ("JPEG", "WEBP"):
            return {"xmp": packet.encode()}
        if kind != "PNG":
            return {}
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("Software", f"hfgen {self.version}")
        for name, text in self.texts().items():
            chunks.add_text(f"{PREFIX}{name}", text.encode("utf-8", "replace").decode())
        chunks.add_itxt("XML:com.adobe.xmp", packet)
        return {"pnginfo": chunks}


NAMES = tuple(field.name for field in dataclasses.fields(Provenance))
"""Names of what a file may say."""


@checked
def provenance_of(
    pipeline: Any,
    model: str,
    revision: str | None = None,
    seed: int | str | None = None,
    call: Mapping[str, Any] = MappingProxyType({}),
    action: str = "generate",
) -> Provenance:
    """Return the provenance of an image that a pipeline draws.

    Args:
        pipeline: its own scheduler is named, and the scheduler's own number of steps, unless the call gives others.
        model: name or folder of the model; of a folder the last part is kept.
        revision, seed, action: see `Provenance`.
        call: arguments of the call. Those that are no plain data are left out.
    """
    name, steps = call.get("scheduler"), call.get("num_inference_steps")
    own = pipeline.components.get("scheduler") if action == "generate" else None
    if own is not None:
        steps = _own_steps(pipeline, own, name) if steps is None else steps
        name = type(own).__name__ if name is None else name
    short = Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model
    return Provenance(short or "model", revision, seed, name, steps, action, call_text(call))


def call_text(call: Mapping[str, Any]) -> str | None:
    """Return the plain data of a call besides scheduler and steps as JSON; None if there are none."""
    kept = {name: value for name, value in call.items() if value is not None and isinstance(value, PLAIN)}
    rest = {name: value for name, value in kept.items() if name not in ("scheduler", "num_inference_steps")}
    return json.dumps(rest, sort_keys=True, default=str) if rest else None


def _own_steps(pipeline: Any, own: Any, name: str | None) -> int | None:
    """Return the steps that a pipeline's scheduler takes when it is told none; with a name, those of the scheduler of
    this name in its place. None if it must be told."""
    known = _STEPS.setdefault(own, {})
    if name not in known:
        scheduler = copy.deepcopy(own) if name is None else pipeline.named_scheduler(name, own)
        try:
            scheduler.set_timesteps(None)
            known[name] = int(scheduler.num_inference_steps)
        except (AttributeError, TypeError, ValueError):
            known[name] = None
    return known[name]


@checked
def save_image(path: str | Path, image: Any, provenance: Provenance) -> None:
    """Write a PIL image with its provenance, in the format of the file's name: PNG, or JPEG and WebP, which hold the
    digital source type alone. Other formats hold nothing of it. Raises WriteError."""
    kind = Image.registered_extensions().get(Path(path).suffix.lower(), "")
    write_picture(path, image, **provenance.options(kind))


@checked
def read_provenance(path: Any) -> dict[str, str]:
    """Return what an image file, at a path or in a file object, says of its provenance.

    Returns:
        Texts by the names of `Provenance`, and `digital_source_type`, an address; {} if the file says nothing. The
        texts are the file's: they may be wrong, and may hold anything. Show them through `hfgen.console.text.escaped`.

    Raises:
        ValueError: the file is damaged.
        OSError: it can't be read, or has a format that is not read.
    """
    try:
        with open_image(path) as image:
            found = _found(image.info)
            if not found and image.format == "PNG" and image.width * image.height <= MOST_PIXELS:
                image.load()  # other programs write text chunks behind the pixels
                found = _found(image.info)
    except OSError as error:
        raise OSError(f"{path} can't be read as an image: {first_line(error)}") from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is damaged or too large to read: {first_line(error)}") from error
    return found


def _found(info: Mapping[Any, Any]) -> dict[str, str]:
    """Return the provenance among the entries that Pillow read from a file."""
    texts = {name: str(info[PREFIX + name]) for name in NAMES if isinstance(info.get(PREFIX + name), str)}
    packet = info.get("xmp", info.get("XML:com.adobe.xmp", b""))
    packet = packet.encode("utf-8", "replace") if isinstance(packet, str) else packet
    match = _TYPE.search(packet) if isinstance(packet, bytes) else None
    return texts if match is None else {**texts, SOURCE_TYPE: match[1].decode("utf-8", "replace")}
