"""Content credentials: a signed C2PA manifest in an image file (https://spec.c2pa.org), by the package c2pa-python.

Unlike the text chunks of `hfgen.utils.provenance`, a manifest can't be changed without notice: it holds a digest of the
file and a signature. It says who signed, not that what it says is true, and it can be removed like any other metadata.
"""

import importlib.util
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfgen import __version__

from ..console.text import first_line
from ..disk.files import replacing
from ..disk.reading import check_regular
from .arguments import checked
from .provenance import GENERATED, NAMES, SOURCE_TYPE, read_provenance

PACKAGE = "c2pa"
INSTALL = "pip install 'hfgen[c2pa]'"
ASSERTION = "hfgen.provenance"
"""Label of the assertion with what hfgen says of an image."""

FORMATS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
MOST_BYTES = 1 << 28
"""Bytes of a file that is signed or read."""

SETTINGS = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": True},
    "builder": {"thumbnail": {"enabled": False}},
}
"""A stranger's file makes nobody ask an address that it names."""

CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


def is_installed() -> bool:
    """Return whether the package is there."""
    return importlib.util.find_spec(PACKAGE) is not None


@checked
def sign_image(path: str | Path, certificate: str | Path, key: str | Path) -> None:
    """Sign an image of hfgen: its file gets a manifest that repeats what it says of its provenance.

    Args:
        path: of a PNG, JPEG or WebP file that hfgen wrote.
        certificate: PEM file with the signer's certificate and those above it. C2PA wants one for signing that was
            issued by another one; a certificate that signs itself is refused.
        key: PEM file with its private key, without a password.

    Raises:
        ValueError: the package is missing, the file does not say that a model made it, or certificate or key do not do.
        OSError: a file can't be read or written.
    """
    if not is_installed():
        raise ValueError(f"Signing needs c2pa-python. Install it: {INSTALL}")
    said, kind = read_provenance(path), _format_of(path)
    if said.get(SOURCE_TYPE) != GENERATED:
        raise ValueError(
            f"{path} does not say that a model made it, so it is not signed as such. Give a file of hfgen."
        )
    import c2pa

    chain, secret = (Path(each).read_bytes() for each in (certificate, key))
    algorithm = getattr(c2pa.C2paSigningAlg, _algorithm_of(secret, key))
    source, signed = io.BytesIO(_content(path)), io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo(algorithm, chain, secret, None)
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(_manifest(said), context=_context()) as builder:
            builder.sign(signer, kind, source, signed)
    except c2pa.C2paError as error:
        raise ValueError(f"{path} can't be signed with {certificate} and {key}: {first_line(error)}") from None
    with replacing(path) as draft, open(draft, "wb") as file:
        file.write(signed.getvalue())


@checked
def read_credentials(path: str | Path) -> dict[str, str]:
    """Return what the manifest of an image file says, {} without one or without the package.

    Returns:
        `signed_by`: names in the certificate; `signature`: whether file and manifest are as they were signed;
        `signed_source_type`, and what hfgen said, by its names after `signed_`. The texts are the signer's.
    """
    if not is_installed() or Path(path).suffix.lower() not in FORMATS:
        return {}
    import c2pa

    try:
        with c2pa.Reader(_format_of(path), io.BytesIO(_content(path)), context=_context()) as reader:
            values = json.loads(reader.json())
    except c2pa.C2paError as error:
        missing = type(error).__name__.endswith("ManifestNotFound")
        return {} if missing else {"signature": f"can't be read: {first_line(error)}"}
    manifest = values["manifests"][values["active_manifest"]]
    signer = manifest.get("signature_info", {})
    names = [signer[name] for name in ("common_name", "issuer") if signer.get(name)]
    return {"signed_by": ", ".join(map(str, names)), "signature": _verdict(values), **_assertions(manifest)}


def _verdict(values: Mapping[str, Any]) -> str:
    """Return in words how the signature was found."""
    if values.get("validation_state") == "Trusted":
        return "valid, and the signer is on a list of trust"
    failures = [each.get("code", "") for each in values.get("validation_status", [])]
    broken = [code for code in failures if code != "signingCredential.untrusted"]
    if broken or values.get("validation_state") != "Valid":
        return f"NOT VALID: {', '.join(map(str, broken)) or 'no reason given'}"
    return "valid: nothing was changed since. The signer is on no list of trust that is known here"


def _assertions(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return what hfgen's assertion and the first action say."""
    found: dict[str, str] = {}
    for each in manifest.get("assertions", []):
        label, data = str(each.get("label", "")), each.get("data", {})
        if label.startswith("c2pa.actions") and isinstance(data, dict):
            kinds = [action["digitalSourceType"] for action in data.get("actions", []) if "digitalSourceType" in action]
            found |= {"signed_source_type": str(kinds[0])} if kinds else {}
        elif label == ASSERTION and isinstance(data, dict):
            found |= {f"signed_{name}": str(data[name]) for name in NAMES if name in data}
    return found


def _manifest(said: Mapping[str, str]) -> str:
    """Return the definition of a manifest for an image with this provenance."""
    agent = {"name": "hfgen", "version": __version__}
    action = {"action": "c2pa.created", "digitalSourceType": GENERATED, "softwareAgent": agent}
    assertions = [
        {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
        {"label": ASSERTION, "data": {name: text for name, text in said.items() if name in NAMES}},
    ]
    return json.dumps({"claim_generator_info": [agent], "assertions": assertions})


def _algorithm_of(secret: bytes, key: str | Path) -> str:
    """Return the name of the signature that goes with a private key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        loaded = serialization.load_pem_private_key(secret, None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key} is no PEM file of a private key without a password: {first_line(error)}") from None
    if isinstance(loaded, ec.EllipticCurvePrivateKey) and loaded.curve.name in CURVES:
        return CURVES[loaded.curve.name]
    if isinstance(loaded, ed25519.Ed25519PrivateKey):
        return "ED25519"
    if isinstance(loaded, rsa.RSAPrivateKey):
        return "PS256"
    raise ValueError(f"{key} is a key that C2PA does not sign with. Take one of the curve P-256: openssl ecparam.")


def _format_of(path: str | Path) -> str:
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"{path} is none of the files that are signed: {', '.join(FORMATS)}.")
    return FORMATS[ending]


def _content(path: str | Path) -> bytes:
    """Return the content of a file. Raises ValueError for one that is too large."""
    check_regular(Path(path))
    if Path(path).stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES:,} bytes. Give a smaller image.")
    return Path(path).read_bytes()


def _context() -> Any:
    """Return the settings of c2pa for one file."""
    import c2pa

    return c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
