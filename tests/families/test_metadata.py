"""Metadata of training images, such as the place of a photograph, are in nothing that hfgen writes of them."""

import io

import numpy as np
import pytest
from PIL import Image

from hfgen import cli
from hfgen.training import train_latent

ARTIST, GPS, LATITUDE = 0x013B, 0x8825, 2
MARK, DEGREES = "Somebody of 7 Hidden Lane", (51.0, 30.0, 26.462)


def photograph(seed):
    """Return a JPEG file with the name of its author, and the place where it was taken."""
    exif = Image.Exif()
    exif[ARTIST] = MARK
    exif.get_ifd(GPS).update({1: "N", LATITUDE: DEGREES, 3: "W", 4: (0.0, 7.0, 39.9)})
    levels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", exif=exif, comment=MARK, xmp=f"<x>{MARK}</x>".encode())
    return buffer.getvalue()


def traces(folder):
    """Return the files in a folder that hold the mark, EXIF data or a place, in any way that Pillow reads."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if MARK.encode() in data or MARK.encode("utf-16-le") in data or b"Exif\0\0" in data or b"eXIf" in data:
            found.append(path)
        elif path.suffix in (".png", ".gif", ".webp", ".jpg"):
            with Image.open(path) as image:
                found += [path] if image.getexif() else []
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of photographs, a run of a latent model on it, and what commands write."""
    home = tmp_path_factory.mktemp("metadata")
    for i in range(24):
        path = home / "photographs" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(i))
    made = home / "made"
    train_latent.main(
        [
            *("--dataset", str(home / "photographs"), "--cache_dir", str(made / "datasets"), "--report_to", "none"),
            *("--output_dir", str(made / "run"), "--from_scratch", "--model_size", "xs", "--class_conditional"),
            *(
                "--num_inference_steps",
                "2",
                "--perceptual",
                "0",
                "--adversarial_weight",
                "0",
                "--autoencoder_steps",
                "2",
            ),
            *("--autoencoder_batch_size", "8", "--max_train_steps", "2", "--train_batch_size", "8"),
            *("--eval_batch_size", "4", "--checkpointing_steps", "1"),
        ]
    )
    return home


def test_the_photographs_have_what_is_looked_for(folder):
    photographs = sorted((folder / "photographs").rglob("*.jpg"))
    assert traces(folder / "photographs") == photographs
    with Image.open(photographs[0]) as image:
        assert image.getexif().get_ifd(GPS)[LATITUDE] == DEGREES


def test_caches_checkpoints_weights_pictures_and_cards_hold_no_metadata(folder):
    files = [path for path in (folder / "made").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"README.md", "samples.png", "model_index.json"} <= names
    assert any("latent" in path.name and path.suffix == ".safetensors" for path in files), "the cache of latents"
    assert traces(folder / "made") == []


def test_samples_previews_and_panels_hold_no_metadata(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, photographs = str(folder / "made" / "run"), str(folder / "photographs")
    cli.main(["sample", run, "--num_samples", "4", "--output_dir", "samples", "--grid", "grid.png", "--device", "cpu"])
    cli.main(["data", photographs, "--grid", "preview.png", "--cache_dir", "datasets"])
    words = [
        "--metrics",
        "memorisation",
        "--features",
        "digits",
        "--num_samples",
        "8",
        "--held_out_split",
        "train[16:]",
    ]
    words += ["--train_split", "train[:16]", "--bootstrap", "0", "--device", "cpu", "--output", "out/metrics.json"]
    cli.main(["evaluate", run, *words])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 8 and any(path.name.startswith("nearest") for path in written), written
    assert traces(tmp_path) == []
