"""Provenance: what is written is read again, also by other readers; what strangers wrote does no harm."""

import io
import json
import struct
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import hfgen
from hfgen import cli
from hfgen.commands.provenance import NONE
from hfgen.serving.revision import revision_of
from hfgen.training import train_diffusion
from hfgen.utils import pictures
from hfgen.utils.provenance import GENERATED, Provenance, provenance_of, read_provenance, save_image
from hfgen.utils.seeds import sample_generators
from tests.helpers.doors import run_door
from tests.saving import test_portable as portable

FULL = Provenance("digits", "0123456789abcdef", 7, "heun", 10, call='{"prompt": "a caf\\u00e9 \\u2014 \\u4e2d"}')


def chunks_of(data):
    """Return the chunks of a PNG file as (kind, content), read by hand."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + content)
        found.append((kind, content))
        place += 12 + length
    return found


def picture():
    return Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))


def test_a_png_has_text_chunks_and_a_packet_that_other_readers_understand(tmp_path):
    save_image(tmp_path / "x.png", picture(), FULL)
    chunks = chunks_of((tmp_path / "x.png").read_bytes())
    texts = dict(content.split(b"\0", 1) for kind, content in chunks if kind == b"tEXt")
    assert texts[b"hfgen:seed"] == b"7" and texts[b"hfgen:steps"] == b"10" and texts[b"hfgen:scheduler"] == b"heun"
    assert texts[b"Software"] == f"hfgen {hfgen.__version__}".encode()
    (international,) = [content for kind, content in chunks if kind == b"iTXt" and b"adobe" in content[:40]]
    assert international.startswith(b"XML:com.adobe.xmp\0\0\0\0\0")
    packet = ET.fromstring(international.split(b"\0", 5)[5].split(b"?>", 1)[1].rsplit(b"<?", 1)[0])
    (kind,) = packet.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert kind.text == GENERATED == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(picture()))


def test_what_is_written_is_read_again(tmp_path):
    save_image(str(tmp_path / "x.png"), picture(), FULL)
    expected = {"model": "digits", "revision": "0123456789abcdef", "seed": "7", "scheduler": "heun", "steps": "10"}
    expected |= {"action": "generate", "call": FULL.call, "version": hfgen.__version__}
    assert read_provenance(tmp_path / "x.png") == {**expected, "digital_source_type": GENERATED}
    for name in ("x.jpg", "x.webp"):
        save_image(tmp_path / name, picture(), FULL)
        assert read_provenance(tmp_path / name) == {"digital_source_type": GENERATED}
    save_image(tmp_path / "x.gif", picture(), FULL)
    assert read_provenance(tmp_path / "x.gif") == {}
    accents = Provenance("\u043c\u043e\u0434\u0435\u043b\u044c", seed="0 to 3")
    save_image(tmp_path / "y.png", picture(), accents)
    read = read_provenance(tmp_path / "y.png")
    assert (read["model"], read["seed"]) == (accents.model, "0 to 3") and "revision" not in read
    save_image(tmp_path / "z.png", picture(), Provenance("a\udcffb"))  # a name of a file that is no UTF-8
    assert read_provenance(tmp_path / "z.png")["model"] == "a?b"


@pytest.mark.parametrize(
    "form",
    ['<x Iptc4xmpExt:DigitalSourceType="{}"/>', "<a:DigitalSourceType>\n {}</a:DigitalSourceType>",
     '<Iptc4xmpExt:DigitalSourceType rdf:resource="{}"/>'],
)  # fmt: skip
def test_the_source_type_of_other_programs_is_read_in_every_form_of_rdf(form, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", form.format(GENERATED))
    picture().save(tmp_path / "x.png", pnginfo=info)
    assert read_provenance(tmp_path / "x.png") == {"digital_source_type": GENERATED}


def test_chunks_behind_the_pixels_are_read(tmp_path):
    picture().save(tmp_path / "x.png")
    head, tail = (tmp_path / "x.png").read_bytes()[:-12], (tmp_path / "x.png").read_bytes()[-12:]
    content = b"tEXthfgen:model\0late"
    late = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    (tmp_path / "x.png").write_bytes(head + late + tail)
    assert read_provenance(tmp_path / "x.png") == {"model": "late"}


def test_files_that_say_nothing_or_are_no_images(tmp_path):
    picture().save(tmp_path / "x.png")
    assert read_provenance(tmp_path / "x.png") == {}
    (tmp_path / "text.png").write_text("hfgen:model")
    with pytest.raises(OSError, match=r"text\.png can't be read as an image: it is no PNG"):
        read_provenance(tmp_path / "text.png")
    with pytest.raises(OSError, match="No such file"):
        read_provenance(tmp_path / "none.png")


def test_a_text_chunk_that_grows_without_end_is_refused(tmp_path):
    content = b"zTXthfgen:model\0\0" + zlib.compress(b"a" * 200_000_000, 9)
    bomb = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    data = buffer.getvalue()
    (tmp_path / "x.png").write_bytes(data[:33] + bomb + data[33:])
    with pytest.raises((ValueError, OSError), match=r"x\.png"):
        read_provenance(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("call", "scheduler", "steps", "more"),
    [
        ({"num_inference_steps": 3, "class_labels": 1}, "RectifiedFlowScheduler", 3, '{"class_labels": 1}'),
        ({}, "RectifiedFlowScheduler", 20, None),
        ({"scheduler": "ddim"}, "ddim", 50, None),
        ({"scheduler": "heun", "num_inference_steps": 4, "generator": object()}, "heun", 4, None),
    ],
)
def test_a_draw_names_the_scheduler_and_the_steps_that_it_had(call, scheduler, steps, more, tmp_path):
    pipeline = portable.denoising()["DiTModel-straight"]
    (tmp_path / "digits").mkdir()
    found = provenance_of(pipeline, str(tmp_path / "digits"), seed=1, call=call)
    assert (found.model, found.scheduler, found.steps, found.call) == ("digits", scheduler, steps, more)
    gan = provenance_of(portable.generating()["mlp"], "someone/faces", seed=1)
    assert (gan.model, gan.scheduler, gan.steps) == ("someone/faces", None, None)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_hfgen_sample_writes_the_provenance_of_single_images_and_of_grids(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipeline = portable.denoising()["DiTModel-straight"]
    pipeline.save_pretrained("mine")
    words = ["--num_samples", "4", "--class_labels", "0,1", "--seed", "5", "--num_inference_steps", "2"]
    cli.main(["sample", "mine", *words, "--scheduler", "heun", "--output_dir", "out", "--grid", "grid.png"])
    capsys.readouterr()
    cli.main(["provenance", "out/000003.png", "grid.png", "--json"])
    found = json.loads(capsys.readouterr().out)
    one, all_of_them = found["out/000003.png"], found["grid.png"]
    assert (one["model"], one["seed"], one["scheduler"], one["steps"]) == ("mine", "8", "heun", "2")
    assert one["revision"] == revision_of(pipeline) and json.loads(one["call"]) == {"class_labels": 1}
    assert one["digital_source_type"] == GENERATED and one["version"] == hfgen.__version__
    assert (all_of_them["seed"], json.loads(all_of_them["call"])) == ("5 to 8", {"class_labels": [0, 0, 1, 1]})


def test_the_pictures_of_a_training_say_how_to_draw_them_again(tmp_path, capsys):
    """Of classes, under guidance, with steps and a first seed of the run's own; on the way and at the end."""
    words = "--dataset_split train[:32] --train_batch_size 8 --max_train_steps 2 --sample_steps 1 --seed 3 "
    words += "--class_conditional --model dit --model_size xs --guidance_scale 2 --num_inference_steps 3 "
    words += "--eval_batch_size 20 --report_to none"
    status, _, errors = run_door(train_diffusion.main, capsys, *words.split(), "--output_dir", tmp_path / "mine")
    assert status == 0, errors
    said = read_provenance(tmp_path / "mine" / "samples.png")
    assert (said["model"], said["seed"], said["steps"]) == ("DenoisingPipeline", "3 to 22", "3")
    pipeline = hfgen.HFGenPipeline.from_pretrained(tmp_path / "mine")
    assert said["revision"] == revision_of(pipeline) and said["scheduler"] == type(pipeline.scheduler).__name__
    call = json.loads(said["call"])
    assert call == {"class_labels": [label for label in range(10) for _ in range(2)], "guidance_scale": 2.0}
    generators = sample_generators(3, range(20))
    images = pipeline(20, **call, num_inference_steps=int(said["steps"]), generator=generators).images
    labels = [str(label) for label in range(10)]
    with Image.open(tmp_path / "mine" / "samples.png") as grid:
        assert grid.tobytes() == pictures.grid(images, 2, labels=labels).tobytes()
    earlier = read_provenance(tmp_path / "mine" / "samples" / "step-0000001.png")
    assert earlier.pop("revision") != said.pop("revision") and earlier == said
    assert read_provenance(tmp_path / "mine" / "loss.png") == {}


def test_hfgen_provenance_escapes_what_files_say_and_says_when_they_say_nothing(tmp_path, capsys):
    info = PngImagePlugin.PngInfo()
    info.add_text("hfgen:model", "evil\x1b[2J\nmodel: good")
    picture().save(tmp_path / "x.png", pnginfo=info)
    picture().save(tmp_path / "plain.png")
    cli.main(["provenance", str(tmp_path / "x.png"), str(tmp_path / "plain.png")])
    text = capsys.readouterr().out
    assert "\x1b" not in text and r"evil\x1b[2J\nmodel: good" in text
    assert text.splitlines()[-1] == f"{tmp_path / 'plain.png'}: {NONE}"
    cli.main(["provenance", str(tmp_path / "x.png"), "--json"])
    assert "\x1b" not in capsys.readouterr().out
