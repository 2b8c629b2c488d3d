"""Front doors in this process, and laws that hold for several of them."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image

from hfgen import HFGenPipeline, cli
from hfgen.data.batches import Batches
from hfgen.families import run as training
from hfgen.utils import pictures


def entered(main: Callable, capsys, *words: object) -> tuple[int, str, str]:
    """A front door with these words: (exit status, what it printed, what it complained of)."""
    try:
        main(list(map(str, words)))
        status, said = 0, ""
    except SystemExit as stop:
        status, said = (stop.code, "") if isinstance(stop.code, int | None) else (1, stop.code)
    out = capsys.readouterr()
    return status, out.out, out.err + said


def refused_unread(main: Callable, capsys, monkeypatch, folder: Path, words: list, message: str) -> None:
    """With these words it ends in one line with this message, has read no data, and leaves no folder."""

    def load(*_):
        raise AssertionError("data were read")

    monkeypatch.setattr(training, "load_images", load)
    status, _, said = entered(main, capsys, *words, "--output_dir", folder)
    assert status == 2 and message in said and said.startswith("error: ")
    assert not folder.exists()


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def whole_and_cut(
    main: Callable, capsys, monkeypatch, folder: Path, words: list, stops: Mapping[int, int]
) -> list[dict[str, bytes]]:
    """What a run leaves, and what the same leaves that is told to stop at micro-batches `stops`, {number: step that it
    stops after}. Pictures and weights are equal, those of checkpoint-4 aside, which not every cut leaves."""
    finish = Batches._finish

    def stopping(self, number, *micro):
        if number in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, number, *micro)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "_finish", stopping)
        for step in stops.values():
            status, out, _ = entered(main, capsys, *words, "--output_dir", folder / "cut")
            assert status == 0 and f"Stopped at step {step}; the same command goes on" in out
    for name in ("whole", "cut"):
        assert entered(main, capsys, *words, "--output_dir", folder / name)[0] == 0
    whole, cut = (contents(folder / name) for name in ("whole", "cut"))
    same = [name for name in whole if name.endswith((".png", ".gif", ".safetensors")) and "checkpoint-4" not in name]
    assert len(same) >= 6 and not [name for name in same if whole[name] != cut[name]]
    return [whole, cut]


def drawn_as_shown(folder: Path, work: Path) -> None:
    """Six samples of a saved pipeline are those on its sheet, three a row, and those that `hfgen sample` draws."""
    images = HFGenPipeline.from_pretrained(folder)(6, generator=[torch.Generator().manual_seed(i) for i in range(6)])
    with Image.open(folder / "samples.png") as shown:
        assert shown.tobytes() == pictures.grid(images.images, 3).tobytes()
    cli.main(["sample", str(folder), "--num", "6", "--output_dir", str(work / "drawn"), "--device", "cpu"])
    drawn = [Image.open(path).tobytes() for path in sorted((work / "drawn").iterdir())]
    assert drawn == [image.tobytes() for image in images.images]
