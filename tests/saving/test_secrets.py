"""Secrets in what is pushed beside text: metadata of pictures and weights."""

import zlib

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from hfgen.saving.secrets import refuse_secrets

SECRET = "hf_" + "aB3" * 12
XMP = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'><note>{SECRET}</note></x:xmpmeta>"
WIDE = b"UNICODE\0" + SECRET.encode("utf-16-le")
DESCRIPTION, COMMENT, ARTIST, NOTE = 0x010E, 0x9286, 0x013B, 0x9C9C


def noise(mode="RGB"):
    """A picture that does not compress."""
    levels = torch.randint(0, 256, (96, 96, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Image.fromarray(levels.numpy()).convert(mode)


def exif(number, value, folder=None):
    values = Image.Exif()
    values[number if folder is None else folder] = value if folder is None else {number: value}
    return values


def texts(**chunks):
    info = PngInfo()
    for add, (key, value, zipped) in chunks.items():
        if add == "itxt":
            info.add_itxt(key, value, zip=zipped)
        else:
            info.add_text(key, value, zip=zipped)
    return info


def after_the_pixels(path):
    """A compressed text behind the pixels of a PNG, as programs may write it."""
    noise().save(path)
    body = b"zTXtnote\0\0" + zlib.compress(SECRET.encode() + b" " * 99)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk + content[-12:])


PLANTS = {
    "text.png": lambda path: noise().save(path, pnginfo=texts(text=("Comment", SECRET, False))),
    "compressed.png": lambda path: noise().save(path, pnginfo=texts(text=("Comment", SECRET * 9, True))),
    "international.png": lambda path: noise().save(path, pnginfo=texts(itxt=("Über", f"é {SECRET}", True))),
    "key.png": lambda path: noise().save(path, pnginfo=texts(text=(SECRET, "x", False))),
    "after.png": after_the_pixels,
    "exif.png": lambda path: noise().save(path, exif=exif(DESCRIPTION, SECRET)),
    "exif.jpg": lambda path: noise().save(path, exif=exif(ARTIST, SECRET)),
    "camera.jpg": lambda path: noise().save(path, exif=exif(COMMENT, WIDE, 0x8769)),
    "windows.jpg": lambda path: noise().save(path, exif=exif(NOTE, SECRET.encode("utf-16-le"))),
    "comment.jpg": lambda path: noise().save(path, comment=SECRET),
    "xmp.jpg": lambda path: noise().save(path, xmp=XMP.encode()),
    "xmp.webp": lambda path: noise().save(path, xmp=XMP),
    "exif.webp": lambda path: noise().save(path, exif=exif(DESCRIPTION, SECRET)),
    "comment.gif": lambda path: noise("P").save(path, comment=SECRET, save_all=True, append_images=[noise("P")]),
    "tail.png": lambda path: (noise().save(path), path.write_bytes(path.read_bytes() + SECRET.encode())),
    "tail.jpg": lambda path: (noise().save(path), path.write_bytes(path.read_bytes() + SECRET.encode())),
    "text.GIF": lambda path: path.write_text(SECRET),
    "model.safetensors": lambda path: save_file({"a": torch.zeros(2)}, path, {"note": SECRET}),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_secret_in_metadata_stops_the_push(name, tmp_path):
    PLANTS[name](tmp_path / name)
    with pytest.raises(ValueError, match=r"^[^\n]*, .*, seems to hold an access token or a key\."):
        refuse_secrets(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
def test_pictures_with_plain_metadata_pass(name, tmp_path):
    options = {"pnginfo": texts(text=("Software", "hfgen", True))} if name == "a.png" else {}
    noise("P" if name == "a.gif" else "RGB").save(tmp_path / name, **options)
    refuse_secrets(tmp_path / name)
    save_file({"secret": torch.randn(999)}, tmp_path / "a.safetensors", {"format": "pt"})
    refuse_secrets(tmp_path / "a.safetensors")


def test_a_picture_whose_metadata_can_not_be_read_is_not_pushed(tmp_path):
    noise().save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a\.png can't be searched for secrets"):
        refuse_secrets(tmp_path / "a.png")
