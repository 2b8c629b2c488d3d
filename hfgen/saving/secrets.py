"""Access tokens and keys in the files of a push: in text, and in the metadata of pictures and weights."""

import html
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..console.text import escaped, first_line
from ..disk.reading import check_regular, read_bytes
from ..utils.pictures import open_image

SECRETS = re.compile(
    r"\b(?:hf_(?:[a-z]{2,8}_)?|api_org_)[A-Za-z0-9]{30,}"  # Hugging Face
    r"|\b(?:gh[opsur]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"  # GitHub
    r"|\bgl(?:pat|dt|rt|cbt|ptt|ft|imt|soat|agent)-[\w-]{20,}"  # GitLab
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}"  # clouds, chats
    r"|\bsk-(?=[\w-]{0,60}\d)[\w-]{20,}"  # APIs
    r"|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}|\bLTAI[A-Za-z0-9]{12,}|\bdo[oprt]_v1_[0-9a-f]{40,}"
    r"|\bhvs\.[\w-]{20,}|\bdapi[0-9a-f]{32}|\bATATT3[\w-]{50,}|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bSK[0-9a-f]{32}\b"
    r"|\b(?:r8_|gsk_|wandb_v1_)[A-Za-z0-9]{30,}|\b(?:nvapi|xai|pplx)-[\w-]{30,}"  # models and their logs
    r"|\b[rs]k_(?:live|test)_\w{16,}|\bshpat_[0-9a-f]{32}|\bnpm_[A-Za-z0-9]{30,}|\bpypi-[\w-]{20,}"
    r"|\bdckr_pat_[\w-]{20,}|\bAGE-SECRET-KEY-1[0-9A-Z]{50,}"  # payments, packages, containers, files
    r"|\b(?:lin_api|ntn|figd|sbp|glsa|vercel_blob_rw|sq0[a-z]{3})[_-](?=\w{0,60}\d)\w{20,}|\bxapp-\d+-[\w-]{20,}"
    r"|\btskey-[a-z]+-[\w-]{20,}|\bpul-[0-9a-f]{40}|\bHRKU-[\w-]{30,}|\bkey-[0-9a-f]{32}\b"
    r"|\bsk\.eyJ[\w-]{10,}\.[\w-]{16,}|\"key\"\s*:\s*\"[0-9a-f]{32}\""  # designs, data, mails, maps
    r"|\bhooks\.slack\.com/services/\w+/\w+/\w{16,}|\bdiscord(?:app)?\.com/api/webhooks/\d+/[\w-]{20,}"
    r"|\b\d{8,10}:AA[\w-]{32,}"  # chats
    r"|(?i:\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)|\bbearer)\s+(?=\S{0,60}\d)[\w.~+/=-]{16,}"
    r"|(?i:\bauthorization[\"']?\s*[:=]\s*[\"']?basic)\s+[\w+/=-]{8,}|\"auth\"\s*:\s*\"[\w+/=-]{12,}\""
    r"|\blogin\s+\S+\s+password\s+\S+|^\s*password\s+(?=\S{0,60}\d)\S{8,}\s*$"  # .netrc
    r"|(?i:[_-]token)[\"']?\s*[:=]\s*[\"']?(?=(?:[^\s\"']{0,40}\d){3})(?=[^\s\"']{0,40}[A-Za-z])[\w+/=.-]{16,}"
    r"|(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON Web Tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
    r"|(?i:(?:api|access|account|secret|private)[_-]?key|secret|passw(?:or)?d|passphrase|auth[_-]?token)[\"']?\s*[:=]\s*"
    r"[\"']?(?![\d.,]+\s*[\"']?(?:[,}]|$)|(?i:none|null|true|false)\b)[^\s\"',}]{8,}"  # a secret by its name
    r"|(?i:\bpwd|[_-]pass)[\"']?\s*[:=]\s*[\"']?(?![/~$.]|(?i:none|null|true|false)\b)[^\s\"',}]{8,}"
    r"|\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@\"']*:[^\s/@\"']+@"  # a URL with a password
    r"|[?&](?:sig|X-(?:Amz|Goog)-Signature|access_token|token)=[^\s\"'&]{8,}"  # a URL that is a key itself
)
"""Access tokens and keys by their usual forms."""

MOST_TEXT = 1 << 30
"""Bytes of a file that is searched, at most; metrics.jsonl grows with a run."""

PICTURES = (".png", ".gif", ".jpg", ".jpeg", ".webp")
"""Endings of files that are searched as pictures."""

PRINTABLE = re.compile(rb"[\t\x20-\x7e]{12,}")
"""A run of text in a file of bytes. Compressed pixels have hardly any."""

ASCII = re.compile(r"[^\t\x20-\x7e]+")
"""What separates words of bytes that are decoded as text: no token has such letters."""

HEADER_BYTES = 100_000_000
"""Most bytes of the header of a file of weights, as in the library that reads them."""


def refuse_secrets(path: Path) -> None:
    """Refuse a file that seems to hold an access token or a key.

    A picture is searched in all that is not its pixels: texts of PNG, also compressed ones, EXIF, XMP, comments, and
    what follows the picture. Of weights the header is searched.

    Raises:
        ValueError: names the file and the place; or the metadata of a picture can't be read.
        OSError: the file can't be read.
    """
    check_regular(path)
    for place, text in _texts(path):
        if any(map(SECRETS.search, _readings(text))):
            raise ValueError(f"{path}, {place}, seems to hold an access token or a key. Take it out, then push.")


def _readings(text: str) -> Iterator[str]:
    """Yield a text, and what browsers and addresses make of it where that is another one."""
    yield text
    if "%" in text or "&" in text or not text.isascii():
        shown = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
        yield html.unescape(shown)
        yield unquote(shown)


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield places and texts of a file."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(min(size, HEADER_BYTES))
        yield "in the header", header.decode(errors="replace")
        return
    content = read_bytes(path, MOST_TEXT)
    if path.suffix.lower() in PICTURES:
        for run in PRINTABLE.findall(content):
            yield "in its bytes", run.decode("ascii")
            yield "in its bytes", run[4:].decode("ascii")  # behind the name of a chunk, which is text as well
        yield from _metadata(path)
        return
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        yield f"line {number}", line


def _metadata(path: Path) -> Iterator[tuple[str, str]]:
    """Yield places and texts of the metadata of a picture, as Pillow reads them; none of a file that is no picture.

    Raises:
        ValueError: it is a picture, and its metadata can't be read, so that nobody knows what is pushed.
    """
    from PIL import UnidentifiedImageError

    try:
        with open_image(path) as image:
            for frame in range(getattr(image, "n_frames", 1)):
                image.seek(frame)
                image.load()  # texts of PNG may follow the pixels
                yield from _flat("metadata", {**image.info, **getattr(image, "text", {})})
            exif = image.getexif()
            yield from _flat("EXIF", dict(exif))
            for number in (0x8769, 0x8825, 0xA005):  # of the camera, of the place, of interoperability
                yield from _flat("EXIF", exif.get_ifd(number))
    except UnidentifiedImageError:
        return
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise ValueError(
            f"{path} can't be searched for secrets: {first_line(error)}. Remove it, or save it again, then push."
        ) from error


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the texts in nested values, with the names that lead to them."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield name, str(key)
            yield from _flat(f"{name} {escaped(key)[:60]}", part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _flat(name, part)
    elif isinstance(value, bytes):
        value = value.removeprefix(b"UNICODE\0")  # of comments in EXIF
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):  # EXIF has either
            yield name, ASCII.sub(" ", value.decode(encoding, errors="replace"))
    elif isinstance(value, str):
        yield name, value
