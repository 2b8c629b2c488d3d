"""Content credentials, with certificates that are made here: what is signed is read, and every change is noticed."""

import datetime
import json
import re
import sys

import pytest
from PIL import Image

from hfgen import cli
from hfgen.utils import content_credentials
from hfgen.utils.content_credentials import read_credentials, sign_image
from hfgen.utils.provenance import GENERATED, Provenance, read_provenance, save_image

pytest.importorskip("c2pa")
pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.timezone.utc)


def certificate(name, key, issuer, issuer_key, is_root):
    """Return a certificate for a key, issued by another one."""
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)]
    usage = x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False)
    builder = (
        x509.CertificateBuilder(*reversed(names))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(is_root, None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )
    if not is_root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def write_signer(folder, key):
    """Write chain.pem and key.pem for a key; return their paths."""
    root = ec.generate_private_key(ec.SECP256R1())
    chain = certificate("A. Signer", key, "A root", root, False) + certificate("A root", root, "A root", root, True)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    return folder / "chain.pem", folder / "key.pem"


@pytest.fixture
def signer(tmp_path):
    return write_signer(tmp_path, ec.generate_private_key(ec.SECP256R1()))


def generated(path):
    save_image(path, Image.linear_gradient("L").resize((32, 32)), Provenance("digits", "ab", 7, "heun", 10))
    return path


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
def test_what_is_signed_is_read(name, tmp_path, signer):
    path = generated(tmp_path / name)
    before, pixels = read_provenance(path), Image.open(path).tobytes()
    sign_image(path, *signer)
    found = read_credentials(path)
    assert found["signed_by"] == "A. Signer" and found["signature"].startswith("valid: nothing was changed since.")
    assert found["signed_source_type"] == GENERATED
    assert read_provenance(path) == before and Image.open(path).tobytes() == pixels
    if name == "x.png":
        assert (found["signed_model"], found["signed_seed"], found["signed_steps"]) == ("digits", "7", "10")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["p384", "ed25519", "rsa"],
)
def test_the_signature_is_that_of_the_key(make, tmp_path):
    path = generated(tmp_path / "x.png")
    sign_image(path, *write_signer(tmp_path, make()))
    assert read_credentials(path)["signature"].startswith("valid")


def test_a_change_of_pixels_or_texts_is_noticed(tmp_path, signer):
    path = generated(tmp_path / "x.png")
    sign_image(path, *signer)
    data = path.read_bytes()
    for mark, place in ((b"IDAT", 20), (b"hfgen:seed\x00", 11)):
        changed = bytearray(data)
        changed[data.index(mark) + place] ^= 1
        (tmp_path / "y.png").write_bytes(changed)
        assert read_credentials(tmp_path / "y.png")["signature"].startswith("NOT VALID: assertion.dataHash.mismatch")


def test_files_without_a_manifest_have_none(tmp_path):
    assert read_credentials(generated(tmp_path / "x.png")) == {}
    (tmp_path / "x.txt").write_text("x")
    assert read_credentials(tmp_path / "x.txt") == {}


def test_what_can_not_be_signed_is_refused_and_stays(tmp_path, signer, monkeypatch):
    chain, key = signer
    Image.new("L", (8, 8)).save(tmp_path / "photograph.png")
    with pytest.raises(ValueError, match="does not say that a model made it"):
        sign_image(tmp_path / "photograph.png", chain, key)
    path = generated(tmp_path / "x.png")
    before = path.read_bytes()
    (tmp_path / "wrong.pem").write_text("x")
    with pytest.raises(ValueError, match=r"wrong\.pem is no PEM file of a private key"):
        sign_image(path, chain, tmp_path / "wrong.pem")
    with pytest.raises(ValueError, match=r"x\.png can't be signed with"):
        sign_image(path, tmp_path / "wrong.pem", key)
    own = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "self.pem").write_bytes(certificate("Me", own, "Me", own, True))
    with pytest.raises(ValueError, match="can't be signed"):
        sign_image(path, tmp_path / "self.pem", key)
    with pytest.raises(OSError, match="No such file"):
        sign_image(path, tmp_path / "none.pem", key)
    monkeypatch.setattr(content_credentials, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=re.escape("Install it: pip install 'hfgen[c2pa]'")):
        sign_image(path, chain, key)
    assert read_credentials(path) == {} and path.read_bytes() == before


def test_the_command_signs_and_reads(tmp_path, signer, capsys):
    path = str(generated(tmp_path / "x.png"))
    cli.main(["provenance", path, "--certificate", str(signer[0]), "--key", str(signer[1]), "--json"])
    found = json.loads(capsys.readouterr().out)[path]
    assert found["seed"] == found["signed_seed"] == "7" and found["signature"].startswith("valid")
    cli.main(["provenance", path])
    assert "signed_by:" in capsys.readouterr().out
    from hfgen.commands import provenance

    with pytest.raises(ValueError, match="Name its file: --key FILE"):
        provenance.main([path, "--certificate", str(signer[0])])


def test_reading_opens_no_connection(tmp_path, signer, monkeypatch):
    """Settings that forbid it, as c2pa reads them: a file may name addresses."""
    import c2pa

    given = []
    real = c2pa.Settings.from_dict
    monkeypatch.setattr(c2pa.Settings, "from_dict", lambda values: given.append(values) or real(values))
    read_credentials(generated(tmp_path / "x.png"))
    assert given and all(each["verify"]["remote_manifest_fetch"] is False for each in given)
    assert all(each["verify"]["ocsp_fetch"] is False for each in given) and sys.modules["c2pa"]
